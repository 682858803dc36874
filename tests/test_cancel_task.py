"""POST /tasks/{id}/cancel: what is open is not tried again, whoever else wants it just then."""

from __future__ import annotations

import threading

import pytest

from app import tasks
from app.db import db
from app.errors import Error
from dispatcher import claim as claims
from tests.dispatching import execute, is_waiting_for_a_lock, wait_until
from tests.factories import claim, make_endpoint, make_task, publish, task_rows
from tests.test_tenant_api import answered, refusal

pytestmark = pytest.mark.usefixtures("database")


@pytest.mark.parametrize("status", ["pending", "retry", "waiting", "canceled"])
def test_an_open_task_is_canceled_and_a_canceled_one_stays_so(owner, status):
    task = make_task(make_endpoint(7), status=status, ready=status == "pending", tries=3)
    for _ in range(2):
        canceled = answered(owner.post(f"/tasks/task_{task}/cancel"))
        assert (canceled["task_id"], canceled["status"]) == (f"task_{task}", "canceled")
        assert canceled["next_try_at"] is None
    (row,) = task_rows()
    assert (row["ready"], row["due_at"], row["tries"]) == (False, None, 3)


@pytest.mark.parametrize("status", ["delivering", "delivered", "failed"])
def test_one_that_is_under_way_or_done_is_a_conflict(owner, status):
    task = make_task(make_endpoint(7), status=status)
    message = refusal(owner.post(f"/tasks/task_{task}/cancel"), 409, "version_conflict")
    assert ("being delivered" if status == "delivering" else f"it is {status}") in message
    assert task_rows()[0]["status"] == status


def test_a_repeat_with_the_same_request_id_does_nothing(owner):
    task = make_task(make_endpoint(7), publish(9)[0], status="waiting")
    key = {"X-Request-Id": "cancel-1"}
    first = owner.post(f"/tasks/task_{task}/cancel", headers=key)
    tasks.retry(task)
    again = owner.post(f"/tasks/task_{task}/cancel", headers=key)
    assert answered(first) == answered(again)
    assert task_rows()[0]["status"] == "retry"


def test_an_unknown_and_a_malformed_id(owner):
    refusal(owner.post("/tasks/task_4711/cancel"), 404, "not_found")
    assert refusal(owner.post("/tasks/4711/cancel"), 400, "invalid_request").startswith("task_id: ")


def test_a_claim_finds_what_was_canceled_no_more():
    make_endpoint(7)
    publish()
    publish()
    first, second = (row["id"] for row in task_rows())
    tasks.cancel(7, first)
    assert [task.task_id for task in claim().tasks] == [second]
    assert claims.visit(claims.START) == []


def test_a_cancel_waits_for_a_claim_and_then_sees_that_it_came_too_late(database):
    """Both at the same moment: the task is sent or canceled, never both."""
    make_endpoint(7)
    publish()
    task = task_rows()[0]["id"]
    outcome: list[str] = []

    def cancel() -> None:
        db.ready()
        try:
            tasks.cancel(7, task)
        except Error as error:
            outcome.append(error.code)
        finally:
            db.give_up()

    thread = threading.Thread(target=cancel)
    with db.atomic():
        assert len(claim().tasks) == 1
        thread.start()
        wait_until(is_waiting_for_a_lock)
    thread.join()
    assert outcome == ["version_conflict"]
    assert execute(database, "SELECT status FROM hookjetty.tasks") == [("delivering",)]


def test_a_claim_leaves_alone_what_is_being_canceled(database):
    make_endpoint(7)
    publish()
    task = task_rows()[0]["id"]
    claimed: list[int] = []

    def try_to_claim() -> None:
        db.ready()
        claimed.append(len(claim().tasks))
        db.give_up()

    with db.atomic():
        tasks.cancel(7, task)
        thread = threading.Thread(target=try_to_claim)
        thread.start()
        thread.join()
    assert claimed == [0]
    assert execute(database, "SELECT status FROM hookjetty.tasks") == [("canceled",)]
