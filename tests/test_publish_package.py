"""hookjetty.publish: an event exists if and only if the caller's own transaction committed.

Tried with every connection that users have, as the role that they are granted, in the way that
each library's users write a transaction.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import django
import django.conf
import django.db
import django.db.models
import peewee
import psycopg
import psycopg.rows
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.ext.asyncio
import sqlalchemy.orm

from hookjetty import publish as package
from hookjetty.publish import publish, publish_batch
from tests.conftest import execute, new_database

PUBLISHING = (Path(__file__).parent.parent / "docs/publishing.md").read_text()


# What a test changes and publishes is its own tenant's, so that all can share one database.
new_number = partial(next, count(100))


@pytest.fixture(scope="module")
def own_database(server_url: str, template: str) -> Iterator[str]:
    """A service's database, as its owner sees it."""
    with new_database(server_url, template) as url:
        execute(
            url,
            """
            CREATE TABLE public.exports (id integer PRIMARY KEY, state text);
            GRANT ALL ON public.exports TO hookjetty_publisher;
            """,
        )
        yield url


@pytest.fixture(scope="module")
def url(own_database: str) -> str:
    """The same database, for the role that may publish and nothing else."""
    joint = "&" if "?" in own_database else "?"
    return f"{own_database}{joint}options=-c%20role%3Dhookjetty_publisher"


@pytest.fixture
def tenant(own_database: str) -> int:
    """One with an endpoint for all its events, and an export of the same number that runs."""
    number = new_number()
    execute(
        own_database,
        """
        INSERT INTO hookjetty.tenants VALUES (%(tenant)s);
        INSERT INTO hookjetty.endpoints (tenant_id, url, url_key, events, status, secret)
        VALUES (%(tenant)s, 'https://example.com/', 'https://example.com/', '{*}', 'active', 'x');
        INSERT INTO public.exports VALUES (%(tenant)s, 'running');
        """.replace("%(tenant)s", str(number)),
    )
    return number


# ------------------------------------------------------------------------------------ connections


@dataclass(frozen=True)
class Caller:
    """A service with a connection of one kind.

    ``transaction`` is a block that gives what is passed to ``publish``, and that commits, or rolls
    back on an exception. ``run`` executes SQL in it. A refusal raises ``error``; ``cause`` gets at
    the driver's own exception.
    """

    transaction: Callable[[], AbstractContextManager[Any]]
    run: Callable[[Any, str], object]
    error: type[Exception]
    cause: Callable[[Any], Any] = lambda error: error


def run_on_cursor(connection: Any, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@contextmanager
def psycopg2_connection(url: str, **options: Any) -> Iterator[Caller]:
    with closing(psycopg2.connect(url, **options)) as connection:
        yield Caller(lambda: connection, run_on_cursor, psycopg2.DataError)


@contextmanager
def psycopg2_cursor(url: str) -> Iterator[Caller]:
    with closing(psycopg2.connect(url)) as connection:

        @contextmanager
        def transaction() -> Iterator[Any]:
            with connection, connection.cursor() as cursor:
                yield cursor

        yield Caller(transaction, lambda cursor, sql: cursor.execute(sql), psycopg2.DataError)


@contextmanager
def psycopg3_connection(url: str, **options: Any) -> Iterator[Caller]:
    with psycopg.connect(url, **options) as connection:

        @contextmanager
        def transaction() -> Iterator[Any]:
            with connection.transaction():
                yield connection

        yield Caller(transaction, lambda one, sql: one.execute(sql), psycopg.DataError)


@contextmanager
def psycopg3_cursor(url: str) -> Iterator[Caller]:
    with psycopg.connect(url) as connection:

        @contextmanager
        def transaction() -> Iterator[Any]:
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor

        yield Caller(transaction, lambda cursor, sql: cursor.execute(sql), psycopg.DataError)


def an_engine(url: str, driver: str) -> sqlalchemy.Engine:
    parts = psycopg2.extensions.parse_dsn(url)
    return sqlalchemy.create_engine(f"postgresql+{driver}://", connect_args=parts)


@contextmanager
def sqlalchemy_connection(url: str, driver: str) -> Iterator[Caller]:
    engine = an_engine(url, driver)
    yield sqlalchemy_caller(engine.begin)
    engine.dispose()


@contextmanager
def sqlalchemy_session(url: str, driver: str) -> Iterator[Caller]:
    engine = an_engine(url, driver)
    yield sqlalchemy_caller(sqlalchemy.orm.sessionmaker(engine).begin)
    engine.dispose()


@contextmanager
def sqlalchemy_scoped_session(url: str) -> Iterator[Caller]:
    """As Flask-SQLAlchemy's ``db.session``."""
    engine = an_engine(url, "psycopg2")
    scoped = sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker(engine))

    @contextmanager
    def transaction() -> Iterator[Any]:
        with scoped.begin():
            yield scoped

    yield sqlalchemy_caller(transaction)
    scoped.remove()
    engine.dispose()


