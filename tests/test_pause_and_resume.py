"""Somebody pauses an endpoint, and has it called again: POST /endpoints/{id}/pause and /resume."""

from __future__ import annotations

from typing import Any

import pytest

from app import models
from app.db import db
from app.models import Endpoint
from dispatcher import jobs
from tests.factories import claim, make_endpoint, publish, task_rows

CONSENTED = {"verified_at": "2026-01-01"}


def pause(caller, status: int = 200) -> Any:
    answer = caller.post("/endpoints/ep_1/pause")
    assert answer.status_code == status, answer.text
    return answer.json


def resume(caller, status: int = 200) -> Any:
    answer = caller.post("/endpoints/ep_1/resume")
    assert answer.status_code == status, answer.text
    return answer.json


def row() -> Endpoint:
    return Endpoint.get_by_id(1)


def settle() -> None:
    while jobs.settle_step():
        pass


def statuses() -> list[str]:
    return [task["status"] for task in task_rows()]


def test_a_paused_endpoint_is_not_called_until_it_is_resumed(owner):
    make_endpoint(7, **CONSENTED)
    publish()
    assert pause(owner) == {"endpoint_id": "ep_1", "status": "paused", "waiting": 1}
    publish()
    assert claim().tasks == []
    settle()
    assert statuses() == ["waiting"] * 2
    assert resume(owner) == {"endpoint_id": "ep_1", "status": "active", "waiting": 2}
    settle()
    assert statuses() == ["pending"] * 2
    assert len(claim().tasks) == 2


def test_either_twice_changes_nothing_more(owner):
    make_endpoint(7, **CONSENTED)
    for switch, status in ((pause, "paused"), (resume, "active")):
        assert switch(owner)["status"] == switch(owner)["status"] == status
    assert row().version == 4, "resuming an active one ends what is held against it"


def test_what_is_held_against_it_is_forgotten_by_resuming_and_a_hold_by_pausing(owner):
    failing = {"failures": 7, "failing_since": "2026-01-01", "hold_until": "2999-01-01"}
    make_endpoint(7, **CONSENTED, **failing)
    pause(owner)
    assert (row().failures, row().hold_until) == (7, None)
    resume(owner)
    assert (row().failures, row().failing_since) == (0, None)


def test_one_that_has_not_consented_can_be_paused_and_is_asked_when_resumed(owner):
    make_endpoint(7, status="pending", handshake_at="2026-01-01", handshake_failure="dns")
    assert pause(owner) == {"endpoint_id": "ep_1", "status": "paused", "waiting": 0}
    assert (row().handshake_at, row().handshake_failure) == (None, None)
    resumed = resume(owner)
    assert (resumed["status"], resumed["verification"]["failure"]) == ("pending", None)
    assert row().handshake_at is not None


@pytest.mark.usefixtures("consent")
def test_resuming_a_disabled_one_waits_for_its_consent(owner):
    make_endpoint(7, status="disabled", **CONSENTED)
    publish()
    assert resume(owner) == {"endpoint_id": "ep_1", "status": "active", "waiting": 1}


def test_a_disabled_one_cannot_be_paused(owner):
    make_endpoint(7, status="disabled")
    message = pause(owner, 409)["message"]
    assert "disabled" in message and "register it again" in message


def test_a_strangers_and_a_deleted_one_do_not_exist(owner, stranger):
    make_endpoint(7)
    for switch in (pause, resume):
        switch(stranger, 404)
    assert row().version == 1
    owner.delete("/endpoints/ep_1")
    for switch in (pause, resume):
        switch(owner, 404)


# ------------------------------------------------------------------------------- what waits for it


def waiting(caller) -> int:
    return caller.get("/endpoints/ep_1").json["waiting"]


def test_what_waits_is_counted_as_the_lists_show_it(owner):
    """Before the job has moved the tasks, and after it; those of its other endpoints do not."""
    endpoint, other = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
    for _ in range(5):
        publish()
    mine = [task["id"] for task in task_rows(f"endpoint_id = {endpoint}")]
    change = "UPDATE hookjetty.tasks SET ready = false, next_try_at = {} WHERE id IN ({}, {})"
    db.execute_sql(change.format("now() + '1 h', status = 'retry', tries = 1", *mine[:2]))
    db.execute_sql(change.format("NULL, status = 'delivered'", mine[2], mine[2]))
    assert waiting(owner) == 0
    before = pause(owner)["waiting"]
    settle()
    assert before == waiting(owner) == 4
    assert len(owner.get(f"/tasks?status=waiting&endpoint_id=ep_{endpoint}").json["items"]) == 4
    assert [task["status"] for task in task_rows(f"endpoint_id = {other}")] == ["pending"] * 5


def test_a_task_under_way_is_finished_and_does_not_wait(owner):
    make_endpoint(7, **CONSENTED)
    publish()
    assert len(claim().tasks) == 1
    assert pause(owner)["waiting"] == 0


def test_counting_stops_at_a_limit(owner, monkeypatch):
    monkeypatch.setattr(models, "MOST_WAITING_COUNTED", 3)
    make_endpoint(7)
    for _ in range(5):
        publish()
    assert pause(owner)["waiting"] == 3
    settle()
    assert waiting(owner) == 3
