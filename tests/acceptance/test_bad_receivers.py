"""Receivers that are away, hang, lie or pour: an attempt with its failure word, and nobody else
notices. Real dispatchers, real sockets.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from datetime import timedelta

import pytest

from app.db import db
from dispatcher.fairness import FIRST_WINDOW
from tests import hostile
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import Dispatchers, add_endpoint, all_done, count, wait_until
from tests.factories import attempt_rows, publish, rows, task_rows
from tests.hostile import Receiver

pytestmark = pytest.mark.usefixtures("database")

HEALTHY, BAD = 7, 8  # the tenants

# After the first try nothing happens for long, so what is on the books is about that try.
ONE_TRY = {"TIMEOUT_SECONDS": "1", "CONNECT_TIMEOUT_SECONDS": "1", "RETRY_SCHEDULE": "0,1h"}


# ------------------------------------------------------------------------------- slow neighbours


def test_a_hanging_endpoint_with_100_events_slows_nobody(
    database: str, receiver: RecordingReceiver
) -> None:
    with Receiver(hostile.hang) as hanging:
        with Dispatchers(database, TIMEOUT_SECONDS="3"):
            add_endpoint(BAD, hanging.url())
            for number in range(2):
                add_endpoint(HEALTHY, receiver.url(f"/{number}"))
            for _ in range(100):
                publish(BAD)
            wait_until(lambda: hanging.connections == FIRST_WINDOW)
            assert seconds_to_deliver(receiver, 60) < 2
            assert hanging.connections == FIRST_WINDOW
            wait_until(lambda: count("endpoints WHERE hold_until IS NOT NULL"), 20)
            assert seconds_to_deliver(receiver, 60) < 2
    timeouts = attempt_rows("failure = 'timeout'")
    assert len(timeouts) >= 5
    assert len(timeouts) < 10  # of 100 tasks: the others were spared
    assert all(3_000_000 <= row["total_us"] < 4_000_000 for row in timeouts)


def seconds_to_deliver(receiver: RecordingReceiver, requests: int) -> float:
    """How long 30 events of the healthy tenant take to arrive at its two endpoints."""
    before, started_at = len(receiver.seen), time.monotonic()
    for _ in range(30):
        publish(HEALTHY)
    wait_until(lambda: len(receiver.seen) == before + requests)
    return time.monotonic() - started_at


# ------------------------------------------------------------------------------- what they answer


def test_410_disables_the_endpoint_and_its_tasks_wait(
    database: str, receiver: RecordingReceiver
) -> None:
    """Other endpoints of the same tenant go on; registering it again would let them go on too."""
    with Dispatchers(database, **ONE_TRY):
        gone = add_endpoint(BAD, receiver.url("/gone", status=410, times=1))
        add_endpoint(BAD, receiver.url("/here"))
        publish(BAD)
        wait_until(lambda: count("endpoints WHERE status = 'disabled'"))
        publish(BAD)
        wait_until(lambda: len(receiver.at("/here")) == 2)
        wait_until(lambda: not count("endpoints WHERE settling"))
        assert [row["status"] for row in task_rows(f"endpoint_id = {gone}")] == ["waiting"] * 2
        assert len(receiver.at("/gone")) == 1
        db.execute_sql(
            "UPDATE hookjetty.endpoints SET status = 'active', reason = NULL, settling = true"
            " WHERE id = %s",
            (gone,),
        )
        wait_until(all_done)
    first, *others = receiver.at("/gone")
    assert len(others) == 2
    assert first.event in {request.event for request in others}
    assert {row["status"] for row in task_rows()} == {"delivered"}


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_holds_the_endpoint_and_is_then_the_next_try(
    database: str, receiver: RecordingReceiver, status: int
) -> None:
    """The schedule would say an hour; and a second event does not pass the hold."""
    with Dispatchers(database, **ONE_TRY):
        endpoint = add_endpoint(BAD, receiver.url(status=status, times=1, retry_after=2))
        publish(BAD)
        wait_until(lambda: count("endpoints WHERE hold_until IS NOT NULL"))
        (row,) = rows(
            db.execute_sql("SELECT hold_until FROM hookjetty.endpoints WHERE id = %s", (endpoint,))
        )
        publish(BAD)
        wait_until(all_done, 10)
    refused, *accepted = receiver.seen
    assert len(accepted) == 2
    # A dispatcher's idea of the database's time is late by what the answer took to arrive.
    assert all(1.9 <= request.at - refused.at < 4 for request in accepted)
    (attempt,) = attempt_rows(f"status_code = {status}")
    held = row["hold_until"] - attempt["started_at"]
    assert timedelta(seconds=2) <= held < timedelta(seconds=3)


# ---------------------------------------------------------------------------------- what they do


def close_at_once(connection: socket.socket) -> None:
    hostile.read_request(connection)


def reset_unanswered(connection: socket.socket) -> None:
    hostile.read_request(connection)
    hostile.reset(connection)


# What each does, and what the attempt says: the failure word and the status.
BEHAVIOURS = {
    "hangs": (hostile.hang, "timeout", None),
    "drips a body after a 200": (hostile.drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), None, 200),
    "speaks something else": (
        hostile.answer_and_close(b"SSH-2.0-OpenSSH_9.2\r\n"),
        "bad_response",
        None,
    ),
    "closes unanswered": (close_at_once, "reset", None),
    "resets": (reset_unanswered, "reset", None),
    "refuses": (hostile.answer(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), "http_4xx", 404),
}


def test_whatever_a_receiver_does_is_an_attempt_with_its_word_and_the_next_task_goes_on(
    database: str, receiver: RecordingReceiver
) -> None:
    """Five events for each; what attackers do is in tests/threats."""
    with ExitStack() as stack:
        live = stack.enter_context(Dispatchers(database, **ONE_TRY))
        expected = {}
        for number, (behave, failure, status) in enumerate(BEHAVIOURS.values()):
            bad = stack.enter_context(Receiver(behave))
            endpoint = add_endpoint(BAD, bad.url(f"/{number}"))
            expected[endpoint] = (failure, status)
        nobody = add_endpoint(BAD, "http://127.0.0.1:9/")
        expected[nobody] = ("connect", None)
        forbidden = add_endpoint(BAD, "http://10.0.0.1/")
        expected[forbidden] = ("blocked_address", None)
        add_endpoint(HEALTHY, receiver.url())

        publish(HEALTHY)
        wait_until(lambda: receiver.seen)
        for _ in range(5):
            publish(BAD)
        wait_until(lambda: count(f"attempts WHERE tenant_id = {BAD}") == 5 * len(expected), 10)
        publish(HEALTHY)
        wait_until(lambda: len(receiver.seen) == 2, 2)
        assert live.dispatchers[0].poll() is None

    names = dict(zip(expected, [*BEHAVIOURS, "nobody there", "private"], strict=True))
    found: dict[str, set[object]] = {}
    for row in attempt_rows(f"tenant_id = {BAD}"):
        words = (row["failure"], row["status_code"])
        found.setdefault(names[row["endpoint_id"]], set()).add(words)
        assert row["total_us"] < 2_000_000
    assert found == {names[endpoint]: {words} for endpoint, words in expected.items()}
    for row in task_rows(f"tenant_id = {BAD}"):
        failure, _ = expected[row["endpoint_id"]]
        assert (row["status"], row["failure"]) == (
            ("delivered", None) if failure is None else ("retry", failure)
        )
