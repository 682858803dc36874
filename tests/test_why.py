"""Why an event was not delivered, in words: of a task, and of an event at every endpoint."""

from __future__ import annotations

import pytest

from app import tasks
from app.db import db
from app.explain import failure_in_words
from app.models import FAILURES, Event
from dispatcher import jobs
from tests.factories import make_endpoint, make_task, publish, task_rows
from tests.test_tenant_api import answered, refusal

SOON, LONG_AGO = "2999-01-01T00:00:00.000Z", "2020-01-01"


def add_attempt(task: int, number: int = 1, status_code: int | None = None, failure=None) -> int:
    ((attempt,),) = db.execute_sql(
        "INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try, started_at,"
        " total_us, status_code, failure) VALUES (hookjetty.new_id(), %s, 7, 1, %s,"
        " '2026-05-04T03:02:01Z', 250000, %s, %s) RETURNING id",
        (task, number, status_code, failure),
    ).fetchall()
    db.execute_sql("UPDATE hookjetty.tasks SET attempt_id = %s WHERE id = %s", (attempt, task))
    return attempt


STATES: list[tuple[dict, tuple | None, str]] = [
    (
        {"status": "delivered", "tries": 2},
        (204, None),
        "delivered at 2026-05-04T03:02:01.250Z: the receiver answered 204, on try 2",
    ),
    (
        {"status": "pending", "next_try_at": LONG_AGO, "ready": True},
        None,
        "not tried yet; it is due now",
    ),
    (
        {"status": "retry", "tries": 3, "next_try_at": SOON, "failure": "http_5xx"},
        (503, "http_5xx"),
        f"try 3 failed: the receiver answered 503; the next one is due at {SOON}",
    ),
    (
        {"status": "retry", "tries": 1, "next_try_at": LONG_AGO, "failure": "blocked_address"},
        (None, "blocked_address"),
        (
            "try 1 failed: its address is one that is never called (a private or special network);"
            " the next one is due now"
        ),
    ),
    (
        {"status": "failed", "tries": 10, "failure": "timeout"},
        (None, "timeout"),
        "gave up after 10 tries; in the last one, no complete answer in time",
    ),
    (
        {"status": "failed", "tries": 1, "failure": "redirect"},
        (301, "redirect"),
        (
            "gave up after 1 try; in the last one, the receiver answered 301, and redirects are not"
            " followed: register the final URL"
        ),
    ),
    (
        {"status": "failed", "failure": "expired"},
        None,
        "failed: the event's retention ended before it was delivered, and it was never tried",
    ),
    (
        {"status": "failed", "failure": "expired", "tries": 4},
        (None, "dns"),
        "failed: the event's retention ended before it was delivered, after 4 tries",
    ),
    ({"status": "canceled"}, None, "canceled on request"),
    ({"status": "delivering", "tries": 2}, None, "try 2 is under way"),
    (
        {"status": "delivering", "tries": 2, "ready": True},
        None,
        "try 2 ended with its dispatcher; the next one is due now",
    ),
    (
        {"status": "waiting"},
        None,
        "not tried yet; its endpoint is active again: the next try is about to come",
    ),
]


def test_a_task_says_why_it_is_where_it_is(owner):
    endpoint = make_endpoint(7)
    for state, answered_with, why in STATES:
        task = make_task(endpoint, **state)
        if answered_with is not None:
            add_attempt(task, state["tries"], *answered_with)
        assert answered(owner.get(f"/tasks/task_{task}"))["why"] == why


ENDPOINTS: list[tuple[dict, str]] = [
    ({"status": "paused"}, "its endpoint is paused; its tasks wait until it is resumed"),
    ({"status": "disabled"}, "its endpoint is disabled (gone): its receiver answered 410 Gone"),
    ({"status": "pending"}, "its endpoint is not verified: "),
    (
        {"hold_until": SOON, "failures": 6, "failing_since": "2026-05-04T03:02:01Z"},
        (
            "its endpoint is on hold after 6 failures in a row since 2026-05-04T03:02:01.000Z"
            f" until {SOON}"
        ),
    ),
]


def test_a_waiting_task_says_what_it_waits_for(owner):
    for endpoint, why in ENDPOINTS:
        task = make_task(make_endpoint(7, **endpoint), status="waiting", tries=1, failure="connect")
        add_attempt(task, 1, None, "connect")
        found = answered(owner.get(f"/tasks/task_{task}"))["why"]
        assert found.startswith(f"try 1 failed: nobody answered at its address; {why}")


def test_what_was_erased_says_so_and_is_not_retried(owner):
    event, _ = publish(9)
    task = make_task(make_endpoint(7), event, status="canceled", tries=1)
    add_attempt(task)
    db.execute_sql("UPDATE hookjetty.events SET data = NULL")
    shown = answered(owner.get(f"/tasks/task_{task}"))
    assert (shown["why"], shown["request"]) == ("canceled: its event's data was erased", None)
    refusal(owner.post(f"/tasks/task_{task}/retry"), 409, "version_conflict")


