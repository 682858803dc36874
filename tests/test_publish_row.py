"""hookjetty.publish_row(): a trigger that turns a table's rows into events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from app.db import db
from tests.conftest import execute
from tests.factories import make_endpoint


@pytest.fixture(autouse=True)
def platform(database: str) -> None:
    """The database as the platform sees it; our own role's tables would be made in our schema."""
    db.execute_sql("SET search_path = public")


def table(columns: str, name: str = "exports") -> None:
    db.execute_sql(f"CREATE TABLE {name} (tenant_id bigint, {columns})")


def trigger(
    arguments: str = "'export.done', 'tenant_id'", when: str = "AFTER INSERT", on: str = "exports",
    how: str = "FOR EACH ROW",
) -> None:  # fmt: skip
    db.execute_sql(
        f"CREATE TRIGGER hook {when} ON {on} {how}"
        f" EXECUTE FUNCTION hookjetty.publish_row({arguments})"
    )


def insert(values: str, name: str = "exports") -> None:
    db.execute_sql(f"INSERT INTO {name} VALUES ({values})")


def published() -> list[tuple[int, str, Any]]:
    rows = db.execute_sql("SELECT tenant_id, type, data::text FROM hookjetty.events ORDER BY id")
    return [(tenant_id, type_, json.loads(data)) for tenant_id, type_, data in rows.fetchall()]


def refused(work: str) -> psycopg2.Error:
    with pytest.raises(psycopg2.Error) as raised:
        db.cursor().execute(work)
    return raised.value


def said(error: psycopg2.Error) -> str:
    return error.diag.message_primary or ""


def test_a_row_becomes_an_event_with_its_tasks():
    endpoint_id = make_endpoint(events=["export.*"])
    table("id bigint, rows integer, note text")
    trigger()
    insert("7, 1, 3, NULL")
    assert published() == [(7, "export.done", {"tenant_id": 7, "id": 1, "rows": 3, "note": None})]
    tasks = db.execute_sql("SELECT endpoint_id, status FROM hookjetty.tasks").fetchall()
    assert tasks == [(endpoint_id, "pending")]


def test_it_exists_if_and_only_if_the_row_does():
    table("id bigint")
    trigger()
    with db.atomic() as transaction:
        insert("7, 1")
        transaction.rollback()
    assert published() == []
    insert("7, 2")
    assert [data["id"] for _, _, data in published()] == [2]


def test_updates_too_and_only_those_that_the_trigger_names():
    table("id bigint, status text")
    trigger(when="AFTER INSERT OR UPDATE OF status", how="FOR EACH ROW WHEN (NEW.status = 'done')")
    insert("7, 1, 'begun'")
    db.execute_sql("UPDATE exports SET id = 2")
    assert published() == []
    db.execute_sql("UPDATE exports SET status = 'done'")
    assert published() == [(7, "export.done", {"tenant_id": 7, "id": 2, "status": "done"})]


def test_a_column_may_name_the_key():
    table("id bigint, status text")
    trigger("'export.done', 'tenant_id', 'id'", "AFTER INSERT OR UPDATE")
    insert("7, 1, 'x'")
    insert("7, NULL, 'y'")
    db.execute_sql("UPDATE exports SET status = 'z'")
    assert [data["status"] for _, _, data in published()] == ["x", "y", "z"]  # z: of the second
    keys = db.execute_sql("SELECT tenant_id, key FROM hookjetty.event_keys").fetchall()
    assert keys == [(7, "1")]


def test_values_are_written_the_same_whatever_the_session_says():
    table(
        "n numeric, big bigint, f double precision, at timestamptz, wall timestamp, day date,"
        " i interval, b bytea, j json, jb jsonb, t text[], yes boolean"
    )
    trigger()
    with db.atomic():
        for setting in ("TimeZone = 'Asia/Tokyo'", "IntervalStyle = 'sql_standard'",
                        "bytea_output = 'escape'", "extra_float_digits = -10",
                        "DateStyle = 'German, DMY'"):  # fmt: skip
            db.execute_sql(f"SET LOCAL {setting}")
        insert(
            "7, 12345678901234567890.1200, 9007199254740993, 0.1, '2026-05-04 03:02:01.5+00',"
            r" '2026-05-04 03:02:01', '2026-05-04', '1 day 2 hours', '\x00ff',"
            """ '{"a":  1.0}', '{"b": [1, {"c": null}]}', ARRAY['x', NULL], true"""
        )
    ((text,),) = db.execute_sql("SELECT data::text FROM hookjetty.events").fetchall()
    assert text == (
        '{"tenant_id":7,"n":12345678901234567890.1200,"big":9007199254740993,"f":0.1,'
        '"at":"2026-05-04T03:02:01.5+00:00","wall":"2026-05-04T03:02:01","day":"2026-05-04",'
        r'"i":"P1DT2H","b":"\\x00ff","j":{"a":  1.0},"jb":{"b": [1, {"c": null}]},'
        '"t":["x",null],"yes":true}'
    )


