"""Endpoints' health in the tables: note what came back, and end the holds that have run out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import structlog

from app.db import Statement, db, retrying
from app.models import wake
from dispatcher import operational
from dispatcher.health import Health, Heard, after, at_end_of_hold, sends_probe
from dispatcher.operational import OfEndpoint

log = structlog.get_logger()

# Holds ended by one transaction: bounds the locks it holds.
BATCH = 100

# An endpoint before and after.
Change = tuple[int, Health, Health]


def note(heard: Sequence[Heard], rng: Random, *, jitter: float = 0.2) -> set[int]:
    """Write down what the results, in the order they ended, say about their endpoints.

    Returns which of those endpoints are unwell now: their next results matter, successes too. Only
    rows that change are written. In a transaction of its own, after the attempts are recorded: an
    endpoint's row is locked for a moment, and by many dispatchers, so nothing else waits behind it.
    A crash in between is harmless. A failure that was not counted is followed by another one, or
    there was no need to count it; a probe that was not heard of is followed by the next.
    """
    return retrying(lambda: _note(heard, rng, jitter))


def _note(heard: Sequence[Heard], rng: Random, jitter: float) -> set[int]:
    unwell: set[int] = set()
    changes: list[Change] = []
    with db.atomic():
        for endpoint_id, now, *columns in _LOCK(sorted({each.endpoint_id for each in heard})):
            before = Health(*columns)
            mine = (each for each in heard if each.endpoint_id == endpoint_id)
            health = after(before, mine, now, rng, jitter=jitter)
            if health is not before:
                changes.append((endpoint_id, before, health))
            if health.is_unwell:
                unwell.add(endpoint_id)
        _write(changes)
    _log(changes)
    return unwell


def end_due(lease_seconds: float) -> int:
    """End the holds that have run out, or release a probe. Returns how many; 0 costs one probe of
    an index.

    A probe is one of the tasks that wait, made ready past the hold, and the hold goes on until its
    lease has ended for certain. Many dispatchers may call this at once: an endpoint whose row
    another one has locked is left to that one.
    """
    if not _OVER(1):
        return 0
    with db.atomic():
        over = {
            endpoint_id: (now, Health(*columns)) for endpoint_id, now, *columns in _LOCK_OVER(BATCH)
        }
        sending = [endpoint_id for endpoint_id, (_, health) in over.items() if sends_probe(health)]
        probes, undecided = _release_probes(sending) if sending else (set(), set())
        changes: list[Change] = []
        for endpoint_id, (now, health) in over.items():
            if endpoint_id not in undecided:
                ended = at_end_of_hold(health, now, endpoint_id in probes, lease_seconds)
                changes.append((endpoint_id, health, ended))
        _write(changes)
    _log(changes)
    return len(changes)


def _release_probes(endpoint_ids: list[int]) -> tuple[set[int], set[int]]:
    """Release a probe for each endpoint that has none on its way.

    Returns the endpoints that have one now, and those of which nothing can be said yet: all of
    their tasks are locked by others. What remains has no task to probe with. A short hold leaves
    tasks ready instead of having them wait (dispatcher/claim.py), so those are looked at too.
    """
    probes = {row[0] for row in _ON_THEIR_WAY(endpoint_ids)}
    chosen: list[int] = []
    for choose in (_TRIED_LONGEST_AGO, _READY_LONGEST):
        missing = [each for each in endpoint_ids if each not in probes]
        if missing:
            found = choose(missing)
            chosen += [task_id for _, task_id in found]
            probes |= {endpoint_id for endpoint_id, _ in found}
    if chosen:
        _RELEASE_PROBES(chosen)
    missing = [each for each in endpoint_ids if each not in probes]
    return probes, {row[0] for row in _WITH_TASKS(missing)} if missing else set()


def _write(changes: list[Change]) -> None:
    if not changes:
        return
    health = [new for _, _, new in changes]
    settles = [_settles(old, new) for _, old, new in changes]
    _WRITE(
        [endpoint_id for endpoint_id, _, _ in changes],
        [each.status for each in health],
        [each.reason for each in health],
        [each.failures for each in health],
        [each.failing_since for each in health],
        [each.hold_until for each in health],
        [each.recovered_at for each in health],
        settles,
    )
    if any(settles):
        wake()
    news = [each for change in changes if (each := _news(*change))]
    if news:
        operational.tell_of_endpoints(news)


def _settles(old: Health, new: Health) -> bool:
    """Whether the endpoint's open tasks do not fit it any more. When a hold begins, the claim has
    those wait that it meets.
    """
    return old.status != new.status or (old.is_on_hold and not new.is_on_hold)


def _news(endpoint_id: int, old: Health, new: Health) -> OfEndpoint | None:
    """What its tenant is told: the end of the matter, not each further hold and probe."""
    if new.status != old.status:
        return OfEndpoint(endpoint_id, operational.DISABLED, new.failing_since)
    if new.recovered_at != old.recovered_at:
        return OfEndpoint(endpoint_id, operational.RECOVERED, old.failing_since)
    return None


def _log(changes: list[Change]) -> None:
    """What an operator wants to know of, and not each further probe."""
    for endpoint_id, old, new in changes:
        told = log.bind(endpoint=f"ep_{endpoint_id}")
        if new.status != old.status:
            told.warning("endpoint_disabled", reason=new.reason, failures=new.failures)
        elif new.is_on_hold and not old.is_on_hold:
            told.info("endpoint_on_hold", until=str(new.hold_until), failures=new.failures)
        elif new.recovered_at != old.recovered_at:
            told.info("endpoint_recovered", failures=old.failures)
        elif old.is_on_hold and not new.is_on_hold:
            told.info("hold_ended", failures=new.failures)


_COLUMNS = "n.status, n.reason, n.failures, n.failing_since, n.hold_until, n.recovered_at"

# The clock is read outside of what takes the lock, which may have had to wait for it.
_LOCK = Statement(
    "lock_endpoints",
    ("bigint[]",),
    f"""
