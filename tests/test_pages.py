"""Lists cost the same however long the history is, and their pages fit together."""

from __future__ import annotations

import re

import pytest

from app import tasks
from app.db import db
from app.endpoints import page_of_endpoints
from app.errors import Error
from app.models import TASK_STATUSES, Endpoint, id_at, id_time
from app.tasks import page_of_tasks
from tests.factories import make_endpoint, publish, task_rows


@pytest.fixture
def history(database: str) -> None:
    """Tenant 7 with 30,000 delivered tasks of 3 endpoints, among them 20 of every other status."""
    for number in range(3):
        make_endpoint(7, f"https://app/{number}")
    publish()
    (now,) = db.execute_sql("SELECT hookjetty.id_at(now() - interval '1 min')").fetchone()
    db.execute_sql(
        "INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready)"
        " SELECT %s + n, 7, 1 + mod(n, 3), n, 'delivered', false FROM generate_series(1, 30000) n",
        (now,),
    )
    for status in TASK_STATUSES:
        is_open = status in ("pending", "delivering", "retry")
        db.execute_sql(
            "INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready,"
            " next_try_at, attempt_id, failure)"
            " SELECT hookjetty.new_id() + (1000 + n << 12), 7, 1, n, %s, %s, %s, 1, %s"
            " FROM generate_series(1, 20) n",
            (
                status,
                status == "pending",
                "2026-01-01" if is_open else None,
                "dns" if status == "failed" else None,
            ),
        )
    db.execute_sql(
        "INSERT INTO hookjetty.leases SELECT 1, now(), array_agg(id) FROM hookjetty.tasks"
        " WHERE status = 'delivering'"
    )
    db.execute_sql("ANALYZE hookjetty.tasks")


@pytest.mark.usefixtures("history")
def test_no_list_of_tasks_reads_the_history(monkeypatch):
    """EXPLAIN ANALYZE of each query: how many rows are read to find a page of 50."""
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", 500)
    plans: list[str] = []
    execute_sql = db.execute_sql

    def explaining(sql: str, params=None):
        if "hookjetty.tasks" in sql or 'FROM "hookjetty"."tasks"' in sql:
            rows = execute_sql(f"EXPLAIN (ANALYZE, TIMING off) {sql}", params).fetchall()
            plans.append("\n".join(row[0] for row in rows))
        return execute_sql(sql, params)

    monkeypatch.setattr(db, "execute_sql", explaining)
    for status in (None, *TASK_STATUSES):
        for endpoint_id in (None, 1):
            found = page_of_tasks(7, limit=50, status=status, endpoint_id=endpoint_id)
            assert len(found.items) >= 20
            assert {task.status for task in found.items} == {status} or status is None
    # Nothing is found, and not all of the history is looked at for that in one request.
    for narrowed in (
        {"type": "import.*"},
        {"code_class": "5xx"},
        {"failure": "tls"},
        {"failure": "tls", "endpoint_id": 2},
        {"status": "delivered", "type": "import.done"},
    ):
        assert page_of_tasks(7, limit=50, **narrowed).items == []
    assert len(plans) >= 32  # to find them, and to show them
    for plan in plans:
        read = [int(number) for number in re.findall(r"actual rows=(\d+)", plan)]
        removed = [int(number) for number in re.findall(r"Rows Removed by \w+: (\d+)", plan)]
        assert max([*read, *removed]) < 1000, plan


@pytest.mark.usefixtures("database")
def test_a_page_says_whether_there_is_another():
    for number in range(4):
        make_endpoint(7, f"https://app/{number}")
    for limit, pages in ((1, 4), (2, 2), (3, 2), (4, 1), (5, 1)):
        cursor, seen = None, []
        for _ in range(pages):
            found = page_of_endpoints(7, limit=limit, cursor=cursor)
            seen += [endpoint.id for endpoint in found.items]
            cursor = found.next_cursor
        assert (seen, cursor) == ([1, 2, 3, 4], None)


@pytest.mark.usefixtures("database")
def test_what_comes_or_goes_between_two_pages_moves_nothing():
    for number in range(4):
        make_endpoint(7, f"https://app/{number}")
    first = page_of_endpoints(7, limit=2)
    Endpoint.update(status="deleted").where(Endpoint.id.in_([1, 2])).execute()
    make_endpoint(7, "https://app/new")
    rest = page_of_endpoints(7, limit=9, cursor=first.next_cursor)
    assert [endpoint.id for endpoint in rest.items] == [3, 4, 5]


@pytest.mark.usefixtures("database")
def test_a_cursor_belongs_to_one_list_of_one_tenant():
    make_endpoint(7)
    for _ in range(3):
        publish()
    cursor = page_of_tasks(7, limit=1).next_cursor
    assert len(page_of_tasks(7, limit=9, cursor=cursor).items) == 2
    for tenant_id, narrowed in ((8, {}), (7, {"status": "pending"}), (7, {"endpoint_id": 1})):
        with pytest.raises(Error, match="cursor"):
            page_of_tasks(tenant_id, limit=1, cursor=cursor, **narrowed)
    with pytest.raises(Error, match="cursor"):
        page_of_endpoints(7, limit=1, cursor=cursor)


@pytest.mark.usefixtures("database")
def test_a_status_is_asked_for_as_it_is_shown():
    """Whatever a job has moved already, or not yet."""
    for status in ("active", "paused", "deleted"):
        make_endpoint(7, f"https://app/{status}")
    publish()
    Endpoint.update(status="paused", settling=True).where(Endpoint.id == 2).execute()
    Endpoint.update(status="deleted", settling=True).where(Endpoint.id == 3).execute()
    shown = {"pending": [1], "waiting": [2], "canceled": [3], "retry": [], "failed": []}
    for settled in (False, True):
        for status, endpoints in shown.items():
            items = page_of_tasks(7, limit=9, status=status).items
            assert [(task.endpoint_id, task.status) for task in items] == [
                (endpoint, status) for endpoint in endpoints
            ], (settled, status)
        db.execute_sql(
            "UPDATE hookjetty.tasks SET ready = false, next_try_at = NULL,"
            " status = CASE endpoint_id WHEN 2 THEN 'waiting' ELSE 'canceled' END"
            " WHERE endpoint_id > 1"
        )
        Endpoint.update(settling=False).execute()


@pytest.mark.usefixtures("database")
def test_ids_and_times_agree_with_the_database():
    make_endpoint(7)
    publish()
    (task,) = task_rows()
    (moment,) = db.execute_sql("SELECT hookjetty.id_time(%s)", (task["id"],)).fetchone()
    assert id_time(task["id"]) == moment
    assert id_at(moment) == task["id"] >> 12 << 12
