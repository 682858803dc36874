"""How an endpoint is, by what it answered. Pure: everything it needs comes in as an argument.

After FAILURES_TO_HOLD failures in a row an endpoint is on hold: its tasks wait, and each time the
hold runs out one of them, the probe, goes ahead. While the probes fail the holds get longer; the
first success ends them, and the tasks come back through a ramp. So an outage costs the receiver no
herd and the tasks none of their tries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random

from dispatcher.retry import Answer

FAILURES_TO_HOLD = 5
FIRST_HOLD_SECONDS, LONGEST_HOLD_SECONDS = 5, 900

# Nothing but failures for so long, and so many: nobody is going to repair it.
TIME_TO_DISABLE, FAILURES_TO_DISABLE = timedelta(days=5), 10

# After a recovery the endpoint's slots double each time this has passed, from one on.
RAMP_SECONDS = 2

# From the moment a probe is released until it is claimed and its lease begins, at most. Longer than
# the last part of a hold, in which the claim does not look for probes (dispatcher/claim.py).
PROBE_CLAIM_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Health:
    """What an endpoint's row says about it (schema.sql, "Health")."""

    status: str = "active"
    reason: str | None = None
    failures: int = 0  # in a row
    failing_since: datetime | None = None
    hold_until: datetime | None = None  # on hold exactly while this is set, passed or not
    recovered_at: datetime | None = None

    @property
    def is_on_hold(self) -> bool:
        """Whether its tasks wait."""
        return self.hold_until is not None

    @property
    def is_unwell(self) -> bool:
        """Whether a success would change something, so that it has to be told."""
        return self.status == "active" and (self.failures > 0 or self.is_on_hold)


@dataclass(frozen=True, slots=True)
class Heard:
    """An attempt that has ended, as far as its endpoint's health goes."""

    endpoint_id: int
    was_probe: bool  # sent past a hold of the endpoint
    answer: Answer


def matters(answer: Answer, is_unwell: bool) -> bool:
    """Whether an answer can change anything about an endpoint that was (not) unwell before.

    >>> matters(Answer(200, None), False), matters(Answer(200, None), True)
    (False, True)
    >>> matters(Answer(503, "http_5xx"), False), matters(Answer(410, "http_4xx"), False)
    (True, True)
    """
    if answer.failure is None:  # nearly always, so it comes first
        return is_unwell
    return answer.shows_life is False or answer.status_code == 410 or is_unwell


def after(
    health: Health, heard: Iterable[Heard], now: datetime, rng: Random, *, jitter: float = 0.2
) -> Health:
    """The health after what was heard, in the order it ended; the same object if nothing changes.

    An endpoint that is not active changes by what people do, not by what still comes back.

    >>> noon = datetime(2026, 1, 1, 12)
    >>> refused = Heard(7, False, Answer(None, "connect"))
    >>> after(Health(), [refused] * 4, noon, Random(1)).is_on_hold
    False
    >>> down = after(Health(), [refused] * 20, noon, Random(1), jitter=0)
    >>> down.failures, down.hold_until - noon  # what came back during the hold does not count
    (5, datetime.timedelta(seconds=5))
    >>> refused_again = Heard(7, True, Answer(None, "connect"))
    >>> after(down, [refused_again], noon, Random(1), jitter=0).hold_until - noon
    datetime.timedelta(seconds=10)
    >>> after(down, [Heard(7, True, Answer(200, None))], noon, Random(1)).is_on_hold
    False
    """
    for each in heard:
        if health.status != "active":
            break
        if each.answer.status_code == 410:
            health = replace(health, status="disabled", reason="gone", hold_until=None)
        elif each.answer.shows_life:
            health = _alive(health, each.was_probe, now)
        elif each.answer.shows_life is False:
            health = _failed(health, each, now, rng, jitter)
    return health


