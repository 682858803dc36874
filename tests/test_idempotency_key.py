"""Idempotency-Key: another name for X-Request-Id, which many clients know."""

from __future__ import annotations

from typing import Any

import pytest

from app.db import db
from app.models import Endpoint
from tests.conftest import TENANT_PREFIX, Caller
from tests.factories import make_endpoint, publish, rows, task_rows

BODY = {"url": "https://app/hook"}


@pytest.fixture
def publisher(client, mint) -> Caller:
    return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=["events:write"]))


def is_repeat(answer: Any) -> bool:
    return answer.headers.get("Idempotent-Replayed") == "true"


def test_either_name_is_the_same_key(owner):
    names = ("Idempotency-Key", "X-Request-Id", "idempotency-key")
    answers = [owner.post("/endpoints", BODY, headers={name: "r-1"}) for name in names]
    both = {"Idempotency-Key": "r-1", "X-Request-Id": "r-1"}
    answers.append(owner.post("/endpoints", BODY, headers=both))
    assert [is_repeat(answer) for answer in answers] == [False, True, True, True]
    assert {answer.headers["X-Request-Id"] for answer in answers} == {"r-1"}
    assert Endpoint.select().count() == 1


def test_the_admin_surface_takes_it_too(admin):
    make_endpoint(7)
    publish()
    body = {"id": task_rows()[0]["id"]}
    answers = [
        admin.post("/tasks/retry", body, headers={name: "r-1"})
        for name in ("Idempotency-Key", "X-Request-Id")
    ]
    assert [is_repeat(answer) for answer in answers] == [False, True]


def test_two_different_keys_are_refused(owner):
    both = {"Idempotency-Key": "r-1", "X-Request-Id": "r-2"}
    answer = owner.post("/endpoints", BODY, headers=both)
    assert (answer.status_code, list(answer.json["details"])) == (400, ["Idempotency-Key"])
    assert Endpoint.select().count() == 0


def test_one_that_is_no_key_is_refused_by_its_name(owner):
    for key in ("", "a b", "é", "x" * 256):
        answer = owner.post("/endpoints", BODY, headers={"Idempotency-Key": key})
        assert (answer.status_code, list(answer.json["details"])) == (400, ["Idempotency-Key"])


@pytest.mark.parametrize("path", ["/events", "/events/batch"])
def test_publishing_with_it_is_done_once(publisher, path):
    """Most events never reach the views (app/ingest.py); those with a key must."""
    event = {"type": "export.done", "data": {}}
    body = event if path == "/events" else {"events": [event]}
    first, again = (
        publisher.post(path, body, headers={"Idempotency-Key": "r-1"}) for _ in range(2)
    )
    assert (first.status_code, is_repeat(first), is_repeat(again)) == (202, False, True)
    assert first.data == again.data
    assert len(rows(db.execute_sql("SELECT FROM hookjetty.events"))) == 1


def test_a_read_is_named_by_it_and_never_repeated(owner):
    assert owner.get("/endpoints", headers={"Idempotency-Key": "r-1"}).json["items"] == []
    owner.post("/endpoints", BODY)
    answer = owner.get("/endpoints", headers={"Idempotency-Key": "r-1"})
    assert len(answer.json["items"]) == 1
    assert answer.headers["X-Request-Id"] == "r-1"
