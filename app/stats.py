"""The figures at /metrics, computed from the tables, so any process of any host gives the same.

A scrape must stay cheap whatever is in the tables: every count reads a partial index that holds
nothing but such tasks and stops at ``MOST_COUNTED``, and the whole has a deadline.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.db import db
from app.models import TASK_STATUSES

MOST_COUNTED = 100_000
# Below this estimate delivered tasks are counted, above it estimated.
FEW_TASKS = 200_000
# The endpoints with due tasks that are looked at, about 30 us each.
MOST_ENDPOINTS = 5_000
DEADLINE_SECONDS = 2

GAUGES = {
    "hookjetty_tasks": (
        "Tasks by status. Open, failed and canceled ones are exact up to"
        f" {MOST_COUNTED}, where counting stops; delivered ones are exact while there are few"
        f" tasks, and beyond {FEW_TASKS} of them an estimate from PostgreSQL's statistics."
    ),
    "hookjetty_backlog": (
        "Tasks that are due now and whose endpoint is not on hold; counting stops at"
        f" {MOST_COUNTED}."
    ),
    "hookjetty_oldest_due_seconds": (
        "How long the oldest of them has been due, in seconds; 0 when none is."
        f" Looks at {MOST_ENDPOINTS} endpoints at most."
    ),
    "hookjetty_dispatchers": "Dispatchers whose heartbeat came within 30 seconds.",
}


def exposition() -> bytes:
    """All figures in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures())
    return generate_latest(registry)


class Figures(NamedTuple):
    """What the tables say at one moment."""

    tasks: dict[str, int]
    backlog: int
    oldest_due_seconds: float
    dispatchers: int


def figures() -> Figures:
    """Ask the tables; raises ``OperationalError`` (57014) past the deadline."""
    with db.atomic():
        # The statistics of a table that was empty a minute ago make the planner read it whole.
        db.execute_sql(
            f"SET LOCAL statement_timeout = '{DEADLINE_SECONDS} s';"
            " SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;"
            " SET LOCAL enable_sort = off; SET LOCAL jit = off"
        )
        tasks = dict.fromkeys(TASK_STATUSES, 0) | _count_indexed()
        tasks["delivered"] = _delivered()
        backlog, oldest_due_seconds = _due()
        (dispatchers,) = db.execute_sql(
            "SELECT count(*) FROM hookjetty.dispatchers WHERE seen_at > now() - interval '30 s'"
        ).fetchone()
    return Figures(tasks, backlog, oldest_due_seconds, dispatchers)


def _count_indexed() -> dict[str, int]:
    """Open, failed and canceled tasks, each from the index that holds only them."""
    found = db.execute_sql(
        """
        SELECT status, count(*) FROM (
            (SELECT status FROM hookjetty.tasks WHERE ready LIMIT %(most)s)
            UNION ALL
            (SELECT status FROM hookjetty.tasks
             WHERE due_at IS NOT NULL AND NOT ready LIMIT %(most)s)
            UNION ALL
            (SELECT t.status FROM hookjetty.leases l CROSS JOIN LATERAL unnest(l.task_ids) u (id)
             JOIN hookjetty.tasks t ON t.id = u.id
             WHERE t.status = 'delivering' AND NOT t.ready LIMIT %(most)s)
            UNION ALL
            (SELECT status FROM hookjetty.tasks WHERE rare_status = 'waiting' LIMIT %(most)s)
            UNION ALL
            (SELECT status FROM hookjetty.tasks
             WHERE rare_status IN ('failed', 'canceled') LIMIT %(most)s)) counted
        GROUP BY status
        """,
        {"most": MOST_COUNTED},
    )
    return dict(found.fetchall())


