"""Replays: an endpoint's past events delivered again, from a watermark (tenant-api.md, Replay).

What is written here is the request; a dispatcher's job walks the events and makes the tasks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from app import errors
from app.db import db
from app.models import (
    LARGEST_ID,
    Endpoint,
    Event,
    Replay,
    id_at,
    id_time,
    read_time,
    rfc3339,
    wake,
)
from app.pages import Page, page

_EVENT = re.compile(r"evt_([1-9][0-9]{0,15})")

WATERMARKS = "must be a time such as 2025-10-05T06:00:00Z, an event's id (evt_…) or failing_since"
ENDS = "must be a time such as 2025-10-05T06:00:00Z or an event's id (evt_…)"


class Started(NamedTuple):
    """A replay that has begun, and what its requester should know about it."""

    replay_id: int
    message: str | None


def start(
    tenant_id: int,
    endpoint_id: int,
    watermark: str,
    *,
    end: str | None = None,
    event_types: Sequence[str] | None = None,
    only: str | None = None,
) -> Started:
    """Deliver to one endpoint again what happened from ``watermark`` to this moment.

    The watermark is included. One that is older than what is kept starts at the oldest event;
    one in the future is refused. ``version_conflict`` while another replay of the endpoint runs.

    ``end`` ends it sooner: before that time, or with that event. Of the events that the endpoint
    wants, ``event_types`` (as endpoints name them) choose some, and so does ``only``: ``failed``,
    those of which a task for the endpoint failed and none was delivered or is open; ``missing``,
    those that never had one.
    """
    with db.atomic():
        # A deletion waits for this transaction, and then finds and cancels what it began.
        endpoint = Endpoint.get_of(tenant_id, endpoint_id, lock=True)
        oldest, latest = _kept()
        wanted_from = _watermark(endpoint, watermark, "from", oldest, latest)
        from_id = max(wanted_from, oldest)
        upto_id = latest if end is None else min(_end(tenant_id, end, oldest), latest)
        if upto_id < from_id:
            raise errors.invalid("to", f"lies before the first event, {rfc3339(id_time(from_id))}")
        replay = _insert(endpoint, from_id, upto_id, event_types, only)
        wake()
    return Started(
        replay.id,
        f"the oldest events kept are of {rfc3339(id_time(oldest))}: the replay starts there"
        if wanted_from < oldest
        else None,
    )


def watermark(endpoint: Endpoint, text: str, field: str) -> int:
    """The smallest event id that a watermark includes; ``field`` is what an error calls it."""
    return _watermark(endpoint, text, field, *_kept())


def page_of_replays(
    tenant_id: int,
    *,
    limit: int,
    cursor: str | None = None,
    endpoint_id: int | None = None,
    status: str | None = None,
) -> Page:
    """A tenant's replays, the newest first; those of one endpoint or status if so wanted."""
    query = Replay.of(tenant_id)
    if endpoint_id is not None:
        query = query.where(Replay.endpoint_id == endpoint_id)
    if status is not None:
        query = query.where(Replay.status == status)
    of = ("replays", tenant_id, endpoint_id, status)
    return page(query, Replay.id, limit=limit, cursor=cursor, of=of, newest_first=True)


def _kept() -> tuple[int, int]:
    """The first id of the oldest events there can be, and the last one of this moment."""
    row: tuple[int, int] = db.execute_sql(
        """
        SELECT coalesce(min(from_id), 0), hookjetty.id_at(clock_timestamp()) | 4095
        FROM hookjetty.partitions WHERE parent = 'events' AND NOT detaching
        """
    ).fetchone()
    return row


def _watermark(endpoint: Endpoint, text: str, field: str, oldest: int, latest: int) -> int:
    if text == "failing_since":
        if endpoint.failing_since is None:
            raise errors.invalid(
                field, f"endpoint ep_{endpoint.id} is not failing; name a time or an event"
            )
        return id_at(endpoint.failing_since)
    if text.startswith("evt_"):
        return _event(endpoint.tenant_id, text, oldest, field, WATERMARKS)
    moment = read_time(text)
    if moment is None:
        raise errors.invalid(field, WATERMARKS)
    from_id = id_at(moment)
    if from_id > latest:
        raise errors.invalid(field, f"is in the future; it is {rfc3339(id_time(latest))} now")
    return from_id


def _end(tenant_id: int, text: str, oldest: int) -> int:
    """The largest event id before that time, or that of the event."""
    if text.startswith("evt_"):
        return _event(tenant_id, text, oldest, "to", ENDS)
    moment = read_time(text)
    if moment is None:
        raise errors.invalid("to", ENDS)
    return id_at(moment) - 1


def _event(tenant_id: int, text: str, oldest: int, field: str, reason: str) -> int:
    found = _EVENT.fullmatch(text)
    event_id = int(found[1]) if found else 0
    if not 1 <= event_id <= LARGEST_ID:
        raise errors.invalid(field, reason)
    if event_id >= oldest:
        Event.get_of(tenant_id, event_id)
    return event_id


def _insert(
    endpoint: Endpoint,
    from_id: int,
    upto_id: int,
    event_types: Sequence[str] | None,
    only: str | None,
) -> Replay:
    rows = (
        Replay.insert(
            tenant_id=endpoint.tenant_id,
            endpoint_id=endpoint.id,
            status="running",
            from_id=from_id,
            upto_id=upto_id,
            cursor_id=from_id - 1,
            event_types=event_types,
            only=only,
        )
        .on_conflict_ignore()  # schema.sql, replays_running: at most one of an endpoint
        .returning(Replay)
        .execute()
    )
    replay: Replay | None = next(iter(rows), None)
    if replay is None:
        raise errors.conflict(f"a replay of endpoint ep_{endpoint.id} is running already")
    return replay