def test_numbers_that_json_lacks_are_text():
    table("n numeric, f double precision")
    trigger()
    insert("7, 'NaN', '-Infinity'")
    assert published()[0][2] == {"tenant_id": 7, "n": "NaN", "f": "-Infinity"}


def test_generated_columns_and_names_that_need_quotes():
    db.execute_sql(
        'CREATE SCHEMA "my app"; CREATE TABLE "my app"."My Exports" ("tenant ""id""" bigint,'
        ' "größe" integer, doubled integer GENERATED ALWAYS AS ("größe" * 2) STORED)'
    )
    trigger("'export.done', 'tenant \"id\"'", on='"my app"."My Exports"')
    insert("7, 4", '"my app"."My Exports"')
    assert published()[0][2] == {'tenant "id"': 7, "größe": 4, "doubled": 8}
    error = refused('INSERT INTO "my app"."My Exports" VALUES (NULL, 1)')
    assert said(error) == (
        'publish_row on "my app"."My Exports": the column tenant "id" names no tenant: it is null'
    )


def test_columns_that_are_computed_when_read():
    if db.server_version < 180000:
        pytest.skip("PostgreSQL has them from 18 on")
    table("n integer, doubled integer GENERATED ALWAYS AS (n * 2) VIRTUAL")
    trigger()
    assert said(refused("INSERT INTO exports VALUES (7, 4)")) == (
        "publish_row on public.exports: the column doubled is computed when it is read; make it"
        " STORED"
    )


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("bigint", "7", ["0", "-7", "9007199254740992", "NULL"]),
        ("text", "'7'", ["'x'", "''", "'007'", "' 7'", "'7.0'", "'9' || repeat('9', 99)"]),
        ("numeric", "7", ["7.5", "'NaN'"]),
    ],
)
def test_the_tenant_is_an_integer_in_whatever_type(kind, good, bad):
    db.execute_sql(f"CREATE TABLE exports (tenant_id {kind})")
    trigger()
    insert(good)
    for value in bad:
        error = refused(f"INSERT INTO exports VALUES ({value})")
        assert error.pgcode == "22023"
        assert "tenant" in said(error)
    assert [tenant_id for tenant_id, _, _ in published()] == [7]


@pytest.mark.parametrize(
    ("options", "work", "code"),
    [
        ({"when": "BEFORE INSERT"}, "INSERT INTO exports VALUES (7)", "39P01"),
        ({"how": "FOR EACH STATEMENT"}, "INSERT INTO exports VALUES (7)", "39P01"),
        ({"when": "AFTER DELETE"}, "DELETE FROM exports", "39P01"),
        ({"when": "AFTER TRUNCATE", "how": ""}, "TRUNCATE exports", "39P01"),
        ({"arguments": "'export.done'"}, "INSERT INTO exports VALUES (7)", "39P01"),
        ({"arguments": ""}, "INSERT INTO exports VALUES (7)", "39P01"),
        ({"arguments": "'x', 'tenant_id', 'n', 'n'"}, "INSERT INTO exports VALUES (7)", "39P01"),
        ({"arguments": "'x', 'tenant'"}, "INSERT INTO exports VALUES (7)", "42703"),
        ({"arguments": "'x', 'tenant_id', 'id'"}, "INSERT INTO exports VALUES (7)", "42703"),
        ({"arguments": "'a b', 'tenant_id'"}, "INSERT INTO exports VALUES (7)", "22023"),
        ({"arguments": "'hookjetty.x', 'tenant_id'"}, "INSERT INTO exports VALUES (7)", "22023"),
        ({}, "INSERT INTO exports VALUES (7, repeat('x', 262144))", "22023"),
    ],
)
def test_what_cannot_be_published_is_an_error_and_no_row(options, work, code):
    table("n text")
    insert("8, NULL")
    trigger(**options)
    error = refused(work)
    assert error.pgcode == code
    assert "publish_row" in said(error) or "type: " in said(error)
    rows = db.execute_sql("SELECT tenant_id FROM exports").fetchall()
    assert (rows, published()) == ([(8,)], [])


