"""How much a tenant may ask for, counted in the database for all API processes together.

Each count is an autocommit statement of its own, before the work: as a row lock inside the
publishing transaction it would cost three quarters of the throughput (schema.sql, "rate_limits").
"""

from __future__ import annotations

from typing import NamedTuple

from app import errors
from app.db import db
from app.settings import Settings

REGISTRATIONS_PER_MINUTE = 30
REPLAYS_PER_MINUTE = 6
# Published events: a bucket of this size, refilled at this rate; a batch costs its length.
EVENTS_PER_SECOND = 1000


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
        wait = _asked(
            "SELECT hookjetty.take_tokens(%s, %s, %s, %s)",
            (f"events:{tenant_id}", events, EVENTS_PER_SECOND, EVENTS_PER_SECOND),
        )
        if wait is not None:
            raise too_many_events(wait)


def too_many_events(wait_seconds: float) -> errors.Error:
    """What is raised when the bucket of events is empty for so long."""
    return _too_many(f"{EVENTS_PER_SECOND:,} events per second", wait_seconds)


def _hit(tenant_id: int, rate: Rate) -> None:
    wait = _asked(
        "SELECT hookjetty.count_hit(%s, %s, %s * interval '1 second')",
        (f"{rate.what}:{tenant_id}", rate.at_most, rate.seconds),
    )
    if wait is not None:
        raise _too_many(str(rate), wait)


def _asked(sql: str, parameters: tuple[object, ...]) -> float | None:
    """None: go on; otherwise the seconds until the same would be accepted."""
    wait: float | None = db.execute_sql(sql, parameters).fetchone()[0]
    return wait


def _too_many(limit: str, wait_seconds: float) -> errors.Error:
    return errors.Error(
        "rate_limited",
        f"more than {limit} of this tenant; try again after the time in Retry-After",
        retry_after=wait_seconds,
    )
