"""The jobs: replays, settling, sweeping, partitions and retention, one step at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.db import db
from app.models import id_at
from dispatcher import jobs
from tests.factories import claim, make_endpoint, publish, rows, task_rows

pytestmark = pytest.mark.usefixtures("database")


def set_status(endpoint: int, status: str) -> None:
    db.execute_sql(
        "UPDATE hookjetty.endpoints SET status = %s, reason = %s, settling = true WHERE id = %s",
        (status, "gone" if status == "disabled" else None, endpoint),
    )


def make_replay(endpoint: int, tenant_id: int = 7, from_id: int = 0) -> int:
    return db.execute_sql(
        "INSERT INTO hookjetty.replays"
        " (tenant_id, endpoint_id, status, from_id, cursor_id, upto_id)"
        " VALUES (%s, %s, 'running', %s, %s, hookjetty.new_id()) RETURNING id",
        (tenant_id, endpoint, from_id, from_id - 1),
    ).fetchone()[0]


def replay_row(replay: int) -> dict:
    return rows(db.execute_sql("SELECT * FROM hookjetty.replays WHERE id = %s", (replay,)))[0]


# ----------------------------------------------------------------------------------- settling


@pytest.mark.parametrize(
    ("status", "becomes"), [("paused", "waiting"), ("disabled", "waiting"), ("deleted", "canceled")]
)
def test_the_open_tasks_of_an_endpoint_that_stops_follow_its_status(status, becomes):
    endpoint = make_endpoint()
    for _ in range(3):
        publish()
    first, second, third = (row["id"] for row in task_rows())
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'retry', ready = false,"
        " next_try_at = now() + interval '1 day' WHERE id = %s",
        (second,),
    )
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'delivered', ready = false, next_try_at = NULL"
        " WHERE id = %s",
        (third,),
    )
    set_status(endpoint, status)
    jobs.until_done(jobs.settle_step)
    assert [row["status"] for row in task_rows()] == [becomes, becomes, "delivered"]
    assert not rows(db.execute_sql("SELECT 1 FROM hookjetty.endpoints WHERE settling"))
    assert first


def test_the_tasks_that_waited_become_due_when_their_endpoint_is_active_again():
    endpoint = make_endpoint(status="paused")
    publish()
    publish()
    assert {row["status"] for row in task_rows()} == {"waiting"}
    db.execute_sql(
        "UPDATE hookjetty.tasks SET tries = 2 WHERE id = (SELECT max(id) FROM hookjetty.tasks)"
    )
    set_status(endpoint, "active")
    jobs.until_done(jobs.settle_step)
    assert [(row["status"], row["ready"]) for row in task_rows()] == [
        ("pending", True),
        ("retry", True),
    ]


def test_deleting_cancels_the_tasks_that_wait_too():
    endpoint = make_endpoint(status="paused")
    publish()
    set_status(endpoint, "deleted")
    jobs.until_done(jobs.settle_step)
    assert task_rows()[0]["status"] == "canceled"


def test_the_sweep_finds_tasks_that_wait_for_an_active_endpoint():
    """A publish read the endpoint as paused, and committed after it was resumed and settled."""
    endpoint = make_endpoint(status="paused")
    publish()
    set_status(endpoint, "active")
    db.execute_sql("UPDATE hookjetty.endpoints SET settling = false")
    jobs.until_done(jobs.sweep)
    assert task_rows()[0]["status"] == "pending"


def test_the_sweep_leaves_the_tasks_of_a_paused_endpoint_waiting():
    make_endpoint(status="paused")
    publish()
    jobs.until_done(jobs.sweep)
    assert task_rows()[0]["status"] == "waiting"


def test_the_sweep_forgets_dispatchers_that_fell_silent():
    alive, silent = jobs.register_dispatcher(), jobs.register_dispatcher()
    db.execute_sql(
        "UPDATE hookjetty.dispatchers SET seen_at = now() - interval '2 minutes' WHERE id = %s",
        (silent,),
    )
    jobs.sweep()
    assert db.execute_sql("SELECT id FROM hookjetty.dispatchers").fetchall() == [(alive,)]


# ------------------------------------------------------------------------------------ replays


def test_a_replay_makes_a_task_in_its_lane_for_each_past_event_the_endpoint_wants():
    publish(7, "export.done")
    publish(7, "import.done")
    publish(8, "export.done")
    endpoint = make_endpoint(7, events=["export.*"])
    replay = make_replay(endpoint)
    jobs.until_done(jobs.replay_step)
    (task,) = task_rows()
    assert (task["endpoint_id"], task["lane"], task["replay_id"]) == (endpoint, 1, replay)
    assert (task["status"], task["ready"]) == ("pending", True)
    row = replay_row(replay)
    assert (row["status"], row["events"], row["tasks"]) == ("finished", 2, 1)


def test_a_replay_skips_events_with_an_open_task_and_repeats_delivered_ones():
    endpoint = make_endpoint()
    publish()
    publish()
    delivered, _open = (row["id"] for row in task_rows())
    db.execute_sql(
        "UPDATE hookjetty.tasks SET status = 'delivered', ready = false, next_try_at = NULL"
        " WHERE id = %s",
        (delivered,),
    )
    make_replay(endpoint)
    jobs.until_done(jobs.replay_step)
    made = task_rows("lane = 1")
    assert [row["event_id"] for row in made] == [task_rows()[0]["event_id"]]


def test_a_replay_goes_on_where_its_last_batch_was_committed(monkeypatch):
    monkeypatch.setattr(jobs, "BATCH", 4)
    for _ in range(10):
        publish()
    replay = make_replay(make_endpoint())
    jobs.replay_step()
    assert replay_row(replay)["tasks"] == 4
    jobs.until_done(jobs.replay_step)  # as a dispatcher does that was started after a crash
    events = [row["event_id"] for row in task_rows()]
    assert len(events) == len(set(events)) == 10
    assert replay_row(replay)["status"] == "finished"


def test_a_batch_that_is_rolled_back_leaves_neither_tasks_nor_progress(monkeypatch):
    publish()
    replay = make_replay(make_endpoint())
    with db.atomic() as transaction:
        jobs.replay_step()
        transaction.rollback()
    assert task_rows() == [] and replay_row(replay)["tasks"] == 0
    jobs.until_done(jobs.replay_step)
    assert len(task_rows()) == 1


def test_the_events_after_the_request_are_not_replayed():
    endpoint = make_endpoint(events=["nothing.else"])
    replay = make_replay(endpoint)
    db.execute_sql("UPDATE hookjetty.endpoints SET events = '{*}'")
    publish()
    jobs.until_done(jobs.replay_step)
    assert replay_row(replay)["tasks"] == 0
    assert [row["lane"] for row in task_rows()] == [0]


def test_the_replay_of_a_paused_endpoint_waits_with_it():
    publish()
    make_replay(make_endpoint(status="paused"))
    jobs.until_done(jobs.replay_step)
    assert [row["status"] for row in task_rows()] == ["waiting"]


# ----------------------------------------------------------------------- partitions, retention


def partitions() -> list[str]:
    return [
        row[0]
        for row in db.execute_sql("SELECT name FROM hookjetty.partitions ORDER BY 1").fetchall()
    ]


def test_partitions_are_made_eight_weeks_ahead_and_only_once():
    assert len(partitions()) == 27  # 3 tables, this week and 8 more
    jobs.make_partitions()
    assert len(partitions()) == 27


def test_expired_weeks_are_dropped_and_the_others_stay():
    old = datetime.now(UTC) - timedelta(days=60)
    db.execute_sql("SELECT hookjetty.make_partitions(%s, 0)", (old,))
    db.execute_sql(
        "INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)"
        " VALUES (%s, 7, 'a', '{}', 0)",
        (id_at(old),),
    )
    publish()
    before = partitions()
    jobs.drop_expired(30)
    assert len(before) - len(partitions()) == 3
    assert db.execute_sql("SELECT count(*) FROM hookjetty.events").fetchone() == (1,)


def test_open_tasks_of_an_expired_event_fail_first():
    """A replayed task may be younger than its event's week."""
    old = datetime.now(UTC) - timedelta(days=60)
    db.execute_sql("SELECT hookjetty.make_partitions(%s, 0)", (old,))
    endpoint = make_endpoint()
    publish()
    db.execute_sql("UPDATE hookjetty.tasks SET event_id = %s", (id_at(old),))
    jobs.drop_expired(30)
    (row,) = task_rows()
    assert (row["status"], row["failure"], row["endpoint_id"]) == ("failed", "expired", endpoint)


