"""How much a tenant may ask for, by all workers together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from werkzeug.test import TestResponse

from app import ratelimit
from app.db import db
from app.publish import MAX_BATCH
from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX, Caller
from tests.factories import make_endpoint
from tests.live import LiveService

EVENT = {"type": "export.done", "data": {}}


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    del environ["HOOKJETTY_RATE_LIMIT"]
    return environ


def is_refused(answer: TestResponse) -> bool:
    if answer.status_code != 429:
        return False
    assert answer.json["error"] == "rate_limited"
    assert answer.headers["Retry-After"].isdigit()
    return True


def refused(caller: Caller, number: int, method: str = "GET", path: str = "/endpoints", **o: Any):
    """Which of so many equal calls are refused."""
    return [n for n in range(number) if is_refused(caller.call(method, path, **o))]


# ----------------------------------------------------------------------- requests of a tenant


def test_the_11th_request_within_a_second_is_refused(owner):
    started = time.monotonic()
    assert refused(owner, 12) == [10, 11]
    assert time.monotonic() - started < 1, "the test itself was too slow"


def test_it_is_a_sliding_log_and_not_a_window_of_the_clock(owner):
    """Five now and five in 0.6 s: in 1.1 s the first five count no more, the others still do."""
    started = time.monotonic()
    assert refused(owner, 5) == []
    time.sleep(0.6)
    assert refused(owner, 6) == [5]
    time.sleep(max(0.0, started + 1.1 - time.monotonic()))
    assert refused(owner, 6) == [5]
    assert time.monotonic() - started < 1.6, "the test itself was too slow"


def test_retry_after_is_when_the_next_one_is_accepted(owner):
    refused(owner, 10)
    answer = owner.get("/endpoints")
    assert is_refused(answer)
    time.sleep(int(answer.headers["Retry-After"]))
    assert not is_refused(owner.get("/endpoints"))


def test_refused_requests_do_not_count(owner):
    """Or who keeps asking would never be heard again."""
    refused(owner, 10)
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:
        accepted = not is_refused(owner.get("/endpoints"))
        if accepted:
            break
    assert accepted


def test_invalid_requests_count_with_and_without_an_idempotency_key(owner):
    for headers in ({}, {"X-Request-Id": "r"}):
        db.execute_sql("DELETE FROM hookjetty.rate_limits")
        answers = [
            owner.post("/endpoints", {"url": 7}, headers=headers),
            owner.post("/endpoints", {"endpoint_id": "ep_1"}, headers=headers),
            owner.post("/endpoints/ep_1/verify", headers=headers),
            owner.post("/endpoints?x=1", {}, headers=headers),
            owner.post("/endpoints", data=b"{", headers=headers),
            owner.delete("/endpoints/ep_1", headers=headers),
            owner.delete("/endpoints/x", headers=headers),
            owner.get("/endpoints/ep_1", headers=headers),
            owner.get("/endpoints?limit=0", headers=headers),
            owner.get("/tasks/x", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [
            400, 404, 404, 400, 400, 404, 400, 404, 400, 400
        ]  # fmt: skip
        assert is_refused(owner.get("/endpoints"))
        assert is_refused(owner.post("/endpoints", {"url": 7}))


def test_a_key_does_not_get_more_than_its_share(owner):
    answers = [
        owner.delete(f"/endpoints/ep_{n + 1}", headers={"X-Request-Id": f"r{n}"}) for n in range(12)
    ]
    assert [answer.status_code for answer in answers] == [404] * 10 + [429] * 2
    time.sleep(1)
    for number in range(11):
        make_endpoint(7, f"https://app/{number}")
    answers = [
        owner.delete(f"/endpoints/ep_{n + 1}", headers={"X-Request-Id": f"s{n}"}) for n in range(11)
    ]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]


def test_the_repeat_of_a_write_does_not_count(owner):
    make_endpoint(7, "https://app/1")
    headers = {"X-Request-Id": "r"}
    assert refused(owner, 30, "DELETE", "/endpoints/ep_1", headers=headers) == []
    assert refused(owner, 9) == []
    assert is_refused(owner.get("/endpoints"))


def test_those_without_a_right_do_not_reach_the_limit(client, mint, owner):
    nobody = Caller(client, TENANT_PREFIX, "x.y.z")
    powerless = Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=[]))
    for caller, status in ((nobody, 401), (powerless, 403)):
        answers = Counter(caller.get("/endpoints").status_code for _ in range(20))
        assert answers == {status: 20}
    assert refused(owner, 10) == []


def test_tenants_do_not_share_and_a_tenants_tokens_do(owner, stranger, client, mint):
    refused(owner, 10)
    assert not is_refused(stranger.get("/endpoints"))
    assert is_refused(Caller(client, TENANT_PREFIX, mint(subject="x", tenant_id=7)).get("/tasks"))


def test_what_the_client_says_of_itself_splits_no_limit(owner):
    assert refused(owner, 10) == []
    for headers in ({"X-Forwarded-For": "192.0.2.1"}, {"X-Request-Id": "x"}, {"User-Agent": "x"}):
        assert is_refused(owner.get("/endpoints", headers=headers))


def test_admins_are_not_limited(admin):
    assert refused(admin, 50, path="?tenant_id=7") == []


def test_what_operators_ask_is_not_limited(client):
    for path in ("/healthz", "/readyz", "/metrics", "/nowhere"):
        assert 429 not in {client.get(path).status_code for _ in range(15)}


# --------------------------------------------------------------- registrations, replays, events


class TestFewerOfSome:
    @pytest.fixture
    def environ(self, environ: dict[str, str]) -> dict[str, str]:
        return environ | {"HOOKJETTY_RATE_LIMIT": "1000"}

    def test_registrations_are_30_a_minute(self, owner):
        body = {"url": "https://app/"}
        assert refused(owner, 32, "POST", "/endpoints", json=body) == [30, 31]
        answer = owner.post("/endpoints/ep_1/verify")
        assert is_refused(answer), "it makes us call a URL as well"
        assert "verifying, testing and rotating a secret all count" in answer.json["message"]
        assert 50 <= int(answer.headers["Retry-After"]) <= 60
        assert not is_refused(owner.get("/endpoints"))

    def test_replay_starts_are_6_a_minute(self, owner):
        body = {"endpoint_id": "ep_1", "from": "2025-10-05T06:00:00Z"}
        assert refused(owner, 8, "POST", "/replay", json=body) == [6, 7]
        assert not is_refused(owner.get("/replays/rpl_1"))


def test_the_largest_batch_does_not_exceed_the_bucket():
    assert ratelimit.EVENTS_PER_SECOND >= MAX_BATCH


class TestPublishing:
    """A bucket of so many events, refilled with as many in a second; requests are not counted."""

    @pytest.fixture(autouse=True)
    def _five(self, monkeypatch) -> None:
        monkeypatch.setattr(ratelimit, "EVENTS_PER_SECOND", 5)

    @pytest.fixture
    def publisher(self, client, mint) -> Caller:
        scopes = ["events:write", "webhooks:read"]
        return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=scopes))

    def test_an_event_costs_one(self, publisher):
        assert refused(publisher, 7, "POST", "/events", json=EVENT) == [5, 6]

    def test_a_batch_costs_its_length(self, publisher):
        batch = {"events": [EVENT] * 3}
        assert refused(publisher, 2, "POST", "/events/batch", json=batch) == [1]
        assert refused(publisher, 2, "POST", "/events", json=EVENT) == [1]

    def test_a_batch_of_all_that_the_bucket_holds_is_accepted(self, publisher):
        assert refused(publisher, 1, "POST", "/events/batch", json={"events": [EVENT] * 5}) == []

    def test_a_service_draws_from_the_bucket_of_the_tenant_it_publishes_for(self, producer):
        for tenant in (7, 8):
            batch = {"events": [EVENT] * 5, "tenant_id": tenant}
            assert refused(producer, 2, "POST", "/events/batch", json=batch) == [1]

    def test_invalid_ones_cost_one(self, publisher):
        assert refused(publisher, 6, "POST", "/events", json={"type": 7}) == [5]

    def test_publishing_does_not_count_as_requests(self, publisher, monkeypatch):
        monkeypatch.setattr(ratelimit, "EVENTS_PER_SECOND", 1000)
        assert refused(publisher, 15, "POST", "/events", json=EVENT) == []
        assert refused(publisher, 11, path="/tasks") == [10]

    def test_the_wait_is_named_in_whole_seconds(self, publisher):
        publisher.post("/events/batch", {"events": [EVENT] * 5})
        assert publisher.post("/events", EVENT).headers["Retry-After"] == "1"


# ---------------------------------------------------------------------------- across workers


@pytest.fixture
def live(database: str) -> Iterator[LiveService]:
    """Gunicorn with two workers."""
    with LiveService(database, dispatchers=0) as service:
        yield service


def test_admins_go_on_while_a_tenant_is_refused(live):
    tenant = {"Authorization": f"Bearer {live.tenant_token(7)}"}
    admin = {"Authorization": f"Bearer {live.admin_token}"}
    for _ in range(12):
        answer = requests.get(live.url + TENANT_PREFIX + "/tasks", headers=tenant, timeout=10)
    assert answer.status_code == 429
    listing = requests.get(f"{live.url}{ADMIN_PREFIX}?tenant_id=7", headers=admin, timeout=10)
    assert listing.status_code == 200
