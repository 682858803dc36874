"""``python -m app.run``: a whole instance in one terminal. API, dispatchers and their PostgreSQL.

The processes are children of this one (app/supervise.py), which stops them in the order in which
data flows: the API first, then the dispatchers, PostgreSQL last. Should this one be killed, the
kernel tells its children (Linux), and the watcher of app/devdb.py stops PostgreSQL.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import secrets
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2
from peewee import PeeweeException

from app import __version__, db, devdb, supervise
from app.settings import Settings, SettingsError, load
from app.supervise import (
    DRAIN_MARGIN_SECONDS,
    PAUSES_SECONDS,
    POLL_SECONDS,
    ROOT,
    Child,
    Signals,
    StopRequested,
)

START_SECONDS = 60  # for the first heartbeat, and for the first answer of the API
# The grace that gunicorn.conf.py gives to requests under way, and a little.
API_STOP_SECONDS = 35


def main() -> int:
    """Run an instance until told to stop. Returns the exit status: 0 if that is why it ended."""
    signals = Signals()
    instance = Instance(signals)
    try:
        instance.start()
        instance.watch()
    except StopRequested:
        say("stopping")
        return 0
    except (Trouble, SettingsError, devdb.DevDatabaseError, db.SchemaMismatch) as error:
        say(str(error))
    except (PeeweeException, psycopg2.Error) as error:
        say(f"the database cannot be used: {error}")
    finally:
        instance.stop()
    return 1


class Trouble(Exception):
    """The instance cannot run. The message says what to do."""


class Instance:
    """The parts of an instance, from the first one started to the last."""

    settings: Settings

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.database: devdb.DevDatabase | None = None
        self.dispatchers: list[Child] = []
        self.api: Child | None = None

    def start(self) -> None:
        """Start everything; the API listens only when a dispatcher is there to deliver.

        1. Settings, and whether the address is free, before anything is made.
        2. PostgreSQL and, with our own one only, keys.
        3. The schema.
        4. The dispatchers, until the first heartbeat.
        5. The API, until it answers.
        """
        self.settings = load()
        _check_bind(self.settings)
        if not any(os.environ.get(f"HOOKJETTY_DATABASE_URL{suffix}") for suffix in ("", "_FILE")):
            with self.signals.interrupting():
                self.database = devdb.start(self.settings.var)
            _make_up_keys(self.settings)
            self.settings = load()
        self.settings.require("database_url", "jwt_secret or jwt_jwks", "secret_keys")
        db.open_database(self.settings.database_direct_url or "", "hookjetty run")
        db.db.ready()
        db.migrate()
        self._start_dispatchers()
        self._start_api()
        say(_how_to_begin(self.settings, embedded=self.database is not None))

    def watch(self) -> None:
        """Start again what ends by itself, until ``StopRequested``."""
        while True:
            self.signals.wait(POLL_SECONDS)
            if self.database is not None and not self.database.running:
                say("PostgreSQL ended by itself; starting it again")
                self.signals.wait(PAUSES_SECONDS[0])
                with self.signals.interrupting():
                    self.database.start()
            for child in self._children():
                child.keep_running()

    def stop(self) -> None:
        """Stop everything that was started, in the order in which data flows."""
        if self.api is not None:
            supervise.end([self.api], API_STOP_SECONDS, self.signals)
        if self.dispatchers:
            seconds = self.settings.timeout_seconds + DRAIN_MARGIN_SECONDS
            supervise.end(self.dispatchers, seconds, self.signals)
        if self.database is not None:
            self.database.stop()

    def _start_dispatchers(self) -> None:
        (started,) = db.db.execute_sql("SELECT clock_timestamp()").fetchone()
        self.dispatchers = supervise.dispatchers(self.settings.dispatchers, say)
        for child in self.dispatchers:
            child.start()

        def has_heartbeat() -> bool:
            query = "SELECT 1 FROM hookjetty.dispatchers WHERE pid = ANY(%s) AND seen_at >= %s"
            pids = [child.pid for child in self.dispatchers]
            return db.db.execute_sql(query, (pids, started)).fetchone() is not None

        self._wait_until(has_heartbeat, "no dispatcher gave a sign of life")
        db.db.close()

    def _start_api(self) -> None:
        command = [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py")]
        # Not SIGKILL: only gunicorn's master can end a worker that hangs.
        self.api = Child("API", [*command, "app.wsgi:create_app()"], signal.SIGQUIT, say)
        self.api.start()
        self._wait_until(lambda: _is_healthy(self.settings), "the API did not answer")

    def _wait_until(self, happened: Callable[[], bool], failure: str) -> None:
        """Wait for a step of the start, as long as all children live."""
        deadline = time.monotonic() + START_SECONDS
        while not happened():
            for child in self._children():
                status = child.ended()
                if status is not None:
                    raise Trouble(
                        f"the {child.name} {supervise.in_words(status)}; its own words are above"
                    )
            if time.monotonic() > deadline:
                raise Trouble(f"{failure} within {START_SECONDS} seconds")
            self.signals.wait(POLL_SECONDS)

    def _children(self) -> list[Child]:
        return [*self.dispatchers, *([self.api] if self.api else [])]


def say(text: str) -> None:
    """Tell the person at the terminal, who may be gone."""
    with contextlib.suppress(OSError):
        print(f"hookjetty: {text}", file=sys.stderr, flush=True)


def _check_bind(settings: Settings) -> None:
    """gunicorn would find out too, but late, and try for five seconds."""
    try:
        found = socket.getaddrinfo(
            settings.bind_host, settings.bind_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise Trouble(
            f"HOOKJETTY_BIND={settings.bind} cannot be listened on: {error.strerror};"
            " set it to another address and port"
        ) from error


def _is_healthy(settings: Settings) -> bool:
    # Who listens on all addresses is reached on the loopback one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.bind_host, settings.bind_host)  # noqa: S104 - not to listen on
    connection = http.client.HTTPConnection(host, settings.bind_port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _make_up_keys(settings: Settings) -> None:
    """What is not set is made up for the embedded PostgreSQL, once, and kept beside it."""
    if not (settings.jwt_secret or settings.jwt_jwks):
        _write_once(settings.var / "jwt_secret", secrets.token_urlsafe(32))
    if not settings.secret_keys:
        key = base64.urlsafe_b64encode(secrets.token_bytes(32))
        _write_once(settings.var / "secret_keys", key.decode())


def _write_once(path: Path, text: str) -> None:
    """Make a file of mode 0600, whole or not at all; one that is there already is kept."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # of a start that was killed here; VAR is ours alone, see devdb
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(new)
    new.unlink()


def _how_to_begin(settings: Settings, *, embedded: bool) -> str:
    where = f"PostgreSQL in {settings.var}" if embedded else "HOOKJETTY_DATABASE_URL"
    command = Path(sys.executable).with_name("hookjetty")
    if command.is_relative_to(Path.cwd()):
        command = command.relative_to(Path.cwd())
    call = shlex.quote(str(command))
    if os.environ.get("HOOKJETTY_VAR"):
        call = f"HOOKJETTY_VAR={shlex.quote(str(settings.var))} {call}"
    lists = f"{settings.url}/api/v1/data-consumption/webhooks/endpoints"
    scope = "webhooks:read webhooks:write events:write"
    return f"""\
{__version__} serves {settings.url} from {where}; Ctrl-C stops it

A token of tenant 7, and the tenant's endpoints:

  {call} token --tenant 7 --scope "{scope}"
  curl -sS -H "Authorization: Bearer $({call} token --tenant 7 --scope webhooks:read)" {lists}
"""


if __name__ == "__main__":
    sys.exit(main())
