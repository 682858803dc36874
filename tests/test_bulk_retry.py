"""Retrying what a filter finds: counted first, then done by a job that survives everything."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from app import bulk_retries
from app.db import db
from app.models import BulkRetry, id_at, rfc3339
from app.tasks import TaskFilter
from dispatcher import holds, jobs
from tests.dispatching import is_waiting_for_a_lock, wait_until
from tests.factories import claim, make_endpoint, make_task, publish, rows, task_rows
from tests.test_tenant_api import answered, invalid, refusal

pytestmark = pytest.mark.usefixtures("database")

SINCE = "2025-10-05T06:00:00Z"


@pytest.fixture
def event(database: str) -> int:
    """An event of a minute ago that nobody was there for when it was published."""
    event, _ = publish(7)
    return db.execute_sql(
        "UPDATE hookjetty.events SET id = id - (60000::bigint << 12) WHERE id = %s RETURNING id",
        (event,),
    ).fetchone()[0]


def fail(endpoint: int, event: int, number: int = 1, **columns) -> list[int]:
    """Failed tasks of this minute, the oldest first."""
    return [
        make_task(
            endpoint, event, age=f"{number - n} s",
            **{"status": "failed", "step": 9, "tries": 10} | columns,
        )
        for n in range(number)
    ]  # fmt: skip


def start(owner, **filter_) -> str:
    return answered(owner.post("/tasks/retry", filter_), 202)["bulk_retry_id"]


def run() -> None:
    jobs.until_done(jobs.bulk_retry_step)


def row() -> dict:
    return rows(db.execute_sql("SELECT * FROM hookjetty.bulk_retries ORDER BY id DESC"))[0]


# ------------------------------------------------------------------------------------- what it does


def test_what_failed_is_tried_again_in_the_lane_that_yields(owner, event):
    endpoint = make_endpoint(7)
    failed = fail(endpoint, event, 3)
    make_task(endpoint, event)
    bulk_retry = start(owner, status="failed")
    run()
    retried = task_rows("status = 'retry'")
    assert [task["id"] for task in retried] == failed
    for task in retried:
        assert (task["lane"], task["step"], task["tries"], task["probe"]) == (1, 0, 10, False)
        assert task["ready"] and task["replay_id"] is None
    shown = answered(owner.get(f"/bulk-retries/{bulk_retry}"))
    assert shown == {
        "bulk_retry_id": bulk_retry,
        "status": "finished",
        "filter": {"status": "failed"},
        "progress": 100.0,
        "looked_at": 3,
        "tasks": 3,
        "created_at": shown["created_at"],
        "finished_at": shown["finished_at"],
    }
    assert len(claim().tasks) == 3, "and they are sent like all others"


def test_live_tasks_go_first(owner, event):
    endpoint = make_endpoint(7)
    fail(endpoint, event, 3)
    start(owner, endpoint_id=f"ep_{endpoint}")
    run()
    publish()
    (first,) = claim(limit=1).tasks
    assert first.try_number == 1


def test_a_filter_is_that_of_the_list(owner, event):
    one, two = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
    fail(one, event, 2, failure="http_5xx")
    (wanted,) = fail(two, event, failure="http_5xx")
    fail(two, event, failure="http_4xx")
    (gone,) = fail(two, 1, failure="http_5xx")
    narrowed = {
        "endpoint_id": f"ep_{two}", "code_class": "5xx", "type": "export.*",
        "from": SINCE, "to": "2999-01-01T00:00:00Z", "event_id": f"evt_{event}",
    }  # fmt: skip
    assert answered(owner.post("/tasks/retry?dry_run=1", narrowed)) == {"tasks": 1, "capped": False}
    bulk_retry = start(owner, **narrowed)
    run()
    assert [task["id"] for task in task_rows("status = 'retry'")] == [wanted]
    assert task_rows(f"id = {gone}")[0]["status"] == "failed", "its event is gone"
    shown = answered(owner.get(f"/bulk-retries/{bulk_retry}"))["filter"]
    times = {"from": "2025-10-05T06:00:00.000Z", "to": "2999-01-01T00:00:00.000Z"}
    assert shown == narrowed | times | {"status": "failed"}


def test_canceled_tasks_are_retried_only_if_named_and_none_of_a_deleted_endpoint(owner, event):
    here, deleted = make_endpoint(7), make_endpoint(7, status="deleted")
    (failed,) = fail(here, event)
    canceled = make_task(here, event, status="canceled")
    for status in ("canceled", "failed"):
        make_task(deleted, event, status=status)
    assert owner.post("/tasks/retry?dry_run=1", {"from": SINCE}).json["tasks"] == 1
    start(owner, **{"from": SINCE})
    run()
    assert [task["id"] for task in task_rows("status = 'retry'")] == [failed]
    start(owner, status="canceled")
    run()
    assert {task["id"] for task in task_rows("status = 'retry'")} == {failed, canceled}


@pytest.mark.parametrize(
    "endpoint",
    [{"status": "paused"}, {"hold_until": "2999-01-01", "failures": 5, "failing_since": "now()"}],
)
def test_they_wait_for_an_endpoint_that_takes_none_and_are_no_probes(owner, event, endpoint):
    """A person's retry of one task passes a hold; thousands of them would be a herd."""
    fail(make_endpoint(7, **endpoint), event, 3)
    start(owner, status="failed")
    run()
    for task in task_rows():
        assert (task["status"], task["ready"], task["probe"]) == ("waiting", False, False)
    assert claim().tasks == []
    db.execute_sql("UPDATE hookjetty.endpoints SET hold_until = now() WHERE hold_until IS NOT NULL")
    assert holds.end_due(60) == ("hold_until" in endpoint)
    assert len(claim().tasks) == ("hold_until" in endpoint), "one goes ahead when it is time"


