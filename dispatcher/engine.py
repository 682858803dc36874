"""claim -> send -> decide -> record, overlapped: the heart of the dispatcher.

Two threads of its own beside the transport's: one claims and hands over, one decides and records.
They share nothing but the places and two queues, so a slow commit never delays a request and a slow
receiver never delays a commit. All that must survive is in the tables: a process killed at any
point leaves leases that end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import lru_cache
from random import Random
from typing import cast

import structlog
from peewee import PeeweeException

from app.db import db, is_away, is_conflict
from app.deliveries import event_body, header_lines
from app.logs import debug_many, info_many
from app.models import Dispatcher
from app.settings import Settings
from app.signing import Signer, UnreadableSecret, Vault
from dispatcher import claim as claims
from dispatcher import holds
from dispatcher.claim import Claimed, Cursor, Lease
from dispatcher.fairness import Candidate, Places
from dispatcher.health import Heard, matters
from dispatcher.record import Result, record
from dispatcher.retry import Answer, Delivered, decide
from dispatcher.transport import Outcome, Request, Transport

log = structlog.get_logger()

# One claim or record handles at most this many tasks, which bounds the locks it holds at once.
BATCH = 500
POLL_SECONDS = 1.0
# After saying "parked": a publisher that read "busy" just before may commit just after the look.
LOOKS_AFTER_PARKING_SECONDS = (0.005, 0.02, 0.08, 0.32)
# A claim this small is no load: stay parked, and let each publish notify.
FEW = 32
# So long after the last one, the next record waits for more answers, and a claim for more places: a
# commit costs the same for one task as for hundreds. What comes alone is recorded at once.
GATHER_SECONDS = 0.04
# Claims that find a few tasks begin so long after each other, for the same reason: at 600 events a
# second a claim for each would take more of the machine than everything else.
PACE_SECONDS = 0.004
# How often to look for what has become due: a second is the shortest delay of a schedule.
PROMOTION_SECONDS = 0.1
# Looking for endpoints with ready tasks takes at most this share of the time. It matters while
# somebody holds an old snapshot, and the entries of claimed tasks stay in the index.
VISITING_SHARE = 0.2
# What was claimed from an endpoint is looked at no more, but for what became visible late; and all
# of it once in a while.
FLOOR_SLACK_SECONDS = 1.0
FLOORS_LAST_SECONDS = 2.0
# Without the database: how long to wait before asking for it again.
BACK_OFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
DELIVERED = Delivered()
# The longest that an endpoint may ask for (schema.sql, "timeout_seconds").
MOST_TIMEOUT_SECONDS = 30


class Engine:
    """Moves tasks from the tables to the world and back, until it is told to drain."""

    def __init__(
        self, settings: Settings, transport: Transport, vault: Vault, dispatcher_id: int
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._vault = vault
        self.id = dispatcher_id
        self._rng = Random()
        self._clock = DatabaseClock()
        self._round = Round()
        self._promote_at = 0.0
        self._parked = False

        self._guard = threading.Lock()
        # From the claim until the answer. As many again as the transport has in flight, so that it
        # never waits for a claim.
        self._places = Places(2 * settings.in_flight)
        self._enough_room = max(1, min(BATCH, self._places.total) // 2)
        self._awake = threading.Event()
        self._room = threading.Condition(self._guard)
        self._finished: deque[Outcome] = deque()
        # Endpoints that were unwell when this process last told of them.
        self._unwell: set[int] = set()
        self._to_record = threading.Event()
        self._stopping = threading.Event()
        self._claimer = threading.Thread(target=self._claim_loop, name="claim", daemon=True)
        self._recorder = threading.Thread(target=self._record_loop, name="record", daemon=True)

    # ------------------------------------------------------------------------- what others call

    def start(self) -> None:
        """Begin to claim and record."""
        self._recorder.start()
        self._claimer.start()

    def wake(self) -> None:
        """Something may be due: look now. The scheduler's poll and every NOTIFY end up here."""
        self._awake.set()

    def send(self, request: Request) -> Future[Outcome]:
        """Send something that is no task (a handshake) the way tasks are sent."""
        future: Future[Outcome] = Future()
        request.tag = future
        self._transport.submit(request)
        return future

    def done(self, outcome: Outcome) -> None:
        """The transport's callback, on its thread: an attempt has ended."""
        if isinstance(outcome.tag, Future):
            outcome.tag.set_result(outcome)
            return
        self._finished.append(outcome)
        self._free_place(outcome)
        if not self._to_record.is_set():
            self._to_record.set()

    @property
    def in_flight(self) -> int:
        """Tasks claimed and not yet answered."""
        return self._places.held

    @property
    def parked(self) -> bool:
        """Whether publishers are to notify this process."""
        return self._parked

    def drain(self) -> None:
        """Stop claiming, give back what was not started, finish and record what was.

        Blocks until that is done, at most for an attempt's deadline and the time to record it.
        """
        self._stopping.set()
        self._awake.set()
        with self._room:
            self._room.notify_all()
        self._claimer.join()
        for request in self._transport.withdraw():
            if not isinstance(request.tag, Future):
                self.done(Outcome(request.tag, None))
        deadline = time.monotonic() + MOST_TIMEOUT_SECONDS + 5
        while (self.in_flight or self._transport.load) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._to_record.set()
        self._recorder.join(timeout=10)

    # ------------------------------------------------------------------------------------ claim

    def _claim_loop(self) -> None:
        looks: Iterator[float] = iter(())
        failures = 0
        while not self._stopping.is_set():
            self._awake.clear()
            began = time.monotonic()
            try:
                db.ready(for_hot_statements=True)
                found, more = self._claim_once()
                failures = 0
                if found > FEW:
                    self._park(False)
                elif not (found or more or self._parked):
                    self._park(True)
                    looks = iter((0.0, *LOOKS_AFTER_PARKING_SECONDS))
                # While parked, what a claim has not seen is told by whoever publishes it.
                if more or (found and not self._parked):
                    pause: float | None = 0.0
                else:
                    pause = next(looks, None)
                if pause is None:
                    pause = self._seconds_to_next_look()
            except PeeweeException as error:
                _lost_database("claim", error)
                self._parked = False
                found, pause = 0, _back_off_seconds(failures)
                failures += 1
            if pause:
                self._awake.wait(pause)
            if found <= FEW:
                self._stopping.wait(began + PACE_SECONDS - time.monotonic())

    def _seconds_to_next_look(self) -> float:
        due = claims.seconds_to_next_due()
        if due is None:
            return POLL_SECONDS
        earliest = self._promote_at - time.monotonic()
        return min(max(due, earliest, 0.001), POLL_SECONDS)

    def _claim_once(self) -> tuple[int, bool]:
        """One step: promote what came due, claim what there is room for, hand it over.

        Returns how many tasks were picked up, and whether there may be more to claim at present.
        """
        if not self._wait_for_room():
            return 0, False
        promoted = 0
        if time.monotonic() >= self._promote_at:
            promoted = claims.promote() + holds.end_due(self._settings.lease_seconds)
            if promoted:
                self._round.look_anew()
            else:
                self._promote_at = time.monotonic() + PROMOTION_SECONDS
        with self._guard:
            full = self._places.full_tenants()
        visited = self._round.visit(full)
        before = time.monotonic()
        claimed = claims.claim(
            visited,
            self._allot,
            slots=self._settings.slots,
            steps=len(self._settings.retry_schedule),
            lease_seconds=self._settings.lease_seconds,
            floors=self._round.floors,
        )
        if claimed.now is not None:
            self._clock.set(claimed.now)
        with self._guard:
            for task in claimed.tasks:
                self._places.take(task.target.tenant_id, task.target.endpoint_id)
            for endpoint_id, (allotted, given, _) in claimed.given.items():
                self._places.found(endpoint_id, allotted, given)
        self._hand_over(claimed.tasks, before)
        return claimed.moved, self._round.note(claimed) or promoted > 0

    def _allot(self, candidates: Sequence[Candidate]) -> list[int]:
        with self._guard:
            return self._places.allot(candidates, BATCH)

    def _wait_for_room(self) -> bool:
        """Whether there is a place to claim for: at once if there are enough to be worth a claim;
        after a moment for what there is, since those that hang do not give theirs back.
        """
        with self._room:
            while not self._stopping.is_set():
                self._room.wait_for(self._has_enough_room, GATHER_SECONDS)
                if self._places.free:
                    return True
        return False

    def _has_enough_room(self) -> bool:
        return self._places.free >= self._enough_room or self._stopping.is_set()

    def _hand_over(self, tasks: list[Claimed], claimed_at: float) -> None:
        """Give the transport what was claimed; it is signed when its turn comes."""
        settings = self._settings
        longest = settings.lease_seconds - 2 * settings.start_margin_seconds
        latest = claimed_at + settings.lease_seconds - settings.start_margin_seconds
        requests = []
        for task in tasks:
            timeout = min(task.target.timeout_seconds or settings.timeout_seconds, longest)
            requests.append(
                Request(task.target.url, [], b"", timeout, task, self._fill, latest - timeout)
            )
        if requests:
            self._transport.submit_many(requests)

    def _fill(self, request: Request, started_at: float) -> None:
        """Headers and body of one attempt: the same body on every try, signed anew at its time.

        That is when it started, which is what is recorded, so its headers can be built again. On
        the transport's thread. ``ValueError`` when it cannot be signed for.
        """
        task = cast("Claimed", request.tag)
        now = self._clock.at(started_at)
        try:
            signer = self._signer(task, now)
            request.body = body = event_body(task.event_id, task.type, task.data)
            signed = signer.headers(f"evt_{task.event_id}", int(now), body)
            request.headers = header_lines(task.try_number, task.replay_id, signed)
        except Exception as error:
            # Whatever is wrong with this row, it must not take its neighbours with it.
            log.error(
                "task_unsendable",
                task=f"task_{task.task_id}",
                error=str(error),
                exc_info=None if isinstance(error, UnreadableSecret) else error,
            )
            raise ValueError(str(error)) from error

    def _signer(self, task: Claimed, now: float) -> Signer:
        """The endpoint's secret, and those replaced less than their overlap ago."""
        target = task.target
        if not target.retired_secrets:
            return signer_for(self._vault, (target.secret,), target.tenant_id)
        valid = still_valid(target.retired_secrets, datetime.fromtimestamp(now, UTC))
        return signer_for(self._vault, (target.secret, *valid), target.tenant_id)

    def _free_place(self, outcome: Outcome) -> None:
        """A place is free again; claim when that lets a batch of tasks or an endpoint go on."""
        task = cast("Claimed", outcome.tag)
        target = task.target
        places = self._places
        with self._room:
            if outcome.failure is None:
                if outcome.started_at is not None:
                    places.widen(target.endpoint_id, target.slots)
            elif _answer(outcome).shows_life is False:
                places.narrow(target.endpoint_id)
            if places.give_back(target.tenant_id, target.endpoint_id):
                self._awake.set()
            if places.free == self._enough_room:
                self._room.notify()

    def _park(self, parked: bool) -> None:
        """Say whether publishers should notify: only while there is next to nothing to do."""
        if parked != self._parked:
            Dispatcher.update(parked=parked).where(Dispatcher.id == self.id).execute()
            self._parked = parked

    # ----------------------------------------------------------------------------------- record

    def _record_loop(self) -> None:
        recorded_at = 0.0
        while self.in_flight or not self._stopping.is_set():
            self._to_record.wait()
            self._to_record.clear()
            if len(self._finished) < BATCH // 2:
                self._stopping.wait(recorded_at + GATHER_SECONDS - time.monotonic())
            recorded_at = time.monotonic()
            self._record_finished()
        # An answer may have come between the last look and the decision that there is none.
        self._record_finished()

    def _record_finished(self) -> None:
        while self._finished:
            batch = [self._finished.popleft() for _ in range(min(BATCH, len(self._finished)))]
            started = [each for each in batch if each.started_at is not None]
            if started:
                results = [self._decided(each) for each in started]
                self._record(results, claims.count_off([each.task for each in results]))
            if len(started) < len(batch):
                self._release([each.tag for each in batch if each.started_at is None])

    def _decided(self, outcome: Outcome) -> Result:
        task = cast("Claimed", outcome.tag)
        assert outcome.started_at is not None
        started_at = self._clock.at(outcome.started_at)
        if outcome.failure is None:
            return Result(task, started_at, outcome, DELIVERED)
        decision = decide(
            _answer(outcome),
            task.step,
            task.target.retry_schedule or self._settings.retry_schedule,
            datetime.fromtimestamp(self._clock.at(time.monotonic()), UTC),
            self._rng,
            jitter=self._settings.retry_jitter,
            probe=task.was_probe,
        )
        return Result(task, started_at, outcome, decision)

    def _release(self, tasks: Sequence[object]) -> None:
        """Give back what was too late to start. What fails here comes back when its lease ends."""
        claimed = [cast("Claimed", task) for task in tasks]
        try:
            db.ready(for_hot_statements=True)
            claims.release(claimed, claims.count_off(claimed))
        except PeeweeException as error:
            _lost_database("release", error)

    def _record(self, batch: list[Result], over: Sequence[Lease] = ()) -> None:
        """Record until it is recorded: what the receivers answered must not be lost.

        ``over`` are the leases of which no task is left with this batch.
        """
        failures = 0
        while True:
            try:
                db.ready(for_hot_statements=True)
                record(batch, over)
                break
            except PeeweeException as error:
                _lost_database("record", error)
                if not is_away(error) and not is_conflict(error):
                    self._record_piecemeal(batch, over)
                    return
                if self._stopping.is_set() and failures >= len(BACK_OFF_SECONDS):
                    return  # their leases end by themselves
                time.sleep(_back_off_seconds(failures))
                failures += 1
        self._note_health(batch)
        _log(batch)

    def _note_health(self, batch: Sequence[Result]) -> None:
        """Tell what may change something about the endpoints: failures, successes after some."""
        told = {
            each.task.target.endpoint_id
            for each in batch
            if matters(
                _answer(each.outcome),
                each.task.target.unwell or each.task.target.endpoint_id in self._unwell,
            )
        }
        if not told:
            return
        heard = [
            Heard(each.task.target.endpoint_id, each.task.was_probe, _answer(each.outcome))
            for each in batch
            if each.task.target.endpoint_id in told
        ]
        try:
            unwell = holds.note(heard, self._rng, jitter=self._settings.retry_jitter)
        except PeeweeException as error:
            _lost_database("health", error)
            return
        self._unwell = (self._unwell - told) | unwell

    def _record_piecemeal(self, batch: list[Result], over: Sequence[Lease]) -> None:
        """PostgreSQL refuses something in the batch.

        It must not take its neighbours with it, nor be sent again for ever: alone, it is recorded
        without what the receiver wrote.
        """
        *others, last = batch
        if others:
            for result in others:
                self._record([result])
            self._record([last], over)
        elif last.outcome.response_headers or last.outcome.response_body:
            last.outcome.response_headers = last.outcome.response_body = None
            self._record(batch, over)
        else:
            log.error("attempt_unrecordable", task=f"task_{last.task.task_id}")


