"""POST /events?dry_run=1: who would get an event, who not, and why; and nothing is stored."""

from __future__ import annotations

from typing import Any

import pytest

from app.db import db
from tests.conftest import TENANT_PREFIX, Caller
from tests.factories import make_endpoint, publish


@pytest.fixture
def publisher(client, mint) -> Caller:
    """Tenant 7 with a token that may publish and read."""
    return Caller(
        client, TENANT_PREFIX, mint(tenant_id=7, scopes=["events:write", "webhooks:read"])
    )


def would(caller: Caller, body: Any = None, path: str = "/events", **options: Any) -> list[Any]:
    body = body or {"type": "export.done", "data": {"n": 1}}
    before = stored()
    answer = caller.post(f"{path}?dry_run=1", body, **options)
    assert answer.status_code == 200, answer.text
    assert stored() == before
    return answer.json["items"]


def stored() -> list[Any]:
    return [
        db.execute_sql(f"SELECT count(*) FROM hookjetty.{table}").fetchone()
        for table in ("events", "event_keys", "tasks", "idempotency_keys")
    ]


def test_it_says_of_each_endpoint_whether_and_why(publisher):
    active = make_endpoint(7, "https://app/a", events=["export.*"])
    other = make_endpoint(7, "https://app/b", events=["import.*"])
    paused = make_endpoint(7, "https://app/c", status="paused")
    make_endpoint(7, "https://app/d", status="deleted")
    make_endpoint(8, "https://app/e")
    assert would(publisher) == [
        {
            "endpoint_id": f"ep_{active}",
            "url": "https://app/a",
            "status": "active",
            "would_receive": True,
            "why": "active, and export.* matches",
        },
        {
            "endpoint_id": f"ep_{other}",
            "url": "https://app/b",
            "status": "active",
            "would_receive": False,
            "why": "does not want export.done, only import.*",
        },
        {
            "endpoint_id": f"ep_{paused}",
            "url": "https://app/c",
            "status": "paused",
            "would_receive": True,
            "why": "paused; its tasks wait until it is resumed",
        },
    ]


def test_those_that_would_get_it_are_those_that_get_it(publisher):
    for n, events in enumerate((["*"], ["export.*"], ["export.done"], ["export"], ["x", "a.*"])):
        make_endpoint(7, f"https://app/{n}", events=events, status=["active", "paused"][n % 2])
    items = would(publisher)
    made = publisher.post("/events", {"type": "export.done", "data": {}}).json
    assert made["tasks"] == sum(item["would_receive"] for item in items)
    got = db.execute_sql("SELECT endpoint_id FROM hookjetty.tasks").fetchall()
    assert {f"ep_{endpoint_id}" for (endpoint_id,) in got} == {
        item["endpoint_id"] for item in items if item["would_receive"]
    }


def test_a_key_that_is_known_makes_nothing(publisher):
    make_endpoint()
    event_id, _ = publish(key="k")
    (item,) = would(publisher, {"type": "x", "data": {}, "key": "k"})
    assert item["would_receive"] is False
    assert item["why"] == f"its key was published before, as evt_{event_id}: nothing is made again"


@pytest.mark.parametrize(
    "body",
    [
        {"type": "a b", "data": {}},
        {"type": "hookjetty.x", "data": {}},
        {"type": "x", "data": []},
        {"type": "x", "data": {"a": "\u0000"}},
        {"type": "x", "data": {}, "key": ""},
        {"type": "x", "data": {}, "tenant_id": 8},
        {"type": "x"},
    ],
)
def test_it_refuses_what_publishing_refuses_in_the_same_words(publisher, body):
    really, dry = publisher.post("/events", body), publisher.post("/events?dry_run=1", body)
    assert (dry.status_code, dry.json["message"]) == (really.status_code, really.json["message"])
    assert dry.status_code in (400, 403)


def test_what_only_postgresql_refuses_is_refused_too(publisher, monkeypatch):
    monkeypatch.setattr(
        "app.schemas.fields.EventType._deserialize", lambda _s, value, *_, **__: value
    )
    for path, body, field in (
        ("/events", {"type": "a b", "data": {}}, "type"),
        ("/events/batch", {"events": [{"type": "x", "data": {}}, {"type": "a b", "data": {}}]},
         "events.1.type"),
    ):  # fmt: skip
        answer = publisher.post(f"{path}?dry_run=1", body)
        assert (answer.status_code, list(answer.json["details"])) == (400, [field])


def test_a_batch_is_answered_event_by_event(publisher):
    make_endpoint(events=["export.*"])
    events = [{"type": type_, "data": {}} for type_ in ("export.done", "import.done")]
    items = would(publisher, {"events": events}, "/events/batch")
    assert [[item["would_receive"] for item in each["items"]] for each in items] == [
        [True],
        [False],
    ]


def test_a_batch_is_bounded(publisher):
    body = {"events": [{"type": "x", "data": {}}] * 101}
    answer = publisher.post("/events/batch?dry_run=1", body)
    assert answer.json["message"] == "events: must be at most 100 in a dry run"


def test_it_is_never_taken_for_the_publication(publisher):
    """A client may send both with the same X-Request-Id."""
    make_endpoint()
    headers = {"X-Request-Id": "r"}
    body = {"type": "x", "data": {}}
    would(publisher, body, headers=headers)
    answer = publisher.post("/events", body, headers=headers)
    assert (answer.status_code, answer.json["tasks"]) == (202, 1)
    would(publisher, body, headers=headers)


def test_a_producer_that_may_not_read_sees_no_url(producer):
    make_endpoint(7, "https://app/with?token=1")
    (item,) = would(producer, {"type": "x", "data": {}, "tenant_id": 7})
    assert "url" not in item
    assert item["would_receive"] is True


@pytest.mark.parametrize(("text", "status"), [("0", 202), ("false", 202), ("true", 200), ("", 400)])
def test_the_flag_is_a_yes_or_a_no(publisher, text, status):
    answer = publisher.post(f"/events?dry_run={text}", {"type": "x", "data": {}})
    assert answer.status_code == status
