"""Taking due tasks: fairly, once, and never stuck behind what cannot be delivered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.db import db
from dispatcher import claim as claims
from tests.factories import attempt_rows, claim, make_endpoint, publish, task_rows

pytestmark = pytest.mark.usefixtures("database")


def test_a_due_task_comes_with_all_that_sending_it_needs():
    endpoint = make_endpoint(7, "https://example.com/hook")
    event, _ = publish(7, "export.done", {"rows": 3})
    (task,) = claim().tasks
    assert (task.target.tenant_id, task.target.endpoint_id, task.event_id) == (7, endpoint, event)
    assert (task.type, task.data, task.target.url) == (
        "export.done",
        '{"rows": 3}',
        "https://example.com/hook",
    )
    assert (task.try_number, task.step) == (1, 0)


def test_a_claimed_task_is_leased_and_not_claimed_again():
    make_endpoint()
    publish()
    claim(lease_seconds=60)
    assert claim().tasks == []
    (row,) = task_rows()
    assert (row["status"], row["ready"], row["tries"]) == ("delivering", False, 1)
    assert 55 < claims.seconds_to_next_due() <= 60


def test_every_endpoint_gives_at_most_its_free_slots():
    flooded, quiet = make_endpoint(1), make_endpoint(2)
    for _ in range(30):
        publish(1)
    publish(2)
    claimed = claim(slots=20, most={flooded: 5})
    assert Counter(task.target.endpoint_id for task in claimed.tasks) == {flooded: 5, quiet: 1}
    given = {endpoint: counts[:2] for endpoint, counts in claimed.given.items()}
    assert given == {flooded: (5, 5), quiet: (20, 1)}


def test_an_endpoint_may_have_slots_a_timeout_and_a_schedule_of_its_own():
    make_endpoint(1, slots=3, timeout_seconds=2.5, retry_schedule=[0, 1])
    for _ in range(5):
        publish(1)
    tasks = claim(slots=20).tasks
    assert len(tasks) == 3
    assert (tasks[0].target.timeout_seconds, tasks[0].target.retry_schedule) == (2.5, [0, 1])


def test_after_a_recovery_an_endpoint_has_few_slots_at_first():
    endpoint = make_endpoint(1)
    db.execute_sql("UPDATE hookjetty.endpoints SET recovered_at = now() WHERE id = %s", (endpoint,))
    for _ in range(5):
        publish(1)
    assert len(claim().tasks) == 1


def test_a_visit_goes_on_behind_the_cursor():
    for tenant in (1, 2, 3):
        make_endpoint(tenant)
        publish(tenant)
    first = claims.visit(claims.START, hops=2)
    assert [each.tenant_id for each in first] == [1, 2]
    assert [each.tenant_id for each in claims.visit(first[-1], hops=2)] == [3]
    assert claims.visit(claims.Cursor(9, 9)) == []


def test_of_a_tenant_that_may_not_have_more_one_endpoint_is_visited():
    for tenant in (1, 1, 1, 2):
        make_endpoint(tenant)
    for tenant in (1, 2):
        publish(tenant)
    visited = claims.visit(claims.START, full_tenants=[1])
    assert [each.tenant_id for each in visited] == [1, 2]


def test_a_floor_hides_what_was_due_before_it_but_no_replay():
    endpoint = make_endpoint(1)
    for _ in range(3):
        publish(1)
    db.execute_sql(
        "UPDATE hookjetty.tasks SET next_try_at = now() - interval '1 h', lane = 1, replay_id = 1"
        " WHERE id = (SELECT min(id) FROM hookjetty.tasks)"
    )
    replayed, old, new = (row["id"] for row in task_rows())
    db.execute_sql(
        "UPDATE hookjetty.tasks SET next_try_at = now() - interval '1 h' WHERE id = %s", (old,)
    )
    floor = {endpoint: time.time() - 60}
    assert {task.task_id for task in claim(floors=floor).tasks} == {replayed, new}
    assert [task.task_id for task in claim().tasks] == [old]


def test_live_tasks_go_before_replayed_ones():
    make_endpoint()
    publish()
    publish()
    db.execute_sql(
        "UPDATE hookjetty.tasks SET lane = 1, replay_id = 1,"
        " next_try_at = now() - interval '1 hour'"
        " WHERE id = (SELECT min(id) FROM hookjetty.tasks)"
    )
    replayed, live = (row["id"] for row in task_rows())
    assert [task.task_id for task in claim(slots=1).tasks] == [live]
    assert [task.task_id for task in claim(slots=1).tasks] == [replayed]


def test_a_task_for_later_is_claimed_only_after_its_promotion():
    make_endpoint()
    publish()
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'retry', ready = false,"
        " next_try_at = now() + interval '1 hour'"
    )
    assert (claims.promote(), claim().moved) == (0, 0)
    db.execute_sql("UPDATE hookjetty.tasks SET next_try_at = now() - interval '1 second'")
    assert (claims.promote(), len(claim().tasks)) == (1, 1)


def test_an_expired_lease_is_claimed_again_and_the_lost_attempt_is_on_the_books():
    make_endpoint()
    publish()
    (lost,) = claim(lease_seconds=0).tasks
    assert claims.promote() == 1
    (again,) = claim().tasks
    assert again.attempt_id != lost.attempt_id
    assert (again.try_number, again.step) == (2, 1)
    (attempt,) = attempt_rows()
    assert (attempt["id"], attempt["failure"], attempt["try"]) == (
        lost.attempt_id,
        "interrupted",
        1,
    )
    assert attempt["started_at"] is None


def test_a_task_that_keeps_losing_its_dispatcher_fails_when_no_step_is_left():
    """So a task that kills its dispatcher ends."""
    make_endpoint()
    publish()
    for _ in range(3):
        assert len(claim(lease_seconds=0, steps=3).tasks) == 1
        claims.promote()
    last = claim(lease_seconds=0, steps=3)
    assert (last.tasks, last.moved) == ([], 1)
    (row,) = task_rows()
    assert (row["status"], row["failure"], row["tries"]) == ("failed", "interrupted", 3)
    assert len(attempt_rows("failure = 'interrupted'")) == 3


def test_600_tasks_without_an_event_delay_a_due_task_by_no_more_than_one_claim():
    make_endpoint(1)
    for _ in range(600):
        publish(1)
    db.execute_sql("DELETE FROM hookjetty.events")
    live = make_endpoint(2)
    publish(2)
    claimed = claim(slots=20)
    assert [task.target.endpoint_id for task in claimed.tasks] == [live]
    while claim(slots=500).moved:
        pass
    assert Counter(row["failure"] for row in task_rows("tenant_id = 1")) == {"expired": 600}
    assert {row["status"] for row in task_rows("tenant_id = 1")} == {"failed"}


def test_tasks_that_somebody_else_has_locked_hide_nothing():
    for tenant in (1, 2):
        make_endpoint(tenant)
        publish(tenant)
    with ThreadPoolExecutor(1) as thread, db.atomic():
        db.execute_sql("SELECT FROM hookjetty.tasks WHERE tenant_id = 1 FOR UPDATE")
        tasks = thread.submit(_claim_elsewhere).result(10)
    assert [task.target.tenant_id for task in tasks] == [2]


def _claim_elsewhere() -> list[claims.Claimed]:
    with db.connection_context():
        return claim().tasks


@pytest.mark.parametrize(
    ("status", "becomes"),
    [
        ("paused", "waiting"),
        ("disabled", "waiting"),
        ("pending", "waiting"),
        ("deleted", "canceled"),
    ],
)
def test_a_ready_task_of_an_endpoint_that_is_not_active_leaves_the_queue(status, becomes):
    """A publish that read the endpoint as active may commit after it was paused and settled."""
    endpoint = make_endpoint()
    publish()
    db.execute_sql(
        "UPDATE hookjetty.endpoints SET status = %s, reason = %s WHERE id = %s",
        (status, "gone" if status == "disabled" else None, endpoint),
    )
    assert claim().tasks == []
    (row,) = task_rows()
    assert (row["status"], row["ready"], row["next_try_at"]) == (becomes, False, None)


@pytest.mark.parametrize(("hold", "status"), [("1 hour", "waiting"), ("-1 hour", "pending")])
def test_the_tasks_of_an_endpoint_on_hold_are_not_sent(hold, status):
    """Those of a long one are put aside; a hold that is over soon, or any moment, is skipped."""
    make_endpoint()
    publish()
    db.execute_sql("UPDATE hookjetty.endpoints SET hold_until = now() + %s::interval", (hold,))
    assert claim().tasks == []
    assert task_rows()[0]["status"] == status


def test_a_probe_goes_before_all_that_is_ready():
    endpoint = make_endpoint()
    for _ in range(300):
        publish()
    db.execute_sql(
        "UPDATE hookjetty.tasks SET probe = true WHERE id = (SELECT max(id) FROM hookjetty.tasks)"
    )
    db.execute_sql("UPDATE hookjetty.endpoints SET hold_until = now() + interval '1 h'")
    (task,) = claim().tasks
    assert task.was_probe and task.target.endpoint_id == endpoint


def test_a_probe_passes_a_hold_once():
    make_endpoint()
    publish()
    db.execute_sql("UPDATE hookjetty.endpoints SET hold_until = now() + interval '1 h'")
    db.execute_sql("UPDATE hookjetty.tasks SET probe = true")
    (task,) = claim().tasks
    assert task.was_probe
    assert claim().tasks == []


def test_a_released_task_is_as_if_it_had_not_been_claimed():
    make_endpoint()
    publish()
    before = task_rows()[0]
    claims.release(claim().tasks)
    after = task_rows()[0]
    assert {k: after[k] for k in ("status", "ready", "tries", "step", "attempt_id")} == {
        k: before[k] for k in ("status", "ready", "tries", "step", "attempt_id")
    }
    assert attempt_rows() == []
    assert len(claim().tasks) == 1


def test_a_release_of_a_task_that_somebody_else_holds_changes_nothing():
    make_endpoint()
    publish()
    lost = claim(lease_seconds=0).tasks
    claims.promote()
    held = claim().tasks
    claims.release(lost)
    (row,) = task_rows()
    assert (row["status"], row["attempt_id"]) == ("delivering", held[0].attempt_id)


def test_claims_at_the_same_time_share_no_task():
    for tenant in range(1, 6):
        make_endpoint(tenant)
        for _ in range(40):
            publish(tenant)
    taken: list[int] = []

    def worker():
        with db.connection_context():
            while claimed := claim(limit=7, slots=40).tasks:
                taken.extend(task.task_id for task in claimed)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A claim that finds only locked tasks may end a worker early: the rest is taken here.
    while claimed := claim(slots=40).tasks:
        taken.extend(task.task_id for task in claimed)
    assert len(taken) == len(set(taken)) == 200


def test_the_claim_reads_the_queue_and_not_the_history():
    """EXPLAIN over tables that the planner knows nothing about: indexes, no sequential scan."""
    db.ready(for_hot_statements=True)
    make_endpoint()
    publish()
    claims.promote()
    claim()
    claims.seconds_to_next_due()
    text = ""
    for statement in (
        "visit(0, 0, '{}', 125)",
        "take('{7}', '{1}', '{20}', '{0}')",
        "deliver('{1,2}', 1)",
        "due(1000)",
        "next_due",
    ):
        text += "\n".join(r[0] for r in db.execute_sql(f"EXPLAIN EXECUTE {statement}").fetchall())
    assert "Seq Scan on tasks" not in text and "Hash Join" not in text and "Merge Join" not in text
    assert "Index" in text
