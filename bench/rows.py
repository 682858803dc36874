"""Rows made in bulk: a history of millions, due tasks, tasks that wait. SQL on the tables alone.

Faster than publishing, and a statement each, so that making what is measured takes less time than
measuring it. What is *published* in a scenario goes through ``publish_event``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from app.db import db
from bench.inside import ANSWER_BODY, ANSWER_HEADERS

HISTORY_WEEKS = 4  # of the 30 days that are kept by default
CHUNK = 100_000
TABLES = ("events", "tasks", "attempts")


@dataclass(frozen=True)
class Target:
    """An endpoint, and the one type of event that it wants: each event becomes one task."""

    id: int
    tenant_id: int
    url: str
    type: str
    secret: str


# ----------------------------------------------------------------------------------------- history


def make_history(events: int, targets: Sequence[Target], data: str) -> None:
    """Delivered events of the last weeks, each with its task and its attempt, in their partitions.

    The partitions of those weeks are taken out, filled without their indexes by two sessions,
    indexed, and put back: a third of the time that filling them in place takes.
    """
    db.execute_sql(
        "SELECT hookjetty.make_partitions(now() - %s * interval '7 days', %s)",
        (HISTORY_WEEKS, HISTORY_WEEKS),
    )
    oldest, newest = db.execute_sql(
        """
        SELECT hookjetty.id_at(now() - %s * interval '7 days'),
               hookjetty.id_at(now() - interval '1 minute')
        """,
        (HISTORY_WEEKS,),
    ).fetchone()
    step = (newest - oldest) // events
    values = _columns_of(targets) | {
        "oldest": oldest,
        "step": step,
        "data": data,
        "headers": ANSWER_HEADERS,
        "body": ANSWER_BODY.decode(),
    }
    weeks = [
        week
        for week in _partitions()
        if week.parent in TABLES and week.from_id <= newest and week.upto_id > oldest
    ]
    for week in weeks:
        week.take_out()
    fills = []
    for week in weeks:
        # The event of number n has the id oldest + n * step, its task and attempt the next two.
        first = max(0, -(-(week.from_id - oldest) // step))
        behind = min(events, -(-(week.upto_id - 2 - oldest) // step))
        for start in range(first, behind, CHUNK):
            numbers = {"first": start, "last": min(start + CHUNK, behind) - 1}
            fills.append((HISTORY[week.parent].format(week.name), values | numbers))
    _on_two_connections(fills)
    _on_two_connections([(sql, None) for week in weeks for sql in week.indexes])
    for week in weeks:
        week.put_back()
    db.execute_sql("VACUUM (ANALYZE) hookjetty.events, hookjetty.tasks, hookjetty.attempts")


_NUMBERED = """
    FROM (SELECT %(oldest)s + n::bigint * %(step)s AS id,
                 (%(tenants)s::bigint[])[1 + n %% %(targets)s] AS tenant_id,
                 (%(endpoints)s::bigint[])[1 + n %% %(targets)s] AS endpoint_id,
                 (%(types)s::text[])[1 + n %% %(targets)s] AS type
          FROM generate_series(%(first)s, %(last)s) n) h
