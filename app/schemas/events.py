"""Events: what is published, and how it is shown."""

from __future__ import annotations

import re
from typing import Any

from marshmallow import fields, post_load, validate

from app import errors, strictjson
from app.publish import MAX_BATCH, MAX_KEY_CHARACTERS, NewEvent
from app.schemas.base import Body, Outgoing
from app.schemas.fields import (
    EventType,
    Id,
    JsonObject,
    JsonText,
    PrefixedId,
    Text,
    Time,
    Verbatim,
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


class EventItem(Outgoing):
    """GET /events/{id}; ``data`` is added as the very text that came in."""

    event_id = PrefixedId("evt", attribute="id")
    type = Text()
    created_at = Time()


class EventWithTasks(EventItem):
    """GET /events/{id}."""

    tasks = fields.List(fields.Nested(TaskItem()))
    data = Verbatim()
