"""Endpoints' health in the tables: what is noted, and how holds end (dispatcher/holds.py)."""

from __future__ import annotations

import threading
from random import Random

import pytest
from structlog.testing import capture_logs

from app.db import db
from dispatcher import claim as claims
from dispatcher import holds, jobs
from dispatcher.health import Heard
from dispatcher.retry import Answer
from tests.dispatching import is_waiting_for_a_lock, wait_until
from tests.factories import make_endpoint, publish, rows, task_rows

pytestmark = pytest.mark.usefixtures("database")

OK = Answer(204, None)
BROKEN = Answer(500, "http_5xx")
GONE = Answer(410, "http_4xx")


def note(endpoint: int, *answers: Answer, probe: bool = False) -> set[int]:
    return holds.note([Heard(endpoint, probe, answer) for answer in answers], Random(7), jitter=0)


def row(endpoint: int) -> dict:
    cursor = db.execute_sql(
        "SELECT *, extract(epoch FROM hold_until - clock_timestamp())::float8 AS held_seconds"
        " FROM hookjetty.endpoints WHERE id = %s",
        (endpoint,),
    )
    return rows(cursor)[0]


def make_down(failures: int = 5, tenant_id: int = 7, **columns) -> int:
    """An endpoint whose hold has just run out."""
    endpoint = make_endpoint(tenant_id, failures=failures, failing_since="2026-01-01", **columns)
    run_out(endpoint)
    return endpoint


def run_out(endpoint: int) -> None:
    db.execute_sql(
        "UPDATE hookjetty.endpoints SET hold_until = now() - interval '1 s' WHERE id = %s",
        (endpoint,),
    )


def make_waiting(tasks: int = 1) -> list[int]:
    """Published while their endpoint takes none."""
    for _ in range(tasks):
        publish()
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'waiting', ready = false, next_try_at = NULL"
    )
    return [task["id"] for task in task_rows()]


def probes() -> list[int]:
    return [task["id"] for task in task_rows("probe AND ready")]


# ------------------------------------------------------------------------------------------ note


def test_five_failures_put_an_endpoint_on_hold():
    endpoint = make_endpoint()
    assert note(endpoint, *[BROKEN] * 3) == {endpoint}
    assert (row(endpoint)["failures"], row(endpoint)["hold_until"]) == (3, None)
    with capture_logs() as logs:
        assert note(endpoint, *[BROKEN] * 3) == {endpoint}
    after = row(endpoint)
    assert after["failures"] == 5 and 4 < after["held_seconds"] <= 5
    assert after["failing_since"] is not None
    assert [(line["event"], line["endpoint"]) for line in logs] == [
        ("endpoint_on_hold", f"ep_{endpoint}")
    ]


def test_a_success_ends_it_all_and_has_the_tasks_flow_back():
    endpoint = make_down()
    make_waiting(3)
    with capture_logs() as logs:
        assert note(endpoint, OK, probe=True) == set()
    after = row(endpoint)
    assert (after["failures"], after["failing_since"], after["hold_until"]) == (0, None, None)
    assert after["recovered_at"] is not None and after["settling"]
    assert [line["event"] for line in logs] == ["endpoint_recovered"]
    jobs.until_done(jobs.settle_step)
    assert {(task["status"], task["ready"]) for task in task_rows()} == {("pending", True)}


def test_gone_disables():
    endpoint = make_endpoint()
    with capture_logs() as logs:
        assert note(endpoint, GONE) == set()
    after = row(endpoint)
    assert (after["status"], after["reason"], after["settling"]) == ("disabled", "gone", True)
    assert (logs[0]["event"], logs[0]["reason"]) == ("endpoint_disabled", "gone")


def test_five_days_of_failures_disable():
    endpoint = make_down(9)
    make_waiting()
    note(endpoint, BROKEN, probe=True)
    after = row(endpoint)
    assert (after["status"], after["reason"], after["failures"]) == ("disabled", "failing", 10)
    assert after["failing_since"] is not None, "it is shown, and a watermark for a replay"
    jobs.until_done(jobs.sweep)
    assert task_rows()[0]["status"] == "waiting"


def test_a_row_that_would_not_change_is_not_written():
    """It is read by every publish, and by every claim."""
    well, down = make_endpoint(), make_endpoint(failures=5, failing_since="2026-01-01",
                                                hold_until="2999-01-01")  # fmt: skip
    before = db.execute_sql("SELECT xmin::text, ctid::text FROM hookjetty.endpoints").fetchall()
    assert note(well, OK, OK) == set()
    assert note(down, BROKEN) == {down}  # late: sent before the hold
    after = db.execute_sql("SELECT xmin::text, ctid::text FROM hookjetty.endpoints").fetchall()
    assert before == after


def test_many_endpoints_are_noted_at_once_each_in_its_order():
    first, second = make_endpoint(), make_endpoint()
    heard = [Heard(first, False, BROKEN), Heard(second, False, OK)] * 3
    heard += [Heard(second, False, BROKEN), Heard(first, False, OK), Heard(10**6, False, BROKEN)]
    assert holds.note(heard, Random(7)) == {second}
    assert (row(first)["failures"], row(second)["failures"]) == (0, 1)


