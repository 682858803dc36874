"""Event types: the platform's catalogue, for those who receive them."""

from __future__ import annotations

from typing import Any

from app import errors, event_types
from app.blueprints.common import called_by, link_to_next
from app.blueprints.tenant.surface import a_reader, blueprint
from app.ratelimit import Limits
from app.schemas.base import PageQuery
from app.schemas.event_types import EventTypeDetail, EventTypePage
from app.schemas.fields import is_event_type

blp = blueprint("event_types", "What the platform's events mean.")


@blp.route("/event-types", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(PageQuery(), location="query")
@blp.response(200, EventTypePage())
def list_event_types(_tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the catalogue of event types

    By name. It describes; an event of another type, or with other data, may be published.
    """
    found = event_types.page_of_event_types(**wanted)
    return found, link_to_next(found.next_cursor)


@blp.route("/event-types/<name>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, EventTypeDetail())
def get_event_type(_tenant_id: int, name: str) -> Any:
    """Look at one event type, with its JSON Schema and an example"""
    if not is_event_type(name):
        raise errors.invalid("name", "must be an event type such as export.done")
    return event_types.get(name)
