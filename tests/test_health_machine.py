"""An endpoint's whole life over a virtual clock: failures, holds, probes, crashes, recoveries.

The rules are the real ones (dispatcher/health.py, dispatcher/retry.py); tables and claims are a few
lists here. tests/test_engine_machine.py does the same with the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.health import (
    FAILURES_TO_DISABLE,
    FAILURES_TO_HOLD,
    LONGEST_HOLD_SECONDS,
    PROBE_CLAIM_SECONDS,
    RAMP_SECONDS,
    TIME_TO_DISABLE,
    Health,
    Heard,
    after,
    at_end_of_hold,
    ramped,
    sends_probe,
)
from dispatcher.retry import LONGEST_HOLD, Answer, Delivered, GiveUp, RetryAt, decide

SLOTS = 8
SCHEDULE = (0, 5, 300, 1800)
LEASE = timedelta(seconds=60)
JITTER = 0.2

OK = Answer(204, None)
ANSWERS = st.sampled_from(
    [
        OK,
        Answer(404, "http_4xx"),
        Answer(500, "http_5xx"),
        Answer(None, "timeout"),
        Answer(None, "unsendable"),
        Answer(429, "http_4xx", "3"),
        Answer(503, "http_5xx", "7200"),
    ]
)
FAILURES = st.sampled_from([Answer(500, "http_5xx"), Answer(None, "dns"), Answer(429, "http_4xx")])


@dataclass
class Task:
    """A task, as far as its endpoint's health can touch it."""

    status: str
    step: int = 0
    probe: bool = False
    was_probe: bool = False  # the attempt under way passed a hold
    until: datetime | None = None  # retry: when it is due; delivering: the end of its lease
    tried_at: datetime | None = None


