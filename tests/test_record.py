"""Writing down what came back: an attempt by whoever made it, the task by whoever holds it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from peewee import DataError, OperationalError

from app.db import db
from dispatcher import claim as claims
from dispatcher.record import Result, record
from dispatcher.retry import Decision, Delivered, GiveUp, Gone, RetryAt, Waits
from dispatcher.transport import Outcome
from tests.dispatching import count, is_waiting_for_a_lock, wait_until
from tests.factories import attempt_rows, claim, make_endpoint, publish, task_rows

pytestmark = pytest.mark.usefixtures("database")

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def claimed(events: int = 1, lease_seconds: float = 60) -> list[claims.Claimed]:
    """Tasks that this process holds, all of one endpoint."""
    make_endpoint()
    for _ in range(events):
        publish()
    return claim(lease_seconds=lease_seconds, slots=events).tasks


def reclaimed() -> list[claims.Claimed]:
    """The tasks whose leases have ended, as the next dispatcher takes them."""
    claims.promote()
    return claim().tasks


def answered(task: claims.Claimed, status: int = 200, decision: Decision | None = None) -> Result:
    """An attempt that was answered with a status, and what was decided."""
    failure = None if status < 300 else "http_5xx"
    outcome = Outcome(
        tag=None,
        started_at=0.0,
        status_code=status,
        failure=failure,
        connect_us=1000,
        first_byte_us=2000,
        total_us=3000,
        address="127.0.0.1:80",
        response_headers=f"HTTP/1.1 {status} As Asked",
        response_body="thank you",
    )
    if decision is None:
        decision = Delivered() if failure is None else RetryAt(LATER, task.step + 1)
    return Result(task, NOW.timestamp(), outcome, decision)


# -------------------------------------------------------------------------------- what is written


def test_an_attempt_is_written_with_all_that_came_back():
    (task,) = claimed()
    assert record([answered(task)]) == 1
    (attempt,) = attempt_rows()
    assert attempt == {
        "id": task.attempt_id,
        "task_id": task.task_id,
        "tenant_id": 7,
        "endpoint_id": task.target.endpoint_id,
        "try": 1,
        "started_at": NOW,
        "status_code": 200,
        "failure": None,
        "resolve_us": None,
        "connect_us": 1000,
        "tls_us": None,
        "first_byte_us": 2000,
        "total_us": 3000,
        "address": "127.0.0.1:80",
        "response_headers": "HTTP/1.1 200 As Asked",
        "response_body": "thank you",
        "truncated": False,
        "resent": False,
    }


@pytest.mark.parametrize(
    ("decision", "status", "next_try_at", "step"),
    [
        (Delivered(), "delivered", None, 0),
        (RetryAt(LATER, 1), "retry", LATER, 1),
        (GiveUp(9), "failed", None, 9),
        (Gone(0), "waiting", None, 0),
        (Waits(0), "waiting", None, 0),
    ],
)
def test_the_task_becomes_what_was_decided(decision, status, next_try_at, step):
    (task,) = claimed()
    record([answered(task, 200 if status == "delivered" else 500, decision)])
    (row,) = task_rows()
    assert (row["status"], row["next_try_at"], row["step"]) == (status, next_try_at, step)
    assert (row["ready"], row["tries"]) == (False, 1)
    assert row["failure"] == (None if status == "delivered" else "http_5xx")


def test_a_batch_may_mix_everything():
    tasks = claimed(3)
    record(
        [
            answered(tasks[2], 500, GiveUp(9)),
            answered(tasks[0]),
            answered(tasks[1], 500),
        ]
    )
    assert {row["status"] for row in task_rows()} == {"delivered", "failed", "retry"}
    assert len(attempt_rows()) == 3


# -------------------------------------------------------------------------------------- the fence


def test_repeated_it_changes_nothing():
    """The answer to a COMMIT was lost, and nobody knows whether it happened."""
    tasks = claimed(2)
    batch = [answered(tasks[0]), answered(tasks[1], 500)]
    assert record(batch) == 2
    before = task_rows(), attempt_rows()
    assert record(batch) == 0
    assert (task_rows(), attempt_rows()) == before


def test_a_zombie_changes_no_task_that_another_dispatcher_holds():
    (mine,) = claimed(lease_seconds=0)
    (other,) = reclaimed()
    held = task_rows()
    assert record([answered(mine)]) == 0
    assert task_rows() == held
    assert record([answered(other, 500)]) == 1
    assert task_rows()[0]["status"] == "retry"


def test_a_zombie_changes_no_task_that_another_dispatcher_has_delivered():
    (mine,) = claimed(lease_seconds=0)
    record([answered(reclaimed()[0])])
    delivered = task_rows()
    assert record([answered(mine, 500, GiveUp(0))]) == 0
    assert task_rows() == delivered


def test_interrupted_gives_way_to_the_late_truth():
    (mine,) = claimed(lease_seconds=0)
    (other,) = reclaimed()
    (interrupted,) = attempt_rows()
    assert (interrupted["failure"], interrupted["started_at"]) == ("interrupted", None)
    record([answered(mine)])
    (attempt,) = attempt_rows()
    assert (attempt["id"], attempt["try"]) == (mine.attempt_id, 1)
    assert (attempt["failure"], attempt["status_code"], attempt["started_at"]) == (None, 200, NOW)
    record([answered(other)])
    assert [row["try"] for row in attempt_rows()] == [1, 2]


def test_a_lease_that_ended_unclaimed_is_still_its_dispatchers_to_record():
    (mine,) = claimed(lease_seconds=0)
    claims.promote()
    assert record([answered(mine)]) == 1
    (row,) = task_rows()
    assert (row["status"], row["ready"]) == ("delivered", False)


def test_a_task_that_was_canceled_meanwhile_stays_so():
    (mine,) = claimed()
    db.execute_sql("UPDATE hookjetty.tasks SET status = 'canceled', next_try_at = NULL")
    assert record([answered(mine)]) == 0
    assert task_rows()[0]["status"] == "canceled"
    assert attempt_rows()[0]["status_code"] == 200


def test_an_attempt_whose_id_is_taken_by_another_task_gets_a_new_one():
    """Ids collide once in millions; neither attempt may be lost, nor overwrite the other."""
    mine, other = claimed(2)
    record([answered(other)])
    db.execute_sql(
        "UPDATE hookjetty.tasks SET attempt_id = %s WHERE id = %s", (other.attempt_id, mine.task_id)
    )
    assert record([answered(replace(mine, attempt_id=other.attempt_id))]) == 1
    assert {row["status"] for row in task_rows()} == {"delivered"}
    attempts = {row["task_id"]: row["id"] for row in attempt_rows()}
    assert attempts[other.task_id] == other.attempt_id
    assert attempts[mine.task_id] not in {other.attempt_id, None}


# ---------------------------------------------------------------------------------- what it costs


def test_a_delivery_is_recorded_without_touching_an_index_of_the_tasks():
    """Heap-only updates: whoever indexes a column that a record changes makes every delivery pay
    for all indexes of the table.
    """
    record([answered(task) for task in claimed(100)])
    db.execute_sql("SELECT pg_stat_force_next_flush()")
    updated, heap_only = db.execute_sql(
        "SELECT sum(n_tup_upd), sum(n_tup_hot_upd) FROM pg_stat_user_tables"
        " WHERE schemaname = 'hookjetty' AND relname LIKE 'tasks%%'"
    ).fetchone()
    assert updated == 200  # a claim and a record each
    assert heap_only > 80  # but where a page had no room, since somebody held an old snapshot


def test_the_last_record_of_a_lease_takes_it_along():
    tasks = claimed(3)
    record([answered(task) for task in tasks[:2]])
    assert count("leases") == 1
    record([answered(tasks[2])], [tasks[2].lease])
    assert count("leases") == 0


# ------------------------------------------------------------------------------------ at one time


def test_a_conflict_with_a_claim_is_resolved_by_recording_again():
    """The claim of an expired lease commits between the record's snapshot and its update."""
    (mine,) = claimed(lease_seconds=0)
    claims.promote()
    held: list[int] = []
    plans: list[str] = []

    def late() -> None:
        with db.connection_context():
            db.ready(for_hot_statements=True)
            held.append(record([answered(mine)]))
            claims.seconds_to_next_due()
            plans.extend(db.execute_sql("SHOW enable_seqscan").fetchone())

    thread = threading.Thread(target=late)
    with db.atomic():
        (other,) = claim().tasks
        thread.start()
        wait_until(is_waiting_for_a_lock)
    thread.join()
    assert held == [0]
    assert plans == ["off"]  # a rollback undoes what was SET in the transaction
    (row,) = task_rows()
    assert (row["status"], row["attempt_id"]) == ("delivering", other.attempt_id)
    assert [row["failure"] for row in attempt_rows()] == [None]


