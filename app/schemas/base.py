"""What all schemas are made of: what may come in, what goes out, pages, the admin's envelope.

A field that is not in a schema is refused rather than ignored: a mistyped one would silently do
something else.
"""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields, post_dump

from app import strictjson
from app.schemas.fields import MAX_LIMIT, Limit, Text


class Incoming(Schema):
    """Something a client sends."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error_messages["type"] = "must be a JSON object"
        known = ", ".join(self.load_fields)
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

    limit = Limit(load_default=50, metadata={"maximum": MAX_LIMIT})
    cursor = Text(metadata={"description": "The `next_cursor` of the page before."})


class Outgoing(Schema):
    """Something a client gets. Fields in ``where_it_applies`` are left out when they are None."""

    where_it_applies: tuple[str, ...] = ()

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
        "msg": Text(dump_default="ok"),
        "data": data,
    }
    return Schema.from_dict(envelope | beside, name=name)()
