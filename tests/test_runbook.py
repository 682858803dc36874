"""The queries of the runbook run as they are written, and find what they are for."""

from __future__ import annotations

import re
from contextlib import closing

import psycopg2
import pytest

from app import devdb
from tests.conftest import execute
from tests.live import ROOT

QUERIES = re.findall(
    r"^```sql\n(.*?)^```", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.fixture
def holders():
    (query,) = (query for query in QUERIES if "pg_prepared_xacts" in query)
    return query


def test_every_query_runs(database):
    assert len(QUERIES) == 2
    for query in QUERIES:
        execute(database, query)


@pytest.mark.parametrize(
    ("isolation", "statement"),
    [
        ("REPEATABLE READ", "SELECT count(*) FROM hookjetty.tasks"),
        ("READ COMMITTED", "INSERT INTO hookjetty.tenants (id) VALUES (1)"),
    ],
    ids=["a snapshot", "a transaction that wrote"],
)
def test_a_session_that_holds_an_old_snapshot_is_shown(database, holders, isolation, statement):
    with closing(psycopg2.connect(database, application_name="a report")) as session:
        session.set_session(isolation_level=isolation)
        session.cursor().execute(statement)
        process = session.info.backend_pid
        for tenant in range(2, 12):
            execute(database, f"INSERT INTO hookjetty.tenants (id) VALUES ({tenant})")
        found = [row for row in execute(database, holders) if row[4] == "a report"]
    ((holder, name, _, _, _, transactions, _, state, query),) = found
    assert (holder, name) == ("session", str(process))
    assert transactions >= 10
    assert (state, query) == ("idle in transaction", statement)


def test_a_prepared_transaction_is_shown_and_a_slot_that_holds_nothing_is_not(tmp_path, holders):
    """On a server of its own: neither is possible on the one of the other tests."""
    settings = {"fsync": "off", "max_prepared_transactions": "1", "wal_level": "replica"}
    with devdb.start(tmp_path / "pg", settings=settings, temporary=True) as server:
        with closing(psycopg2.connect(server.url)) as session:
            session.cursor().execute("CREATE TABLE a (); PREPARE TRANSACTION 'forgotten'")
            session.rollback()
        execute(server.url, "SELECT pg_create_physical_replication_slot('standby', true)")
        found = {row[0]: row[1] for row in execute(server.url, holders)}
        assert found["prepared transaction"] == "forgotten"
        # No standby has said yet, through it, what it looks at.
        assert "replication slot" not in found
        execute(server.url, "ROLLBACK PREPARED 'forgotten'")
