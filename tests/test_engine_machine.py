"""Claims, records, promotions, holds and jobs together, on the real tables and a virtual clock.

Dispatchers are lists of what they have claimed; receivers work or do not; processes die at any
point; people pause, resume and retry. Time passes by moving the past: to let an hour go by, an hour
is taken from every time that is stored. tests/test_health_machine.py has the rules of health alone.

What happens here also depends on how fast the machine is. So no rule has a precondition and none
draws from what is in the tables, or Hypothesis would find that the same draws lead elsewhere.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from structlog.testing import capture_logs

from app import tasks
from app.db import db
from app.errors import Error
from app.models import WELL, Endpoint
from dispatcher import claim as claims
from dispatcher import holds, jobs
from dispatcher.claim import Claimed
from dispatcher.health import FAILURES_TO_DISABLE, TIME_TO_DISABLE, Heard, ramped
from dispatcher.record import Result, record
from dispatcher.retry import LONGEST_HOLD, Answer, decide
from dispatcher.transport import Outcome
from tests.factories import make_endpoint, publish

SLOTS = 3
LEASE_SECONDS = 60.0
SCHEDULE = (0, 5, 300, 1800, 7200)
DISPATCHERS = 2
OPEN = "status IN ('pending', 'delivering', 'retry', 'waiting')"

# How a receiver may be, and what it answers then.
RECEIVERS = {
    "works": Answer(204, None),
    "breaks": Answer(500, "http_5xx"),
    "hangs": Answer(None, "timeout"),
    "refuses": Answer(404, "http_4xx"),
    "asks for a minute": Answer(503, "http_5xx", "60"),
    "asks for a second": Answer(429, "http_4xx", "1"),
    "is gone": Answer(410, "http_4xx"),
}


# ------------------------------------------- the dispatcher's functions, as the engine calls them


def claim(busy: Counter[int]) -> claims.Claim:
    """What the claim loop does once. ``busy``: what this dispatcher holds of each endpoint."""
    claims.promote()
    holds.end_due(LEASE_SECONDS)
    return claims.claim(
        claims.visit(claims.START),
        lambda found: [max(0, each.slots - busy[each.endpoint_id]) for each in found],
        slots=SLOTS,
        steps=len(SCHEDULE),
        lease_seconds=LEASE_SECONDS,
    )


def write_down(ended: Sequence[tuple[Claimed, Answer]], rng: Random) -> int:
    """Decide and record; returns how many of the tasks were still the dispatcher's."""
    results = []
    for task, answer in ended:
        schedule = task.target.retry_schedule or SCHEDULE
        now = datetime.now(UTC)
        decision = decide(answer, task.step, schedule, now, rng, probe=task.was_probe)
        outcome = Outcome(None, 0.0, answer.status_code, answer.failure)
        results.append(Result(task, time.time(), outcome, decision))
    return record(results, claims.count_off([task for task, _ in ended]))


def note(ended: Sequence[tuple[Claimed, Answer]], rng: Random) -> None:
    holds.note([Heard(endpoint_of(task), task.was_probe, answer) for task, answer in ended], rng)


def give_back(tasks: Sequence[Claimed]) -> None:
    claims.release(tasks, claims.count_off(tasks))


def endpoint_of(task: Claimed) -> int:
    return task.target.endpoint_id


# --------------------------------------------------------------------------------------- the world


@dataclass
class Held:
    """A task under way at a dispatcher, and the virtual time at which its lease ends."""

    task: Claimed
    ends_at: float
    by_hand: bool  # a person's retry


