"""Endpoints: register, list, look at, delete, pause, resume, verify, test; and their secrets."""

from __future__ import annotations

from typing import Any

from app import endpoints
from app.blueprints.common import (
    audited,
    called_by,
    idempotent,
    if_matching,
    link_to_next,
    may_answer,
    naming_state,
    service,
)
from app.blueprints.tenant.surface import a_reader, a_writer, blueprint
from app.models import Endpoint, IfMatch
from app.ratelimit import Limits
from app.schemas.base import PageQuery
from app.schemas.endpoints import (
    EndpointDetail,
    EndpointPage,
    EndpointRegistered,
    EndpointState,
    EndpointSwitched,
    EndpointVerified,
    Registration,
    Rotation,
    SecretRevealed,
    SecretRotated,
    TestSent,
    TestWanted,
    Verify,
)
from app.schemas.fields import parse_id

blp = blueprint("endpoints", "URLs that a tenant wants called.")


class _PresentState:
    """Completes an answer about an endpoint with its state of now, once its receiver was asked.

    A repeat does not wait, and neither does anybody while others of this process do.
    """

    def __init__(self, schema: EndpointState) -> None:
        self._schema = schema

    def __call__(self, answer: dict[str, Any], is_repeat: bool) -> dict[str, Any]:
        waits = service().handshake_waits
        endpoint = Endpoint.get_by_id(parse_id("ep", answer["endpoint_id"]))
        if not is_repeat and waits.acquire(blocking=False):
            try:
                endpoint = endpoints.await_consent(endpoint)
            finally:
                waits.release()
        answer.pop("verification", None)
        return answer | self._schema.dump(endpoint)


with_present_state = _PresentState(EndpointState())


@blp.route("/endpoints", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.registration)
@blp.arguments(Registration())
@idempotent(answers_secret=True, then=with_present_state)
@blp.response(201, EndpointRegistered())
@blp.alt_response(200, schema=EndpointRegistered(), success=True)
@naming_state
@if_matching
def register_endpoint(tenant_id: int, wanted: dict[str, Any], if_match: IfMatch) -> Any:
    """Create or update an endpoint

    201 if it is new; 200 if the tenant has this URL already or `endpoint_id` selects it. The
    receiver is asked for its consent, and the answer waits for it, 3 s at most.
    """
    registered = service().registry.register(tenant_id, wanted, if_match)
    return registered, 201 if registered.is_new else 200


@blp.route("/endpoints", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(PageQuery(), location="query")
@blp.response(200, EndpointPage())
def list_endpoints(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the tenant's endpoints

    The oldest first, in every status but deleted.
    """
    found = endpoints.page_of_endpoints(tenant_id, **wanted)
    return found, link_to_next(found.next_cursor)


@blp.route("/endpoints/<endpoint_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, EndpointDetail())
@naming_state
def get_endpoint(tenant_id: int, endpoint_id: str) -> Any:
    """Look at one endpoint

    Its `ETag` names the state that people have given it; sent as `If-Match` with a change, it makes
    sure that nobody else has changed it meanwhile.
    """
    return Endpoint.get_of(tenant_id, parse_id("ep", endpoint_id))


@blp.route("/endpoints/<endpoint_id>", methods=["DELETE"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, EndpointState())
@if_matching
def delete_endpoint(tenant_id: int, endpoint_id: str, if_match: IfMatch) -> Any:
    """Delete an endpoint

    Its open tasks are canceled; those that are done stay listed.
    """
    return endpoints.delete(tenant_id, parse_id("ep", endpoint_id), if_match)


@blp.route("/endpoints/<endpoint_id>/pause", methods=["POST"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, EndpointSwitched())
@naming_state
@if_matching
def pause_endpoint(tenant_id: int, endpoint_id: str, if_match: IfMatch) -> Any:
    """Pause an endpoint

    It is not called until it is resumed; its tasks wait, and those of new events too. What is under
    way is finished. 409 for one that is disabled.
    """
    return endpoints.pause(tenant_id, parse_id("ep", endpoint_id), if_match)


@blp.route("/endpoints/<endpoint_id>/resume", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.registration)
@idempotent(then=with_present_state)
@blp.response(200, EndpointSwitched())
@naming_state
@if_matching
def resume_endpoint(tenant_id: int, endpoint_id: str, if_match: IfMatch) -> Any:
    """Resume an endpoint

    What waits for it flows at once, also if it is on hold. If it was disabled, or its receiver has
    not consented to its URL, it is asked for its consent first; the answer waits for that, 3 s at
    most.
    """
    return endpoints.resume(tenant_id, parse_id("ep", endpoint_id), if_match)


@blp.route("/endpoints/<endpoint_id>/verify", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.registration)
@blp.arguments(Verify())
@idempotent(then=_PresentState(EndpointVerified()))
@blp.response(200, EndpointVerified())
@naming_state
@if_matching
def verify_endpoint(
    tenant_id: int, wanted: dict[str, Any], endpoint_id: str, if_match: IfMatch
) -> Any:
    """Ask a pending endpoint's receiver for its consent now

    The answer waits for it, 3 s at most. An active endpoint has it; 409 for one that is paused or
    disabled. With `check_signatures` an active one is asked too, and whoever answers well gets
    another challenge with a wrong signature, which a receiver that verifies refuses.
    """
    return endpoints.verify(tenant_id, parse_id("ep", endpoint_id), **wanted, if_match=if_match)


@blp.route("/endpoints/<endpoint_id>/test", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.registration)
@blp.arguments(TestWanted())
@idempotent()
@blp.response(202, TestSent())
@if_matching
def test_endpoint(
    tenant_id: int, wanted: dict[str, Any], endpoint_id: str, if_match: IfMatch
) -> Any:
    """Send an endpoint a test event

    The example of an event type, for this endpoint alone, delivered and shown like any other event.
    409 unless the endpoint is active; if it is on hold, the test goes out all the same.
    """
    return endpoints.send_test(tenant_id, parse_id("ep", endpoint_id), wanted.get("type"), if_match)


@blp.route("/endpoints/<endpoint_id>/secret", methods=["GET"])
@called_by(a_writer, Limits.request)
@may_answer("version_conflict")
@audited
@blp.response(200, SecretRevealed())
@naming_state
def reveal_secret(tenant_id: int, endpoint_id: str) -> Any:
    """Show an endpoint's secret

    Takes a token that may write.
    """
    return service().registry.reveal(tenant_id, parse_id("ep", endpoint_id))


@blp.route("/endpoints/<endpoint_id>/secret/rotate", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.registration)
@blp.arguments(Rotation())
@idempotent(answers_secret=True)
@blp.response(200, SecretRotated())
@naming_state
@if_matching
def rotate_secret(
    tenant_id: int, wanted: dict[str, Any], endpoint_id: str, if_match: IfMatch
) -> Any:
    """Give an endpoint another secret

    Deliveries are signed with both for `overlap_seconds`, so that the receiver can change over in
    its own time. The answer has the new secret only if it was made up now.
    """
    return service().registry.rotate(
        tenant_id, parse_id("ep", endpoint_id), **wanted, if_match=if_match
    )
