"""What every scenario stands on: a PostgreSQL with history, the real processes, and the receiver.

    with Ground(Path("bench/var"), QUICK) as ground:
        ground.publish(1000)
        with ground.dispatcher():
            ground.wait_until_received(1000)

Everything is as users have it: the embedded PostgreSQL with the settings of ``make run``, real
processes with default settings, and nothing but loopback.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from app import devdb
from app.db import Statement, db, migrate, open_database
from app.settings import Settings, load
from app.signing import Vault, generate_secret
from bench.receiver import ANSWER, ANSWER_BODY, Receiver
from dispatcher.engine import event_body
from tests.live import LiveService

TENANTS = 20
ENDPOINTS_PER_TENANT = 5
EVENT_BYTES = 300  # the body that a receiver gets
HISTORY_DAYS = 28  # of the 30 that are kept by default
HISTORY_CHUNK = 20_000

# A task is delivered within a minute of anything, or the bench has failed.
PATIENCE_SECONDS = 60
LAST_WORDS = 2000


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    name: str
    tasks: int  # of a round of `deliver` and `libcurl_alone`
    history: int  # events that were delivered in the last weeks, with their tasks and attempts
    seconds: float  # of a round of `latency`
    rounds: int  # the median counts


FULL = Scale("full", tasks=40_000, history=2_000_000, seconds=20, rounds=3)
QUICK = Scale("quick", tasks=8_000, history=100_000, seconds=5, rounds=3)


class BenchError(Exception):
    """A figure would mean nothing: something was lost, refused or too slow."""


@dataclass(frozen=True)
class Target:
    """An endpoint, and the one type of event that it wants: each event becomes one task."""

    id: int
    tenant_id: int
    url: str
    type: str
    secret: str


class Ground:
    """Built up by ``with``, taken down at its end, whatever happens in between."""

    settings: Settings

    def __init__(self, var: Path, scale: Scale) -> None:
        self.scale = scale
        self._var = var
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            say("starting PostgreSQL, receiver and API")
            self.receiver = stack.enter_context(Receiver(TENANTS * ENDPOINTS_PER_TENANT))
            self.database = stack.enter_context(devdb.start(self._var, temporary=True))
            open_database(self.database.url, "hookjetty bench")
            db.ready()
            stack.callback(db.close)
            migrate()
            self.live = stack.enter_context(LiveService(self.database.url, dispatchers=0))
            self.settings = load(self.live.environ)
            self._vault = Vault(self.settings.secret_keys)
            self.targets = self.make_targets(1, TENANTS)
            self._make_history()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # ------------------------------------------------------------------------------- the tables

    def make_targets(self, first_tenant: int, tenants: int) -> list[Target]:
        """Active endpoints, one for each of the receiver's ports, spread over so many tenants."""
        targets = []
        for number, url in enumerate(self.receiver.urls):
            tenant_id = first_tenant + number % tenants
            type_ = f"bench.e{number // tenants}"
            secret = generate_secret()
            db.execute_sql(
                "INSERT INTO hookjetty.tenants VALUES (%s) ON CONFLICT DO NOTHING", (tenant_id,)
            )
            cursor = db.execute_sql(
                """
                INSERT INTO hookjetty.endpoints (tenant_id, url, url_key, events, status, secret)
                VALUES (%s, %s, %s, %s, 'active', %s) RETURNING id
                """,
                (tenant_id, url, url, [type_], self._vault.encrypt(secret, tenant_id)),
            )
            targets.append(Target(cursor.fetchone()[0], tenant_id, url, type_, secret))
        return targets

    def publish(self, events: int) -> None:
        """Events for all targets in turn, each of them one task, through ``publish_event``."""
        made = 0
        while made < events:
            chunk = min(1000, events - made)
            db.execute_sql(
                """
                SELECT count(p.tasks) FROM generate_series(%s, %s) n
                CROSS JOIN LATERAL hookjetty.publish_event(
                    (%s::bigint[])[1 + n %% %s], (%s::text[])[1 + n %% %s], %s) p
                """,
                (
                    made,
                    made + chunk - 1,
                    [target.tenant_id for target in self.targets],
                    len(self.targets),
                    [target.type for target in self.targets],
                    len(self.targets),
                    EVENT_DATA,
                ),
            )
            made += chunk

    @property
    def postgresql_version(self) -> str:
        """Of the server, such as 18.6."""
        return db.execute_sql("SHOW server_version").fetchone()[0]

    def latest_id(self) -> int:
        """What is made from now on has greater ids."""
        return db.execute_sql("SELECT hookjetty.new_id()").fetchone()[0]

    def calm(self) -> None:
        """Write out what earlier steps changed, so that nobody does while something is measured."""
        db.execute_sql("CHECKPOINT")

    # -------------------------------------------------------------------------------- processes

    @contextmanager
    def dispatcher(self) -> Iterator[subprocess.Popen[bytes]]:
        """A real dispatcher, drained at the end."""
        process = self.live.start_dispatcher()
        try:
            yield process
        finally:
            self.live.stop_dispatcher(process)

    def wait_until_received(self, requests: int) -> None:
        """The receiver has had so many requests since its last reset."""
        self._wait_until(lambda: self.receiver.count() >= requests, 0.05)

    def wait_until_recorded(self) -> float:
        """No task is open. Returns when (monotonic) that was so."""
        self._wait_until(lambda: not _SOME_OPEN(), 0.005)
        return time.monotonic()

    def _wait_until(self, is_so: Callable[[], bool], pause_seconds: float) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                raise BenchError(
                    f"not done after {PATIENCE_SECONDS} s: the receiver has had"
                    f" {self.receiver.count()} requests; the processes' last words:\n"
                    + self.live.log()[-LAST_WORDS:]
                )
            time.sleep(pause_seconds)

    # ---------------------------------------------------------------------------------- history

    def _make_history(self) -> None:
        """Delivered events of the last weeks: in their partitions, under the same endpoints."""
        say(f"making a history of {self.scale.history:,} delivered events")
        weeks = HISTORY_DAYS // 7
        db.execute_sql(
            "SELECT hookjetty.make_partitions(now() - %s * interval '7 days', %s)", (weeks, weeks)
        )
        oldest, newest = db.execute_sql(
            """
            SELECT hookjetty.id_at(now() - %s * interval '7 days'),
                   hookjetty.id_at(now() - interval '1 minute')
            """,
            (weeks,),
        ).fetchone()
        every = {
            "oldest": oldest,
            "step": (newest - oldest) // self.scale.history,
            "targets": len(self.targets),
            "tenants": [target.tenant_id for target in self.targets],
            "endpoints": [target.id for target in self.targets],
            "types": [target.type for target in self.targets],
            "data": EVENT_DATA,
            "headers": ANSWER.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n"),
            "body": ANSWER_BODY.decode(),
        }

        def fill(chunks: Sequence[int]) -> None:
            db.ready()
            try:
                for first in chunks:
                    last = min(first + HISTORY_CHUNK, self.scale.history) - 1
                    db.execute_sql(HISTORY, every | {"first": first, "last": last})
            finally:
                db.close()

        chunks = range(0, self.scale.history, HISTORY_CHUNK)
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(fill, (chunks[::2], chunks[1::2])))
        db.execute_sql("VACUUM (ANALYZE) hookjetty.events, hookjetty.tasks, hookjetty.attempts")