def test_batches_that_share_tasks_do_not_deadlock():
    """As with two zombies: whatever the order they come in, they are locked in id order."""
    tasks = claimed(200)
    batch = [answered(task) for task in tasks]
    counts: list[int] = []

    def write(results: list[Result]) -> None:
        with db.connection_context():
            for _ in range(10):
                with suppress(OperationalError):  # a conflict too many; the engine tries again
                    counts.append(record(results))

    threads = [
        threading.Thread(target=write, args=(batch if n % 2 else batch[::-1],)) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 200
    time.sleep(0.1)  # a session reports its figures as it ends
    assert db.execute_sql(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone() == (0,)
    assert len(attempt_rows()) == 200


# ----------------------------------------------------------------------------- what does not fit


def test_text_that_postgresql_cannot_hold_is_refused_whole():
    """The transport makes text storable; what slips through must not be half recorded."""
    tasks = claimed(2)
    bad = answered(tasks[0])
    bad.outcome.response_body = "a NUL: \0"
    with pytest.raises(DataError):
        record([bad, answered(tasks[1])])
    assert attempt_rows() == []
    assert {row["status"] for row in task_rows()} == {"delivering"}


@pytest.mark.parametrize("text", ["\ufffd", "\u2028", "' \\ \" $1 %s {}", "😀", "\x7f\x01\x1b"])
def test_odd_text_is_kept_as_it_is(text):
    (task,) = claimed()
    result = answered(task)
    result.outcome.response_body = result.outcome.response_headers = text
    record([result])
    assert (attempt_rows()[0]["response_body"], attempt_rows()[0]["response_headers"]) == (
        text,
        text,
    )