def test_what_failed_after_the_request_is_not_its_own(owner, event):
    endpoint = make_endpoint(7)
    fail(endpoint, event, 2)
    start(owner, status="failed")
    make_task(endpoint, event, age="-5 s", status="failed")
    run()
    assert len(task_rows("status = 'retry'")) == 2


# ------------------------------------------------------------------------------------- count first


def test_a_dry_run_counts_and_changes_nothing_whatever_its_request_id(owner, event):
    fail(make_endpoint(7), event, 3)
    key = {"X-Request-Id": "once"}
    for flag in ("1", "true"):
        counted = owner.post(f"/tasks/retry?dry_run={flag}", {"status": "failed"}, headers=key)
        assert answered(counted) == {"tasks": 3, "capped": False}
    run()
    assert len(task_rows("status = 'failed'")) == 3
    answered(owner.post("/tasks/retry", {"status": "failed"}, headers=key), 202)
    again = owner.post("/tasks/retry", {"status": "failed"}, headers=key)
    assert answered(again, 202) and again.headers["Idempotent-Replayed"] == "true"
    assert BulkRetry.select().count() == 1


def test_a_count_is_capped_and_says_so(owner, event, monkeypatch):
    fail(make_endpoint(7), event, 5)
    monkeypatch.setattr(bulk_retries, "MOST_COUNTED", 4)
    counted = answered(owner.post("/tasks/retry?dry_run=1", {"status": "failed"}))
    assert counted == {"tasks": 4, "capped": True}


def test_what_cannot_be_asked_for_is_refused(owner, stranger):
    endpoint = f"ep_{make_endpoint(7)}"
    for dry_run in ("0", "1"):
        path = f"/tasks/retry?dry_run={dry_run}"
        assert "narrows nothing" in invalid(owner.post(path, {}))
        assert "status: must be one of" in invalid(owner.post(path, {"status": "delivered"}))
        assert "endpoint_id" in invalid(owner.post(path, {"endpoint_id": 1}))
        refusal(owner.post(path, {"endpoint_id": "ep_4711"}), 404, "not_found")
        refusal(stranger.post(path, {"endpoint_id": endpoint}), 404, "not_found")
        db.execute_sql("DELETE FROM hookjetty.rate_limits")
    assert "dry_run" in invalid(owner.post("/tasks/retry?dry_run=yes", {"status": "failed"}))
    assert "limit" in invalid(owner.post("/tasks/retry", {"limit": 7}))
    assert BulkRetry.select().count() == 0


def test_starts_are_counted_as_those_of_replays_and_counts_are_not(owner):
    for _ in range(8):
        answered(owner.post("/tasks/retry?dry_run=1", {"status": "failed"}))
    for _ in range(6):
        start(owner, status="failed")
        run()
    refused = owner.post("/tasks/retry", {"status": "failed"})
    refusal(refused, 429, "rate_limited")
    endpoint = f"ep_{make_endpoint(7)}"
    refusal(owner.post("/replay", {"endpoint_id": endpoint, "from": SINCE}), 429, "rate_limited")


# --------------------------------------------------------------------------------- one at a time


def test_one_runs_per_tenant(owner, stranger):
    first = start(owner, status="failed")
    assert "running" in refusal(
        owner.post("/tasks/retry", {"status": "canceled"}), 409, "version_conflict"
    )
    start(stranger, status="failed")
    answered(owner.post(f"/bulk-retries/{first}/cancel"))
    start(owner, status="failed")


def test_of_many_at_once_one_begins(database):
    def begin(_: int) -> bool:
        db.ready()
        try:
            bulk_retries.start(7, TaskFilter(status="failed"))
        except Exception:  # noqa: BLE001 - which one it is, others test
            return False
        finally:
            db.give_up()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(begin, range(8))).count(True) == 1