class Deliveries(RuleBasedStateMachine):
    """Two dispatchers, two tenants, three receivers."""

    @initialize(
        seed=st.integers(0, 2**32),
        receivers=st.lists(st.sampled_from(sorted(RECEIVERS)), min_size=3, max_size=3),
        failures=st.sampled_from([0, 4, 5, 9]),
        days=st.sampled_from([1, 5]),
    )
    def begin(self, seed, receivers, failures, days):
        for table in ("tasks", "attempts", "events", "leases", "endpoints"):
            db.execute_sql(f"DELETE FROM hookjetty.{table}")
        self.rng = Random(seed)
        self.passed = 0.0
        since = datetime.now(UTC) - timedelta(days=days) if failures else None
        failing = {"failures": failures, "failing_since": since}
        self.endpoints = [
            make_endpoint(1, slots=1, **failing),
            make_endpoint(1, retry_schedule=[0.0, 2.0, 3.0]),
            make_endpoint(2, **failing),
        ]
        self.receivers = dict(zip(self.endpoints, receivers, strict=True))
        self.held: list[list[Held]] = [[] for _ in range(DISPATCHERS)]
        self.lost: list[Held] = []
        self.by_hand: set[int] = set()
        self.published = 0
        self.fences: set[int] = set()
        for tenant in (1, 2):
            self.publish(tenant, 2)

    @rule(tenant=st.sampled_from([1, 2]), events=st.integers(1, 4))
    def publish(self, tenant, events):
        self.published += sum(publish(tenant)[1] for _ in range(events))

    @rule(seconds=st.sampled_from([0.5, 2, 6, 21, 61, 66, 130, 1000, 8000, 90_000]))
    def time_passes(self, seconds):
        self.passed += seconds
        move_the_past(seconds)

    @rule(nth=st.integers(0, 2), receiver=st.sampled_from(sorted(RECEIVERS)))
    def a_receiver_changes(self, nth, receiver):
        self.receivers[self.endpoints[nth]] = receiver

    # --------------------------------------------------------------------------- the dispatchers

    @rule(nth=st.integers(0, DISPATCHERS - 1))
    def a_dispatcher_claims(self, nth):
        busy = Counter(endpoint_of(each.task) for each in self.held[nth])
        ends_at = self.now + LEASE_SECONDS  # at the earliest
        claimed = claim(busy)
        taking = endpoint_rows()
        for task in claimed.tasks:
            self._check_claimed(task, taking[endpoint_of(task)])
            by_hand = task.wants_probe and task.task_id in self.by_hand
            self.held[nth].append(Held(task, ends_at, by_hand))
        busy = Counter(endpoint_of(each.task) for each in self.held[nth])
        for endpoint_id, row in taking.items():
            if row["status"] == "active" and row["hold_until"] is None:
                slots = ramped(row["slots"] or SLOTS, row["recovered_at"], datetime.now(UTC))
                assert busy[endpoint_id] <= (row["slots"] or SLOTS)
                starved = busy[endpoint_id] < slots and endpoint_id in ready_endpoints()
                # A task that it ended, its steps being burnt, left a slot for the next claim.
                ended = claimed.moved - len(claimed.tasks)
                assert ended or not starved, "it takes tasks, has some, a free slot, and got none"

    @rule(nth=st.integers(0, DISPATCHERS - 1), count=st.integers(1, 6), noted=st.booleans())
    def answers_come(self, nth, count, noted):
        """In any order. ``noted``: else the dispatcher dies before it can note them."""
        ended = [self._next_of(nth) for _ in range(min(count, len(self.held[nth])))]
        if ended:
            self._write_down(ended, noted)

    @rule(nth=st.integers(0, DISPATCHERS - 1), pause=st.sampled_from([0, 6, 66, 1000]))
    def a_dispatcher_works(self, nth, pause):
        """A good while without incident."""
        for _ in range(3):
            self.a_dispatcher_claims(nth)
            self.answers_come(nth, 100, noted=True)
            self.time_passes(pause)

    @rule(nth=st.integers(0, DISPATCHERS - 1))
    def a_dispatcher_dies(self, nth):
        self.lost += self.held[nth]
        self.held[nth] = []

    @rule()
    def it_was_only_asleep(self):
        """A zombie records what it had under way."""
        self._write_down(self.lost, noted=True)
        self.lost = []

    @rule(nth=st.integers(0, DISPATCHERS - 1))
    def a_dispatcher_gives_back(self, nth):
        if self.held[nth]:
            give_back([each.task for each in self.held[nth]])
            self.held[nth] = []

    @rule()
    def jobs_run(self):
        jobs.until_done(jobs.settle_step)

    @rule()
    def the_sweep_runs(self):
        jobs.until_done(jobs.sweep)

    @rule()
    def somebody_saw_a_hold_that_has_ended(self):
        """A publish or a claim that commits late: its task waits for an endpoint that takes it."""
        db.execute_sql(
            "UPDATE hookjetty.tasks SET status = 'waiting', ready = false, next_try_at = NULL"
            " WHERE id = (SELECT min(id) FROM hookjetty.tasks"
            "             WHERE ready AND status <> 'delivering')"
        )

    # ---------------------------------------------------------------------------------- people

    @rule(nth=st.integers(0, 2))
    def a_person_pauses(self, nth):
        if endpoint_rows()[self.endpoints[nth]]["status"] == "active":
            Endpoint.change(self.endpoints[nth], status="paused")

    @rule(nth=st.integers(0, 2))
    def a_person_resumes(self, nth):
        if endpoint_rows()[self.endpoints[nth]]["status"] != "active":
            Endpoint.change(self.endpoints[nth], status="active", reason=None, **WELL)

    @rule(which=st.integers(0, 1000))
    def a_person_retries(self, which):
        ids = [row[0] for row in query("SELECT id FROM hookjetty.tasks ORDER BY id")]
        task_id = ids[which % len(ids)]
        try:
            tasks.retry(task_id)
        except Error:
            return  # it is under way
        self.by_hand.add(task_id)

    # --------------------------------------------------------------------------- what must be so

    @invariant()
    def no_task_is_lost(self):
        """Each is there, and one under way has a lease that will end."""
        assert query("SELECT count(*) FROM hookjetty.tasks") == [(self.published,)]
        assert not query(
            "SELECT t.id FROM hookjetty.tasks t WHERE t.status = 'delivering' AND NOT t.ready"
            " AND NOT EXISTS (SELECT FROM hookjetty.leases l WHERE t.id = ANY (l.task_ids))"
        )

    @invariant()
    def one_probe_at_a_time(self):
        """Those that people sent aside. One whose lease has ended is nobody's any more."""
        under_way = [each for held in (*self.held, self.lost) for each in held]
        out = Counter(
            endpoint_of(each.task)
            for each in under_way
            if each.task.was_probe and not each.by_hand and each.ends_at > self.now
        )
        for task_id, endpoint_id in query(
            "SELECT id, endpoint_id FROM hookjetty.tasks WHERE ready AND probe"
        ):
            out[endpoint_id] += task_id not in self.by_hand
        assert max(out.values(), default=0) <= 1

    @invariant()
    def holds_are_bounded(self):
        for row in endpoint_rows().values():
            if row["hold_until"] is not None:
                assert row["hold_until"] - row["now"] <= LONGEST_HOLD
                assert row["status"] != "disabled"

    @invariant()
    def nobody_is_disabled_too_soon(self):
        for row in endpoint_rows().values():
            if row["reason"] == "failing":
                assert row["failures"] >= FAILURES_TO_DISABLE
                assert row["now"] - row["failing_since"] >= TIME_TO_DISABLE

    def teardown(self):
        """All receivers work, people resume, jobs run: everything ends, and the books balance."""
        if not hasattr(self, "held"):
            return
        for endpoint_id in self.endpoints:
            self.receivers[endpoint_id] = "works"
        for nth in range(3):
            self.a_person_resumes(nth)
        for _ in range(30 + self.published):
            if not query(f"SELECT 1 FROM hookjetty.tasks WHERE {OPEN} LIMIT 1"):
                break
            self.the_sweep_runs()
            for nth in range(DISPATCHERS):
                self.a_dispatcher_claims(nth)
                while self.held[nth]:
                    self.answers_come(nth, 6, noted=True)
            self.time_passes(max(2.0, claims.seconds_to_next_due() or 0))
        assert query(f"SELECT id, status FROM hookjetty.tasks WHERE {OPEN}") == []
        self.time_passes(90_000)
        claim(Counter())
        assert query("SELECT id FROM hookjetty.endpoints WHERE hold_until IS NOT NULL") == []
        assert query("SELECT id FROM hookjetty.leases") == []
        self._write_down(self.lost, noted=True)
        uncounted = query(
            "SELECT t.id, t.tries FROM hookjetty.tasks t WHERE t.tries <>"
            " (SELECT count(*) FROM hookjetty.attempts a WHERE a.task_id = t.id)"
        )
        assert uncounted == [], "each try is on the books, once"

    # ------------------------------------------------------------------------------------ helpers

    @property
    def now(self) -> float:
        """Virtual seconds: those that were let go by, and those that really did meanwhile."""
        return self.passed + time.monotonic()

    def _check_claimed(self, task, endpoint):
        assert task.attempt_id not in self.fences
        self.fences.add(task.attempt_id)
        for each in (*self.held[0], *self.held[1], *self.lost):
            is_live = each.ends_at > self.now
            assert not (is_live and each.task.task_id == task.task_id), "its lease is live"
        assert endpoint["status"] == "active"
        assert task.was_probe == (endpoint["hold_until"] is not None)

    def _next_of(self, nth):
        return self.held[nth].pop(self.rng.randrange(len(self.held[nth])))

    def _write_down(self, ended, noted):
        if not ended:
            return
        before = {row[0]: row for row in query("SELECT id, step, status FROM hookjetty.tasks")}
        answers = [(each.task, RECEIVERS[self.receivers[endpoint_of(each.task)]]) for each in ended]
        write_down(answers, self.rng)
        for row in query("SELECT id, step, status FROM hookjetty.tasks"):
            task_id, step, status = row
            if any(task.task_id == task_id and task.was_probe for task, _ in answers):
                # A zombie's task may have failed long ago.
                kept = step == before[task_id][1] and status != "failed"
                assert kept or row == before[task_id], "a probe burns no step"
        if noted:
            note(answers, self.rng)


