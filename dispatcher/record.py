"""Write down what came back: the attempts' rows and the tasks' next states, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from peewee import IntegrityError

from app.db import Statement, as_array, db, retrying
from dispatcher import operational
from dispatcher.claim import Claimed, Lease, end_leases
from dispatcher.retry import Decision, Delivered, GiveUp, RetryAt
from dispatcher.transport import Outcome


@dataclass(slots=True)
class Result:
    """One finished attempt: the task, what came back, and what was decided about it."""

    task: Claimed
    started_at: float  # by the database's clock, in Unix seconds
    outcome: Outcome
    decision: Decision


def record(results: Sequence[Result], over: Sequence[Lease] = ()) -> int:
    """Record a batch; returns how many of its tasks were still ours to change.

    ``over`` are the leases of which no task is left with this batch.

    Safe to repeat when a COMMIT's answer is lost, and harmless from a zombie whose leases have
    ended: the attempt's row is written whether or not the fence holds, the task's only if it does.
    """
    # In id order, so that two batches never wait for each other both ways.
    results = sorted(results, key=lambda result: result.task.task_id)
    try:
        return retrying(lambda: _record(results, over, _copy))
    except IntegrityError:
        # An attempt id is there already: `interrupted`, which a claim wrote because this process
        # was silent for too long, gives way to the truth; or our own COMMIT whose answer was lost.
        return retrying(lambda: _record(results, over, _merge))


def _record(
    results: Sequence[Result], over: Sequence[Lease], store: Callable[[Sequence[Result]], None]
) -> int:
    """One transaction. The updates prune partitions at run time, so they must not meet a row that
    changes under them (dispatcher/claim.py): in REPEATABLE READ such a row is an error 40001, and
    the batch is recorded again.

    What comes back for a task that was erased meanwhile leaves nothing: it is nobody's any more.
    If it was its event's data that was erased, what the receiver answered goes, too: so late,
    nobody looks again (``jobs.event_erasure_step``).
    """
    delivered = [each for each in results if isinstance(each.decision, Delivered)]
    others = [each for each in results if not isinstance(each.decision, Delivered)]
    held = 0
    with db.atomic(isolation_level="REPEATABLE READ"):
        store(results)
        if delivered:
            held += _DELIVERED.count(
                as_array(each.task.task_id for each in delivered),
                as_array(each.task.attempt_id for each in delivered),
            )
        if others:
            rows = _DECIDED(orjson.dumps([_decided(each) for each in others]).decode())
            held += len(rows)
            given_up = {each.task.task_id for each in others if isinstance(each.decision, GiveUp)}
            exhausted = [task_id for (task_id,) in rows if task_id in given_up]
            if exhausted:
                operational.tell_of_exhausted(exhausted)
        if held < len(results):
            task_ids = as_array(each.task.task_id for each in results)
            _FORGET_ERASED(task_ids)
            _FORGET_ANSWERS(task_ids)
        if over:
            end_leases(over)
    return held


_DELIVERED = Statement(
    "delivered",
    ("bigint[]", "bigint[]"),
    """
UPDATE hookjetty.tasks t
SET status = 'delivered', ready = false, probe = false, next_try_at = NULL, failure = NULL
FROM unnest($1, $2) AS r (task_id, attempt_id)
WHERE t.id = r.task_id AND t.attempt_id = r.attempt_id AND t.status = 'delivering'
""",
)

_DECIDED = Statement(
    "decided",
    ("text",),
    """
UPDATE hookjetty.tasks t
SET status = r.status, step = r.step, next_try_at = r.next_try_at, ready = false,
    probe = false, failure = r.failure
FROM json_to_recordset($1::json) AS r (task_id bigint, attempt_id bigint, status text,
                                       step smallint, next_try_at timestamptz, failure text)
WHERE t.id = r.task_id AND t.attempt_id = r.attempt_id AND t.status = 'delivering'
RETURNING t.id
""",
)

_FORGET_ERASED = Statement(
    "forget_erased",
    ("bigint[]",),
    """
DELETE FROM hookjetty.attempts a
WHERE a.task_id = ANY ($1) AND NOT EXISTS (SELECT FROM hookjetty.tasks t WHERE t.id = a.task_id)
""",
)

_FORGET_ANSWERS = Statement(
    "forget_answers",
    ("bigint[]",),
    """