class Round:
    """The way over all endpoints with ready tasks, a part of it with every claim."""

    def __init__(self) -> None:
        self._cursor = claims.START
        self._visited: list[Cursor] = []
        self._visit_again_at = 0.0
        self._some_have_more = False
        self._is_cut = False
        # By endpoint: no live task that is ready was due before (claim.py, "floors").
        self.floors: dict[int, float] = {}
        self._look_anew_at = 0.0

    def visit(self, full_tenants: Sequence[int]) -> list[Cursor]:
        """The next endpoints; those of last time once more while looking would take too long."""
        began = time.monotonic()
        if began >= self._look_anew_at:
            self.look_anew()
            self._look_anew_at = began + FLOORS_LAST_SECONDS
        if began >= self._visit_again_at or not self._visited:
            self._visited = claims.visit(self._cursor, full_tenants)
            self._is_cut = len(self._visited) == claims.HOPS
            self._cursor = self._visited[-1] if self._is_cut else claims.START
            now = time.monotonic()
            self._visit_again_at = now + (now - began) * (1 / VISITING_SHARE - 1)
        return self._visited

    def look_anew(self) -> None:
        """Look at everything once more: tasks may be ready that are older than others were."""
        self.floors.clear()

    def note(self, claimed: claims.Claim) -> bool:
        """What a claim found. Whether there may be more.

        An endpoint that gave all it was asked for may have more; those that were asked for nothing
        have no place, and are looked at when they get one (``Places.give_back``).
        """
        for endpoint_id, (_, given, latest_due) in claimed.given.items():
            if given:
                self.floors[endpoint_id] = latest_due - FLOOR_SLACK_SECONDS
        empty = {each for each, (most, given, _) in claimed.given.items() if given < most}
        if empty:
            self._visited = [each for each in self._visited if each.endpoint_id not in empty]
        self._some_have_more |= len(empty) < len(claimed.given)
        more = self._is_cut or self._some_have_more
        if not self._is_cut:
            self._some_have_more = False
        return more


