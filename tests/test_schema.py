"""schema.sql is the specification of state; the models and the words in Python agree with it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from peewee import IntegrityError
from playhouse.postgres_ext import ArrayField

from app import db as database
from app import models
from app.db import db
from tests.factories import make_endpoint, publish, task_rows

pytestmark = pytest.mark.usefixtures("database")

TYPES = {
    "BIGINT": "bigint",
    "BIGSERIAL": "bigint",
    "INTEGER": "integer",
    "SMALLINT": "smallint",
    "TEXT": "text",
    "BOOLEAN": "boolean",
    "TIMESTAMPTZ": "timestamp with time zone",
    "JSONB": "jsonb",
    "BYTEA": "bytea",
    "REAL": "double precision",
}
# Columns that Python reads as another type than PostgreSQL has: the JSON text, the full xid, and a
# number that need not be exact.
READ_AS = {
    ("events", "data"): "json",
    ("events", "xid"): "xid8",
    ("event_types", "schema"): "json",
    ("event_types", "example"): "json",
    ("endpoints", "timeout_seconds"): "real",
    ("tenant_erasures", "horizon"): "xid8",
}


@pytest.mark.parametrize("model", models.tables(), ids=lambda model: model.__name__)
def test_a_model_has_exactly_the_columns_of_its_table(model):
    table = model._meta.table_name
    stored = {
        name: (kind, nullable == "YES")
        for name, kind, nullable in db.execute_sql(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns"
            " WHERE table_schema = 'hookjetty' AND table_name = %s",
            (table,),
        ).fetchall()
    }
    context = db.get_sql_context()
    described = {
        field.column_name: (
            READ_AS.get(
                (table, field.column_name),
                "ARRAY"
                if isinstance(field, ArrayField)
                else TYPES[field.ddl_datatype(context).sql],
            ),
            field.null,
        )
        for field in model._meta.sorted_fields
    }
    assert described == stored


def test_every_table_has_a_model_or_is_only_for_sql():
    stored = {
        row[0]
        for row in db.execute_sql(
            "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'hookjetty'::regnamespace"
            " AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        ).fetchall()
    }
    described = {model._meta.table_name for model in models.tables()}
    assert stored - described == {"schema_version", "secret_keys", "event_keys"}


@pytest.mark.parametrize(
    ("table", "check", "words"),
    [
        ("tasks", "tasks_are_legal", models.TASK_STATUSES),
        ("endpoints", "endpoints_status_check", models.ENDPOINT_STATUSES),
        ("endpoints", "endpoints_reason_check", models.DISABLED_REASONS),
        ("tasks", "tasks_failure_check", models.FAILURES),
        (
            "attempts",
            "attempts_failure_check",
            tuple(word for word in models.FAILURES if word != "expired"),
        ),
    ],
)
def test_python_and_sql_know_the_same_words(table, check, words):
    """If this fails, a word was added in one place and not in the other."""
    checks = db.execute_sql(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c'"
        " AND conrelid = %s::regclass AND conname = %s",
        (f"hookjetty.{table}", check),
    ).fetchall()
    assert set(re.findall(r"'(\w+)'", checks[0][0])) == set(words)


def test_every_index_says_which_query_needs_it():
    """The line above each CREATE INDEX is a comment."""
    lines = database.schema_sql().splitlines()
    places = [n for n, line in enumerate(lines) if re.match(r"CREATE (UNIQUE )?INDEX", line)]
    assert len(places) > 10
    assert [lines[n] for n in places if not lines[n - 1].startswith("--")] == []


def test_applying_the_schema_again_changes_nothing():
    publish()
    assert database.migrate() is False
    db.cursor().execute(database.schema_sql())
    assert db.execute_sql("SELECT count(*) FROM hookjetty.events").fetchone() == (1,)
    versions = db.execute_sql("SELECT version FROM hookjetty.schema_version").fetchall()
    assert versions == [(database.SCHEMA_VERSION,)]


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (database.SCHEMA_VERSION - 1, "hookjetty db migrate"),
        (database.SCHEMA_VERSION + 1, "newer Hookjetty"),
    ],
)
def test_another_schema_version_is_refused_with_what_to_run(version, remedy):
    db.execute_sql("UPDATE hookjetty.schema_version SET version = %s", (version,))
    with pytest.raises(database.SchemaMismatch, match=remedy):
        database.check_schema()


def test_an_empty_database_is_refused_with_what_to_run():
    db.execute_sql("DROP SCHEMA hookjetty CASCADE")
    with pytest.raises(database.SchemaMismatch, match="hookjetty db migrate"):
        database.check_schema()


def test_a_key_that_secrets_are_encrypted_with_must_stay_configured():
    database.claim_secret_keys(["old"])
    database.claim_secret_keys(["new", "old"])
    with pytest.raises(database.SchemaMismatch, match="HOOKJETTY_SECRET_KEYS lacks a key"):
        database.claim_secret_keys(["new"])


# ----------------------------------------------------------------------------------------- ids


def test_ids_are_times_in_sql_and_in_python_alike():
    identifier, sql_time = db.execute_sql(
        "SELECT id, hookjetty.id_time(id) FROM hookjetty.new_id() AS id"
    ).fetchone()
    assert models.id_time(identifier) == sql_time
    assert abs((datetime.now(UTC) - sql_time).total_seconds()) < 5
    assert identifier < 2**53


def test_the_id_of_a_moment_is_the_lower_bound_in_both():
    moment = datetime(2026, 3, 4, 5, 6, 7, 890000, tzinfo=UTC)
    assert db.execute_sql("SELECT hookjetty.id_at(%s)", (moment,)).fetchone() == (
        models.id_at(moment),
    )


def test_ids_of_one_statement_are_distinct_and_ascend_by_millisecond():
    ids = [
        row[0]
        for row in db.execute_sql(
            "SELECT hookjetty.new_id() FROM generate_series(1, 3000)"
        ).fetchall()
    ]
    assert len(set(ids)) == 3000
    assert [i >> 12 for i in ids] == sorted(i >> 12 for i in ids)


# ------------------------------------------------------------------- rows that cannot be written


@pytest.mark.parametrize(
    "change",
    [
        "status = 'delivered'",  # with a next_try_at
        "next_try_at = NULL",  # pending without one
        "status = 'waiting', next_try_at = NULL",  # still ready
        "status = 'delivering', ready = false",  # without an attempt
        "status = 'failed', ready = false, next_try_at = NULL",  # without a failure
        "status = 'gone fishing'",
        "replay_id = 1",  # in the lane of live tasks
        "lane = 2",
        "failure = 'bad luck'",
    ],
)
def test_an_illegal_task_cannot_be_written(change):
    make_endpoint()
    publish()
    with pytest.raises(IntegrityError):
        db.execute_sql(f"UPDATE hookjetty.tasks SET {change}")
    assert task_rows()[0]["status"] == "pending"


@pytest.mark.parametrize(
    "change",
    [
        "status = 'disabled'",
        "reason = 'gone'",
        "handshake_at = now()",
        "events = '{}'",
        "status = 'x'",
    ],
)
def test_an_illegal_endpoint_cannot_be_written(change):
    make_endpoint()
    with pytest.raises(IntegrityError):
        db.execute_sql(f"UPDATE hookjetty.endpoints SET {change}")
