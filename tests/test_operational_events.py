"""Operational events: what became of endpoints, tasks and replays, told through Hookjetty."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from app.db import db
from dispatcher import holds, jobs, operational
from dispatcher.health import Heard
from dispatcher.record import Result, record
from dispatcher.retry import Answer, GiveUp, RetryAt
from dispatcher.transport import Outcome
from hookjetty.verify import verify
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import SECRET, Dispatchers, add_endpoint, wait_until
from tests.factories import claim, make_endpoint, publish, task_rows
from tests.test_jobs import make_replay

pytestmark = pytest.mark.usefixtures("database")

OPERATOR = 0
TYPES = (
    operational.DISABLED,
    operational.RECOVERED,
    operational.EXHAUSTED,
    operational.REPLAYED,
)


def told(tenant_id: int | None = None) -> list[tuple[int, str, dict[str, Any]]]:
    """The operational events there are: whose, of which type, what they say."""
    found = db.execute_sql(
        "SELECT tenant_id, type, data FROM hookjetty.events WHERE starts_with(type, 'hookjetty.')"
        " ORDER BY id"
    ).fetchall()
    return [tuple(each) for each in found if tenant_id in (None, each[0])]


def fail(status_code: int = 500, *, decision: Any = None) -> None:
    """What is due is tried once and answered so; by default that was the last try."""
    results = [
        Result(
            task,
            0.0,
            Outcome(None, 1.0, status_code=status_code, failure=f"http_{status_code // 100}xx"),
            decision or GiveUp(9),
        )
        for task in claim().tasks
    ]
    record(results)


def hear(endpoint: int, *status_codes: int, was_probe: bool = False) -> None:
    """An endpoint's receiver answers so."""
    answers = [
        Answer(code, None if code < 300 else f"http_{code // 100}xx") for code in status_codes
    ]
    holds.note([Heard(endpoint, was_probe, answer) for answer in answers], Random(1))


# ---------------------------------------------------------------------------------- who is told


@pytest.mark.parametrize(
    ("patterns", "hears"),
    [
        (["*"], set()),
        (["export.*"], set()),
        (["hookjetty.*"], set(TYPES)),
        (["hookjetty.endpoint.*"], {operational.DISABLED, operational.RECOVERED}),
        ([operational.EXHAUSTED], {operational.EXHAUSTED}),
        (["*", operational.REPLAYED], {operational.REPLAYED}),
    ],
    # Those of sets would differ from one worker of pytest-xdist to the next.
    ids=["all", "others", "ours", "of endpoints", "one type", "all, and one of ours"],
)
def test_who_names_them_gets_them_and_a_star_does_not_match(patterns, hears):
    make_endpoint(events=patterns)
    for type_ in TYPES:
        (wanted,) = db.execute_sql(
            "SELECT %s::text[] && hookjetty.patterns_for(%s)", (patterns, type_)
        ).fetchone()
        made = db.execute_sql(
            "SELECT hookjetty.tell('{7}', ARRAY[%s], ARRAY['{\"a\":1}'::json])", (type_,)
        ).fetchone()[0]
        assert (wanted, made) == (type_ in hears, int(type_ in hears))
    assert {type_ for _, type_, _ in told()} == hears
    assert len(task_rows()) == len(hears)


def test_ten_endpoints_of_a_tenant_may_hear_of_them(owner, stranger, admin):
    """Each task that is given up becomes a task for every one of them."""
    for each in range(10):
        make_endpoint(7, url=f"https://app/{each}", events=["export.*", operational.EXHAUSTED])
    eleventh = {"url": "https://app/11", "events": ["hookjetty.*"]}
    for post in (
        owner.post("/endpoints", eleventh),
        admin.post("", eleventh | {"tenant_id": 7}),
        owner.post("/endpoints", {"endpoint_id": f"ep_{make_endpoint(7)}"} | eleventh),
    ):
        assert post.status_code == 400, post.json
        assert "named by 10 endpoints already" in post.get_data(as_text=True)
    one_of_them = {"url": "https://app/3", "events": ["hookjetty.*"]}
    assert owner.post("/endpoints", one_of_them).status_code == 200
    assert owner.post("/endpoints", eleventh | {"events": ["*"]}).status_code == 201
    assert stranger.post("/endpoints", eleventh).status_code == 201