def test_a_conflict_is_noted_again():
    """Two dispatchers heard of the same endpoint: no count is lost."""
    endpoint = make_endpoint()
    threads = [threading.Thread(target=_in_a_thread, args=(endpoint,)) for _ in range(3)]
    with db.atomic():
        note(endpoint, BROKEN)
        for thread in threads:
            thread.start()
        wait_until(is_waiting_for_a_lock)
    for thread in threads:
        thread.join()
    assert row(endpoint)["failures"] == 4


def _in_a_thread(endpoint: int) -> None:
    with db.connection_context():
        note(endpoint, BROKEN)


# --------------------------------------------------------------------------------------- end_due


def test_nothing_is_due_while_no_hold_has_run_out():
    make_endpoint()
    make_endpoint(failures=5, failing_since="2026-01-01", hold_until="2999-01-01")
    assert holds.end_due(60) == 0
    assert claims.seconds_to_next_due() > 10**9


def test_nothing_ends_where_nothing_is_on_hold():
    make_endpoint()
    assert (holds.end_due(60), claims.seconds_to_next_due()) == (0, None)


def test_a_hold_that_was_asked_for_simply_ends():
    endpoint = make_down(1)
    make_waiting(2)
    with capture_logs() as logs:
        assert holds.end_due(60) == 1
    after = row(endpoint)
    assert (after["hold_until"], after["failures"], after["settling"]) == (None, 1, True)
    assert [line["event"] for line in logs] == ["hold_ended"]
    assert probes() == []


def test_after_a_failed_probe_the_next_task_goes_ahead_alone():
    endpoint = make_down()
    waiting = make_waiting(3)
    assert holds.end_due(60) == 1
    assert probes() == waiting[:1]
    (probe,) = task_rows("probe")
    assert (probe["status"], probe["step"]) == ("pending", 0)
    after = row(endpoint)
    assert 74 < after["held_seconds"] <= 75 and not after["settling"]
    assert holds.end_due(60) == 0


def test_the_task_tried_longest_ago_is_the_probe():
    make_down()
    first, second, third, replayed = make_waiting(4)
    for task, columns in [
        (first, "attempt_id = 300, tries = 1, step = 3"),
        (second, "attempt_id = 200, tries = 1, step = 3"),
        (third, "attempt_id = 250, tries = 1, step = 3"),
        (replayed, "lane = 1, replay_id = 1"),
    ]:
        db.execute_sql(f"UPDATE hookjetty.tasks SET {columns} WHERE id = {task}")
    holds.end_due(60)
    (probe,) = task_rows("probe")
    assert (probe["id"], probe["status"], probe["step"]) == (second, "retry", 3)


def test_a_task_that_was_never_tried_goes_before_those_that_were():
    make_down()
    _tried, fresh = make_waiting(2)
    db.execute_sql(
        "UPDATE hookjetty.tasks SET attempt_id = 1, tries = 1 WHERE id = (SELECT min(id)"
        " FROM hookjetty.tasks)"
    )
    holds.end_due(60)
    assert probes() == [fresh]


@pytest.mark.parametrize(
    "way",
    [
        "ready = true, status = 'retry'",
        "ready = false, status = 'delivering', attempt_id = 1",
    ],
)
def test_while_a_probe_is_on_its_way_there_is_no_second(way):
    """It was claimed late, or a person retries a task."""
    endpoint = make_down()
    first, _ = make_waiting(2)
    db.execute_sql(
        f"UPDATE hookjetty.tasks SET {way}, probe = true,"
        f" next_try_at = now() + interval '30 s' WHERE id = {first}"
    )
    assert holds.end_due(60) == 1
    assert row(endpoint)["held_seconds"] > 60
    assert [task["id"] for task in task_rows("probe")] == [first]


def test_a_short_hold_leaves_tasks_ready_and_the_first_of_them_probes():
    endpoint = make_endpoint()
    publish()
    publish()
    db.execute_sql(
        "UPDATE hookjetty.endpoints SET failures = 5, failing_since = now() WHERE id = %s",
        (endpoint,),
    )
    run_out(endpoint)
    first, _ = (task["id"] for task in task_rows("ready"))
    assert holds.end_due(60) == 1
    assert probes() == [first]


def test_without_a_task_to_probe_with_the_hold_ends_and_the_count_stays():
    endpoint = make_down()
    assert holds.end_due(60) == 1
    after = row(endpoint)
    assert (after["hold_until"], after["failures"]) == (None, 5)
    note(endpoint, BROKEN)
    assert 9 < row(endpoint)["held_seconds"] <= 10


def test_a_hold_is_not_ended_because_others_have_locked_its_tasks(database):
    endpoint = make_down()
    make_waiting()
    ended: list[int] = []

    def elsewhere() -> None:
        with db.connection_context():
            ended.append(holds.end_due(60))

    with db.atomic():
        db.execute_sql("SELECT 1 FROM hookjetty.tasks FOR UPDATE")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(10)
    assert ended == [0]
    assert row(endpoint)["hold_until"] is not None
    assert holds.end_due(60) == 1 and len(probes()) == 1