def test_a_detach_that_was_cut_off_is_finished():
    old = datetime.now(UTC) - timedelta(days=60)
    db.execute_sql("SELECT hookjetty.make_partitions(%s, 0)", (old,))
    name = db.execute_sql(
        "SELECT name FROM hookjetty.partitions WHERE parent = 'tasks' ORDER BY from_id LIMIT 1"
    ).fetchone()[0]
    # What a crash between the two halves of DETACH … CONCURRENTLY leaves behind.
    db.execute_sql(
        "UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = %s::regclass",
        (f"hookjetty.{name}",),
    )
    jobs.drop_expired(30)
    assert name not in partitions()


def test_claims_go_on_while_partitions_are_dropped():
    make_endpoint()
    publish()
    db.execute_sql(
        "SELECT hookjetty.make_partitions(%s, 0)", (datetime.now(UTC) - timedelta(days=60),)
    )
    claim()  # its plan knows the old partition
    jobs.drop_expired(30)
    publish()
    assert len(claim().tasks) == 1


def test_answers_and_counts_and_keys_are_forgotten_when_their_time_is_over():
    publish(key="recent")
    db.execute_sql(
        """
        INSERT INTO hookjetty.idempotency_keys (owner, method, path, key, body_sha256, created_at)
        VALUES (7, 'POST', '/', 'old', '', now() - interval '25 hours'),
               (7, 'POST', '/', 'new', '', now());
        INSERT INTO hookjetty.rate_limits (key, counted_at)
        VALUES ('old', now() - interval '1 day');
        INSERT INTO hookjetty.event_keys VALUES (7, 'old', 1)
        """
    )
    jobs.until_done(lambda: jobs.prune_step(30, 365))
    assert db.execute_sql("SELECT key FROM hookjetty.idempotency_keys").fetchall() == [("new",)]
    assert db.execute_sql("SELECT key FROM hookjetty.event_keys").fetchall() == [("recent",)]
    assert db.execute_sql("SELECT count(*) FROM hookjetty.rate_limits").fetchone() == (0,)
