"""The one way to PostgreSQL: a Peewee database with a connection per thread that heals by itself.

``db`` is deferred: a process calls ``open_database(url)`` once at its start. Each thread keeps its
connection for good (a checkout per request would cost a round trip), and ``ready()`` at the start
of a unit of work replaces one that the server has closed meanwhile, without asking the server.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from app import errors

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1

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

SERIALIZATION_FAILURE, DEADLOCK_DETECTED = "40001", "40P01"

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
        connection = db.connection()
        if self.name not in connection.prepared:
            db.execute_sql(self._prepare)
            connection.prepared.add(self.name)
        cursor = db.execute_sql(self._execute, args)
        return list(cursor.fetchall()) if cursor.description else []


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
    """The database has another schema than this program needs. The message says what to run."""


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

    Applies schema.sql as one transaction under an advisory lock, so any number of starting
    processes may call it at once.
    """
    with db.atomic():
        db.execute_sql("SELECT pg_advisory_xact_lock(hashtext('hookjetty.migrate'))")
        if schema_version() is not None:
            check_schema()
            return False
        db.execute_sql("SET LOCAL client_min_messages = warning")
        # Straight to the driver: the file is no template, its percent signs are its own.
        db.cursor().execute(schema_sql())
        return True


def schema_sql() -> str:
    """The text of schema.sql, which packages reach through a link beside this module."""
    return Path(__file__).with_name("schema.sql").read_text()


def publisher_grant() -> str | None:
    """The SQL a superuser must run as this role may not create roles; None when all is well."""
    query = "SELECT 1 FROM pg_roles WHERE rolname = 'hookjetty_publisher'"
    if db.execute_sql(query).fetchone():
        return None
    return (
        "CREATE ROLE hookjetty_publisher NOLOGIN;\n"
        "GRANT USAGE ON SCHEMA hookjetty TO hookjetty_publisher;\n"
        "GRANT EXECUTE ON FUNCTION hookjetty.publish_event(bigint, text, json, text)\n"
        "    TO hookjetty_publisher;"
    )


def claim_secret_keys(fingerprints: Sequence[str]) -> None:
    """Record the newest key's fingerprint, or raise ``SchemaMismatch`` if one in use is missing.

    ``fingerprints`` are those of the configured SECRET_KEYS, newest first. Without a key that has
    encrypted something here, some endpoint's secret would be unreadable.
    """
    rows = db.execute_sql("SELECT fingerprint FROM hookjetty.secret_keys").fetchall()
    missing = sorted({row[0] for row in rows} - set(fingerprints))
    if missing:
        raise SchemaMismatch(
            "HOOKJETTY_SECRET_KEYS lacks a key that this database's secrets are encrypted with "
            f"(fingerprint {missing[0]}): add it behind the newest key"
        )
    db.execute_sql(
        "INSERT INTO hookjetty.secret_keys (fingerprint) VALUES (%s) ON CONFLICT DO NOTHING",
        (fingerprints[0],),
    )


# ---------------------------------------------------------------------------------- helpers


def _hung_up(connection: Any) -> bool:
    try:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))
    except psycopg2.Error:  # closed on our side
        return True
