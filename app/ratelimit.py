"""How much a tenant may ask for, counted in the database for all API processes together.

Each count is an autocommit statement of its own, before the work: as a row lock inside the
publishing transaction it would cost three quarters of the throughput (schema.sql, "rate_limits").
A tenant may have limits of its own (``Tenant``); those statements read them, so nobody here asks.
"""

from __future__ import annotations

from typing import NamedTuple

from app import errors
from app.db import db
from app.models import Tenant
from app.settings import Settings

REGISTRATIONS_PER_MINUTE = 30
REPLAYS_PER_MINUTE = 6
# Published events: a bucket of this size, refilled at this rate; a batch costs its length.
EVENTS_PER_SECOND = 1000


# What counts, where the name does not say all of it.
_COUNTED = {
    "registrations": "registering, resuming, verifying, testing and rotating a secret all count",
    "replay starts": "replays, bulk retries and recoveries all count",
}


class Rate(NamedTuple):
    """So many of something, of one tenant, within any so many seconds."""

    at_most: int
    what: str
    seconds: int

    def __str__(self) -> str:
        per = "second" if self.seconds == 1 else f"{self.seconds} seconds"
        return f"{self.at_most:,} {self.what} per {per}"


class Limits:
    """The limits of one instance. Each method counts one use, or raises ``rate_limited``.

    ``rates`` are what they allow, by the methods' names.
    """

    def __init__(self, settings: Settings) -> None:
        self.rates = {
            "request": Rate(settings.rate_limit, "requests", 1),
            "registration": Rate(REGISTRATIONS_PER_MINUTE, "registrations", 60),
            "replay": Rate(REPLAYS_PER_MINUTE, "replay starts", 60),
            "publish": Rate(EVENTS_PER_SECOND, "events", 1),
        }
        self._endpoints = settings.endpoints_per_tenant

    def of(self, tenant: Tenant) -> dict[str, int]:
        """What holds for a tenant: its own limits, and for the rest those of everybody."""
        everybodys = {
            "requests_per_second": self.rates["request"].at_most,
            "registrations_per_minute": self.rates["registration"].at_most,
            "replays_per_minute": self.rates["replay"].at_most,
            "events_per_second": self.rates["publish"].at_most,
            "endpoints": self._endpoints,
        }
        return everybodys | tenant.own_limits

    def request(self, tenant_id: int) -> None:
        """Any request but a publish. Refused ones do not count, invalid ones do."""
        _hit(tenant_id, self.rates["request"])

    def registration(self, tenant_id: int) -> None:
        """A request that makes us call a URL of the tenant's choice: it is asked to consent."""
        _hit(tenant_id, self.rates["registration"])

    def replay(self, tenant_id: int) -> None:
        """The start of a replay."""
        _hit(tenant_id, self.rates["replay"])

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
    return _too_many(Rate(int(per_second), "events", 1), wait_seconds)


def _hit(tenant_id: int, rate: Rate) -> None:
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
            "key": f"{rate.what}:{tenant_id}",
            "what": rate.what,
            "seconds": rate.seconds,
            "tenant": tenant_id,
            "otherwise": rate.at_most,
        },
    ).fetchone()
    if wait is not None:
        raise _too_many(rate._replace(at_most=at_most), wait)


def _too_many(limit: Rate, wait_seconds: float) -> errors.Error:
    counted = f" ({_COUNTED[limit.what]})" if limit.what in _COUNTED else ""
    return errors.Error(
        "rate_limited",
        f"more than {limit} of this tenant{counted}; try again after the time in Retry-After",
        retry_after=wait_seconds,
    )