def sqlalchemy_caller(transaction: Callable[[], AbstractContextManager[Any]]) -> Caller:
    return Caller(
        transaction,
        lambda one, sql: one.execute(sqlalchemy.text(sql)),
        sqlalchemy.exc.DataError,
        lambda error: error.orig,
    )


@contextmanager
def django_connection(url: str) -> Iterator[Caller]:
    """Over psycopg 3, which Django prefers."""
    if not django.conf.settings.configured:
        django.conf.settings.configure()
        django.setup()
    connections = django.db.connections
    connections.settings = connections.configure_settings({"default": django_database(url)})

    @contextmanager
    def transaction() -> Iterator[Any]:
        with django.db.transaction.atomic():
            yield django.db.connection

    try:
        yield Caller(transaction, run_on_cursor, django.db.DataError, lambda error: error.__cause__)
    finally:
        django.db.connection.close()
        del connections["default"]


def django_database(url: str) -> dict[str, Any]:
    parts = psycopg2.extensions.parse_dsn(url)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host"}
    return {name: parts.get(part, "") for name, part in names.items()} | {
        "ENGINE": "django.db.backends.postgresql",
        "PORT": parts.get("port", ""),
        "OPTIONS": {"options": parts["options"]},
    }


@contextmanager
def peewee_database(url: str, *, proxied: bool = False, **options: Any) -> Iterator[Caller]:
    database = peewee.PostgresqlDatabase(url, **options)
    passed: Any = database
    if proxied:
        passed = peewee.DatabaseProxy()
        passed.initialize(database)

    @contextmanager
    def transaction() -> Iterator[Any]:
        with database.atomic():
            yield passed

    with database.connection_context():
        yield Caller(
            transaction,
            lambda one, sql: one.execute_sql(sql),
            peewee.DataError,
            lambda error: error.orig,
        )


class Export(NamedTuple):
    id: int
    state: str


CALLERS: dict[str, Callable[[str], AbstractContextManager[Caller]]] = {
    "psycopg2 connection": psycopg2_connection,
    "psycopg2 connection with dictionaries": partial(
        psycopg2_connection, cursor_factory=psycopg2.extras.RealDictCursor
    ),
    "psycopg2 cursor": psycopg2_cursor,
    "psycopg 3 connection": psycopg3_connection,
    "psycopg 3 connection with dictionaries": partial(
        psycopg3_connection, row_factory=psycopg.rows.dict_row
    ),
    # Our row cannot be made into one of theirs.
    "psycopg 3 connection with objects": partial(
        psycopg3_connection, row_factory=psycopg.rows.class_row(Export)
    ),
    "psycopg 3 cursor": psycopg3_cursor,
    "SQLAlchemy connection over psycopg2": partial(sqlalchemy_connection, driver="psycopg2"),
    "SQLAlchemy connection over psycopg 3": partial(sqlalchemy_connection, driver="psycopg"),
    "SQLAlchemy session over psycopg2": partial(sqlalchemy_session, driver="psycopg2"),
    "SQLAlchemy session over psycopg 3": partial(sqlalchemy_session, driver="psycopg"),
    "SQLAlchemy scoped session": sqlalchemy_scoped_session,
    "Django": django_connection,
    "Peewee over psycopg2": peewee_database,
    "Peewee over psycopg 3": partial(peewee_database, prefer_psycopg3=True),
    "Peewee behind a proxy": partial(peewee_database, proxied=True),
}


