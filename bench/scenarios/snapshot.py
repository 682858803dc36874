"""Somebody's report runs for hours: what does an old snapshot cost, which keeps dead rows alive?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2

from bench import rows
from bench.ground import EVENT_DATA, Ground

ROUNDS = 1  # 300,000 tasks take long


def measure(ground: Ground) -> dict[str, Any]:
    """Throughput with a snapshot held from before the first task, as a share of that without."""
    alone = _throughput(ground, hold=False)
    beside = _throughput(ground, hold=True)
    return {
        "snapshot_ratio": beside / alone,
        "per_s_alone": alone,
        "per_s_beside_snapshot": beside,
    }


def _throughput(ground: Ground, *, hold: bool) -> float:
    tasks = ground.scale.snapshot_tasks
    # A database of its own for each side, so that none inherits the other's dead rows.
    with ground.fresh(), _snapshot(ground.url, hold):
        make_due = lambda: rows.insert_due(tasks, ground.targets, EVENT_DATA)  # noqa: E731
        return ground.deliver(make_due, tasks).per_second


@contextmanager
def _snapshot(url: str, hold: bool) -> Iterator[None]:
    if not hold:
        yield
        return
    connection = psycopg2.connect(url)
    try:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM hookjetty.endpoints")
        yield
    finally:
        connection.close()
