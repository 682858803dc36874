"""The one way to PostgreSQL: a Peewee database with a connection per thread that heals by itself.

``db`` is deferred: a process calls ``open_database(url)`` once at its start. Each thread keeps its
connection for good (a checkout per request would cost a round trip), and ``ready()`` at the start
of a unit of work replaces one that the server has closed meanwhile, without asking the server.
"""

from __future__ import annotations

import io
import logging
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
import psycopg2.extensions
from peewee import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PeeweeException,
    PostgresqlDatabase,
    ProgrammingError,
)
from peewee import __exception_wrapper__ as raising_as_peewee  # type: ignore[attr-defined]

from app import errors

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
# Has schema.sql and migrations/, which in a checkout are links to those beside this package.
FOLDER = Path(__file__).parent

# An upgrade waits for other transactions to end as often as this; each try takes some seconds.
LOCK_TRIES = 8
LOCK_PAUSE_SECONDS = 1.0

# A dead host must be noticed although psycopg2 itself never times out: connecting takes 2 s at
# most, unacknowledged data ends a connection after 10 s, a silent peer after 10 + 3 * 5 s.
LIVELINESS: dict[str, Any] = {
    "connect_timeout": 2,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# For the sessions of the hot statements: a claim or a record touches a few rows by index, whatever
# the statistics of a table that was empty a minute ago say about its size. And a process that is
# stopped between two statements must not keep its locks: others have to claim in its place.
PINNED_PLANS = """
SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off;
SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET idle_in_transaction_session_timeout = '5s'
"""

COPY_PIECE_BYTES = 256 * 1024

SERIALIZATION_FAILURE, DEADLOCK_DETECTED, LOCK_NOT_AVAILABLE = "40001", "40P01", "55P03"

Result = TypeVar("Result")


class Connection(psycopg2.extensions.connection):
    """A connection that remembers what was done to its session for the hot statements."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepared: set[str] = set()
        self.has_pinned_plans = False


class Database(PostgresqlDatabase):
    """Peewee's database, plus ``ready()``: the only two questions asked before a unit of work."""

    _state: Any  # of this thread; Peewee's stubs do not show it

    def ready(self, *, for_hot_statements: bool = False) -> None:
        """See that this thread has a connection on which the server has not hung up.

        An idle connection has nothing to say; if its socket is readable, that is the end of it
        (or a last error message). Raises ``OperationalError`` when the server is away.
        ``for_hot_statements`` pins the session's plans, once, and outside of any transaction: a
        rollback would undo it.
        """
        if not self.is_closed() and _hung_up(self._state.conn):
            self.give_up()
        self.connect(reuse_if_open=True)
        if for_hot_statements and not self._state.conn.has_pinned_plans:
            self.execute_sql(PINNED_PLANS)
            self._state.conn.has_pinned_plans = True

    def copy(self, sql: str, rows: str) -> None:
        """Run a ``COPY … FROM STDIN`` with the rows' text, raising Peewee's errors as all else."""
        with raising_as_peewee:
            self.cursor().copy_expert(sql, io.BytesIO(rows.encode()), size=COPY_PIECE_BYTES)

    def give_up(self) -> None:
        """Drop this thread's connection, in whatever state; the next ``ready()`` makes one."""
        connection = self._state.conn
        self._state.reset()
        if connection is not None:
            try:
                connection.close()
            except psycopg2.Error:
                log.debug("closing a broken connection failed", exc_info=True)


db = Database(None)


def open_database(url: str, application_name: str = "hookjetty") -> None:
    """Name the database of this process. Connects nothing yet, so it is safe before a fork."""
    db.init(
        url,
        connection_factory=Connection,
        application_name=application_name,
        **LIVELINESS,
    )


@contextmanager
def dependable() -> Iterator[None]:
    """A unit of work of the API: PostgreSQL's absence becomes ``dependency_down``.

    A broken connection is dropped, so that the next unit of work starts with a fresh one.
    """
    try:
        db.ready()
        yield
    except PeeweeException as error:
        if not is_away(error):
            raise
        db.give_up()
        raise errors.dependency_down() from error


def retrying(work: Callable[[], Result], attempts: int = 5) -> Result:
    """Do ``work`` again when PostgreSQL chose it as the victim of a deadlock or a conflict.

    ``work`` must be a whole unit: a statement in autocommit, or a transaction of its own.
    """
    for attempt in range(attempts):
        try:
            return work()
        except OperationalError as error:
            if not is_conflict(error) or attempt == attempts - 1:
                raise
    raise AssertionError("unreachable")


def clock() -> datetime:
    """The moment, by the database's clock: the one that all processes go by."""
    moment: datetime = db.execute_sql("SELECT clock_timestamp()").fetchone()[0]
    return moment


class Statement:
    """A hot statement: text SQL that is PREPAREd once per connection, then only EXECUTEd.

    psycopg2 interpolates parameters on this side, so an unprepared statement is parsed and planned
    at each call. ``types`` are PostgreSQL's names of the parameters' types; the SQL refers to them
    as ``$1``, ``$2``, …
    """

    def __init__(self, name: str, types: Sequence[str], sql: str) -> None:
        self.name = name
        parameters = f"({', '.join(types)})" if types else ""
        arguments = f"({', '.join(['%s'] * len(types))})" if types else ""
        self._prepare = f"PREPARE {name} {parameters} AS {sql}"
        self._execute = f"EXECUTE {name} {arguments}"

    def __call__(self, *args: object) -> list[tuple[Any, ...]]:
        """Run it on this thread's connection and fetch all of its rows."""
        cursor = self._run(args)
        return list(cursor.fetchall()) if cursor.description else []

    def count(self, *args: object) -> int:
        """Run it, and return how many rows it changed."""
        return int(self._run(args).rowcount)

    def _run(self, args: Sequence[object]) -> Any:
        connection = db.connection()
        if self.name not in connection.prepared:
            db.execute_sql(self._prepare)
            connection.prepared.add(self.name)
        return db.execute_sql(self._execute, args)


def as_array(numbers: Iterable[float]) -> str:
    """An array in PostgreSQL's own notation, which it reads several times faster than ARRAY[…].

    >>> as_array([1, 2])
    '{1,2}'
    """
    return "{" + ",".join(map(str, numbers)) + "}"


def is_away(error: PeeweeException) -> bool:
    """Whether an error says that PostgreSQL cannot be reached or used, and nothing about the SQL.

    Without a SQLSTATE the server did not even answer (psycopg2 then raises any of three classes).
    Class 08: connection; 57P0x: the server is stopping or was told to end the session; 53: it has
    run out of connections, memory or disk; 25006: it was demoted and is read-only; 25P03: the
    session was idle in a transaction for too long.
    """
    state = sqlstate(error)
    if state is None:
        return isinstance(
            error, (OperationalError, InterfaceError, DatabaseError)
        ) and not isinstance(error, (IntegrityError, DataError, ProgrammingError))
    return state[:2] in ("08", "53") or state[:4] == "57P0" or state in ("25006", "25P03")


def is_conflict(error: PeeweeException) -> bool:
    """Whether PostgreSQL chose this transaction as the victim of others: do it again."""
    return sqlstate(error) in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED)


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE behind a Peewee or psycopg2 error; None when the server sent none."""
    cause = getattr(error, "orig", error)  # Peewee keeps psycopg2's error there
    return getattr(cause, "pgcode", None)


# ---------------------------------------------------------------------------------- schema


class SchemaMismatch(Exception):
    """The database has another schema than this program needs. The message says what to do."""


def check_schema() -> None:
    """Raise ``SchemaMismatch`` unless the database has exactly this program's schema."""
    found = schema_version()
    if found is None:
        raise SchemaMismatch("the database has no Hookjetty schema: run `hookjetty db migrate`")
    if found < SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema version {found}, this program needs {SCHEMA_VERSION}: "
            "run `hookjetty db migrate`"
        )
    if found > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema version {found}, this program knows only up to "
            f"{SCHEMA_VERSION}: install the newer Hookjetty that made it"
        )