def test_a_task_of_a_deleted_endpoint_says_so_at_once_and_later(owner):
    make_endpoint(7, "https://app/hook")
    publish()
    owner.delete("/endpoints/ep_1")
    for _ in range(2):
        why = owner.get(f"/tasks/task_{task_rows()[0]['id']}").json["why"]
        assert why.startswith("canceled: its endpoint was deleted at 20")
        jobs.until_done(jobs.settle_step)


@pytest.mark.usefixtures("database")
def test_every_failure_has_words():
    words = {failure_in_words(failure, 418) for failure in FAILURES}
    assert len(words) >= len(FAILURES) - 1, "http_4xx and http_5xx differ by their status"
    assert failure_in_words("http_4xx") == "the receiver answered 4xx"
    assert not any("%" in each for each in words)


# --------------------------------------------------------------------------------------- an event


def test_an_event_says_what_became_of_it_at_every_endpoint(owner, stranger):
    make_endpoint(7, "https://app/1")
    make_endpoint(7, "https://app/2", status="paused")
    make_endpoint(7, "https://app/3", events=["import.*"])
    make_endpoint(7, "https://app/4")
    make_endpoint(8)
    make_endpoint(7, "https://app/old", status="deleted", updated_at=LONG_AGO)
    db.execute_sql("UPDATE hookjetty.endpoints SET created_at = now() - interval '1 h'")
    event, _ = publish(type="export.done")
    owner.delete("/endpoints/ep_4")
    make_endpoint(7, "https://app/later", created_at="2999-01-01")
    make_endpoint(7, "https://app/else", events=["x"], created_at=LONG_AGO)
    db.execute_sql("UPDATE hookjetty.endpoints SET events = '{*}' WHERE events = '{x}'")
    shown = answered(owner.get(f"/events/evt_{event}/why"))
    assert (shown["event_id"], shown["type"]) == (f"evt_{event}", "export.done")
    reasons = {each["url"].rpartition("/")[2]: each for each in shown["endpoints"]}
    assert set(reasons) == {"1", "2", "3", "4", "later", "else"}
    why = {name: each["why"] for name, each in reasons.items()}
    assert why["1"] == "not tried yet; it is due now"
    assert why["2"].startswith("not tried yet; its endpoint is paused")
    assert why["3"] == "does not want export.done, only import.*"
    assert why["4"].startswith("canceled: its endpoint was deleted at")
    assert why["later"].startswith("made later, at 2999-01-01T00:00:00.000Z")
    assert why["else"].startswith("wants export.done now, but did not when it was published")
    assert [task["status"] for task in reasons["2"]["tasks"]] == ["waiting"]
    assert reasons["3"]["tasks"] == []
    refusal(stranger.get(f"/events/evt_{event}/why"), 404, "not_found")
    refusal(owner.get("/events/evt_4711/why"), 404, "not_found")


def test_of_endpoints_that_came_and_went_the_latest_are_named(owner, monkeypatch):
    """Thirty a minute can be registered and deleted; an answer has a bound."""
    monkeypatch.setattr(tasks, "MOST_DELETED_NAMED", 2)
    make_endpoint(7, "https://app/0")
    event, _ = publish()
    owner.delete("/endpoints/ep_1")
    for number in range(1, 4):
        make_endpoint(7, f"https://app/{number}")
        owner.delete(f"/endpoints/ep_{number + 1}")
    shown = answered(owner.get(f"/events/evt_{event}/why"))["endpoints"]
    assert [each["url"][-1] for each in shown] == ["0", "2", "3"], "and each that has a task"


def test_of_several_tasks_the_delivered_one_says_why(owner):
    endpoint = make_endpoint(7)
    event, _ = publish()
    (first,) = task_rows()
    db.execute_sql("UPDATE hookjetty.tasks SET status = 'delivered', ready = false,"
                   " next_try_at = NULL, tries = 1")  # fmt: skip
    add_attempt(first["id"], 1, 200)
    again = make_task(endpoint, event, lane=1, replay_id=1, status="failed", tries=10)
    (reason,) = answered(owner.get(f"/events/evt_{event}/why"))["endpoints"]
    assert reason["why"].startswith("delivered at 2026-05-04T03:02:01.250Z")
    assert [each["task_id"] for each in reason["tasks"]] == [
        f"task_{first['id']}", f"task_{again}"
    ]  # fmt: skip


@pytest.mark.usefixtures("database")
def test_it_takes_as_many_queries_for_many_endpoints_as_for_one(monkeypatch):
    for number in range(20):
        make_endpoint(7, f"https://app/{number}")
    event, _ = publish()
    asked: list[str] = []
    execute_sql = db.execute_sql
    monkeypatch.setattr(
        db, "execute_sql", lambda sql, *rest: (asked.append(sql), execute_sql(sql, *rest))[1]
    )
    assert len(tasks.why_of_event(Event.get_of(7, event))) == 20
    assert len(asked) < 12
