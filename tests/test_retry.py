"""What happens to a task after an attempt (dispatcher/retry.py)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models import FAILURES
from dispatcher.retry import (
    OF_OURS,
    OF_THE_ENDPOINT,
    Answer,
    Delivered,
    GiveUp,
    Gone,
    RetryAt,
    Waits,
    decide,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SCHEDULE = (0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)


def decided(status, failure, step=0, retry_after=None, **more):
    more = {"jitter": 0} | more
    return decide(Answer(status, failure, retry_after), step, SCHEDULE, NOON, Random(7), **more)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_delivers(status):
    assert decided(status, None) == Delivered()


@pytest.mark.parametrize(
    ("step", "delay_seconds"),
    # After the first try (step 0) comes the delay before the second: 75 h 35 m 5 s in all.
    [
        (0, 5),
        (1, 300),
        (2, 1800),
        (3, 7200),
        (4, 18000),
        (5, 36000),
        (6, 50400),
        (7, 72000),
        (8, 86400),
    ],
)
def test_a_failure_is_tried_again_after_the_next_delay_of_the_schedule(step, delay_seconds):
    assert decided(500, "http_5xx", step) == RetryAt(
        NOON + timedelta(seconds=delay_seconds), step + 1
    )


def test_the_last_step_gives_up():
    assert decided(None, "timeout", 9) == GiveUp(9)


@pytest.mark.parametrize(
    "failure", ["dns", "connect", "tls", "timeout", "reset", "redirect", "http_4xx"]
)
def test_every_kind_of_failure_is_retried(failure):
    assert isinstance(decided(None, failure), RetryAt)


def test_a_410_says_that_the_endpoint_is_gone():
    assert decided(410, "http_4xx", 3) == Gone(3)


def test_a_429_burns_no_step_and_does_not_spin():
    assert decided(429, "http_4xx", 0) == RetryAt(NOON + timedelta(seconds=5), 0)


def test_a_429_on_the_last_step_does_not_give_up():
    assert decided(429, "http_4xx", 9) == RetryAt(NOON + timedelta(seconds=86400), 9)


@pytest.mark.parametrize(
    ("status", "failure"),
    [(500, "http_5xx"), (503, "http_5xx"), (429, "http_4xx"), (None, "dns"), (None, "unsendable")],
)
def test_a_probe_that_found_no_life_waits_with_the_others(status, failure):
    assert decided(status, failure, 9, "120", probe=True) == Waits(9)


def test_a_probe_that_was_refused_is_retried_and_burns_no_step():
    """The endpoint works; what is wrong is with the task."""
    assert decided(404, "http_4xx", 9, probe=True) == RetryAt(NOON + timedelta(seconds=86400), 9)


def test_a_410_to_a_probe_means_gone_too():
    assert decided(410, "http_4xx", 3, probe=True) == Gone(3)


@pytest.mark.parametrize(
    ("status", "failure", "life"),
    [
        (204, None, True),
        (301, "redirect", True),
        (400, "http_4xx", True),
        (None, "too_large", True),
        (408, "http_4xx", False),
        (429, "http_4xx", False),
        (500, "http_5xx", False),
        (599, "http_5xx", False),
        (None, "dns", False),
        (None, "blocked_address", False),
        (None, "connect", False),
        (None, "tls", False),
        (None, "timeout", False),
        (None, "reset", False),
        (None, "bad_response", False),
        (None, "unsendable", None),
        (None, "interrupted", None),
    ],
)
def test_what_an_answer_says_about_the_endpoint(status, failure, life):
    assert Answer(status, failure).shows_life is life


def test_every_failure_of_an_attempt_says_something_or_is_ours():
    """A word added to the vocabulary needs a place among them."""
    of_the_task = {"too_large", "redirect", "http_4xx"}
    assert OF_THE_ENDPOINT | OF_OURS | of_the_task == set(FAILURES) - {"expired"}


def test_jitter_stays_within_a_fifth_and_spreads():
    rng = Random(1)
    delays = [
        (decide(Answer(500, "http_5xx"), 1, SCHEDULE, NOON, rng).at - NOON).total_seconds()
        for _ in range(1000)
    ]
    assert 240 <= min(delays) < 250 and 350 < max(delays) <= 360


@pytest.mark.parametrize(
    ("status", "retry_after", "seconds"),
    [
        (503, "120", 120),
        (429, "120", 120),
        (429, "0", 1),  # at least a second
        (503, "99999999999999999999", 86400),  # at most a day
        (503, "1" * 5000, 86400),
        (503, format_datetime(NOON + timedelta(seconds=90), usegmt=True), 90),
        (503, format_datetime(NOON - timedelta(days=90), usegmt=True), 1),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT", 86400),
    ],
)
def test_retry_after_holds_the_endpoint_and_is_the_next_try(status, retry_after, seconds):
    decision = decided(status, "http_5xx", 2, retry_after)
    assert decision.at == NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "nonsense", ["-1", "nan", "1e9", "12.5", "300s", "", "soon", "５", "\x00", "1 2"]
)
def test_a_retry_after_that_cannot_be_read_is_ignored(nonsense):
    assert decided(503, "http_5xx", 0, nonsense) == RetryAt(NOON + timedelta(seconds=5), 1)


def test_retry_after_counts_only_with_429_and_503():
    assert decided(500, "http_5xx", 0, "120") == RetryAt(NOON + timedelta(seconds=5), 1)


@given(st.text(max_size=40), st.sampled_from([429, 503]), st.integers(0, 9))
def test_no_retry_after_breaks_the_bounds(text, status, step):
    decision = decided(status, "http_5xx", step, text)
    if isinstance(decision, RetryAt):
        assert NOON < decision.at <= NOON + timedelta(hours=24)


@given(st.integers(100, 999), st.integers(0, 9), st.booleans(), st.integers())
def test_a_task_ends_after_at_most_as_many_steps_as_the_schedule_has(status, step, probe, seed):
    """Every decision either ends the task, advances it, or is one that may stay where it is."""
    failure = None if 200 <= status <= 299 else "http_5xx"
    decision = decide(Answer(status, failure), step, SCHEDULE, NOON, Random(seed), probe=probe)
    if isinstance(decision, RetryAt):
        assert decision.step == step + 1 or (decision.step == step and (probe or status == 429))
        assert decision.step < len(SCHEDULE)
