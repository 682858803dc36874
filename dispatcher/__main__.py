"""``python -m dispatcher``: the process that polls for due tasks and delivers them.

With HOOKJETTY_DISPATCHERS above 1 it starts so many of itself instead and keeps them running.

APScheduler is its clock: it polls every second and runs the jobs. A NOTIFY brings the same work
forward. SIGTERM and SIGINT drain (nothing new is claimed, what is under way is finished and
recorded); a second one stops at once, and the leases of what was under way end by themselves.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg2
import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from peewee import PeeweeException

from app import db as database
from app import logs, supervise
from app.db import db
from app.destinations import Policy
from app.settings import Settings, SettingsError, load
from app.signing import Vault
from dispatcher import jobs, tenant_erasures
from dispatcher.engine import POLL_SECONDS, Engine
from dispatcher.handshakes import Handshakes
from dispatcher.resolve import Resolver
from dispatcher.transport import Transport

log = structlog.get_logger()


def main() -> int:
    """Run until told to stop; returns the exit status."""
    try:
        settings = load()
        settings.require("database_url", "secret_keys")
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings)
    if settings.dispatchers > 1:
        seconds = settings.timeout_seconds + supervise.DRAIN_MARGIN_SECONDS
        return supervise.run_dispatchers(settings.dispatchers, seconds, _report)
    return _main(settings)


def _report(text: str) -> None:
    log.warning("supervisor", message=text)


def _main(settings: Settings) -> int:
    _take_room()
    stop = _stop_on_signals()
    threading.excepthook = _die
    database.open_database(settings.database_direct_url or "", "hookjetty dispatcher")
    vault = Vault(settings.secret_keys)
    try:
        dispatcher_id = _when_database_is_there(stop, lambda: _prepare(vault))
    except database.SchemaMismatch as error:
        print(error, file=sys.stderr)
        return 2
    if dispatcher_id is None:
        return 0
    _run(settings, vault, dispatcher_id, stop)
    return 0


def _prepare(vault: Vault) -> int:
    database.check_schema()
    database.claim_secret_keys(vault.fingerprints)
    database.note_cluster()
    jobs.make_partitions()
    return jobs.register_dispatcher()


def _run(settings: Settings, vault: Vault, dispatcher_id: int, stop: threading.Event) -> None:
    """Start the parts, wait for the signal, and take them down in the order data flows."""
    engine: Engine
    policy = Policy.from_settings(settings)
    transport = Transport(
        policy,
        Resolver(policy, settings.nameservers),
        ca_bundle=settings.ca_bundle,
        in_flight=settings.in_flight,
        connect_timeout_seconds=settings.connect_timeout_seconds,
        on_done=lambda outcome: engine.done(outcome),  # noqa: PLW0108 -- the engine is made below
    )
    engine = Engine(settings, transport, vault, dispatcher_id)
    heart = Heart(dispatcher_id, engine)
    scheduler = _scheduler(settings, heart, engine)
    handshakes = Handshakes(settings, vault, engine, lambda: bring_forward(scheduler, "handshakes"))
    _every(scheduler, 1, "handshakes", lambda: jobs.until_done(handshakes.step))
    transport.start()
    engine.start()
    scheduler.start()
    listener = threading.Thread(
        target=_listen, args=(engine, scheduler, stop), name="listen", daemon=True
    )
    listener.start()
    log.info("dispatcher_started", id=dispatcher_id, pid=os.getpid())

    # Not for ever in one go: a signal that another thread received wakes this one only when it
    # looks again, and handlers run nowhere else.
    while not stop.wait(POLL_SECONDS):
        pass
    log.info("dispatcher_draining", in_flight=engine.in_flight)
    scheduler.shutdown(wait=False)
    engine.drain()
    transport.stop()
    try:
        db.ready()
        handshakes.settle()
        heart.stop()
    except PeeweeException:
        log.warning("database_away", work="deregister")
    log.info("dispatcher_stopped")


def _scheduler(settings: Settings, heart: Heart, engine: Engine) -> BackgroundScheduler:
    """The jobs without a state of their own, and how often each is done without being asked."""
    scheduler = BackgroundScheduler(
        timezone=UTC,
        executors={"default": ThreadPoolExecutor(6)},
        # Late is better than skipped, and once is enough.
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    days, audit_days = settings.retention_days, settings.audit_days
    every = partial(_every, scheduler)
    every(POLL_SECONDS, "poll", engine.wake)
    every(5, "heartbeat", heart.beat)
    every(1, "replays", lambda: _feed(engine, jobs.replay_step))
    every(1, "bulk_retries", lambda: _feed(engine, jobs.bulk_retry_step))
    every(1, "settle", lambda: _feed(engine, jobs.settle_step))
    every(1, "tenant_erasures", lambda: jobs.until_done(tenant_erasures.step))
    every(10, "event_erasures", lambda: jobs.until_done(jobs.event_erasure_step))
    every(10, "sweep", lambda: jobs.until_done(jobs.sweep))
    every(
        600, "prune", lambda: jobs.until_done(lambda: jobs.prune_step(days, audit_days)), soon=False
    )
    every(3600, "retention", lambda: jobs.drop_expired(days))
    every(86400, "partitions", jobs.make_partitions, soon=False)
    return scheduler


def _every(
    scheduler: BackgroundScheduler,
    seconds: float,
    name: str,
    work: Callable[[], Any],
    *,
    soon: bool = True,
) -> None:
    first = {"next_run_time": datetime.now(UTC)} if soon else {}
    scheduler.add_job(Job(name, work), "interval", seconds=seconds, id=name, name=name, **first)


def _feed(engine: Engine, step: Callable[[], bool]) -> None:
    """Do what makes tasks due, and have them claimed."""
    jobs.until_done(step)
    engine.wake()


class Heart:
    """This process's row among the dispatchers, which no beat brings back once it has stopped."""

    def __init__(self, dispatcher_id: int, engine: Engine) -> None:
        self._dispatcher_id = dispatcher_id
        self._engine = engine
        self._lock = threading.Lock()
        self._has_stopped = False

    def beat(self) -> None:
        """Say that this process lives."""
        with self._lock:
            if not self._has_stopped:
                jobs.heartbeat(self._dispatcher_id, self._engine.in_flight, self._engine.parked)

    def stop(self) -> None:
        """Say that it ends in good order."""
        with self._lock:
            self._has_stopped = True
            jobs.deregister_dispatcher(self._dispatcher_id)


