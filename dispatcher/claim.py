"""Take due tasks for this process: visit endpoints, take what each may give, lease it.

A claim is a few small statements, each of them for a whole batch, and decides in between:

    visit      which endpoints have ready tasks, from the cursor on           (no locks)
    targets    those endpoints' rows: status, hold, slots, URL, secret        (no locks)
               -> ``fairness.Places.allot`` says how many each may give
    take       each one's oldest ready tasks, locked
               -> ``_verdict`` says what becomes of each
    deliver    a lease, a fence and a number for those that are to be sent, with their events
    settle     the others leave the queue: their endpoint is paused, their event is gone …

Why not one statement. `UPDATE … WHERE id IN (SELECT … LIMIT n FOR UPDATE SKIP LOCKED)` may run the
sub-select again and lock more than n. And CTEs of one statement that lock and join crash PostgreSQL
18: when a row to be locked was changed a moment ago, its re-check (EvalPlanQual) leaves the
partition pruning of the joins pointing at freed memory. So nothing here locks rows that others may
be changing and prunes partitions at run time in the same statement.

The planner believed that ``LIMIT $n`` returns a tenth of the table and merge-joined the whole
history (340 ms a claim instead of 12), so the sessions that run these statements have their plans
pinned (app/db.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from app.db import Statement, as_array, db, retrying
from dispatcher import operational
from dispatcher.fairness import Candidate

# A claim visits at most so many endpoints, about 15 us each.
HOPS = 125
# A hold that ends so soon leaves the tasks where they are.
SHORT_HOLD_SECONDS = 10.0
# Of an endpoint that takes none at present, so many tasks at a time.
PUT_ASIDE = 100


@dataclass(slots=True)
class Target:
    """An endpoint as a claim found it."""

    endpoint_id: int
    tenant_id: int
    status: str
    url: str
    secret: str
    retired_secrets: list[dict[str, str]]
    slots: int  # fewer for a while after a recovery
    # Of this endpoint alone; None: as the settings say.
    timeout_seconds: float | None
    retry_schedule: list[float] | None
    # Until its hold ends, which may be overdue; None: it is not on hold.
    hold_seconds: float | None
    # It has failed lately: a success is news.
    unwell: bool


@dataclass(slots=True)
class Lease:
    """What one claim holds until its lease ends: its row goes when no task is ``left``."""

    id: int
    left: int


@dataclass(slots=True)
class Claimed:
    """A task that this process holds until its lease ends, with all that sending it needs."""

    task_id: int
    attempt_id: int  # the fence
    event_id: int
    try_number: int
    step: int
    was_probe: bool  # of an endpoint on hold: does not burn a step
    wants_probe: bool  # as it was before the claim: restored by a release
    previous_attempt_id: int | None  # likewise
    replay_id: int | None
    type: str
    data: str
    target: Target
    lease: Lease


class Cursor(NamedTuple):
    """The endpoint that was visited last; the next claim goes on behind it."""

    tenant_id: int
    endpoint_id: int


START = Cursor(0, 0)


@dataclass(slots=True)
class Claim:
    """What one claim brought."""

    tasks: list[Claimed] = field(default_factory=list)
    moved: int = 0  # tasks it picked up, the claimed ones and those it settled otherwise
    now: float | None = None  # the database's clock, in Unix seconds; None: it was not asked
    # By endpoint: how many tasks were allotted and given, and when the last one was due.
    given: dict[int, tuple[int, int, float]] = field(default_factory=dict)


Allot = Callable[[Sequence[Candidate]], Sequence[int]]


def visit(cursor: Cursor, full_tenants: Sequence[int] = (), hops: int = HOPS) -> list[Cursor]:
    """The endpoints with ready tasks behind the cursor; fewer than ``hops``: the end was reached.

    Of ``full_tenants``, which may not have more places at present, only one endpoint is visited.
    """
    rows = _VISIT(cursor.tenant_id, cursor.endpoint_id, as_array(full_tenants), hops)
    return [Cursor(*row) for row in rows]


# Hops from endpoint to endpoint that has ready tasks, in (tenant, endpoint) order: a loose index
# scan, one index probe per hop however many tasks an endpoint has.
_VISIT = Statement(
    "visit",
    ("bigint", "bigint", "bigint[]", "integer"),
    """
