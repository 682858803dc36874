"""What an operator does about a tenant: look, set its limits, erase all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from peewee import SQL, ModelSelect, fn

from app import errors
from app.db import db
from app.models import (
    OPERATOR,
    TENANT_LIMITS,
    WELL,
    BulkRetry,
    Endpoint,
    Replay,
    Tenant,
    TenantErasure,
    wake,
)
from app.pages import Page, page
from app.ratelimit import Limits


class Known(NamedTuple):
    """A tenant as an operator sees it: the limits that hold, and which of them are its own."""

    tenant: Tenant
    endpoints: int
    limits: dict[str, int]
    own_limits: dict[str, int]


def page_of_tenants(limits: Limits, *, limit: int, cursor: str | None = None) -> Page:
    """The tenants that have ever had an endpoint or a limit of their own, by id."""
    found = page(_listed(), Tenant.id, limit=limit, cursor=cursor, of=("tenants",))
    return found._replace(items=[_known(each, limits) for each in found.items])


def get(tenant_id: int, limits: Limits) -> Known:
    """One of those, or ``not_found``."""
    tenant = _listed().where(Tenant.id == tenant_id).first()
    if tenant is None:
        raise errors.not_found(f"tenant {tenant_id}")
    return _known(tenant, limits)


def set_limits(tenant_id: int, wanted: Mapping[str, int | None], limits: Limits) -> Known:
    """Give a tenant limits of its own, for each name of ``TENANT_LIMITS`` in ``wanted``.

    None lets it have everybody's again. They hold from the next request on.
    """
    with db.atomic():
        Tenant.lock(tenant_id)
        Tenant.update(**wanted).where(Tenant.id == tenant_id).execute()
        return get(tenant_id, limits)


def erase(tenant_id: int) -> TenantErasure:
    """Delete all that is known of a tenant up to this moment: a job of the dispatchers does it.

    Its endpoints are deleted here and now, so nothing is sent any more. ``version_conflict`` while
    an erasure of that tenant runs.
    """
    with db.atomic():
        Tenant.lock(tenant_id)
        live = Endpoint.of(tenant_id).for_update()
        ids = [endpoint.id for endpoint in live]
        Endpoint.update(
            status="deleted",
            reason=None,
            handshake_at=None,
            version=Endpoint.version + 1,
            updated_at=fn.now(),
            settling=True,
            **WELL,
        ).where(Endpoint.id.in_(ids)).execute()
        for walk in (Replay, BulkRetry):
            walk.update(status="canceled", finished_at=fn.now()).where(
                walk.tenant_id == tenant_id, walk.status == "running"
            ).execute()
        Tenant.update(dict.fromkeys(TENANT_LIMITS)).where(Tenant.id == tenant_id).execute()
        last = Endpoint.select(fn.max(Endpoint.id)).where(Endpoint.tenant_id == tenant_id).scalar()
        rows = (
            TenantErasure.insert(
                tenant_id=tenant_id,
                status="running",
                upto_id=SQL("hookjetty.id_at(clock_timestamp()) | 4095"),
                upto_endpoint_id=last or 0,
            )
            .on_conflict_ignore()  # schema.sql, tenant_erasures_running: one at a time of a tenant
            .returning(TenantErasure)
            .execute()
        )
        erasure: TenantErasure | None = next(iter(rows), None)
        if erasure is None:
            raise errors.conflict(f"tenant {tenant_id} is being erased already")
        wake()
    return erasure


def page_of_erasures(
    tenant_id: int | None = None, *, limit: int, cursor: str | None = None
) -> Page:
    """The erasures that were asked for, of one tenant if so wanted, the newest first."""
    query = TenantErasure.select().order_by(TenantErasure.id.desc())
    if tenant_id is not None:
        query = query.where(TenantErasure.tenant_id == tenant_id)
    of = ("erasures", tenant_id)
    return page(query, TenantErasure.id, limit=limit, cursor=cursor, of=of, newest_first=True)


def _listed() -> ModelSelect[Tenant]:
    endpoints = Endpoint.select(fn.count(Endpoint.id)).where(
        Endpoint.tenant_id == Tenant.id, Endpoint.status != "deleted"
    )
    return (
        Tenant.select(Tenant, endpoints.alias("live_endpoints"))
        .where(Tenant.id != OPERATOR)
        .order_by(Tenant.id)
    )


def _known(tenant: Tenant, limits: Limits) -> Known:
    live: int = tenant.live_endpoints  # type: ignore[attr-defined]  # as selected above
    return Known(tenant, live, limits.of(tenant), tenant.own_limits)