UPDATE hookjetty.attempts a SET response_headers = NULL, response_body = NULL
FROM hookjetty.tasks t JOIN hookjetty.events e ON e.id = t.event_id
WHERE a.task_id = ANY ($1) AND t.id = a.task_id AND e.data IS NULL
""",
)


def _decided(result: Result) -> dict[str, object]:
    """What becomes of a task that was not delivered."""
    decision = result.decision
    assert not isinstance(decision, Delivered)
    row: dict[str, object] = {
        "task_id": result.task.task_id,
        "attempt_id": result.task.attempt_id,
        "failure": result.outcome.failure,
    }
    if isinstance(decision, GiveUp):
        return row | {"status": "failed", "step": decision.step}
    if isinstance(decision, RetryAt):
        at = decision.at.isoformat()
        return row | {"status": "retry", "step": decision.step, "next_try_at": at}
    return row | {"status": "waiting", "step": decision.step}


# ------------------------------------------------------------------------------- attempts' rows

_COLUMNS = """
    id, task_id, tenant_id, endpoint_id, try, started_at, status_code, failure, resolve_us,
    connect_us, tls_us, first_byte_us, total_us, address, truncated, resent, response_headers,
    response_body"""


def _values(result: Result) -> tuple[Any, ...]:
    """An attempt's row, in the order of the columns."""
    task, outcome = result.task, result.outcome
    return (
        task.attempt_id,
        task.task_id,
        task.target.tenant_id,
        task.target.endpoint_id,
        task.try_number,
        datetime.fromtimestamp(result.started_at, UTC),
        outcome.status_code,
        outcome.failure,
        outcome.resolve_us,
        outcome.connect_us,
        outcome.tls_us,
        outcome.first_byte_us,
        outcome.total_us,
        outcome.address,
        outcome.truncated,
        outcome.resent,
        outcome.response_headers,
        outcome.response_body,
    )


def _copy(results: Sequence[Result]) -> None:
    """Rows with new ids, in COPY's text format: a third of what rows of JSON cost PostgreSQL."""
    rows = "".join([_line(result) for result in results])
    db.copy(f"COPY hookjetty.attempts ({_COLUMNS}) FROM STDIN", rows)


def _line(result: Result) -> str:
    # None is what nothing else here is written as: numbers, words of ours, and what is escaped.
    *plain, headers, body = _values(result)
    text = "\t".join(map(str, plain)).replace("None", "\\N")
    return f"{text}\t{_escaped(headers)}\t{_escaped(body)}\n"


def _escaped(text: str | None) -> str:
    r"""A text in COPY's format: what would end the field or the row, written otherwise.

    >>> print(_escaped("one\ntwo\t\\"))
    one\ntwo\t\\
    """
    if text is None:
        return "\\N"
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _merge(results: Sequence[Result]) -> None:
    """Rows of which some may be there already. An attempt id can be taken by an attempt of another
    task (schema.sql, "ids"), once in millions: that one is stored under a new id.
    """
    names = [name.strip() for name in _COLUMNS.split(",")]
    rows = orjson.dumps([dict(zip(names, _values(each), strict=True)) for each in results]).decode()
    stored = {row[0] for row in _MERGE(rows)}
    strangers = [result.task.attempt_id for result in results]
    strangers = [attempt_id for attempt_id in strangers if attempt_id not in stored]
    if strangers:
        _STORE_UNDER_NEW_ID(rows, as_array(strangers))


_ROWS = """
SELECT * FROM json_to_recordset($1::json) AS r (
    id bigint, task_id bigint, tenant_id bigint, endpoint_id bigint, try integer,
    started_at timestamptz, status_code smallint, failure text, resolve_us integer,
    connect_us integer, tls_us integer, first_byte_us integer, total_us integer, address text,
    truncated boolean, resent boolean, response_headers text, response_body text)
"""

_MERGE = Statement(
    "merge",
    ("text",),
    f"""
INSERT INTO hookjetty.attempts AS a ({_COLUMNS})
SELECT {_COLUMNS} FROM ({_ROWS}) r
ON CONFLICT (id) DO UPDATE SET
    started_at = excluded.started_at, status_code = excluded.status_code,
    failure = excluded.failure, resolve_us = excluded.resolve_us,
    connect_us = excluded.connect_us, tls_us = excluded.tls_us,
    first_byte_us = excluded.first_byte_us, total_us = excluded.total_us,
    address = excluded.address, truncated = excluded.truncated, resent = excluded.resent,
    response_headers = excluded.response_headers, response_body = excluded.response_body
WHERE a.task_id = excluded.task_id
RETURNING a.id
""",
)

_STORE_UNDER_NEW_ID = Statement(
    "store_under_new_id",
    ("text", "bigint[]"),
    f"""
INSERT INTO hookjetty.attempts ({_COLUMNS})
SELECT hookjetty.new_id(), {_COLUMNS.partition(",")[2]} FROM ({_ROWS}) r WHERE r.id = ANY ($2)
""",
)
