"""``python -m dispatcher``: how it starts, what it costs while idle, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db import db
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import (
    SECRET_KEY,
    Dispatchers,
    add_endpoint,
    all_done,
    count,
    execute,
    wait_until,
)
from tests.factories import attempt_rows, publish, rows, task_rows
from tests.live import ROOT

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running


# ---------------------------------------------------------------------------------------- starting


def run_to_its_end(database: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A dispatcher that is expected to refuse to work."""
    plain = {name: value for name, value in os.environ.items() if "HOOKJETTY" not in name}
    given = {
        "DATABASE_URL": database,
        "SECRET_KEYS": SECRET_KEY,
        "VAR": "/nonexistent",
        "DISPATCHERS": "1",
    } | settings
    return subprocess.run(
        [sys.executable, "-m", "dispatcher"],
        cwd=ROOT,
        env=plain | {f"HOOKJETTY_{name}": text for name, text in given.items()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SECRET_KEYS": ""}, "HOOKJETTY_SECRET_KEYS is not set"),
        ({"DATABASE_URL": ""}, "HOOKJETTY_DATABASE_URL is not set"),
        ({"LEASE_SECONDS": "5"}, "HOOKJETTY_LEASE_SECONDS=5 is too short"),
        ({"LEESE_SECONDS": "60"}, "did you mean HOOKJETTY_LEASE_SECONDS?"),
    ],
)
def test_wrong_settings_stop_the_start_by_name(database, settings, message):
    ended = run_to_its_end(database, **settings)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE hookjetty.schema_version SET version = 0", "run `hookjetty db migrate`"),
        ("UPDATE hookjetty.schema_version SET version = 99", "install the newer Hookjetty"),
        ("DROP SCHEMA hookjetty CASCADE", "run `hookjetty db migrate`"),
        (
            "INSERT INTO hookjetty.secret_keys VALUES ('0123456789abcdef')",
            "HOOKJETTY_SECRET_KEYS lacks a key",
        ),
    ],
)
def test_on_a_database_that_does_not_fit_it_refuses_to_start_and_says_what_to_do(
    database, change, message
):
    execute(database, change)
    ended = run_to_its_end(database)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_gives_a_sign_of_life_and_takes_it_back_when_it_stops(database):
    with Dispatchers(database) as live:
        (dispatcher,) = live.dispatchers
        (row,) = rows(db.execute_sql("SELECT * FROM hookjetty.dispatchers"))
        assert (row["pid"], row["in_flight"]) == (dispatcher.pid, 0)
        assert live.stop_dispatcher(dispatcher) == 0
        assert not count("dispatchers")


def test_it_makes_the_partitions_of_the_weeks_to_come(database):
    execute(database, "DROP TABLE " + newest_partition())
    assert count("partitions WHERE parent = 'tasks'") == 8
    with Dispatchers(database):
        assert count("partitions WHERE parent = 'tasks'") == 9


def newest_partition() -> str:
    (name,) = db.execute_sql(
        "SELECT name FROM hookjetty.partitions WHERE parent = 'tasks' ORDER BY upto_id DESC LIMIT 1"
    ).fetchone()
    return f"hookjetty.{name}"


def test_two_dispatchers_send_nothing_twice(database, receiver):
    """10 tenants, 40 events each, and a receiver that takes a moment."""
    with Dispatchers(database, dispatchers=2, SLOTS="5"):
        for tenant_id in range(1, 11):
            add_endpoint(tenant_id, receiver.url(f"/{tenant_id}", delay=0.01))
        for number in range(400):
            publish(number % 10 + 1)
        wait_until(all_done)
    assert set(Counter(request.event for request in receiver.seen).values()) == {1}
    assert len(receiver.seen) == count("attempts") == 400


# -------------------------------------------------------------------------------------------- idle


def test_while_there_is_nothing_to_do_it_takes_next_to_nothing(database, receiver):
    """Neither with nothing due, nor with more endpoints whose slots are taken than it has room."""
    with Dispatchers(database, SLOTS="1", IN_FLIGHT="16") as live:
        (dispatcher,) = live.dispatchers
        time.sleep(1)
        idle = cpu_share(dispatcher.pid, 1.5)
        for number in range(14):
            add_endpoint(7, receiver.url(f"/{number}", delay=10))
        for _ in range(3):
            publish(7)
        wait_until(lambda: len(receiver.seen) == 14)
        time.sleep(0.5)
        waiting = cpu_share(dispatcher.pid, 1.5)
        dispatcher.kill()
    assert idle < 0.08
    assert waiting < 0.08


