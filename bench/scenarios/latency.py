"""How long from the call that publishes an event until its receiver has it, at 200 events/s.

Twice: `POST /events` through gunicorn (the figure), and `publish_event` on a connection of one's
own. Spread over so many tenants that no limit is reached. The calls are begun by the clock, not
when the one before has ended, so a slow moment is not hidden by asking less; and the clock starts
when the call begins, so what the senders themselves are late by is reported, not counted.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg2
import pycurl

from bench.ground import EVENT_DATA, BenchError, Ground, Target

EVENTS_PER_SECOND = 200
TENANTS = 25  # 8 events per second each, of the 10 requests that are allowed
SENDERS = 10
# Of connections and caches; not counted.
WARM_UP_SECONDS = 1
PATH = "/api/v1/data-consumption/webhooks/events"

# Publishes one event and returns its id, "evt_…".
Publish = Callable[[Target], str]


def measure(ground: Ground) -> dict[str, Any]:
    """Milliseconds; ``late_p99`` is by how much the senders were late to begin their calls."""
    targets = ground.make_targets(next(_new_tenants), TENANTS)
    tokens = {target.tenant_id: ground.live.tenant_token(target.tenant_id) for target in targets}

    @contextmanager
    def over_http() -> Iterator[Publish]:
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, ground.live.url + PATH)
        try:
            yield lambda target: _post(curl, tokens[target.tenant_id], target)
        finally:
            curl.close()

    @contextmanager
    def over_sql() -> Iterator[Publish]:
        connection = psycopg2.connect(ground.database.url)
        connection.autocommit = True
        try:
            yield lambda target: _call(connection, target)
        finally:
            connection.close()

    with ground.dispatcher():
        return {
            "latency_ms": _latency(ground, targets, over_http),
            "latency_sql_ms": _latency(ground, targets, over_sql),
        }


# Endpoints of their own for each round: a tenant may register a URL once.
_new_tenants = itertools.count(1001, TENANTS)


def _latency(
    ground: Ground,
    targets: Sequence[Target],
    publishing: Callable[[], AbstractContextManager[Publish]],
) -> dict[str, float]:
    """Publish at the rate, see when each event arrived, and sum it up."""
    ground.calm()
    ground.receiver.reset()
    events = int((WARM_UP_SECONDS + ground.scale.seconds) * EVENTS_PER_SECOND)
    called: dict[str, float] = {}
    late: list[float] = []
    numbers = iter(range(events))
    lock = threading.Lock()
    began = time.monotonic() + 0.2

    def send() -> None:
        with publishing() as publish:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                due = began + number / EVENTS_PER_SECOND
                time.sleep(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                event_id = publish(targets[number % len(targets)])
                if number >= WARM_UP_SECONDS * EVENTS_PER_SECOND:
                    called[event_id] = now
                    late.append(now - due)

    with ThreadPoolExecutor(SENDERS) as threads:
        for sender in [threads.submit(send) for _ in range(SENDERS)]:
            sender.result()
    ground.wait_until_received(events)
    ground.wait_until_recorded()
    report = ground.receiver.report()
    arrived = dict(zip(reversed(report.ids), reversed(report.times), strict=True))
    if missing := called.keys() - arrived.keys():
        raise BenchError(f"{len(missing)} of {events} events did not arrive")
    times = [arrived[event_id] - moment for event_id, moment in called.items()]
    return {
        "p50": percentile(times, 50) * 1000,
        "p99": percentile(times, 99) * 1000,
        "max": max(times) * 1000,
        "late_p99": percentile(late, 99) * 1000,
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank).

    >>> percentile([4.0, 1.0, 3.0, 2.0], 50), percentile([4.0, 1.0, 3.0, 2.0], 99)
    (2.0, 4.0)
    """
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def _post(curl: pycurl.Curl, token: str, target: Target) -> str:
    answer = io.BytesIO()
    headers = [f"Authorization: Bearer {token}", "Content-Type: application/json"]
    curl.setopt(pycurl.HTTPHEADER, headers)
    curl.setopt(pycurl.POSTFIELDS, f'{{"type":"{target.type}","data":{EVENT_DATA}}}')
    curl.setopt(pycurl.WRITEDATA, answer)
    curl.perform()
    status = curl.getinfo(pycurl.RESPONSE_CODE)
    if status != 202:
        raise BenchError(f"POST /events was answered {status}: {answer.getvalue().decode()}")
    return json.loads(answer.getvalue())["event_id"]


def _call(connection: Any, target: Target) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT event_id FROM hookjetty.publish_event(%s, %s, %s)",
            (target.tenant_id, target.type, EVENT_DATA),
        )
        return f"evt_{cursor.fetchone()[0]}"
