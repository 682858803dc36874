"""What has to be done from time to time. Each job does one bounded step, commits it, and returns
whether there may be more; ``until_done`` repeats it. Any number of dispatchers may run them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog

from app import bulk_retries, events
from app.db import db, retrying
from app.models import MADE_WITHIN, BulkRetry, Dispatcher, Event
from dispatcher import operational

log = structlog.get_logger()

BATCH = 1000

# Heartbeats older than this belong to a dispatcher that is gone.
SILENT_SECONDS = 60


def until_done(step: Callable[[], bool]) -> None:
    """Repeat a step while it says that there may be more."""
    db.ready()
    while retrying(step):
        pass


# ------------------------------------------------------------------------------------ heartbeats


def register_dispatcher() -> int:
    """Make this process's row; returns its id."""
    row = db.execute_sql(
        "INSERT INTO hookjetty.dispatchers (id, host, pid) VALUES (hookjetty.new_id(), %s, %s)"
        " RETURNING id",
        (socket.gethostname(), os.getpid()),
    )
    return row.fetchone()[0]


def heartbeat(dispatcher_id: int, in_flight: int, parked: bool) -> None:
    """Say that this process lives; puts the row back should a sweep have taken it for dead."""
    db.execute_sql(
        """
        INSERT INTO hookjetty.dispatchers AS d (id, host, pid, in_flight, parked)
        VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (id) DO UPDATE
        SET seen_at = now(), in_flight = excluded.in_flight
        """,
        (dispatcher_id, socket.gethostname(), os.getpid(), in_flight, parked),
    )


def deregister_dispatcher(dispatcher_id: int) -> None:
    """This process ends in good order."""
    Dispatcher.delete().where(Dispatcher.id == dispatcher_id).execute()


# --------------------------------------------------------------------------------------- replays


def replay_step() -> bool:
    """The next batch of one running replay: events become tasks in lane 1.

    The tasks and the cursor commit together, so a crash leaves neither a gap nor a repeat. Events
    with an open task for the endpoint are on their way already and are skipped; so are test events,
    and those whose data was erased. What became of the batch's events at the endpoint is read once,
    whatever is asked about it.
    """
    with db.atomic():
        replay = db.execute_sql(
            """
            SELECT r.id, r.tenant_id, r.endpoint_id, r.cursor_id, r.upto_id, r.event_types,
                   r.only_those, n.events, n.status, n.status = 'active' AND n.hold_until IS NULL
            FROM hookjetty.replays r JOIN hookjetty.endpoints n ON n.id = r.endpoint_id
            WHERE r.status = 'running' ORDER BY r.cursor_id LIMIT 1
            FOR UPDATE OF r SKIP LOCKED
            """
        ).fetchone()
        if replay is None:
            return False
        replay_id, tenant_id, endpoint_id, cursor_id, upto_id, types, only, *endpoint = replay
        patterns, status, takes = endpoint
        last, looked_at, wanted = db.execute_sql(
            f"""
            WITH batch AS MATERIALIZED (
                SELECT e.id, e.type, e.endpoint_id IS NULL AND e.data IS NOT NULL AS can_go
                FROM hookjetty.events e
                WHERE e.tenant_id = %(tenant)s AND e.id > %(cursor)s AND e.id <= %(upto)s
                ORDER BY e.id LIMIT %(batch)s),
            there AS MATERIALIZED (
                -- Made with their events, or …
                SELECT t.event_id, t.status FROM hookjetty.tasks t
                WHERE t.endpoint_id = %(endpoint)s AND t.replay_id IS NULL
                  AND t.id BETWEEN (SELECT min(id) FROM batch)
                               AND (SELECT max(id) FROM batch) + (%(slack)s::bigint << 12)
                  AND t.event_id <= (SELECT max(id) FROM batch)
                UNION ALL  -- … by another replay.
                SELECT t.event_id, t.status FROM batch b JOIN hookjetty.tasks t ON t.event_id = b.id
                WHERE t.endpoint_id = %(endpoint)s AND t.replay_id IS NOT NULL)
            SELECT (SELECT max(id) FROM batch), (SELECT count(*) FROM batch), ARRAY(
                SELECT b.id FROM batch b
                WHERE %(patterns)s::text[] && hookjetty.patterns_for(b.type) AND b.can_go
                  AND (%(types)s::text[] IS NULL
                       OR %(types)s::text[] && hookjetty.patterns_for(b.type))
                  AND {_CHOSEN[only]}
                ORDER BY b.id)
            """,
            {
                "tenant": tenant_id,
                "cursor": cursor_id,
                "upto": upto_id,
                "batch": BATCH,
                "endpoint": endpoint_id,
                "patterns": patterns,
                "types": types,
                "slack": int(MADE_WITHIN.total_seconds() * 1000),
            },
        ).fetchone()
        _make_replay_tasks(wanted, replay_id, tenant_id, endpoint_id, active=takes)
        db.execute_sql(
            "UPDATE hookjetty.replays"
            " SET cursor_id = %s, events = events + %s, tasks = tasks + %s WHERE id = %s",
            (last or upto_id, looked_at, len(wanted), replay_id),
        )
        if looked_at < BATCH or status == "deleted":
            _finish_replay(replay_id)
    return True


