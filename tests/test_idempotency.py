"""X-Request-Id: the same request again gets the same answer, and its work is done once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from werkzeug.test import TestResponse

from app.db import db
from app.models import Endpoint
from tests.conftest import TENANT_PREFIX, Caller, execute
from tests.factories import make_endpoint, publish, rows, task_rows

URL = "https://app/hook"
EVENT = {"type": "export.done", "data": {"n": 1}}


@pytest.fixture
def publisher(client, mint) -> Caller:
    return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=["events:write"]))


def post(caller: Caller, path: str, body: Any = None, key: str = "r-1") -> TestResponse:
    return caller.post(path, body, headers={"X-Request-Id": key})


def is_repeat(answer: TestResponse) -> bool:
    return answer.headers.get("Idempotent-Replayed") == "true"


def keys() -> list[dict[str, Any]]:
    return rows(db.execute_sql("SELECT * FROM hookjetty.idempotency_keys"))


def refusal(answer: TestResponse, status: int, code: str) -> str:
    assert (answer.status_code, answer.json["error"]) == (status, code), answer.text
    return answer.json["message"]


# ------------------------------------------------------------------------------------- repeats


def test_every_write_of_a_tenant_is_done_once(owner, publisher):
    make_endpoint(7, URL)
    replay = {"endpoint_id": "ep_1", "from": "2025-10-05T06:00:00Z"}
    for caller, path, body, method in (
        (publisher, "/events", EVENT, "POST"),
        (publisher, "/events/batch", {"events": [EVENT]}, "POST"),
        (owner, "/endpoints/ep_1/verify", None, "POST"),
        (owner, "/endpoints/ep_1/test", None, "POST"),
        (owner, "/endpoints/ep_1/secret/rotate", None, "POST"),
        (owner, "/endpoints/ep_1/pause", None, "POST"),
        (owner, "/endpoints/ep_1/resume", None, "POST"),
        (owner, "/replay", replay, "POST"),
        (owner, "/replays/rpl_1/cancel", None, "POST"),
        (owner, "/endpoints", {"url": f"{URL}/2"}, "POST"),
        (owner, "/endpoints/ep_1", None, "DELETE"),
    ):
        options = {"headers": {"X-Request-Id": "r-1"}, "json": body}
        first = caller.call(method, path, **options)
        again = caller.call(method, path, **options)
        assert first.status_code in (200, 201, 202), first.text
        assert (again.status_code, again.data) == (first.status_code, first.data)
        assert (is_repeat(first), is_repeat(again)) == (False, True)
        assert again.content_type == first.content_type
    assert len(rows(db.execute_sql("SELECT FROM hookjetty.events"))) == 3
    assert len(rows(db.execute_sql("SELECT FROM hookjetty.replays"))) == 1


def test_every_write_of_an_admin_is_done_once(admin):
    make_endpoint(7, f"{URL}/1")
    publish()
    task = task_rows()[0]["id"]
    for path, body in (
        ("", {"tenant_id": 7, "url": URL}),
        ("/tasks/retry", {"id": task}),
        ("/delete", {"id": 1}),
    ):
        first, again = post(admin, path, body), post(admin, path, body)
        assert (again.status_code, again.data) == (first.status_code, first.data)
        assert (is_repeat(first), is_repeat(again)) == (False, True)
    assert [key["owner"] for key in keys()] == [0, 0, 0]


def test_another_body_is_a_conflict(owner):
    post(owner, "/endpoints", {"url": URL})
    answer = post(owner, "/endpoints", {"url": URL, "events": ["*"]})
    assert "r-1" in refusal(answer, 409, "version_conflict")


def test_bodies_are_compared_byte_by_byte(owner):
    for body, status in ((b'{"url":"https://app/"}', 201), (b'{"url": "https://app/"}', 409)):
        answer = owner.post(
            "/endpoints",
            data=body,
            content_type="application/json",
            headers={"X-Request-Id": "r-1"},
        )
        assert answer.status_code == status


def test_keys_are_per_tenant_method_and_path(owner, stranger, client, mint):
    answers = [
        post(owner, "/endpoints", {"url": URL}),
        post(stranger, "/endpoints", {"url": URL}),
        post(owner, "/endpoints/ep_1/verify"),
        owner.delete("/endpoints/ep_1", headers={"X-Request-Id": "r-1"}),
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 200, 200]
    assert not any(map(is_repeat, answers))
    # Whoever bears the tenant's token is the tenant.
    colleague = Caller(client, TENANT_PREFIX, mint(subject="otto", tenant_id=7))
    assert is_repeat(post(colleague, "/endpoints", {"url": URL}))


def test_only_successes_are_kept(owner):
    make_endpoint(7, URL, status="paused")
    refusal(post(owner, "/endpoints/ep_1/verify"), 409, "version_conflict")
    refusal(post(owner, "/endpoints", {"url": 7}), 400, "invalid_request")
    refusal(post(owner, "/endpoints/ep_2/verify"), 404, "not_found")
    assert keys() == []
    Endpoint.update(status="active").execute()
    answer = post(owner, "/endpoints/ep_1/verify")
    assert (answer.status_code, is_repeat(answer)) == (200, False)


def test_a_failure_in_the_middle_leaves_neither_key_nor_work(publisher, monkeypatch):
    monkeypatch.setattr("app.idempotency.IdempotencyKey.update", None)
    refusal(post(publisher, "/events", EVENT), 500, "internal_error")
    assert keys() == []
    assert rows(db.execute_sql("SELECT FROM hookjetty.events")) == []
    monkeypatch.undo()
    assert post(publisher, "/events", EVENT).status_code == 202


def test_without_the_header_nothing_is_stored(owner, publisher):
    owner.post("/endpoints", {"url": URL})
    publisher.post("/events", EVENT)
    assert keys() == []


def test_an_answer_counts_for_24_hours(owner):
    post(owner, "/endpoints", {"url": URL})
    for age, repeats in (("23 hours 59 minutes", True), ("24 hours", False)):
        db.execute_sql(
            "UPDATE hookjetty.idempotency_keys SET created_at = now() - %s::interval", (age,)
        )
        answer = post(owner, "/endpoints", {"url": URL})
        assert is_repeat(answer) == repeats
    assert answer.status_code == 200, "the endpoint is there already"
    (key,) = keys()
    assert key["status_code"] == 200


# ------------------------------------------------------------------------------------- secrets


def test_an_answer_with_a_secret_is_stored_encrypted(owner, admin):
    for caller, body in ((owner, {"url": URL}), (admin, {"tenant_id": 7, "url": f"{URL}/2"})):
        path = "/endpoints" if caller is owner else ""
        first = post(caller, path, body)
        data = first.json if caller is owner else first.json["data"]
        assert data["secret"].startswith("whsec_")
        assert post(caller, path, body).json == first.json
        assert all(key["sealed"] for key in keys())
        assert not any(data["secret"] in key["answer"] for key in keys())
        assert not any("whsec" in key["answer"] for key in keys())


def test_other_answers_are_stored_as_they_are(publisher):
    answer = post(publisher, "/events", EVENT)
    (key,) = keys()
    assert (key["sealed"], key["status_code"]) == (False, 202)
    assert key["answer"] == answer.text


# -------------------------------------------------------------------------------- registration


def test_a_repeated_registration_shows_the_present_status_and_the_same_secret(owner):
    first = post(owner, "/endpoints", {"url": URL})
    assert (first.json["status"], "verification" in first.json) == ("pending", True)
    Endpoint.update(status="active", handshake_at=None).execute()
    again = post(owner, "/endpoints", {"url": URL})
    assert again.status_code == 201
    assert again.json == {
        "endpoint_id": first.json["endpoint_id"],
        "status": "active",
        "secret": first.json["secret"],
    }
    owner.delete(f"/endpoints/{first.json['endpoint_id']}")
    assert post(owner, "/endpoints", {"url": URL}).json["status"] == "deleted"


def test_a_repeated_registration_never_waits_for_the_first_ones_handshake(owner, app, mint):
    """The key and the endpoint commit before the wait."""
    execute(
        app.extensions["hookjetty"].settings.database_url,
        "INSERT INTO hookjetty.dispatchers (id, host, pid) VALUES (1, 'x', 1)",
    )
    answers: list[dict[str, Any]] = []

    def first() -> None:
        caller = Caller(app.test_client(), TENANT_PREFIX, mint(tenant_id=7))
        answers.append(post(caller, "/endpoints", {"url": URL}).json)
        db.give_up()

    thread = threading.Thread(target=first)
    thread.start()
    while not keys():
        pass
    again = post(owner, "/endpoints", {"url": URL})
    assert answers == [], "the first still waits"
    assert (is_repeat(again), again.json["status"]) == (True, "pending")
    Endpoint.update(status="active", handshake_at=None).execute()
    thread.join()
    assert answers[0] == {
        "endpoint_id": again.json["endpoint_id"],
        "status": "active",
        "secret": again.json["secret"],
    }


# --------------------------------------------------------------------------------- the key itself


def test_what_cannot_be_a_request_id_is_refused_and_not_echoed(owner, admin):
    for key in ("", " ", "a b", "x" * 256, "é", "a\x7fb", "a\tb"):
        answer = owner.get("/endpoints", headers={"X-Request-Id": key})
        assert "X-Request-Id" in refusal(answer, 400, "invalid_request"), key
        assert answer.headers["X-Request-Id"] != key
        assert answer.headers["X-Request-Id"] == answer.json["request_id"]
        admins = admin.post("", {"tenant_id": 7, "url": URL}, headers={"X-Request-Id": key})
        assert admins.status_code == 400
    for key in ("!", "~" * 255):
        assert post(owner, "/endpoints", {"url": URL}, key).headers["X-Request-Id"] == key


def test_a_request_id_is_made_up_when_absent(owner, client):
    made_up = {owner.get("/endpoints").headers["X-Request-Id"] for _ in range(3)}
    made_up.add(client.get("/nowhere").headers["X-Request-Id"])
    assert len(made_up) == 4
