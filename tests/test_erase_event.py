"""DELETE /events/{id}/data: what happened stays known, what it said does not."""

from __future__ import annotations

import pytest

from app import events
from app.db import db
from dispatcher import jobs
from dispatcher.record import Result, record
from dispatcher.retry import Delivered
from dispatcher.transport import Outcome
from tests.conftest import OWNER, execute
from tests.dispatching import wait_until
from tests.factories import attempt_rows, claim, make_endpoint, publish, task_rows

SECRET = "the name of the patient"


def erase(caller, event_id: int, status: int = 200):
    answer = caller.delete(f"/events/evt_{event_id}/data")
    assert answer.status_code == status, answer.text
    return answer.json


def attempt_of(task: dict) -> None:
    """An attempt whose receiver quoted the data."""
    db.execute_sql(
        "INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try, status_code,"
        " response_headers, response_body) VALUES (hookjetty.new_id(), %s, %s, %s, 1, 500, %s, %s)",
        (task["id"], task["tenant_id"], task["endpoint_id"], f"x-echo: {SECRET}", SECRET),
    )


def everything(url: str) -> str:
    tables = execute(
        url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'hookjetty'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition",
    )
    rows = [execute(url, f"SELECT t::text FROM hookjetty.{table} t") for (table,) in tables]
    return str(rows)


def test_the_data_is_gone_and_the_event_stays(owner, database):
    make_endpoint()
    event_id, _ = publish(data={"name": SECRET}, key="k")
    attempt_of(*task_rows())
    assert SECRET in everything(database)
    answer = erase(owner, event_id)
    assert answer["event_id"] == f"evt_{event_id}"
    assert (answer["erased"], answer["key"], answer["fanout"]) == (True, "k", 1)
    assert SECRET not in everything(database)
    (listed,) = owner.get("/events").json["items"]
    assert listed == answer
    one = owner.get(f"/events/evt_{event_id}").json
    assert (one["data"], one["erased"]) == (None, True)
    # The feed waits for older transactions of the whole server, those of other tests too.
    wait_until(lambda: events.feed(OWNER, "start", limit=1).items)
    (fed,) = owner.get("/events?after=").json["items"]
    assert (fed["data"], fed["erased"]) == (None, True)
    (attempt,) = attempt_rows()
    assert (attempt["status_code"], attempt["response_body"]) == (500, None)


def test_open_tasks_are_canceled_and_the_others_stay(owner):
    for status in ("active", "paused", "active", "active"):
        make_endpoint(status=status)
    event_id, _ = publish()
    other, _ = publish()
    _, _, done, later = [task["id"] for task in task_rows(f"event_id = {event_id}")]
    db.execute_sql("UPDATE hookjetty.tasks SET status = 'delivered', ready = false,"
                   " next_try_at = NULL WHERE id = %s", (done,))  # fmt: skip
    db.execute_sql("UPDATE hookjetty.tasks SET status = 'retry', ready = false,"
                   " next_try_at = now() + interval '1 h' WHERE id = %s", (later,))  # fmt: skip
    erase(owner, event_id)
    assert [task["status"] for task in task_rows(f"event_id = {event_id}")] == [
        "canceled", "canceled", "delivered", "canceled",
    ]  # fmt: skip
    assert "canceled" not in {task["status"] for task in task_rows(f"event_id = {other}")}


def test_erasing_again_changes_nothing(owner):
    make_endpoint()
    event_id, _ = publish()
    assert erase(owner, event_id) == erase(owner, event_id)
    headers = {"X-Request-Id": "r"}
    first = owner.delete(f"/events/evt_{event_id}/data", headers=headers)
    again = owner.delete(f"/events/evt_{event_id}/data", headers=headers)
    assert (first.json, again.headers["Idempotent-Replayed"]) == (again.json, "true")


def test_it_is_the_tenants_own_and_takes_the_right_to_write(owner, stranger, client, mint):
    event_id, _ = publish(data={"name": SECRET})
    assert owner.delete("/events/evt_x/data").status_code == 400
    erase(stranger, event_id, 404)
    owner.token = mint(tenant_id=7, scopes=["webhooks:read"])
    erase(owner, event_id, 403)
    assert owner.get(f"/events/evt_{event_id}").json["data"] == {"name": SECRET}