def test_it_can_be_canceled_until_it_has_finished(owner, stranger, event, monkeypatch):
    monkeypatch.setattr(jobs, "BATCH", 2)
    fail(make_endpoint(7), event, 5)
    bulk_retry = start(owner, status="failed")
    jobs.bulk_retry_step()
    refusal(stranger.post(f"/bulk-retries/{bulk_retry}/cancel"), 404, "not_found")
    for _ in range(2):
        canceled = answered(owner.post(f"/bulk-retries/{bulk_retry}/cancel"))
        assert (canceled["status"], canceled["tasks"]) == ("canceled", 2)
        assert 0 < canceled["progress"] < 100
    run()
    assert len(task_rows("status = 'retry'")) == 2
    again = start(owner, status="failed")
    run()
    refusal(owner.post(f"/bulk-retries/{again}/cancel"), 409, "version_conflict")
    assert task_rows("status = 'failed'") == []


def test_they_are_listed_newest_first(owner, stranger):
    made = []
    for _ in range(3):
        made.append(start(owner, status="failed"))
        run()
    first = owner.get("/bulk-retries?limit=2")
    rest = answered(owner.get(f"/bulk-retries?limit=2&cursor={first.json['next_cursor']}"))
    shown = [each["bulk_retry_id"] for each in first.json["items"] + rest["items"]]
    assert shown == made[::-1] and first.headers["Link"]
    assert answered(stranger.get("/bulk-retries"))["items"] == []
    refusal(stranger.get(f"/bulk-retries/{made[0]}"), 404, "not_found")
    invalid(owner.get("/bulk-retries/1"))


# ---------------------------------------------------------------------------------- the job itself


def test_it_goes_on_where_its_last_batch_was_committed(owner, event, monkeypatch):
    monkeypatch.setattr(jobs, "BATCH", 4)
    failed = fail(make_endpoint(7), event, 10)
    start(owner, status="failed")
    jobs.bulk_retry_step()
    assert (row()["tasks"], row()["looked_at"], row()["cursor_id"]) == (4, 4, failed[3])
    with db.atomic() as transaction:
        jobs.bulk_retry_step()
        transaction.rollback()
    assert row()["tasks"] == 4 and len(task_rows("status = 'retry'")) == 4
    run()  # as a dispatcher does that was started after a crash
    assert len(task_rows("status = 'retry'")) == 10
    assert (row()["tasks"], row()["status"]) == (10, "finished")


def test_what_fails_again_meanwhile_is_not_taken_twice(owner, event, monkeypatch):
    monkeypatch.setattr(jobs, "BATCH", 2)
    fail(make_endpoint(7), event, 4)
    start(owner, status="failed")
    jobs.bulk_retry_step()
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'failed', ready = false, next_try_at = NULL"
        " WHERE status = 'retry'"
    )
    run()
    assert (row()["tasks"], len(task_rows("status = 'failed'"))) == (4, 2)


def test_a_step_looks_at_a_batch_however_few_of_it_are_wanted(owner, event, monkeypatch):
    monkeypatch.setattr(jobs, "BATCH", 5)
    endpoint = make_endpoint(7)
    fail(endpoint, event, 23)
    fail(endpoint, event, failure="tls")
    start(owner, failure="tls")
    steps = 0
    while jobs.bulk_retry_step():
        steps += 1
    assert (steps, row()["looked_at"], row()["tasks"]) == (5, 24, 1)


def test_the_one_that_has_come_least_far_is_next(owner, stranger, event, monkeypatch):
    """A tenant with a million failed tasks does not keep another one waiting."""
    monkeypatch.setattr(jobs, "BATCH", 2)
    fail(make_endpoint(7), event, 9)
    other, _ = publish(8)
    fail(make_endpoint(8), other, 1, tenant_id=8)
    start(owner, status="failed")
    jobs.bulk_retry_step()
    start(stranger, status="failed")
    jobs.bulk_retry_step()
    assert len(task_rows("tenant_id = 8 AND status = 'retry'")) == 1
    assert len(task_rows("tenant_id = 7 AND status = 'retry'")) == 2


def test_another_tenants_tasks_stay_as_they_are(owner, event):
    foreign, _ = publish(8)
    fail(make_endpoint(8), foreign, tenant_id=8)
    fail(make_endpoint(7), event)
    start(owner, status="failed")
    run()
    assert [task["status"] for task in task_rows("tenant_id = 8")] == ["failed"]


def test_two_dispatchers_share_no_step(owner, event, database):
    fail(make_endpoint(7), event, 3)
    start(owner, status="failed")
    with db.atomic():
        db.execute_sql("SELECT 1 FROM hookjetty.bulk_retries FOR UPDATE")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(step_of_another_process).result() is False
    assert database and row()["status"] == "running"