@pytest.fixture(params=CALLERS, scope="module")
def caller(request: pytest.FixtureRequest, url: str) -> Iterator[Caller]:
    with CALLERS[request.param](url) as caller:
        yield caller


def finish(tenant: int) -> str:
    """The change that an event tells of."""
    return f"UPDATE exports SET state = 'done' WHERE id = {tenant}"


Books = Callable[[], tuple[str, list[tuple]]]


@pytest.fixture
def books(own_database: str, tenant: int) -> Books:
    """What another session sees: the export's state, and the tenant's events."""

    def read() -> tuple[str, list[tuple]]:
        ((state,),) = execute(
            own_database, "SELECT state FROM public.exports WHERE id = %s", tenant
        )
        events = execute(
            own_database,
            "SELECT 'evt_' || id, type, data::text, fanout FROM hookjetty.events"
            " WHERE tenant_id = %s ORDER BY id",
            tenant,
        )
        return state, events

    return read


UNCHANGED = ("running", [])

# Every kind of number and escape that writing it anew would change.
TEXT = '{"price": 1.50, "who": "Zo\\u00eb %s :a ? é", "n": 12345678901234567890,  "e": 1E400}'


# -------------------------------------------------------------------------- with every connection


def test_the_event_is_committed_together_with_the_change(caller, tenant, books):
    with caller.transaction() as passed:
        caller.run(passed, finish(tenant))
        published = publish(passed, tenant, "export.done", {"rows": 3})
        assert books() == UNCHANGED
    assert published.tasks == 1
    assert books() == ("done", [(published.event_id, "export.done", '{"rows":3}', 1)])


def test_the_event_is_rolled_back_together_with_the_change(caller, tenant, books, own_database):
    def fail_at_the_end() -> None:
        with caller.transaction() as passed:
            caller.run(passed, finish(tenant))
            publish(passed, tenant, "export.done", {"rows": 3}, key="export-1")
            publish_batch(passed, tenant, [{"type": "a", "data": {}, "key": "a-1"}])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_end()
    assert books() == UNCHANGED
    for table in ("tasks", "event_keys"):
        left = f"SELECT FROM hookjetty.{table} WHERE tenant_id = {tenant}"
        assert execute(own_database, left) == []


def test_the_same_key_again_is_the_first_event(caller, tenant, books):
    with caller.transaction() as passed:
        first = publish(passed, tenant, "export.done", {"rows": 3}, key="export-1")
        again = publish(passed, tenant, "export.done", {"rows": 4}, "export-1")
    with caller.transaction() as passed:
        third = {"type": "export.done", "data": {"rows": 5}, "key": "export-1"}
        assert publish_batch(passed, tenant, [third]) == [first]
    assert again == first
    assert books()[1] == [(first.event_id, "export.done", '{"rows":3}', 1)]


def test_text_is_kept_byte_for_byte(caller, tenant, books):
    with caller.transaction() as passed:
        publish(passed, tenant, "export.done", f" {TEXT}\n")
        publish_batch(passed, tenant, [{"type": "export.done", "data": TEXT}])
    assert [data for _, _, data, _ in books()[1]] == [f" {TEXT}\n", TEXT]


def test_a_batch_is_published_in_its_order(caller, tenant, books):
    with caller.transaction() as passed:
        caller.run(passed, finish(tenant))
        published = publish_batch(
            passed,
            tenant,
            [
                {"type": "export.done", "data": {"rows": 3}, "key": "export-1"},
                {"type": "export.failed", "data": '{"rows": 4.0}'},
                {"type": "export.done", "data": {"rows": 5}, "key": "export-1"},
                {"type": "export.done", "data": {"rows": 6}, "key": None},
            ],
        )
        assert books() == UNCHANGED
    assert [one.tasks for one in published] == [1] * 4
    assert published[2] == published[0]
    assert books() == (
        "done",
        [
            (published[0].event_id, "export.done", '{"rows":3}', 1),
            (published[1].event_id, "export.failed", '{"rows": 4.0}', 1),
            (published[3].event_id, "export.done", '{"rows":6}', 1),
        ],
    )