@pytest.mark.parametrize("patterns", [["*"], ["hookjetty.*"], [operational.EXHAUSTED]], ids=str)
def test_the_operator_hears_of_every_tenant(patterns):
    operators = make_endpoint(OPERATOR, events=patterns)
    for tenant in (7, 8):
        make_endpoint(tenant)
        publish(tenant)
    fail()
    assert [(data["tenant_id"], data["type"]) for _, _, data in told(OPERATOR)] == [
        (7, "export.done"),
        (8, "export.done"),
    ]
    assert {row["endpoint_id"] for row in task_rows("tenant_id = 0")} == {operators}
    assert [tenant for tenant, _, _ in told()] == [OPERATOR, OPERATOR]


def test_tenants_do_not_hear_of_each_other():
    make_endpoint(8, events=["hookjetty.*"])
    make_endpoint(7)
    publish(7)
    fail()
    assert told() == []


def test_where_nobody_wants_to_know_nothing_is_written():
    endpoint = make_endpoint(events=["*"])
    publish()
    fail()
    hear(endpoint, 410)
    assert told() == []
    assert len(task_rows()) == 1


def test_a_deleted_endpoint_is_not_told_and_a_paused_one_later():
    make_endpoint(events=["hookjetty.*"], status="deleted")
    paused = make_endpoint(events=["hookjetty.*"], status="paused")
    make_endpoint(events=["*"])
    publish()
    fail()
    (task,) = task_rows("status <> 'failed'")
    assert (task["endpoint_id"], task["status"]) == (paused, "waiting")


def test_producers_cannot_publish_them_nor_for_the_operator():
    for tenant, type_ in ((7, operational.EXHAUSTED), (OPERATOR, "export.done")):
        with pytest.raises(Exception, match=r"reserved|tenant_id: must be"):
            publish(tenant, type_)


# ------------------------------------------------------------------------------------ what is told


def test_a_disabled_endpoint_is_told_with_its_reason():
    make_endpoint(events=["hookjetty.endpoint.disabled"])
    endpoint = make_endpoint(url="https://app/hook")
    hear(endpoint, 410)
    ((tenant, type_, data),) = told()
    assert (tenant, type_) == (7, "hookjetty.endpoint.disabled")
    assert data == {
        "endpoint_id": f"ep_{endpoint}",
        "url": "https://app/hook",
        "reason": "gone",
        "failing_since": None,
    }


def test_an_endpoint_that_failed_for_five_days_is_told_with_since_when():
    make_endpoint(events=["hookjetty.*"])
    since = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    endpoint = make_endpoint(failures=20, failing_since=since, hold_until=since)
    hear(endpoint, 503, was_probe=True)
    ((_, _, data),) = told()
    assert (data["reason"], data["failing_since"]) == ("failing", "2026-01-02T03:04:05.678Z")


def test_a_recovery_is_told_once_and_only_after_an_outage():
    make_endpoint(events=["hookjetty.*"])
    endpoint = make_endpoint(url="https://app/hook")
    hear(endpoint, 500, 500, 200)
    assert told() == [], "two failures are no outage"
    hear(endpoint, *[500] * 5)
    hear(endpoint, 500, was_probe=True)
    assert told() == [], "being on hold is not the end of it"
    hear(endpoint, 200, was_probe=True)
    hear(endpoint, 200)
    ((_, type_, data),) = told()
    assert type_ == "hookjetty.endpoint.recovered"
    assert set(data) == {"endpoint_id", "url", "reason", "failing_since"}
    assert data["endpoint_id"] == f"ep_{endpoint}"
    assert data["failing_since"] is not None