@pytest.mark.parametrize("status", ["paused", "disabled"])
def test_the_hold_of_an_endpoint_that_is_not_active_ends_without_a_probe(status):
    endpoint = make_down(status=status)
    make_waiting()
    holds.end_due(60)
    assert row(endpoint)["hold_until"] is None
    jobs.until_done(jobs.sweep)
    assert task_rows()[0]["status"] == "waiting"


def test_dispatchers_that_look_at_once_release_one_probe_each_endpoint():
    for tenant in range(1, 31):
        make_down(tenant_id=tenant)
        for _ in range(3):
            publish(tenant)
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'waiting', ready = false, next_try_at = NULL"
    )

    def elsewhere() -> None:
        with db.connection_context():
            for _ in range(5):
                holds.end_due(60)

    threads = [threading.Thread(target=elsewhere) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(task["tenant_id"] for task in task_rows("probe")) == list(range(1, 31))
    assert len(task_rows("status = 'waiting'")) == 60


def test_many_holds_are_ended_in_batches(monkeypatch):
    monkeypatch.setattr(holds, "BATCH", 2)
    for tenant in range(1, 6):
        make_down(1, tenant_id=tenant)
    assert [holds.end_due(60) for _ in range(4)] == [2, 2, 1, 0]


# ------------------------------------------------------------------------- settling and sweeping


def test_the_tasks_of_an_endpoint_on_hold_are_not_settled_back():
    endpoint = make_endpoint(
        failures=5, failing_since="2026-01-01", hold_until="2999-01-01", settling=True
    )
    make_waiting()
    jobs.until_done(jobs.settle_step)
    jobs.until_done(jobs.sweep)
    assert task_rows()[0]["status"] == "waiting"
    assert not row(endpoint)["settling"]


def test_the_sweep_finds_tasks_that_were_made_to_wait_just_after_the_hold():
    endpoint = make_endpoint()
    make_waiting()
    jobs.until_done(jobs.sweep)
    assert task_rows()[0]["status"] == "pending"
    assert not row(endpoint)["settling"]


def test_live_tasks_flow_back_before_replayed_ones(monkeypatch):
    monkeypatch.setattr(jobs, "BATCH", 2)
    endpoint = make_endpoint(settling=True)
    tasks = make_waiting(4)
    db.execute_sql(
        f"UPDATE hookjetty.tasks SET lane = 1, replay_id = 1 WHERE id IN ({tasks[0]}, {tasks[1]})"
    )
    jobs.settle_step()
    assert [task["id"] for task in task_rows("ready")] == tasks[2:]
    jobs.until_done(jobs.settle_step)
    assert len(task_rows("ready")) == 4 and not row(endpoint)["settling"]


def test_right_after_a_recovery_tasks_flow_back_as_they_are_worked_off(monkeypatch):
    """A server that comes and goes would have all of them made ready, and to wait, each time."""
    monkeypatch.setattr(jobs, "BATCH", 2)
    endpoint = make_down()
    other = make_endpoint(8, settling=True)
    make_waiting(5)
    note(endpoint, OK, probe=True)
    jobs.until_done(jobs.settle_step)
    assert len(task_rows("ready")) == 2
    assert row(endpoint)["settling"] and not row(other)["settling"]
    db.execute_sql(
        "UPDATE hookjetty.tasks SET ready = false, status = 'delivered', next_try_at = NULL"
        " WHERE ready"
    )
    jobs.until_done(jobs.settle_step)
    assert len(task_rows("ready")) == 2
    db.execute_sql("UPDATE hookjetty.endpoints SET recovered_at = now() - interval '2 min'")
    jobs.until_done(jobs.settle_step)
    assert len(task_rows("ready")) == 3
    assert not row(endpoint)["settling"]


# ----------------------------------------------------------------------------------------- waking


@pytest.mark.parametrize(("failures", "answer"), [(5, OK), (1, GONE), (9, BROKEN)])
def test_what_moves_tasks_wakes_the_dispatchers(database, failures, answer):
    endpoint = make_down(failures)
    connection = db.connection()
    db.execute_sql("LISTEN hookjetty")
    note(endpoint, answer, probe=True)
    connection.poll()
    assert {each.payload for each in connection.notifies} == {"jobs"}


def test_the_lookups_read_indexes():
    """Whatever else is in the tables: no sequential scan, no sort over all tasks that wait."""
    db.ready(for_hot_statements=True)
    make_down()
    make_waiting()
    holds.end_due(60)
    claims.seconds_to_next_due()
    text = ""
    for statement in (
        "holds_over(1)",
        "lock_holds_over(100)",
        "next_due",
        "probes_on_their_way('{1,2}')",
        "tried_longest_ago('{1,2}')",
    ):
        text += "\n".join(r[0] for r in db.execute_sql(f"EXPLAIN EXECUTE {statement}").fetchall())
    assert "Seq Scan" not in text and "Sort Key: t.lane" not in text
    assert "endpoints_on_hold" in text
