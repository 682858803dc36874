"""How an endpoint is, by what it answered (dispatcher/health.py)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from app.db import db
from dispatcher.health import (
    FAILURES_TO_HOLD,
    Health,
    Heard,
    after,
    at_end_of_hold,
    matters,
    ramped,
)
from dispatcher.retry import Answer

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

OK = Answer(204, None)
REFUSED = Answer(404, "http_4xx")
BROKEN = Answer(500, "http_5xx")
UNREACHABLE = Answer(None, "connect")
UNSENDABLE = Answer(None, "unsendable")
DOWN = Health(failures=5, failing_since=NOON, hold_until=NOON + timedelta(seconds=5))


def busy(seconds: int, status: int = 503) -> Answer:
    return Answer(status, "http_5xx" if status == 503 else "http_4xx", str(seconds))


def hear(health: Health, *answers: Answer, probe: bool = False, at: datetime = NOON) -> Health:
    heard = [Heard(7, probe, answer) for answer in answers]
    return after(health, heard, at, Random(7), jitter=0)


def held_seconds(health: Health, since: datetime = NOON) -> float | None:
    return None if health.hold_until is None else (health.hold_until - since).total_seconds()


# ---------------------------------------------------------------------------------- what counts


@pytest.mark.parametrize("answer", [OK, REFUSED, UNSENDABLE])
def test_what_does_not_count_leaves_a_healthy_endpoint_as_it_was(answer):
    """The very same object, so that nobody writes it."""
    health = Health(recovered_at=NOON)
    assert hear(health, answer, answer) is health


@pytest.mark.parametrize("answer", [BROKEN, UNREACHABLE, busy(0, 429), Answer(408, "http_4xx")])
def test_the_fifth_failure_in_a_row_is_a_hold(answer):
    four = hear(Health(), *[replace(answer, retry_after=None)] * 4)
    assert (four.failures, four.is_on_hold) == (4, False)
    assert four.failing_since == NOON
    assert held_seconds(hear(four, replace(answer, retry_after=None))) == 5


@pytest.mark.parametrize("answer", [OK, REFUSED])
def test_any_sign_of_life_starts_the_count_over(answer):
    assert hear(Health(), *[BROKEN] * 4, answer) == Health()
    assert hear(Health(), *[BROKEN] * 4, answer, *[BROKEN] * 4).failures == 4


def test_what_never_reached_the_receiver_neither_counts_nor_clears():
    four = hear(Health(), *[BROKEN] * 4)
    assert hear(four, UNSENDABLE) is four


# ---------------------------------------------------------------------------------------- holds


def test_each_failed_probe_doubles_the_hold_up_to_fifteen_minutes():
    health, seconds = DOWN, []
    for _ in range(10):
        health = hear(health, BROKEN, probe=True)
        seconds.append(held_seconds(health))
    assert seconds == [10, 20, 40, 80, 160, 320, 640, 900, 900, 900]
    assert health.failing_since == NOON


def test_jitter_spreads_the_probes_of_many_endpoints():
    rng = Random(7)
    holds = [
        held_seconds(after(DOWN, [Heard(7, True, BROKEN)], NOON, rng, jitter=0.2))
        for _ in range(500)
    ]
    assert 8 <= min(holds) < 8.2 and 11.8 < max(holds) <= 12


def test_what_was_sent_before_the_hold_and_failed_changes_nothing():
    """Else 20 slots that failed together would make the first hold the longest one."""
    down = hear(Health(), *[BROKEN] * 5)
    assert hear(down, *[UNREACHABLE] * 15, at=NOON + timedelta(seconds=1)) is down


def test_a_failed_probe_replaces_the_time_it_was_given():
    released = at_end_of_hold(DOWN, NOON, has_probe=True, lease_seconds=60)
    assert held_seconds(released) == 75
    assert held_seconds(hear(released, BROKEN, probe=True)) == 10


def test_a_probe_that_could_not_be_sent_leaves_the_hold_to_run_out():
    assert hear(DOWN, UNSENDABLE, probe=True) is DOWN


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("answer", [OK, REFUSED])
def test_any_sign_of_life_ends_the_hold_and_starts_the_ramp(answer, probe):
    assert hear(DOWN, answer, probe=probe) == Health(recovered_at=NOON)


def test_failures_without_a_hold_hold_again_at_once():
    """Its hold ended for want of a task to probe with; the next one failed."""
    assert held_seconds(hear(replace(DOWN, hold_until=None), BROKEN)) == 10


# ---------------------------------------------------------------------------------- Retry-After


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_holds_at_the_first_failure(status):
    health = hear(Health(), busy(120, status))
    assert (health.failures, held_seconds(health)) == (1, 120)


def test_the_longest_retry_after_holds():
    health = hear(Health(), busy(30), busy(120), busy(60))
    assert held_seconds(health) == 120
    assert held_seconds(hear(DOWN, busy(3600))) == 3600


def test_a_success_that_was_sent_before_does_not_end_what_was_asked_for():
    """Of 20 requests at once a rate limit answers some with 429: it is no less meant for that."""
    health = hear(Health(), busy(120, 429), OK)
    assert (health.failures, health.failing_since, held_seconds(health)) == (0, None, 120)
    assert hear(health, OK) is health


def test_a_persons_try_that_succeeds_does():
    assert hear(hear(Health(), busy(120)), OK, probe=True) == Health()


def test_a_persons_try_that_fails_does_not():
    health = hear(hear(Health(), busy(120)), BROKEN, probe=True)
    assert (health.failures, held_seconds(health)) == (2, 120)


def test_late_failures_count_until_they_are_a_reason_of_their_own():
    """All 20 slots answered 503 with Retry-After: afterwards a probe goes first, not 20 at once."""
    health = hear(Health(), *[busy(1)] * 20)
    assert (health.failures, held_seconds(health)) == (FAILURES_TO_HOLD, 5)


def test_a_probe_that_is_asked_to_wait_waits_at_least_so_long():
    assert held_seconds(hear(DOWN, busy(1), probe=True)) == 10
    assert held_seconds(hear(DOWN, busy(3600), probe=True)) == 3600


# ------------------------------------------------------------------------------ the hold runs out


def test_a_hold_that_was_only_asked_for_simply_ends():
    assert at_end_of_hold(hear(Health(), busy(9)), NOON, True, 60).hold_until is None


def test_no_task_to_probe_with_ends_the_hold_and_keeps_the_count():
    health = at_end_of_hold(DOWN, NOON, has_probe=False, lease_seconds=60)
    assert health == replace(DOWN, hold_until=None)


@pytest.mark.parametrize("status", ["paused", "pending", "deleted"])
def test_an_endpoint_that_is_not_active_needs_no_hold(status):
    assert not at_end_of_hold(replace(DOWN, status=status), NOON, True, 60).is_on_hold


# ------------------------------------------------------------------------------------ the end of it


def test_410_disables_at_once():
    health = hear(Health(), BROKEN, Answer(410, "http_4xx"))
    assert (health.status, health.reason, health.hold_until) == ("disabled", "gone", None)


@pytest.mark.parametrize(
    ("failures", "days", "becomes"),
    [(9, 5, "disabled"), (8, 5, "active"), (200, 4.99, "active"), (9, 40, "disabled")],
)
def test_five_days_of_failures_and_at_least_ten_of_them_disable(failures, days, becomes):
    health = replace(DOWN, failures=failures)
    health = hear(health, BROKEN, probe=True, at=NOON + timedelta(days=days))
    assert (health.status, health.failures) == (becomes, failures + 1)
    assert health.failing_since == NOON
    assert (health.reason, health.is_on_hold) == (
        ("failing", False) if becomes == "disabled" else (None, True)
    )


@pytest.mark.parametrize("status", ["paused", "disabled", "pending", "deleted"])
@pytest.mark.parametrize("answer", [OK, BROKEN, busy(9), Answer(410, "http_4xx")])
def test_what_comes_back_changes_no_endpoint_that_is_not_active(status, answer):
    health = replace(DOWN, status=status)
    assert hear(health, answer, probe=True) is health


# ----------------------------------------------------------------------------------- what matters


@pytest.mark.parametrize(
    "health", [Health(), hear(Health(), BROKEN), DOWN, hear(Health(), busy(9))]
)
@pytest.mark.parametrize(
    "answer", [OK, REFUSED, UNSENDABLE, BROKEN, UNREACHABLE, busy(9), Answer(410, "http_4xx")]
)
@pytest.mark.parametrize("probe", [True, False])
def test_what_does_not_matter_changes_nothing(health, answer, probe):
    if not matters(answer, health.is_unwell):
        assert hear(health, answer, probe=probe) is health


# ---------------------------------------------------------------------------------------- the ramp


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("slots", [1, 3, 20, 1000])
def test_the_ramp_is_the_same_in_sql(slots):
    for tenths in [*range(-20, 220), 10**9]:
        moment = NOON + timedelta(seconds=tenths / 10)
        in_sql = db.execute_sql("SELECT hookjetty.ramped(%s, %s, %s)", (slots, NOON, moment))
        assert in_sql.fetchone()[0] == ramped(slots, NOON, moment), tenths
    never = db.execute_sql("SELECT hookjetty.ramped(%s, NULL, now())", (slots,))
    assert never.fetchone()[0] == ramped(slots, None, NOON) == slots


@pytest.mark.usefixtures("database")
def test_the_ramp_costs_a_claim_no_call():
    """The planner puts the function's body in its place."""
    plan = db.execute_sql(
        "EXPLAIN (VERBOSE) SELECT hookjetty.ramped(n.slots, n.recovered_at, m.moment)"
        " FROM hookjetty.endpoints n, (SELECT clock_timestamp() AS moment OFFSET 0) m"
    ).fetchall()
    assert "ramped" not in str(plan)