WITH RECURSIVE visit (tenant_id, endpoint_id) AS (
    (SELECT t.tenant_id, t.endpoint_id FROM hookjetty.tasks t
     WHERE t.ready AND (t.tenant_id, t.endpoint_id) > ($1, $2)
     ORDER BY t.tenant_id, t.endpoint_id LIMIT 1)
    UNION ALL
    SELECT n.tenant_id, n.endpoint_id FROM visit v CROSS JOIN LATERAL (
        SELECT t.tenant_id, t.endpoint_id FROM hookjetty.tasks t
        WHERE t.ready AND (t.tenant_id, t.endpoint_id) > (
            v.tenant_id,
            CASE WHEN v.tenant_id = ANY ($3) THEN 9223372036854775807 ELSE v.endpoint_id END)
        ORDER BY t.tenant_id, t.endpoint_id LIMIT 1) n
)
SELECT tenant_id, endpoint_id FROM visit LIMIT $4
""",
)


def claim(
    visited: Sequence[Cursor],
    allot: Allot,
    *,
    slots: int,
    steps: int,
    lease_seconds: float,
    floors: Mapping[int, float] | None = None,
) -> Claim:
    """Claim what ``allot`` lets the visited endpoints give.

    ``slots`` and ``steps`` (of the retry schedule) are those of endpoints that have none of their
    own. ``floors`` bound the scans from below: no ready task of that endpoint was due before that
    moment (Unix seconds), as far as is known, and what was claimed since need not be looked at. An
    old snapshot, held by anybody, keeps the entries of claimed tasks in the index.
    """
    result = Claim()
    if not visited:
        return result
    result.now, targets = _find_targets(visited, slots)
    takes = _takes(targets, allot)
    if not takes:
        return result
    floors = floors or {}
    with db.atomic():
        rows = _TAKE(
            as_array(target.tenant_id for target, _ in takes),
            as_array(target.endpoint_id for target, _ in takes),
            as_array(most for _, most in takes),
            as_array(floors.get(target.endpoint_id, 0) for target, _ in takes),
        )
        if rows:
            by_id = {target.endpoint_id: target for target, _ in takes}
            _move([_Taken(*row) for row in rows], by_id, result, steps, lease_seconds)
    result.given = _count_given(takes, rows)
    return result


def _find_targets(visited: Sequence[Cursor], slots: int) -> tuple[float | None, list[Target]]:
    """The database's clock, and the endpoints' rows in the order they were visited."""
    endpoint_ids = as_array(each.endpoint_id for each in visited)
    found = {row[1]: row for row in _TARGETS(endpoint_ids, slots)}
    now: float | None = None
    targets = []
    for tenant_id, endpoint_id in visited:
        row = found.get(endpoint_id)
        if row is None:  # no verb of ours removes a row, but then its tasks must not stay
            gone = Target(endpoint_id, tenant_id, "deleted", "", "", [], 0, None, None, None, False)
            targets.append(gone)
            continue
        now = row[0]
        _, _, status, url, secret, retired, slots_now, timeout, schedule, hold, unwell = row
        targets.append(
            Target(
                endpoint_id,
                tenant_id,
                status,
                url,
                secret,
                orjson.loads(retired) if retired else [],
                slots_now,
                timeout,
                schedule,
                hold,
                unwell,
            )
        )
    return now, targets


_TARGETS = Statement(
    "targets",
    ("bigint[]", "integer"),
    """
SELECT extract(epoch FROM clock_timestamp())::float8, n.id, n.status, n.url_key, n.secret,
       nullif(n.retired_secrets, '[]')::text,
       hookjetty.ramped(coalesce(n.slots, $2), n.recovered_at, clock_timestamp()),
       n.timeout_seconds, n.retry_schedule,
       extract(epoch FROM n.hold_until - clock_timestamp())::float8,
       n.failures > 0 OR n.hold_until IS NOT NULL
