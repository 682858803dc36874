"""What operators ask: /healthz, /readyz, /metrics, and whether the application starts at all."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from app import stats
from app.db import SCHEMA_VERSION, SchemaMismatch, db
from app.models import TASK_STATUSES, Endpoint
from app.settings import Settings, SettingsError, load
from app.wsgi import create_app
from tests.conftest import execute
from tests.factories import claim, make_endpoint, publish, task_rows

ROOT = Path(__file__).parent.parent


def metrics(client) -> dict[str, float]:
    """Every sample of a scrape, by its name and label."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
def away(settings: Settings, server_url: str):
    """A database that takes no connections until it is called."""
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    execute(
        server_url,
        "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = %s",
        name,
    )
    return lambda: execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


# -------------------------------------------------------------------------------- health, ready


def test_healthz_is_200_while_the_process_lives(client):
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_readyz_is_200_when_requests_can_be_answered(client):
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json == {"status": "ready", "schema_version": SCHEMA_VERSION}


def test_readyz_is_503_without_the_database_and_healthz_is_not(client, away):
    for path, status in (("/healthz", 200), ("/readyz", 503), ("/metrics", 503), ("/readyz", 503)):
        started = time.monotonic()
        assert client.get(path).status_code == status
        assert time.monotonic() - started < 1
    away()
    assert client.get("/readyz").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_readyz_is_503_without_next_weeks_partitions(client):
    (name,) = db.execute_sql(
        "SELECT name FROM hookjetty.partitions WHERE parent = 'attempts'"
        " AND hookjetty.id_at(now() + interval '7 days') BETWEEN from_id AND upto_id - 1"
    ).fetchone()
    db.execute_sql(f"DROP TABLE hookjetty.{name}")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "attempts" in answer.json["message"]
    db.execute_sql("SELECT hookjetty.make_partitions()")
    assert client.get("/readyz").status_code == 200


# ------------------------------------------------------------------------------------- starting


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["DATABASE_URL"], "HOOKJETTY_DATABASE_URL"),
        (["JWT_SECRET"], "HOOKJETTY_JWT_SECRET or HOOKJETTY_JWT_JWKS"),
        (["SECRET_KEYS"], "HOOKJETTY_SECRET_KEYS"),
    ],
)
def test_a_missing_setting_stops_the_start_by_name(environ, tmp_path, names, missing):
    for name in names:
        del environ[f"HOOKJETTY_{name}"]
    environ["HOOKJETTY_VAR"] = str(tmp_path)
    with pytest.raises(SettingsError, match=f"{missing} is not set"):
        create_app(load(environ))


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("DROP SCHEMA hookjetty CASCADE", "run `hookjetty db migrate`"),
        ("UPDATE hookjetty.schema_version SET version = 0", "run `hookjetty db migrate`"),
        ("UPDATE hookjetty.schema_version SET version = 99", "install the newer Hookjetty"),
        (
            "INSERT INTO hookjetty.secret_keys (fingerprint) VALUES ('0123456789abcdef')",
            "HOOKJETTY_SECRET_KEYS lacks a key",
        ),
    ],
)
class TestAnotherDatabase:
    def test_stops_the_start_and_says_what_to_do(self, settings, change, remedy):
        db.execute_sql(change)
        with pytest.raises(SchemaMismatch, match=re.escape(remedy)):
            create_app(settings)

    def test_that_comes_up_later_is_not_used_either(self, settings, away, change, remedy, caplog):
        """The process has started without it, so it waits for a database that it can use."""
        client = create_app(settings).test_client()
        assert client.get("/readyz").status_code == 503
        away()
        execute(settings.database_url, change)
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert remedy in answer.json["message"]
        caplog.clear()
        assert client.get("/metrics").status_code == 503
        assert remedy in caplog.text


def test_the_first_start_records_its_key(app, settings):
    rows = db.execute_sql("SELECT fingerprint FROM hookjetty.secret_keys").fetchall()
    registry = app.extensions["hookjetty"].registry
    assert [row[0] for row in rows] == list(registry.vault.fingerprints)
    create_app(settings)


