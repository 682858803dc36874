"""Bulk retries: all tasks that a filter finds tried again.

What is written here is the request; a dispatcher's job walks the tasks and retries them. Only tasks
that are done without having been delivered are: the failed ones, or, where the filter names that
status, the canceled ones.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from app import errors, replays
from app.db import db
from app.models import BulkRetry, Endpoint, id_time, wake
from app.pages import Page, page
from app.tasks import TaskFilter

RETRIED_STATUSES = ("failed", "canceled")
# A count stops after looking at so many.
MOST_COUNTED = 20_000
# A task's latest try began so long, at most, before its endpoint began to fail: as long as a lease.
TRY_LASTS_AT_MOST = timedelta(seconds=60)


class Count(NamedTuple):
    """How many tasks would be retried; ``capped``: at least so many, counting was given up."""

    tasks: int
    capped: bool


class Batch(NamedTuple):
    """Some of a bulk retry's tasks: the last one looked at, how many were, which are wanted."""

    last_id: int | None
    looked_at: int
    task_ids: list[int]


def count(tenant_id: int, wanted: TaskFilter) -> Count:
    """How many tasks a bulk retry with that filter would try again, if it began now."""
    wanted = _retriable(tenant_id, wanted)
    conditions, parameters = wanted.conditions()
    parameters |= _walk(tenant_id, wanted, wanted.lowest_id - 1, wanted.highest_id)
    looked_at, tasks = db.execute_sql(
        f"""
        SELECT count(*), count(*) FILTER (WHERE {" AND ".join([_THERE, *conditions])})
        FROM ({_WALKED.format(most=MOST_COUNTED)}) t
        """,
        parameters,
    ).fetchone()
    return Count(tasks, capped=looked_at == MOST_COUNTED)


def start(tenant_id: int, wanted: TaskFilter) -> BulkRetry:
    """Try again what the filter finds among the tasks that there are at this moment.

    ``invalid_request`` for a filter that narrows nothing or asks for tasks that are not done;
    ``version_conflict`` while another bulk retry of the tenant runs.
    """
    wanted = _retriable(tenant_id, wanted)
    with db.atomic():
        first, latest = db.execute_sql(
            f"""
            SELECT (SELECT t.id FROM ({_WALKED.format(most=1)}) t),
                   hookjetty.id_at(clock_timestamp()) | 4095
            """,
            _walk(tenant_id, wanted, wanted.lowest_id - 1, wanted.highest_id),
        ).fetchone()
        upto_id = min(wanted.highest_id, latest)
        from_id = min(first or upto_id, upto_id)
        rows = (
            BulkRetry.insert(
                tenant_id=tenant_id,
                status="running",
                wanted=wanted.storable(),
                from_id=from_id,
                upto_id=upto_id,
                cursor_id=from_id - 1,
                looked_at=0,
                tasks=0,
            )
            .on_conflict_ignore()  # schema.sql, bulk_retries_running: at most one of a tenant
            .returning(BulkRetry)
            .execute()
        )
        bulk_retry: BulkRetry | None = next(iter(rows), None)
        if bulk_retry is None:
            raise errors.conflict("a bulk retry of this tenant is running already")
        wake()
    return bulk_retry


def recover(tenant_id: int, endpoint_id: int, since: str) -> BulkRetry:
    """Try again what failed at an endpoint since then: tasks whose latest try began since.

    ``since`` is a watermark as a replay has it: a time, an event (its time), or ``failing_since``,
    which is when the endpoint began to fail, and includes the try that made it so.
    """
    endpoint = Endpoint.get_of(tenant_id, endpoint_id)
    moment = id_time(replays.watermark(endpoint, since, "since"))
    if since == "failing_since":
        moment -= TRY_LASTS_AT_MOST
    return start(tenant_id, TaskFilter(endpoint_id=endpoint_id, failed_since=moment))


def page_of_bulk_retries(tenant_id: int, *, limit: int, cursor: str | None = None) -> Page:
    """A tenant's bulk retries, the newest first."""
    query = BulkRetry.of(tenant_id)
    of = ("bulk retries", tenant_id)
    return page(query, BulkRetry.id, limit=limit, cursor=cursor, of=of, newest_first=True)


def _retriable(tenant_id: int, wanted: TaskFilter) -> TaskFilter:
    """The filter, of tasks that a bulk retry tries again; an error if there can be none."""
    if wanted.endpoint_id is not None:
        Endpoint.get_of(tenant_id, wanted.endpoint_id)
    if not wanted.storable():
        raise errors.invalid("body", "narrows nothing; name at least a status or an endpoint")
    if wanted.status not in (None, *RETRIED_STATUSES):
        raise errors.invalid("status", f"must be one of {', '.join(RETRIED_STATUSES)}")
    return replace(wanted, status=wanted.status or "failed")


def batch(bulk_retry: BulkRetry, size: int) -> Batch:
    """The next tasks of a bulk retry: at most ``size`` are looked at. Locks nothing."""
    wanted = TaskFilter.stored(bulk_retry.wanted)
    conditions, parameters = wanted.conditions()
    parameters |= _walk(bulk_retry.tenant_id, wanted, bulk_retry.cursor_id, bulk_retry.upto_id)
    last_id, looked_at, task_ids = db.execute_sql(
        f"""
        WITH walked AS MATERIALIZED ({_WALKED.format(most=size)})
        SELECT (SELECT max(id) FROM walked), (SELECT count(*) FROM walked), ARRAY(
            SELECT t.id FROM walked t WHERE {" AND ".join([_THERE, *conditions])} ORDER BY t.id)
        """,
        parameters,
    ).fetchone()
    return Batch(last_id, looked_at, task_ids)


# A tenant's tasks of one status, oldest first: a walk along the index that knows the rare statuses,
# so written that the planner takes no other (app/tasks.py, _Source).
_WALKED = """
    SELECT t.id, t.endpoint_id, t.event_id, t.status, t.failure, t.attempt_id
    FROM hookjetty.tasks t
    WHERE t.rare_status IS NOT NULL
      AND (t.tenant_id, t.rare_status, t.id) > (%(tenant)s, %(status)s, %(behind)s)
      AND (t.tenant_id, t.rare_status, t.id) <= (%(tenant)s, %(status)s, %(upto)s)
    ORDER BY t.tenant_id, t.rare_status, t.id LIMIT {most}"""
# For a deleted endpoint nothing is tried again.
_THERE = """t.endpoint_id IN (SELECT n.id FROM hookjetty.endpoints n
                              WHERE n.tenant_id = %(tenant)s AND n.status <> 'deleted')"""


def _walk(tenant_id: int, wanted: TaskFilter, behind: int, upto: int) -> dict[str, object]:
    return {"tenant": tenant_id, "status": wanted.status, "behind": behind, "upto": upto}