FROM hookjetty.endpoints n WHERE n.id = ANY ($1)
""",
)


def _takes(targets: Sequence[Target], allot: Allot) -> list[tuple[Target, int]]:
    """Which endpoints give tasks, and at most how many.

    Those of endpoints that take none at present leave the queue, some at a time; only probes, which
    come first, pass a hold.
    """
    usable = [each for each in targets if each.status == "active" and each.hold_seconds is None]
    candidates = [Candidate(each.tenant_id, each.endpoint_id, each.slots) for each in usable]
    takes = list(zip(usable, allot(candidates), strict=True))
    for each in targets:
        if each.status != "active" or (
            each.hold_seconds is not None and each.hold_seconds > SHORT_HOLD_SECONDS
        ):
            takes.append((each, PUT_ASIDE))
    return [(target, most) for target, most in takes if most]


class _Taken(NamedTuple):
    """A locked task."""

    task_id: int
    endpoint_id: int
    event_id: int
    is_lost: bool  # it was being delivered, and its lease ended with its dispatcher
    attempt_id: int | None
    tries: int
    step: int
    wants_probe: bool
    replay_id: int | None
    due: float


# Each endpoint's oldest ready tasks: probes, then live ones, then replayed ones. A floor is for
# live ones only. (due_at is -infinity for a probe, which a floor would hide until the next claim
# without one: an endpoint on hold never has a floor.)
_TAKE = Statement(
    "take",
    ("bigint[]", "bigint[]", "integer[]", "float8[]"),
    """
SELECT t.* FROM unnest($1, $2, $3, $4) AS x (tenant_id, endpoint_id, most, floor)
CROSS JOIN LATERAL (
    SELECT t.id, t.endpoint_id, t.event_id, t.status = 'delivering', t.attempt_id, t.tries, t.step,
           t.probe, t.replay_id, extract(epoch FROM t.next_try_at)::float8
    FROM hookjetty.tasks t
    WHERE t.ready AND t.tenant_id = x.tenant_id AND t.endpoint_id = x.endpoint_id
      AND (t.lane, t.due_at) >= (0::smallint,
          CASE WHEN x.floor > 0 THEN to_timestamp(x.floor) ELSE '-infinity' END)
    ORDER BY t.lane, t.due_at
    LIMIT x.most
    FOR UPDATE SKIP LOCKED) t
""",
)


def _move(
    taken: Sequence[_Taken],
    targets: Mapping[int, Target],
    result: Claim,
    steps: int,
    lease_seconds: float,
) -> None:
    """Write what becomes of the locked tasks: most are leased, the others leave the queue."""
    chosen: dict[int, _Taken] = {}
    settled: list[tuple[int, str, str | None]] = []
    lost: list[int] = []
    for task in taken:
        verdict = _verdict(task, targets[task.endpoint_id], steps)
        if task.is_lost:
            lost.append(task.task_id)
        if verdict == "delivering":
            chosen[task.task_id] = task
        else:
            settled.append((task.task_id, verdict, "interrupted" if task.is_lost else None))
    if lost:
        # Nobody knows whether the request was sent; the books say so.
        _INTERRUPTED(as_array(lost))
    if chosen:
        assert result.now is not None
        _deliver(chosen, targets, result, result.now + lease_seconds)
    # Those that found no event, or one whose data was erased: they would stay ready, be taken by
    # every claim and hide what is behind them.
    settled += [(task_id, "failed", "expired") for task_id in chosen]
    if settled:
        _SETTLE(
            as_array(task_id for task_id, _, _ in settled),
            [verdict for _, verdict, _ in settled],
            [failure for _, _, failure in settled],
        )
        exhausted = [task_id for task_id, *left in settled if left == ["failed", "interrupted"]]
        if exhausted:
            operational.tell_of_exhausted(exhausted)
    result.moved = len(taken)


def _deliver(
    chosen: dict[int, _Taken], targets: Mapping[int, Target], result: Claim, ends_at: float
) -> None:
    """Lease the chosen tasks until that time; leaves in ``chosen`` those without data."""
    rows = _DELIVER(as_array(chosen), ends_at)
    if not rows:
        return
    ((lease_id,),) = _LEASE(ends_at, as_array(row[0] for row in rows))
    lease = Lease(lease_id, len(rows))
    for task_id, attempt_id, type_, data in rows:
        task = chosen.pop(task_id)
        target = targets[task.endpoint_id]
        result.tasks.append(
            Claimed(
                task_id,
                attempt_id,
                task.event_id,
                task.tries + 1,
                task.step + task.is_lost,
                task.wants_probe and target.hold_seconds is not None,
                task.wants_probe,
                task.attempt_id,
                task.replay_id,
                type_,
                data,
                target,
                lease,
            )
        )


def _verdict(task: _Taken, target: Target, steps: int) -> str:
    """The status that a taken task gets."""
    if target.status == "deleted":
        return "canceled"
    if task.is_lost and task.step + 1 >= len(target.retry_schedule or range(steps)):
        return "failed"
    if target.status != "active" or (target.hold_seconds is not None and not task.wants_probe):
        return "waiting"
    return "delivering"


_INTERRUPTED = Statement(
    "interrupted",
    ("bigint[]",),
    """
INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try, failure)
SELECT t.attempt_id, t.id, t.tenant_id, t.endpoint_id, t.tries, 'interrupted'
FROM hookjetty.tasks t WHERE t.id = ANY ($1)
ON CONFLICT (id) DO NOTHING
""",
)

_DELIVER = Statement(
    "deliver",
    ("bigint[]", "float8"),
    """
UPDATE hookjetty.tasks t
SET status = 'delivering', ready = false, tries = t.tries + 1,
    step = t.step + (t.status = 'delivering')::integer,
    failure = CASE WHEN t.status = 'delivering' THEN 'interrupted' ELSE t.failure END,
    attempt_id = hookjetty.new_id(), next_try_at = to_timestamp($2)
FROM hookjetty.events e WHERE t.id = ANY ($1) AND e.id = t.event_id AND e.data IS NOT NULL
RETURNING t.id, t.attempt_id, e.type, e.data::text
""",
)

_LEASE = Statement(
    "lease",
    ("float8", "bigint[]"),
    """
INSERT INTO hookjetty.leases (id, ends_at, task_ids)
VALUES (hookjetty.new_id(), to_timestamp($1), $2) RETURNING id
""",
)

_SETTLE = Statement(
    "settle",
    ("bigint[]", "text[]", "text[]"),
    """
UPDATE hookjetty.tasks t
SET status = r.verdict, ready = false, next_try_at = NULL,
    step = t.step + (t.status = 'delivering')::integer, failure = coalesce(r.failure, t.failure)
FROM unnest($1, $2, $3) AS r (task_id, verdict, failure) WHERE t.id = r.task_id
""",
)


def _count_given(
    takes: Sequence[tuple[Target, int]], rows: Sequence[tuple[object, ...]]
) -> dict[int, tuple[int, int, float]]:
    given = {target.endpoint_id: (most, 0, 0.0) for target, most in takes}
    for row in rows:
        endpoint_id: int = row[1]  # type: ignore[assignment]
        due: float = row[9]  # type: ignore[assignment]
        most, count, latest = given[endpoint_id]
        given[endpoint_id] = (most, count + 1, max(latest, due))
    return given


def promote(limit: int = 1000) -> int:
    """Make ready what has come due: retries, ended holds, expired leases. Returns how many.

    They are not in the claim's index before, so tasks for tomorrow cost a claim nothing. As many
    as ``limit`` means that there may be more.

    statement_timestamp(), since an index cannot be searched for clock_timestamp(), which is another
    value for each row: all that is planned for later would be read.
    """
    with db.atomic():
        due = [row[0] for row in _DUE(limit)]
        if due:
            _MAKE_READY(as_array(due))
    return len(due) + _expire_leases()


_DUE = Statement(
    "due",
    ("integer",),
    """
