"""Tenants: list, look at one, set its limits, make it a portal's token, erase it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from flask import g
from marshmallow import fields

from app import errors, tenants
from app.blueprints.admin.surface import an_admin, blueprint, paged
from app.blueprints.common import called_by, idempotent, may_answer, service
from app.schemas.base import PageQuery, enveloped, enveloped_page
from app.schemas.tenants import (
    ErasureItem,
    ErasureQuery,
    LimitsWanted,
    OneTenant,
    PortalToken,
    PortalTokenWanted,
    TenantItem,
    TenantNamed,
)
from app.settings import SettingsError

blp = blueprint("tenants", "Customers of the platform.")


@blp.route("/tenants", methods=["GET"])
@called_by(an_admin)
@blp.arguments(PageQuery(), location="query")
@blp.response(200, enveloped_page("Tenants", TenantItem()))
def list_tenants(_owner: int, wanted: dict[str, Any]) -> Any:
    """List the tenants

    Those that have had an endpoint or a limit of their own, by id, each with the limits that hold
    for it.
    """
    found = tenants.page_of_tenants(service().limits, **wanted)
    return paged(found)


@blp.route("/tenants/detail", methods=["GET"])
@called_by(an_admin)
@may_answer("not_found")
@blp.arguments(OneTenant(), location="query")
@blp.response(200, enveloped("Tenant", fields.Nested(TenantItem())))
def get_tenant(_owner: int, wanted: dict[str, Any]) -> Any:
    """Look at one tenant

    404 if it never had an endpoint or a limit of its own; it may have published all the same.
    """
    return {"data": tenants.get(wanted["tenant_id"], service().limits)}


@blp.route("/tenants/limits", methods=["POST"])
@called_by(an_admin)
@blp.arguments(LimitsWanted())
@idempotent()
@blp.response(200, enveloped("TenantLimited", fields.Nested(TenantItem())))
def limit_tenant(_owner: int, wanted: dict[str, Any]) -> Any:
    """Give a tenant limits of its own

    They hold from the next request on, whichever process it reaches. `null` lets the tenant have
    everybody's again; those that are absent stay as they are.
    """
    limits = {name: value for name, value in wanted.items() if name != "tenant_id"}
    return {"data": tenants.set_limits(wanted["tenant_id"], limits, service().limits)}


@blp.route("/tenants/portal-token", methods=["POST"])
@called_by(an_admin)
@blp.arguments(PortalTokenWanted())
@idempotent(answers_secret=True)
@blp.response(201, enveloped("PortalTokenMade", fields.Nested(PortalToken())))
def create_portal_token(_owner: int, wanted: dict[str, Any]) -> Any:
    """Make a short-lived token of a tenant's

    For a page that shows a tenant its own webhooks. It may read and write and never publish; its
    `sub` is `portal:` and yours. 409 where tokens are verified with public keys alone. The same
    X-Request-Id again answers the same token, which may be over by then.
    """
    try:
        token = service().tokens.mint(
            subject=f"portal:{g.principal.subject}",
            ttl_seconds=wanted["ttl_seconds"],
            tenant_id=wanted["tenant_id"],
            scopes=wanted["scope"].split(" "),
        )
    except SettingsError as reason:
        raise errors.conflict(str(reason)) from None
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=wanted["ttl_seconds"])
    made = {name: wanted[name] for name in ("tenant_id", "scope")}
    return {"data": made | {"token": token, "expires_at": until}}


@blp.route("/tenants/erase", methods=["POST"])
@called_by(an_admin)
@blp.arguments(TenantNamed())
@idempotent()
@blp.response(202, enveloped("ErasureStarted", fields.Nested(ErasureItem())))
def erase_tenant(_owner: int, wanted: dict[str, Any]) -> Any:
    """Delete all that is known of a tenant

    Its endpoints receive nothing from now on; the rest goes in the background, which
    `/tenants/erasures` shows. What is published after this moment is not erased. 409 while the
    tenant is being erased already.
    """
    return {"data": tenants.erase(wanted["tenant_id"])}


@blp.route("/tenants/erasures", methods=["GET"])
@called_by(an_admin)
@blp.arguments(ErasureQuery(), location="query")
@blp.response(200, enveloped_page("Erasures", ErasureItem()))
def list_erasures(_owner: int, wanted: dict[str, Any]) -> Any:
    """List the erasures of tenants

    The newest first, each with what was deleted, and once it is finished what is left.
    """
    found = tenants.page_of_erasures(**wanted)
    return paged(found)
