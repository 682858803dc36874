"""Erase a tenant: delete all that is known of it up to the moment somebody asked for that.

The job goes through the tables in the order of ``PARTS``, a bounded and committed step at a time
(schema.sql, "tenant_erasures"). That is a round. What a round deletes it has found; the second one
and those after it also look for what was committed late. A round that finds nothing is the proof,
and its counts are the report. A table with a column ``tenant_id`` or ``owner`` that is not here
fails a test.

Nothing brings back what is gone: endpoints are deleted in the request, so nobody makes tasks for
them; a claim changes tasks and makes none; and what is recorded of a task that is no more leaves
nothing (dispatcher/record.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import structlog

from app.db import as_array, db
from app.models import MADE_WITHIN, OPERATOR

log = structlog.get_logger()

BATCH = 1000
# Attempts are known by their task, and one can outlive it by a week (retention). So all tenants'
# are looked at, which takes some milliseconds for so many.
ATTEMPTS_AT_ONCE = 20_000


class Erasure(NamedTuple):
    """A running erasure: what goes, and how far it has come."""

    id: int
    tenant_id: int
    upto_id: int  # ids are times
    upto_endpoint_id: int
    moment: Any  # the same time as such
    part: int
    cursor_id: int
    round: int
    found: dict[str, int]
    deleted: dict[str, int]


class Step(NamedTuple):
    """Rows that were deleted, by table, and the last row looked at; None: the part is over."""

    deleted: Mapping[str, int]
    cursor_id: int | None


def step() -> bool:
    """The next step of the erasure that was asked for first; False when there is none to do."""
    with db.atomic():
        erasure = _take()
        if erasure is None:
            return False
        done = PARTS[erasure.part](erasure)
        found = _added(erasure.found, done.deleted)
        deleted = _added(erasure.deleted, done.deleted)
        if done.cursor_id is not None:
            _write(erasure, erasure.part, done.cursor_id, found, deleted)
        elif erasure.part + 1 < len(PARTS):
            _write(erasure, erasure.part + 1, 0, found, deleted)
        elif erasure.round == 1 or any(found.values()):
            _begin_next_round(erasure, deleted)
        else:
            _finish(erasure, deleted)
    return True


def _take() -> Erasure | None:
    """An erasure that can go on; locked, so that one dispatcher works on it at a time.

    The second round begins when all transactions of the first one's time have ended. (A horizon
    that lies in the future is one of another cluster, from which this database was restored.)
    """
    row = db.execute_sql(
        """
        SELECT id, tenant_id, upto_id, upto_endpoint_id, created_at, part, cursor_id, round, found,
               deleted
        FROM hookjetty.tenant_erasures
        WHERE status = 'running' AND (
            horizon IS NULL OR pg_snapshot_xmin(pg_current_snapshot()) >= horizon
            OR pg_snapshot_xmax(pg_current_snapshot()) < horizon)
        ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
        """
    ).fetchone()
    return Erasure(*row) if row else None


def _write(
    erasure: Erasure, part: int, cursor_id: int, found: dict[str, int], deleted: dict[str, int]
) -> None:
    db.execute_sql(
        "UPDATE hookjetty.tenant_erasures SET part = %s, cursor_id = %s, found = %s, deleted = %s"
        " WHERE id = %s",
        (part, cursor_id, _json(found), _json(deleted), erasure.id),
    )


def _begin_next_round(erasure: Erasure, deleted: dict[str, int]) -> None:
    db.execute_sql(
        """
        UPDATE hookjetty.tenant_erasures
        SET round = round + 1, part = 0, cursor_id = 0, found = '{}', deleted = %s,
            horizon = coalesce(horizon, pg_snapshot_xmax(pg_current_snapshot()))
        WHERE id = %s
        """,
        (_json(deleted), erasure.id),
    )


def _finish(erasure: Erasure, deleted: dict[str, int]) -> None:
    db.execute_sql(
        """
        UPDATE hookjetty.tenant_erasures
        SET status = 'finished', finished_at = clock_timestamp(), found = %s, deleted = %s
        WHERE id = %s
        """,
        (_json(dict.fromkeys(TABLES, 0)), _json(dict.fromkeys(TABLES, 0) | deleted), erasure.id),
    )
    log.info("tenant_erased", tenant=erasure.tenant_id, rows=sum(deleted.values()))


def _added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return dict(counts) | {table: counts.get(table, 0) + rows for table, rows in more.items()}


def _json(counts: Mapping[str, int]) -> str:
    return orjson.dumps(counts).decode()


# ------------------------------------------------------------------------------- tables of history


def _tasks(erasure: Erasure) -> Step:
    """Tasks of events up to the moment, made later by a replay too, and of endpoints that go."""
    page = db.execute_sql(
        """
        SELECT id, event_id <= %(upto)s OR endpoint_id <= %(endpoint)s FROM hookjetty.tasks
        WHERE tenant_id = %(tenant)s AND id > %(cursor)s ORDER BY id LIMIT %(batch)s
        """,
        _parameters(erasure),
    ).fetchall()
    deleted = _delete_tasks([task_id for task_id, goes in page if goes])
    return Step(deleted, page[-1][0] if len(page) == BATCH else None)


def _events(erasure: Erasure) -> Step:
    page = db.execute_sql(
        """
        SELECT id FROM hookjetty.events
        WHERE tenant_id = %(tenant)s AND id > %(cursor)s AND id <= %(upto)s
        ORDER BY id LIMIT %(batch)s
        """,
        _parameters(erasure),
    ).fetchall()
    ids = [event_id for (event_id,) in page]
    return Step({"events": _delete("events", ids)}, ids[-1] if len(ids) == BATCH else None)


def _attempts(erasure: Erasure) -> Step:
    """Attempts whose task is no more: retention drops that first."""
    last, looked_at, ids = db.execute_sql(
        """
        SELECT max(a.id), count(*),
               array_agg(a.id) FILTER (WHERE a.tenant_id = %(tenant)s AND (
                   a.task_id <= %(upto)s OR a.endpoint_id <= %(endpoint)s))
        FROM (SELECT id, tenant_id, endpoint_id, task_id FROM hookjetty.attempts
              WHERE id > %(cursor)s ORDER BY id LIMIT %(attempts)s) a
        """,
        _parameters(erasure),
    ).fetchone()
    deleted = {"attempts": _delete("attempts", ids or [])}
    return Step(deleted, last if looked_at == ATTEMPTS_AT_ONCE else None)


def _told(erasure: Erasure) -> Step:
    """What the operator was told of the tenant's endpoints (docs/operational-events.md)."""
    page = db.execute_sql(
        """
        SELECT id, data ->> 'tenant_id', data ->> 'endpoint_id' FROM hookjetty.events
        WHERE tenant_id = %(operator)s AND id > %(cursor)s ORDER BY id LIMIT %(batch)s
        """,
        _parameters(erasure),
    ).fetchall()
    ids = [
        event_id
        for event_id, about, endpoint in page
        if about == str(erasure.tenant_id) and _number(endpoint) <= erasure.upto_endpoint_id
    ]
    deleted: Mapping[str, int] = {}
    if ids:
        tasks = db.execute_sql(
            """
            SELECT id FROM hookjetty.tasks
            WHERE tenant_id = %s AND id BETWEEN %s AND %s AND event_id = ANY (%s)
            """,
            (OPERATOR, ids[0], ids[-1] + (int(MADE_WITHIN.total_seconds() * 1000) << 12), ids),
        ).fetchall()
        deleted = _delete_tasks([task_id for (task_id,) in tasks])
        deleted = _added(deleted, {"events": _delete("events", ids)})
    return Step(deleted, page[-1][0] if len(page) == BATCH else None)