SELECT t.id FROM hookjetty.tasks t
WHERE t.due_at IS NOT NULL AND NOT t.ready AND t.due_at <= statement_timestamp()
ORDER BY t.due_at LIMIT $1
FOR UPDATE SKIP LOCKED
""",
)
_MAKE_READY = Statement(
    "make_ready", ("bigint[]",), "UPDATE hookjetty.tasks SET ready = true WHERE id = ANY ($1)"
)


def _expire_leases() -> int:
    """What a dispatcher held that is gone is due again. Returns how many tasks that are.

    In REPEATABLE READ, where a task that a zombie is recording in this moment is an error 40001.
    """
    return retrying(_end_expired_leases) if _EXPIRED() else 0


def _end_expired_leases() -> int:
    with db.atomic(isolation_level="REPEATABLE READ"):
        leases = _LOCK_EXPIRED()
        rows = _MAKE_EXPIRED_READY(as_array(task_id for _, tasks in leases for task_id in tasks))
        _END_LEASES(as_array(lease_id for lease_id, _ in leases))
    return len(rows)


_EXPIRED = Statement(
    "expired", (), "SELECT 1 FROM hookjetty.leases WHERE ends_at <= statement_timestamp() LIMIT 1"
)
_LOCK_EXPIRED = Statement(
    "lock_expired",
    (),
    """
SELECT l.id, l.task_ids FROM hookjetty.leases l WHERE l.ends_at <= statement_timestamp()
ORDER BY l.ends_at LIMIT 4 FOR UPDATE SKIP LOCKED
""",
)
_MAKE_EXPIRED_READY = Statement(
    "make_expired_ready",
    ("bigint[]",),
    """
UPDATE hookjetty.tasks SET ready = true
WHERE id = ANY ($1) AND status = 'delivering' AND next_try_at <= statement_timestamp()
  AND NOT ready
RETURNING 1
""",
)
_END_LEASES = Statement(
    "end_leases", ("bigint[]",), "DELETE FROM hookjetty.leases WHERE id = ANY ($1)"
)


def count_off(tasks: Sequence[Claimed]) -> list[Lease]:
    """Count tasks off their leases; returns the leases that have none left."""
    over = []
    for task in tasks:
        task.lease.left -= 1
        if not task.lease.left:
            over.append(task.lease)
    return over


def end_leases(leases: Sequence[Lease]) -> None:
    """Forget leases with no task left; in the transaction that recorded the last of them."""
    _END_LEASES(as_array(lease.id for lease in leases))


def seconds_to_next_due() -> float | None:
    """How long until the next promotion; None when nothing is planned. Negative: overdue."""
    seconds: float | None = _NEXT_DUE()[0][0]
    return seconds


_NEXT_DUE = Statement(
    "next_due",
    (),
    """
SELECT extract(epoch FROM least(
    (SELECT t.due_at FROM hookjetty.tasks t WHERE t.due_at IS NOT NULL AND NOT t.ready
     ORDER BY t.due_at LIMIT 1),
    (SELECT l.ends_at FROM hookjetty.leases l ORDER BY l.ends_at LIMIT 1),
    (SELECT n.hold_until FROM hookjetty.endpoints n WHERE n.hold_until IS NOT NULL
     ORDER BY n.hold_until LIMIT 1)) - clock_timestamp())::float8
""",
)


def release(tasks: Sequence[Claimed], over: Sequence[Lease] = ()) -> None:
    """Give back what was claimed and never started: ready at once, as if never claimed.

    ``over`` are the leases of which no task is left with these.
    """
    with db.atomic():
        _LOCK(as_array(task.task_id for task in tasks))
        _RELEASE(
            as_array(task.task_id for task in tasks),
            as_array(task.attempt_id for task in tasks),
            [task.wants_probe for task in tasks],
            [task.previous_attempt_id for task in tasks],
        )
        if over:
            end_leases(over)


_LOCK = Statement(
    "lock",
    ("bigint[]",),
    "SELECT 1 FROM hookjetty.tasks WHERE id = ANY ($1) ORDER BY id FOR UPDATE",
)
_RELEASE = Statement(
    "release",
    ("bigint[]", "bigint[]", "boolean[]", "bigint[]"),
    """
UPDATE hookjetty.tasks t
SET status = CASE t.tries WHEN 1 THEN 'pending' ELSE 'retry' END, ready = true,
    next_try_at = clock_timestamp(), tries = t.tries - 1, attempt_id = r.previous, probe = r.probe
FROM unnest($1, $2, $3, $4) AS r (task_id, attempt_id, probe, previous)
WHERE t.id = r.task_id AND t.attempt_id = r.attempt_id AND t.status = 'delivering'
""",
)
