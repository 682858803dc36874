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


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, as far as it decides: a status, or a word for why there is none."""

    status_code: int | None
    failure: str | None
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver said 2xx."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """To be tried again at ``at``; ``hold_until`` is set when the receiver asked for the pause."""

    at: datetime
    step: int
    hold_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The schedule has no step left."""

    step: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The receiver said 410: its endpoint is to be disabled, and the task waits."""

    step: int


Decision = Delivered | RetryAt | GiveUp | Gone


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
    from coming back as a herd.

    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> decide(Answer(204, None), 0, (0, 5, 300), noon, Random(1))
    Delivered()
    >>> decide(Answer(500, "http_5xx"), 0, (0, 5, 300), noon, Random(1), jitter=0).at - noon
    datetime.timedelta(seconds=5)
    >>> decide(Answer(None, "timeout"), 2, (0, 5, 300), noon, Random(1))
    GiveUp(step=2)
    >>> decide(Answer(429, "http_4xx", "120"), 0, (0, 5, 300), noon, Random(1)).step
    0
    """
    if answer.failure is None:
        return Delivered()
    if answer.status_code == 410:
        return Gone(step)
    burns_no_step = probe or answer.status_code == 429
    following = step + 1
    if not burns_no_step and following >= len(schedule):
        return GiveUp(step)
    hold_until = _asked_for(answer, now)
    delay = schedule[min(following, len(schedule) - 1)]
    jittered = timedelta(seconds=delay * rng.uniform(1 - jitter, 1 + jitter))
    return RetryAt(hold_until or now + jittered, step if burns_no_step else following, hold_until)


def _asked_for(answer: Answer, now: datetime) -> datetime | None:
    """The moment that a 429's or 503's Retry-After names, within bounds; None without a usable one.

    Seconds or an HTTP-date. Whatever else a receiver sends there (negative, fractional, words)
    is ignored rather than guessed at.
    """
    text = (answer.retry_after or "").strip()
    if answer.status_code not in (429, 503) or not text.isascii():
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
