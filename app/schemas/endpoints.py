"""Endpoints in the tenant contract (tenant-api.md, Register Endpoint and List Endpoints)."""

from __future__ import annotations

from marshmallow import fields, validate

from app.models import ENDPOINT_STATUSES
from app.schemas.base import Body, Outgoing
from app.schemas.fields import Patterns, PrefixedId, Secret, Text, Time, Url, next_cursor, one_of


class Registration(Body):
    """tenant-api.md, Register Endpoint. What is absent stays as it is."""

    url = Url(
        metadata={
            "description": "Required for a new endpoint.",
            "example": "https://app.example.com/hook",
        }
    )
    events = Patterns(
        metadata={
            "description": "Wanted event types; all of them when absent.",
            "example": ["export.done"],
        }
    )
    secret = Secret(metadata={"description": "Signs its deliveries; made up when absent."})
    endpoint_id = PrefixedId("ep", metadata={"description": "Selects one, to change its URL."})


class Verification(Outgoing):
    """How a pending endpoint's handshake stands."""

    failure = Text(
        allow_none=True, metadata={"description": "Why the last challenge failed; null: none did."}
    )
    next_try_at = Time(allow_none=True)


class EndpointState(Outgoing):
    """tenant-api.md, Register Endpoint: what every answer about an endpoint begins with."""

    endpoint_id = PrefixedId("ep", attribute="id")
    status = one_of(ENDPOINT_STATUSES)
    verification = fields.Nested(Verification())

    where_it_applies: tuple[str, ...] = ("verification",)


class EndpointRegistered(Outgoing):
    """tenant-api.md, Register Endpoint."""

    endpoint_id = PrefixedId("ep", attribute="endpoint.id")
    status = Text(attribute="endpoint.status", validate=validate.OneOf(ENDPOINT_STATUSES))
    verification = fields.Nested(Verification(), attribute="endpoint.verification")
    secret = Text(metadata={"description": "Only if it was made up now; it is not shown again."})

    where_it_applies = ("secret", "verification")


class EndpointItem(EndpointState):
    """tenant-api.md, List Endpoints."""

    url = Text()
    events = fields.List(Text())
    created_at = Time()
    reason = Text(metadata={"description": "Why it was disabled."})
    failing_since = Time()

    where_it_applies = ("verification", "reason", "failing_since")


class EndpointPage(Outgoing):
    """A page of a tenant's endpoints."""

    items = fields.List(fields.Nested(EndpointItem()))
    next_cursor = next_cursor()
