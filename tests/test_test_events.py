"""A test event, made for one endpoint alone: POST /endpoints/{id}/test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from app.db import db
from app.publish import NO_EXAMPLE
from dispatcher import jobs
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import all_done, wait_until
from tests.factories import claim, make_endpoint, publish, rows, task_rows
from tests.live import LiveService


def send_test(caller, body: Any = None, status: int = 202, **options: Any) -> Any:
    answer = caller.post("/endpoints/ep_1/test", body, **options)
    assert answer.status_code == status, answer.text
    return answer.json


def events() -> list[dict[str, Any]]:
    return rows(db.execute_sql("SELECT *, data::text AS text FROM hookjetty.events ORDER BY id"))


def test_it_becomes_one_task_for_that_endpoint(owner):
    make_endpoint(7, "https://app/1", events=["export.*", "export.done"])
    make_endpoint(7, "https://app/2")
    sent = send_test(owner)
    ((event,), (task,)) = events(), task_rows()
    assert sent == {"event_id": f"evt_{event['id']}", "task_id": f"task_{task['id']}"}
    assert (event["tenant_id"], event["type"], event["text"]) == (7, "export.done", NO_EXAMPLE)
    assert (event["endpoint_id"], event["fanout"]) == (1, 1)
    assert (task["endpoint_id"], task["event_id"], task["status"]) == (1, event["id"], "pending")
    assert owner.get(f"/events/{sent['event_id']}").json["tasks"][0]["task_id"] == sent["task_id"]
    assert owner.get(f"/tasks/{sent['task_id']}").json["type"] == "export.done"


def test_the_type_is_chosen_or_the_first_that_the_endpoint_names_or_ours(owner):
    make_endpoint(7)
    for body in ({"type": "import.done"}, {}, None):
        send_test(owner, body)
    assert [event["type"] for event in events()] == ["import.done"] + ["hookjetty.test"] * 2


@pytest.mark.parametrize(
    "name", ["", "a b", "export.*", "hookjetty.endpoint.disabled", "a" * 129, 7]
)
def test_what_is_no_type_of_a_tenants_event_is_refused(owner, name):
    make_endpoint(7)
    assert list(send_test(owner, {"type": name}, 400)["details"]) == ["type"]
    assert events() == []


@pytest.mark.parametrize(
    ("status", "remedy"),
    [("pending", "verify it"), ("paused", "resume it"), ("disabled", "register it again")],
)
def test_one_that_is_not_active_gets_none_and_says_what_to_do(owner, status, remedy):
    make_endpoint(7, status=status)
    message = send_test(owner, status=409)["message"]
    assert status in message and remedy in message
    assert events() == []


def test_a_strangers_endpoint_does_not_exist(stranger):
    make_endpoint(7)
    send_test(stranger, status=404)
    assert events() == []


def test_it_passes_a_hold_as_a_persons_retry_does(owner):
    failing = {"failures": 7, "failing_since": "2026-01-01", "hold_until": "2999-01-01"}
    make_endpoint(7, **failing)
    publish()
    sent = send_test(owner)
    assert [f"task_{task.task_id}" for task in claim().tasks] == [sent["task_id"]]


def test_the_same_request_again_sends_nothing(owner):
    make_endpoint(7)
    first, again = (send_test(owner, headers={"X-Request-Id": "r-1"}) for _ in range(2))
    assert first == again
    assert len(events()) == len(task_rows()) == 1


def test_it_counts_as_a_registration(owner):
    make_endpoint(7)
    for _ in range(30):
        send_test(owner)
    assert "registrations" in send_test(owner, status=429)["message"]


def test_a_catalogue_lends_its_example(owner):
    """A type that it lacks, or has no example of, is sent all the same."""
    example = '{"rows": 1.50,  "file":"a.csv"}'
    db.execute_sql(
        "INSERT INTO hookjetty.event_types (name, example) VALUES ('export.done', %s), ('x', NULL)",
        (example,),
    )
    make_endpoint(7)
    for name in ("export.done", "x", "y"):
        send_test(owner, {"type": name})
    assert [event["text"] for event in events()] == [example, NO_EXAMPLE, NO_EXAMPLE]


def test_no_replay_brings_it_again(owner):
    make_endpoint(7, "https://app/1")
    make_endpoint(7, "https://app/2")
    made = [send_test(owner, {"type": "x"})["event_id"], f"evt_{publish(7, 'x')[0]}"]
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'delivered', ready = false, next_try_at = NULL"
    )
    for endpoint in ("ep_1", "ep_2"):
        owner.post("/replay", {"endpoint_id": endpoint, "from": "2026-01-01T00:00:00Z"})
    while jobs.replay_step():
        pass
    replayed = {
        endpoint: [
            f"evt_{task['event_id']}"
            for task in task_rows(f"endpoint_id = {endpoint} AND replay_id IS NOT NULL")
        ]
        for endpoint in (1, 2)
    }
    assert replayed == {1: made[1:], 2: made[1:]}
    (other,) = rows(db.execute_sql("SELECT * FROM hookjetty.replays WHERE endpoint_id = 2"))
    assert (other["events"], other["tasks"]) == (2, 1)


def test_it_is_delivered_like_any_other(database: str, tmp_path: Path):
    """All together, with the processes there are; what else the tenant has hears nothing."""
    with (
        RecordingReceiver(tmp_path / "seen") as receiver,
        LiveService(database) as live,
        requests.Session() as session,
    ):
        session.headers["Authorization"] = f"Bearer {live.tenant_token(7)}"
        api = f"{live.url}/api/v1/data-consumption/webhooks"
        for path in ("/tested", "/other"):
            session.post(f"{api}/endpoints", json={"url": receiver.url(path)}).raise_for_status()
        answer = session.post(f"{api}/endpoints/ep_1/test", json={"type": "export.done"})
        assert answer.status_code == 202
        wait_until(all_done)
        task = session.get(f"{api}/tasks/{answer.json()['task_id']}").json()
        assert (task["status"], len(task["attempts"])) == ("delivered", 1)
    _challenge, delivery = receiver.at("/tested")
    assert (delivery.event, delivery.number) == (answer.json()["event_id"], 1)
    body = json.loads(delivery.body)
    assert (body["type"], body["data"]) == ("export.done", json.loads(NO_EXAMPLE))
    assert len(receiver.at("/other")) == 1, "its challenge"