def test_a_task_under_way_ends_and_what_its_receiver_said_is_erased_later(owner, database):
    make_endpoint()
    event_id, _ = publish()
    (claimed,) = claim().tasks
    erase(owner, event_id)
    (task,) = task_rows()
    assert task["status"] == "delivering"
    jobs.until_done(jobs.event_erasure_step)  # not yet
    attempt_of(task)
    db.execute_sql("UPDATE hookjetty.event_erasures SET again_at = now()")
    jobs.until_done(jobs.event_erasure_step)
    assert SECRET not in everything(database)
    # Still under way, so once more; then it is over.
    assert db.execute_sql("SELECT again_at > now() FROM hookjetty.event_erasures").fetchall() == [
        (True,)
    ]
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'retry', failure = 'timeout',"
        " next_try_at = now() + interval '1 h' WHERE id = %s",
        (claimed.task_id,),
    )
    db.execute_sql("UPDATE hookjetty.event_erasures SET again_at = now()")
    jobs.until_done(jobs.event_erasure_step)
    assert db.execute_sql("SELECT count(*) FROM hookjetty.event_erasures").fetchone() == (0,)
    assert task_rows()[0]["status"] == "canceled"


def test_what_is_recorded_long_after_its_lease_has_ended_is_erased_too(owner, database):
    """By a dispatcher that was stopped meanwhile: the erasure has looked again and is over."""
    make_endpoint()
    event_id, _ = publish()
    other, _ = publish()
    claimed = claim().tasks
    erase(owner, event_id)
    db.execute_sql("UPDATE hookjetty.tasks SET attempt_id = attempt_id + 1, status = 'waiting',"
                   " next_try_at = NULL")  # fmt: skip
    db.execute_sql("UPDATE hookjetty.event_erasures SET again_at = now()")
    jobs.until_done(jobs.event_erasure_step)
    assert db.execute_sql("SELECT count(*) FROM hookjetty.event_erasures").fetchone() == (0,)
    outcome = Outcome(None, 1.0, 200, response_headers=f"x-echo: {SECRET}", response_body=SECRET)
    record([Result(each, 0.0, outcome, Delivered()) for each in claimed])
    bodies = {each["task_id"]: each["response_body"] for each in attempt_rows()}
    events = {each["id"]: each["event_id"] for each in task_rows()}
    assert {events[task]: body for task, body in bodies.items()} == {event_id: None, other: SECRET}


def test_a_claim_treats_it_as_an_event_that_is_gone(owner):
    """Such as a task that a replay made just as its event was erased."""
    make_endpoint()
    event_id, _ = publish()
    db.execute_sql("UPDATE hookjetty.events SET data = NULL WHERE id = %s", (event_id,))
    assert claim().tasks == []
    (task,) = task_rows()
    assert (task["status"], task["failure"]) == ("failed", "expired")


def test_a_retry_says_why_it_cannot_be(owner, admin):
    make_endpoint()
    event_id, _ = publish()
    erase(owner, event_id)
    task_id = task_rows()[0]["id"]
    answer = admin.post("/tasks/retry", {"id": task_id})
    assert answer.status_code == 409
    assert answer.json["msg"] == "the data of this task's event was erased"


@pytest.mark.parametrize("change", ["data = NULL", "endpoint_id = 1"])
def test_a_replay_passes_by_what_was_erased_and_what_was_a_test(owner, change):
    endpoint_id = make_endpoint()
    first, _ = publish()
    second, _ = publish()
    db.execute_sql("UPDATE hookjetty.tasks SET status = 'delivered', ready = false,"
                   " next_try_at = NULL")  # fmt: skip
    db.execute_sql(f"UPDATE hookjetty.events SET {change} WHERE id = %s", (first,))
    body = {"endpoint_id": f"ep_{endpoint_id}", "from": f"evt_{first}"}
    assert owner.post("/replay", body).status_code == 202
    jobs.until_done(jobs.replay_step)
    assert [task["event_id"] for task in task_rows("replay_id IS NOT NULL")] == [second]
