"""The operator's own endpoints, which hear of every tenant's operational events."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from app.blueprints.admin.surface import an_admin, blueprint, paged
from app.blueprints.common import called_by, idempotent, service
from app.models import OPERATOR, Endpoint
from app.schemas.admin import AdminEndpoint, AdminEndpointCreated, AdminTask
from app.schemas.base import enveloped, enveloped_page
from app.schemas.tenants import OperatorRegistration, OperatorTaskQuery
from app.tasks import page_of_tasks

blp = blueprint("operator", "Who hears of every tenant's operational events.")


@blp.route("/operator/endpoints", methods=["POST"])
@called_by(an_admin)
@blp.arguments(OperatorRegistration())
@idempotent(answers_secret=True)
@blp.response(201, enveloped("OperatorEndpointCreated", fields.Nested(AdminEndpointCreated())))
def create_operator_endpoint(_owner: int, wanted: dict[str, Any]) -> Any:
    """Add an endpoint of the operator's

    It is active at once. 409 if the operator has that URL already. `/delete` deletes it.
    """
    return {"data": service().registry.add(OPERATOR, wanted)}


@blp.route("/operator/endpoints", methods=["GET"])
@called_by(an_admin)
@blp.response(200, enveloped("OperatorEndpoints", fields.List(fields.Nested(AdminEndpoint()))))
def list_operator_endpoints(_owner: int) -> Any:
    """List the operator's endpoints

    All of them, in every status but deleted.
    """
    return {"data": list(Endpoint.of(OPERATOR))}


@blp.route("/operator/tasks", methods=["GET"])
@called_by(an_admin)
@blp.arguments(OperatorTaskQuery(), location="query")
@blp.response(200, enveloped_page("OperatorTasks", AdminTask()))
def list_operator_tasks(_owner: int, wanted: dict[str, Any]) -> Any:
    """List the operator's tasks

    The newest first, each with its endpoint's URL.
    """
    found = page_of_tasks(OPERATOR, **wanted)
    return paged(found)
