"""Tenants as the admin surface shows them: limits, erasures, the log of actions, portal tokens."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, validate, validates_schema

from app.auth import PUBLISH, READ, WRITE
from app.models import TASK_STATUSES, TENANT_LIMITS
from app.schemas.base import Body, Outgoing, PageQuery, Query
from app.schemas.fields import (
    Id,
    Moment,
    Patterns,
    Secret,
    Text,
    TextId,
    Time,
    Url,
    one_of,
    reworded,
)

LONGEST_PORTAL_SECONDS = 3600
PORTAL_SECONDS = 900


class Whole(fields.Integer):
    """An integer from 1 to a largest one."""

    default_error_messages = reworded

    def __init__(self, largest: int, **kwargs: Any) -> None:
        metadata = {"minimum": 1, "maximum": largest} | kwargs.pop("metadata", {})
        super().__init__(metadata=metadata, **kwargs)
        self.largest = largest

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if type(value) is not int or not 1 <= value <= self.largest:
            raise ValidationError(f"must be an integer from 1 to {self.largest}")
        return value


class TenantNamed(Body):
    """A tenant that something is done about."""

    tenant_id = Id(required=True, metadata={"description": "The tenant."})


class OneTenant(Query):
    """The tenant that is asked about."""

    tenant_id = TextId(required=True, metadata={"description": "The tenant."})


def _own_limit(name: str, description: str) -> Whole:
    return Whole(
        TENANT_LIMITS[name],
        allow_none=True,
        metadata={"description": f"{description} null: as for everybody.", "examples": [50]},
    )


class LimitsWanted(TenantNamed):
    """Limits of a tenant's own; those that are absent stay as they are."""

    requests_per_second = _own_limit("requests_per_second", "Requests but publishing.")
    registrations_per_minute = _own_limit(
        "registrations_per_minute",
        "Requests that can make us call a URL at once: to register, resume, verify or test an"
        " endpoint, or to rotate its secret.",
    )
    replays_per_minute = _own_limit(
        "replays_per_minute", "Replays, bulk retries and recoveries started."
    )
    events_per_second = _own_limit(
        "events_per_second", "Events published, and how many of them at once."
    )
    endpoints = _own_limit("endpoints", "Endpoints at a time. More that are there already stay.")

    @validates_schema
    def _names_one(self, loaded: dict[str, Any], **_kwargs: Any) -> None:
        if not loaded.keys() & TENANT_LIMITS.keys():
            raise ValidationError(f"names no limit; there are {', '.join(TENANT_LIMITS)}")


class TenantLimits(Outgoing):
    """The limits that hold for a tenant."""

    requests_per_second = fields.Integer(metadata={"examples": [10]})
    registrations_per_minute = fields.Integer(metadata={"examples": [30]})
    replays_per_minute = fields.Integer(metadata={"examples": [6]})
    events_per_second = fields.Integer(metadata={"examples": [1000]})
    endpoints = fields.Integer(metadata={"examples": [100]})


class OwnLimits(TenantLimits):
    """Those of them that are the tenant's own."""

    where_it_applies = tuple(TENANT_LIMITS)


class TenantItem(Outgoing):
    """A tenant."""

    id = Id(attribute="tenant.id")
    created_at = Time(
        attribute="tenant.created_at",
        metadata={"description": "When it first had an endpoint or a limit of its own."},
    )
    endpoints = fields.Integer(metadata={"description": "Those that are not deleted."})
    limits = fields.Nested(TenantLimits(), metadata={"description": "What holds for it."})
    own_limits = fields.Nested(
        OwnLimits(), metadata={"description": "Those of them that differ from everybody's."}
    )


class ErasureQuery(PageQuery):
    """Which erasures."""

    tenant_id = TextId(metadata={"description": "Of this tenant alone."})


class ErasureItem(Outgoing):
    """A request to delete all that is known of a tenant, how far it has come, and its report."""

    id = Id()
    tenant_id = Id()
    status = one_of(("running", "finished"))
    created_at = Time(metadata={"description": "The moment up to which everything goes."})
    finished_at = Time(allow_none=True, metadata={"description": "null while it is running."})
    round = fields.Integer(
        metadata={"description": "The tables are gone through again until nothing is found."}
    )
    deleted = fields.Dict(
        keys=Text(),
        values=fields.Integer(),
        metadata={"description": "Rows deleted so far, by table.", "examples": [{"events": 1200}]},
    )
    left = fields.Dict(
        keys=Text(),
        values=fields.Integer(),
        allow_none=True,
        metadata={
            "description": "Rows that the last round still found, by table: none. null while it"
            " is running.",
            "examples": [{"events": 0}],
        },
    )