class EndpointsLife(RuleBasedStateMachine):
    """One endpoint and its tasks."""

    @initialize(
        seed=st.integers(0, 2**32),
        failures=st.sampled_from([0, 3, 4, 8, 9, 20]),
        days=st.sampled_from([0.1, 4.99, 5, 30]),
    )
    def begin(self, seed, failures, days):
        self.rng = Random(seed)
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.alive_at = self.now - timedelta(days=days)
        self.failed_since_alive = failures
        self.health = Health(failures=failures, failing_since=self.alive_at if failures else None)
        self.tasks = [Task("ready") for _ in range(SLOTS)]

    # ------------------------------------------------------------------------------- the world

    @rule(count=st.integers(1, SLOTS))
    def publish(self, count):
        takes = self.health.status == "active" and not self.health.is_on_hold
        self.tasks += [Task("ready" if takes else "waiting") for _ in range(count)]

    @rule(seconds=st.sampled_from([0.1, 1, 2.5, 6, 20, 66, 400, 1100, 8000, 90_000, 450_000]))
    def time_passes(self, seconds):
        self.now += timedelta(seconds=seconds)

    @rule(answers=st.lists(ANSWERS, min_size=1, max_size=SLOTS), order=st.randoms())
    def answers_come(self, answers, order):
        self._answer(answers, order)

    @rule(answer=FAILURES, order=st.randoms())
    def everything_under_way_fails(self, answer, order):
        self._answer([answer] * SLOTS, order)

    @rule(answer=ANSWERS, order=st.randoms())
    def a_dispatcher_dies_between_recording_and_noting(self, answer, order):
        self._answer([answer], order, heard=False)

    @rule()
    def a_person_resumes(self):
        if self.health.status == "disabled" or self.health.is_on_hold:
            self.health = Health()

    @precondition(lambda self: self._in("waiting") and self.health.status == "active")
    @rule()
    def a_person_retries(self):
        task = self._in("waiting")[0]
        task.status, task.probe, task.step = "ready", True, 0

    def _answer(self, answers, order, heard=True):
        """What is under way is answered, in any order; whose lease has ended is a zombie's."""
        under_way = self._in("delivering")
        order.shuffle(under_way)
        ended = list(zip(under_way, answers, strict=False))
        for task, answer in ended:
            self._decide(task, answer)
        for task, answer in ended if heard else ():
            self._note(Heard(7, task.was_probe, answer))

    def _decide(self, task, answer):
        decision = decide(
            answer, task.step, SCHEDULE, self.now, self.rng, jitter=JITTER, probe=task.was_probe
        )
        before, task.until = task.step, None
        match decision:
            case Delivered():
                task.status = "delivered"
            case GiveUp():
                task.status = "failed"
            case RetryAt(at, step):
                task.status, task.until, task.step = "retry", at, step
            case _:
                task.status, task.step = "waiting", decision.step
        assert not task.was_probe or (task.step == before and task.status != "failed")

    def _note(self, heard):
        before = self.health
        self.health = after(before, [heard], self.now, self.rng, jitter=JITTER)
        if before.status == "active" and heard.answer.shows_life:
            self.failed_since_alive, self.alive_at = 0, self.now
        elif heard.answer.shows_life is False:
            self.failed_since_alive += 1
        assert self.health.failures <= self.failed_since_alive
        if self.health.reason == "failing":
            assert self.failed_since_alive >= FAILURES_TO_DISABLE
            assert self.now - self.alive_at >= TIME_TO_DISABLE
        late = before.failures >= FAILURES_TO_HOLD and before.is_on_hold and not heard.was_probe
        if late and not heard.answer.shows_life and not heard.answer.retry_after:
            assert self.health is before

    # -------------------------------------------------------------------------- the dispatchers

    @rule()
    def dispatch(self):
        """What the claim loop does: promote, end holds, claim."""
        for task in self._in("retry", "delivering"):
            if task.until <= self.now:
                task.probe = task.status == "delivering" and task.was_probe
                task.status, task.until = "ready", None
        if self.health.is_on_hold and self.health.hold_until <= self.now:
            probing = sends_probe(self.health) and self._release_probe()
            self.health = at_end_of_hold(self.health, self.now, probing, LEASE.total_seconds())
        self._claim()

    @rule()
    def settle(self):
        if self.health.status == "active" and not self.health.is_on_hold:
            for task in self._in("waiting"):
                task.status = "ready"

    def _release_probe(self):
        on_their_way = [
            task
            for task in self.tasks
            if (task.status == "ready" and task.probe)
            or (task.status == "delivering" and task.was_probe)
        ]
        waiting = self._in("waiting") or self._in("ready")
        if waiting and not on_their_way:
            never = datetime.min.replace(tzinfo=UTC)
            probe = min(waiting, key=lambda task: task.tried_at or never)
            probe.status, probe.probe = "ready", True
        return bool(waiting or on_their_way)

    def _claim(self):
        active, held = self.health.status == "active", self.health.is_on_hold
        free = ramped(SLOTS, self.health.recovered_at, self.now) - len(self._in("delivering"))
        for task in self._in("ready"):
            if not active or (held and not task.probe):
                task.status = "waiting"
            elif free > 0:
                free -= 1
                task.status, task.until, task.tried_at = "delivering", self.now + LEASE, self.now
                task.was_probe, task.probe = held and task.probe, False

    def _in(self, *statuses):
        return [task for task in self.tasks if task.status in statuses]

    # -------------------------------------------------------------------------- what must be so

    @invariant()
    def a_hold_is_bounded(self):
        if self.health.is_on_hold:
            longest = max(
                timedelta(seconds=LONGEST_HOLD_SECONDS * (1 + JITTER)),
                LONGEST_HOLD,
                LEASE + timedelta(seconds=PROBE_CLAIM_SECONDS),
            )
            assert self.health.hold_until <= self.now + longest
            assert self.health.status == "active"

    @invariant()
    def failures_have_a_beginning(self):
        assert (self.health.failures > 0) == (self.health.failing_since is not None)

    @invariant()
    def a_disabled_endpoint_has_a_reason(self):
        assert (self.health.status == "disabled") == (self.health.reason is not None)

    def teardown(self):
        """The receiver is repaired: every hold ends, and no task is left behind."""
        if not hasattr(self, "tasks"):
            return
        if self.health.status == "disabled":
            self.health = Health()
        for _ in range(12 + 2 * len(self.tasks)):
            self.dispatch()
            self._answer([OK] * SLOTS, self.rng)
            self.settle()
            waits = [task.until for task in self._in("retry", "delivering")]
            if self.health.is_on_hold:
                waits.append(self.health.hold_until)
            self.now = max([self.now + timedelta(seconds=RAMP_SECONDS), *waits])
        assert self.health == replace(Health(), recovered_at=self.health.recovered_at)
        assert {task.status for task in self.tasks} <= {"delivered", "failed"}
        assert ramped(SLOTS, self.health.recovered_at, self.now) == SLOTS


TestEndpointsLife = EndpointsLife.TestCase
TestEndpointsLife.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
