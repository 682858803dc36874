"""GET /tasks/{id}: the attempts, and the requests built again."""

from __future__ import annotations

from app import tasks
from app.db import db
from tests.dispatching import (
    SECRET,
    add_endpoint,
    all_done,
    count,
    parse_request,
    running_engine,
    wait_until,
)
from tests.factories import attempt_rows, make_endpoint, publish, task_rows
from tests.hostile import OK, Receiver, answer
from tests.test_tenant_api import answered, refusal

BUSY = b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
TEXT = '{"b" : 1.50, "text": "\\u00e4 ä \\/ \\u2028", "big": 12345678901234567890}'


def test_the_request_that_is_shown_is_the_one_that_was_sent(owner):
    """Each header of ours and every byte of the body, for the first try and for the last one."""
    seen: list[bytes] = []
    answers = iter((BUSY, OK))

    def behave(connection) -> None:
        answer(next(answers), seen=seen)(connection)

    with Receiver(behave) as receiver:
        add_endpoint(7, receiver.url("/hook?a=1"))
        db.execute_sql("SELECT hookjetty.publish_event(7, 'export.done', %s)", (TEXT,))
        with running_engine():
            wait_until(lambda: count("tasks WHERE status = 'retry'"))
            tasks.retry(task_rows()[0]["id"])
            wait_until(all_done)
    shown = answered(owner.get(f"/tasks/task_{task_rows()[0]['id']}"))
    assert [each["status_code"] for each in shown["attempts"]] == [500, 200]
    for raw, attempt in zip(seen, shown["attempts"], strict=True):
        line, sent, body = parse_request(raw)
        assert sent.pop("webhook-signature").startswith("v1,")
        assert attempt["request_headers"].pop("webhook-signature") == "v1,***"
        assert attempt["request_headers"].items() <= sent.items()
        assert {name for name in sent if name.startswith("webhook-")} <= set(
            attempt["request_headers"]
        )
        assert (line, body) == ("POST /hook?a=1 HTTP/1.1", shown["request"]["body"].encode())
    assert shown["request"]["method"] == "POST"
    assert shown["request"]["url"] == receiver.url("/hook?a=1")
    assert shown["request"]["headers"]["webhook-attempt"] == "2"
    assert TEXT in shown["request"]["body"]
    assert SECRET not in owner.get(f"/tasks/task_{task_rows()[0]['id']}").text


def test_a_replayed_one_says_so(owner):
    make_endpoint(7, "https://app/hook")
    publish()
    (task,) = task_rows()
    db.execute_sql("UPDATE hookjetty.tasks SET lane = 1, replay_id = 12")
    add_attempt(task["id"], "'2026-01-02T03:04:05.999Z'")
    headers = owner.get(f"/tasks/task_{task['id']}").json["request"]["headers"]
    assert headers["webhook-replay"] == "rpl_12"
    assert headers["webhook-timestamp"] == "1767323045"


def test_there_is_no_request_where_nobody_knows_what_was_sent(owner):
    make_endpoint(7, "https://app/hook")
    publish()
    (task,) = task_rows()
    path = f"/tasks/task_{task['id']}"
    assert owner.get(path).json["request"] is None, "it was never tried"
    add_attempt(task["id"], "NULL")
    shown = owner.get(path).json
    assert shown["request"] is None and shown["attempts"][0]["request_headers"] is None
    add_attempt(task["id"], "now()")
    assert owner.get(path).json["request"]["body"]
    db.execute_sql("DELETE FROM hookjetty.events")
    shown = owner.get(path).json
    assert shown["request"] is None and shown["attempts"][1]["request_headers"]


def test_a_strangers_is_not_there(stranger):
    make_endpoint(7)
    publish()
    task = task_rows()[0]["id"]
    for method, path in (("GET", ""), ("POST", "/retry"), ("POST", "/cancel")):
        refusal(stranger.call(method, f"/tasks/task_{task}{path}"), 404, "not_found")


def test_a_person_can_retry_it(owner):
    endpoint = make_endpoint(7)
    publish()
    task = task_rows()[0]["id"]
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'failed', failure = 'dns', ready = false, step = 9,"
        " tries = 10, next_try_at = NULL, lane = 1"
    )
    retried = answered(owner.post(f"/tasks/task_{task}/retry"))
    assert (retried["status"], retried["tries"], "message" in retried) == ("retry", 10, False)
    (row,) = task_rows()
    assert (row["ready"], row["probe"], row["step"], row["lane"]) == (True, True, 0, 0)
    db.execute_sql("UPDATE hookjetty.endpoints SET status = 'paused'")
    waiting = answered(owner.post(f"/tasks/task_{task}/retry"))
    assert waiting["status"] == "waiting"
    assert waiting["message"] == "waiting: the endpoint is paused; it is sent when that changes"
    owner.delete(f"/endpoints/ep_{endpoint}")
    refusal(owner.post(f"/tasks/task_{task}/retry"), 409, "version_conflict")


def add_attempt(task: int, started_at: str) -> None:
    db.execute_sql(
        "INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try, started_at)"
        f" VALUES (hookjetty.new_id(), {task}, 7, 1, {len(attempt_rows()) + 1}, {started_at})"
    )
