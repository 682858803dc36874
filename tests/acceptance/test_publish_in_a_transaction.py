"""publish_event() in a caller's own transaction: the event exists if and only if that commits."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

from app.db import db
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import Dispatchers, add_endpoint, all_done, count, wait_until
from tests.factories import publish

# How long a caller's transaction stays open; minutes are no different, only longer.
HELD_OPEN_SECONDS = float(os.environ.get("TEST_HELD_OPEN_SECONDS", "5"))


@pytest.fixture
def live(database: str) -> Iterator[Dispatchers]:
    with Dispatchers(database) as running:
        yield running


@contextmanager
def caller(database: str) -> Iterator[Connection]:
    """A service with a connection, and a transaction, of its own."""
    with closing(psycopg2.connect(database)) as connection:
        yield connection


def publish_in(connection: Connection, tenant_id: int, event_type: str = "export.done") -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT event_id, tasks FROM hookjetty.publish_event(%s, %s, '{}')",
            (tenant_id, event_type),
        )
        event_id, tasks = cursor.fetchone()
    assert tasks == 1
    return f"evt_{event_id}"


def test_rolled_back_it_leaves_nothing_and_committed_it_delivers(
    database: str, live: Dispatchers, receiver: RecordingReceiver
) -> None:
    add_endpoint(7, receiver.url())
    with caller(database) as connection:
        publish_in(connection, 7, "rolled.back")
        connection.rollback()
        committed = publish_in(connection, 7, "was.committed")
        connection.commit()
    wait_until(all_done)
    assert [request.event for request in receiver.seen] == [committed]
    assert count("events") == count("tasks") == count("attempts") == 1


def test_an_event_is_rolled_back_and_delivered_together_with_the_business_change(
    database: str, live: Dispatchers, receiver: RecordingReceiver
) -> None:
    add_endpoint(7, receiver.url())
    with caller(database) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE exports (id int PRIMARY KEY)")
        connection.commit()
        cursor.execute("INSERT INTO exports VALUES (1)")
        first = publish_in(connection, 7)
        connection.commit()
        publish_in(connection, 7)
        with pytest.raises(psycopg2.errors.UniqueViolation):
            cursor.execute("INSERT INTO exports VALUES (1)")
        connection.rollback()
    wait_until(all_done)
    assert [request.event for request in receiver.seen] == [first]


def test_held_open_it_is_delivered_right_after_its_commit_and_delays_nobody(
    database: str, live: Dispatchers, receiver: RecordingReceiver
) -> None:
    """Its id and its time are old when it becomes visible, and the dispatcher has gone idle."""
    add_endpoint(7, receiver.url("/held"))
    add_endpoint(8, receiver.url("/other"))
    with caller(database) as connection:
        event = publish_in(connection, 7)
        time.sleep(HELD_OPEN_SECONDS / 2)
        publish(8)
        wait_until(lambda: receiver.at("/other"), 1)
        time.sleep(HELD_OPEN_SECONDS / 2)
        wait_until(is_parked)
        assert not receiver.at("/held")
        committed_at = time.time()
        connection.commit()
    wait_until(lambda: receiver.at("/held"), 5)
    (request,) = receiver.at("/held")
    assert request.event == event
    assert request.at - committed_at < 1


def test_an_idle_dispatcher_is_woken_and_need_not_poll(
    live: Dispatchers, receiver: RecordingReceiver
) -> None:
    """Polling alone, every second, would take a quarter to half of one on average."""
    add_endpoint(7, receiver.url())
    delays = []
    for number in range(1, 16):
        wait_until(is_parked)
        time.sleep(0.1)
        published_at = time.time()
        publish(7)
        wait_until(lambda number=number: len(receiver.seen) == number, 5)
        delays.append(receiver.seen[-1].at - published_at)
    assert statistics.median(delays) < 0.1


def is_parked() -> bool:
    """Every dispatcher has said that it wants to be woken."""
    return db.execute_sql("SELECT bool_and(parked) FROM hookjetty.dispatchers").fetchone()[0]
