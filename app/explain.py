"""Why an endpoint gets an event or does not, in words for the person who asks.

Pure functions of rows and of the database's clock, so a dry run of a publish and a look at a task
say the same. What happens to an endpoint's tasks is decided in schema.sql and in the dispatcher;
this page only puts it into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from app.models import Endpoint, rfc3339

# Of an endpoint's wanted types, so many are named.
MOST_PATTERNS_NAMED = 5

_DISABLED = {
    "gone": "its receiver answered 410 Gone",
    "failing": "it failed for too long",
}


def why_endpoint(endpoint: Endpoint, event_type: str, now: datetime) -> str:
    """What would become of an event of that type at that endpoint, and why."""
    return (
        why_no_task(endpoint, event_type)
        or why_waiting(endpoint, now)
        or f"active, and {matching(endpoint.events, event_type)} matches"
    )


def why_no_task(endpoint: Endpoint, event_type: str) -> str | None:
    """Why an event of that type makes no task for the endpoint; None: it makes one."""
    if endpoint.status == "deleted":
        return f"deleted at {rfc3339(endpoint.updated_at)}"
    if matching(endpoint.events, event_type) is None:
        return f"does not want {event_type}, only {_some_of(endpoint.events)}"
    return None


def why_waiting(endpoint: Endpoint, now: datetime) -> str | None:
    """Why the endpoint's tasks wait; None: they are sent. It is not deleted."""
    if endpoint.status == "pending":
        return f"not verified: {_handshake(endpoint, now)}; its tasks wait"
    if endpoint.status == "paused":
        return "paused; its tasks wait until it is resumed"
    if endpoint.status == "disabled":
        cause = _DISABLED.get(endpoint.reason or "", endpoint.reason)
        return f"disabled ({endpoint.reason}): {cause}; its tasks wait until it is active again"
    if endpoint.hold_until is not None:
        return f"on hold{_failures(endpoint)}{_until(endpoint.hold_until, now)}; its tasks wait"
    return None


def matching(patterns: Sequence[str], event_type: str) -> str | None:
    """The first wanted type that matches; the twin of patterns_for() in schema.sql.

    >>> matching(["import.done", "export.*"], "export.file.done")
    'export.*'
    >>> matching(["export.*"], "export"), matching(["*"], "x"), matching(["a.b"], "a.bc")
    (None, '*', None)
    >>> matching(["*", "hookjetty.*"], "hookjetty.task.exhausted")  # not by "*"
    'hookjetty.*'
    """
    everything = None if event_type.startswith("hookjetty.") else "*"
    for pattern in patterns:
        if pattern in (everything, event_type):
            return pattern
        if pattern.endswith(".*") and event_type.startswith(pattern[:-1]):
            return pattern
    return None


def _some_of(patterns: Sequence[str]) -> str:
    named = ", ".join(patterns[:MOST_PATTERNS_NAMED])
    more = len(patterns) - MOST_PATTERNS_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _handshake(endpoint: Endpoint, now: datetime) -> str:
    so_far = (
        f"its last challenge failed ({endpoint.handshake_failure})"
        if endpoint.handshake_failure
        else "its receiver has not answered a challenge yet"
    )
    if endpoint.handshake_at is None:
        return f"{so_far}, and no further one is planned"
    return f"{so_far}, the next one is {_at(endpoint.handshake_at, now)}"


def _failures(endpoint: Endpoint) -> str:
    if not endpoint.failures:
        return ""
    times = "1 failure" if endpoint.failures == 1 else f"{endpoint.failures} failures in a row"
    return f" after {times} since {rfc3339(endpoint.failing_since)}"


def _at(moment: datetime, now: datetime) -> str:
    return "due now" if moment <= now else f"due at {rfc3339(moment)}"


def _until(moment: datetime, now: datetime) -> str:
    return ", its next try is due now" if moment <= now else f" until {rfc3339(moment)}"
