"""Endpoints of any tenant: add, delete, list (admin-api.md)."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from app.blueprints.admin.surface import an_admin, blueprint
from app.blueprints.common import called_by, idempotent, service
from app.models import Endpoint
from app.schemas.admin import (
    AdminEndpoint,
    AdminEndpointCreated,
    AdminRegistration,
    ById,
    JustId,
    OfTenant,
)
from app.schemas.base import enveloped

blp = blueprint("endpoints", "Endpoints of any tenant.")


@blp.route("", methods=["POST"])
@called_by(an_admin)
@blp.arguments(AdminRegistration())
@idempotent(answers_secret=True)
@blp.response(201, enveloped("EndpointCreated", fields.Nested(AdminEndpointCreated())))
def create_endpoint(_owner: int, wanted: dict[str, Any]) -> Any:
    """Add an endpoint for a tenant

    It is active at once, since an admin vouches for it. 409 if the tenant has that URL already.
    """
    return {"data": service().registry.add(wanted["tenant_id"], wanted)}


@blp.route("/delete", methods=["POST"])
@called_by(an_admin)
@blp.arguments(ById())
@idempotent()
@blp.response(200, enveloped("EndpointDeleted", fields.Nested(JustId())))
def delete_endpoint(_owner: int, wanted: dict[str, Any]) -> Any:
    """Delete an endpoint

    Its open tasks are canceled; those that are done stay listed.
    """
    Endpoint.delete_of(Endpoint.get_live(wanted["id"]))
    return {"data": wanted}


@blp.route("", methods=["GET"])
@called_by(an_admin)
@blp.arguments(OfTenant(), location="query")
@blp.response(200, enveloped("Endpoints", fields.List(fields.Nested(AdminEndpoint()))))
def list_endpoints(_owner: int, wanted: dict[str, Any]) -> Any:
    """List a tenant's endpoints

    All of them, in every status but deleted.
    """
    return {"data": list(Endpoint.of(wanted["tenant_id"]))}