def test_a_task_that_is_given_up_is_told_with_its_last_failure():
    listener = make_endpoint(events=["hookjetty.task.*"])
    endpoint = make_endpoint(events=["export.*"])
    event, _ = publish(type="export.done")
    fail(404)
    ((_, type_, data),) = told()
    assert type_ == "hookjetty.task.exhausted"
    (task,) = task_rows(f"endpoint_id = {endpoint}")
    assert data == {
        "task_id": f"task_{task['id']}",
        "event_id": f"evt_{event}",
        "endpoint_id": f"ep_{endpoint}",
        "type": "export.done",
        "tries": 1,
        "failure": "http_4xx",
    }
    (of_it,) = task_rows(f"endpoint_id = {listener}")
    assert (of_it["status"], of_it["ready"]) == ("pending", True)


def test_a_batch_of_given_up_tasks_is_told_by_one_statement(monkeypatch):
    make_endpoint(events=["hookjetty.*"])
    make_endpoint(OPERATOR)
    make_endpoint(7, events=["export.*"], slots=100)
    make_endpoint(8, events=["export.*"], slots=100)
    for tenant in (7, 8):
        for _ in range(30):
            publish(tenant)
    tellings: list[str] = []
    execute_sql = db.execute_sql
    monkeypatch.setattr(
        db,
        "execute_sql",
        lambda sql, *args: tellings.append(sql) or execute_sql(sql, *args),
    )
    fail()
    assert len([sql for sql in tellings if sql.startswith("EXECUTE tell")]) == 1
    assert (len(told(7)), len(told(8)), len(told(OPERATOR))) == (30, 0, 60)
    assert len({data["task_id"] for _, _, data in told(OPERATOR)}) == 60


def test_who_wants_to_know_is_asked_once_however_many_fail():
    """In the transaction that records them, with everybody's tasks behind it."""
    make_endpoint(events=["hookjetty.*"])
    scans = (
        "SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables"
        " WHERE schemaname = 'hookjetty' AND relname = 'endpoints'"
    )
    with db.atomic():
        (before,) = db.execute_sql(scans).fetchone()
        (made,) = db.execute_sql(
            "SELECT hookjetty.tell(array_agg(%s::bigint), array_agg(%s::text),"
            " array_agg('{\"n\": 1}'::json)) FROM generate_series(1, 50)",
            (7, operational.EXHAUSTED),
        ).fetchone()
        (after,) = db.execute_sql(scans).fetchone()
    assert (made, after - before) == (50, 2), "the tenant's endpoints, and the operator's"


def test_what_is_delivered_or_retried_is_not_told_and_costs_no_statement(monkeypatch):
    make_endpoint(events=["hookjetty.*", "export.*"])
    publish()
    monkeypatch.setattr(
        operational, "tell_of_exhausted", lambda _: pytest.fail("nothing was given up")
    )
    fail(decision=RetryAt(datetime.now(UTC) + timedelta(hours=1), 1))
    assert told() == []


def test_a_task_that_is_no_longer_ours_is_not_told():
    """A zombie gives up a task that another dispatcher has in hand."""
    make_endpoint(events=["hookjetty.*"])
    make_endpoint(events=["export.*"])
    publish()
    (zombies,) = claim().tasks
    db.execute_sql("UPDATE hookjetty.tasks SET attempt_id = attempt_id + 1")
    outcome = Outcome(None, 1.0, status_code=500, failure="http_5xx")
    record([Result(zombies, 0.0, outcome, GiveUp(9))])
    assert told() == []


def test_a_task_that_killed_its_last_dispatcher_is_told_too():
    make_endpoint(events=["hookjetty.*"])
    make_endpoint(events=["export.*"])
    publish()
    claim(steps=1)
    db.execute_sql("UPDATE hookjetty.tasks SET ready = true WHERE status = 'delivering'")
    claim(steps=1)
    ((_, type_, data),) = told()
    assert (type_, data["failure"], data["tries"]) == (operational.EXHAUSTED, "interrupted", 1)


