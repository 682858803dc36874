"""claim -> send -> decide -> record, overlapped: the heart of the dispatcher.

Two threads of its own beside the transport's: one claims and hands over, one decides and records.
They share nothing but the counts below, so a slow commit never delays a request and a slow receiver
never delays a commit. All that must survive is in the tables: a process killed at any point leaves
leases that end.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime, timedelta
from functools import lru_cache
from random import Random
from typing import cast

import structlog
from peewee import PeeweeException

from app import __version__
from app.db import db, is_away, is_conflict
from app.logs import info_many
from app.models import Dispatcher, id_time, rfc3339
from app.settings import Settings
from app.signing import Signer, UnreadableSecret, Vault
from dispatcher import claim as claims
from dispatcher.claim import Claimed
from dispatcher.record import Result, record
from dispatcher.retry import Answer, decide
from dispatcher.transport import Outcome, Request, Transport

log = structlog.get_logger()

# One claim or record handles at most this many tasks, which bounds the locks it holds at once.
BATCH = 500
POLL_SECONDS = 1.0
# After saying "parked": a publisher that read "busy" just before may commit just after the look.
LOOKS_AFTER_PARKING_SECONDS = (0.005, 0.02, 0.08, 0.32)
# A claim this small is no load: stay parked, and let each publish notify.
FEW = 32
# Without the database: how long to wait before asking for it again.
BACK_OFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)


class Engine:
    """Moves tasks from the tables to the world and back, until it is told to drain."""

    def __init__(
        self, settings: Settings, transport: Transport, vault: Vault, dispatcher_id: int
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._vault = vault
        self._dispatcher_id = dispatcher_id
        self._rng = Random()
        self._clock = DatabaseClock()
        self._cursor = claims.START
        self._found_in_round = False
        self._parked = False

        self._guard = threading.Lock()
        # From the claim until the answer: what an endpoint's slots and this process's room are for.
        self._busy: Counter[int] = Counter()
        self._saturated: set[int] = set()
        self._awake = threading.Event()
        self._room = threading.Condition(self._guard)
        self._finished: deque[tuple[Sending, Outcome]] = deque()
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
        sending = cast("Sending", outcome.tag)
        self._finished.append((sending, outcome))
        self._free_slot(sending.task.endpoint_id)
        self._to_record.set()

    @property
    def in_flight(self) -> int:
        """Tasks claimed and not yet answered."""
        return self._busy.total()

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
        never_started = [request.tag for request in self._transport.withdraw()]
        self._release([tag for tag in never_started if isinstance(tag, Sending)])
        deadline = time.monotonic() + self._settings.timeout_seconds + 5
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
            try:
                db.ready(for_hot_statements=True)
                found = self._claim_once()
                failures = 0
                if found > FEW:
                    self._park(False)
                elif not found and not self._parked:
                    self._park(True)
                    looks = iter((0.0, *LOOKS_AFTER_PARKING_SECONDS))
                pause = 0.0 if found else next(looks, None)
                if pause is None:
                    due = claims.seconds_to_next_due()
                    pause = POLL_SECONDS if due is None else min(max(due, 0.001), POLL_SECONDS)
            except PeeweeException as error:
                _lost_database("claim", error)
                self._parked = False
                pause = _back_off_seconds(failures)
                failures += 1
            if pause:
                self._awake.wait(pause)

    def _claim_once(self) -> int:
        """One step: promote what came due, claim what there is room for, hand it over.

        Returns how many tasks were picked up; 0 means that there is nothing to do at present.
        """
        room = self._wait_for_room()
        if not room:
            return 0
        promoted = claims.promote()
        with self._guard:
            busy = {endpoint: count for endpoint, count in self._busy.items() if count}
        before = time.monotonic()
        claimed = claims.claim(
            self._cursor,
            busy,
            limit=min(room, BATCH),
            slots=self._settings.slots,
            steps=len(self._settings.retry_schedule),
            lease_seconds=self._settings.lease_seconds,
        )
        if claimed.now is not None:
            self._clock.set(claimed.now)
        self._cursor = claimed.cursor
        with self._guard:
            for task in claimed.tasks:
                self._busy[task.endpoint_id] += 1
                if self._busy[task.endpoint_id] >= self._settings.slots:
                    self._saturated.add(task.endpoint_id)
        self._hand_over(claimed.tasks, before)
        # Nothing behind the cursor says nothing about what is before it. But a whole round over the
        # endpoints that found nothing is enough: those without free slots would keep it going.
        self._found_in_round |= claimed.moved > 0
        more = claimed.cut or self._found_in_round
        if not claimed.cut:
            self._found_in_round = False
        return claimed.moved or promoted or int(more)

    def _wait_for_room(self) -> int:
        """How many tasks may be claimed: at once if an eighth of all places is free."""
        places = self._settings.in_flight
        with self._room:
            while not self._stopping.is_set():
                free = places - self._busy.total()
                if free >= max(1, places // 8):
                    return free
                self._room.wait(POLL_SECONDS)
        return 0

    def _hand_over(self, tasks: list[Claimed], claimed_at: float) -> None:
        """Build, sign, submit; what cannot be signed for fails here, what is late goes back."""
        settings = self._settings
        latest = claimed_at + settings.lease_seconds
        latest -= settings.timeout_seconds + settings.start_margin_seconds
        requests, too_late = [], []
        for task in tasks:
            if time.monotonic() > latest:
                too_late.append(Sending(task, self._clock.now()))
                continue
            sending = Sending(task, self._clock.now())
            try:
                requests.append(self._request(sending))
            except Exception as error:
                # Whatever is wrong with this row, it must not take its neighbours with it.
                unforeseen = None if isinstance(error, UnreadableSecret) else error
                log.error(
                    "task_unsendable",
                    task=f"task_{task.task_id}",
                    error=str(error),
                    exc_info=unforeseen,
                )
                self.done(Outcome(tag=sending, status_code=None, failure="unsendable"))
        if requests:
            self._transport.submit_many(requests)
        if too_late:
            self._release(too_late)

    def _request(self, sending: Sending) -> Request:
        """The request of one attempt: the same body on every try, signed anew at its time."""
        task = sending.task
        body = event_body(task.event_id, task.type, task.data)
        signer = self._signer(task, sending.started_at)
        headers = [
            "content-type: application/json",
            f"user-agent: Hookjetty/{__version__}",
            f"webhook-attempt: {task.try_number}",
            *signer.headers(f"evt_{task.event_id}", int(sending.started_at.timestamp()), body),
        ]
        if task.replay_id is not None:
            headers.append(f"webhook-replay: rpl_{task.replay_id}")
        return Request(
            url=task.url,
            headers=headers,
            body=body,
            timeout_seconds=self._settings.timeout_seconds,
            tag=sending,
        )

    def _signer(self, task: Claimed, now: datetime) -> Signer:
        """The endpoint's secret, and those replaced less than their overlap ago."""
        stored = [task.secret]
        for retired in task.retired_secrets:
            if datetime.fromisoformat(retired["until"]) > now:
                stored.append(retired["secret"])
        return signer_for(self._vault, tuple(stored), task.tenant_id)

    def _release(self, sendings: list[Sending]) -> None:
        try:
            db.ready(for_hot_statements=True)
            claims.release([sending.task for sending in sendings])
        except PeeweeException as error:
            # Their leases end by themselves; then they are due again, as interrupted ones.
            _lost_database("release", error)
        for sending in sendings:
            self._free_slot(sending.task.endpoint_id)

    def _free_slot(self, endpoint_id: int) -> None:
        """A slot is free again; claim when that lets a batch of tasks or an endpoint go on."""
        slots, places = self._settings.slots, self._settings.in_flight
        with self._room:
            self._busy[endpoint_id] -= 1
            left = self._busy[endpoint_id]
            if not left:
                del self._busy[endpoint_id]
            if endpoint_id in self._saturated and left <= slots // 2:
                self._saturated.discard(endpoint_id)
                self._awake.set()
            if places - self._busy.total() >= max(1, places // 8):
                self._room.notify()

    def _park(self, parked: bool) -> None:
        """Say whether publishers should notify: only while there is next to nothing to do."""
        if parked != self._parked:
            Dispatcher.update(parked=parked).where(Dispatcher.id == self._dispatcher_id).execute()
            self._parked = parked

    # ----------------------------------------------------------------------------------- record

    def _record_loop(self) -> None:
        while self.in_flight or not self._stopping.is_set():
            self._to_record.wait()
            self._to_record.clear()
            self._record_finished()
        # An answer may have come between the last look and the decision that there is none.
        self._record_finished()

    def _record_finished(self) -> None:
        while batch := self._next_batch():
            self._record(batch)

    def _next_batch(self) -> list[Result]:
        """What has finished while the last batch was being recorded: under load, many at once."""
        batch: list[Result] = []
        while self._finished and len(batch) < BATCH:
            sending, outcome = self._finished.popleft()
            batch.append(self._decided(sending, outcome))
        return batch

    def _decided(self, sending: Sending, outcome: Outcome) -> Result:
        task = sending.task
        decision = decide(
            Answer(outcome.status_code, outcome.failure, outcome.retry_after),
            task.step,
            self._settings.retry_schedule,
            self._clock.now(),
            self._rng,
            jitter=self._settings.retry_jitter,
            probe=task.was_probe,
        )
        return Result(task, sending.started_at, outcome, decision)

    def _record(self, batch: list[Result]) -> None:
        """Record until it is recorded: what the receivers answered must not be lost."""
        failures = 0
        while True:
            try:
                db.ready(for_hot_statements=True)
                record(batch)
                break
            except PeeweeException as error:
                _lost_database("record", error)
                if not is_away(error) and not is_conflict(error):
                    self._record_piecemeal(batch)
                    return
                if self._stopping.is_set() and failures >= len(BACK_OFF_SECONDS):
                    return  # their leases end by themselves
                time.sleep(_back_off_seconds(failures))
                failures += 1
        info_many("attempt", map(_log_line, batch))

    def _record_piecemeal(self, batch: list[Result]) -> None:
        """PostgreSQL refuses something in the batch.

        It must not take its neighbours with it, nor be sent again for ever: alone, it is recorded
        without what the receiver wrote.
        """
        if len(batch) > 1:
            for result in batch:
                self._record([result])
        elif batch[0].outcome.response_headers or batch[0].outcome.response_body:
            batch[0].outcome.response_headers = batch[0].outcome.response_body = None
            self._record(batch)
        else:
            log.error("attempt_unrecordable", task=f"task_{batch[0].task.task_id}")


class Sending:
    """A task on its way: what the transport carries as its tag."""

    __slots__ = ("started_at", "task")

    def __init__(self, task: Claimed, started_at: datetime) -> None:
        self.task = task
        self.started_at = started_at


class DatabaseClock:
    """The database's time between two claims: its last reading and our monotonic clock since.

    Every time that is stored or sent is the database's, so hosts' clocks may differ or jump.
    """

    def __init__(self) -> None:
        self._reading: tuple[datetime, float] | None = None

    def set(self, now: datetime) -> None:
        """What the database's clock showed just now."""
        self._reading = (now, time.monotonic())

    def now(self) -> datetime:
        """The database's time. There is none before the first claim."""
        assert self._reading is not None
        then, read_at = self._reading
        return then + timedelta(seconds=time.monotonic() - read_at)


def event_body(event_id: int, event_type: str, data: str) -> bytes:
    """The body sent for an event: the same bytes on every attempt, the data as it came in."""
    when = rfc3339(id_time(event_id))
    head = f'{{"id":"evt_{event_id}","type":"{event_type}","timestamp":"{when}","data":'
    return f"{head}{data}}}".encode()


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


def _log_line(result: Result) -> dict[str, object]:
    task, outcome = result.task, result.outcome
    return {
        "task": f"task_{task.task_id}",
        "attempt": f"att_{task.attempt_id}",
        "tenant": task.tenant_id,
        "endpoint": f"ep_{task.endpoint_id}",
        "event_id": f"evt_{task.event_id}",
        "number": task.try_number,
        "status_code": outcome.status_code,
        "failure": outcome.failure,
        "ms": None if outcome.total_us is None else round(outcome.total_us / 1000, 1),
        "decision": type(result.decision).__name__,
    }