def test_a_refusal_is_an_error_of_the_driver_with_sqlstate_and_reason(caller, tenant, books):
    def change_and(function: Callable[..., object], *arguments: Any) -> None:
        with caller.transaction() as passed:
            caller.run(passed, finish(tenant))
            function(passed, *arguments)

    def reason(function: Callable[..., object], *arguments: Any) -> str:
        with pytest.raises(caller.error) as refused:
            change_and(function, *arguments)
        cause = caller.cause(refused.value)
        sqlstate = cause.pgcode if isinstance(cause, psycopg2.Error) else cause.sqlstate
        assert sqlstate == "22023"
        assert cause.diag.message_primary in str(refused.value)
        return cause.diag.message_primary

    assert reason(publish, 0, "export.done", {}).startswith("tenant_id: must be an integer")
    assert reason(publish, tenant, "export done", {}).startswith("type: must be segments")
    assert reason(publish, tenant, "export.done", "[]") == "data: must be a JSON object"
    events = [{"type": "export.done", "data": {}}, {"type": "export.done", "data": []}]
    assert reason(publish_batch, tenant, events) == "events.1.data: must be a JSON object"
    assert reason(publish_batch, tenant, []) == "events: must be a list of 1 to 1000 events"
    assert books() == UNCHANGED

    with caller.transaction() as passed:  # the connection is as good as before
        publish(passed, tenant, "export.done", {})
    assert len(books()[1]) == 1


# ------------------------------------------------------------------------------------ with one kind


@pytest.fixture
def connection(url: str) -> Iterator[Any]:
    with closing(psycopg2.connect(url)) as connection:
        yield connection


def test_a_connection_stays_in_the_transaction_it_was_in(connection, tenant):
    publish(connection, tenant, "export.done", {})
    assert connection.status == psycopg2.extensions.STATUS_IN_TRANSACTION


def test_a_connection_that_commits_every_statement_publishes_at_once(connection, tenant, books):
    connection.autocommit = True
    publish(connection, tenant, "export.done", {})
    assert len(books()[1]) == 1


@pytest.mark.parametrize(
    "data",
    ["", "{", '{"a": 1} {}', "{'a': 1}", '{"a": NaN}', '{"a": -Infinity}', {"a": float("nan")}],
)
def test_what_is_not_json_is_refused_before_the_transaction_is_touched(connection, data):
    with pytest.raises(ValueError, match="data is not JSON"):
        publish(connection, 7, "export.done", data)
    with pytest.raises(ValueError, match="data is not JSON"):
        publish_batch(connection, 7, [{"type": "export.done", "data": data}])
    assert connection.status == psycopg2.extensions.STATUS_READY


def test_text_that_is_nested_absurdly_is_refused_too(connection):
    with pytest.raises(ValueError, match="nested too deeply"):
        publish(connection, 7, "export.done", "[" * 100_000)


def test_no_data_can_become_another_member_or_another_event(connection):
    """The list that is sent is put together from texts."""
    for data in ('{}, "key": "stolen"', "{}}, {", '{"a": 1}], ['):
        with pytest.raises(ValueError, match="data is not JSON"):
            publish_batch(connection, 7, [{"type": "export.done", "data": data}])


def test_a_misspelt_member_of_a_batch_is_named(connection):
    with pytest.raises(TypeError, match="'typ'"):
        publish_batch(connection, 7, [{"typ": "export.done", "data": {}}])


def test_what_is_no_connection_is_named(url):
    engine = an_engine(url, "psycopg")
    for wrong, name in [("postgresql://localhost/", "builtins.str"), (engine, "Engine")]:
        with pytest.raises(TypeError, match=rf"cannot publish through a .*{re.escape(name)}"):
            publish(wrong, 7, "export.done", {})


def test_an_asynchronous_connection_is_refused_with_what_to_do_instead(url, tenant, books):
    engine = sqlalchemy.ext.asyncio.create_async_engine(
        "postgresql+psycopg://", connect_args=psycopg2.extensions.parse_dsn(url)
    )

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            with pytest.raises(TypeError, match="AsyncConnection, which is asynchronous"):
                publish(connection, tenant, "export.done", {})
        async with sqlalchemy.ext.asyncio.AsyncSession(engine) as session, session.begin():
            with pytest.raises(TypeError, match=r"await session\.run_sync\(publish, 7"):
                publish(session, tenant, "export.done", {})
            await session.run_sync(publish, tenant, "export.done", {"rows": 3})
        async with engine.connect() as connection:
            await connection.run_sync(publish_batch, tenant, [{"type": "a", "data": {}}])
            await connection.rollback()
        await engine.dispose()

    asyncio.run(main())
    assert [data for _, _, data, _ in books()[1]] == ['{"rows":3}']