def _number(endpoint: str | None) -> int:
    """The number in ``ep_7``."""
    return int((endpoint or "").removeprefix("ep_"))


def _delete_tasks(ids: Sequence[int]) -> dict[str, int]:
    """Delete tasks with their attempts.

    Locked first: whoever is recording one of them is done before, or finds it gone. And in a
    statement of its own, in id order (docs/decisions/0004).
    """
    if not ids:
        return {}
    tasks = sorted(ids)
    db.execute_sql(
        "SELECT FROM hookjetty.tasks WHERE id = ANY (%s) ORDER BY id FOR UPDATE",
        (as_array(tasks),),
    )
    attempts = db.execute_sql(
        "DELETE FROM hookjetty.attempts WHERE task_id = ANY (%s) AND id > %s",
        (as_array(tasks), tasks[0]),
    ).rowcount
    return {"tasks": _delete("tasks", tasks), "attempts": attempts}


def _delete(table: str, ids: Sequence[int]) -> int:
    if not ids:
        return 0
    rows: int = db.execute_sql(
        f"DELETE FROM hookjetty.{table} WHERE id = ANY (%s)", (as_array(ids),)
    ).rowcount
    return rows


# -------------------------------------------------------------------------------------- the others


def _rows(table: str, condition: str) -> Callable[[Erasure], Step]:
    """A table that is not partitioned, of which those rows go that fulfil a condition."""

    def delete(erasure: Erasure) -> Step:
        rows = db.execute_sql(
            f"""
            DELETE FROM hookjetty.{table} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM hookjetty.{table} WHERE {condition} LIMIT %(batch)s FOR UPDATE))
            """,
            _parameters(erasure),
        ).rowcount
        return Step({table: rows}, erasure.cursor_id if rows else None)

    return delete


