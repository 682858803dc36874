"""Endpoints: register, list, look at, verify, delete (tenant-api.md)."""

from __future__ import annotations

from typing import Any

from app import endpoints
from app.blueprints.common import called_by, idempotent, link_to_next, service
from app.blueprints.tenant.surface import a_reader, a_writer, blueprint
from app.models import Endpoint
from app.pages import page_of_endpoints
from app.ratelimit import Limits
from app.schemas.base import PageQuery
from app.schemas.endpoints import (
    EndpointItem,
    EndpointPage,
    EndpointRegistered,
    EndpointState,
    Registration,
)
from app.schemas.fields import parse_id

blp = blueprint("endpoints", "URLs that a tenant wants called.")

_STATE = EndpointState()


def with_present_state(answer: dict[str, Any], is_repeat: bool) -> dict[str, Any]:
    """An answer about an endpoint with its status of now, once the receiver has been asked.

    A repeat does not wait, and neither does anybody while others of this process do.
    """
    waits = service().handshake_waits
    endpoint = Endpoint.get_by_id(parse_id("ep", answer["endpoint_id"]))
    if not is_repeat and waits.acquire(blocking=False):
        try:
            endpoint = endpoints.await_consent(endpoint)
        finally:
            waits.release()
    answer.pop("verification", None)
    return answer | _STATE.dump(endpoint)


@blp.route("/endpoints", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.registration)
@blp.arguments(Registration())
@idempotent(answers_secret=True, then=with_present_state)
@blp.response(201, EndpointRegistered())
@blp.alt_response(200, schema=EndpointRegistered(), success=True)
def register_endpoint(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """Create or update an endpoint

    201 if it is new; 200 if the tenant has this URL already or `endpoint_id` selects it. The
    receiver is asked for its consent, and the answer waits for it, 3 s at most.
    """
    registered = service().registry.register(tenant_id, wanted)
    return registered, 201 if registered.is_new else 200


@blp.route("/endpoints", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(PageQuery(), location="query")
@blp.response(200, EndpointPage())
def list_endpoints(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the tenant's endpoints

    The oldest first, in every status but deleted.
    """
    found = page_of_endpoints(tenant_id, **wanted)
    return found, link_to_next(found.next_cursor)


@blp.route("/endpoints/<endpoint_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, EndpointItem())
def read_endpoint(tenant_id: int, endpoint_id: str) -> Any:
    """Look at one endpoint"""
    return Endpoint.get_of(tenant_id, parse_id("ep", endpoint_id))


@blp.route("/endpoints/<endpoint_id>", methods=["DELETE"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, EndpointState())
def delete_endpoint(tenant_id: int, endpoint_id: str) -> Any:
    """Delete an endpoint

    Its open tasks are canceled; those that are done stay listed.
    """
    endpoint = Endpoint.get_of(tenant_id, parse_id("ep", endpoint_id))
    return Endpoint.delete_of(endpoint)


@blp.route("/endpoints/<endpoint_id>/verify", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.registration)
@idempotent(then=with_present_state)
@blp.response(200, EndpointState())
def verify_endpoint(tenant_id: int, endpoint_id: str) -> Any:
    """Ask a pending endpoint's receiver for its consent now

    The answer waits for it, 3 s at most. An active endpoint has it; 409 for one that is paused or
    disabled.
    """
    return endpoints.verify(tenant_id, parse_id("ep", endpoint_id))
