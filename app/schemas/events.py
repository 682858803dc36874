"""Events: what is published, and how it is shown."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import ValidationError, fields, post_load, validate, validates_schema

from app import errors, strictjson
from app.models import ENDPOINT_STATUSES
from app.publish import MAX_BATCH, MAX_KEY_CHARACTERS, NewEvent
from app.schemas.base import Body, Outgoing, PageQuery, Query
from app.schemas.fields import (
    EventType,
    Flag,
    Id,
    JsonObject,
    JsonText,
    Moment,
    Pattern,
    PrefixedId,
    Text,
    Time,
    Verbatim,
    one_of,
    reworded,
)
from app.schemas.tasks import TaskItem


class EventToPublish(Body):
    """POST /events."""

    type = EventType(required=True)
    data = JsonObject(required=True)
    key = Text(
        validate=validate.Length(
            1, MAX_KEY_CHARACTERS, error=f"must have 1 to {MAX_KEY_CHARACTERS} characters"
        ),
        metadata={"description": "Publishing the same key again answers with the first event."},
    )
    tenant_id = Id(metadata={"description": "For whom; only a service's token may choose."})

    def read(self, raw: bytes) -> Any:
        """Its members, with the text of ``data`` for its value."""
        return _with_text(strictjson.event_fields(raw))

    @post_load
    def _event(self, loaded: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        event = NewEvent(loaded["type"], loaded["data"], loaded.get("key"))
        return {"tenant_id": loaded.get("tenant_id"), "events": [event]}


class EventOfBatch(EventToPublish):
    """One of the events in a batch, which has one tenant for all of them."""

    class Meta(EventToPublish.Meta):
        exclude = ("tenant_id",)


class Events(fields.List[dict[str, Any]]):
    """The events of a batch."""

    default_error_messages = reworded | {"invalid": "must be a list of events"}


class Batch(Body):
    """POST /events/batch."""

    events = Events(
        fields.Nested(EventOfBatch()),
        required=True,
        validate=validate.Length(1, MAX_BATCH, error=f"must have 1 to {MAX_BATCH} events"),
    )
    tenant_id = Id(metadata={"description": "For whom; only a service's token may choose."})

    def read(self, raw: bytes) -> Any:
        """Its members, each event as in ``EventToPublish``."""
        try:
            others, events = strictjson.batch_fields(raw, MAX_BATCH)
        except errors.Error as error:
            raise _by_index(error) from None
        return others | {"events": [_with_text(event) for event in events]}

    @post_load
    def _batch(self, loaded: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        events = [event for each in loaded["events"] for event in each["events"]]
        return {"tenant_id": loaded.get("tenant_id"), "events": events}


def _with_text(event: strictjson.Event) -> dict[str, Any]:
    data = event.values.get("data")
    if event.data_text is None or not isinstance(data, dict):
        return event.values
    return event.values | {"data": JsonText(event.data_text)}


def _by_index(error: errors.Error) -> errors.Error:
    """``events[3].data.size`` is ``events.3.data.size``, as in every other error of a batch."""
    ((path, reason),) = error.details.items()
    return errors.invalid(re.sub(r"^events\[(\d+)\]", r"events.\1", path), reason)


class EventPublished(Outgoing):
    """POST /events."""

    event_id = PrefixedId("evt")
    tasks = fields.Integer(metadata={"description": "For how many endpoints it became a task."})


class BatchPublished(Outgoing):
    """POST /events/batch, in the order of the request."""

    items = fields.List(fields.Nested(EventPublished()))


class HowToPublish(Query):
    """What to do with what is published."""

    dry_run = Flag(
        load_default=False,
        metadata={"description": "Store nothing; say who would get it, and who not and why."},
    )


class WouldReceive(Outgoing):
    """What publishing an event would mean for one endpoint."""

    endpoint_id = PrefixedId("ep")
    url = Text(metadata={"description": "Only for a token that may read endpoints."})
    status = one_of(ENDPOINT_STATUSES)
    would_receive = fields.Boolean(
        metadata={"description": "It gets a task, which may have to wait: `why` tells."}
    )
    why = Text(metadata={"example": "paused; its tasks wait until it is resumed"})

    where_it_applies = ("url",)


class DryRun(Outgoing):
    """POST /events?dry_run=1: all of the tenant's endpoints, the oldest first."""

    items = fields.List(fields.Nested(WouldReceive()))


class DryRuns(Outgoing):
    """POST /events/batch?dry_run=1, in the order of the request."""

    items = fields.List(fields.Nested(DryRun()))


class EventQuery(PageQuery):
    """A tenant's events, narrowed; or, with `after`, the feed."""

    type_ = Pattern(
        data_key="type",
        metadata={"description": "A type, or everything below a prefix: `export.*`."},
    )
    key = Text(
        validate=validate.Length(
            1, MAX_KEY_CHARACTERS, error=f"must have 1 to {MAX_KEY_CHARACTERS} characters"
        ),
        metadata={"description": "The event that was published with this key."},
    )
    since = Moment(data_key="from", metadata={"description": "Published then or later, RFC 3339."})
    until = Moment(data_key="to", metadata={"description": "Published before, RFC 3339."})
    after = Text(
        metadata={
            "description": "The feed: the `next_cursor` of its page before; `start` (or nothing)"
            " for the oldest event kept, `now` for what commits from now on."
        }
    )

    @validates_schema
    def _is_list_or_feed(self, loaded: dict[str, Any], **_kwargs: Any) -> None:
        for name in ("cursor", "key", "since", "until"):
            if "after" in loaded and name in loaded:
                key = self.fields[name].data_key or name
                raise ValidationError({key: ["does not go with after, which is for the feed"]})


class EventItem(Outgoing):
    """An event."""

    event_id = PrefixedId("evt", attribute="id")
    type = Text()
    created_at = Time()
    fanout = fields.Integer(
        metadata={"description": "For how many endpoints it became a task when it was published."}
    )
    key = Text()
    test = fields.Function(
        lambda event: event.is_test or None,
        metadata={"type": "boolean", "description": "Made to try one endpoint, and only for it."},
    )
    erased = fields.Function(
        lambda event: event.is_erased or None,
        metadata={"type": "boolean", "description": "Its data was erased."},
    )

    where_it_applies: tuple[str, ...] = ("key", "test", "erased")


class EventWithTasks(EventItem):
    """GET /events/{id}; ``data`` is added as the very text that came in, or null if erased."""

    tasks = fields.List(fields.Nested(TaskItem()))
    data = Verbatim()


class EventListed(EventItem):
    """An event in a list. The feed adds its ``data`` as the very text that came in."""

    data = Verbatim(metadata={"description": "In the feed alone: the text that was published."})

    where_it_applies = (*EventItem.where_it_applies, "data")


class EventPage(Outgoing):
    """A page of a tenant's events, or of the feed."""

    items = fields.List(fields.Nested(EventListed()))
    next_cursor = Text(
        allow_none=True,
        metadata={"description": "Null at the end of the list; always there in the feed."},
    )
    has_more = fields.Boolean(
        metadata={"description": "In the feed alone: more may be there already."}
    )

    where_it_applies = ("has_more",)
