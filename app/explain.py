"""Why an endpoint gets an event or does not, in words for the person who asks.

Pure functions of rows and of the database's clock, so a dry run of a publish and a look at a task
say the same. What happens to an endpoint's tasks is decided in schema.sql and in the dispatcher;
this page only puts it into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from app.models import Attempt, Endpoint, Event, Task, rfc3339

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


# ------------------------------------------------------------------------------------------ tasks

# How a try failed; %s is the status that the receiver answered.
_FAILURES = {
    "dns": "the name in its URL leads to no address",
    "blocked_address": "its address is one that is never called (a private or special network)",
    "connect": "nobody answered at its address",
    "tls": "no secure connection: its certificate or its TLS version is not acceptable",
    "timeout": "no complete answer in time",
    "reset": "the connection broke before the answer was complete",
    "redirect": "the receiver answered %s, and redirects are not followed: register the final URL",
    "http_4xx": "the receiver answered %s",
    "http_5xx": "the receiver answered %s",
    "too_large": "the receiver sent too many headers",
    "bad_response": "what the receiver answered is not HTTP",
    "unsendable": "it could not be signed for or addressed; an operator has to look",
    "interrupted": "the dispatcher ended during it; whether the receiver saw it is unknown",
    "expired": "the event's retention ended before it was delivered",
}
_STATUSES = {"redirect": "3xx", "http_4xx": "4xx", "http_5xx": "5xx"}


def why_task(
    task: Task,
    endpoint: Endpoint | None,
    event: Event | None,
    last: Attempt | None,
    now: datetime,
) -> str:
    """Why a task, as it is listed, is where it is. ``last`` is its latest attempt."""
    if task.status == "delivered":
        return f"delivered{_answered(last)}, on try {task.tries}"
    if task.status == "failed":
        return _why_failed(task, last)
    if task.status == "canceled":
        if endpoint is not None and endpoint.status == "deleted":
            return f"canceled: its endpoint was deleted at {rfc3339(endpoint.updated_at)}"
        if event is not None and event.data is None:
            return "canceled: its event's data was erased"
        return "canceled on request"
    so_far = _so_far(task, last)
    if task.status == "delivering":
        if task.ready:
            return f"try {task.tries} ended with its dispatcher; the next one is due now"
        return f"try {task.tries} is under way"
    if task.status == "waiting":
        holds = endpoint and why_waiting(endpoint, now)
        return f"{so_far}; its endpoint is {holds or 'active again: the next try is about to come'}"
    when = "due now" if task.next_try_at is None else _at(task.next_try_at, now)
    return f"{so_far}; the next one is {when}" if task.tries else f"{so_far}; it is {when}"


def why_none_was_made(endpoint: Endpoint, event: Event) -> str:
    """Why an event has no task for an endpoint that the tenant had since."""
    if event.is_test:
        return "not its own test event: that one was made for another endpoint alone"
    if endpoint.created_at > event.created_at:
        return (
            f"made later, at {rfc3339(endpoint.created_at)}; a replay delivers what happened before"
        )
    why = why_no_task(endpoint, event.type)
    if why is not None:
        return why
    return f"wants {event.type} now, but did not when it was published; a replay delivers it"


def failure_in_words(failure: str, status_code: int | None = None) -> str:
    """How a try failed.

    >>> failure_in_words("http_5xx", 503)
    'the receiver answered 503'
    """
    return _FAILURES[failure].replace("%s", str(status_code or _STATUSES.get(failure)))


def _why_failed(task: Task, last: Attempt | None) -> str:
    assert task.failure is not None
    if task.failure == "expired":
        tried = f"after {_tries(task.tries)}" if task.tries else "and it was never tried"
        return f"failed: {_FAILURES['expired']}, {tried}"
    status_code = last.status_code if last is not None else None
    return (
        f"gave up after {_tries(task.tries)}; in the last one,"
        f" {failure_in_words(task.failure, status_code)}"
    )


def _so_far(task: Task, last: Attempt | None) -> str:
    if task.failure is None:
        return "not tried yet" if not task.tries else f"{_tries(task.tries)} so far"
    status_code = last.status_code if last is not None and last.failure == task.failure else None
    return f"try {task.tries} failed: {failure_in_words(task.failure, status_code)}"


def _answered(last: Attempt | None) -> str:
    if last is None or last.started_at is None:
        return ""
    moment = last.started_at + timedelta(microseconds=last.total_us or 0)
    return f" at {rfc3339(moment)}: the receiver answered {last.status_code}"


def _tries(number: int) -> str:
    return "1 try" if number == 1 else f"{number} tries"
