"""A tenant's own limits hold at once, everywhere that limits hold."""

from __future__ import annotations

from collections import Counter

import pytest

from app.db import db
from tests.conftest import TENANT_PREFIX, Caller
from tests.factories import make_endpoint, publish, rows
from tests.test_admin_api import data_of, refusal
from tests.test_rate_limits import EVENT, refused

LIMITS = [
    "requests_per_second",
    "registrations_per_minute",
    "replays_per_minute",
    "events_per_second",
    "endpoints",
]


def limit(admin: Caller, tenant_id: int = 7, **limits: int | None) -> None:
    data_of(admin.post("/tenants/limits", {"tenant_id": tenant_id} | limits))


@pytest.fixture
def publisher(client, mint) -> Caller:
    return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=["events:write"]))


def test_requests(admin, owner, stranger):
    limit(admin, requests_per_second=3)
    assert refused(owner, 5) == [3, 4]
    assert refused(stranger, 5) == []
    assert "more than 3 requests per second" in owner.get("/endpoints").json["message"]
    limit(admin, requests_per_second=None)
    assert refused(owner, 5) == []


def test_dry_runs_whatever_their_request_id(admin, owner):
    """They do the work of counting each time, and no answer of theirs is kept."""
    limit(admin, requests_per_second=2)
    asked = {"json": {"status": "failed"}, "headers": {"X-Request-Id": "r"}}
    assert refused(owner, 4, "POST", "/tasks/retry?dry_run=1", **asked) == [2, 3]


def test_a_limit_can_be_above_everybodys(admin, owner):
    """30 a minute register."""
    limit(admin, registrations_per_minute=33)
    body = {"url": "https://app/"}
    assert refused(owner, 35, "POST", "/endpoints", json=body) == [33, 34]


def test_registrations(admin, owner):
    limit(admin, registrations_per_minute=2)
    assert refused(owner, 3, "POST", "/endpoints", json={"url": "https://app/"}) == [2]


def test_replay_starts(admin, owner):
    limit(admin, replays_per_minute=2)
    body = {"endpoint_id": "ep_1", "from": "2025-10-05T06:00:00Z"}
    assert refused(owner, 3, "POST", "/replay", json=body) == [2]


def test_events_on_the_short_way_and_on_the_long_one(admin, publisher, producer):
    """With an X-Request-Id, it is the view that publishes."""
    limit(admin, events_per_second=2)
    assert refused(publisher, 3, "POST", "/events", json=EVENT) == [2]
    assert "more than 2 events per second" in publisher.post("/events", EVENT).json["message"]
    headers = {"X-Request-Id": "r"}
    assert publisher.post("/events", EVENT, headers=headers).status_code == 429
    batch = {"events": [EVENT], "tenant_id": 7}
    assert producer.post("/events/batch", batch).status_code == 429
    assert producer.post("/events/batch", batch | {"tenant_id": 8}).status_code == 202


def test_a_batch_that_is_longer_than_the_bucket_takes_all_of_it(admin, publisher):
    limit(admin, events_per_second=2)
    batch = {"events": [EVENT] * 3}
    assert refused(publisher, 2, "POST", "/events/batch", json=batch)[-1] == 1


def test_endpoints_of_both_surfaces(admin, owner):
    for number in range(3):
        make_endpoint(7, f"https://app/{number}")
    limit(admin, endpoints=4)
    assert owner.post("/endpoints", {"url": "https://app/3"}).status_code == 201
    refusals = [
        owner.post("/endpoints", {"url": "https://app/4"}).json["message"],
        refusal(admin.post("", {"tenant_id": 7, "url": "https://app/4"}), 400),
    ]
    assert all("has 4 endpoints, which is the most" in each for each in refusals)
    assert owner.post("/endpoints", {"url": "https://app/1"}).status_code == 200


def test_a_limit_below_what_is_there_leaves_it_there(admin, owner):
    for number in range(3):
        make_endpoint(7, f"https://app/{number}")
    limit(admin, endpoints=1)
    assert len(owner.get("/endpoints").json["items"]) == 3
    assert owner.post("/endpoints", {"url": "https://app/1"}).status_code == 200


def test_limits_that_are_absent_stay(admin):
    limit(admin, endpoints=5)
    limit(admin, replays_per_minute=9)
    assert data_of(admin.get("/tenants/detail?tenant_id=7"))["own_limits"] == {
        "endpoints": 5,
        "replays_per_minute": 9,
    }


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_no_limit_is_refused(admin, name):
    for value in (0, -1, "5", 1.5, True, 10**7, [1]):
        message = refusal(admin.post("/tenants/limits", {"tenant_id": 7, name: value}), 400)
        assert message.startswith(f"{name}: must be an integer from 1 to")
    assert "names no limit" in refusal(admin.post("/tenants/limits", {"tenant_id": 7}), 400)
    assert rows(db.execute_sql("SELECT * FROM hookjetty.tenants")) == []


def test_a_publish_makes_no_row_of_a_tenant(publisher):
    assert refused(publisher, 3, "POST", "/events", json=EVENT) == []
    publish(9)
    assert rows(db.execute_sql("SELECT * FROM hookjetty.tenants")) == []


def test_the_hot_paths_ask_no_more_often(admin, owner, publisher, monkeypatch):
    limit(admin, requests_per_second=100, events_per_second=100)
    statements: Counter[str] = Counter()
    execute_sql = db.execute_sql

    def listening(sql, *args):
        statements["all"] += 1
        return execute_sql(sql, *args)

    monkeypatch.setattr(db, "execute_sql", listening)
    publisher.post("/events", EVENT)
    assert statements.pop("all") == 1
    owner.get("/endpoints")
    assert statements["all"] == 2, "the limit, and the list"
