"""PostgreSQL goes away and comes back: both processes recover by themselves, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from app import db as database_module
from app import devdb
from app.db import db
from tests.acceptance import books
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import (
    SECRET_KEY,
    Dispatchers,
    add_endpoint,
    all_done,
    count,
    execute,
    wait_until,
)
from tests.factories import publish
from tests.live import LiveService

# Long enough for a stop and a start, so that what was in flight meanwhile is still ours to record;
# a claim that was committed without our hearing of it waits as long.
LEASE = {"LEASE_SECONDS": "8", "TIMEOUT_SECONDS": "2"}


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[devdb.DevDatabase]:
    """A PostgreSQL that a test may stop, with the schema."""
    settings = {"fsync": "off", "shared_buffers": "64MB"}
    with devdb.start(tmp_path / "var", settings=settings, temporary=True) as server:
        database_module.open_database(server.url)
        db.ready()
        database_module.migrate()
        yield server
        db.give_up()


class Producer(threading.Thread):
    """Publishes all the time, and remembers what it was told."""

    def __init__(self, live: LiveService) -> None:
        super().__init__()
        self.accepted: list[str] = []
        self.answers: Counter[int] = Counter()
        self.slowest_seconds = 0.0
        self._live = live
        self._over = threading.Event()

    def run(self) -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {self._live.service_token}"
            while not self._over.wait(0.01):
                before = time.monotonic()
                answer = session.post(
                    f"{self._live.url}/api/v1/data-consumption/webhooks/events",
                    json={"tenant_id": 7, "type": "export.done", "data": {}},
                )
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - before)
                self.answers[answer.status_code] += 1
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["event_id"])
                elif answer.status_code == 503:
                    assert answer.json()["error"] == "dependency_down"

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_postgresql_is_stopped_and_started_while_events_are_in_flight(
    own_server: devdb.DevDatabase, receiver: RecordingReceiver
) -> None:
    """An immediate stop, which is a crash as far as its clients can tell, three times."""
    with LiveService(own_server.url, SECRET_KEYS=SECRET_KEY, **LEASE) as live:
        add_endpoint(7, receiver.url(delay=0.2))
        producer = Producer(live)
        producer.start()
        for _ in range(3):
            arrived = len(receiver.seen)
            wait_until(lambda arrived=arrived: len(receiver.seen) > arrived + 20)
            own_server.stop("immediate")
            time.sleep(0.5)
            own_server.start()
        arrived = len(receiver.seen)
        wait_until(lambda: len(receiver.seen) > arrived + 20, 10)
        producer.stop()
        db.ready()
        wait_until(all_done, 30)

        assert set(producer.answers) == {202, 503}
        assert producer.slowest_seconds < 3
        seen = receiver.seen
        # Nothing acknowledged is lost, and nothing arrived that is not on the books.
        assert not set(producer.accepted) - {request.event for request in seen}
        on_the_books = books.attempts()
        requests_seen = books.requests_seen(receiver)
        assert not set(requests_seen) - set(on_the_books)
        # The answers that came while the database was away were written down when it was back.
        unwritten = [each for each in requests_seen if on_the_books[each]["status_code"] != 200]
        assert not unwritten
        assert len(set(requests_seen)) == len({request.event for request in seen})
        assert [dispatcher.poll() for dispatcher in live.dispatchers] == [None]


def test_the_dispatchers_connections_are_cut_again_and_again(
    database: str, receiver: RecordingReceiver
) -> None:
    """All of them, every 150 ms, by pg_terminate_backend."""
    with Dispatchers(database, LEASE_SECONDS="4", TIMEOUT_SECONDS="1") as live:
        for tenant_id in range(1, 11):
            add_endpoint(tenant_id, receiver.url(f"/{tenant_id}", delay=0.05))
        cut = 0
        for number in range(400):
            publish(number % 10 + 1)
            if number % 15 == 7:
                cut += cut_connections(database)
            time.sleep(0.01)
        assert cut > 20
        wait_until(all_done, 30)
        assert [dispatcher.poll() for dispatcher in live.dispatchers] == [None]
    assert count("tasks WHERE status = 'delivered'") == 400
    on_the_books = books.attempts()
    requests_seen = books.requests_seen(receiver)
    assert not set(requests_seen) - set(on_the_books)
    # The process lived, so it wrote down every answer and sent nothing twice.
    assert len(requests_seen) == 400
    assert all(on_the_books[each]["status_code"] == 200 for each in requests_seen)


def cut_connections(database: str) -> int:
    """How many sessions of dispatchers were ended."""
    return len(
        execute(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'hookjetty dispatcher'",
        )
    )


def test_a_dispatcher_waits_for_a_database_that_is_away_when_it_starts(
    own_server: devdb.DevDatabase, receiver: RecordingReceiver
) -> None:
    with Dispatchers(own_server.url) as live:
        add_endpoint(7, receiver.url())
        live.kill_dispatcher(live.dispatchers[0])
        publish(7)
        own_server.stop()
        early = live._spawn_dispatcher({})
        wait_until(lambda: "database_away" in live.log())
        own_server.start()
        wait_until(lambda: receiver.seen, 5)
        assert early.poll() is None


def test_told_to_stop_while_the_database_is_away_a_dispatcher_ends_in_good_time(
    own_server: devdb.DevDatabase, receiver: RecordingReceiver
) -> None:
    """It cannot write down what it has; the leases see to that."""
    with Dispatchers(own_server.url, LEASE_SECONDS="2", TIMEOUT_SECONDS="1") as live:
        add_endpoint(7, receiver.url(delay=0.3))
        publish(7)
        wait_until(lambda: receiver.seen)
        own_server.stop("immediate")
        time.sleep(0.5)
        before = time.monotonic()
        assert live.stop_dispatcher(live.dispatchers[0]) == 0
        assert time.monotonic() - before < 8
        own_server.start()
        live.start_dispatcher()
        db.ready()
        wait_until(all_done)
        assert [request.number for request in receiver.seen] == [1, 2]
