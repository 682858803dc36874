"""``make run``: an instance's processes start in order, stop in order, and leave nothing behind.

Real instances: gunicorn, a dispatcher and an embedded PostgreSQL, started as a person would.
"""

from __future__ import annotations

import http.client
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import devdb, run

ENVIRONMENT = {name: value for name, value in os.environ.items() if "HOOKJETTY_" not in name}
READY = "  curl -sS "  # the last line of what it says when all of it is up


class Instance:
    """``python -m app.run`` in a folder of its own, as seen from the terminal."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.var = folder / "var"
        self.port = _free_port()
        self.settings = {
            "HOOKJETTY_BIND": f"127.0.0.1:{self.port}",
            "HOOKJETTY_DISPATCHERS": "1",
            **settings,
        }
        self.folder = folder

    def start(self, *, ignoring: tuple[signal.Signals, ...] = ()) -> Instance:
        def ignore() -> None:
            for number in ignoring:
                signal.signal(number, signal.SIG_IGN)

        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.run"],
            # Not the repository: any folder will do, and the default VAR is below it.
            cwd=self.folder,
            env=ENVIRONMENT | {"PYTHONPATH": str(run.ROOT)} | self.settings,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=ignore,  # noqa: PLW1509 - it sets signals, nothing else
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            self.lines.extend(stderr)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            self.reader.join()
            raise AssertionError(f"it ended:\n{self.text}")
        return READY in self.text

    def ready(self) -> Instance:
        wait_until(self.is_ready, 60)
        return self

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_status(self) -> int:
        """Wait until it and everyone who shares its standard error have ended."""
        status = self.process.wait(60)
        self.reader.join(60)
        return status

    def processes(self, word: str = "") -> list[int]:
        """Its descendants; with a word those whose command line has it."""
        return [pid for pid in descendants(self.process.pid) if word in command_line(pid)]

    def api_answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@pytest.fixture
def new_instance(tmp_path: Path) -> Iterator[Callable[..., Instance]]:
    made: list[Instance] = []

    def make(name: str = "one", **settings: str) -> Instance:
        folder = tmp_path / name
        folder.mkdir()
        made.append(Instance(folder, **settings))
        return made[-1]

    yield make
    for instance in made:
        if hasattr(instance, "process"):
            if instance.process.poll() is None:
                instance.send(signal.SIGTERM)
            instance.exit_status()
        if instance.var.exists():
            devdb.DevDatabase(instance.var, {}, temporary=True).remove()


def test_it_says_how_to_get_a_token_and_a_curl_line_that_works(
    new_instance: Callable[..., Instance],
) -> None:
    instance = new_instance().start().ready()
    token, curl = (line.strip() for line in instance.lines if "token --tenant 7" in line)
    shown = shell(token, instance)
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", shown)
    if shutil.which("curl"):
        assert '"items"' in shell(curl, instance)


def test_what_it_makes_is_its_owners_alone(new_instance: Callable[..., Instance]) -> None:
    instance = new_instance().start().ready()
    assert stat.S_IMODE(instance.var.stat().st_mode) == 0o700
    for name in ("database_url", "jwt_secret", "secret_keys"):
        assert stat.S_IMODE((instance.var / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_it_even_if_inherited_as_ignored(
    new_instance: Callable[..., Instance], number: signal.Signals
) -> None:
    instance = new_instance().start(ignoring=(signal.SIGINT, signal.SIGTERM)).ready()
    everyone = instance.processes()
    assert len(everyone) > 5
    instance.send(number)
    assert instance.exit_status() == 0
    assert not any(map(is_alive, everyone))
    assert not instance.api_answers()


def test_it_stops_in_the_order_in_which_data_flows(new_instance: Callable[..., Instance]) -> None:
    instance = new_instance().start().ready()
    api, dispatcher = instance.processes("gunicorn"), instance.processes("dispatcher")
    postgres = instance.processes("bin/postgres")
    os.kill(dispatcher[0], signal.SIGSTOP)  # it holds up those behind it, and nobody before it
    instance.send(signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, api)))
    time.sleep(0.3)
    assert is_alive(dispatcher[0])
    assert all(map(is_alive, postgres))
    os.kill(dispatcher[0], signal.SIGCONT)
    assert instance.exit_status() == 0
    assert not any(map(is_alive, postgres))


def test_a_second_signal_stops_it_at_once(new_instance: Callable[..., Instance]) -> None:
    instance = new_instance().start().ready()
    everyone = instance.processes()
    os.kill(instance.processes("dispatcher")[0], signal.SIGSTOP)
    instance.send(signal.SIGINT)
    wait_until(lambda: not instance.api_answers())
    started = time.monotonic()
    instance.send(signal.SIGINT)
    assert instance.exit_status() == 0
    assert time.monotonic() - started < 8
    assert not any(map(is_alive, everyone))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the children on Linux only")
def test_killed_it_leaves_nothing_and_its_next_start_recovers(
    new_instance: Callable[..., Instance],
) -> None:
    instance = new_instance().start().ready()
    everyone = instance.processes()
    keys = (instance.var / "jwt_secret").read_text(), (instance.var / "secret_keys").read_text()
    instance.send(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, everyone)))
    instance.exit_status()
    instance.start().ready()
    assert keys == (
        (instance.var / "jwt_secret").read_text(),
        (instance.var / "secret_keys").read_text(),
    )


def test_what_ends_by_itself_is_started_again(new_instance: Callable[..., Instance]) -> None:
    instance = new_instance().start().ready()
    for word, message in (
        ("dispatcher", "the dispatcher 1 was ended by SIGKILL; starting it again in 1 s"),
        ("gunicorn", "the API was ended by SIGKILL; starting it again in 1 s"),
        ("bin/postgres", "PostgreSQL ended by itself; starting it again"),
    ):
        killed = instance.processes(word)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda message=message: message in instance.text)
        wait_until(lambda word=word, killed=killed: is_replaced(instance, word, killed))
        wait_until(instance.api_answers)
    instance.send(signal.SIGTERM)
    assert instance.exit_status() == 0


def test_it_runs_as_many_dispatchers_as_it_is_told(
    new_instance: Callable[..., Instance],
) -> None:
    instance = new_instance(HOOKJETTY_DISPATCHERS="2").start().ready()
    dispatchers = instance.processes("-m dispatcher")
    assert len(dispatchers) == 2
    instance.send(signal.SIGTERM)
    assert instance.exit_status() == 0
    assert not any(map(is_alive, dispatchers))


def test_an_address_in_use_is_said_before_anything_is_made(
    new_instance: Callable[..., Instance],
) -> None:
    instance = new_instance()
    with socket.create_server(("127.0.0.1", instance.port)):
        instance.start()
        assert instance.exit_status() == 1
    assert f"HOOKJETTY_BIND=127.0.0.1:{instance.port} cannot be listened on" in instance.text
    assert "Address already in use" in instance.text
    assert not instance.var.exists()


def test_two_instances_run_side_by_side(new_instance: Callable[..., Instance]) -> None:
    one = new_instance("one").start()
    two = new_instance("two").start()
    one.ready()
    two.ready()
    assert (one.var / "jwt_secret").read_text() != (two.var / "jwt_secret").read_text()
    one.send(signal.SIGTERM)
    assert one.exit_status() == 0
    assert two.api_answers()


def test_a_second_instance_in_the_same_folder_is_refused(
    new_instance: Callable[..., Instance],
) -> None:
    one = new_instance("one").start().ready()
    two = new_instance("two", HOOKJETTY_VAR=str(one.var)).start()
    assert two.exit_status() == 1
    assert f"in use by process {one.process.pid}" in two.text
    assert one.api_answers()


def test_keys_that_are_set_are_not_made_up(new_instance: Callable[..., Instance]) -> None:
    instance = new_instance(HOOKJETTY_JWT_SECRET=secrets.token_hex(32)).start().ready()
    assert not (instance.var / "jwt_secret").exists()
    assert (instance.var / "secret_keys").exists()


def test_with_a_database_of_ones_own_no_key_is_made_up(
    new_instance: Callable[..., Instance],
) -> None:
    instance = new_instance(HOOKJETTY_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none").start()
    assert instance.exit_status() == 1
    assert "HOOKJETTY_JWT_SECRET or HOOKJETTY_JWT_JWKS is not set" in instance.text
    assert "HOOKJETTY_SECRET_KEYS is not set" in instance.text
    assert not instance.var.exists()


def test_a_dispatcher_that_cannot_start_ends_all_of_it(
    new_instance: Callable[..., Instance],
) -> None:
    """A wrong key is one reason: it would make endpoints' secrets unreadable."""
    instance = new_instance().start().ready()
    everyone = instance.processes()
    instance.send(signal.SIGTERM)
    assert instance.exit_status() == 0
    instance.settings["HOOKJETTY_SECRET_KEYS"] = "A" * 43 + "="
    instance.start()
    assert instance.exit_status() == 1
    assert "the dispatcher 1 ended with status 2; its own words are above" in instance.text
    assert "HOOKJETTY_SECRET_KEYS lacks a key" in instance.text
    assert not any(map(is_alive, everyone))
    assert not (instance.var / "database_url").exists()


# --- tools ----------------------------------------------------------------------------------------


def shell(command: str, instance: Instance) -> str:
    answer = subprocess.run(
        ["sh", "-c", command],
        cwd=instance.folder, env=ENVIRONMENT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return answer.stdout


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        of_one = sorted(children.get(todo.pop(), []))
        found += of_one
        todo += of_one
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
    except OSError:
        return ""


def is_replaced(instance: Instance, word: str, pid: int) -> bool:
    return pid not in (now := instance.processes(word)) and now != []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(happened: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
