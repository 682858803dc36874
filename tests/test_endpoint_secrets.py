"""An endpoint's secret shown and replaced: GET /endpoints/{id}/secret, POST …/secret/rotate."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks

from app.db import db
from app.models import Endpoint, rfc3339
from tests.conftest import SECRET_KEY, TENANT_PREFIX, Caller
from tests.dispatching import all_done, parse_request, running_engine, sealed, wait_until
from tests.factories import make_endpoint, publish, rows
from tests.hostile import OK, Receiver, answer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "a secret in plain words"
MADE_UP = r"whsec_[A-Za-z0-9+/]{43}="


def add(url: str | None = None, secret: str = SECRET, **columns: Any) -> int:
    return make_endpoint(7, url, secret=sealed(secret, 7), **columns)


def rotate(caller: Caller, body: Any = None, status: int = 200, **options: Any) -> Any:
    given = caller.post("/endpoints/ep_1/secret/rotate", body, **options)
    assert given.status_code == status, given.text
    return given.json


def reveal(caller: Caller, status: int = 200) -> Any:
    given = caller.get("/endpoints/ep_1/secret")
    assert given.status_code == status, given.text
    return given.json


def retired() -> list[dict[str, str]]:
    return Endpoint.get_by_id(1).retired_secrets


def left(until: str) -> timedelta:
    return datetime.fromisoformat(until) - datetime.now(UTC)


# ------------------------------------------------------------------------------------------- shown


def test_the_secret_is_shown_as_it_was_given(owner):
    for number, secret in enumerate((SECRET, OTHER), 1):
        add(f"https://app/{number}", secret)
        given = owner.get(f"/endpoints/ep_{number}/secret")
        assert given.json == {
            "endpoint_id": f"ep_{number}",
            "secret": secret,
            "previous_until": None,
        }
        assert given.headers["Cache-Control"] == "no-store"


def test_a_look_at_it_is_in_the_log_of_peoples_actions_and_the_secret_is_not(owner):
    add()
    reveal(owner)
    (action,) = rows(db.execute_sql("SELECT a.*, a::text AS text FROM hookjetty.audit a"))
    assert (action["tenant_id"], action["action"]) == (7, "reveal_secret")
    assert SECRET not in action["text"]


def test_whoever_may_only_read_does_not_see_it(client, mint):
    add()
    for scopes in (["webhooks:read"], ["events:write"]):
        reader = Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=scopes))
        assert SECRET not in json.dumps(reveal(reader, 403))
    reveal(Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=["webhooks:write"])))


def test_a_stranger_neither_sees_nor_replaces_it(stranger):
    add()
    reveal(stranger, 404)
    rotate(stranger, status=404)
    assert Endpoint.get_by_id(1).version == 1


def test_one_that_nobody_can_read_any_more_can_be_replaced(owner):
    make_endpoint(7)  # "not encrypted"
    assert "rotate it" in reveal(owner, 409)["message"]
    made_up = rotate(owner)["secret"]
    assert (reveal(owner)["secret"], retired()) == (made_up, [])


# ---------------------------------------------------------------------------------------- replaced


def test_a_new_one_is_made_up_shown_and_signs_beside_the_old_one_for_24_hours(owner):
    add()
    rotated = rotate(owner)
    assert re.fullmatch(MADE_UP, rotated["secret"])
    assert (rotated["endpoint_id"], rotated["status"]) == ("ep_1", "active")
    assert timedelta(hours=23, minutes=59) < left(rotated["previous_until"]) < timedelta(hours=24)
    assert reveal(owner) == {
        "endpoint_id": "ep_1",
        "secret": rotated["secret"],
        "previous_until": rotated["previous_until"],
    }


def test_a_given_one_is_not_repeated(owner):
    add()
    assert "secret" not in rotate(owner, {"secret": OTHER})
    assert reveal(owner)["secret"] == OTHER


def test_the_present_one_changes_nothing(owner):
    add()
    rotated = rotate(owner, {"secret": SECRET, "overlap_seconds": 60})
    assert rotated == {"endpoint_id": "ep_1", "status": "active", "previous_until": None}
    assert (Endpoint.get_by_id(1).version, retired()) == (1, [])


def test_the_overlap_is_chosen_and_holds_for_all_that_signed_before(owner):
    add()
    rotate(owner)
    assert left(rotate(owner, {"overlap_seconds": 60})["previous_until"]) < timedelta(minutes=1)
    assert len(retired()) == 2
    assert rotate(owner, {"overlap_seconds": 0})["previous_until"] is None
    assert retired() == []
    rotate(owner, {"overlap_seconds": 30 * 86400})
    assert left(retired()[0]["until"]) > timedelta(days=29)


@pytest.mark.parametrize(
    "body",
    [
        {"overlap_seconds": -1},
        {"overlap_seconds": 30 * 86400 + 1},
        {"overlap_seconds": 1.5},
        {"overlap_seconds": "60"},
        {"overlap_seconds": True},
        {"overlap_seconds": None},
        {"overlap_hours": 1},
        {"secret": "short"},
        {"secret": "***"},
        {"secret": None},
        [],
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(owner, body):
    add()
    details = rotate(owner, body, 400)["details"]
    assert list(details) == (list(body) or ["body"])
    assert Endpoint.get_by_id(1).version == 1


def test_no_body_and_an_empty_object_are_the_same(owner):
    add()
    for options in ({}, {"content_type": "application/json"}, {"json": {}}):
        assert "secret" in rotate(owner, **options)
    rotate(owner, status=400, data=b"{}", content_type="text/plain")


def test_a_receiver_that_is_still_to_consent_is_asked_again_with_the_new_one(owner):
    add(status="pending", handshake_at="2999-01-01", handshake_failure="http_4xx")
    rotate(owner, {"secret": OTHER})
    endpoint = Endpoint.get_by_id(1)
    assert endpoint.handshake_at < datetime.now(UTC)
    assert endpoint.handshake_failure is None


def test_the_stored_answer_of_a_rotation_is_encrypted_and_repeated(owner):
    add()
    first, again = (rotate(owner, headers={"X-Request-Id": "r-1"}) for _ in range(2))
    assert first == again
    (key,) = rows(db.execute_sql("SELECT * FROM hookjetty.idempotency_keys"))
    assert key["sealed"] and first["secret"] not in key["answer"]


def test_deliveries_are_signed_with_both_until_the_old_one_is_over(owner):
    """From the verb to the wire."""
    seen: list[bytes] = []
    with Receiver(answer(OK, seen=seen)) as receiver:
        add(receiver.url())
        verifying = [rotate(owner)["secret"], SECRET]
        publish()
        with running_engine(SECRET_KEYS=SECRET_KEY):
            wait_until(all_done)
            over = json.dumps([{**retired()[0], "until": rfc3339(datetime.now(UTC))}])
            db.execute_sql("UPDATE hookjetty.endpoints SET retired_secrets = %s", (over,))
            publish()
            wait_until(all_done)
    during, after = (parse_request(request) for request in seen)
    for secret in verifying:
        standardwebhooks.Webhook(secret).verify(during[2], during[1])
    assert len(during[1]["webhook-signature"].split()) == 2
    assert len(after[1]["webhook-signature"].split()) == 1
    standardwebhooks.Webhook(verifying[0]).verify(after[2], after[1])
