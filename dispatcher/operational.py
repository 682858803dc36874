"""Operational events: a tenant, and the operator, hear through Hookjetty itself what became of
endpoints, tasks and replays (docs/operational-events.md).

Each is made in the transaction that made it so, and only if some endpoint wants it: who that is,
and that nothing is told about the operator's own endpoints, is ``tell`` in schema.sql.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from app.db import Statement, as_array

DISABLED = "hookjetty.endpoint.disabled"
RECOVERED = "hookjetty.endpoint.recovered"
EXHAUSTED = "hookjetty.task.exhausted"
REPLAYED = "hookjetty.replay.finished"


class OfEndpoint(NamedTuple):
    """Something that happened to an endpoint, by type; it was failing since then, if it was."""

    endpoint_id: int
    type: str
    failing_since: datetime | None


def tell_of_endpoints(news: Sequence[OfEndpoint]) -> None:
    """What became of endpoints, once their rows say so."""
    _OF_ENDPOINTS(
        [each.endpoint_id for each in news],
        [each.type for each in news],
        [each.failing_since for each in news],
    )


def tell_of_exhausted(task_ids: Sequence[int]) -> None:
    """Tasks that were given up. Those of operational events are passed over: that telling of a
    failure failed is not told in turn.
    """
    _OF_TASKS(as_array(task_ids), EXHAUSTED)


def tell_of_replay(replay_id: int) -> None:
    """A replay that has made all of its tasks."""
    _OF_REPLAY(replay_id, REPLAYED)


_OF_ENDPOINTS = Statement(
    "tell_of_endpoints",
    ("bigint[]", "text[]", "timestamptz[]"),
    """
SELECT hookjetty.tell(array_agg(f.tenant_id), array_agg(f.type), array_agg(f.fact))
FROM (SELECT n.tenant_id, c.type, (
          SELECT row_to_json(d) FROM (
              SELECT 'ep_' || n.id AS endpoint_id, n.url, n.reason,
                     to_char(c.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
                     AS failing_since) d) AS fact
      FROM unnest($1, $2, $3) AS c (id, type, failing_since)
      JOIN hookjetty.endpoints n ON n.id = c.id) f
""",
)

_OF_TASKS = Statement(
    "tell_of_tasks",
    ("bigint[]", "text"),
    """
SELECT hookjetty.tell(array_agg(f.tenant_id), array_agg($2), array_agg(f.fact))
FROM (SELECT t.tenant_id, (
          SELECT row_to_json(d) FROM (
              SELECT 'task_' || t.id AS task_id, 'evt_' || t.event_id AS event_id,
                     'ep_' || t.endpoint_id AS endpoint_id, e.type, t.tries, t.failure) d) AS fact
      FROM hookjetty.tasks t JOIN hookjetty.events e ON e.id = t.event_id
      WHERE t.id = ANY ($1) AND NOT starts_with(e.type, 'hookjetty.')) f
""",
)

_OF_REPLAY = Statement(
    "tell_of_replay",
    ("bigint", "text"),
    """
SELECT hookjetty.tell(array_agg(r.tenant_id), array_agg($2), array_agg((
    SELECT row_to_json(d) FROM (
        SELECT 'rpl_' || r.id AS replay_id, 'ep_' || r.endpoint_id AS endpoint_id, r.status,
               r.events, r.tasks) d)))
FROM hookjetty.replays r WHERE r.id = $1
""",
)
