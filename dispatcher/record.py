"""Write down what came back: the attempts' rows and the tasks' next states, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import orjson

from app.db import Statement, db, retrying
from dispatcher.claim import Claimed
from dispatcher.retry import Decision, Delivered, GiveUp, RetryAt
from dispatcher.transport import Outcome


@dataclass(slots=True)
class Result:
    """One finished attempt: the task, what came back, and what was decided about it."""

    task: Claimed
    started_at: datetime
    outcome: Outcome
    decision: Decision


def record(results: list[Result]) -> int:
    """Record a batch; returns how many of its tasks were still ours to change.

    Safe to repeat when a COMMIT's answer is lost, and harmless from a zombie whose leases have
    ended: the attempt's row is written whether or not the fence holds, the task's only if it does.
    """
    # In id order, which is the order the statement locks them in.
    results = sorted(results, key=lambda result: result.task.task_id)
    rows = orjson.dumps([_row(result) for result in results]).decode()
    return retrying(lambda: _record(rows))


def _record(rows: str) -> int:
    with db.atomic(isolation_level="REPEATABLE READ"):
        ((held, unrecorded),) = _RECORD(rows)
        if unrecorded:
            _RECORD_UNDER_NEW_ID(rows, unrecorded)
    return held


def _row(result: Result) -> dict[str, object]:
    """A result as the statement reads it. What is missing is null."""
    task, outcome, decision = result.task, result.outcome, result.decision
    row: dict[str, object] = {
        "task_id": task.task_id,
        "attempt_id": task.attempt_id,
        "tenant_id": task.tenant_id,
        "endpoint_id": task.endpoint_id,
        "try": task.try_number,
        "started_at": result.started_at.isoformat(),
        "status_code": outcome.status_code,
        "failure": outcome.failure,
        "resolve_us": outcome.resolve_us,
        "connect_us": outcome.connect_us,
        "tls_us": outcome.tls_us,
        "first_byte_us": outcome.first_byte_us,
        "total_us": outcome.total_us,
        "address": outcome.address,
        "response_headers": outcome.response_headers,
        "response_body": outcome.response_body,
        "truncated": outcome.truncated,
        "resent": outcome.resent,
    }
    if isinstance(decision, Delivered):
        row |= {"status": "delivered", "step": task.step}
    elif isinstance(decision, GiveUp):
        row |= {"status": "failed", "step": decision.step}
    elif isinstance(decision, RetryAt):
        row |= {"status": "retry", "step": decision.step, "next_try_at": decision.at.isoformat()}
        if decision.hold_until is not None:
            row["hold_until"] = decision.hold_until.isoformat()
    else:
        row |= {"status": "waiting", "step": decision.step, "gone": True}
    return row


# One statement, so one commit:
#
# stored     Every attempt gets its row, fence or not. `interrupted`, which a claim wrote because
#            this process was silent for too long, gives way to the truth.
# moved      The task changes only while this attempt still holds it.
# endpoints  Only where something changes: a 410 disables, a Retry-After holds.
#
# The update prunes partitions at run time, so it must not meet a row that changes under it (see
# dispatcher/claim.py): it runs in REPEATABLE READ, where such a row is an error
# 40001 and the batch is recorded again.
#
# An attempt id can be taken by an attempt of another task (schema.sql, "ids"): once in millions.
# Those are counted and stored under a new id by the second statement.
_ROWS = """
SELECT * FROM json_to_recordset($1::json) AS r (
    task_id bigint, attempt_id bigint, tenant_id bigint, endpoint_id bigint, try integer,
    status text, step smallint, next_try_at timestamptz, hold_until timestamptz, gone boolean,
    started_at timestamptz, status_code smallint, failure text, resolve_us integer,
    connect_us integer, tls_us integer, first_byte_us integer, total_us integer, address text,
    response_headers text, response_body text, truncated boolean, resent boolean)
"""

_ATTEMPT_COLUMNS = """
    task_id, tenant_id, endpoint_id, try, started_at, status_code, failure, resolve_us, connect_us,
    tls_us, first_byte_us, total_us, address, response_headers, response_body, truncated, resent"""

_RECORD = Statement(
    "record",
    ("text",),
    f"""
WITH r AS MATERIALIZED ({_ROWS}),
stored AS (
    INSERT INTO hookjetty.attempts AS a (id, {_ATTEMPT_COLUMNS})
    SELECT attempt_id, {_ATTEMPT_COLUMNS} FROM r
    ON CONFLICT (id) DO UPDATE SET
        started_at = excluded.started_at, status_code = excluded.status_code,
        failure = excluded.failure, resolve_us = excluded.resolve_us,
        connect_us = excluded.connect_us, tls_us = excluded.tls_us,
        first_byte_us = excluded.first_byte_us, total_us = excluded.total_us,
        address = excluded.address, response_headers = excluded.response_headers,
        response_body = excluded.response_body, truncated = excluded.truncated,
        resent = excluded.resent
    WHERE a.task_id = excluded.task_id
    RETURNING a.id
),
moved AS (
    UPDATE hookjetty.tasks t
    SET status = r.status, step = r.step, next_try_at = r.next_try_at, ready = false,
        failure = r.failure
    FROM r
    WHERE t.id = r.task_id AND t.attempt_id = r.attempt_id AND t.status = 'delivering'
    RETURNING 1
),
changed AS (
    SELECT r.endpoint_id, bool_or(r.gone) AS gone, max(r.hold_until) AS hold_until
    FROM r WHERE r.gone OR r.hold_until IS NOT NULL
    GROUP BY r.endpoint_id ORDER BY r.endpoint_id
),
endpoints AS (
    UPDATE hookjetty.endpoints n
    SET status = CASE WHEN c.gone THEN 'disabled' ELSE n.status END,
        reason = CASE WHEN c.gone THEN 'gone' ELSE n.reason END,
        settling = n.settling OR c.gone IS TRUE,
        hold_until = greatest(n.hold_until, c.hold_until),
        updated_at = now()
    FROM changed c WHERE n.id = c.endpoint_id AND n.status = 'active'
)
SELECT (SELECT count(*) FROM moved)::integer,
       ARRAY(SELECT attempt_id FROM r EXCEPT SELECT id FROM stored)
""",
)

_RECORD_UNDER_NEW_ID = Statement(
    "record_under_new_id",
    ("text", "bigint[]"),
    f"""
INSERT INTO hookjetty.attempts (id, {_ATTEMPT_COLUMNS})
SELECT hookjetty.new_id(), {_ATTEMPT_COLUMNS} FROM ({_ROWS}) r WHERE attempt_id = ANY ($2)
""",
)