"""
HISTORY = {
    "events": """
        INSERT INTO hookjetty.{} (id, tenant_id, type, data, fanout)
        SELECT id, tenant_id, type, %(data)s, 1
    """
    + _NUMBERED,
    "tasks": """
        INSERT INTO hookjetty.{} (id, tenant_id, endpoint_id, event_id, status, ready, tries,
                                  attempt_id)
        SELECT id + 1, tenant_id, endpoint_id, id, 'delivered', false, 1, id + 2
    """
    + _NUMBERED,
    "attempts": """
        INSERT INTO hookjetty.{} (id, task_id, tenant_id, endpoint_id, try, started_at, status_code,
                                  first_byte_us, total_us, address, response_headers, response_body)
        SELECT id + 2, id + 1, tenant_id, endpoint_id, 1, hookjetty.id_time(id), 200, 1000, 1000,
               '127.0.0.1:80', %(headers)s, %(body)s
    """
    + _NUMBERED,
}


class _Partition:
    """One week of one table."""

    def __init__(self, parent: str, name: str, from_id: int, upto_id: int) -> None:
        self.parent, self.name = parent, name
        self.from_id, self.upto_id = from_id, upto_id
        self.indexes: list[str] = []  # the statements that make them again

    def take_out(self) -> None:
        """Detach it, without its indexes, and with a promise that saves reading it at the end."""
        db.execute_sql(f"ALTER TABLE hookjetty.{self.parent} DETACH PARTITION {self._table}")
        rows = db.execute_sql(
            """
            SELECT x.indexrelid::regclass::text, c.conname, pg_get_constraintdef(c.oid),
                   pg_get_indexdef(x.indexrelid)
            FROM pg_index x LEFT JOIN pg_constraint c ON c.conindid = x.indexrelid
            WHERE x.indrelid = %s::regclass
            """,
            (self._table,),
        ).fetchall()
        for index, constraint, constraint_sql, index_sql in rows:
            if constraint is None:
                db.execute_sql(f"DROP INDEX {index}")
                self.indexes.append(index_sql)
            else:
                db.execute_sql(f"ALTER TABLE {self._table} DROP CONSTRAINT {constraint}")
                self.indexes.append(
                    f"ALTER TABLE {self._table} ADD CONSTRAINT {constraint} {constraint_sql}"
                )
        db.execute_sql(
            f"ALTER TABLE {self._table} ADD CONSTRAINT of_its_week"
            f" CHECK (id IS NOT NULL AND id >= {self.from_id} AND id < {self.upto_id})"
        )

    def put_back(self) -> None:
        """Attach it; its indexes are found to be those of the whole table."""
        db.execute_sql(
            f"ALTER TABLE hookjetty.{self.parent} ATTACH PARTITION {self._table}"
            f" FOR VALUES FROM ({self.from_id}) TO ({self.upto_id})"
        )
        db.execute_sql(f"ALTER TABLE {self._table} DROP CONSTRAINT of_its_week")

    @property
    def _table(self) -> str:
        return f"hookjetty.{self.name}"


def _partitions() -> list[_Partition]:
    rows = db.execute_sql("SELECT parent, name, from_id, upto_id FROM hookjetty.partitions")
    return [_Partition(*row) for row in rows.fetchall()]


def _on_two_connections(statements: Iterable[tuple[str, dict[str, Any] | None]]) -> None:
    waiting = iter(list(statements))  # next() of a list's iterator is one step, also for threads

    def work() -> None:
        db.ready()
        db.execute_sql("SET synchronous_commit = off; SET maintenance_work_mem = '512MB'")
        try:
            for sql, values in waiting:
                db.execute_sql(sql, values)
        finally:
            db.close()

    with ThreadPoolExecutor(2) as threads:
        try:
            for one in [threads.submit(work) for _ in range(2)]:
                one.result()
        finally:
            list(waiting)  # what is left after Ctrl-C, or after the other one's failure


# ------------------------------------------------------------------------------------------- tasks


def insert_due(
    tasks: int, targets: Sequence[Target], data: str, first_id: int | None = None
) -> None:
    """Events for all targets in turn, each with one task that is ready now.

    While others publish, ``first_id`` must be where none of them makes ids: somewhat in the past.
    """
    _insert(tasks, targets, data, "'pending', true, clock_timestamp()", first_id)


def insert_for_tomorrow(tasks: int, targets: Sequence[Target], data: str) -> None:
    """The same, to be tried again in 24 hours, give or take one."""
    tomorrow = "clock_timestamp() + interval '1 day' + (random() * 2 - 1) * interval '1 hour'"
    _insert(tasks, targets, data, f"'retry', false, {tomorrow}")


def insert_waiting(tasks: int, targets: Sequence[Target], data: str) -> None:
    """The same, waiting for their endpoints to be resumed."""
    _insert(tasks, targets, data, "'waiting', false, NULL::timestamptz")


def _insert(
    tasks: int, targets: Sequence[Target], data: str, state: str, first_id: int | None = None
) -> None:
    """Ids as if made one after the other from now on; returns when that time has passed."""
    first = latest_id() if first_id is None else first_id
    values = _columns_of(targets) | {"oldest": first, "step": 2, "data": data}
    for start in range(0, tasks, CHUNK):
        numbers = {"first": start, "last": min(start + CHUNK, tasks) - 1}
        db.execute_sql(
            # The parts are this file's; what comes from elsewhere is a parameter.
            f"""
            WITH h AS (SELECT * {_NUMBERED}),
            events AS (
                INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)
                SELECT id, tenant_id, type, %(data)s, 1 FROM h)
            INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready,
                                         next_try_at)
            SELECT id + 1, tenant_id, endpoint_id, id, {state} FROM h
            """,  # noqa: S608
            values | numbers,
        )
    while latest_id() < first + 2 * tasks:
        time.sleep(0.01)


def publish(events: int, targets: Sequence[Target], data: str) -> None:
    """Events for all targets in turn, each of them one task, through ``publish_event``."""
    for start in range(0, events, 1000):
        db.execute_sql(
            """
            SELECT count(p.tasks) FROM generate_series(%(first)s, %(last)s) n
            CROSS JOIN LATERAL hookjetty.publish_event(
                (%(tenants)s::bigint[])[1 + n %% %(targets)s],
                (%(types)s::text[])[1 + n %% %(targets)s], %(data)s) p
            """,
            _columns_of(targets)
            | {"first": start, "last": min(start + 1000, events) - 1, "data": data},
        )


def discard_open(since: int) -> None:
    """Cancel every task made since then that is not finished, such as those of a dead endpoint."""
    db.execute_sql(
        """
        UPDATE hookjetty.tasks SET status = 'canceled', ready = false, next_try_at = NULL
        WHERE id > %s AND status IN ('pending', 'delivering', 'retry', 'waiting')
        """,
        (since,),
    )
    db.execute_sql("DELETE FROM hookjetty.leases")


def finish_claimed() -> None:
    """As if all tasks under way had been delivered; leaves no attempt."""
    db.execute_sql(
        """
        UPDATE hookjetty.tasks SET status = 'delivered', ready = false, next_try_at = NULL
        WHERE id = ANY (ARRAY(SELECT unnest(task_ids) FROM hookjetty.leases))
          AND status = 'delivering'
        """
    )
    db.execute_sql("DELETE FROM hookjetty.leases")


def latest_id() -> int:
    """What is made from now on has greater ids."""
    return db.execute_sql("SELECT hookjetty.new_id()").fetchone()[0]


def _columns_of(targets: Sequence[Target]) -> dict[str, Any]:
    return {
        "targets": len(targets),
        "tenants": [target.tenant_id for target in targets],
        "endpoints": [target.id for target in targets],
        "types": [target.type for target in targets],
    }
