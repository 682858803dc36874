"""The promise of the whole: whatever dies, every event is delivered, and the books say how."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

import pytest
import requests

from tests.acceptance import books, foreign
from tests.acceptance.receiver import RecordingReceiver, Seen
from tests.dispatching import SECRET, all_done, count, wait_until
from tests.live import LiveService

pytestmark = pytest.mark.usefixtures("database")

TENANTS = range(1, 11)
TYPES = ("flow.a", "flow.b", "flow.c", "flow.d", "flow.e")  # one endpoint each, so 50 of them
BATCH, BATCHES = 20, 250
PUBLISHING_SECONDS = 20
LEASE_SECONDS = 4
IN_FLIGHT = 100


@pytest.mark.timeout(300)
def test_5000_events_survive_a_dispatcher_that_is_killed_again_and_again(
    database: str, receiver: RecordingReceiver
) -> None:
    """Two dispatchers, one of them killed with -9 about once a second while events flow."""
    with LiveService(
        database,
        LEASE_SECONDS=str(LEASE_SECONDS),
        TIMEOUT_SECONDS="2",
        IN_FLIGHT=str(IN_FLIGHT),
        LOG_LEVEL="debug",  # kill_while_it_delivers reads of attempts
    ) as live:
        secrets = register_endpoints(live, receiver)
        published: list[str] = []
        publisher = threading.Thread(target=publish, args=(live, published))
        publisher.start()
        kills = 0
        while publisher.is_alive():
            kill_while_it_delivers(live, publisher)
            kills += 1
        publisher.join()
        assert len(published) == BATCH * BATCHES, live.log()[-10_000:]
        wait_until(all_done, 60)
        assert not count("tasks WHERE status <> 'delivered'")
    seen = receiver.seen

    # Every event arrived at least once.
    times = Counter(request.event for request in seen)
    assert set(times) == set(published)

    # Every request the receiver saw is on the books, as an attempt that was answered or as one
    # that was interrupted; and no answer is on the books that the receiver did not give.
    on_the_books = books.attempts()
    requests_seen = books.requests_seen(receiver)
    assert len(set(requests_seen)) == len(requests_seen)
    assert not set(requests_seen) - set(on_the_books)
    answered = {each for each, attempt in on_the_books.items() if attempt["status_code"]}
    assert not answered - set(requests_seen)

    # More than once only what a kill interrupted.
    interrupted = {
        each for each, attempt in on_the_books.items() if attempt["failure"] == "interrupted"
    }
    duplicates = len(seen) - len(times)
    delays = sorted(redelivery_delays(seen))
    print(  # noqa: T201 - the figures of the run, for pytest -s
        f"\naccepted {len(published)}, delivered {len(times)}, lost 0, kills {kills},"
        f" interrupted attempts {len(interrupted)}, duplicates {duplicates},"
        f" worst redelivery {max(delays, default=0):.1f} s"
    )
    assert kills >= 5
    assert interrupted, "no kill met an attempt: the run proves nothing"
    assert duplicates <= len(interrupted) <= kills * IN_FLIGHT
    assert max(delays, default=0) < LEASE_SECONDS + 5

    foreign.verify_in_python(seen, secrets)
    assert all_tries_carry_the_same_body(seen)
    again = [request for request in seen if request.number > 1]
    if foreign.has_node():
        foreign.verify_in_node(seen[:100] + again[:100], secrets)


def register_endpoints(live: LiveService, receiver: RecordingReceiver) -> dict[str, str]:
    """50 endpoints, by an admin; returns their secrets by path."""
    secrets = {}
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {live.admin_token}"
        for tenant_id in TENANTS:
            for event_type in TYPES:
                path = f"/{tenant_id}/{event_type}"
                answer = session.post(
                    f"{live.url}/api/webhooks",
                    json={
                        "tenant_id": tenant_id,
                        "url": receiver.url(path, delay=0.05, jitter=0.2),
                        "events": [event_type],
                        "secret": SECRET,
                    },
                )
                assert answer.status_code == 201, answer.text
                secrets[path] = SECRET
    return secrets


def publish(live: LiveService, published: list[str]) -> None:
    """All events over HTTP, evenly over the time that it is to take."""
    start = time.monotonic()
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {live.service_token}"
        for number in range(BATCHES):
            time.sleep(max(0, start + number * PUBLISHING_SECONDS / BATCHES - time.monotonic()))
            tenant_id = TENANTS[number % len(TENANTS)]
            events = [
                {"type": TYPES[each % len(TYPES)], "data": {"number": number * BATCH + each}}
                for each in range(BATCH)
            ]
            answer = session.post(
                f"{live.url}/api/v1/data-consumption/webhooks/events/batch",
                json={"tenant_id": tenant_id, "events": events},
            )
            assert answer.status_code == 202, answer.text
            published += [item["event_id"] for item in answer.json()["items"]]


def kill_while_it_delivers(live: LiveService, publisher: threading.Thread) -> None:
    """Start one more dispatcher and kill it soon after it has begun to deliver.

    When all is published it may find nothing more to do, and is killed idle.
    """
    victim = live.start_dispatcher()
    log = live.folder / f"dispatcher-{len(list(live.folder.glob('dispatcher-*.log')))}.log"
    wait_until(lambda: "att_" in log.read_text() or not publisher.is_alive())
    time.sleep(random.uniform(0, 0.5))
    live.kill_dispatcher(victim)


def redelivery_delays(seen: list[Seen]) -> list[float]:
    """How long each second arrival came after the first."""
    last: dict[str, float] = {}
    delays = []
    for request in seen:
        if request.event in last:
            delays.append(request.at - last[request.event])
        last[request.event] = request.at
    return delays


def all_tries_carry_the_same_body(seen: list[Seen]) -> bool:
    bodies: dict[str, bytes] = {}
    return all(bodies.setdefault(each.event, each.body) == each.body for each in seen)