# Which of the batch's events a replay delivers, by what became of them at the endpoint.
_OPEN = "t.status IN ('pending', 'delivering', 'retry', 'waiting')"
_CHOSEN = {
    None: f"b.id NOT IN (SELECT t.event_id FROM there t WHERE {_OPEN})",
    "failed": "b.id IN (SELECT t.event_id FROM there t WHERE t.status = 'failed')"
    " AND b.id NOT IN (SELECT t.event_id FROM there t"
    f" WHERE t.status = 'delivered' OR {_OPEN})",
    "missing": "b.id NOT IN (SELECT t.event_id FROM there t)",
}


def _finish_replay(replay_id: int) -> None:
    """A replay has come to its end, in the transaction of its last batch. The only place."""
    db.execute_sql(
        "UPDATE hookjetty.replays SET status = 'finished', finished_at = clock_timestamp()"
        " WHERE id = %s",
        (replay_id,),
    )
    operational.tell_of_replay(replay_id)


def _make_replay_tasks(
    events: list[int], replay_id: int, tenant_id: int, endpoint_id: int, *, active: bool
) -> None:
    """One task per event; an id that was taken (schema.sql, "ids") is tried again with another."""
    missing = events
    while missing:
        made = db.execute_sql(
            """
            INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready, lane,
                                         next_try_at, replay_id)
            SELECT hookjetty.new_id(), %s, %s, event_id,
                   CASE WHEN %s THEN 'pending' ELSE 'waiting' END, %s, 1,
                   CASE WHEN %s THEN clock_timestamp() END, %s
            FROM unnest(%s::bigint[]) AS event_id
            ON CONFLICT (id) DO NOTHING RETURNING event_id
            """,
            (tenant_id, endpoint_id, active, active, active, replay_id, missing),
        ).fetchall()
        missing = sorted(set(missing) - {row[0] for row in made})


# ---------------------------------------------------------------------------------- bulk retries


def bulk_retry_step() -> bool:
    """The next batch of one running bulk retry, the one that has come least far.

    The tasks and the cursor commit together. What is looked at is bounded, so a filter that lets
    few through makes more steps, not longer ones.
    """
    with db.atomic():
        row = db.execute_sql(
            "SELECT id FROM hookjetty.bulk_retries WHERE status = 'running'"
            " ORDER BY looked_at, id LIMIT 1 FOR UPDATE SKIP LOCKED"
        ).fetchone()
        if row is None:
            return False
        bulk_retry = BulkRetry.get_by_id(row[0])
        found = bulk_retries.batch(bulk_retry, BATCH)
        retried = _retry_in_bulk(found.task_ids, bulk_retry.wanted["status"])
        db.execute_sql(
            "UPDATE hookjetty.bulk_retries SET cursor_id = %s, looked_at = looked_at + %s,"
            " tasks = tasks + %s WHERE id = %s",
            (found.last_id or bulk_retry.upto_id, found.looked_at, retried, bulk_retry.id),
        )
        if found.looked_at < BATCH:
            _finish_bulk_retry(bulk_retry.id)
    return True


