"""A tenant is erased: every table, found in the catalogue, before and after."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from app.db import db
from app.endpoints import await_consent
from app.models import TENANT_LIMITS, Endpoint
from dispatcher import jobs, tenant_erasures
from dispatcher.record import Result, record
from dispatcher.retry import Delivered, GiveUp
from dispatcher.transport import Outcome
from tests.acceptance.receiver import RecordingReceiver
from tests.conftest import Caller
from tests.dispatching import Dispatchers, add_endpoint, is_waiting_for_a_lock, wait_until
from tests.factories import attempt_rows, claim, make_endpoint, publish, rows, task_rows
from tests.test_admin_api import data_of, refusal

ERASED, OTHER = 7, 8

# What says that it was done stays.
REPORTS = {"tenant_erasures"}


def owned_tables() -> dict[str, str]:
    """Every table that says whose its rows are, and the column that does."""
    found = db.execute_sql(
        """
        SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'hookjetty'::regnamespace AND c.relkind IN ('r', 'p')
          AND NOT c.relispartition AND a.attname IN ('tenant_id', 'owner')
        """
    ).fetchall()
    return dict(found) | {"tenants": "id", "rate_limits": "split_part(key, ':', 2)::bigint"}


def rows_of(tenant_id: int) -> dict[str, list[dict[str, Any]]]:
    """All that is known of a tenant, by table."""
    return {
        table: sorted(
            rows(
                db.execute_sql(f"SELECT * FROM hookjetty.{table} WHERE {column} = %s", (tenant_id,))
            ),
            key=str,
        )
        for table, column in sorted(owned_tables().items())
        if table not in REPORTS
    }


def finish() -> None:
    """The second round also waits for the transactions of this server's other databases."""
    wait_until(lambda: not tenant_erasures.step() and not is_running())


def is_running() -> bool:
    return bool(
        db.execute_sql("SELECT FROM hookjetty.tenant_erasures WHERE status = 'running'").fetchall()
    )


def erase(admin: Caller, tenant_id: int = ERASED) -> dict[str, Any]:
    return data_of(admin.post("/tenants/erase", {"tenant_id": tenant_id}), 202)


def report(admin: Caller, tenant_id: int = ERASED) -> dict[str, Any]:
    return data_of(admin.get(f"/tenants/erasures?tenant_id={tenant_id}"))[0]


def attempt_what_is_due(failure: str | None = None) -> None:
    """It is delivered, or else that was its last try."""
    decision = GiveUp(9) if failure else Delivered()
    results = [
        Result(task, 0.0, Outcome(None, 1.0, status_code=200, failure=failure), decision)
        for task in claim().tasks
    ]
    record(results)


@pytest.fixture
def lives(app, admin, client, mint) -> None:
    """Both tenants have something in every table."""
    make_endpoint(0)
    for tenant in (ERASED, OTHER):
        caller = Caller(client, "/api/v1/data-consumption/webhooks", mint(tenant_id=tenant))
        publish(tenant, key="k")
        for n in range(2):
            caller.post(
                "/endpoints", {"url": f"https://app/{n}"}, headers={"X-Request-Id": f"r{n}"}
            )
        caller.delete("/endpoints/ep_2" if tenant == ERASED else "/endpoints/ep_4")
        make_endpoint(tenant)
        for n in range(3):
            publish(tenant, key=f"k{n}")
        admin.post("/tenants/limits", {"tenant_id": tenant, "endpoints": 5})
        attempt_what_is_due()
        publish(tenant)
        attempt_what_is_due("http_5xx")
        publish(tenant)
        db.execute_sql(
            "INSERT INTO hookjetty.event_erasures (event_id, tenant_id, again_at)"
            " SELECT min(id), tenant_id, now() FROM hookjetty.events WHERE tenant_id = %s"
            " GROUP BY tenant_id",
            (tenant,),
        )
    endpoint = task_rows(f"tenant_id = {ERASED}")[0]["endpoint_id"]
    others = task_rows(f"tenant_id = {OTHER}")[0]["endpoint_id"]
    for tenant, each in ((ERASED, endpoint), (OTHER, others)):
        caller = Caller(client, "/api/v1/data-consumption/webhooks", mint(tenant_id=tenant))
        body = {"endpoint_id": f"ep_{each}", "from": "2025-10-05T06:00:00Z"}
        assert caller.post("/replay", body).status_code == 202
        assert caller.post("/tasks/retry", {"status": "failed"}).status_code == 202
    jobs.until_done(jobs.replay_step)


