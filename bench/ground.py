"""What every scenario stands on: PostgreSQL with histories, the real processes, and the receiver.

    with Ground(Path("bench/var"), QUICK) as ground:
        ground.use_history(ground.scale.history)
        delivery = ground.deliver(lambda: ground.publish(1000))
        delivery.per_second

Everything is as users have it: the embedded PostgreSQL with the settings of ``make run``, real
processes with default settings, and nothing but loopback.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from app import devdb
from app.db import Statement, db, migrate, open_database
from app.settings import Settings, load
from app.signing import Vault, generate_secret
from bench import rows
from bench.cpu import cpu_seconds, peak_rss_mb
from bench.inside import event_body
from bench.receiver import Receiver, Report
from bench.rows import Target
from tests.live import LiveService

# One dispatcher process per core, but where a scenario is about one process.
DISPATCHERS = CORES = len(os.sched_getaffinity(0))

TENANTS = 20
ENDPOINTS_PER_TENANT = 5
HANGING = 10
EVENT_BYTES = 300  # the body that a receiver gets

# Something is received at least once in so many seconds while anything is due, or the bench has
# failed.
PATIENCE_SECONDS = 60
LAST_WORDS = 2000
# A dispatcher is halted only when its start is over and it rests: then it holds no lock.
SETTLED_SECONDS = 0.5

# The database of the API and of most scenarios, which `devdb` makes; and one that stays as it was
# before anything happened, to copy.
MAIN, PRISTINE = devdb.DATABASE, "pristine"


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    name: str
    rounds: int  # the median counts
    turns: int  # the same, where a turn takes a second or two
    tasks: int  # that a side of a ratio delivers
    baseline_tasks: int
    short_history: int  # events that were delivered in the last weeks, with tasks and attempts
    history: int
    long_history: int
    seconds: float  # that a side takes which goes by the clock
    neighbour_seconds: float
    neighbour_due: int
    idle_seconds: float
    due: int  # tasks that claims are timed over
    backlog: int  # … and those beside them
    backlog_endpoints: int
    snapshot_tasks: int


FULL = Scale(
    "full",
    rounds=3,
    turns=5,
    tasks=40_000,
    baseline_tasks=2_000,
    short_history=10_000,
    history=2_000_000,
    long_history=10_000_000,
    seconds=15,
    neighbour_seconds=30,
    neighbour_due=100_000,
    idle_seconds=60,
    due=10_000,
    backlog=1_000_000,
    backlog_endpoints=5_000,
    snapshot_tasks=300_000,
)
QUICK = Scale(
    "quick",
    rounds=1,
    turns=3,
    tasks=8_000,
    baseline_tasks=500,
    short_history=10_000,
    history=100_000,
    long_history=500_000,
    seconds=4,
    neighbour_seconds=8,
    neighbour_due=10_000,
    idle_seconds=10,
    due=5_000,
    backlog=100_000,
    backlog_endpoints=1_000,
    snapshot_tasks=30_000,
)


class BenchError(Exception):
    """A figure would mean nothing: something was lost, refused or too slow."""


@dataclass(frozen=True)
class Delivery:
    """So many tasks, delivered and checked."""

    tasks: int
    recorded: float  # monotonic: when no task was open any more
    report: Report
    dispatcher_cpu_seconds: float
    postgresql_cpu_seconds: float
    peak_rss_mb: float  # of the dispatcher that had most

    @property
    def per_second(self) -> float:
        """From the first request received to the last response recorded."""
        return self.tasks / (self.recorded - self.report.first)

    @property
    def cpu_us(self) -> dict[str, float]:
        """Microseconds per task."""
        return {
            "dispatcher": self.dispatcher_cpu_seconds * 1e6 / self.tasks,
            "postgresql": self.postgresql_cpu_seconds * 1e6 / self.tasks,
            "receiver": self.report.cpu_seconds * 1e6 / self.tasks,
        }


class Ground:
    """Built up by ``with``, taken down at its end, whatever happens in between."""

    settings: Settings

    def __init__(self, var: Path, scale: Scale) -> None:
        self.scale = scale
        self.var = var
        self._stack = ExitStack()
        self._vault_key = _fernet_key()
        self._vault = Vault((self._vault_key,))
        self._histories: dict[int, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            say("starting PostgreSQL, receiver and API")
            ports = TENANTS * ENDPOINTS_PER_TENANT
            self.receiver = stack.enter_context(Receiver(ports, HANGING, ports))
            self.database = stack.enter_context(devdb.start(self.var, temporary=True))
            open_database(self.database.url, "hookjetty bench")
            db.ready()
            stack.callback(db.close)
            migrate()
            self.targets = self.make_targets(1, self.receiver.urls)
            db.close()
            self._administer(f'CREATE DATABASE "{PRISTINE}" TEMPLATE "{MAIN}"')
            db.ready()
            self.live = stack.enter_context(
                LiveService(self.database.url, dispatchers=0, SECRET_KEYS=self._vault_key)
            )
            self.settings = load(self.live.environ)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # ------------------------------------------------------------------------------- databases

    def use_history(self, events: int) -> None:
        """From now on everything happens in a database with so many delivered events.

        It is made when it is first asked for. Only that of ``scale.history`` has the API.
        """
        name = self._histories.get(events)
        if name is None:
            name = MAIN if events == self.scale.history else f"history_{events}"
            if name != MAIN:
                self._copy(name)
            self._use(name)
            say(f"making a history of {events:,} delivered events")
            began = time.monotonic()
            rows.make_history(events, self.targets, EVENT_DATA)
            self.calm()
            say(f"made it in {time.monotonic() - began:.0f} s")
            self._histories[events] = name
        self._use(name)

    @contextmanager
    def fresh(self, name: str = "fresh") -> Iterator[str]:
        """In the block everything happens in a database of that name, without a past."""
        self._copy(name)
        try:
            self._use(name)
            yield name
        finally:
            self._use(MAIN)
            self._administer(f'DROP DATABASE "{name}" WITH (FORCE)')

    def use_fresh(self, name: str) -> None:
        """Another of those that ``fresh`` made."""
        self._use(name)

    @property
    def url(self) -> str:
        """The URL of the database in use."""
        return self.live.database_url

    def _use(self, name: str) -> None:
        url = self.database.url_of(name)
        if url != self.live.database_url:
            db.close()
            open_database(url, "hookjetty bench")
            self.live.database_url = url
            self.live.environ["HOOKJETTY_DATABASE_URL"] = url
        db.ready()

    def _copy(self, name: str) -> None:
        self._administer(f'CREATE DATABASE "{name}" TEMPLATE "{PRISTINE}"')

    def _administer(self, sql: str) -> None:
        psql = [self.database.bin("psql"), "-qX", "-d", self.database.url_of("postgres")]
        subprocess.run([*psql, "-c", sql], check=True, env={"PATH": os.defpath})

    # -------------------------------------------------------------------------------- the tables

    def make_targets(
        self, first_tenant: int, urls: Sequence[str], tenants: int = TENANTS, status: str = "active"
    ) -> list[Target]:
        """An endpoint for each URL, spread over so many tenants."""
        targets = []
        for number, url in enumerate(urls):
            tenant_id = first_tenant + number % tenants
            type_ = f"bench.e{number // tenants}"
            secret = generate_secret()
            db.execute_sql(
                "INSERT INTO hookjetty.tenants VALUES (%s) ON CONFLICT DO NOTHING", (tenant_id,)
            )
            cursor = db.execute_sql(
                """
                INSERT INTO hookjetty.endpoints (tenant_id, url, url_key, events, status, secret)
                VALUES (%s, %s, %s, %s, %s, %s) RETURNING id
                """,
                (tenant_id, url, url, [type_], status, self._vault.encrypt(secret, tenant_id)),
            )
            targets.append(Target(cursor.fetchone()[0], tenant_id, url, type_, secret))
        return targets

    def publish(self, events: int, targets: Sequence[Target] | None = None) -> None:
        """Events for all targets in turn, each of them one task, through ``publish_event``."""
        rows.publish(events, self.targets if targets is None else targets, EVENT_DATA)

    @property
    def postgresql_version(self) -> str:
        """Of the server, such as 18.6."""
        return db.execute_sql("SHOW server_version").fetchone()[0]

    def calm(self) -> None:
        """Write out what earlier steps changed, so that nobody does while something is measured."""
        db.execute_sql("CHECKPOINT")

    # -------------------------------------------------------------------------------- processes

    @contextmanager
    def dispatchers(
        self, count: int = DISPATCHERS, *, kill: bool = False, **settings: str
    ) -> Iterator[Dispatchers]:
        """Real dispatchers on the database in use, drained at the end; or killed, since those that
        wait for an answer that never comes would take long.
        """
        started = Dispatchers()
        try:
            for _ in range(count):
                started.processes.append(self.live.start_dispatcher(**settings))
            yield started
        finally:
            started.go_on()
            for process in started.processes:
                if kill:
                    self.live.kill_dispatcher(process)
                else:
                    self.live.stop_dispatcher(process)
            if kill:
                db.execute_sql("DELETE FROM hookjetty.dispatchers")

    def deliver(
        self, make_due: Callable[[], object], tasks: int, count: int = DISPATCHERS, **settings: str
    ) -> Delivery:
        """Have so many tasks delivered that are due before any dispatcher may begin."""
        before = rows.latest_id()
        with self.dispatchers(count, **settings) as dispatchers:
            dispatchers.halt()
            make_due()
            self.calm()
            self.receiver.reset()
            dispatcher_before = dispatchers.cpu_seconds()
            postgresql_before = cpu_seconds(self.database.server_pid)
            dispatchers.go_on()
            self.wait_until_received(tasks)
            recorded = self.wait_until_recorded()
            delivery = Delivery(
                tasks,
                recorded,
                self.receiver.report(),
                dispatchers.cpu_seconds() - dispatcher_before,
                cpu_seconds(self.database.server_pid) - postgresql_before,
                max(peak_rss_mb(process.pid) for process in dispatchers.processes),
            )
        self.check_delivered(before, tasks)
        return delivery

    def check_delivered(self, since: int, tasks: int) -> None:
        """Each task made since then was delivered, and has its attempt with the response."""
        delivered, recorded = db.execute_sql(
            """
            SELECT (SELECT count(*) FROM hookjetty.tasks WHERE id > %s AND status = 'delivered'),
                   (SELECT count(*) FROM hookjetty.attempts
                    WHERE id > %s AND status_code = 200 AND response_body <> '')
            """,
            (since, since),
        ).fetchone()
        if delivered != tasks or recorded < tasks:
            raise BenchError(f"of {tasks} tasks {delivered} were delivered and {recorded} recorded")

    def wait_until_received(self, requests: int) -> None:
        """The receiver has had so many requests since its last reset."""
        count, deadline = -1, 0.0
        while (now := self.receiver.count()) < requests:
            if now > count:
                count, deadline = now, time.monotonic() + PATIENCE_SECONDS
            self._check_patience(deadline)
            time.sleep(0.05)

    def wait_until_recorded(self) -> float:
        """No task is open. Returns when (monotonic) that was so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while _SOME_OPEN():
            self._check_patience(deadline)
            time.sleep(0.005)
        return time.monotonic()

    def _check_patience(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise BenchError(
                f"nothing happened for {PATIENCE_SECONDS} s: the receiver has had"
                f" {self.receiver.count()} requests; the processes' last words:\n"
                + self.live.log()[-LAST_WORDS:]
            )


class Dispatchers:
    """Running dispatcher processes."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def halt(self) -> None:
        """Let them rest, started and warm, until ``go_on``."""
        time.sleep(SETTLED_SECONDS)
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End the rest, if there is one."""
        for process in self.processes:
            process.send_signal(signal.SIGCONT)

    def cpu_seconds(self) -> float:
        """What they have used so far."""
        return sum(cpu_seconds(process.pid) for process in self.processes)


_SOME_OPEN = Statement(
    "some_open",
    (),
    """
    (SELECT 1 FROM hookjetty.tasks WHERE ready LIMIT 1) UNION ALL
    (SELECT 1 FROM hookjetty.tasks WHERE due_at IS NOT NULL AND NOT ready LIMIT 1) UNION ALL
    (SELECT 1 FROM hookjetty.leases LIMIT 1)
    """,
)


_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Tell the person at the terminal what is going on."""
    minutes, seconds = divmod(int(time.monotonic() - _BEGAN), 60)
    print(f"bench {minutes:02}:{seconds:02} {text}", file=sys.stderr, flush=True)


def _fernet_key() -> str:
    return urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _event_data() -> str:
    """An event's data that makes a body of EVENT_BYTES."""
    data: dict[str, Any] = {"export_id": "exp_8842", "rows": 125000, "state": "done", "note": ""}
    some_id = 2**47  # as many digits as ids have until 2094
    missing = EVENT_BYTES - len(event_body(some_id, "bench.e0", json.dumps(data)))
    return json.dumps(data | {"note": "x" * missing})


EVENT_DATA = _event_data()