def _retry_in_bulk(task_ids: list[int], status: str) -> int:
    """Try tasks again that still have that status, in lane 1; returns how many they were.

    They start their schedule anew. Those of an endpoint that takes no tasks wait for it, on hold or
    not: a person's retry of one task is a probe, thousands of them would be a herd. Without its
    event, or with that event's data erased, there is nothing to deliver.

    Locked first and then changed, as everywhere (dispatcher/claim.py); one that somebody else holds
    is waited for, since the cursor will not come back. An endpoint that changes meanwhile is met by
    the claim, or by the sweep.
    """
    locked = db.execute_sql(
        """
        SELECT t.id, t.endpoint_id, t.event_id FROM hookjetty.tasks t
        WHERE t.id = ANY (%s::bigint[]) AND t.rare_status = %s ORDER BY t.id FOR UPDATE
        """,
        (task_ids, status),
    ).fetchall()
    takes = dict(
        db.execute_sql(
            "SELECT n.id, n.status = 'active' AND n.hold_until IS NULL FROM hookjetty.endpoints n"
            " WHERE n.id = ANY (%s::bigint[]) AND n.status <> 'deleted'",
            (list({endpoint_id for _, endpoint_id, _ in locked}),),
        ).fetchall()
    )
    deliverable = {
        event_id
        for (event_id,) in db.execute_sql(
            "SELECT e.id FROM hookjetty.events e"
            " WHERE e.id = ANY (%s::bigint[]) AND e.data IS NOT NULL",
            (list({event_id for _, _, event_id in locked}),),
        ).fetchall()
    }
    retried = {True: list[int](), False: list[int]()}
    for task_id, endpoint_id, event_id in locked:
        if endpoint_id in takes and event_id in deliverable:
            retried[takes[endpoint_id]].append(task_id)
    for is_ready, ids in retried.items():
        if ids:
            db.execute_sql(
                f"UPDATE hookjetty.tasks SET {_RETRIED[is_ready]}, step = 0, lane = 1,"
                " probe = false WHERE id = ANY (%s::bigint[])",
                (ids,),
            )
    return sum(map(len, retried.values()))


_RETRIED = {
    True: "status = 'retry', ready = true, next_try_at = clock_timestamp()",
    False: "status = 'waiting', ready = false, next_try_at = NULL",
}


def _finish_bulk_retry(bulk_retry_id: int) -> None:
    """A bulk retry has come to its end, in the transaction of its last batch. The only place."""
    db.execute_sql(
        "UPDATE hookjetty.bulk_retries SET status = 'finished', finished_at = clock_timestamp()"
        " WHERE id = %s",
        (bulk_retry_id,),
    )


# -------------------------------------------------------------------------------- event erasures


def event_erasure_step() -> bool:
    """Erase what was recorded about one erased event's tasks that were under way."""
    with db.atomic():
        row = db.execute_sql(
            "SELECT event_id, tenant_id FROM hookjetty.event_erasures WHERE again_at <= now()"
            " ORDER BY again_at LIMIT 1 FOR UPDATE SKIP LOCKED"
        ).fetchone()
        if row is None:
            return False
        event_id, tenant_id = row
        event = Event.get_or_none(Event.id == event_id, Event.tenant_id == tenant_id)
        if event is None or events.erase_answers(event):
            db.execute_sql("DELETE FROM hookjetty.event_erasures WHERE event_id = %s", (event_id,))
    return True


# -------------------------------------------------------------------------------------- settling


def settle_step() -> bool:
    """Move a batch of one endpoint's open tasks to where its status wants them.

    Whoever changes an endpoint's status or ends its hold writes only that row and sets
    ``settling``; the tasks follow here. Each query reads an index that holds nothing but such
    tasks, never the history. The tasks of an endpoint on hold stay where they are: the claim has
    those wait that it meets.

    In the first minute after a recovery the endpoint gets a batch when it has worked off the last
    one: a million tasks would all be made ready, and to wait again if it fails in that minute.
    """
    with db.atomic():
        row = db.execute_sql(
            """
            SELECT n.id, n.tenant_id, n.status, n.hold_until IS NOT NULL
            FROM hookjetty.endpoints n
            WHERE n.settling AND (
                n.status = 'active' AND n.recovered_at > now() - interval '1 min' AND EXISTS (
                    SELECT FROM hookjetty.tasks t
                    WHERE t.ready AND t.tenant_id = n.tenant_id AND t.endpoint_id = n.id)
            ) IS NOT TRUE
            ORDER BY n.updated_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
            """
        ).fetchone()
        if row is None:
            return False
        endpoint_id, tenant_id, status, on_hold = row
        if status == "active":
            moved = 0 if on_hold else _move("waiting", tenant_id, endpoint_id, to="ready")
        else:
            to = "canceled" if status == "deleted" else "waiting"
            moved = _move("ready", tenant_id, endpoint_id, to=to)
            moved = moved or _move("retry", tenant_id, endpoint_id, to=to)
            if status == "deleted":
                moved = moved or _move("waiting", tenant_id, endpoint_id, to=to)
        if not moved:
            db.execute_sql(
                "UPDATE hookjetty.endpoints SET settling = false WHERE id = %s", (endpoint_id,)
            )
    return True


