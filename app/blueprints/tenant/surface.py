"""What the tenant surface's blueprints share: the prefix, the dialect, and who may call."""

from __future__ import annotations

from collections.abc import Callable

from app import errors
from app.auth import PUBLISH, READ, WRITE, Principal
from app.blueprints.common import Blueprint, Dialect, lets_in, plain_error

PREFIX = "/api/v1/data-consumption/webhooks"


def blueprint(noun: str, description: str) -> Blueprint:
    """The blueprint of one noun."""
    return Blueprint(noun, __name__, url_prefix=PREFIX, description=description)


def dialect() -> Dialect:
    """``{"error": "invalid_request"}`` (tenant-api.md, Error Model), and what is added."""
    return Dialect("tenant", PREFIX, plain_error)


def _tenant_with(scope: str) -> Callable[[Principal], int]:
    @lets_in(tenant=scope)
    def tenant_of(principal: Principal) -> int:
        if principal.tenant_id is None:
            raise errors.Error("forbidden", "this takes a tenant's token")
        _check_scope(principal, scope)
        return principal.tenant_id

    return tenant_of


a_reader = _tenant_with(READ)
a_writer = _tenant_with(WRITE)


@lets_in(tenant=PUBLISH, service=PUBLISH)
def a_publisher(principal: Principal) -> int:
    """A tenant, or a service that publishes for whichever tenant it names in the body."""
    if principal.tenant_id is None and not principal.is_service:
        raise errors.Error("forbidden", "this takes a tenant's or a service's token")
    _check_scope(principal, PUBLISH)
    return principal.tenant_id or 0


def _check_scope(principal: Principal, scope: str) -> None:
    if not principal.may(scope):
        raise errors.Error("forbidden", f"the token lacks the scope {scope}")