# ------------------------------------------------------------------------------------ as documented


def test_what_the_page_shows_is_what_works(url, own_database):
    """Each block under its heading in docs/publishing.md, with what the page takes as given."""

    class Base(sqlalchemy.orm.DeclarativeBase):
        pass

    class MappedExport(Base):
        __tablename__ = "exports"
        id: sqlalchemy.orm.Mapped[int] = sqlalchemy.orm.mapped_column(primary_key=True)
        state: sqlalchemy.orm.Mapped[str]

    class PeeweeExport(peewee.Model):
        state = peewee.TextField()

        class Meta:
            table_name = "exports"

    sections = re.findall(r"^##+ (.+?)\n(.*?)(?=^##)", PUBLISHING, re.MULTILINE | re.DOTALL)
    blocks = {
        title: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for title, text in sections
    }
    execute(own_database, "INSERT INTO public.exports VALUES (42)")
    engine = an_engine(url, "psycopg")
    database = peewee.PostgresqlDatabase(url)
    with (
        closing(psycopg2.connect(url)) as two,
        closing(psycopg.connect(url)) as three,
        django_connection(url),
        database.bind_ctx([PeeweeExport]),
        database.connection_context(),
    ):
        given: dict[str, dict[str, Any]] = {
            "psycopg2": {"connection": two},
            "psycopg 3": {"connection": three},
            "SQLAlchemy": {
                "Session": sqlalchemy.orm.Session,
                "engine": engine,
                "update": sqlalchemy.update,
                "Export": MappedExport,
                "exports": MappedExport.__table__,
            },
            "Django": {"Export": django_export()},
            "Peewee": {"database": database, "Export": PeeweeExport},
        }
        for heading, names in given.items():
            assert blocks[heading]
            for block in blocks[heading]:
                execute(own_database, "UPDATE public.exports SET state = 'running' WHERE id = 42")
                execute(own_database, "DELETE FROM hookjetty.events WHERE tenant_id = 7")
                exec(block, names | {"publish": publish})  # noqa: S102 - it is ours
                both = "SELECT data::text, state FROM hookjetty.events, public.exports x"
                both += " WHERE tenant_id = 7 AND x.id = 42"
                assert execute(own_database, both) == [('{"export":42}', "done")], heading
    engine.dispose()


def django_export() -> type[django.db.models.Model]:
    class Export(django.db.models.Model):
        id = django.db.models.IntegerField(primary_key=True)
        state = django.db.models.TextField()

        class Meta:
            app_label = "exports"
            db_table = "exports"

    return Export


OVER_PSYCOPG2 = """
import json, sys
sys.modules["psycopg"] = None  # as where it is not installed
from django.conf import settings
settings.configure(DATABASES={"default": json.load(sys.stdin)})
from django.db import connection, transaction
from hookjetty.publish import publish

class Undone(Exception): pass

for data in ({"rows": 3}, {"rows": 4}):
    try:
        with transaction.atomic():
            publish(connection, int(sys.argv[1]), "export.done", data)
            if data["rows"] == 4:
                raise Undone
    except Undone:
        print(connection.connection.__class__.__module__)
"""


def test_django_may_have_psycopg2_alone(url, tenant, books):
    done = subprocess.run(
        [sys.executable, "-c", OVER_PSYCOPG2, str(tenant)],
        input=json.dumps(django_database(url)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "psycopg2.extensions\n"
    assert [data for _, _, data, _ in books()[1]] == ['{"rows":3}']


def test_the_module_brings_nothing_along():
    """It is imported into other people's programs, whatever their driver is."""
    lines = Path(package.__file__).read_text().splitlines()
    imported = [line.split()[1] for line in lines if line.startswith(("import", "from"))]
    standard = {"__future__", "collections.abc", "contextlib", "inspect", "json", "typing"}
    assert set(imported) == standard
