"""``hookjetty db migrate`` on a database of an older version.

The first part upgrades loaded databases of each version there ever was, by the command itself. The
second tries the machinery with a next version that is made up: today's schema and a bit more.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import requests

from app import db as database
from app.db import db
from hookjetty.verify import verify
from tests import version_1
from tests.acceptance.receiver import RecordingReceiver
from tests.catalogue import catalogue, with_partitions_of
from tests.conftest import TENANT_PREFIX, execute, new_database
from tests.dispatching import SECRET, SECRET_KEY
from tests.factories import make_endpoint
from tests.live import ROOT, LiveService, wait_until

SCHEMAS = Path(__file__).with_name("schemas")

# What loads a database of that version with rows as they are found in the field.
LOADERS = {1: version_1.load}
OLDER = [version for version in sorted(LOADERS) if version < database.SCHEMA_VERSION]


def test_every_version_since_the_first_has_its_step_its_schema_and_its_rows():
    steps = sorted(path.name for path in (ROOT / "migrations").glob("*.sql"))
    assert steps == [f"{version:04}.sql" for version in range(2, database.SCHEMA_VERSION + 1)]
    assert list(range(1, database.SCHEMA_VERSION)) == OLDER
    assert all((SCHEMAS / f"{version}.sql").exists() for version in OLDER)


def test_the_schema_names_the_version_that_the_program_needs(server_url):
    with fresh(server_url) as url:
        assert execute(url, "SELECT version FROM hookjetty.schema_version") == [
            (database.SCHEMA_VERSION,)
        ]


@pytest.mark.parametrize("step", sorted((ROOT / "migrations").glob("*.sql")), ids=str)
def test_a_step_leaves_the_transaction_to_migrate(step):
    words = re.findall(r"^\s*(\w+)", step.read_text(), re.MULTILINE)
    assert not {word.upper() for word in words} & {"COMMIT", "ROLLBACK", "ABORT"}
    assert "CONCURRENTLY" not in step.read_text().upper()


# ------------------------------------------------------------------------------- older versions


@pytest.fixture(params=OLDER)
def old(
    request: pytest.FixtureRequest, server_url: str, receiver: RecordingReceiver
) -> Iterator[str]:
    """A loaded database of an older version."""
    with new_database(server_url) as url:
        execute(url, (SCHEMAS / f"{request.param}.sql").read_text())
        LOADERS[request.param](url, receiver)
        yield url


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running


def hookjetty(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as an operator gives it."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith("HOOKJETTY_")}
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env=plain | {"HOOKJETTY_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def upgrade(url: str) -> None:
    done = hookjetty(url, "db", "migrate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"schema version {database.SCHEMA_VERSION} applied\n"


@contextmanager
def fresh(server_url: str) -> Iterator[str]:
    """A database of today's schema."""
    with new_database(server_url) as url:
        execute(url, database.schema_sql())
        yield url


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, but what a migration itself writes."""
    tables = execute(
        url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'hookjetty'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> 'schema_version'",
    )
    return {
        table: sorted(
            (row for (row,) in execute(url, f"SELECT row_to_json(t) FROM hookjetty.{table} t")),
            key=json.dumps,
        )
        for (table,) in tables
    }


def test_an_upgraded_database_has_the_schema_of_a_fresh_one(server_url, old):
    upgrade(old)
    with fresh(server_url) as url:
        assert catalogue(old) == catalogue(with_partitions_of(url, old))


def test_an_upgraded_database_has_all_of_its_rows(old):
    before = rows_of(old)
    texts = execute(old, "SELECT id, data::text FROM hookjetty.events ORDER BY id")
    assert [table for table, rows in before.items() if not rows] == []  # nothing is left untried
    upgrade(old)
    after = rows_of(old)
    for table, rows in before.items():
        kept = [{name: row[name] for name in rows[0] if name in row} for row in after[table]]
        here = [{name: row[name] for name in kept[0]} for row in rows]
        assert sorted(kept, key=json.dumps) == sorted(here, key=json.dumps), table
    assert execute(old, "SELECT id, data::text FROM hookjetty.events ORDER BY id") == texts


def test_what_was_open_in_an_upgraded_database_is_delivered(old, receiver):
    upgrade(old)
    deliver_what_is_open(old, receiver)


def deliver_what_is_open(url: str, receiver: RecordingReceiver) -> None:
    """Today's API and dispatcher do for old rows what they would do for their own."""
    open_at_first = execute(url, version_1.DELIVERABLE)
    assert len(open_at_first) > 10
    waiting = execute(url, version_1.OTHERS)
    assert waiting
    with LiveService(url, SECRET_KEYS=SECRET_KEY, RATE_LIMIT="10000") as live:
        wait_until(lambda: not execute(url, version_1.DELIVERABLE), 30)
        wait_until(
            lambda: not execute(url, "SELECT 1 FROM hookjetty.replays WHERE status='running'")
        )
        admin = {"Authorization": f"Bearer {live.admin_token}"}
        tenant = {"Authorization": f"Bearer {live.tenant_token(7)}"}
        listed = requests.get(
            f"{live.url}/api/webhooks/tasks?tenant_id=7&limit=200", headers=admin, timeout=10
        ).json()
        shown = requests.get(
            f"{live.url}{TENANT_PREFIX}/endpoints", headers=tenant, timeout=10
        ).json()
        repeated = requests.post(
            f"{live.url}{TENANT_PREFIX}/events",
            data=version_1.REMEMBERED_BODY,
            headers=tenant | {"X-Request-Id": "remembered", "Content-Type": "application/json"},
            timeout=10,
        )
    assert listed["code"] == 0
    assert len(listed["data"]) > 10
    statuses = Counter(item["status"] for item in shown["items"])
    assert statuses == {"active": 4, "paused": 1, "disabled": 1}  # the pending one has consented
    assert repeated.text == version_1.REMEMBERED_ANSWER
    assert repeated.headers["Idempotent-Replayed"] == "true"
    # Every task has an attempt that succeeded, and the receiver saw each event as it was stored.
    assert set(open_at_first) <= set(
        execute(url, "SELECT id FROM hookjetty.tasks WHERE status = 'delivered'")
    )
    bodies = {
        request.event: verify(request.body, request.headers, [SECRET]) for request in receiver.seen
    }
    events = execute(
        url,
        "SELECT id, type, data FROM hookjetty.events"
        " WHERE id IN (SELECT event_id FROM hookjetty.tasks WHERE id = ANY (%s))",
        [task for (task,) in open_at_first],
    )
    for event, kind, data in events:
        assert (bodies[f"evt_{event}"]["type"], bodies[f"evt_{event}"]["data"]) == (kind, data)
    assert execute(url, version_1.OTHERS) == waiting