def _alive(health: Health, was_probe: bool, now: datetime) -> Health:
    """It works: all that was held against it is forgotten.

    A hold it asked for with Retry-After, before it failed often enough to be on hold anyway, goes
    on: it is a wish and no sickness, and what succeeds now was sent before it was made.
    """
    if not health.is_unwell:
        return health
    was_down = health.failures >= FAILURES_TO_HOLD
    better = replace(
        health,
        failures=0,
        failing_since=None,
        hold_until=None if was_down or was_probe else health.hold_until,
        recovered_at=now if was_down else health.recovered_at,
    )
    return health if better == health else better


def _failed(health: Health, heard: Heard, now: datetime, rng: Random, jitter: float) -> Health:
    """It does not work. Late results (sent before the hold began, back during it) count only until
    there is a hold for that reason, or twenty slots would make the first hold the longest at once.
    """
    is_late = health.is_on_hold and not heard.was_probe
    counts = not is_late or health.failures < FAILURES_TO_HOLD
    failures = health.failures + counts
    since = health.failing_since or now
    if counts and failures >= FAILURES_TO_DISABLE and now - since >= TIME_TO_DISABLE:
        return replace(
            health,
            status="disabled",
            reason="failing",
            failures=failures,
            failing_since=since,
            hold_until=None,
        )
    held = [health.hold_until, heard.answer.asks_to_wait_until(now)]
    if counts and failures >= FAILURES_TO_HOLD:
        seconds = _hold_seconds(failures) * rng.uniform(1 - jitter, 1 + jitter)
        # A failed probe replaces the time it had been given (at_end_of_hold).
        held = [*held[not is_late :], now + timedelta(seconds=seconds)]
    hold_until = max((moment for moment in held if moment is not None), default=None)
    worse = replace(health, failures=failures, failing_since=since, hold_until=hold_until)
    return health if worse == health else worse


def _hold_seconds(failures: int) -> int:
    """How long an endpoint is left alone after so many failures.

    >>> [_hold_seconds(failures) for failures in (5, 6, 7, 12, 13, 10**9)]
    [5, 10, 20, 640, 900, 900]
    """
    doublings = min(failures - FAILURES_TO_HOLD, 10)
    return min(FIRST_HOLD_SECONDS << doublings, LONGEST_HOLD_SECONDS)


def sends_probe(health: Health) -> bool:
    """Whether a hold that has run out is to be followed by a probe, rather than by all tasks."""
    return health.status == "active" and health.failures >= FAILURES_TO_HOLD


def at_end_of_hold(health: Health, now: datetime, has_probe: bool, lease_seconds: float) -> Health:
    """The health when the hold has run out.

    With a probe to send, the hold goes on until that one's lease has ended for certain, so it is
    one at a time. Without one the hold ends; the next task finds out, and if it fails the
    endpoint is on hold again at once.

    >>> noon = datetime(2026, 1, 1, 12)
    >>> asked_to_wait = Health(failures=1, failing_since=noon, hold_until=noon)
    >>> at_end_of_hold(asked_to_wait, noon, True, 60).is_on_hold
    False
    >>> down = replace(asked_to_wait, failures=5)
    >>> at_end_of_hold(down, noon, True, 60).hold_until - noon
    datetime.timedelta(seconds=75)
    """
    if not (sends_probe(health) and has_probe):
        return replace(health, hold_until=None)
    lease = timedelta(seconds=lease_seconds + PROBE_CLAIM_SECONDS)
    return replace(health, hold_until=now + lease)


def ramped(slots: int, recovered_at: datetime | None, now: datetime) -> int:
    """How many of its slots an endpoint may use: few at first after a recovery.

    The twin of hookjetty.ramped() in schema.sql, which the claim calls.

    >>> noon = datetime(2026, 1, 1, 12)
    >>> [ramped(20, noon, noon + timedelta(seconds=s)) for s in (0, 2, 4, 6, 8, 10, 10**6)]
    [1, 2, 4, 8, 16, 20, 20]
    """
    if recovered_at is None:
        return slots
    passed = max((now - recovered_at).total_seconds(), 0.0)
    return min(slots, 1 << min(int(passed // RAMP_SECONDS), 10))
