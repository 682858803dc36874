"""Dispatchers for tests: real processes, or the parts of one in the test's own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from structlog.testing import capture_logs

from app.db import db
from app.destinations import Policy
from app.settings import Settings, load
from app.signing import Vault
from dispatcher import jobs
from dispatcher.engine import Engine
from dispatcher.resolve import Resolver
from dispatcher.transport import Outcome, Transport
from tests.factories import make_endpoint
from tests.live import LiveService

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRET_KEY = "dGhlIHRlc3RzJyBvd24ga2V5LCBvZiAzMiBieXRlcyE="


class Dispatchers(LiveService):
    """Dispatchers alone, for events that are published with SQL; the API costs a second."""

    def __init__(self, database_url: str, *, dispatchers: int = 1, **settings: str) -> None:
        super().__init__(
            database_url, dispatchers=dispatchers, **{"SECRET_KEYS": SECRET_KEY} | settings
        )

    def _spawn_api(self) -> None:
        return None

    def _await_api(self) -> None:
        pass


class Parts:
    """The transport and the engine of a dispatcher, in this process; the engine is not started."""

    def __init__(self, **settings: str) -> None:
        self.settings = settings_of(**settings)
        self.vault = Vault(self.settings.secret_keys)
        policy = Policy.from_settings(self.settings)
        self.transport = Transport(
            policy,
            Resolver(policy, self.settings.nameservers),
            connect_timeout_seconds=self.settings.connect_timeout_seconds,
            in_flight=self.settings.in_flight,
            on_done=self._on_done,
        )
        dispatcher_id = jobs.register_dispatcher()
        self.engine = Engine(self.settings, self.transport, self.vault, dispatcher_id)

    def _on_done(self, outcome: Outcome) -> None:
        self.engine.done(outcome)


@contextmanager
def running_parts(**settings: str) -> Iterator[Parts]:
    """A running transport, and an engine that sends what it is given."""
    parts = Parts(**settings)
    parts.transport.start()
    try:
        with capture_logs():  # without a configuration, structlog takes seconds for a traceback
            yield parts
    finally:
        parts.transport.stop()


@contextmanager
def running_engine(**settings: str) -> Iterator[Engine]:
    """An engine that claims, sends and records until the context ends; then it has drained."""
    with running_parts(**settings) as parts:
        parts.engine.start()
        try:
            yield parts.engine
        finally:
            parts.engine.drain()


def settings_of(**settings: str) -> Settings:
    """Settings for the test's database, given without their prefix; loopback may be called."""
    given = {
        "DATABASE_URL": db.database,
        "SECRET_KEYS": SECRET_KEY,
        "ALLOW_NETWORKS": "127.0.0.0/8",
        "BIND": "127.0.0.1:1",  # no receiver of the tests may be taken for our own API
    }
    return load({f"HOOKJETTY_{name}": text for name, text in (given | settings).items()})


def add_endpoint(tenant_id: int, url: str, *, secret: str = SECRET, **columns: Any) -> int:
    """An active endpoint that is signed for with ``secret``; returns its id."""
    return make_endpoint(tenant_id, url, **{"secret": sealed(secret, tenant_id)} | columns)


def sealed(secret: str, tenant_id: int) -> str:
    """A secret as it is stored."""
    return Vault([SECRET_KEY]).encrypt(secret, tenant_id)


def parse_request(request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Request line, headers by lower-case name, and body of what came over the wire."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    pairs = (each.split(": ", 1) for each in lines)
    return line, {name.lower(): value for name, value in pairs}, body


def count(rows: str) -> int:
    """How many there are, such as ``"tasks WHERE status = 'failed'"``."""
    return db.execute_sql(f"SELECT count(*) FROM hookjetty.{rows}").fetchone()[0]


def all_done() -> bool:
    """No task is open."""
    return not count("tasks WHERE status IN ('pending', 'delivering', 'retry', 'waiting')")


def execute(url: str, sql: str) -> list[tuple[Any, ...]]:
    """One statement on a connection of its own, in autocommit."""
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def wait_until(is_so: Callable[[], Any], seconds: float = 20) -> None:
    """Return as soon as ``is_so``; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.01)


def is_waiting_for_a_lock(application_name: str = "") -> bool:
    """Whether some session on this database waits until another one's transaction has ended.

    Asked on a connection of its own: within a transaction, pg_stat_activity does not change.
    """
    waiting = execute(
        db.database,
        "SELECT application_name FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    )
    return any(name.startswith(application_name) for (name,) in waiting)
