"""How much a tenant may ask for, counted in the database for all API processes together.

Each count is an autocommit statement of its own, before the work: as a row lock inside the
publishing transaction it would cost three quarters of the throughput (schema.sql, "rate_limits").
A tenant may have limits of its own (``Tenant``); those statements read them, so nobody here asks.
"""

from __future__ import annotations

from app import errors
from app.db import db
from app.models import Tenant
from app.settings import Settings

REGISTRATIONS_PER_MINUTE = 30
REPLAYS_PER_MINUTE = 6
# Published events: a bucket of this size, refilled at this rate; a batch costs its length.
EVENTS_PER_SECOND = 1000


class Limits:
    """The limits of one instance. Each verb counts one use, or raises ``rate_limited``."""

    def __init__(self, settings: Settings) -> None:
        self._requests_per_second = settings.rate_limit
        self._endpoints = settings.endpoints_per_tenant

    def of(self, tenant: Tenant) -> dict[str, int]:
        """What holds for a tenant: its own limits, and for the rest those of everybody."""
        everybodys = {
            "requests_per_second": self._requests_per_second,
            "registrations_per_minute": REGISTRATIONS_PER_MINUTE,
            "replays_per_minute": REPLAYS_PER_MINUTE,
            "events_per_second": EVENTS_PER_SECOND,
            "endpoints": self._endpoints,
        }
        return everybodys | tenant.own_limits

    def request(self, tenant_id: int) -> None:
        """Any request but a publish. Refused ones do not count, invalid ones do."""
        _hit(tenant_id, "requests", self._requests_per_second, 1)

    def registration(self, tenant_id: int) -> None:
        """A request that makes us call a URL of the tenant's choice: it is asked to consent."""
        _hit(tenant_id, "registrations", REGISTRATIONS_PER_MINUTE, 60)

    def replay(self, tenant_id: int) -> None:
        """The start of a replay."""
        _hit(tenant_id, "replay starts", REPLAYS_PER_MINUTE, 60)

    def publish(self, tenant_id: int, events: int = 1) -> None:
        """Publishing so many events."""
        per_second, wait = db.execute_sql(
            """
            SELECT mine.per_second,
                   hookjetty.take_tokens(%(key)s, %(events)s, mine.per_second, mine.per_second)
            FROM (SELECT coalesce((SELECT t.events_per_second FROM hookjetty.tenants t
                                   WHERE t.id = %(tenant)s), %(otherwise)s) AS per_second
                  OFFSET 0) mine
            """,
            {
                "key": f"events:{tenant_id}",
                "events": events,
                "tenant": tenant_id,
                "otherwise": EVENTS_PER_SECOND,
            },
        ).fetchone()
        if wait is not None:
            raise too_many_events(wait, per_second)


def too_many_events(wait_seconds: float, per_second: float) -> errors.Error:
    """What is raised when the bucket of so many events is empty for so long."""
    return _too_many(f"{per_second:,.0f} events per second", wait_seconds)


def _hit(tenant_id: int, what: str, otherwise: int, seconds: int) -> None:
    at_most, wait = db.execute_sql(
        """
        SELECT mine.at_most,
               hookjetty.count_hit(%(key)s, mine.at_most, %(seconds)s * interval '1 second')
        FROM (SELECT coalesce((
                  SELECT CASE %(what)s WHEN 'requests' THEN t.requests_per_second
                                       WHEN 'registrations' THEN t.registrations_per_minute
                                       WHEN 'replay starts' THEN t.replays_per_minute END
                  FROM hookjetty.tenants t WHERE t.id = %(tenant)s), %(otherwise)s) AS at_most
              OFFSET 0) mine
        """,
        {
            "key": f"{what}:{tenant_id}",
            "what": what,
            "seconds": seconds,
            "tenant": tenant_id,
            "otherwise": otherwise,
        },
    ).fetchone()
    if wait is not None:
        per = "second" if seconds == 1 else f"{seconds} seconds"
        raise _too_many(f"{at_most:,} {what} per {per}", wait)


def _too_many(limit: str, wait_seconds: float) -> errors.Error:
    return errors.Error(
        "rate_limited",
        f"more than {limit} of this tenant; try again after the time in Retry-After",
        retry_after=wait_seconds,
    )
