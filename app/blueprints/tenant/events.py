"""Events: publish one or many, list them, follow them, look at one, erase its data."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import g

from app import errors, events
from app.auth import READ
from app.blueprints.common import (
    called_by,
    counting,
    idempotent,
    link_to_next,
    or_dry_run,
    service,
    text_with,
    with_text,
)
from app.blueprints.tenant.surface import a_publisher, a_reader, a_writer, blueprint
from app.models import Event
from app.publish import publish, publish_batch
from app.ratelimit import Limits
from app.schemas.events import (
    Batch,
    BatchPublished,
    DryRun,
    DryRuns,
    EventItem,
    EventPage,
    EventPublished,
    EventQuery,
    EventToPublish,
    EventWithTasks,
    HowToPublish,
)
from app.schemas.fields import parse_id

blp = blueprint("events", "Things that happened.")

MAX_BATCH_BYTES = 4 * 1024 * 1024

_EVENT = EventWithTasks()
_ITEM = EventItem()
_DRY_RUN, _DRY_RUNS = DryRun(), DryRuns()


def _prepaid(view: Callable[..., Any]) -> Callable[..., Any]:
    """Take one event's worth of the calling tenant's bucket, whether the body can be read or not.

    Always before the transaction, be there a repeat or not: in it, the bucket's row would stay
    locked until the commit, and whatever the tenant publishes meanwhile would queue behind it.
    """
    counting(Limits.publish)(view)

    @wraps(view)
    def wrapper(owner: int) -> Any:
        if owner:
            service().limits.publish(owner)
        return view(owner)

    return wrapper


def _rationed(view: Callable[..., Any]) -> Callable[..., Any]:
    """Find out for whom is published, and take the rest of what it costs of that one's bucket."""

    @wraps(view)
    def wrapper(owner: int, wanted: dict[str, Any], how: dict[str, Any]) -> Any:
        tenant_id = _publishing_for(owner, wanted["tenant_id"])
        cost = len(wanted["events"]) - (1 if owner else 0)
        if cost:
            service().limits.publish(tenant_id, cost)
        return view(tenant_id, wanted["events"], how)

    return wrapper


def _would_receive(tenant_id: int, new: list[Any]) -> Any:
    (items,) = events.dry_run(tenant_id, new)
    return _DRY_RUN.dump({"items": _without_urls(items)})


def _would_receive_each(tenant_id: int, new: list[Any]) -> Any:
    found = events.dry_run_batch(tenant_id, new)
    return _DRY_RUNS.dump({"items": [{"items": _without_urls(items)} for items in found]})


def _without_urls(items: list[events.WouldReceive]) -> list[dict[str, Any]]:
    """A producer need not know where events go; whoever may read endpoints may see it."""
    hidden = {} if g.principal.may(READ) else {"url": None}
    return [each._asdict() | hidden for each in items]


def _publishing_for(owner: int, named: int | None) -> int:
    if owner == 0 and named is None:
        raise errors.invalid("tenant_id", "is missing; a service says for whom it publishes")
    if owner and named not in (None, owner):
        raise errors.Error(
            "forbidden",
            f"the token is of tenant {owner}",
            {"tenant_id": f"must be {owner} or absent"},
        )
    return owner or named or 0


@blp.route("/events", methods=["POST"])
@called_by(a_publisher)
@_prepaid
@blp.arguments(EventToPublish())
@blp.arguments(HowToPublish(), location="query")
@_rationed
@or_dry_run(_would_receive)
@idempotent(is_action=False)
@blp.response(202, EventPublished())
@blp.alt_response(200, schema={"anyOf": [EventPublished(), DryRun()]}, success=True)
def publish_event(tenant_id: int, new: list[Any]) -> Any:
    """Publish an event

    It becomes a task for every endpoint that wants its type. 200 if its `key` was published
    before, and the first event's answer. With `dry_run=1` it is checked as ever and nothing is
    stored: 200, and for each endpoint whether it would get it, and why.
    """
    published = publish(tenant_id, new[0])
    return published, 202 if published.is_new else 200


@blp.route("/events/batch", methods=["POST"])
@called_by(a_publisher, at_most_bytes=MAX_BATCH_BYTES)
@_prepaid
@blp.arguments(Batch())
@blp.arguments(HowToPublish(), location="query")
@_rationed
@or_dry_run(_would_receive_each)
@idempotent(is_action=False)
@blp.response(202, BatchPublished())
@blp.alt_response(200, schema=DryRuns(), success=True)
def publish_events(tenant_id: int, new: list[Any]) -> Any:
    """Publish many events

    All of them or, if one cannot be accepted, none; `details` names it by its place. With
    `dry_run=1` (of at most 100 events) nothing is stored: 200, and for each event and endpoint
    whether it would get it, and why.
    """
    return {"items": publish_batch(tenant_id, new)}


@blp.route("/events", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(EventQuery(), location="query")
@blp.response(200, EventPage())
def list_events(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the tenant's events, or follow them

    The newest first and without their data. A page may have fewer events than `limit`, even none,
    and yet a `next_cursor`: one request looks at 2,000 events at most, however few the filters let
    pass.

    With `after` it is the feed instead: the oldest first, with their data, in the order in which
    they were committed, each one once, and none is missed. It goes with `limit` and `type` alone.
    `next_cursor` is always there, also when there is nothing new: ask again with it, at once if
    `has_more`. The feed waits for transactions: what was committed after one began that is still
    open, anywhere on the database server, is there when that one has ended. Test events are not in
    it; an event whose data was erased is, with `data` null.
    """
    after = wanted.pop("after", None)
    if after is None:
        found = events.page_of_events(tenant_id, **wanted)
        return found, link_to_next(found.next_cursor)
    page = events.feed(tenant_id, after, **wanted)
    items = ",".join(
        text_with(_ITEM.dump(each), "data", each.data or "null") for each in page.items
    )
    rest = {"next_cursor": page.next_cursor, "has_more": page.has_more}
    return with_text(rest, "items", f"[{items}]")


@blp.route("/events/<event_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, EventWithTasks())
def get_event(tenant_id: int, event_id: str) -> Any:
    """Look at one event, and at what became of it"""
    event = Event.get_of(tenant_id, parse_id("evt", event_id))
    return with_text(_EVENT.dump(event), "data", event.data or "null")


@blp.route("/events/<event_id>/data", methods=["DELETE"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, EventItem())
def erase_event_data(tenant_id: int, event_id: str) -> Any:
    """Erase an event's data

    The event stays listed, with its type, time and key; what its receivers answered is erased as
    well. Its open tasks are canceled; one that is under way right now ends, and is not tried again.
    Erasing again changes nothing.
    """
    return events.erase(tenant_id, parse_id("evt", event_id))
