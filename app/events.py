"""A tenant's events: the list, the feed, who would get one and why, and erasing one's data.

Nothing here reads more the longer the history is. A filter that hardly anything passes ends a page
once ``MOST_LOOKED_AT`` events were looked at, however few of them passed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from app import errors
from app.db import clock, db, note_cluster
from app.explain import why_endpoint, why_no_task
from app.models import LARGEST_ID, Endpoint, Event, Task, id_at, id_time, keys_of
from app.pages import Page, cursor_at, cursor_behind, last_id_in, position_in
from app.publish import NewEvent, check

MOST_LOOKED_AT = 2000
# A page of the feed has at least one event, and no more data than this.
MOST_FEED_BYTES = 4 * 1024 * 1024
# Data is read for so many of its events at a time.
SLICE = 16
# A person waits for the answer, which names each endpoint for each event.
MOST_DRY_RUNS = 100


@dataclass(slots=True)
class Listed:
    """An event as a list shows it."""

    id: int
    type: str
    fanout: int
    is_erased: bool
    is_test: bool = False
    key: str | None = None
    data: str | None = None  # the feed's alone

    @property
    def created_at(self) -> datetime:
        """When it was published, to the millisecond."""
        return id_time(self.id)


# ------------------------------------------------------------------------------------- the list


def page_of_events(
    tenant_id: int,
    *,
    limit: int,
    cursor: str | None = None,
    type_: str | None = None,
    key: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page:
    """A tenant's events, the newest first, narrowed by what is given.

    ``type_`` is a type or a pattern; ``since`` is included, ``until`` is not. A page may be short,
    even empty, and have a cursor: what is behind ``MOST_LOOKED_AT`` events was not looked at yet.
    """
    of = ("events", tenant_id, type_, key, since, until)
    below = LARGEST_ID + 1 if until is None else id_at(until)
    if cursor is not None:
        below = min(below, last_id_in(cursor, of))
    looked_at = _LIST.format(one="" if key is None else _OF_KEY)
    is_of_type, of_type = Event.type_condition(type_ or "*")
    parameters = of_type | {
        "tenant": tenant_id,
        "below": below,
        "from": 0 if since is None else id_at(since),
        "key": key,
        "limit": limit + 1,
    }
    rows = db.execute_sql(
        f"SELECT * FROM ({looked_at}) e WHERE {is_of_type} ORDER BY e.id DESC LIMIT %(limit)s",
        parameters,
    ).fetchall()
    events = [Listed(*row) for row in rows]
    next_cursor = None
    if len(events) > limit:
        events.pop()
        next_cursor = cursor_behind(events[-1].id, of)
    else:
        last, count = db.execute_sql(
            f"SELECT min(e.id), count(*) FROM ({looked_at}) e", parameters
        ).fetchone()
        if count == MOST_LOOKED_AT:
            next_cursor = cursor_behind(last, of)
    _add_keys(events)
    return Page(events, next_cursor)


_LIST = f"""
    SELECT e.id, e.type, e.fanout, e.data IS NULL, e.endpoint_id IS NOT NULL
    FROM hookjetty.events e
    WHERE e.tenant_id = %(tenant)s AND e.id < %(below)s AND e.id >= %(from)s {{one}}
    ORDER BY e.id DESC LIMIT {MOST_LOOKED_AT}
"""
_OF_KEY = """
    AND e.id = (SELECT k.event_id FROM hookjetty.event_keys k
                WHERE k.tenant_id = %(tenant)s AND k.key = %(key)s)
"""


def _add_keys(events: Sequence[Listed]) -> None:
    known = keys_of([event.id for event in events])
    for event in events:
        event.key = known.get(event.id)


# ------------------------------------------------------------------------------------- the feed


class FeedPage(NamedTuple):
    """Some events, and the cursor that goes on behind them: always there, at the feed's end too."""

    items: list[Listed]
    next_cursor: str
    has_more: bool


class _Position(NamedTuple):
    """What was read: all of the generations before, and in this one up to a transaction's event."""

    generation: int
    xid: int
    event_id: int


class _Generation(NamedTuple):
    """A range of event ids that was written in one cluster (schema.sql, "clusters")."""

    number: int
    from_id: int
    upto_id: int
    is_present: bool


_POSITION = struct.Struct(">IQq")
_LAST_XID = 2**64 - 1


def feed(tenant_id: int, after: str, *, limit: int, type_: str | None = None) -> FeedPage:
    """A tenant's events in the order of their commits, the oldest first, with their data.

    ``after`` is the ``next_cursor`` of the page before; ``start`` or nothing for the oldest event
    that is kept; ``now`` for what commits from now on. Test events are not in it.

    Whoever goes from cursor to cursor sees each event once, and an event that was committed before
    another one was begun before that one. To keep that promise the feed ends at the oldest
    transaction that is still open anywhere in the cluster: what committed since is seen when that
    one has ended.
    """
    of = ("feed", tenant_id)
    generations = _generations()
    position = _read_position(after, of, generations)
    present = generations[-1]
    items: list[Listed] = []
    has_more = True
    while not items and has_more:
        generation = next(each for each in generations if each.number == position.generation)
        position, items, at_end = _read_feed(tenant_id, generation, position, limit, type_)
        has_more = not (at_end and generation == present)
        if at_end and has_more:
            position = _Position(generation.number + 1, 0, 0)
        if not at_end:
            break
    _add_keys(items)
    return FeedPage(items, cursor_at(_POSITION.pack(*position), of), has_more)