class DatabaseClock:
    """The database's time between two claims: its last reading and our monotonic clock since.

    Every time that is stored or sent is the database's, so hosts' clocks may differ or jump.
    """

    def __init__(self) -> None:
        self._offset: float | None = None

    def set(self, now: float) -> None:
        """What the database's clock showed just now, in Unix seconds."""
        self._offset = now - time.monotonic()

    def at(self, monotonic: float) -> float:
        """The database's time, in Unix seconds, at a monotonic time; there is none before the first
        claim.
        """
        assert self._offset is not None
        return self._offset + monotonic


def _answer(outcome: Outcome) -> Answer:
    return Answer(outcome.status_code, outcome.failure, outcome.retry_after)


def still_valid(retired_secrets: Sequence[dict[str, str]], moment: datetime) -> list[str]:
    """Those of an endpoint's replaced secrets that sign at that moment as well, as stored."""
    return [
        each["secret"] for each in retired_secrets if datetime.fromisoformat(each["until"]) > moment
    ]


@lru_cache(maxsize=10_000)
def signer_for(vault: Vault, stored: tuple[str, ...], tenant_id: int) -> Signer:
    """Decrypting costs ten times what signing does, so the keys of busy endpoints are kept.

    ``UnreadableSecret`` when what is stored is not a secret of this tenant's.
    """
    try:
        return Signer([vault.decrypt(secret, tenant_id) for secret in stored])
    except ValueError as error:
        raise UnreadableSecret(f"what is stored is no secret: {error}") from error


