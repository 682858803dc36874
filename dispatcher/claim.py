"""Take due tasks for this process: pick and lock them, decide what becomes of each, lease them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from app.db import Statement, db


@dataclass(slots=True)
class Claimed:
    """A task that this process holds until its lease ends, with all that sending it needs."""

    task_id: int
    attempt_id: int  # the fence
    tenant_id: int
    endpoint_id: int
    event_id: int
    try_number: int
    step: int
    was_probe: bool  # of an endpoint on hold: does not burn a step
    wants_probe: bool  # as it was before the claim: restored by a release
    replay_id: int | None
    type: str
    data: str
    url: str
    secret: str
    retired_secrets: list[dict[str, str]]


class Cursor(NamedTuple):
    """The endpoint that was visited last; the next claim goes on behind it."""

    tenant_id: int
    endpoint_id: int


START = Cursor(0, 0)


@dataclass(slots=True)
class Claim:
    """What one claim brought. ``cut``: the limit ended it, not the end of the ready tasks."""

    tasks: list[Claimed]
    moved: int  # tasks it picked up, the claimed ones and those it settled otherwise
    cursor: Cursor
    cut: bool
    now: datetime | None  # the database's clock; None when nothing was picked


def claim(
    cursor: Cursor,
    busy: Mapping[int, int],
    *,
    limit: int,
    slots: int,
    steps: int,
    lease_seconds: float,
) -> Claim:
    """Claim up to ``limit`` ready tasks, fairly, starting behind ``cursor``.

    ``busy`` is how many tasks of each endpoint this process holds already: an endpoint gives at
    most its free ``slots``. ``steps`` is the length of the retry schedule.
    """
    with db.atomic():
        visits = _PICK(
            cursor.tenant_id, cursor.endpoint_id, list(busy), list(busy.values()), slots, limit
        )
        picked = [task_id for _, _, task_id in visits if task_id is not None]
        moved = _MOVE(picked, steps, lease_seconds) if picked else []
        now = moved[0][0] if moved else None
    cut = len(visits) == limit
    return Claim(
        tasks=[Claimed(*row[2:]) for row in moved if row[1] == "delivering"],
        moved=len(moved),
        cursor=Cursor(*visits[-1][:2]) if cut else START,
        cut=cut,
        now=now,
    )


# Which tasks, and their locks. Read it CTE by CTE:
#
# visit   Hops from endpoint to endpoint that has ready tasks, in (tenant, endpoint) order, from the
#         cursor on: a loose index scan, one index probe per hop however many tasks an endpoint has.
#         Evaluated lazily: it stops when the limit below is reached.
# (main)  Each visited endpoint's oldest ready tasks, live before replayed, as many as it has free
#         slots, locked. The LEFT JOIN makes an endpoint without a free slot or with only locked
#         tasks cost one row of the limit, so that the limit bounds the hops as well, and fewer
#         rows than the limit mean that the end of the index was reached.
_PICK = Statement(
    "pick",
    ("bigint", "bigint", "bigint[]", "integer[]", "integer", "integer"),
    """
WITH RECURSIVE visit (tenant_id, endpoint_id) AS (
    (SELECT t.tenant_id, t.endpoint_id FROM hookjetty.tasks t
     WHERE t.ready AND (t.tenant_id, t.endpoint_id) > ($1, $2)
     ORDER BY t.tenant_id, t.endpoint_id LIMIT 1)
    UNION ALL
    SELECT n.tenant_id, n.endpoint_id FROM visit v CROSS JOIN LATERAL (
        SELECT t.tenant_id, t.endpoint_id FROM hookjetty.tasks t
        WHERE t.ready AND (t.tenant_id, t.endpoint_id) > (v.tenant_id, v.endpoint_id)
        ORDER BY t.tenant_id, t.endpoint_id LIMIT 1) n
)
SELECT v.tenant_id, v.endpoint_id, t.id
FROM visit v LEFT JOIN LATERAL (
    SELECT t.id FROM hookjetty.tasks t
    WHERE t.ready AND t.tenant_id = v.tenant_id AND t.endpoint_id = v.endpoint_id
    ORDER BY t.lane, t.next_try_at
    LIMIT greatest(0, $5 - coalesce($4[array_position($3, v.endpoint_id)], 0))
    FOR UPDATE SKIP LOCKED) t ON true
LIMIT $6
""",
)

# What becomes of the picked tasks, which are locked and therefore as the first statement saw them:
#
# judged  Event and endpoint are joined LEFT: tasks whose event is gone would otherwise stay ready,
#         be picked by every claim and hide what is behind them.
# interrupted  A ready task that is `delivering` has lost its lease with its dispatcher. Nobody
#         knows whether the request was sent; the books say so.
# (main)  The one write. A claimed task gets a new attempt id (the fence), a lease, and its next
#         number; the others leave the ready index in the same pass.
#
# Why two statements and not one. `UPDATE … WHERE id IN (SELECT … LIMIT n FOR UPDATE SKIP LOCKED)`
# may run the sub-select again and lock more than n. And as CTEs of one statement the two crash
# PostgreSQL 18: when a row to be locked was changed a moment ago, its re-check (EvalPlanQual) left
# the partition pruning of the joins behind it pointing at freed memory. So nothing here locks rows
# that others may be changing and prunes partitions at run time in the same statement.
#
# The joins must stay nested loops over these few rows: the planner believed that `LIMIT $n` returns
# a tenth of the table and merge-joined the whole history (340 ms a claim instead of 12), so
# the sessions that run it have their plans pinned (app/db.py).
_MOVE = Statement(
    "move",
    ("bigint[]", "integer", "float8"),
    """