def schema_version() -> int | None:
    """The version recorded in the database; None when there is no schema."""
    (exists,) = db.execute_sql("SELECT to_regclass('hookjetty.schema_version')").fetchone()
    if exists is None:
        return None
    (version,) = db.execute_sql("SELECT max(version) FROM hookjetty.schema_version").fetchone()
    return version


def migrate() -> bool:
    """Bring the database to this program's schema; False when it had it already.

    Raises ``SchemaMismatch`` when that cannot be done. It is one transaction under an advisory
    lock: any number of starting processes may call it at once, and one that fails leaves the
    database as it was, to the program of the version before (docs/decisions/0006).
    """
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            with db.atomic():
                return _migrate()
        except OperationalError as error:
            if sqlstate(error) not in (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED):
                raise
            if not tries_left:
                raise SchemaMismatch(
                    f"the schema is as it was, at version {schema_version()}: other transactions"
                    f" keep its tables locked; end them (PostgreSQL's processes {_lockers()}) or"
                    " wait for them, then run `hookjetty db migrate` again"
                ) from error
        time.sleep(LOCK_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _migrate() -> bool:
    """What ``migrate`` does in its transaction.

    1. A fresh database gets schema.sql, and that is all.
    2. For one of an older version, everybody else is kept away from the tables.
    3. The steps bring tables, and what hangs on them, from each version to the next.
    4. schema.sql again, which by now finds all tables there: it renews functions and views.
    """
    db.execute_sql("SELECT pg_advisory_xact_lock(hashtext('hookjetty.migrate'))")
    found = schema_version()
    if found is not None and found >= SCHEMA_VERSION:
        check_schema()
        note_cluster()
        return False
    db.execute_sql("SET LOCAL client_min_messages = warning")
    if found is None:
        # Straight to the driver: the file is no template, its percent signs are its own.
        db.cursor().execute(schema_sql())
        return True
    _keep_others_away()
    for version in range(found + 1, SCHEMA_VERSION + 1):
        _apply(f"migrations/{version:04}.sql", found)
        db.execute_sql("INSERT INTO hookjetty.schema_version (version) VALUES (%s)", (version,))
    _apply("schema.sql", found)
    return True


def _keep_others_away() -> None:
    """Lock every table until the transaction ends; refuse while dispatchers are connected.

    A dispatcher would wait, and then go on with the statements of the version before. (The API's
    sessions tell nothing: behind a pooler they outlive it.)

    All locks are taken at once, so that whoever publishes from SQL meets either the old schema or
    the new one. How long to wait for each lies between one deadlock timeout and two: after one,
    PostgreSQL ends an autovacuum that is in the way, and of a deadlock with a transaction that
    publishes twice it is always us who find it and give way.
    """
    (sessions,) = db.execute_sql(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'hookjetty dispatcher'"
    ).fetchone()
    if sessions:
        raise SchemaMismatch(
            f"dispatchers are connected ({sessions} sessions): stop all API and dispatcher"
            " processes, then run `hookjetty db migrate` again"
        )
    db.execute_sql(
        "SELECT set_config('lock_timeout', (setting::integer * 3 / 2)::text, true)"
        " FROM pg_settings WHERE name = 'deadlock_timeout'"
    )
    (tables,) = db.execute_sql(
        "SELECT string_agg(oid::regclass::text, ', ' ORDER BY relname) FROM pg_class"
        " WHERE relnamespace = 'hookjetty'::regnamespace AND relkind IN ('r', 'p')"
        " AND NOT relispartition"
    ).fetchone()
    db.execute_sql(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")


def _apply(name: str, found: int) -> None:
    try:
        db.cursor().execute((FOLDER / name).read_text())
    except psycopg2.Error as error:
        raise SchemaMismatch(
            f"{name} failed, so the schema is as it was, at version {found}: {str(error).strip()}"
        ) from error


def _lockers() -> str:
    """The processes with a transaction in which they used our tables."""
    rows = db.execute_sql(
        "SELECT DISTINCT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND c.relnamespace = 'hookjetty'::regnamespace AND l.pid <> pg_backend_pid()"
        " ORDER BY l.pid"
    ).fetchall()
    return ", ".join(str(pid) for (pid,) in rows) or "that have ended meanwhile"


def schema_sql() -> str:
    """The text of schema.sql."""
    return (FOLDER / "schema.sql").read_text()


def publisher_grant() -> str | None:
    """The SQL a superuser must run as this role may not create roles; None when all is well."""
    query = "SELECT 1 FROM pg_roles WHERE rolname = 'hookjetty_publisher'"
    if db.execute_sql(query).fetchone():
        return None
    return (
        "CREATE ROLE hookjetty_publisher NOLOGIN;\n"
        "GRANT USAGE ON SCHEMA hookjetty TO hookjetty_publisher;\n"
        "GRANT EXECUTE ON FUNCTION hookjetty.publish_event(bigint, text, json, text),\n"
        "    hookjetty.publish_events(bigint, json), hookjetty.publish_row()\n"
        "    TO hookjetty_publisher;"
    )


def note_cluster() -> None:
    """Notice that the database was restored into another cluster (schema.sql, "clusters").

    Every process does at its start, so that no event is published there before.
    """
    db.execute_sql("SELECT hookjetty.note_cluster()")


def claim_secret_keys(fingerprints: Sequence[str]) -> None:
    """Record the newest key's fingerprint, or raise ``SchemaMismatch`` if one in use is missing.

    ``fingerprints`` are those of the configured SECRET_KEYS, newest first. Without a key that has
    encrypted something here, some endpoint's secret would be unreadable.
    """
    missing = sorted(secret_keys_in_use() - set(fingerprints))
    if missing:
        raise SchemaMismatch(
            "HOOKJETTY_SECRET_KEYS lacks a key that this database's secrets are encrypted with "
            f"(fingerprint {missing[0]}): add it behind the newest key"
        )
    db.execute_sql(
        "INSERT INTO hookjetty.secret_keys (fingerprint) VALUES (%s) ON CONFLICT DO NOTHING",
        (fingerprints[0],),
    )


def hold_secret_key(fingerprint: str) -> None:
    """See that a key is on record until this transaction ends, which encrypts with it.

    Whoever wants to strike it off the record waits, and then sees what was encrypted.
    """
    held = "SELECT 1 FROM hookjetty.secret_keys WHERE fingerprint = %s FOR KEY SHARE"
    while not db.execute_sql(held, (fingerprint,)).fetchone():
        db.execute_sql(
            "INSERT INTO hookjetty.secret_keys (fingerprint) VALUES (%s) ON CONFLICT DO NOTHING",
            (fingerprint,),
        )


def secret_keys_in_use() -> set[str]:
    """The fingerprints of the keys that may have encrypted something here."""
    rows = db.execute_sql("SELECT fingerprint FROM hookjetty.secret_keys").fetchall()
    return {row[0] for row in rows}


# ---------------------------------------------------------------------------------- helpers


def _hung_up(connection: Any) -> bool:
    try:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))
    except psycopg2.Error:  # closed on our side
        return True