class AuditQuery(PageQuery):
    """Which actions."""

    tenant_id = TextId(metadata={"description": "On this tenant's things."})
    actor = Text(
        validate=validate.Length(1, 255, error="must have 1 to 255 characters"),
        metadata={"description": "By the bearer of tokens with this `sub`.", "examples": ["ada"]},
    )
    action = Text(
        validate=validate.Length(1, 255, error="must have 1 to 255 characters"),
        metadata={"description": "This operation.", "examples": ["delete_endpoint"]},
    )
    since = Moment(data_key="from", metadata={"description": "Then or later (RFC 3339)."})
    until = Moment(data_key="to", metadata={"description": "Before that (RFC 3339)."})


class AuditItem(Outgoing):
    """Something a person did."""

    id = Id(metadata={"examples": [244175641309186]})
    created_at = Time()
    tenant_id = fields.Integer(
        allow_none=True,
        metadata={"description": "Whose things; 0: the operator's, null: nobody's."},
    )
    actor = Text(metadata={"description": "The token's `sub`.", "examples": ["ada"]})
    role = one_of(("admin", "service", "tenant"))
    action = Text(metadata={"description": "The operation.", "examples": ["delete_endpoint"]})
    object = Text(
        allow_none=True, metadata={"description": "What it was done to.", "examples": ["ep_7"]}
    )
    address = Text(
        allow_none=True,
        metadata={"description": "The connection's other side.", "examples": ["192.0.2.7"]},
    )
    request_id = Text(metadata={"description": "X-Request-Id, given or made up."})
    status_code = fields.Integer(metadata={"description": "What was answered.", "examples": [200]})


class PortalTokenWanted(TenantNamed):
    """A short-lived token of a tenant's."""

    ttl_seconds = Whole(
        LONGEST_PORTAL_SECONDS,
        load_default=PORTAL_SECONDS,
        metadata={"description": "How long it holds.", "examples": [PORTAL_SECONDS]},
    )
    scope = Text(
        load_default=f"{READ} {WRITE}",
        metadata={
            "description": f"What it may do: `{READ}`, `{WRITE}` or both. Never publish.",
            "examples": [READ],
        },
    )

    @validates_schema
    def _scopes_of_a_portal(self, loaded: dict[str, Any], **_kwargs: Any) -> None:
        scopes = loaded.get("scope", READ).split(" ")
        if not set(scopes) <= {READ, WRITE}:
            never = f"; {PUBLISH} is for producers" if PUBLISH in scopes else ""
            raise ValidationError(
                {"scope": [f"must be {READ}, {WRITE} or both with a space between{never}"]}
            )


class PortalToken(Outgoing):
    """A token that acts for a tenant."""

    tenant_id = Id()
    token = Text(metadata={"description": "A JSON Web Token; shown once."})
    scope = Text(metadata={"examples": [f"{READ} {WRITE}"]})
    expires_at = Time()


def _are_operational(patterns: list[str]) -> None:
    for pattern in patterns:
        if pattern != "*" and not pattern.startswith("hookjetty."):
            raise ValidationError(
                f"{pattern!r} matches no operational event; their types begin with hookjetty."
            )


class OperatorRegistration(Body):
    """An endpoint of the operator's, which hears of every tenant's operational events."""

    url = Url(required=True, metadata={"description": "Where they are sent."})
    events = Patterns(
        metadata={
            "description": "Wanted types; all operational events when absent, or with `*`.",
            "examples": [["hookjetty.endpoint.*"]],
        },
        validate=_are_operational,
    )
    secret = Secret(metadata={"description": "Signs its deliveries; made up when absent."})


class OperatorTaskQuery(PageQuery):
    """Which of the operator's tasks."""

    status = one_of(TASK_STATUSES)
    endpoint_id = TextId(metadata={"description": "Of this endpoint alone."})