class Job:
    """A job that reports what went wrong and lives on; the next run starts afresh.

    The scheduler skips a run while the last one is under way, so a run that was asked for meanwhile
    is done by that one before it ends.
    """

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self._name = name
        self._work = work
        self.asked = threading.Event()

    def __call__(self) -> None:
        again = True
        while again:
            self.asked.clear()
            try:
                db.ready()
                self._work()
            except Exception as error:
                db.give_up()
                if isinstance(error, PeeweeException) and database.is_away(error):
                    log.warning("database_away", work=self._name, error=str(error).strip())
                else:
                    log.exception("job_failed", work=self._name)
                return
            again = self.asked.is_set()


def bring_forward(scheduler: BackgroundScheduler, name: str) -> None:
    """Run a job now, or once more when it is just running."""
    job = scheduler.get_job(name)
    if job is None:
        return  # the scheduler is shutting down
    job.func.asked.set()
    try:
        job.modify(next_run_time=datetime.now(UTC))
    except JobLookupError:
        pass  # it was shut down just now


# Brought forward by a NOTIFY "jobs", which whoever changes an endpoint or asks for a replay sends.
_WOKEN_JOBS = ("handshakes", "replays", "bulk_retries", "settle", "tenant_erasures")


def _listen(engine: Engine, scheduler: BackgroundScheduler, stop: threading.Event) -> None:
    """Wait for NOTIFYs on a session of its own. Without it, the poll finds everything too."""
    while not stop.is_set():
        try:
            db.ready()
            connection = db.connection()
            db.execute_sql("LISTEN hookjetty")
            engine.wake()
            # poll(2), not select(2): with many connections open, descriptors go beyond 1024.
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            while not stop.is_set():
                if poll.poll(POLL_SECONDS * 1000):
                    connection.poll()
                    heard = {notify.payload for notify in connection.notifies}
                    connection.notifies.clear()
                    if "jobs" in heard or f"tasks {engine.id}" in heard:
                        engine.wake()
                    if "jobs" in heard:
                        for name in _WOKEN_JOBS:
                            bring_forward(scheduler, name)
        except (PeeweeException, psycopg2.Error) as error:
            db.give_up()
            log.warning("database_away", work="listen", error=str(error).strip())
            stop.wait(POLL_SECONDS)


def _when_database_is_there(stop: threading.Event, work: Callable[[], int]) -> int | None:
    """Do ``work``, waiting for the database if need be; None when told to stop meanwhile."""
    while not stop.is_set():
        try:
            db.ready()
            return work()
        except PeeweeException as error:
            db.give_up()
            if not database.is_away(error):
                raise
            log.warning("database_away", work="start", error=str(error).strip())
            stop.wait(POLL_SECONDS)
    return None


def _take_room() -> None:
    """Let this process have the descriptors it may have, and its threads take turns often.

    By default a thread that computes keeps the interpreter for 5 ms while others wait, and the
    transport answers its sockets late: with another thread busy half of the time it made 7,000
    requests a second, and 12,400 with half a millisecond.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setswitchinterval(0.0005)
    # What lives as long as the process need not be looked at again, and the thousands of tasks that
    # come and go are in no cycles: there is nothing to collect.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _die(thread: threading.ExceptHookArgs) -> None:
    """End the process when a part of it has ended by a defect.

    Better no dispatcher, which its supervisor restarts, than one that claims and never records.
    """
    name = thread.thread.name if thread.thread else "unknown"
    log.critical("thread_died", thread=name, exc_info=thread.exc_value)
    os._exit(70)


def _stop_on_signals() -> threading.Event:
    """Set by the first SIGTERM or SIGINT; the second ends the process on the spot."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    # Explicitly, since both may have been inherited as ignored.
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


if __name__ == "__main__":
    sys.exit(main())