def test_a_database_that_is_away_does_not_stop_the_start(settings, away, mint):
    headers = {"Authorization": f"Bearer {mint(tenant_id=7)}"}
    path = "/api/v1/data-consumption/webhooks/endpoints"
    client = create_app(settings).test_client()
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.json["error"]) == (503, "dependency_down")
    away()
    assert client.get(path, headers=headers).status_code == 200


def test_the_start_leaves_no_connection_that_a_fork_would_share(settings):
    create_app(settings)
    assert db.is_closed()


def test_each_thread_has_its_own_connection(client):
    pids: set[int] = set()
    barrier = threading.Barrier(3)

    def ask() -> None:
        assert client.application.test_client().get("/readyz").status_code == 200
        barrier.wait(10)
        pids.add(db.execute_sql("SELECT pg_backend_pid()").fetchone()[0])
        db.give_up()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 3


# -------------------------------------------------------------------------------------- metrics


def test_every_metric_is_documented_and_every_documented_one_is_there(client):
    page = (ROOT / "docs/metrics.md").read_text()
    documented = set(re.findall(r"^\| `(hookjetty_\w+)`", page, re.MULTILINE))
    families = text_string_to_metric_families(client.get("/metrics").text)
    exposed = {family.name: family.documentation for family in families}
    assert exposed == stats.GAUGES
    assert documented == set(exposed)


def test_an_empty_instance_has_nothing_but_zeros(client):
    found = metrics(client)
    assert set(found) == {
        "hookjetty_backlog",
        "hookjetty_oldest_due_seconds",
        "hookjetty_dispatchers",
        *(f"hookjetty_tasks{status}" for status in TASK_STATUSES),
    }
    assert set(found.values()) == {0.0}


def test_tasks_are_counted_by_status(client):
    make_endpoint()
    for _ in range(9):
        publish()
    ids = [row["id"] for row in task_rows()]
    db.execute_sql("UPDATE hookjetty.endpoints SET status = 'active'")
    for identifier, status, columns in (
        (ids[0], "delivered", "ready = false, next_try_at = NULL"),
        (ids[1], "delivered", "ready = false, next_try_at = NULL"),
        (ids[2], "failed", "ready = false, next_try_at = NULL, failure = 'timeout'"),
        (ids[3], "canceled", "ready = false, next_try_at = NULL"),
        (ids[4], "waiting", "ready = false, next_try_at = NULL"),
        (ids[5], "retry", "ready = false, next_try_at = now() + interval '1 h'"),
        (ids[6], "retry", "ready = true"),
    ):
        db.execute_sql(
            f"UPDATE hookjetty.tasks SET status = %s, {columns} WHERE id = %s", (status, identifier)
        )
    claim(limit=1)
    found = metrics(client)
    counts = {status: found[f"hookjetty_tasks{status}"] for status in TASK_STATUSES}
    assert sum(counts.values()) == 9
    assert counts["delivering"] == 1
    assert counts["pending"] + counts["retry"] == 3
    assert (counts["delivered"], counts["failed"], counts["canceled"], counts["waiting"]) == (
        2, 1, 1, 1
    )  # fmt: skip


def test_the_backlog_is_what_is_due_now(client):
    """Ready tasks, and those whose time has come that nobody has made ready; not those on hold."""
    due, held, late = (make_endpoint(7, f"https://app/{n}", events=[f"t{n}"]) for n in range(3))
    for _ in range(3):
        publish(type="t0")
    publish(type="t1")
    publish(type="t2")
    publish(type="t2")
    db.execute_sql(
        "UPDATE hookjetty.endpoints SET hold_until = now() + interval '1 h' WHERE id = %s", (held,)
    )
    db.execute_sql(
        "UPDATE hookjetty.tasks SET next_try_at = now() - interval '10 minutes'"
        " WHERE endpoint_id = %s",
        (due,),
    )
    db.execute_sql(
        "UPDATE hookjetty.tasks SET ready = false, status = 'retry',"
        " next_try_at = now() - interval '20 minutes'"
        " WHERE id = (SELECT min(id) FROM hookjetty.tasks WHERE endpoint_id = %s)",
        (late,),
    )
    found = metrics(client)
    assert found["hookjetty_backlog"] == 5
    assert 1200 <= found["hookjetty_oldest_due_seconds"] < 1260
    db.execute_sql("DELETE FROM hookjetty.tasks WHERE status = 'retry'")
    assert 600 <= metrics(client)["hookjetty_oldest_due_seconds"] < 660
    Endpoint.update(hold_until=None).execute()
    assert metrics(client)["hookjetty_backlog"] == 5