def test_a_task_that_somebody_holds_locked_is_waited_for(owner, event):
    """It would be passed over for good."""
    fail(make_endpoint(7), event, 3)
    start(owner, status="failed")
    with ThreadPoolExecutor(1) as pool:
        with db.atomic():
            db.execute_sql("SELECT FROM hookjetty.tasks ORDER BY id LIMIT 1 FOR UPDATE")
            step = pool.submit(step_of_another_process)
            wait_until(is_waiting_for_a_lock)
        assert step.result() is True
    assert row()["tasks"] == 3


def step_of_another_process() -> bool:
    db.ready()
    try:
        return jobs.bulk_retry_step()
    finally:
        db.give_up()


def test_they_are_forgotten_with_the_weeks_of_their_tasks(owner):
    start(owner, status="failed")
    run()
    start(owner, status="failed")
    run()
    db.execute_sql(
        "UPDATE hookjetty.bulk_retries SET finished_at = now() - interval '38 days' WHERE id = 1"
    )
    jobs.until_done(lambda: jobs.prune_step(30, 365))
    assert [each.id for each in BulkRetry.select()] == [2]


def test_no_step_reads_the_history(owner, event, monkeypatch):
    """EXPLAIN ANALYZE of what a step asks for, among 20,000 tasks that are done."""
    endpoint = make_endpoint(7)
    db.execute_sql(
        "INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready)"
        " SELECT hookjetty.id_at(now() - interval '50 s') + n, 7, %s, 1, 'delivered', false"
        " FROM generate_series(1, 20000) n",
        (endpoint,),
    )
    fail(endpoint, event, 20)
    db.execute_sql("ANALYZE hookjetty.tasks")
    start(owner, type="export.*")
    plans: list[str] = []
    execute_sql = db.execute_sql

    def explaining(sql: str, params=None):
        if "hookjetty.tasks" in sql and sql.strip().startswith(("SELECT", "WITH")):
            found = execute_sql(f"EXPLAIN (ANALYZE, TIMING off) {sql}", params).fetchall()
            plans.append("\n".join(line for (line,) in found))
        return execute_sql(sql, params)

    monkeypatch.setattr(db, "execute_sql", explaining)
    run()
    assert len(plans) >= 2
    assert all("Rows Removed by Filter" not in plan for plan in plans)


# ------------------------------------------------------------------------------------------ recover


def test_what_failed_at_an_endpoint_since_then_is_retried(owner, event):
    """Not since when they were made, but since when they were last tried."""
    one, two = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
    now = datetime.now(UTC)
    before, after = id_at(now - timedelta(hours=3)), id_at(now - timedelta(hours=1))
    fail(one, event, attempt_id=before)
    (wanted,) = fail(one, event, attempt_id=after)
    fail(two, event, attempt_id=after)
    since = rfc3339(now - timedelta(hours=2))
    recovered = owner.post(f"/endpoints/ep_{one}/recover", {"since": since})
    bulk_retry = answered(recovered, 202)
    assert bulk_retry == {"status": "started", "bulk_retry_id": bulk_retry["bulk_retry_id"]}
    run()
    assert [task["id"] for task in task_rows("status = 'retry'")] == [wanted]
    shown = owner.get(f"/bulk-retries/{bulk_retry['bulk_retry_id']}").json["filter"]
    assert shown == {"status": "failed", "endpoint_id": f"ep_{one}", "failed_since": since}


def test_failing_since_includes_the_try_that_began_it(owner, event):
    endpoint = make_endpoint(7)
    path = f"/endpoints/ep_{endpoint}/recover"
    assert "is not failing" in invalid(owner.post(path, {"since": "failing_since"}))
    began = datetime.now(UTC) - timedelta(hours=1)
    fail(endpoint, event, attempt_id=id_at(began - timedelta(seconds=15)))
    db.execute_sql("UPDATE hookjetty.endpoints SET failures = 1, failing_since = %s", (began,))
    answered(owner.post(path, {"since": "failing_since"}), 202)
    run()
    assert len(task_rows("status = 'retry'")) == 1


def test_what_is_no_since_is_refused(owner, stranger):
    path = f"/endpoints/ep_{make_endpoint(7)}/recover"
    for since in ("yesterday", "", "evt_x", "2999-01-01T00:00:00Z"):
        assert invalid(owner.post(path, {"since": since})).startswith("since: "), since
    invalid(owner.post(path, {}))
    refusal(stranger.post(path, {"since": SINCE}), 404, "not_found")
    refusal(owner.post("/endpoints/ep_4711/recover", {"since": SINCE}), 404, "not_found")
