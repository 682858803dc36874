"""A live Hookjetty for tests: gunicorn and dispatchers as real processes, on a given database.

    with LiveService(database_url, LEASE_SECONDS="4", TIMEOUT_SECONDS="2") as live:
        requests.get(f"{live.url}/healthz")
        live.tenant_token(7, "events:write")
        second = live.start_dispatcher()
        live.kill_dispatcher(second)

The database must have the schema. Settings are named without their prefix, here and in
``start_dispatcher``; receivers on loopback may be called unless ALLOW_NETWORKS says otherwise.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jwt
import psycopg2

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30
STOP_SECONDS = 10

# Have the kernel end a process with the thread that started it, so that a killed test run leaves
# nothing behind; then become the process. A wrapper, since code between fork and exec (preexec_fn)
# may deadlock where there are threads.
FOLLOW_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class LiveService:
    """The processes and the tokens they accept; a context manager.

    ``process_of_api`` is gunicorn's master, ``dispatchers`` are those that were not stopped.
    ``environ`` is what a command line or script needs to act on this service as its operator.
    """

    def __init__(self, database_url: str, *, dispatchers: int = 1, **settings: str) -> None:
        self.database_url = database_url
        self.jwt_secret = settings.get("JWT_SECRET") or base64.b64encode(os.urandom(32)).decode()
        self.dispatchers: list[subprocess.Popen[bytes]] = []
        self.process_of_api: subprocess.Popen[bytes] | None = None
        self._first_dispatchers = dispatchers
        self._settings = settings

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="hookjetty-live-"))
        self._reserved, self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        keys = base64.urlsafe_b64encode(os.urandom(32)).decode()
        self.environ = _without_settings(os.environ) | _prefixed(
            {
                "VAR": str(self.folder / "var"),
                "DATABASE_URL": self.database_url,
                "BIND": f"127.0.0.1:{self.port}",
                "JWT_SECRET": self.jwt_secret,
                "SECRET_KEYS": keys,
                "ALLOW_NETWORKS": "127.0.0.0/8,::1/128",
                "LOG_FORMAT": "json",
                "DISPATCHERS": "1",  # each of ours is one, and its process id says which
            }
            | self._settings
        )
        try:
            # All at once: most of a start is imports.
            started = [self._spawn_dispatcher({}) for _ in range(self._first_dispatchers)]
            self.process_of_api = self._spawn_api()
            for dispatcher in started:
                self._await_heartbeat(dispatcher)
            self._await_api()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        running = list(self.dispatchers)
        for dispatcher in self.dispatchers:
            dispatcher.terminate()
        if self.process_of_api is not None:
            running.append(self.process_of_api)
            self.process_of_api.send_signal(signal.SIGQUIT)  # quickly: nobody is waiting any more
        for process in running:
            _end(process)
        self._reserved.close()
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------------ processes

    def start_dispatcher(self, **settings: str) -> subprocess.Popen[bytes]:
        """One more dispatcher, once it gave a sign of life; with some settings of its own."""
        dispatcher = self._spawn_dispatcher(settings)
        self._await_heartbeat(dispatcher)
        return dispatcher

    def stop_dispatcher(self, dispatcher: subprocess.Popen[bytes]) -> int:
        """Let it drain; its exit status."""
        self.dispatchers.remove(dispatcher)
        dispatcher.terminate()
        return dispatcher.wait(STOP_SECONDS)

    def kill_dispatcher(self, dispatcher: subprocess.Popen[bytes]) -> None:
        """As ``kill -9`` does: what it had under way is left to its leases."""
        self.dispatchers.remove(dispatcher)
        dispatcher.kill()
        dispatcher.wait()

    def start_api(self) -> None:
        """Start gunicorn after ``stop_api``, at the same address."""
        assert self.process_of_api is None
        self.process_of_api = self._spawn_api()
        self._await_api()

    def stop_api(self) -> None:
        """Stop gunicorn; connections are refused until ``start_api``."""
        assert self.process_of_api is not None
        self.process_of_api.terminate()
        _end(self.process_of_api)
        self.process_of_api = None

    def restart_api(self) -> None:
        """Stop it and start it again."""
        self.stop_api()
        self.start_api()

    def log(self) -> str:
        """What all processes had to say, those that ended too."""
        return "".join(
            f"--- {path.name}\n{path.read_text(errors='replace')}"
            for path in sorted(self.folder.glob("*.log"))
        )

    # --------------------------------------------------------------------------------- tokens

    @property
    def admin_token(self) -> str:
        """Everything on the admin surface."""
        return self.token(role="admin")

    @property
    def service_token(self) -> str:
        """Publishes for every tenant."""
        return self.token(role="service", scope="events:write")

    def tenant_token(
        self, tenant_id: int, scope: str = "webhooks:read webhooks:write events:write"
    ) -> str:
        """A tenant's token."""
        return self.token(tenant_id=tenant_id, scope=scope)

    def token(self, **claims: object) -> str:
        """A token with these claims beside those that every token needs."""
        every = {"sub": "tests", "aud": "hookjetty", "exp": int(time.time()) + 3600}
        return jwt.encode(every | claims, self.jwt_secret, algorithm="HS256")

    # --------------------------------------------------------------------------------- inside

    def _spawn_dispatcher(self, settings: dict[str, str]) -> subprocess.Popen[bytes]:
        dispatcher = self._spawn("dispatcher", signal.SIGKILL, ["-m", "dispatcher"], settings)
        self.dispatchers.append(dispatcher)
        return dispatcher

    def _spawn_api(self) -> subprocess.Popen[bytes]:
        command = ["-m", "gunicorn", "--config", "gunicorn.conf.py", "app.wsgi:create_app()"]
        # Not SIGKILL: only gunicorn's master can end its workers.
        return self._spawn("api", signal.SIGQUIT, command, {})

    def _spawn(
        self, name: str, if_orphaned: int, command: list[str], settings: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        number = len(list(self.folder.glob(f"{name}-*.log"))) + 1
        with (self.folder / f"{name}-{number}.log").open("wb") as log:
            return subprocess.Popen(
                [*(sys.executable, "-I", "-S", "-c"), FOLLOW_PARENT, str(if_orphaned), *command],
                cwd=ROOT,
                env=self.environ | _prefixed(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the test run alone
            )

    def _await_heartbeat(self, dispatcher: subprocess.Popen[bytes]) -> None:
        connection = psycopg2.connect(self.database_url)
        connection.autocommit = True

        def has_heartbeat() -> bool:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT FROM hookjetty.dispatchers WHERE pid = %s"
                    " AND seen_at > clock_timestamp() - interval '30 s'",
                    (dispatcher.pid,),
                )
                return cursor.rowcount > 0

        try:
            self._await(has_heartbeat, dispatcher, "a dispatcher's heartbeat")
        finally:
            connection.close()

    def _await_api(self) -> None:
        def answers() -> bool:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as response:
                    return response.status == 200
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        assert self.process_of_api is not None
        self._await(answers, self.process_of_api, "the API's answer")

    def _await(
        self, happened: Callable[[], bool], process: subprocess.Popen[bytes], what: str
    ) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not happened():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"waited in vain for {what}:\n{self.log()}")
            time.sleep(0.02)


def wait_until(is_so: Callable[[], Any], seconds: float = 20) -> None:
    """Return as soon as ``is_so``; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.02)


def reserve_port() -> tuple[socket.socket, int]:
    """A free port of 127.0.0.1 that nobody else gets while the socket is open.

    It does not listen, so connections are refused until somebody does, who may: both sides have
    SO_REUSEADDR.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved, reserved.getsockname()[1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for what was told to stop, and end what does not; a killed gunicorn leaves workers."""
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _prefixed(settings: dict[str, str]) -> dict[str, str]:
    return {f"HOOKJETTY_{name}": text for name, text in settings.items()}


def _without_settings(environ: os._Environ[str]) -> dict[str, str]:
    return {name: text for name, text in environ.items() if not name.startswith("HOOKJETTY_")}