@pytest.mark.usefixtures("lives")
def test_nothing_is_left_in_any_table_and_nothing_of_another_is_touched(admin):
    before, of_another = rows_of(ERASED), rows_of(OTHER)
    assert [table for table, found in before.items() if not found] == [], "nothing left untried"
    assert db.execute_sql("SELECT 1 FROM hookjetty.events WHERE tenant_id = 0").fetchone()
    erase(admin)
    finish()
    after = rows_of(ERASED)
    kept = after.pop("audit")
    assert [table for table, found in after.items() if found] == []
    assert [(line["action"], line["actor"]) for line in kept] == [("erase_tenant", "ada")]
    assert rows_of(OTHER) == of_another
    told = db.execute_sql("SELECT data FROM hookjetty.events WHERE tenant_id = 0").fetchall()
    assert {data["tenant_id"] for (data,) in told} == {OTHER}
    (left,) = db.execute_sql(
        "SELECT count(*) FROM hookjetty.tasks t WHERE tenant_id = 0"
        " AND NOT EXISTS (SELECT FROM hookjetty.events e WHERE e.id = t.event_id)"
    ).fetchone()
    assert left == 0


@pytest.mark.usefixtures("lives")
def test_the_report_counts_what_was_deleted_and_that_nothing_is_left(admin):
    before = {table: len(found) for table, found in rows_of(ERASED).items()}
    # The operator's copies, each with its task and that one's attempt.
    told = db.execute_sql(
        """
        SELECT count(*), count(t.id), count(a.id) FROM hookjetty.events e
        LEFT JOIN hookjetty.tasks t ON t.event_id = e.id
        LEFT JOIN hookjetty.attempts a ON a.task_id = t.id
        WHERE e.tenant_id = 0 AND e.data->>'tenant_id' = '7'
        """
    ).fetchone()
    assert all(told)
    erase(admin)
    running = report(admin)
    assert (running["status"], running["finished_at"], running["left"]) == ("running", None, None)
    finish()
    done = report(admin)
    assert (done["status"], done["round"]) == ("finished", 2)
    assert done["left"] == dict.fromkeys(owned_tables().keys() - REPORTS, 0)
    assert done["deleted"] == before | {
        table: before[table] + more
        for table, more in zip(("events", "tasks", "attempts"), told, strict=True)
    }


def test_every_table_that_says_whose_its_rows_are_is_erased(database):
    """If this fails, a table is new: give it a place in PARTS of dispatcher/tenant_erasures.py."""
    assert set(tenant_erasures.TABLES) == owned_tables().keys() - REPORTS


@pytest.mark.usefixtures("lives")
def test_it_goes_in_small_steps_and_a_crash_between_them_loses_nothing(admin, monkeypatch):
    monkeypatch.setattr(tenant_erasures, "BATCH", 2)
    monkeypatch.setattr(tenant_erasures, "ATTEMPTS_AT_ONCE", 2)
    erase(admin)
    steps = 0
    while is_running():
        steps += tenant_erasures.step()
        db.give_up()
        db.ready()
        if steps % 5 == 0:
            with db.atomic() as transaction:  # a crash: this step did not happen
                tenant_erasures.step()
                transaction.rollback()
    assert steps > 20
    assert not any(found for table, found in rows_of(ERASED).items() if table != "audit")
    assert not any(report(admin)["left"].values())


def test_its_endpoints_receive_nothing_from_the_request_on(admin, owner):
    endpoint = make_endpoint()
    publish()
    erase(admin)
    assert publish()[1] == 0
    assert claim().tasks == []
    assert owner.get("/endpoints").json["items"] == []
    assert owner.get(f"/endpoints/ep_{endpoint}").status_code == 404


@pytest.mark.usefixtures("database")
def test_who_waits_for_the_consent_of_what_is_being_erased_is_answered():
    """With the endpoint as it was."""
    db.execute_sql("INSERT INTO hookjetty.dispatchers (id, host, pid) VALUES (1, 'here', 1)")
    number = make_endpoint(status="pending", handshake_at="now()")
    endpoint = Endpoint.get_by_id(number)
    db.execute_sql("DELETE FROM hookjetty.endpoints")
    assert await_consent(endpoint, seconds=1).id == number


def test_what_comes_after_the_request_stays(admin, owner):
    make_endpoint()
    publish(key="k")
    erase(admin)
    event, _ = publish(key="later")
    owner.post("/endpoints", {"url": "https://app/new"}, headers={"X-Request-Id": "r"})
    admin.post("/tenants/limits", {"tenant_id": 7, "endpoints": 5})
    finish()
    assert [row["id"] for row in rows_of(ERASED)["events"]] == [event]
    after = {table: len(found) for table, found in rows_of(ERASED).items()}
    assert after == dict.fromkeys(after, 0) | {
        "tenants": 1,
        "endpoints": 1,
        "events": 1,
        "event_keys": 1,
        "idempotency_keys": 1,
        "rate_limits": 2,
        "audit": 3,
    }
    assert not any(report(admin)["left"].values())


def test_a_tenant_that_only_published_can_be_erased(admin):
    publish(ERASED)
    erase(admin)
    finish()
    assert report(admin)["deleted"]["events"] == 1
    assert rows_of(ERASED)["tenants"] == []


def test_its_own_limits_end_with_the_request(admin):
    data_of(admin.post("/tenants/limits", {"tenant_id": 7} | dict.fromkeys(TENANT_LIMITS, 5)))
    erase(admin)
    assert data_of(admin.get("/tenants/detail?tenant_id=7"))["own_limits"] == {}