def move_the_past(seconds: float) -> None:
    """Let ``seconds`` pass."""
    for table, columns in {
        "tasks": ("next_try_at",),
        "leases": ("ends_at",),
        "endpoints": ("hold_until", "failing_since", "recovered_at", "updated_at"),
    }.items():
        assignments = ", ".join(
            f"{column} = {column} - %(seconds)s * interval '1 second'" for column in columns
        )
        db.execute_sql(f"UPDATE hookjetty.{table} SET {assignments}", {"seconds": seconds})


def query(sql: str) -> list[tuple]:
    return db.execute_sql(sql).fetchall()


def endpoint_rows() -> dict[int, dict]:
    cursor = db.execute_sql("SELECT *, clock_timestamp() AS now FROM hookjetty.endpoints")
    names = [column[0] for column in cursor.description]
    return {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}


def ready_endpoints() -> set[int]:
    return {row[0] for row in query("SELECT endpoint_id FROM hookjetty.tasks WHERE ready")}


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without a configuration, structlog writes to the terminal."""
    with capture_logs():
        yield


@pytest.mark.usefixtures("database", "quiet")
def test_no_task_is_lost_stuck_or_taken_twice():
    db.ready(for_hot_statements=True)
    run_state_machine_as_test(
        Deliveries,
        settings=settings(
            max_examples=20,
            stateful_step_count=40,
            deadline=None,
            phases=[Phase.generate],  # shrinking runs on real tables too, for minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