# Which of an endpoint's open tasks, each by the index that knows them; and what they become.
_OPEN_TASKS = {
    "ready": "t.ready AND t.tenant_id = %(tenant)s AND t.endpoint_id = %(endpoint)s"
    " AND t.status IN ('pending', 'retry')",
    "retry": "t.rare_status = 'retry' AND NOT t.ready AND t.tenant_id = %(tenant)s"
    " AND t.endpoint_id = %(endpoint)s",
    "waiting": "t.rare_status = 'waiting' AND t.endpoint_id = %(endpoint)s"
    " ORDER BY t.lane, t.attempt_id NULLS FIRST, t.id",
}
_BECOMING = {
    "ready": "status = CASE tries WHEN 0 THEN 'pending' ELSE 'retry' END, ready = true,"
    " next_try_at = clock_timestamp()",
    "waiting": "status = 'waiting', ready = false, next_try_at = NULL",
    "canceled": "status = 'canceled', ready = false, next_try_at = NULL",
}


def _move(which: str, tenant_id: int, endpoint_id: int, *, to: str) -> int:
    """Move up to a batch of an endpoint's open tasks; returns how many."""
    return _update_locked(
        f"SELECT t.id FROM hookjetty.tasks t WHERE {_OPEN_TASKS[which]}",
        {"tenant": tenant_id, "endpoint": endpoint_id},
        _BECOMING[to],
    )


def _update_locked(select: str, parameters: dict[str, int], assignments: str) -> int:
    """Lock a batch of the tasks that ``select`` finds, then change them; returns how many.

    Two statements on purpose: dispatcher/claim.py tells what one would do to PostgreSQL 18. Those
    locked by others are skipped: they are being claimed or recorded, and what does that meets the
    new state itself, or a later run of the job does.
    """
    with db.atomic():
        cursor = db.execute_sql(f"{select} LIMIT {BATCH} FOR UPDATE SKIP LOCKED", parameters)
        found = [row[0] for row in cursor.fetchall()]
        if found:
            db.execute_sql(
                f"UPDATE hookjetty.tasks SET {assignments} WHERE id = ANY (%(found)s)",
                {"found": found},
            )
    return len(found)


def sweep() -> bool:
    """Find what the races left: a publish that read an endpoint's old status commits after the
    settling, and so does a claim that read it as on hold. A ready task of an endpoint that takes
    none is met by the claim; one that waits for an endpoint that takes its tasks, or is deleted, is
    met by nobody, so those endpoints settle again.

    Hops over the distinct endpoints with waiting tasks, however many each has.
    """
    db.execute_sql(
        """
        WITH RECURSIVE hop (endpoint_id) AS (
            (SELECT min(endpoint_id) FROM hookjetty.tasks WHERE rare_status = 'waiting')
            UNION ALL
            SELECT (SELECT min(t.endpoint_id) FROM hookjetty.tasks t
                    WHERE t.rare_status = 'waiting' AND t.endpoint_id > h.endpoint_id)
            FROM hop h WHERE h.endpoint_id IS NOT NULL)
        UPDATE hookjetty.endpoints SET settling = true
        WHERE id IN (SELECT endpoint_id FROM hop) AND NOT settling
          AND (status = 'deleted' OR (status = 'active' AND hold_until IS NULL))
        """
    )
    db.execute_sql(
        "DELETE FROM hookjetty.dispatchers WHERE seen_at < now() - %s * interval '1 second'",
        (SILENT_SECONDS,),
    )
    return settle_step()