def test_one_at_a_time_and_again_afterwards(admin):
    first = erase(admin)
    assert "erased already" in refusal(admin.post("/tenants/erase", {"tenant_id": ERASED}), 409)
    erase(admin, OTHER)
    finish()
    second = erase(admin)
    finish()
    listed = data_of(admin.get("/tenants/erasures?tenant_id=7"))
    assert [each["id"] for each in listed] == [second["id"], first["id"]]
    assert len(data_of(admin.get("/tenants/erasures"))) == 3
    (page,) = data_of(admin.get("/tenants/erasures?limit=1"))
    assert page["id"] == second["id"]
    lines = [line["action"] for line in rows_of(ERASED)["audit"]]
    assert lines == ["erase_tenant"] * 2, "the earlier erasure stays known too"


# ----------------------------------------------------------------------------- nothing comes back


@pytest.mark.parametrize("failure", [None, "http_5xx"])
def test_an_attempt_that_comes_back_later_leaves_nothing(admin, failure):
    make_endpoint()
    publish()
    make_endpoint(OTHER)
    publish(OTHER)
    claimed = claim().tasks
    erase(admin)
    finish()
    assert task_rows(f"tenant_id = {ERASED}") == []
    decision = GiveUp(9) if failure else Delivered()
    outcome = Outcome(None, 1.0, status_code=200, failure=failure)
    held = record([Result(task, 0.0, outcome, decision) for task in claimed])
    assert held == 1
    assert [row["tenant_id"] for row in attempt_rows()] == [OTHER]
    assert task_rows(f"tenant_id = {ERASED}") == []


def test_a_recording_at_the_same_time_leaves_nothing(admin):
    """It has written its attempts and waits for the task, which is being deleted."""
    make_endpoint()
    publish()
    (task,) = claim().tasks
    erase(admin)
    outcome = Outcome(None, 1.0, status_code=200)

    def record_in_a_thread() -> None:
        db.ready()
        record([Result(task, 0.0, outcome, Delivered())])
        db.give_up()

    with db.atomic():
        db.execute_sql("SELECT FROM hookjetty.tasks FOR UPDATE")
        thread = threading.Thread(target=record_in_a_thread)
        thread.start()
        wait_until(is_waiting_for_a_lock)
        tenant_erasures.step()
        tenant_erasures.step()
    thread.join()
    finish()
    assert (task_rows(), attempt_rows()) == ([], [])


def test_what_commits_late_is_waited_for_and_found(admin, database):
    """It was published before the request, in a transaction that goes on."""
    connection = psycopg2.connect(database)
    with connection.cursor() as cursor:
        cursor.execute("SELECT hookjetty.publish_event(7, 'export.done', '{\"n\":1}', 'late')")
        erase(admin)
        jobs.until_done(tenant_erasures.step)
        assert (report(admin)["status"], report(admin)["round"]) == ("running", 2)
        connection.commit()
    connection.close()
    finish()
    done = report(admin)
    assert (done["status"], done["round"]) == ("finished", 3)
    assert (done["deleted"]["events"], done["deleted"]["event_keys"]) == (1, 1)
    assert not any(rows_of(ERASED)[table] for table in ("events", "event_keys"))


def test_a_restored_database_waits_for_no_transaction_of_another_cluster(admin):
    erase(admin)
    while report(admin)["round"] == 1:
        tenant_erasures.step()
    db.execute_sql("UPDATE hookjetty.tenant_erasures SET horizon = '9223372036854775807'")
    finish()
    assert report(admin)["status"] == "finished"


def test_attempts_that_outlived_their_task_go_too(admin):
    """Retention drops the week of the task first."""
    make_endpoint()
    publish()
    attempt_what_is_due()
    db.execute_sql("DELETE FROM hookjetty.tasks")
    erase(admin)
    finish()
    assert attempt_rows() == []
    assert report(admin)["deleted"]["attempts"] == 1


def test_a_sealed_answer_of_an_admins_is_none_of_the_tenants(admin):
    """It is kept for 24 hours, for whoever asks again."""
    body = {"tenant_id": 7, "url": "https://app/"}
    first = admin.post("", body, headers={"X-Request-Id": "r"})
    erase(admin)
    finish()
    assert admin.post("", body, headers={"X-Request-Id": "r"}).json == first.json


# ----------------------------------------------------------------------------------- for real


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running


def test_a_dispatcher_erases_while_it_delivers(database, admin, receiver):
    add_endpoint(ERASED, receiver.url("/erased", delay=0.2))
    add_endpoint(OTHER, receiver.url("/other"))
    with Dispatchers(database):
        for _ in range(50):
            publish(ERASED)
            publish(OTHER)
        wait_until(lambda: receiver.at("/erased"))
        erase(admin)
        wait_until(lambda: report(admin)["status"] == "finished")
        wait_until(lambda: len(receiver.at("/other")) == 50)
    left = rows_of(ERASED)
    left.pop("audit")
    assert json.dumps({table: found for table, found in left.items() if found}, default=str) == "{}"
    assert len(task_rows(f"tenant_id = {OTHER} AND status = 'delivered'")) == 50
    assert len(attempt_rows()) == 50
