"""What becomes of requests whose dispatcher died, or slept, before it wrote down their answers."""

from __future__ import annotations

import os
import signal
import time

import psycopg2
import pytest

from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import (
    Dispatchers,
    add_endpoint,
    all_done,
    count,
    is_waiting_for_a_lock,
    wait_until,
)
from tests.factories import attempt_rows, publish, task_rows

pytestmark = pytest.mark.usefixtures("database")

# The shortest lease that a timeout of a second fits into.
SHORT_LEASE = {"LEASE_SECONDS": "2", "TIMEOUT_SECONDS": "1"}


def test_killed_between_the_answer_and_our_commit_an_event_arrives_exactly_twice(
    database: str, receiver: RecordingReceiver
) -> None:
    """The receiver said 200, the record waited for a lock, and then there was no dispatcher."""
    with Dispatchers(database, **SHORT_LEASE) as live:
        (first,) = live.dispatchers
        add_endpoint(7, receiver.url(delay=0.3))
        publish(7)
        wait_until(lambda: receiver.seen)
        with psycopg2.connect(database) as lock, lock.cursor() as cursor:
            cursor.execute("SELECT 1 FROM hookjetty.tasks FOR UPDATE")
            wait_until(lambda: is_waiting_for_a_lock("hookjetty dispatcher"), 5)
            assert time.time() - receiver.seen[0].at > 0.3  # the answer is there
            live.kill_dispatcher(first)
            lock.rollback()
        lock.close()
        live.start_dispatcher()
        wait_until(all_done)
    one, other = receiver.seen
    assert one.event == other.event
    assert one.body == other.body
    assert (one.number, other.number) == (1, 2)
    assert [(row["try"], row["failure"], row["status_code"]) for row in attempt_rows()] == [
        (1, "interrupted", None),
        (2, None, 200),
    ]
    (task,) = task_rows()
    assert (task["status"], task["tries"]) == ("delivered", 2)


def test_a_dispatcher_that_slept_past_its_leases_changes_no_task_and_still_tells_the_truth(
    database: str, receiver: RecordingReceiver
) -> None:
    """SIGSTOP with five requests in flight; another dispatcher takes over; SIGCONT."""
    with Dispatchers(database, **SHORT_LEASE) as live:
        (sleeper,) = live.dispatchers
        for tenant_id in range(1, 6):  # each with one, since an endpoint gets few at first
            add_endpoint(tenant_id, receiver.url(f"/{tenant_id}", delay=0.5))
            publish(tenant_id)
        wait_until(lambda: len(receiver.seen) == 5)
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            live.start_dispatcher()
            wait_until(all_done)
            delivered = task_rows()
            assert {row["status"] for row in delivered} == {"delivered"}
            assert count("attempts WHERE failure = 'interrupted'") == 5
        finally:
            os.kill(sleeper.pid, signal.SIGCONT)
        wait_until(lambda: not count("attempts WHERE failure = 'interrupted'"))
        time.sleep(0.5)  # for whatever else it may do
        assert task_rows() == delivered
        assert sleeper.poll() is None
    attempts = attempt_rows()
    assert [row["try"] for row in attempts] == [1, 2] * 5
    assert all(row["started_at"] is not None for row in attempts)
    assert len(receiver.seen) == 10
    assert {task["attempt_id"] for task in delivered} == {
        row["id"] for row in attempts if row["try"] == 2
    }