def _generations() -> list[_Generation]:
    """All generations, the oldest first; a new one begins here if the cluster is another one."""
    note_cluster()
    rows = db.execute_sql(
        "SELECT generation, from_id, lead(from_id) OVER (ORDER BY generation)"
        " FROM hookjetty.clusters ORDER BY generation"
    ).fetchall()
    return [
        _Generation(number, first, upto or LARGEST_ID + 1, upto is None)
        for number, first, upto in rows
    ]


def _read_position(
    after: str, of: tuple[object, ...], generations: Sequence[_Generation]
) -> _Position:
    if after in ("", "start"):
        return _Position(generations[0].number, 0, 0)
    if after == "now":
        return _Position(generations[-1].number, _LAST_XID, 0)
    position = _Position(
        *_POSITION.unpack(position_in(after, of, size=_POSITION.size, field="after"))
    )
    if position.generation not in {each.number for each in generations}:
        raise errors.invalid("after", "is of another history; begin again with after=start")
    return position


def _read_feed(
    tenant_id: int, generation: _Generation, position: _Position, limit: int, type_: str | None
) -> tuple[_Position, list[Listed], bool]:
    """One page of one generation: what was read with it, its events, and whether those are all."""
    is_of_type, of_type = Event.type_condition(type_ or "*")
    parameters = of_type | {
        "tenant": tenant_id,
        "xid": str(position.xid),
        "id": position.event_id,
        "from": generation.from_id,
        "upto": generation.upto_id,
        "limit": limit + 1,
    }
    # Of the past, all is committed. A position beyond the bound is one of a server that came back
    # without its latest transactions, whose numbers are given again.
    bound = "pg_snapshot_xmin(pg_current_snapshot())" if generation.is_present else f"'{_LAST_XID}'"
    rows = db.execute_sql(
        f"""
        SELECT b.xid::text, e.* FROM (SELECT {bound}::xid8 AS xid) b
        LEFT JOIN LATERAL (
            SELECT e.xid::text, e.id, e.type, e.fanout, e.is_erased
            FROM ({_FEED.format(bound=f"{bound}::xid8")}) e
            WHERE NOT e.is_test AND {is_of_type}
            ORDER BY e.xid, e.id LIMIT %(limit)s) e ON true
        """,
        parameters,
    ).fetchall()
    ends_at = int(rows[0][0])
    found = [(int(row[1]), Listed(*row[2:])) for row in rows if row[1] is not None]
    read = dict(_with_data([event for _, event in found[:limit]]))
    page = [(xid, event) for xid, event in found[:limit] if event.id in read]
    if len(found) > limit or len(page) < len(found):
        if not page:  # retention took them meanwhile
            return _Position(generation.number, *_last_of(found[:limit])), [], False
        return _Position(generation.number, *_last_of(page)), [event for _, event in page], False
    # Fewer than wanted: either these are all, or the rest was not looked at.
    looked_at = _FEED.format(bound=f"'{ends_at}'::xid8")
    last_xid, last_id, count = db.execute_sql(
        f"""
        SELECT (array_agg(e.xid::text))[count(*)], (array_agg(e.id))[count(*)], count(*)
        FROM ({looked_at}) e
        """,
        parameters,
    ).fetchone()
    at_end = count < MOST_LOOKED_AT
    last = (ends_at, 0) if at_end else (int(last_xid), last_id)
    return _Position(generation.number, *last), [event for _, event in page], at_end


# By the index events_in_feed.
_FEED = f"""
    SELECT e.xid, e.id, e.type, e.fanout, e.data IS NULL AS is_erased,
           e.endpoint_id IS NOT NULL AS is_test
    FROM hookjetty.events e
    WHERE e.tenant_id = %(tenant)s AND (e.xid, e.id) > (%(xid)s::xid8, %(id)s)
      AND e.xid < {{bound}} AND e.id >= %(from)s AND e.id < %(upto)s
    ORDER BY e.xid, e.id LIMIT {MOST_LOOKED_AT}
"""


def _last_of(events: Sequence[tuple[int, Listed]]) -> tuple[int, int]:
    xid, event = events[-1]
    return xid, event.id


def _with_data(events: Sequence[Listed]) -> Iterator[tuple[int, Listed]]:
    """The events with their data, as many as a page may have; without those that are gone."""
    size = 0
    for start in range(0, len(events), SLICE):
        ids = [event.id for event in events[start : start + SLICE]]
        rows = db.execute_sql(
            "SELECT id, data::text FROM hookjetty.events WHERE id = ANY (%s::bigint[])", (ids,)
        )
        texts = dict(rows.fetchall())
        for event in events[start : start + SLICE]:
            if event.id not in texts:
                continue
            event.data = texts[event.id]
            event.is_erased = event.data is None
            size += len(event.data or "")
            if size > MOST_FEED_BYTES and size > len(event.data or ""):
                return
            yield event.id, event