# ------------------------------------------------------------------------- partitions, retention


def make_partitions() -> None:
    """Partitions of this week and the next eight (schema.sql, "partitions")."""
    made = db.execute_sql("SELECT hookjetty.make_partitions()").fetchone()[0]
    if made:
        log.info("partitions_made", partitions=made)


def drop_expired(retention_days: int) -> None:
    """Drop the weeks that ended before the retention, without blocking a claim.

    1. Open tasks whose event is about to go fail with ``expired``.
    2. The partition is detached CONCURRENTLY: a plain DROP waits for every query on the parent, and
       lets no new one begin meanwhile. What a crash left half detached is finished first.
    3. The detached table is dropped; nobody reads it any more.
    """
    with _only_one("drop_expired") as chosen:
        if not chosen:
            return
        expired = db.execute_sql(
            """
            SELECT parent, name, upto_id, detaching FROM hookjetty.partitions
            WHERE detaching OR upto_id <= hookjetty.id_at(now() - %s * interval '1 day')
            ORDER BY array_position(ARRAY['events', 'tasks', 'attempts'], parent), upto_id
            """,
            (retention_days,),
        ).fetchall()
        for parent, name, upto_id, detaching in expired:
            if parent == "events":
                until_done(partial(_expire_step, upto_id))
            how = "FINALIZE" if detaching else "CONCURRENTLY"
            db.execute_sql(
                f"ALTER TABLE hookjetty.{parent} DETACH PARTITION hookjetty.{name} {how}"
            )
            db.execute_sql(f"DROP TABLE hookjetty.{name}")
            log.info("partition_dropped", partition=name)


def _expire_step(upto_id: int) -> bool:
    """Fail a batch of open tasks whose event is below ``upto_id``; those under way are recorded
    first and expire when they are claimed again.
    """
    moved = _update_locked(
        # The second line is true of all of them, and lets the indexes of what is open answer.
        "SELECT t.id FROM hookjetty.tasks t WHERE t.event_id < %(upto)s"
        " AND (t.ready OR (t.due_at IS NOT NULL AND NOT t.ready) OR t.rare_status = 'waiting')"
        " AND t.status IN ('pending', 'retry', 'waiting')",
        {"upto": upto_id},
        "status = 'failed', failure = 'expired', ready = false, next_try_at = NULL",
    )
    return moved == BATCH


def prune_step(retention_days: int, audit_days: int) -> bool:
    """Forget a batch of what has served its time: answers after 24 hours, counts of quiet tenants,
    the keys of events that are gone, what people did long ago, replays and bulk retries when the
    weeks of their tasks are gone.
    """
    forgotten = 0
    for table, condition in (
        ("idempotency_keys", "created_at < now() - interval '24 hours'"),
        ("rate_limits", "counted_at < now() - interval '1 hour'"),
        ("event_keys", "event_id < hookjetty.id_at(now() - %(days)s * interval '1 day')"),
        ("replays", "finished_at < now() - (%(days)s + 7) * interval '1 day'"),
        ("bulk_retries", "finished_at < now() - (%(days)s + 7) * interval '1 day'"),
        ("audit", "id < hookjetty.id_at(now() - %(audit_days)s * interval '1 day')"),
    ):
        cursor = db.execute_sql(
            f"""
            DELETE FROM hookjetty.{table} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM hookjetty.{table} WHERE {condition} LIMIT {BATCH}
                FOR UPDATE SKIP LOCKED))
            """,
            {"days": retention_days, "audit_days": audit_days},
        )
        forgotten = max(forgotten, cursor.rowcount)
    return forgotten == BATCH


@contextmanager
def _only_one(name: str) -> Iterator[bool]:
    """Whether this process is the one to do it now, of all dispatchers. A session's lock, since
    DETACH … CONCURRENTLY cannot run in a transaction.
    """
    lock = f"hookjetty.{name}"
    (chosen,) = db.execute_sql("SELECT pg_try_advisory_lock(hashtext(%s))", (lock,)).fetchone()
    try:
        yield chosen
    finally:
        if chosen:
            db.execute_sql("SELECT pg_advisory_unlock(hashtext(%s))", (lock,))
