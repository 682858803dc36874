"""``python -m app.run``: a whole instance in one terminal. API, dispatchers and their PostgreSQL.

The processes are children of this one, each in a session of its own, so that Ctrl-C reaches this
one alone and it can stop them in the order in which data flows: the API first, then the
dispatchers, PostgreSQL last. Should this one be killed, the kernel tells its children (Linux), and
the watcher of app/devdb.py stops PostgreSQL.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
from peewee import PeeweeException

from app import __version__, db, devdb
from app.settings import Settings, SettingsError, load

ROOT = Path(__file__).resolve().parent.parent  # holds gunicorn.conf.py and the package dispatcher

POLL_SECONDS = 0.1
START_SECONDS = 60  # for the first heartbeat, and for the first answer of the API
# The grace that gunicorn.conf.py gives to requests under way, and a little.
API_STOP_SECONDS = 35
# What a dispatcher may need beyond the timeout of the attempts that it has under way.
DRAIN_MARGIN_SECONDS = 15
# Before something that ended by itself is started again; longer if it happens again and again.
PAUSES_SECONDS = (1, 2, 4, 8, 16, 30)
STEADY_SECONDS = 60


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


class StopRequested(Exception):
    """A person or a service manager wants the instance to stop."""


class Signals:
    """SIGINT, SIGTERM and the terminal's SIGHUP: the first asks to stop, the second to hurry."""

    def __init__(self) -> None:
        self.count = 0
        self._interrupts = False
        # Explicitly, since a shell starts background jobs with SIGINT ignored, and whoever starts
        # us may have blocked signals. An ignored SIGHUP stays so: that is what nohup is for.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    @property
    def hurry(self) -> bool:
        """Whether somebody has lost patience."""
        return self.count >= 2

    def wait(self, seconds: float) -> None:
        """Sleep; raises ``StopRequested`` as soon as a signal has come."""
        deadline = time.monotonic() + seconds
        while self.count == 0 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self.count > 0:
            raise StopRequested

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Here a signal raises ``StopRequested`` on the spot, for a call that may take minutes."""
        self._interrupts = True
        try:
            self.wait(0)
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.count += 1
        if self._interrupts:
            raise StopRequested


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
            self._end([self.api], API_STOP_SECONDS)
        if self.dispatchers:
            self._end(self.dispatchers, self.settings.timeout_seconds + DRAIN_MARGIN_SECONDS)
        if self.database is not None:
            self.database.stop()

    def _start_dispatchers(self) -> None:
        (started,) = db.db.execute_sql("SELECT clock_timestamp()").fetchone()
        for number in range(1, self.settings.dispatchers + 1):
            command = [sys.executable, "-m", "dispatcher"]
            # It has nothing to lose that its leases do not give back.
            child = Child(f"dispatcher {number}", command, if_orphaned=signal.SIGKILL)
            self.dispatchers.append(child)
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
        self.api = Child("API", [*command, "app.wsgi:create_app()"], if_orphaned=signal.SIGQUIT)
        self.api.start()
        self._wait_until(lambda: _is_healthy(self.settings), "the API did not answer")

    def _wait_until(self, happened: Callable[[], bool], failure: str) -> None:
        """Wait for a step of the start, as long as all children live."""
        deadline = time.monotonic() + START_SECONDS
        while not happened():
            for child in self._children():
                status = child.ended()
                if status is not None:
                    raise Trouble(f"the {child.name} {_in_words(status)}; its own words are above")
            if time.monotonic() > deadline:
                raise Trouble(f"{failure} within {START_SECONDS} seconds")
            self.signals.wait(POLL_SECONDS)

    def _end(self, children: list[Child], seconds: float) -> None:
        """SIGTERM, and SIGKILL for what is left after ``seconds``, or when there is a hurry."""
        for child in children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while any(child.ended() is None for child in children):
            if self.signals.hurry or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        for child in children:
            child.kill()

    def _children(self) -> list[Child]:
        return [*self.dispatchers, *([self.api] if self.api else [])]


class Child:
    """A process that is started again whenever it ends by itself."""

    def __init__(self, name: str, command: list[str], if_orphaned: signal.Signals) -> None:
        self.name = name
        self._command = command
        self._if_orphaned = if_orphaned
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._restart_at = 0.0
        self._restarts = 0

    def start(self) -> None:
        """Start it, with our own packages on its path whatever the working directory is."""
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        parent = os.getpid()

        def follow_parent() -> None:
            """Have the kernel signal the child when we die, which may have happened already."""
            if sys.platform == "linux":
                pr_set_pdeathsig = 1
                _LIBC.prctl(pr_set_pdeathsig, self._if_orphaned)
                if os.getppid() != parent:
                    os._exit(1)

        self._process = subprocess.Popen(
            self._command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=follow_parent,  # noqa: PLW1509 - this process has one thread
        )
        self._started_at = time.monotonic()
        self._restart_at = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id; None before its first start."""
        return None if self._process is None else self._process.pid

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def keep_running(self) -> None:
        """Start it again, after a pause, if it has ended."""
        status = self.ended()
        if status is None:
            return
        if not self._restart_at:
            lived = time.monotonic() - self._started_at
            self._restarts = 0 if lived > STEADY_SECONDS else self._restarts
            pause = PAUSES_SECONDS[min(self._restarts, len(PAUSES_SECONDS) - 1)]
            self._restarts += 1
            self._restart_at = time.monotonic() + pause
            say(f"the {self.name} {_in_words(status)}; starting it again in {pause} s")
        elif time.monotonic() > self._restart_at:
            self.kill()
            self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it and what it may have left behind: gunicorn's workers outlive a killed master."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


_LIBC = ctypes.CDLL(None)  # before the fork, after which little is safe


def say(text: str) -> None:
    """Tell the person at the terminal, who may be gone."""
    with contextlib.suppress(OSError):
        print(f"hookjetty: {text}", file=sys.stderr, flush=True)


def _in_words(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


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