def _delivered() -> int:
    """Counted while that is cheap, otherwise as many as the planner reckons with."""
    if _planned_rows("SELECT FROM hookjetty.tasks") > FEW_TASKS:
        return _planned_rows("SELECT FROM hookjetty.tasks WHERE status = 'delivered'")
    db.execute_sql("SET LOCAL enable_seqscan = on")
    (counted,) = db.execute_sql(
        "SELECT count(*) FROM hookjetty.tasks WHERE status = 'delivered'"
    ).fetchone()
    db.execute_sql("SET LOCAL enable_seqscan = off")
    return int(counted)


def _planned_rows(query: str) -> int:
    """The planner's estimate: the size of the files now, what is in them as of the last ANALYZE."""
    ((plan,),) = db.execute_sql(f"EXPLAIN (FORMAT JSON) {query}").fetchone()
    return int(plan["Plan"]["Plan Rows"])


def _due() -> tuple[int, float]:
    """The backlog, and how long its oldest task has been due.

    `hop` goes from one endpoint and lane with ready tasks to the next, one index probe each, whose
    first entry is the one that has been due longest. `late` are tasks whose time has come and that
    no dispatcher has made ready yet: all of them, when none is running.
    """
    backlog, oldest = db.execute_sql(
        """
        WITH RECURSIVE hop (tenant_id, endpoint_id, lane, next_try_at) AS (
            (SELECT t.tenant_id, t.endpoint_id, t.lane, t.next_try_at FROM hookjetty.tasks t
             WHERE t.ready ORDER BY t.tenant_id, t.endpoint_id, t.lane, t.due_at LIMIT 1)
            UNION ALL
            SELECT n.* FROM hop h CROSS JOIN LATERAL (
                SELECT t.tenant_id, t.endpoint_id, t.lane, t.next_try_at FROM hookjetty.tasks t
                WHERE t.ready
                  AND (t.tenant_id, t.endpoint_id, t.lane) > (h.tenant_id, h.endpoint_id, h.lane)
                ORDER BY t.tenant_id, t.endpoint_id, t.lane, t.due_at LIMIT 1) n
        ),
        due AS MATERIALIZED (
            SELECT h.* FROM (SELECT * FROM hop LIMIT %(endpoints)s) h
            WHERE NOT EXISTS (SELECT FROM hookjetty.endpoints e
                              WHERE e.id = h.endpoint_id AND e.hold_until IS NOT NULL)
        ),
        late AS MATERIALIZED (
            SELECT t.next_try_at FROM hookjetty.tasks t
            WHERE t.due_at IS NOT NULL AND NOT t.ready AND t.due_at <= statement_timestamp()
            ORDER BY t.due_at LIMIT %(most)s
        )
        SELECT least(%(most)s, (SELECT count(*) FROM late) + (
                   SELECT count(*) FROM (
                       SELECT FROM due d CROSS JOIN LATERAL (
                           SELECT FROM hookjetty.tasks t
                           WHERE t.ready AND t.tenant_id = d.tenant_id
                             AND t.endpoint_id = d.endpoint_id AND t.lane = d.lane) one
                       LIMIT %(most)s) counted)),
               extract(epoch FROM clock_timestamp() - least(
                   (SELECT min(next_try_at) FROM due), (SELECT min(next_try_at) FROM late)))
        """,
        {"most": MOST_COUNTED, "endpoints": MOST_ENDPOINTS},
    ).fetchone()
    return backlog, max(float(oldest or 0), 0.0)


class _Figures(Collector):
    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = figures()
        tasks = _gauge("hookjetty_tasks", labels=["status"])
        for status, number in now.tasks.items():
            tasks.add_metric([status], number)
        yield tasks
        for name, value in (
            ("hookjetty_backlog", now.backlog),
            ("hookjetty_oldest_due_seconds", now.oldest_due_seconds),
            ("hookjetty_dispatchers", now.dispatchers),
        ):
            gauge = _gauge(name)
            gauge.add_metric([], value)
            yield gauge


def _gauge(name: str, labels: list[str] | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, GAUGES[name], labels=labels)
