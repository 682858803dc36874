"""Events: publish one or many, and look at one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from app import errors
from app.blueprints.common import called_by, idempotent, service, with_text
from app.blueprints.tenant.surface import a_publisher, a_reader, blueprint
from app.models import Event
from app.publish import publish, publish_batch
from app.ratelimit import Limits
from app.schemas.events import Batch, BatchPublished, EventPublished, EventToPublish, EventWithTasks
from app.schemas.fields import parse_id

blp = blueprint("events", "Things that happened.")

MAX_BATCH_BYTES = 4 * 1024 * 1024

_EVENT = EventWithTasks()


def _prepaid(view: Callable[..., Any]) -> Callable[..., Any]:
    """Take one event's worth of the calling tenant's bucket, whether the body can be read or not.

    Always before the transaction, be there a repeat or not: in it, the bucket's row would stay
    locked until the commit, and whatever the tenant publishes meanwhile would queue behind it.
    """

    @wraps(view)
    def wrapper(owner: int) -> Any:
        if owner:
            service().limits.publish(owner)
        return view(owner)

    return wrapper


def _rationed(view: Callable[..., Any]) -> Callable[..., Any]:
    """Find out for whom is published, and take the rest of what it costs of that one's bucket."""

    @wraps(view)
    def wrapper(owner: int, wanted: dict[str, Any]) -> Any:
        tenant_id = _publishing_for(owner, wanted["tenant_id"])
        cost = len(wanted["events"]) - (1 if owner else 0)
        if cost:
            service().limits.publish(tenant_id, cost)
        return view(tenant_id, wanted["events"])

    return wrapper


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
@_rationed
@idempotent(is_action=False)
@blp.response(202, EventPublished())
def publish_event(tenant_id: int, events: list[Any]) -> Any:
    """Publish an event

    It becomes a task for every endpoint that wants its type. 200 if its `key` was published
    before, and the first event's answer.
    """
    published = publish(tenant_id, events[0])
    return published, 202 if published.is_new else 200


@blp.route("/events/batch", methods=["POST"])
@called_by(a_publisher, at_most_bytes=MAX_BATCH_BYTES)
@_prepaid
@blp.arguments(Batch())
@_rationed
@idempotent(is_action=False)
@blp.response(202, BatchPublished())
def publish_events(tenant_id: int, events: list[Any]) -> Any:
    """Publish many events

    All of them or, if one cannot be accepted, none; `details` names it by its place.
    """
    return {"items": publish_batch(tenant_id, events)}


@blp.route("/events/<event_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, EventWithTasks())
def read_event(tenant_id: int, event_id: str) -> Any:
    """Look at one event, and at what became of it"""
    event = Event.get_of(tenant_id, parse_id("evt", event_id))
    return with_text(_EVENT.dump(event), "data", event.data)
