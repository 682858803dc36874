"""Publish at a rate, by the clock: a call begins when it is due, not when the one before has ended,
so that a slow moment is not hidden by asking less.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2

from bench.ground import EVENT_DATA, BenchError
from bench.receiver import Report
from bench.rows import Target

# Publishes one event and returns its id, "evt_…".
Publish = Callable[[Target], str]


@dataclass(frozen=True)
class Calls:
    """What was published: when each event's call began, and by how much that was late."""

    began: Mapping[str, float]
    late: Sequence[float]

    def latencies(self, report: Report) -> list[float]:
        """Seconds from each call to the receipt of its event; what came twice counts once."""
        arrived = dict(zip(reversed(report.ids), reversed(report.times), strict=True))
        if missing := self.began.keys() - arrived.keys():
            raise BenchError(f"{len(missing)} of {len(self.began)} events did not arrive")
        return [arrived[event_id] - moment for event_id, moment in self.began.items()]


def publish_by_the_clock(
    publishing: Callable[[], AbstractContextManager[Publish]],
    targets: Sequence[Target],
    *,
    per_second: float,
    seconds: float,
    warm_up_seconds: float,
    senders: int,
) -> Calls:
    """Publish for all targets in turn; what is called in the warm-up is left out of the answer."""
    warm_up = int(warm_up_seconds * per_second)
    began: dict[str, float] = {}
    late: list[float] = []
    numbers = iter(range(warm_up + int(seconds * per_second)))
    lock = threading.Lock()
    start = time.monotonic() + 0.2

    def send() -> None:
        with publishing() as publish:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                due = start + number / per_second
                time.sleep(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                event_id = publish(targets[number % len(targets)])
                if number >= warm_up:
                    began[event_id] = now
                    late.append(now - due)

    with ThreadPoolExecutor(senders) as threads:
        try:
            for sender in [threads.submit(send) for _ in range(senders)]:
                sender.result()
        finally:
            with lock:
                list(numbers)  # what is left after Ctrl-C, or after another one's failure
    return Calls(began, late)


def over_sql(url: str) -> Callable[[], AbstractContextManager[Publish]]:
    """With ``publish_event``, each on a connection of one's own."""

    @contextmanager
    def publishing() -> Iterator[Publish]:
        connection = psycopg2.connect(url)
        connection.autocommit = True
        try:
            yield lambda target: _call(connection, target)
        finally:
            connection.close()

    return publishing


def _call(connection: Any, target: Target) -> str:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT event_id FROM hookjetty.publish_event(%s, %s, %s)",
            (target.tenant_id, target.type, EVENT_DATA),
        )
        return f"evt_{cursor.fetchone()[0]}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all do not exceed (nearest rank).

    >>> percentile([4.0, 1.0, 3.0, 2.0], 50), percentile([4.0, 1.0, 3.0, 2.0], 99)
    (2.0, 4.0)
    """
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