def _parameters(erasure: Erasure) -> dict[str, Any]:
    return {
        "tenant": erasure.tenant_id,
        "upto": erasure.upto_id,
        "endpoint": erasure.upto_endpoint_id,
        "moment": erasure.moment,
        "cursor": erasure.cursor_id,
        "batch": BATCH,
        "attempts": ATTEMPTS_AT_ONCE,
        "operator": OPERATOR,
    }


# In this order: no key may lead to an event that is gone, no task to an endpoint.
PARTS: Sequence[Callable[[Erasure], Step]] = (
    _rows("event_keys", "tenant_id = %(tenant)s AND event_id <= %(upto)s"),
    _rows("event_erasures", "tenant_id = %(tenant)s AND event_id <= %(upto)s"),
    _rows("bulk_retries", "tenant_id = %(tenant)s AND created_at <= %(moment)s"),
    _tasks,
    _events,
    _attempts,
    _told,
    _rows("replays", "tenant_id = %(tenant)s AND endpoint_id <= %(endpoint)s"),
    _rows("idempotency_keys", "owner = %(tenant)s AND created_at <= %(moment)s"),
    _rows(
        "rate_limits",
        "split_part(key, ':', 2) = %(tenant)s::text AND counted_at <= %(moment)s",
    ),
    # That it was erased, by whom and when, is all that stays known.
    _rows("audit", "tenant_id = %(tenant)s AND id <= %(upto)s AND action <> 'erase_tenant'"),
    _rows("endpoints", "tenant_id = %(tenant)s AND id <= %(endpoint)s AND status = 'deleted'"),
    # A tenant that has come back meanwhile stays one.
    _rows(
        "tenants",
        "id = %(tenant)s AND created_at <= %(moment)s"
        " AND num_nonnulls(requests_per_second, registrations_per_minute, replays_per_minute,"
        " events_per_second, endpoints) = 0"
        " AND NOT EXISTS (SELECT FROM hookjetty.endpoints n WHERE n.tenant_id = %(tenant)s)",
    ),
)

TABLES = (
    "event_keys", "event_erasures", "bulk_retries", "tasks", "events", "attempts", "replays",
    "idempotency_keys", "rate_limits", "audit", "endpoints", "tenants",
)  # fmt: skip