WITH n AS MATERIALIZED (
    SELECT * FROM hookjetty.endpoints WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE)
SELECT n.id, clock_timestamp(), {_COLUMNS} FROM n
""",
)

# statement_timestamp(), since an index cannot be searched for clock_timestamp(): that is another
# value at each row.
_OVER = Statement(
    "holds_over",
    ("integer",),
    """
SELECT 1 FROM hookjetty.endpoints
WHERE hold_until IS NOT NULL AND hold_until <= statement_timestamp() LIMIT $1
""",
)
_LOCK_OVER = Statement(
    "lock_holds_over",
    ("integer",),
    f"""
SELECT n.id, clock_timestamp(), {_COLUMNS} FROM hookjetty.endpoints n
WHERE n.hold_until IS NOT NULL AND n.hold_until <= statement_timestamp()
ORDER BY n.hold_until LIMIT $1
FOR NO KEY UPDATE SKIP LOCKED
""",
)
_WRITE = Statement(
    "write_health",
    (
        "bigint[]",
        "text[]",
        "text[]",
        "integer[]",
        "timestamptz[]",
        "timestamptz[]",
        "timestamptz[]",
        "boolean[]",
    ),
    """
UPDATE hookjetty.endpoints n
SET status = c.status, reason = c.reason, failures = c.failures, failing_since = c.failing_since,
    hold_until = c.hold_until, recovered_at = c.recovered_at, settling = n.settling OR c.settles,
    updated_at = CASE WHEN c.settles THEN now() ELSE n.updated_at END,
    handshake_at = CASE WHEN c.status <> 'disabled' THEN n.handshake_at END,
    checks_signatures = n.checks_signatures AND c.status <> 'disabled'
FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS c (
    id, status, reason, failures, failing_since, hold_until, recovered_at, settles)
WHERE n.id = c.id
""",
)

# A probe that was released and not recorded yet. Ready or under way, so its time comes.
_ON_THEIR_WAY = Statement(
    "probes_on_their_way",
    ("bigint[]",),
    """
SELECT DISTINCT t.endpoint_id FROM hookjetty.tasks t
WHERE t.endpoint_id = ANY ($1) AND t.probe AND t.next_try_at IS NOT NULL
  AND (t.ready OR t.status = 'delivering')
""",
)
# Live tasks before replayed ones; of those the one that was never tried, or whose latest attempt
# is the oldest (ids are times). So one bad task does not keep an endpoint on hold by itself.
_TRIED_LONGEST_AGO = Statement(
    "tried_longest_ago",
    ("bigint[]",),
    """
SELECT n.id, t.id FROM unnest($1) AS n (id) CROSS JOIN LATERAL (
    SELECT t.id FROM hookjetty.tasks t
    WHERE t.rare_status = 'waiting' AND t.endpoint_id = n.id
    ORDER BY t.lane, t.attempt_id NULLS FIRST, t.id LIMIT 1
    FOR UPDATE SKIP LOCKED) t
""",
)
_READY_LONGEST = Statement(
    "ready_longest",
    ("bigint[]",),
    """
SELECT n.id, t.id FROM hookjetty.endpoints n CROSS JOIN LATERAL (
    SELECT t.id FROM hookjetty.tasks t
    WHERE t.ready AND t.tenant_id = n.tenant_id AND t.endpoint_id = n.id
    ORDER BY t.lane, t.due_at LIMIT 1
    FOR UPDATE SKIP LOCKED) t
WHERE n.id = ANY ($1)
""",
)
# A ready task that lost its lease stays `delivering`: the claim has to write its attempt off.
_RELEASE_PROBES = Statement(
    "release_probes",
    ("bigint[]",),
    """
UPDATE hookjetty.tasks
SET status = CASE WHEN status <> 'waiting' THEN status WHEN tries = 0 THEN 'pending'
                  ELSE 'retry' END,
    ready = true, probe = true, next_try_at = coalesce(next_try_at, clock_timestamp())
WHERE id = ANY ($1)
""",
)
_WITH_TASKS = Statement(
    "with_tasks",
    ("bigint[]",),
    """
SELECT n.id FROM hookjetty.endpoints n
WHERE n.id = ANY ($1)
  AND (EXISTS (SELECT FROM hookjetty.tasks t
               WHERE t.rare_status = 'waiting' AND t.endpoint_id = n.id)
       OR EXISTS (SELECT FROM hookjetty.tasks t
                  WHERE t.ready AND t.tenant_id = n.tenant_id AND t.endpoint_id = n.id))
""",
)
