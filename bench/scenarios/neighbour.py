"""A quiet tenant beside a flooded one: A is kept at 100,000 due tasks, B publishes 20 events/s."""

from __future__ import annotations

import threading
import time
from typing import Any

from app.db import db
from bench import rows
from bench.clock import over_sql, percentile, publish_by_the_clock
from bench.ground import EVENT_DATA, PATIENCE_SECONDS, BenchError, Ground

ROUNDS = 2
EVENTS_PER_SECOND = 20
WARM_UP_SECONDS = 1
SENDERS = 2
# A's tasks are made up for in portions.
PORTION_SHARE = 0.02
# Their ids are those of ten seconds ago, where B's are not: milliseconds, 4,096 ids each.
IDS_BEFORE_NOW = 10_000 << 12


def measure(ground: Ground) -> dict[str, Any]:
    """From B's call to its receipt, in milliseconds; B alone beside it."""
    alone = _latencies(ground, flooded=False)
    beside = _latencies(ground, flooded=True)
    return {
        "neighbour_p99_ms": percentile(beside, 99),
        "neighbour_p50_ms": percentile(beside, 50),
        "neighbour_alone_p99_ms": percentile(alone, 99),
        "neighbour_alone_p50_ms": percentile(alone, 50),
    }


def _latencies(ground: Ground, *, flooded: bool) -> list[float]:
    scale = ground.scale
    a, b = (
        [target for target in ground.targets if target.tenant_id == tenant_id]
        for tenant_id in (1, 2)
    )
    with ground.fresh():
        if flooded:
            rows.insert_due(scale.neighbour_due, a, EVENT_DATA)
        ground.calm()
        ground.receiver.reset()
        with ground.dispatchers(), _Flood(ground, a, scale.neighbour_due if flooded else 0):
            calls = publish_by_the_clock(
                over_sql(ground.url),
                b,
                per_second=EVENTS_PER_SECOND,
                seconds=scale.neighbour_seconds,
                warm_up_seconds=WARM_UP_SECONDS,
                senders=SENDERS,
            )
            deadline = time.monotonic() + PATIENCE_SECONDS
            while _some_open(b[0].tenant_id):
                if time.monotonic() > deadline:
                    raise BenchError(f"B waits after {PATIENCE_SECONDS} s")
                time.sleep(0.1)
        return [1000 * seconds for seconds in calls.latencies(ground.receiver.report())]


class _Flood:
    """A thread that makes up for every task of A that was delivered."""

    def __init__(self, ground: Ground, targets: list[rows.Target], due: int) -> None:
        self._ground, self._targets, self._due = ground, targets, due
        self._made = due
        self._next_id = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood")
        self._error: Exception | None = None

    def __enter__(self) -> None:
        if self._due:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._due:
            self._stop.set()
            self._thread.join()
        if self._error is not None:
            raise BenchError("A could not be kept flooded") from self._error

    def _run(self) -> None:
        portion = max(1, int(self._due * PORTION_SHARE))
        try:
            db.ready()
            self._next_id = rows.latest_id() - IDS_BEFORE_NOW
            while not self._stop.wait(0.02):
                # What B received is counted for A's: some tasks more, never fewer.
                if self._made - self._ground.receiver.count() <= self._due - portion:
                    rows.insert_due(portion, self._targets, EVENT_DATA, self._next_id)
                    self._made += portion
                    self._next_id += 2 * portion  # an event's and a task's
        except Exception as error:  # noqa: BLE001 - told by the thread that waits for it
            self._error = error
        finally:
            db.close()


def _some_open(tenant_id: int) -> bool:
    query = """
        (SELECT FROM hookjetty.tasks WHERE ready AND tenant_id = %(tenant)s LIMIT 1) UNION ALL
        (SELECT FROM hookjetty.tasks
         WHERE due_at IS NOT NULL AND NOT ready AND tenant_id = %(tenant)s LIMIT 1) UNION ALL
        (SELECT FROM hookjetty.leases l JOIN hookjetty.tasks t ON t.id = ANY (l.task_ids)
         WHERE t.tenant_id = %(tenant)s AND t.status = 'delivering' LIMIT 1)
    """
    return db.execute_sql(query, {"tenant": tenant_id}).rowcount > 0
