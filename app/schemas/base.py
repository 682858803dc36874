"""What all schemas are made of: what may come in, what goes out, pages, the admin's envelope.

A field that is not in a schema is refused rather than ignored: a mistyped one would silently do
something else.
"""

from __future__ import annotations

from typing import Any

from marshmallow import EXCLUDE, RAISE, Schema, fields, post_dump

from app import strictjson
from app.schemas.fields import Limit, Text, next_cursor


class Incoming(Schema):
    """Something a client sends."""

    class Meta:
        unknown = RAISE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error_messages["type"] = "must be a JSON object"
        known = ", ".join(each.data_key or name for name, each in self.load_fields.items())
        self.error_messages["unknown"] = f"is not a field of this; there are {known}"


class Body(Incoming):
    """The JSON object in the body of a write.

    Where it ``may_be_absent``, no body at all stands for an empty object.
    """

    may_be_absent = False

    def read(self, raw: bytes) -> Any:
        """The body as values to load; ``invalid_request`` says what is wrong with it."""
        return strictjson.loads(raw)


class Query(Incoming):
    """The query string."""


class PageQuery(Query):
    """Which page of a list."""

    limit = Limit(load_default=50)
    cursor = Text(
        metadata={
            "description": "The `next_cursor` of the page before, with the same filters.",
            "minLength": 1,
        }
    )


class Outgoing(Schema):
    """Something a client gets. Fields in ``where_it_applies`` are left out when they are None.

    All others are always there, which the OpenAPI document says with ``required``; those that may
    be null say so with ``allow_none``.
    """

    class Meta:
        unknown = EXCLUDE  # more may be added with time; clients must not mind

    where_it_applies: tuple[str, ...] = ()

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """Note whether the field is always there."""
        field_obj.required = (field_obj.data_key or field_name) not in self.where_it_applies

    @post_dump
    def _leave_out(self, dumped: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        for name in self.where_it_applies:
            if dumped.get(name) is None:
                dumped.pop(name, None)
        return dumped


def enveloped(name: str, data: fields.Field[Any], **beside: fields.Field[Any]) -> Schema:
    """The admin surface's envelope around ``data``; ``name`` is for the documentation."""
    envelope: dict[str, fields.Field[Any]] = {
        "code": fields.Integer(dump_default=0, metadata={"description": "0 is success."}),
        "msg": Text(dump_default="ok", metadata={"example": "ok"}),
        "data": data,
    }
    return Outgoing.from_dict(envelope | beside, name=name)()


def enveloped_page(name: str, item: Schema) -> Schema:
    """The same around a page of a list."""
    return enveloped(name, fields.List(fields.Nested(item)), next_cursor=next_cursor())