def test_a_row_that_is_too_long_says_how_long():
    table("n text")
    trigger()
    error = refused("INSERT INTO exports VALUES (7, repeat('x', 262144))")
    assert said(error) == (
        "publish_row on public.exports: the row is longer than 256 KiB as JSON (262166 bytes)"
    )


def test_many_rows_by_copy():
    make_endpoint()
    table("id bigint")
    trigger()
    db.copy("COPY exports FROM STDIN", "".join(f"7\t{n}\n" for n in range(2000)))
    assert [data["id"] for _, _, data in published()] == list(range(2000))
    (tasks,) = db.execute_sql("SELECT count(*) FROM hookjetty.tasks").fetchone()
    assert tasks == 2000


def test_a_partitioned_table_and_a_deferred_trigger():
    db.execute_sql(
        "CREATE TABLE exports (tenant_id bigint, id bigint) PARTITION BY RANGE (id);"
        " CREATE TABLE exports_1 PARTITION OF exports FOR VALUES FROM (0) TO (9);"
        " CREATE TABLE imports (tenant_id bigint);"
        " CREATE CONSTRAINT TRIGGER hook AFTER INSERT ON imports DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION hookjetty.publish_row('import.done', 'tenant_id')"
    )
    trigger()
    with db.atomic():
        insert("8", "imports")
        insert("7, 1")
    assert [type_ for _, type_, _ in published()] == ["export.done", "import.done"]


# -------------------------------------------------------------------------------------- rights


@pytest.fixture
def roles(database: str) -> Iterator[tuple[str, str]]:
    """A role that makes the trigger and may publish, and one that writes rows and may nothing."""
    suffix = database.partition("hookjetty_test_")[2].partition("?")[0]
    maker, writer = f"maker_{suffix}", f"writer_{suffix}"
    db.execute_sql(
        f"CREATE ROLE {maker} IN ROLE hookjetty_publisher; CREATE ROLE {writer};"
        f" GRANT CREATE ON SCHEMA public TO {maker}"
    )
    yield maker, writer
    db.execute_sql(
        f"RESET ROLE; DROP OWNED BY {maker}, {writer} CASCADE; DROP ROLE {maker}, {writer}"
    )


def test_who_writes_the_rows_needs_the_right_to_publish(roles):
    maker, writer = roles
    db.execute_sql(f"SET ROLE {maker}")
    table("id bigint")
    trigger()
    insert("7, 1")
    db.execute_sql(f"GRANT INSERT ON exports TO {writer}; SET ROLE {writer}")
    assert refused("INSERT INTO exports VALUES (7, 2)").pgcode == "42501"
    db.execute_sql("RESET ROLE")
    assert [data["id"] for _, _, data in published()] == [1]


def test_a_trigger_takes_the_right_to_publish(roles):
    _, writer = roles
    db.execute_sql(f"GRANT CREATE ON SCHEMA public TO {writer}; SET ROLE {writer}")
    table("id bigint")
    error = refused(
        "CREATE TRIGGER hook AFTER INSERT ON exports FOR EACH ROW"
        " EXECUTE FUNCTION hookjetty.publish_row('x', 'tenant_id')"
    )
    assert error.pgcode == "42501"


def test_nothing_of_the_tables_owner_runs_with_our_rights(roles):
    """Neither a cast to json, which converting the row calls, nor what shadows a function."""
    maker, _ = roles
    db.execute_sql(
        f"SET ROLE {maker};"
        " CREATE TYPE pair AS (x integer); CREATE TYPE mood AS ENUM ('good');"
        " CREATE FUNCTION who(mood) RETURNS json LANGUAGE sql AS"
        " $$ SELECT to_json(current_user) $$;"
        " CREATE FUNCTION row_to_json(record) RETURNS json LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN '7'::json; END $$;"
        " CREATE CAST (mood AS json) WITH FUNCTION who(mood);"
        " SET search_path = public, pg_catalog"
    )
    table("m mood, p pair")
    trigger()
    insert("7, 'good', ROW(1)")
    db.execute_sql("RESET ROLE; SET search_path = public")
    assert published()[0][2] == {"tenant_id": 7, "m": maker, "p": {"x": 1}}


def test_it_can_only_be_a_trigger(database):
    with pytest.raises(psycopg2.errors.FeatureNotSupported):
        execute(database, "SELECT hookjetty.publish_row()")