WITH judged AS MATERIALIZED (
    SELECT t.id, t.tenant_id, t.endpoint_id, t.attempt_id, t.tries, t.probe, n.hold_until,
           t.status = 'delivering' AS lost,
           n.hold_until IS NOT NULL AND n.hold_until > clock_timestamp() AS held,
           e.type, e.data::text AS data, n.url_key, n.secret, n.retired_secrets,
           CASE WHEN n.id IS NULL OR n.status = 'deleted' THEN 'canceled'
                WHEN e.id IS NULL THEN 'failed'
                WHEN t.status = 'delivering' AND t.step + 1 >= $2 THEN 'failed'
                WHEN n.status <> 'active' THEN 'waiting'
                WHEN n.hold_until > clock_timestamp() AND NOT t.probe THEN 'retry'
                ELSE 'delivering' END AS verdict
    FROM hookjetty.tasks t
    LEFT JOIN hookjetty.events e ON e.id = t.event_id
    LEFT JOIN hookjetty.endpoints n ON n.id = t.endpoint_id
    WHERE t.id = ANY ($1)
),
interrupted AS (
    INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try, failure)
    SELECT j.attempt_id, j.id, j.tenant_id, j.endpoint_id, j.tries, 'interrupted'
    FROM judged j WHERE j.lost
    ON CONFLICT (id) DO NOTHING
)
UPDATE hookjetty.tasks t
SET status = CASE WHEN j.verdict = 'retry' AND t.tries = 0 THEN 'pending' ELSE j.verdict END,
    ready = false,
    probe = t.probe AND j.verdict <> 'delivering',
    step = t.step + j.lost::integer,
    tries = t.tries + (j.verdict = 'delivering')::integer,
    attempt_id = CASE j.verdict WHEN 'delivering' THEN hookjetty.new_id() ELSE t.attempt_id END,
    next_try_at = CASE j.verdict
        WHEN 'delivering' THEN clock_timestamp() + $3 * interval '1 second'
        WHEN 'retry' THEN j.hold_until END,
    failure = CASE WHEN j.verdict = 'failed' AND j.type IS NULL THEN 'expired'
                   WHEN j.lost THEN 'interrupted'
                   ELSE t.failure END
FROM judged j WHERE t.id = j.id
RETURNING clock_timestamp(), j.verdict, t.id, t.attempt_id, t.tenant_id, t.endpoint_id, t.event_id,
          t.tries, t.step, j.held AND j.probe, j.probe, t.replay_id, j.type, j.data, j.url_key,
          j.secret, j.retired_secrets
""",
)


def promote(limit: int = 1000) -> int:
    """Make ready what has come due: retries, ended holds, expired leases. Returns how many.

    They are not in the claim's index before, so tasks for tomorrow cost a claim nothing. As many
    as ``limit`` means that there may be more.
    """
    with db.atomic():
        due = [row[0] for row in _DUE(limit)]
        if due:
            _MAKE_READY(due)
    return len(due)


_DUE = Statement(
    "due",
    ("integer",),
    """
SELECT t.id FROM hookjetty.tasks t
WHERE t.next_try_at IS NOT NULL AND NOT t.ready AND t.next_try_at <= clock_timestamp()
ORDER BY t.next_try_at LIMIT $1
FOR UPDATE SKIP LOCKED
""",
)
_MAKE_READY = Statement(
    "make_ready", ("bigint[]",), "UPDATE hookjetty.tasks SET ready = true WHERE id = ANY ($1)"
)


def seconds_to_next_due() -> float | None:
    """How long until the next promotion; None when nothing is planned. Negative: overdue."""
    rows = _NEXT_DUE()
    return rows[0][0] if rows else None


_NEXT_DUE = Statement(
    "next_due",
    (),
    """
SELECT extract(epoch FROM t.next_try_at - clock_timestamp())::float8 FROM hookjetty.tasks t
WHERE t.next_try_at IS NOT NULL AND NOT t.ready
ORDER BY t.next_try_at LIMIT 1
""",
)


def release(tasks: list[Claimed]) -> None:
    """Give back what was claimed and never started: ready at once, as if never claimed."""
    with db.atomic():
        _LOCK([task.task_id for task in tasks])
        _RELEASE(
            [task.task_id for task in tasks],
            [task.attempt_id for task in tasks],
            [task.wants_probe for task in tasks],
        )


_LOCK = Statement(
    "lock",
    ("bigint[]",),
    "SELECT 1 FROM hookjetty.tasks WHERE id = ANY ($1) ORDER BY id FOR UPDATE",
)
_RELEASE = Statement(
    "release",
    ("bigint[]", "bigint[]", "boolean[]"),
    """
UPDATE hookjetty.tasks t
SET status = CASE t.tries WHEN 1 THEN 'pending' ELSE 'retry' END, ready = true,
    next_try_at = clock_timestamp(), tries = t.tries - 1, attempt_id = NULL, probe = r.probe
FROM unnest($1, $2, $3) AS r (task_id, attempt_id, probe)
WHERE t.id = r.task_id AND t.attempt_id = r.attempt_id AND t.status = 'delivering'
""",
)