def test_migrating_an_upgraded_database_again_changes_nothing(old):
    upgrade(old)
    before = catalogue(old), rows_of(old)
    again = hookjetty(old, "db", "migrate")
    assert again.stdout == f"schema version {database.SCHEMA_VERSION} was there already\n"
    assert (catalogue(old), rows_of(old)) == before


# ---------------------------------------------------------------------------- a made-up version

NOW = database.SCHEMA_VERSION
NEXT = NOW + 1

# What today's version has beside schema.sql, and what the next one makes of it.
TODAY = """
CREATE TABLE hookjetty.notes (
    id bigint PRIMARY KEY, kind text CHECK (kind IN ('a', 'b')), old text);
CREATE INDEX notes_by_kind ON hookjetty.notes (kind);
CREATE INDEX attempts_by_address ON hookjetty.attempts (address);
CREATE FUNCTION hookjetty.note(bigint) RETURNS text LANGUAGE sql
    AS 'SELECT kind FROM hookjetty.notes WHERE id = $1';
CREATE FUNCTION hookjetty.two() RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE VIEW hookjetty.noted AS SELECT id, kind FROM hookjetty.notes;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA hookjetty FROM PUBLIC;
"""
TOMORROW = """
CREATE TABLE IF NOT EXISTS hookjetty.notes (
    id bigint PRIMARY KEY,
    length integer NOT NULL DEFAULT 0,
    kind text CHECK (kind IN ('a', 'b', 'c'))
) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS notes_by_kind ON hookjetty.notes (kind, length);
CREATE INDEX IF NOT EXISTS attempts_by_address ON hookjetty.attempts (address, id);
CREATE OR REPLACE FUNCTION hookjetty.note(bigint) RETURNS integer LANGUAGE sql
    AS 'SELECT length FROM hookjetty.notes WHERE id = $1';
CREATE OR REPLACE FUNCTION hookjetty.two() RETURNS integer LANGUAGE sql AS 'SELECT 2';
CREATE OR REPLACE VIEW hookjetty.noted AS SELECT id, length, kind FROM hookjetty.notes;
CREATE TABLE IF NOT EXISTS hookjetty.new_things (id bigint PRIMARY KEY);
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA hookjetty FROM PUBLIC;
"""
STEP = (
    "ALTER TABLE hookjetty.notes ADD COLUMN length integer NOT NULL DEFAULT 0;",
    "ALTER TABLE hookjetty.notes SET (fillfactor = 80);",
    "ALTER TABLE hookjetty.notes DROP COLUMN old;",
    "ALTER TABLE hookjetty.notes DROP CONSTRAINT notes_kind_check;",
    "ALTER TABLE hookjetty.notes ADD CONSTRAINT notes_kind_check CHECK (kind IN ('a', 'b', 'c'));",
    "DROP INDEX hookjetty.notes_by_kind;",
    "DROP INDEX hookjetty.attempts_by_address;",
    "DROP FUNCTION hookjetty.note(bigint);",
    "DROP VIEW hookjetty.noted;",
)
MARK = "INSERT INTO hookjetty.notes (id, kind) SELECT count(*) + 1, 'a' FROM hookjetty.notes;"


