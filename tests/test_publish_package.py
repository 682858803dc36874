"""hookjetty.publish: an event exists if and only if the caller's own transaction committed."""

from __future__ import annotations

from pathlib import Path

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from peewee import DatabaseProxy, PostgresqlDatabase

from hookjetty import publish as package
from hookjetty.publish import publish
from tests.conftest import execute
from tests.factories import make_endpoint


@pytest.fixture
def connection(database: str):
    connection = psycopg2.connect(database)
    yield connection
    connection.close()


@pytest.fixture(params=["connection", "dictionaries", "cursor", "peewee", "peewee proxy"])
def any_connection(request: pytest.FixtureRequest, database: str):
    """What may be passed to ``publish``, how to commit on it, and how to roll back."""
    if request.param.startswith("peewee"):
        peewee = PostgresqlDatabase(database)
        proxy = DatabaseProxy()
        proxy.initialize(peewee)
        peewee.connect()
        with peewee.atomic() as transaction:
            passed = proxy if request.param == "peewee proxy" else peewee
            yield passed, transaction.commit, transaction.rollback
        peewee.close()
        return
    factory = psycopg2.extras.RealDictCursor if request.param == "dictionaries" else None
    connection = psycopg2.connect(database, cursor_factory=factory)
    passed = connection.cursor() if request.param == "cursor" else connection
    yield passed, connection.commit, connection.rollback
    connection.close()


def stored(database: str) -> list[tuple]:
    """Every event as another session sees it."""
    return execute(
        database, "SELECT 'evt_' || id, tenant_id, type, data::text, fanout FROM hookjetty.events"
    )


def test_what_was_committed_exists_once_it_is_committed(any_connection, database):
    make_endpoint(7)
    passed, commit, _ = any_connection
    published = publish(passed, 7, "export.done", {"rows": 3})
    assert stored(database) == []
    commit()
    assert stored(database) == [(published.event_id, 7, "export.done", '{"rows":3}', 1)]
    assert published.tasks == 1


def test_what_was_rolled_back_leaves_nothing(any_connection, database):
    make_endpoint(7)
    passed, _, rollback = any_connection
    publish(passed, 7, "export.done", {"rows": 3}, key="export-1")
    rollback()
    assert stored(database) == []
    for table in ("tasks", "event_keys"):
        assert execute(database, f"SELECT * FROM hookjetty.{table}") == []


def test_the_same_key_again_is_the_first_event(any_connection, database):
    passed, commit, _ = any_connection
    first = publish(passed, 7, "export.done", {"rows": 3}, key="export-1")
    again = publish(passed, 7, "export.done", {"rows": 4}, "export-1")
    commit()
    assert again == first
    assert [row[3] for row in stored(database)] == ['{"rows":3}']


def test_text_is_kept_byte_for_byte(connection, database):
    text = ' {"price": 1.50, "who": "Zo\\u00eb %s é", "n": 12345678901234567890} '
    with connection:
        publish(connection, 7, "export.done", text)
    ((_, _, _, data, _),) = stored(database)
    assert data == text


def test_a_connection_stays_in_the_transaction_it_was_in(connection):
    publish(connection, 7, "export.done", {})
    assert connection.status == psycopg2.extensions.STATUS_IN_TRANSACTION


@pytest.mark.parametrize("data", ["", "{", '{"a": 1} {}', "{'a': 1}", {"a": float("nan")}])
def test_what_is_not_json_is_refused_before_the_transaction_is_touched(connection, data):
    with pytest.raises(ValueError, match="data is not JSON"):
        publish(connection, 7, "export.done", data)
    assert connection.status == psycopg2.extensions.STATUS_READY


def test_text_that_is_nested_absurdly_is_refused_too(connection):
    with pytest.raises(ValueError, match="nested too deeply"):
        publish(connection, 7, "export.done", "[" * 100_000)


@pytest.mark.parametrize(
    ("tenant_id", "type", "data", "field"),
    [
        (0, "export.done", {}, "tenant_id"),
        (7, "export done", {}, "type"),
        (7, "export.done", "[]", "data"),
    ],
)
def test_what_postgresql_refuses_is_an_error_of_the_driver(
    connection, tenant_id, type, data, field
):
    with pytest.raises(psycopg2.DataError, match=f"^{field}: ") as refused:
        publish(connection, tenant_id, type, data)
    assert refused.value.pgcode == "22023"


def test_what_is_no_connection_is_named():
    with pytest.raises(TypeError, match=r"cannot publish through a builtins\.str"):
        publish("postgresql://localhost/", 7, "export.done", {})


def test_the_module_brings_nothing_along():
    """It is imported into other people's programs, whatever their driver is."""
    lines = Path(package.__file__).read_text().splitlines()
    imported = [line.split()[1] for line in lines if line.startswith(("import", "from"))]
    standard = {"__future__", "json", "collections.abc", "contextlib", "typing"}
    assert set(imported) == standard