# -------------------------------------------------------------------------------------- dry runs


class WouldReceive(NamedTuple):
    """Whether an endpoint would get a task of an event, and why or why not."""

    endpoint_id: int
    url: str
    status: str
    would_receive: bool
    why: str


def dry_run(tenant_id: int, events: Sequence[NewEvent]) -> list[list[WouldReceive]]:
    """For each event, what its publication would mean for each of the tenant's endpoints.

    Refuses what publishing would refuse, by the same check, and stores nothing.
    """
    now = clock()
    endpoints = list(Endpoint.of(tenant_id))
    return [_dry_run(tenant_id, event, endpoints, now) for event in events]


def dry_run_batch(tenant_id: int, events: Sequence[NewEvent]) -> list[list[WouldReceive]]:
    """The same for a list; an error names the event by its place."""
    if len(events) > MOST_DRY_RUNS:
        raise errors.invalid("events", f"must be at most {MOST_DRY_RUNS} in a dry run")
    for place, event in enumerate(events):
        try:
            check(event)
        except errors.Error as error:
            ((field, reason),) = error.details.items()
            raise errors.invalid(f"events.{place}.{field}", reason) from None
    return dry_run(tenant_id, events)


def _dry_run(
    tenant_id: int, event: NewEvent, endpoints: Sequence[Endpoint], now: datetime
) -> list[WouldReceive]:
    check(event)
    known = None if event.key is None else _published_as(tenant_id, event.key)
    if known is not None:
        why = f"its key was published before, as evt_{known}: nothing is made again"
        return [WouldReceive(each.id, each.url, each.status, False, why) for each in endpoints]
    return [
        WouldReceive(
            each.id,
            each.url,
            each.status,
            why_no_task(each, event.type) is None,
            why_endpoint(each, event.type, now),
        )
        for each in endpoints
    ]


def _published_as(tenant_id: int, key: str) -> int | None:
    row = db.execute_sql(
        "SELECT event_id FROM hookjetty.event_keys WHERE tenant_id = %s AND key = %s",
        (tenant_id, key),
    ).fetchone()
    return row and row[0]


# --------------------------------------------------------------------------------------- erasing


def erase(tenant_id: int, event_id: int) -> Event:
    """Erase an event's data and what its receivers answered; the event stays listed.

    Its open tasks are canceled. Those under way end by themselves: nothing can be sent again, and
    what their receivers answer is erased once their leases have ended.
    """
    with db.atomic():
        row = db.execute_sql(
            "SELECT id FROM hookjetty.events WHERE id = %s AND tenant_id = %s FOR UPDATE",
            (event_id, tenant_id),
        ).fetchone()
        if row is None:
            raise errors.not_found(f"event evt_{event_id}")
        db.execute_sql(
            "UPDATE hookjetty.events SET data = NULL WHERE id = %s AND data IS NOT NULL",
            (event_id,),
        )
        event = Event.get_of(tenant_id, event_id)
        erase_answers(event)
    return event


def erase_answers(event: Event) -> bool:
    """Cancel an erased event's open tasks and erase its receivers' answers, in a transaction.

    False if some are under way; then it is to be done again, and noted when.
    """
    rows = db.execute_sql(
        "SELECT id, status, next_try_at FROM hookjetty.tasks WHERE id = ANY (%s::bigint[])"
        " ORDER BY id FOR UPDATE",
        (list(Task.ids_of_event(event)),),
    ).fetchall()
    open_ones = [row[0] for row in rows if row[1] in ("pending", "retry", "waiting")]
    Task.update(status="canceled", ready=False, next_try_at=None).where(
        Task.id.in_(open_ones)
    ).execute()
    attempts = db.execute_sql(
        "SELECT id FROM hookjetty.attempts WHERE task_id = ANY (%s::bigint[])"
        " AND (response_headers IS NOT NULL OR response_body IS NOT NULL) ORDER BY id FOR UPDATE",
        ([row[0] for row in rows],),
    ).fetchall()
    db.execute_sql(
        "UPDATE hookjetty.attempts SET response_headers = NULL, response_body = NULL"
        " WHERE id = ANY (%s::bigint[])",
        ([row[0] for row in attempts],),
    )
    leases: list[Any] = [row[2] for row in rows if row[1] == "delivering"]
    if leases:
        db.execute_sql(
            """
            INSERT INTO hookjetty.event_erasures (event_id, tenant_id, again_at)
            VALUES (%s, %s, greatest(%s, now()) + interval '1 min')
            ON CONFLICT (event_id) DO UPDATE SET again_at = excluded.again_at
            """,
            (event.id, event.tenant_id, max(leases)),
        )
    return not leases