@pytest.fixture
def today(server_url: str) -> Iterator[str]:
    """A database of today's version, and ``db`` connected to it."""
    with new_database(server_url) as url:
        execute(url, database.schema_sql())
        execute(url, "SELECT hookjetty.make_partitions(now() - interval '3 weeks', 3)")
        execute(url, TODAY)
        database.open_database(url)
        db.ready()
        yield url
        db.give_up()


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this program the next version: ``release(step, …)``."""
    schema = database.schema_sql()
    (tmp_path / "migrations").mkdir()

    def release(*steps: str, schema_sql: str = TOMORROW) -> None:
        for version, step in enumerate(steps, start=NEXT):
            (tmp_path / f"migrations/{version:04}.sql").write_text(step)
        needed = NOW + len(steps)
        whole, changed = re.subn(
            rf"^SELECT {NOW} WHERE", f"SELECT {needed} WHERE", schema, flags=re.MULTILINE
        )
        assert changed == 1
        (tmp_path / "schema.sql").write_text(whole + schema_sql)
        monkeypatch.setattr(database, "SCHEMA_VERSION", needed)
        monkeypatch.setattr(database, "FOLDER", tmp_path)

    return release


def difference_to_a_fresh_one(server_url: str, url: str) -> set[str]:
    """The names of what is not as in a database that began with the present schema."""
    with fresh(server_url) as other:
        here, there = catalogue(url), catalogue(with_partitions_of(other, url))
    return {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}


def versions(url: str) -> list[int]:
    rows = execute(url, "SELECT version FROM hookjetty.schema_version ORDER BY version")
    return [version for (version,) in rows]


def test_a_step_and_the_schema_again_give_what_a_fresh_database_has(server_url, today, release):
    release("".join(STEP))
    assert len(difference_to_a_fresh_one(server_url, today)) > len(STEP)
    assert database.migrate() is True
    assert difference_to_a_fresh_one(server_url, today) == set()
    assert versions(today) == [NOW, NEXT]
    database.check_schema()


@pytest.mark.parametrize("left_out", STEP, ids=range(len(STEP)))
def test_what_a_step_forgets_is_noticed(server_url, today, release, left_out):
    release("".join(line for line in STEP if line != left_out))
    try:
        database.migrate()
    except database.SchemaMismatch:
        return  # schema.sql could not do without it
    assert difference_to_a_fresh_one(server_url, today)


def test_several_steps_are_done_in_their_order_and_once(today, release):
    release("".join(STEP) + MARK, "UPDATE hookjetty.notes SET length = id + 41;")
    assert database.migrate() is True
    assert database.migrate() is False
    assert execute(today, "SELECT id, length FROM hookjetty.notes") == [(1, 42)]
    assert versions(today) == [NOW, NEXT, NEXT + 1]


def test_of_many_that_migrate_at_once_one_does_it_and_the_others_wait(today, release):
    release("".join(STEP) + MARK + "SELECT pg_sleep(0.5);")
    done: list[bool] = []

    def migrate() -> None:
        db.ready()
        done.append(database.migrate())
        db.close()

    threads = [threading.Thread(target=migrate) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, False, False, False, True]
    assert execute(today, "SELECT count(*) FROM hookjetty.notes") == [(1,)]


@pytest.mark.parametrize(
    ("steps", "schema_sql", "name", "reason"),
    [
        ([f"{MARK} SELECT 1/0;"], "", f"{NEXT:04}.sql", "division by zero"),
        (["".join(STEP), "ALTER TABLE x ADD y int;"], "", f"{NEXT + 1:04}.sql", '"x" does not'),
        ([MARK], TOMORROW, "schema.sql", '"length" does not exist'),
    ],
    ids=["the step", "the second step", "the schema"],
)
def test_one_that_fails_is_named_and_leaves_the_version_before(
    today, release, steps, schema_sql, name, reason
):
    before = catalogue(today), rows_of(today)
    release(*steps, schema_sql=schema_sql)
    with pytest.raises(database.SchemaMismatch) as caught:
        database.migrate()
    assert f"{name} failed, so the schema is as it was, at version {NOW}: " in str(caught.value)
    assert reason in str(caught.value)
    assert (catalogue(today), rows_of(today)) == before
    assert versions(today) == [NOW]
    # The next try is free to do better.
    release("".join(STEP))
    assert database.migrate() is True


def test_a_database_is_not_changed_under_a_dispatcher(today, release):
    release("".join(STEP))
    dispatcher = psycopg2.connect(today, application_name="hookjetty dispatcher")
    with pytest.raises(database.SchemaMismatch, match="stop all API and dispatcher processes"):
        database.migrate()
    assert versions(today) == [NOW]
    dispatcher.close()
    wait_until(
        lambda: (
            not execute(
                today,
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'hookjetty dispatcher'"
                " AND datname = current_database()",
            )
        )
    )
    assert database.migrate() is True


PUBLISH = "SELECT * FROM hookjetty.publish_event(%s, 'export.done', '{}')"


@pytest.mark.parametrize("pause_seconds", [0, 1.2])
def test_a_deadlock_with_a_transaction_that_publishes_never_makes_that_one_fail(
    today, release, pause_seconds
):
    """Its second publish wakes a dispatcher, so it wants one more table, which is locked by then.

    PostgreSQL looks for deadlocks when somebody has waited for a second.
    """
    release("".join(STEP))
    make_endpoint(8)
    producer = psycopg2.connect(today)
    cursor = producer.cursor()
    cursor.execute(PUBLISH, (7,))
    done: list[bool] = []

    def migrate() -> None:
        db.ready()
        done.append(database.migrate())
        db.close()

    migration = threading.Thread(target=migrate)
    migration.start()
    wait_until(lambda: execute(today, "SELECT 1 FROM pg_locks WHERE NOT granted"))
    time.sleep(pause_seconds)
    started = time.monotonic()
    cursor.execute(PUBLISH, (8,))
    assert time.monotonic() - started > 0.1  # it did wait
    producer.commit()
    cursor.execute(PUBLISH, (8,))
    producer.commit()
    producer.close()
    migration.join()
    assert done == [True]
    assert execute(today, "SELECT count(*) FROM hookjetty.events") == [(3,)]


def test_a_transaction_that_stays_open_is_named(today, release, monkeypatch):
    monkeypatch.setattr(database, "LOCK_TRIES", 2)
    release("".join(STEP))
    producer = psycopg2.connect(today)
    producer.cursor().execute(PUBLISH, (7,))
    with pytest.raises(database.SchemaMismatch) as caught:
        database.migrate()
    assert f"PostgreSQL's processes {producer.info.backend_pid})" in str(caught.value)
    assert f"at version {NOW}" in str(caught.value)
    producer.close()
    assert database.migrate() is True
