"""Event types: the catalogue that describes the platform's events to its tenants."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from app import errors, event_types
from app.blueprints.admin.surface import an_admin, blueprint, paged
from app.blueprints.common import called_by, idempotent, may_answer
from app.schemas.base import PageQuery, enveloped, enveloped_page
from app.schemas.event_types import (
    EventTypeDetail,
    EventTypeItem,
    EventTypeName,
    EventTypeToSave,
)
from app.schemas.fields import is_event_type

blp = blueprint("event_types", "What the platform's events mean.")


_SAVED = enveloped("EventTypeSaved", fields.Nested(EventTypeDetail()))


@blp.route("/event-types", methods=["GET"])
@called_by(an_admin)
@blp.arguments(PageQuery(), location="query")
@blp.response(200, enveloped_page("EventTypes", EventTypeItem()))
def list_event_types(_owner: int, wanted: dict[str, Any]) -> Any:
    """List the catalogue of event types

    By name, without their schemas and examples.
    """
    found = event_types.page_of_event_types(**wanted)
    return paged(found)


@blp.route("/event-types/<name>", methods=["GET"])
@called_by(an_admin)
@blp.response(200, enveloped("EventTypeRead", fields.Nested(EventTypeDetail())))
def get_event_type(_owner: int, name: str) -> Any:
    """Look at one event type, with its JSON Schema and an example"""
    if not is_event_type(name):
        raise errors.invalid("name", "must be an event type such as export.done")
    return {"data": event_types.get(name)}


@blp.route("/event-types", methods=["POST"])
@called_by(an_admin)
@blp.arguments(EventTypeToSave())
@idempotent()
@blp.response(201, _SAVED)
@blp.alt_response(200, schema=_SAVED, success=True)
def save_event_type(_owner: int, wanted: dict[str, Any]) -> Any:
    """Create or update an event type

    201 if it is new, 200 if it was there: what is absent stays as it is then. A schema must be JSON
    Schema 2020-12 and complete in itself (no reference is ever fetched), and an example must
    satisfy it. It is a catalogue: what is published is not held against it.
    """
    entry, is_new = event_types.save(wanted.pop("name"), wanted)
    return {"data": entry}, 201 if is_new else 200


@blp.route("/event-types/delete", methods=["POST"])
@called_by(an_admin)
@may_answer("not_found")
@blp.arguments(EventTypeName())
@idempotent()
@may_answer("not_found")
@blp.response(200, enveloped("EventTypeDeleted", fields.Nested(EventTypeName())))
def delete_event_type(_owner: int, wanted: dict[str, Any]) -> Any:
    """Take an event type out of the catalogue

    Events of that type stay, and may still be published.
    """
    event_types.delete(wanted["name"])
    return {"data": wanted}
