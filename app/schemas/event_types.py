"""The catalogue of event types, on both surfaces."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, validate

from app.schemas.base import Body, Outgoing
from app.schemas.fields import (
    MAX_DESCRIPTION_CHARACTERS,
    EventType,
    Text,
    Time,
    next_cursor,
    reworded,
)


class AnyObject(fields.Dict):
    """Any JSON object, or null for none."""

    default_error_messages = reworded

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_none=True, **kwargs)

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        if not isinstance(value, dict):
            raise ValidationError("must be a JSON object")
        return value


class EventTypeToSave(Body):
    """POST /event-types. What is absent stays as it is; null takes a schema or an example away."""

    name = EventType(required=True, metadata={"example": "export.done"})
    description = Text(
        validate=validate.Length(
            max=MAX_DESCRIPTION_CHARACTERS,
            error=f"must have at most {MAX_DESCRIPTION_CHARACTERS} characters",
        )
    )
    schema = AnyObject(
        metadata={
            "description": "JSON Schema 2020-12 of `data`, complete in itself, at most 64 KiB. It"
            " tells people what to expect; what is published is not held against it.",
            "example": {"type": "object", "properties": {"rows": {"type": "integer"}}},
        }
    )
    example = AnyObject(
        metadata={
            "description": "A `data` that satisfies the schema; test events are made of it.",
            "example": {"rows": 3},
        }
    )


class EventTypeName(Body):
    """POST /event-types/delete."""

    name = EventType(required=True, metadata={"example": "export.done"})


class EventTypeItem(Outgoing):
    """A type in the list."""

    name = Text(metadata={"example": "export.done"})
    description = Text()
    created_at = Time()
    updated_at = Time()


class EventTypeDetail(EventTypeItem):
    """One type with all that is known of it."""

    schema = AnyObject(metadata={"description": "JSON Schema 2020-12 of `data`, or null."})
    example = AnyObject(metadata={"description": "A `data` that satisfies it, or null."})


class EventTypePage(Outgoing):
    """A page of the catalogue."""

    items = fields.List(fields.Nested(EventTypeItem()))
    next_cursor = next_cursor()
