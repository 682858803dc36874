"""Nobody's change overwrites what he has not seen: ETag and If-Match of endpoints."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from werkzeug.test import TestResponse

from app.db import db
from app.models import Endpoint
from tests.conftest import TENANT_PREFIX, Caller
from tests.dispatching import sealed
from tests.factories import make_endpoint

URL = "https://app/hook"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

# Every write of one endpoint.
WRITES: list[tuple[str, str, Any]] = [
    ("POST", "/endpoints", {"url": URL, "events": ["x"]}),
    ("POST", "/endpoints", {"endpoint_id": "ep_1", "events": ["x"]}),
    ("POST", "/endpoints/ep_1/pause", None),
    ("POST", "/endpoints/ep_1/resume", None),
    ("POST", "/endpoints/ep_1/verify", None),
    ("POST", "/endpoints/ep_1/verify", {"check_signatures": True}),
    ("POST", "/endpoints/ep_1/secret/rotate", None),
    ("POST", "/endpoints/ep_1/test", None),
    ("DELETE", "/endpoints/ep_1", None),
]


def add() -> None:
    make_endpoint(7, URL, secret=sealed(SECRET, 7), verified_at="2026-01-01")


def row() -> Endpoint:
    return Endpoint.get_by_id(1)


def send(caller: Caller, method: str, path: str, body: Any, if_match: str, **more: str):
    headers = {"If-Match": if_match} | more
    return caller.call(method, path, headers=headers, **({"json": body} if body else {}))


def conflict(answer: TestResponse) -> str:
    assert (answer.status_code, answer.json["error"]) == (409, "version_conflict"), answer.text
    return answer.json["message"]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_every_write_is_refused_for_a_state_that_is_over_and_done_for_the_present_one(
    owner, method, path, body
):
    add()
    seen = owner.get("/endpoints/ep_1").headers["ETag"]
    assert seen == '"ep_1.1"'
    Endpoint.change(1, description="somebody else was here")
    before = row().__data__
    assert '"ep_1.2"' in conflict(send(owner, method, path, body, seen))
    assert row().__data__ == before
    present = owner.get("/endpoints/ep_1").headers["ETag"]
    assert send(owner, method, path, body, present).status_code in (200, 202)


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_a_star_and_a_list_are_taken_and_what_is_malformed_is_not(owner, method, path, body):
    for given in (
        "ep_1.1",
        "1",
        '"',
        '"ep_1.1',
        'w/"x"',
        '""x',
        "",
        ",",
        '*, "x"',
        '"a" "b"',
        "**",
    ):
        answer = send(owner, method, path, body, given)
        assert (answer.status_code, list(answer.json["details"])) == (400, ["If-Match"]), given
    add()
    for given in ('W/"ep_1.1"', '"*"', '""', '"ep_2.1"', '"ep_1.2", "ep_1.11"'):
        conflict(send(owner, method, path, body, given))
    for given in ("*", ' "ep_9.9" ,\t"ep_1.1"'):
        assert send(owner, method, path, body, given).status_code in (200, 202), given
        db.execute_sql("DELETE FROM hookjetty.tasks")
        db.execute_sql("DELETE FROM hookjetty.endpoints")
        add_again()


def add_again() -> None:
    make_endpoint(7, URL, id=1, secret=sealed(SECRET, 7), verified_at="2026-01-01")


def test_what_does_not_exist_is_in_no_state(owner, stranger):
    body = {"url": URL}
    for given in ("*", '"ep_1.1"'):
        conflict(send(owner, "POST", "/endpoints", body, given))
    assert Endpoint.select().count() == 0
    add()
    for method, path, _ in WRITES[2:]:
        answer = send(stranger, method, path, None, '"ep_1.1"')
        assert answer.status_code == 404, "no state of another tenant's can be asked for"


def test_answers_about_one_endpoint_name_its_state_and_changes_make_it_another_one(owner):
    made = owner.post("/endpoints", {"url": URL, "secret": SECRET})
    states = [made.headers["ETag"]]
    for method, path, body in (
        ("POST", "/endpoints", {"url": URL, "description": "x"}),
        ("POST", "/endpoints/ep_1/secret/rotate", {}),
        ("POST", "/endpoints/ep_1/pause", None),
        ("POST", "/endpoints/ep_1/resume", None),
        ("POST", "/endpoints/ep_1/verify", None),
    ):
        answer = owner.call(method, path, **({"json": body} if body is not None else {}))
        assert answer.status_code == 200, answer.text
        states.append(answer.headers["ETag"])
        for read in ("/endpoints/ep_1", "/endpoints/ep_1/secret"):
            assert owner.get(read).headers["ETag"] == states[-1]
    assert states == [f'"ep_1.{number}"' for number in range(1, 7)]
    assert owner.get("/endpoints/ep_1").json["version"] == 6


def test_what_changes_nothing_and_what_dispatchers_write_is_no_new_state(owner):
    add()
    db.execute_sql(
        "UPDATE hookjetty.endpoints SET failures = 3, failing_since = now(), status = 'disabled',"
        " reason = 'failing'"
    )
    assert owner.get("/endpoints/ep_1").headers["ETag"] == '"ep_1.1"'
    db.execute_sql("UPDATE hookjetty.endpoints SET status = 'active', reason = NULL")
    for body in ({"url": URL, "metadata": {}}, {"url": URL, "description": None}):
        assert owner.post("/endpoints", body).headers["ETag"] == '"ep_1.1"'


def test_a_repeat_is_answered_with_the_state_that_the_write_had_made(owner):
    add()
    write = ("POST", "/endpoints", {"url": URL, "events": ["x"]}, '"ep_1.1"')
    first = send(owner, *write, **{"X-Request-Id": "r-1"})
    Endpoint.change(1, description="somebody else was here")
    again = send(owner, *write, **{"X-Request-Id": "r-1"})
    assert again.headers["Idempotent-Replayed"] == "true"
    assert first.headers["ETag"] == again.headers["ETag"] == '"ep_1.2"'
    malformed = send(owner, *write[:3], "1", **{"X-Request-Id": "r-1"})
    assert malformed.status_code == 400
    refused = send(owner, *write, **{"X-Request-Id": "r-2"})
    assert "Idempotent-Replayed" not in refused.headers
    conflict(refused)


def test_of_many_who_have_seen_the_same_state_one_changes_it(app, mint):
    add()
    answers: list[int] = []

    def change(number: int) -> None:
        caller = Caller(app.test_client(), TENANT_PREFIX, mint(tenant_id=7))
        body = {"endpoint_id": "ep_1", "description": f"by {number}"}
        answers.append(send(caller, "POST", "/endpoints", body, '"ep_1.1"').status_code)
        db.give_up()

    threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [409] * 5
    assert row().version == 2
