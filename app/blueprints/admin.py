"""The admin surface (admin-api.md): five operations, and the envelope around every answer."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from app import errors, schemas
from app.auth import Principal
from app.blueprints.common import Blueprint, Dialect, called_by, idempotent, link_to_next, service
from app.models import Endpoint, Task
from app.pages import page_of_tasks

PREFIX = "/api/webhooks"

blp = Blueprint("admin", __name__, url_prefix=PREFIX, description="Endpoints and tasks of tenants.")


def dialect() -> Dialect:
    """HTTP status and ``{"code": <status>, "msg": …, "data": null}``."""
    return Dialect(
        PREFIX, lambda error, status: {"code": status, "msg": error.message, "data": None}
    )


def an_admin(principal: Principal) -> int:
    """Admins act for no tenant of their own; nobody else is let in."""
    if not principal.is_admin:
        raise errors.Error("forbidden", "this takes a token with the role admin")
    return 0


@blp.route("", methods=["POST"])
@called_by(an_admin)
@blp.arguments(schemas.AdminRegistration())
@idempotent(answers_secret=True)
@blp.response(
    201, schemas.enveloped("EndpointCreated", fields.Nested(schemas.AdminEndpointCreated()))
)
def create_endpoint(_owner: int, wanted: dict[str, Any]) -> Any:
    """Add an endpoint for a tenant

    It is active at once, since an admin vouches for it. 409 if the tenant has that URL already.
    """
    return {"data": service().registry.add(wanted["tenant_id"], wanted)}


@blp.route("/delete", methods=["POST"])
@called_by(an_admin)
@blp.arguments(schemas.ById())
@idempotent()
@blp.response(200, schemas.enveloped("EndpointDeleted", fields.Nested(schemas.JustId())))
def delete_endpoint(_owner: int, wanted: dict[str, Any]) -> Any:
    """Delete an endpoint

    Its open tasks are canceled; those that are done stay listed.
    """
    Endpoint.delete_of(Endpoint.get_live(wanted["id"]))
    return {"data": wanted}


@blp.route("", methods=["GET"])
@called_by(an_admin)
@blp.arguments(schemas.OfTenant(), location="query")
@blp.response(
    200, schemas.enveloped("Endpoints", fields.List(fields.Nested(schemas.AdminEndpoint())))
)
def list_endpoints(_owner: int, wanted: dict[str, Any]) -> Any:
    """List a tenant's endpoints

    All of them, in every status but deleted.
    """
    return {"data": list(Endpoint.of(wanted["tenant_id"]))}


@blp.route("/tasks", methods=["GET"])
@called_by(an_admin)
@blp.arguments(schemas.AdminTaskQuery(), location="query")
@blp.response(
    200,
    schemas.enveloped(
        "Tasks",
        fields.List(fields.Nested(schemas.AdminTask())),
        next_cursor=fields.String(),
    ),
)
def list_tasks(_owner: int, wanted: dict[str, Any]) -> Any:
    """List a tenant's tasks

    The newest first, each with its endpoint's URL.
    """
    found = page_of_tasks(wanted.pop("tenant_id"), **wanted)
    return {"data": found.items, "next_cursor": found.next_cursor}, link_to_next(found.next_cursor)


@blp.route("/tasks/retry", methods=["POST"])
@called_by(an_admin)
@blp.arguments(schemas.ById())
@idempotent()
@blp.response(200, schemas.enveloped("TaskRetried", fields.Nested(schemas.JustId())))
def retry_task(_owner: int, wanted: dict[str, Any]) -> Any:
    """Retry a task at once

    It starts the schedule anew. 409 while it is being delivered or when nothing can be delivered
    any more; `msg` tells when it has to wait for its endpoint.
    """
    _, msg = Task.retry(wanted["id"])
    return {"data": wanted, "msg": msg}
