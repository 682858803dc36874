"""What happens to a task after an attempt. Pure: everything it needs comes in as an argument."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from random import Random

# A receiver that names its own delay (RFC 9110, section 10.2.3) is heeded within these bounds.
SHORTEST_HOLD, LONGEST_HOLD = timedelta(seconds=1), timedelta(hours=24)


# Failures that are true of whatever would be sent to that endpoint, not of this one request. An
# address that may not be called is among them: like a name that leads nowhere, it stops all tasks.
OF_THE_ENDPOINT = frozenset(
    ("dns", "blocked_address", "connect", "tls", "timeout", "reset", "bad_response", "http_5xx")
)
# Ours: nothing was sent, or nobody knows, so they say nothing about the receiver.
OF_OURS = frozenset(("unsendable", "interrupted"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, as far as it decides: a status, or a word for why there is none."""

    status_code: int | None
    failure: str | None
    retry_after: str | None = None

    @property
    def shows_life(self) -> bool | None:
        """Whether the endpoint works: False counts against it, None says nothing about it.

        A server that refuses this request (other 4xx, a redirect, headers without end) is there
        and works. 408 and 429 are 4xx, but say that it cannot keep up.

        >>> [Answer(status, "http_4xx").shows_life for status in (400, 404, 408, 429)]
        [True, True, False, False]
        >>> [Answer(None, word).shows_life for word in ("timeout", "too_large", "unsendable")]
        [False, True, None]
        """
        if self.failure is None:
            return True
        if self.failure in OF_OURS:
            return None
        return self.failure not in OF_THE_ENDPOINT and self.status_code not in (408, 429)

    def asks_to_wait_until(self, now: datetime) -> datetime | None:
        """The moment that a 429's or 503's Retry-After names, within bounds; None without one.

        Seconds or an HTTP-date. Whatever else a receiver sends there (negative, fractional, words)
        is ignored rather than guessed at.
        """
        text = (self.retry_after or "").strip()
        if self.status_code not in (429, 503) or not text.isascii():
            return None
        if re.fullmatch("[0-9]+", text):
            # Thousands of digits are one way to say "late": compare lengths before converting.
            seconds = int(text) if len(text) <= 9 else LONGEST_HOLD.total_seconds()
            asked = timedelta(seconds=min(seconds, LONGEST_HOLD.total_seconds()))
        else:
            try:
                moment = parsedate_to_datetime(text)
                asked = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
            except (ValueError, TypeError, OverflowError, IndexError):
                return None
        return now + min(max(asked, SHORTEST_HOLD), LONGEST_HOLD)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver said 2xx."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """To be tried again at ``at``."""

    at: datetime
    step: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The schedule has no step left."""

    step: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The receiver said 410: its endpoint is to be disabled, and the task waits."""

    step: int


@dataclass(frozen=True, slots=True)
class Waits:
    """It was the probe of an endpoint on hold, which goes on: the task waits with the others."""

    step: int


Decision = Delivered | RetryAt | GiveUp | Gone | Waits


def decide(
    answer: Answer,
    step: int,
    schedule: Sequence[float],
    now: datetime,
    rng: Random,
    *,
    jitter: float = 0.2,
    probe: bool = False,
) -> Decision:
    """Decide on a task at ``step`` of ``schedule`` (delays in seconds before each try).

    Every try advances the step, except a probe of an endpoint on hold and a 429: neither says
    anything about the task. The delay is the next step's whether or not the step advances, or a
    429 on the first try (delay 0) would spin. Jitter of ±``jitter`` keeps the tasks of an outage
    from coming back as a herd. A probe that found no life waits like the tasks it went ahead of.

    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> decide(Answer(204, None), 0, (0, 5, 300), noon, Random(1))
    Delivered()
    >>> decide(Answer(500, "http_5xx"), 0, (0, 5, 300), noon, Random(1), jitter=0).at - noon
    datetime.timedelta(seconds=5)
    >>> decide(Answer(None, "timeout"), 2, (0, 5, 300), noon, Random(1))
    GiveUp(step=2)
    >>> decide(Answer(None, "timeout"), 2, (0, 5, 300), noon, Random(1), probe=True)
    Waits(step=2)
    >>> decide(Answer(429, "http_4xx", "120"), 0, (0, 5, 300), noon, Random(1)).step
    0
    """
    if answer.failure is None:
        return Delivered()
    if answer.status_code == 410:
        return Gone(step)
    if probe and not answer.shows_life:
        return Waits(step)
    burns_no_step = probe or answer.status_code == 429
    following = step + 1
    if not burns_no_step and following >= len(schedule):
        return GiveUp(step)
    delay = schedule[min(following, len(schedule) - 1)]
    jittered = timedelta(seconds=delay * rng.uniform(1 - jitter, 1 + jitter))
    asked = answer.asks_to_wait_until(now)
    return RetryAt(asked or now + jittered, step if burns_no_step else following)