def test_the_end_of_a_replay_is_told_with_its_figures():
    for _ in range(3):
        publish()
    make_endpoint(events=["hookjetty.*"])
    endpoint = make_endpoint(events=["export.*"])
    replay = make_replay(endpoint)
    jobs.until_done(jobs.replay_step)
    ((_, type_, data),) = told()
    assert type_ == "hookjetty.replay.finished"
    assert data == {
        "replay_id": f"rpl_{replay}",
        "endpoint_id": f"ep_{endpoint}",
        "status": "finished",
        "events": 3,
        "tasks": 3,
    }


def test_the_operators_copy_says_which_tenant_it_is_about_and_is_the_same_otherwise():
    make_endpoint(OPERATOR)
    make_endpoint(events=["hookjetty.*"])
    hear(make_endpoint(), 410)
    (mine,), (copy,) = told(7), told(OPERATOR)
    assert copy[2] == {"tenant_id": 7} | mine[2]


def test_it_happens_in_the_transaction_that_made_it_so():
    make_endpoint(events=["hookjetty.*"])
    endpoint = make_endpoint()
    with db.atomic() as transaction:
        hear(endpoint, 410)
        assert len(told()) == 1
        transaction.rollback()
    assert told() == []


# --------------------------------------------------------------------------- no failure begets one


def test_a_failing_operational_event_makes_no_other():
    make_endpoint(OPERATOR)
    make_endpoint(events=["hookjetty.*"])
    make_endpoint(events=["export.*"])
    publish()
    fail()
    assert len(told()) == 2
    fail()  # both of them
    assert len(told()) == 2
    assert {row["status"] for row in task_rows()} == {"failed"}


def test_nothing_is_told_of_the_operators_own_endpoints():
    operators = [make_endpoint(OPERATOR), make_endpoint(OPERATOR)]
    hear(operators[0], 410)
    hear(operators[1], *[500] * 5)
    hear(operators[1], 200, was_probe=True)
    assert told() == []


def test_an_id_that_is_taken_is_tried_again():
    """As every id of an event (schema.sql, "ids")."""
    make_endpoint(events=["hookjetty.*"])
    endpoint = make_endpoint()
    taken, _ = publish(type="import.done")
    db.execute_sql(
        f"""
        CREATE SEQUENCE hookjetty.taken;
        CREATE OR REPLACE FUNCTION hookjetty.new_ids(number integer) RETURNS bigint[]
        LANGUAGE sql AS $$
            SELECT CASE WHEN nextval('hookjetty.taken') = 1 THEN ARRAY[{taken}]
                        ELSE ARRAY[hookjetty.new_id()] END
        $$
        """
    )
    hear(endpoint, 410)
    assert len(told()) == 1


# ------------------------------------------------------------------------------ delivered for real


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running


def test_a_dispatcher_delivers_them_signed_to_the_tenant_and_to_the_operator(database, receiver):
    add_endpoint(7, receiver.url("/tenant"), events=["hookjetty.*"])
    add_endpoint(OPERATOR, receiver.url("/operator"))
    gone = add_endpoint(7, receiver.url("/gone", status=410), events=["export.*"])
    add_endpoint(7, receiver.url("/broken", status=404), events=["import.*"])
    with Dispatchers(database, RETRY_SCHEDULE="0"):
        publish(type="export.done")
        publish(type="import.done")
        wait_until(lambda: len(receiver.at("/tenant")) == len(receiver.at("/operator")) == 2)
    for path in ("/tenant", "/operator"):
        bodies = [verify(each.body, each.headers, SECRET) for each in receiver.at(path)]
        said = {body["type"]: body["data"] for body in bodies}
        assert set(said) == {operational.DISABLED, operational.EXHAUSTED}
        assert said[operational.DISABLED]["endpoint_id"] == f"ep_{gone}"
        assert said[operational.EXHAUSTED]["type"] == "import.done"
        assert {data.get("tenant_id") for data in said.values()} == {
            7 if path == "/operator" else None
        }
