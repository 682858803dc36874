"""Endpoints in the tenant contract (tenant-api.md, Register Endpoint and List Endpoints)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from marshmallow import fields, post_load

from app.endpoints import DEFAULT_OVERLAP, TEST_TYPE
from app.models import ENDPOINT_STATUSES, MOST_WAITING_COUNTED
from app.schemas.base import Body, Outgoing
from app.schemas.fields import (
    Boolean,
    Description,
    EventType,
    Metadata,
    Patterns,
    PrefixedId,
    Seconds,
    Secret,
    Text,
    Time,
    Url,
    next_cursor,
    one_of,
)

MAX_OVERLAP_SECONDS = 30 * 24 * 3600

_WAITING = {
    "description": "How many tasks wait for it; "
    f"{MOST_WAITING_COUNTED} stands for that many or more.",
    "maximum": MOST_WAITING_COUNTED,
}
_PREVIOUS_UNTIL = {"description": "Until when an earlier secret signs as well; null: none does."}
_VERIFIES = {
    "description": "Whether the receiver refused a challenge with a wrong signature, the last time"
    " that was checked since its URL changed; null: not known."
}


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
    description = Description(metadata={"description": "What it is for; null clears it."})
    metadata = Metadata(
        allow_none=True,
        metadata={
            "description": "Whatever your programs want to remember about it. Replaces what was"
            " there; null clears it.",
            "type": ["object", "null"],
        },
    )

    @post_load
    def _cleared(self, loaded: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        if "metadata" in loaded:
            loaded["metadata"] = loaded["metadata"] or {}
        return loaded


class Verify(Body):
    """POST /endpoints/{id}/verify."""

    may_be_absent = True

    check_signatures = Boolean(
        load_default=False,
        metadata={
            "description": "Whether to send, once the challenge was answered well, another one with"
            " a wrong signature: a receiver that verifies refuses it.",
        },
    )


class Rotation(Body):
    """POST /endpoints/{id}/secret/rotate."""

    may_be_absent = True

    secret = Secret(metadata={"description": "The new secret; made up when absent."})
    overlap_seconds = Seconds(
        MAX_OVERLAP_SECONDS,
        load_default=int(DEFAULT_OVERLAP.total_seconds()),
        metadata={
            "description": "How long those until now sign as well, at most. 0 when the secret has"
            " leaked: from then on only the new one signs."
        },
    )

    @post_load
    def _overlap(self, loaded: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        loaded["overlap"] = timedelta(seconds=loaded.pop("overlap_seconds"))
        return loaded


class TestWanted(Body):
    """POST /endpoints/{id}/test."""

    may_be_absent = True

    type = EventType(
        metadata={
            "description": "Whose example is sent. By default the first type that the endpoint"
            f" names, or `{TEST_TYPE}`.",
        }
    )


class Verification(Outgoing):
    """How a pending endpoint's handshake stands, or what kept a check from telling anything."""

    failure = Text(
        allow_none=True, metadata={"description": "Why the last challenge failed; null: none did."}
    )
    next_try_at = Time(allow_none=True)


class EndpointState(Outgoing):
    """tenant-api.md, Register Endpoint: what every answer about an endpoint begins with."""

    endpoint_id = PrefixedId("ep", attribute="id")
    status = one_of(ENDPOINT_STATUSES, metadata={"example": "active"})
    verification = fields.Nested(Verification())

    where_it_applies: tuple[str, ...] = ("verification",)


class EndpointVerified(EndpointState):
    """POST /endpoints/{id}/verify."""

    verifies_signatures = fields.Boolean(allow_none=True, metadata=_VERIFIES)


class OfEndpoint(Outgoing):
    """The same as ``EndpointState`` for what has an endpoint."""

    endpoint_id = PrefixedId("ep", attribute="endpoint.id")
    status = one_of(ENDPOINT_STATUSES, attribute="endpoint.status", metadata={"example": "active"})
    verification = fields.Nested(Verification(), attribute="endpoint.verification")

    where_it_applies: tuple[str, ...] = ("verification",)


class EndpointRegistered(OfEndpoint):
    """tenant-api.md, Register Endpoint."""

    secret = Text(metadata={"description": "Only if it was made up now."})

    where_it_applies = ("secret", "verification")


class EndpointSwitched(OfEndpoint):
    """POST /endpoints/{id}/pause and /resume."""

    waiting = fields.Integer(metadata=_WAITING)


class SecretRotated(EndpointRegistered):
    """POST /endpoints/{id}/secret/rotate."""

    previous_until = Time(allow_none=True, metadata=_PREVIOUS_UNTIL)


class SecretRevealed(Outgoing):
    """GET /endpoints/{id}/secret."""

    endpoint_id = PrefixedId("ep", attribute="endpoint.id")
    secret = Text(metadata={"description": "Signs its deliveries.", "format": "password"})
    previous_until = Time(allow_none=True, metadata=_PREVIOUS_UNTIL)


class TestSent(Outgoing):
    """POST /endpoints/{id}/test."""

    event_id = PrefixedId("evt")
    task_id = PrefixedId("task")


class EndpointItem(EndpointState):
    """tenant-api.md, List Endpoints."""

    url = Text()
    events = fields.List(Text())
    description = Text()
    created_at = Time()
    reason = Text(metadata={"description": "Why it was disabled."})
    failing_since = Time(metadata={"description": "Since when there was nothing but failures."})

    where_it_applies = ("verification", "description", "reason", "failing_since")


class EndpointDetail(EndpointItem):
    """GET /endpoints/{id}."""

    metadata = Metadata()
    version = fields.Integer(metadata={"description": "Counts the changes that people made."})
    updated_at = Time(metadata={"description": "When it was changed, by people or its status."})
    verified_at = Time(
        allow_none=True, metadata={"description": "When its receiver consented; null: not yet."}
    )
    verifies_signatures = fields.Boolean(allow_none=True, metadata=_VERIFIES)
    failures = fields.Integer(metadata={"description": "In a row, up to now."})
    hold_until = Time(
        allow_none=True,
        metadata={
            "description": "On hold: when one task probes it, or all go on. Null: it is not."
        },
    )
    waiting = fields.Integer(metadata=_WAITING)


class EndpointPage(Outgoing):
    """A page of a tenant's endpoints."""

    items = fields.List(fields.Nested(EndpointItem()))
    next_cursor = next_cursor()