def _lost_database(work: str, error: PeeweeException) -> None:
    """Start afresh with a new connection; an error that is no absence is reported as a defect."""
    db.give_up()
    if is_away(error):
        log.warning("database_away", work=work, error=str(error).strip())
    else:
        log.error("database_error", work=work, exc_info=error)


def _back_off_seconds(failures: int) -> float:
    return BACK_OFF_SECONDS[min(failures, len(BACK_OFF_SECONDS) - 1)]


def _log(batch: Sequence[Result]) -> None:
    """A line for each attempt: at INFO for what failed. Successes are in the table, by thousands a
    second.
    """
    failed = [each for each in batch if each.outcome.failure is not None]
    info_many("attempt", map(_log_line, failed))
    debug_many("attempt", (_log_line(each) for each in batch if each.outcome.failure is None))


def _log_line(result: Result) -> dict[str, object]:
    task, outcome = result.task, result.outcome
    return {
        "task": f"task_{task.task_id}",
        "attempt": f"att_{task.attempt_id}",
        "tenant": task.target.tenant_id,
        "endpoint": f"ep_{task.target.endpoint_id}",
        "event_id": f"evt_{task.event_id}",
        "number": task.try_number,
        "status_code": outcome.status_code,
        "failure": outcome.failure,
        "ms": None if outcome.total_us is None else round(outcome.total_us / 1000, 1),
        "decision": type(result.decision).__name__,
    }