HISTORY = """
WITH h AS (
    SELECT %(oldest)s + n::bigint * %(step)s AS id,
           (%(tenants)s::bigint[])[1 + n %% %(targets)s] AS tenant_id,
           (%(endpoints)s::bigint[])[1 + n %% %(targets)s] AS endpoint_id,
           (%(types)s::text[])[1 + n %% %(targets)s] AS type
    FROM generate_series(%(first)s, %(last)s) n),
events AS (
    INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)
    SELECT id, tenant_id, type, %(data)s, 1 FROM h),
tasks AS (
    INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready, tries,
                                 attempt_id)
    SELECT id + 1, tenant_id, endpoint_id, id, 'delivered', false, 1, id + 2 FROM h)
INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try, started_at, status_code,
                                first_byte_us, total_us, address, response_headers, response_body)
SELECT id + 2, id + 1, tenant_id, endpoint_id, 1, hookjetty.id_time(id), 200, 1000, 1000,
       '127.0.0.1:80', %(headers)s, %(body)s FROM h
"""

# The latest lease first: that of a task under way, not one of those that ended.
_SOME_OPEN = Statement(
    "some_open",
    (),
    """
    (SELECT 1 FROM hookjetty.tasks WHERE ready LIMIT 1) UNION ALL
    (SELECT 1 FROM hookjetty.tasks WHERE next_try_at IS NOT NULL AND NOT ready
     ORDER BY next_try_at DESC LIMIT 1)
    """,
)


def say(text: str) -> None:
    """Tell the person at the terminal what is going on."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _event_data() -> str:
    """An event's data that makes a body of EVENT_BYTES."""
    data = {"export_id": "exp_8842", "rows": 125000, "state": "done", "note": ""}
    some_id = 2**47  # as many digits as ids have until 2094
    missing = EVENT_BYTES - len(event_body(some_id, "bench.e0", json.dumps(data)))
    return json.dumps(data | {"note": "x" * missing})


EVENT_DATA = _event_data()