def cpu_share(pid: int, seconds: float) -> float:
    """How much of one processor a process takes."""
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / seconds


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


# ---------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_what_is_in_flight_and_takes_nothing_new(
    database, receiver, number
):
    with Dispatchers(database, SLOTS="10") as live:
        (dispatcher,) = live.dispatchers
        for tenant_id in range(1, 6):
            add_endpoint(tenant_id, receiver.url(f"/{tenant_id}", delay=1))
            for _ in range(30):
                publish(tenant_id)
        wait_until(lambda: len(receiver.seen) == 10)  # 5 endpoints' first windows
        told_at = time.time()
        dispatcher.send_signal(number)
        assert dispatcher.wait(5) == 0
        assert time.time() - told_at < 3
        live.dispatchers.clear()
        assert len(receiver.seen) == 10
        assert [row["status_code"] for row in attempt_rows()] == [200] * 10
        assert Counter((row["status"], row["tries"]) for row in task_rows()) == {
            ("delivered", 1): 10,
            ("pending", 0): 140,
        }
        assert not count("dispatchers")
        # What was left is delivered by the next one, and nothing twice.
        db.execute_sql("UPDATE hookjetty.endpoints SET url_key = replace(url_key, 'delay=1', '')")
        live.start_dispatcher()
        wait_until(all_done)
    assert set(Counter(request.event for request in receiver.seen).values()) == {1}
    assert len(receiver.seen) == 150


def test_told_twice_it_stops_on_the_spot_and_the_leases_end(database, receiver):
    with Dispatchers(database, LEASE_SECONDS="2", TIMEOUT_SECONDS="1") as live:
        (dispatcher,) = live.dispatchers
        add_endpoint(7, receiver.url(delay=0.9))
        publish(7)
        wait_until(lambda: receiver.seen)
        dispatcher.terminate()
        time.sleep(0.2)
        assert dispatcher.poll() is None  # it waits for the answer
        told_again_at = time.monotonic()
        dispatcher.terminate()
        assert dispatcher.wait(1) == 1
        assert time.monotonic() - told_again_at < 0.5
        live.dispatchers.clear()
        assert task_rows()[0]["status"] == "delivering"
        live.start_dispatcher()
        wait_until(all_done)
    assert [row["failure"] for row in attempt_rows()] == ["interrupted", None]


def test_signals_that_were_inherited_as_ignored_are_heeded(database):
    """A shell starts background jobs with SIGINT ignored."""
    ignoring = "trap '' INT TERM; exec \"$@\""
    plain = {name: value for name, value in os.environ.items() if "HOOKJETTY" not in name}
    with subprocess.Popen(
        ["sh", "-c", ignoring, "sh", sys.executable, "-m", "dispatcher"],
        cwd=ROOT,
        env=plain
        | {
            "HOOKJETTY_DATABASE_URL": database,
            "HOOKJETTY_SECRET_KEYS": SECRET_KEY,
            "HOOKJETTY_DISPATCHERS": "1",
        },
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as dispatcher:
        wait_until(lambda: count(f"dispatchers WHERE pid = {dispatcher.pid}"))
        dispatcher.send_signal(signal.SIGINT)
        assert dispatcher.wait(10) == 0


# ------------------------------------------------------------------------------------ going wrong


def test_what_postgresql_refuses_is_tried_again_ever_more_slowly(database, receiver):
    """A table that was changed under it: reported as the defect that it is, and survived."""
    with Dispatchers(database) as live:
        add_endpoint(7, receiver.url())
        execute(database, "ALTER TABLE hookjetty.tasks RENAME COLUMN probe TO prober")
        publish(7)
        wait_until(lambda: live.log().count("database_error") >= 3)
        time.sleep(1)
        assert live.log().count("database_error") < 10
        execute(database, "ALTER TABLE hookjetty.tasks RENAME COLUMN prober TO probe")
        wait_until(all_done, 10)
        assert live.dispatchers[0].poll() is None
    assert len(receiver.seen) == 1


def test_a_part_that_dies_takes_the_process_with_it():
    """Rather no dispatcher, which a supervisor replaces, than one that claims and never records."""
    program = """
import threading, time
from dispatcher import __main__ as dispatcher
threading.excepthook = dispatcher._die
threading.Thread(target=lambda: 1 / 0, name="record").start()
time.sleep(5)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 70
    assert "thread_died" in ended.stdout + ended.stderr