def test_replayed_tasks_are_part_of_the_backlog(client):
    make_endpoint()
    publish()
    db.execute_sql(
        "UPDATE hookjetty.tasks SET lane = 1, replay_id = 1, next_try_at = now() - interval '5 s'"
    )
    publish()
    found = metrics(client)
    assert found["hookjetty_backlog"] == 2
    assert found["hookjetty_oldest_due_seconds"] >= 5


def test_only_dispatchers_that_are_alive_count(client):
    db.execute_sql(
        "INSERT INTO hookjetty.dispatchers (id, host, pid, seen_at) VALUES (1, 'a', 1, now()),"
        " (2, 'a', 2, now() - interval '29 s'), (3, 'a', 3, now() - interval '31 s')"
    )
    assert metrics(client)["hookjetty_dispatchers"] == 2


def test_counting_stops_somewhere(client, monkeypatch):
    make_endpoint(7, "https://app/1")
    make_endpoint(7, "https://app/2")
    for _ in range(6):
        publish()
    monkeypatch.setattr(stats, "MOST_COUNTED", 5)
    assert metrics(client)["hookjetty_backlog"] == 5
    assert metrics(client)["hookjetty_taskspending"] == 5
    monkeypatch.setattr(stats, "MOST_COUNTED", 100)
    monkeypatch.setattr(stats, "MOST_ENDPOINTS", 1)
    assert metrics(client)["hookjetty_backlog"] == 6


def test_delivered_tasks_are_estimated_once_there_are_many(client, monkeypatch):
    make_endpoint()
    for _ in range(20):
        publish()
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'delivered', ready = false, next_try_at = NULL"
    )
    publish()
    db.execute_sql("ANALYZE hookjetty.tasks")
    assert metrics(client)["hookjetty_tasksdelivered"] == 20
    monkeypatch.setattr(stats, "FEW_TASKS", 0)
    # The planner takes each of the empty partitions to hold one row.
    (partitions,) = db.execute_sql(
        "SELECT count(*) FROM hookjetty.partitions WHERE parent = 'tasks'"
    ).fetchone()
    assert metrics(client)["hookjetty_tasksdelivered"] == 20 + partitions - 1


def test_a_scrape_has_a_deadline(client, monkeypatch):
    """Rather a gap in the graph than a database that is busy with being looked at."""
    monkeypatch.setattr(stats, "DEADLINE_SECONDS", 1)
    monkeypatch.setattr(stats, "_due", lambda: db.execute_sql("SELECT 0, pg_sleep(10)").fetchone())
    started = time.monotonic()
    answer = client.get("/metrics")
    assert time.monotonic() - started < 5
    assert answer.status_code == 503
    monkeypatch.undo()
    metrics(client)


def test_a_scrape_reads_no_table_whole_however_long_its_history(app: Flask, monkeypatch):
    """EXPLAIN of each statement, over 30,000 delivered tasks."""
    make_endpoint()
    publish()
    db.execute_sql(
        "INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready)"
        " SELECT hookjetty.new_id() + (n << 12), mod(n, 50), mod(n, 500), n,"
        " 'delivered', false FROM generate_series(1, 30000) n"
    )
    db.execute_sql("ANALYZE hookjetty.tasks")
    monkeypatch.setattr(stats, "FEW_TASKS", 0)
    plans: list[str] = []
    execute_sql = db.execute_sql

    def explaining(sql: str, params=None):
        if "hookjetty.tasks" in sql and "EXPLAIN" not in sql:
            rows = execute_sql(f"EXPLAIN (ANALYZE, COSTS off) {sql}", params).fetchall()
            plans.append("\n".join(row[0] for row in rows))
        return execute_sql(sql, params)

    monkeypatch.setattr(db, "execute_sql", explaining)
    stats.figures()
    assert len(plans) == 2
    for plan in plans:
        assert "Seq Scan on tasks" not in plan, plan
        assert not re.search(r"rows=\d{4,}", plan), plan
