"""``python -m dispatcher`` with HOOKJETTY_DISPATCHERS above 1: a supervisor and its dispatchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import stats
from app.db import db
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import SECRET_KEY, add_endpoint, all_done, count, execute, wait_until
from tests.factories import attempt_rows, publish
from tests.live import ROOT
from tests.test_run import descendants, is_alive

pytestmark = pytest.mark.usefixtures("database")


class Supervisor:
    """The process that was started, and what can be seen of those below it."""

    def __init__(self, database: str, log: Path, **settings: str) -> None:
        plain = {name: text for name, text in os.environ.items() if "HOOKJETTY" not in name}
        given = {
            "DATABASE_URL": database,
            "SECRET_KEYS": SECRET_KEY,
            "VAR": "/nonexistent",
            "ALLOW_NETWORKS": "127.0.0.0/8",
            "LOG_FORMAT": "json",
            "DISPATCHERS": "2",
        } | settings
        self.environ = plain | {f"HOOKJETTY_{name}": text for name, text in given.items()}
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dispatcher"],
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def children(self) -> list[int]:
        return descendants(self.process.pid)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self, dispatchers: int = 2) -> Supervisor:
        wait_until(lambda: len(beating()) == dispatchers or self.process.poll() is not None)
        assert self.process.poll() is None, self.log
        return self


@pytest.fixture
def supervisor(database: str, tmp_path: Path) -> Iterator[Supervisor]:
    """Two dispatchers."""
    running = Supervisor(database, tmp_path / "log")
    try:
        yield running.ready()
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running


def beating() -> list[int]:
    """The processes that gave a sign of life, in the order of their ids."""
    rows = db.execute_sql("SELECT pid FROM hookjetty.dispatchers ORDER BY pid").fetchall()
    return [pid for (pid,) in rows]


def test_each_of_them_has_its_heartbeat_and_is_shown(supervisor):
    assert beating() == sorted(supervisor.children)
    assert stats.figures().dispatchers == 2
    shown = subprocess.run(
        [sys.executable, "-m", "app.cli", "db", "status", "--json"],
        cwd=ROOT,
        env=supervisor.environ,
        capture_output=True,
        check=True,
    )
    assert sorted(each["pid"] for each in json.loads(shown.stdout)["dispatchers"]) == beating()


def test_one_dispatcher_needs_no_supervisor(database, tmp_path):
    file = tmp_path / "count"
    file.write_text("1\n")
    alone = Supervisor(database, tmp_path / "log", DISPATCHERS="", DISPATCHERS_FILE=str(file))
    try:
        alone.ready(1)
        assert beating() == [alone.process.pid]
        assert alone.children == []
    finally:
        alone.process.kill()
        alone.process.wait()


def test_a_count_from_a_file_is_not_handed_down(database, tmp_path):
    """Each of the two would otherwise be a supervisor of two, and so on."""
    file = tmp_path / "count"
    file.write_text("2\n")
    running = Supervisor(database, tmp_path / "log", DISPATCHERS="", DISPATCHERS_FILE=str(file))
    try:
        running.ready()
        assert beating() == sorted(running.children)
    finally:
        running.process.kill()
        running.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains_all_of_them(supervisor, receiver, number):
    for tenant_id in range(1, 5):
        add_endpoint(tenant_id, receiver.url(f"/{tenant_id}", delay=3))
        for _ in range(100):
            publish(tenant_id)
    wait_until(lambda: len(receiver.seen) >= 4 * 2 * 20)  # the slots of both
    everyone = supervisor.children
    supervisor.process.send_signal(number)
    assert supervisor.process.wait(20) == 0
    assert not any(map(is_alive, everyone))
    assert beating() == []
    assert [row["status_code"] for row in attempt_rows()] == [200] * len(receiver.seen)
    assert set(Counter(request.event for request in receiver.seen).values()) == {1}
    assert count("tasks WHERE status = 'pending'") == 400 - len(receiver.seen) > 0


def test_the_second_signal_ends_them_at_once(supervisor):
    everyone = supervisor.children
    os.kill(everyone[0], signal.SIGSTOP)  # it will not drain
    supervisor.process.terminate()
    time.sleep(0.5)
    assert supervisor.process.poll() is None
    supervisor.process.terminate()
    assert supervisor.process.wait(2) == 1
    assert not any(map(is_alive, everyone))


def test_one_that_dies_is_replaced_after_a_pause_while_the_other_delivers(supervisor, receiver):
    before = beating()
    os.kill(before[0], signal.SIGKILL)
    add_endpoint(7, receiver.url())
    publish(7)
    wait_until(all_done)
    wait_until(lambda: len(set(beating()) - set(before)) == 1)
    assert before[1] in supervisor.children
    assert count("dispatchers") == 3  # the dead one's row stays until a sweep finds it silent
    line = json.loads(next(line for line in supervisor.log.splitlines() if "starting it" in line))
    assert line["message"].endswith("was ended by SIGKILL; starting it again in 1 s")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells the children on Linux only")
def test_killed_it_leaves_no_dispatcher_behind(supervisor):
    everyone = supervisor.children
    supervisor.process.kill()
    supervisor.process.wait()
    wait_until(lambda: not any(map(is_alive, everyone)))


def test_what_another_start_would_not_help_ends_all_of_them(database, tmp_path):
    execute(database, "UPDATE hookjetty.schema_version SET version = 99")
    running = Supervisor(database, tmp_path / "log")
    assert running.process.wait(20) == 2
    assert running.children == []
    assert "install the newer Hookjetty" in running.log


def test_a_schema_that_was_changed_under_them_ends_those_that_still_run(supervisor, database):
    """They work with the statements of the version before."""
    execute(database, "UPDATE hookjetty.schema_version SET version = 99")
    os.kill(beating()[0], signal.SIGKILL)
    assert supervisor.process.wait(20) == 2
    assert len(beating()) == 1  # the killed one's row; the other has drained
