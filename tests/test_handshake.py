"""A tenant's endpoint is called only after its receiver has consented (tenant-api.md, Register
Endpoint: "Validates ownership via challenge handshake").
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import standardwebhooks

from app.db import db
from dispatcher.handshakes import Handshakes
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import (
    SECRET,
    all_done,
    parse_request,
    running_parts,
    sealed,
    wait_until,
)
from tests.factories import make_endpoint, publish, rows, task_rows
from tests.hostile import Behaviour, Receiver, hang, read_request
from tests.live import LiveService

pytestmark = pytest.mark.usefixtures("database")

REGISTER = "/api/v1/data-consumption/webhooks/endpoints"

# What a receiver makes of the challenge, and of the whole request that brought it.
Reply = Callable[[str, bytes], bytes]


def replying(reply: Reply, status: int = 200) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        while request := read_request(connection):
            challenge = json.loads(parse_request(request)[2])["data"]["challenge"]
            answer = reply(challenge, request)
            head = f"HTTP/1.1 {status} As Asked\r\nContent-Length: {len(answer)}\r\n\r\n"
            connection.sendall(head.encode() + answer)

    return behave


def consent(challenge: str, _request: bytes) -> bytes:
    return json.dumps({"challenge_response": challenge}).encode()


class Job:
    """The handshake job of a dispatcher, one step at a time."""

    def __init__(self, handshakes: Handshakes, answered: threading.Event) -> None:
        self._handshakes = handshakes
        self._answered = answered

    def ask(self) -> None:
        """Send what is due, and wait for an answer."""
        self._handshakes.step()
        assert self._answered.wait(5)
        self._answered.clear()

    def settle(self) -> None:
        """Write down what was answered."""
        self._handshakes.step()

    def run(self) -> None:
        self.ask()
        self.settle()


@contextmanager
def handshake_job(**settings: str) -> Iterator[Job]:
    answered = threading.Event()
    with running_parts(**settings) as parts:
        yield Job(Handshakes(parts.settings, parts.vault, parts.engine, answered.set), answered)


@pytest.fixture
def job() -> Iterator[Job]:
    # Nobody answers at that name server.
    with handshake_job(
        TIMEOUT_SECONDS="0.5", LEASE_SECONDS="30", NAMESERVERS="127.0.0.1:9"
    ) as running:
        yield running


def pending_endpoint(url: str, **columns: Any) -> int:
    """As registering makes it."""
    asked = {"status": "pending", "handshake_at": datetime.now(UTC) - timedelta(seconds=1)}
    return make_endpoint(7, url, **{"secret": sealed(SECRET, 7)} | asked | columns)


def state(endpoint: int) -> dict[str, Any]:
    """Its row, and ``next_in``: the seconds until the next challenge."""
    cursor = db.execute_sql(
        "SELECT *, extract(epoch FROM handshake_at - now())::float8 AS next_in"
        " FROM hookjetty.endpoints WHERE id = %s",
        (endpoint,),
    )
    return rows(cursor)[0]


def ask_again_now(endpoint: int) -> None:
    db.execute_sql("UPDATE hookjetty.endpoints SET handshake_at = now() WHERE id = %s", (endpoint,))


# ----------------------------------------------------------------------------------- what is asked


def test_the_challenge_is_signed_like_a_delivery_and_never_the_same(job):
    seen: list[tuple[str, bytes]] = []

    def refuse(challenge: str, request: bytes) -> bytes:
        seen.append((challenge, request))
        return b"no"

    with Receiver(replying(refuse)) as receiver:
        endpoint = pending_endpoint(receiver.url("/hook?a=1"))
        job.run()
        ask_again_now(endpoint)
        job.run()
    (first, _), (second, _) = seen
    assert first != second
    assert len(first) >= 22  # 128 bits in base64
    ids = set()
    for challenge, request in seen:
        line, headers, body = parse_request(request)
        assert line == "POST /hook?a=1 HTTP/1.1"
        message = standardwebhooks.Webhook(SECRET).verify(body, headers)
        assert message["id"] == headers["webhook-id"]
        assert message["id"].startswith("chl_")
        assert message["type"] == "endpoint.challenge"
        assert abs(datetime.fromisoformat(message["timestamp"]) - datetime.now(UTC)) < timedelta(
            minutes=1
        )
        assert message["data"] == {"challenge": challenge}
        ids.add(message["id"])
    assert len(ids) == 2


# -------------------------------------------------------------------------------- what is accepted


@pytest.mark.parametrize(
    "reply",
    [
        consent,
        lambda challenge, _: json.dumps({"challenge_response": challenge, "more": [1]}).encode(),
        lambda challenge, _: challenge.encode(),
        lambda challenge, _: f"\r\n  {challenge}\n".encode(),
        lambda challenge, _: json.dumps(challenge).encode(),
    ],
    ids=["json", "json and more", "bare text", "text with white space", "a json string"],
)
def test_the_challenge_sent_back_as_json_or_as_bare_text_activates(job, reply):
    with Receiver(replying(reply)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        publish(7)
        assert task_rows()[0]["status"] == "waiting"
        job.run()
    row = state(endpoint)
    assert (row["status"], row["handshake_at"], row["handshake_failure"]) == ("active", None, None)
    assert row["verified_at"] is not None
    assert row["settling"]  # what was published meanwhile is moved by the settling job


def wrong(challenge: str, _request: bytes) -> bytes:
    return json.dumps({"challenge_response": challenge[::-1]}).encode()


@pytest.mark.parametrize(
    "reply",
    [
        wrong,
        lambda _challenge, request: parse_request(request)[2],
        lambda _challenge, request: request,
        lambda _challenge, request: json.dumps(
            {"json": json.loads(parse_request(request)[2]), "headers": parse_request(request)[1]}
        ).encode(),
        lambda challenge, _: json.dumps({"challenge": challenge}).encode(),
        lambda challenge, _: json.dumps([challenge]).encode(),
        lambda challenge, _: json.dumps({"challenge_response": [challenge]}).encode(),
        lambda challenge, _: f"challenge={challenge}".encode(),
        lambda challenge, _: f"{challenge}{challenge}".encode(),
        lambda challenge, _: challenge.upper().encode(),
        lambda challenge, _: b" " * 2000 + challenge.encode(),
        lambda *_: b"",
        lambda *_: b'{"challenge_response": ""}',
        lambda *_: b'{"challenge_response": null}',
        lambda *_: b"null",
        lambda *_: b"[" * 1000,
        lambda *_: b"\xff\x00\xfe",
        lambda *_: '{"challenge_response": "ä\ud800"}'.encode("utf-8", "surrogatepass"),
        lambda *_: b'{"challenge_response": "\\ud800"}',
    ],
    ids=[
        "another value",
        "the body it got",
        "the request it got",
        "what httpbin makes of it",
        "another key",
        "in an array",
        "in an array in the object",
        "with something before it",
        "twice",
        "in upper case",
        "beyond what is read",
        "nothing",
        "an empty string",
        "null for it",
        "null",
        "brackets",
        "no text",
        "broken text",
        "half a character",
    ],
)
def test_anything_else_is_a_wrong_answer(job, reply):
    """A server that echoes what it gets has not consented to anything."""
    with Receiver(replying(reply)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        job.run()
    row = state(endpoint)
    assert (row["status"], row["handshake_failure"]) == ("pending", "wrong_answer")
    assert 3 < row["next_in"] <= 5


@pytest.mark.parametrize("status", [201, 202, 206, 299])
def test_every_2xx_is_fine(job, status):
    with Receiver(replying(consent, status)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        job.run()
    assert state(endpoint)["status"] == "active"


@pytest.mark.parametrize(
    ("status", "failure"),
    [(301, "redirect"), (404, "http_4xx"), (410, "http_4xx"), (500, "http_5xx")],
)
def test_the_right_answer_with_a_wrong_status_is_none(job, status, failure):
    with Receiver(replying(consent, status)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        job.run()
    row = state(endpoint)
    assert (row["status"], row["handshake_failure"]) == ("pending", failure)


@pytest.mark.parametrize(
    ("url", "failure"),
    [
        ("http://127.0.0.1:9/", "connect"),
        ("http://10.0.0.1/", "blocked_address"),
        ("http://nowhere.invalid/", "dns"),
    ],
)
def test_a_receiver_that_cannot_be_asked_says_why(job, url, failure):
    endpoint = pending_endpoint(url)
    job.run()
    assert state(endpoint)["handshake_failure"] == failure


def test_a_receiver_that_hangs_costs_the_others_nothing(job):
    with Receiver(hang) as hanging, Receiver(replying(consent)) as receiver:
        slow = [pending_endpoint(hanging.url(f"/{number}")) for number in range(3)]
        endpoint = pending_endpoint(receiver.url())
        job.run()
        assert state(endpoint)["status"] == "active"
        assert {state(each)["status"] for each in slow} == {"pending"}
        wait_until(lambda: len(failures(job, slow)) == 3, 3)
        assert failures(job, slow) == ["timeout"] * 3


def failures(job: Job, endpoints: list[int]) -> list[str]:
    job.settle()
    return list(filter(None, (state(each)["handshake_failure"] for each in endpoints)))


# ------------------------------------------------------------------------------ when it is repeated


def test_it_is_repeated_after_5_s_30_s_2_min_10_min_and_then_every_hour_for_three_days(job):
    delays = []
    with Receiver(replying(wrong)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        while state(endpoint)["handshake_at"] is not None:
            ask_again_now(endpoint)
            job.run()
            delays.append(state(endpoint)["next_in"])
    *all_but_last, last = delays
    assert [round(delay) for delay in all_but_last] == [5, 30, 120, 600] + [3600] * 71
    assert last is None
    assert state(endpoint)["status"] == "pending"


def test_while_it_is_under_way_nobody_asks_again(job):
    """Another dispatcher, or the next step of this one; until the lease ends."""
    asked: list[str] = []
    answer_now = threading.Event()

    def reply(challenge: str, request: bytes) -> bytes:
        asked.append(challenge)
        answer_now.wait(0.4)
        return consent(challenge, request)

    with Receiver(replying(reply)) as receiver, handshake_job() as other:
        endpoint = pending_endpoint(receiver.url())
        job.settle()
        wait_until(lambda: asked)
        assert 25 < state(endpoint)["next_in"] <= 30
        job.settle()
        other.settle()
        answer_now.set()
        wait_until(lambda: job.settle() or state(endpoint)["status"] == "active", 3)
        assert len(asked) == 1


def test_a_dispatcher_that_died_with_the_answer_is_succeeded_when_its_lease_ends(job):
    with Receiver(replying(consent)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        with handshake_job(TIMEOUT_SECONDS="0.5", LEASE_SECONDS="1") as dying:
            dying.ask()  # and never settles
        assert state(endpoint)["status"] == "pending"
        wait_until(lambda: state(endpoint)["next_in"] < 0, 3)
        job.run()
    row = state(endpoint)
    assert (row["status"], row["handshake_tries"]) == ("active", 2)


@pytest.mark.parametrize(
    "change",
    [
        "url_key = 'https://elsewhere.example/', version = version + 1, handshake_tries = 0",
        "status = 'deleted', handshake_at = NULL, version = version + 1",
        "status = 'paused', handshake_at = NULL, version = version + 1",
    ],
    ids=["another url", "deleted", "paused"],
)
@pytest.mark.parametrize("reply", [consent, wrong], ids=["consent", "refusal"])
def test_a_change_made_meanwhile_voids_the_answer(job, reply, change):
    """It was given by, or for, something else."""
    with Receiver(replying(reply)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        job.ask()
        db.execute_sql(f"UPDATE hookjetty.endpoints SET {change} WHERE id = %s", (endpoint,))
        changed = state(endpoint)
        db.execute_sql(  # so that the step only settles
            "UPDATE hookjetty.endpoints SET handshake_at = now() + interval '1 hour'"
            " WHERE handshake_at IS NOT NULL"
        )
        job.settle()
    row = state(endpoint)
    names = ("status", "version", "handshake_tries", "handshake_failure", "verified_at")
    assert {name: row[name] for name in names} == {name: changed[name] for name in names}
    assert row["next_in"] is None or row["next_in"] > 3000


@pytest.mark.parametrize(
    "secret",
    ["nonsense", sealed(SECRET, 8), sealed("short", 7)],
    ids=["does not decrypt", "another tenant's", "none"],
)
def test_an_endpoint_whose_secret_cannot_be_used_holds_up_no_other(job, secret):
    with Receiver(replying(consent)) as receiver:
        bad = [pending_endpoint(receiver.url(f"/bad/{n}"), secret=secret) for n in range(3)]
        good = pending_endpoint(receiver.url("/good"))
        job.run()
    assert state(good)["status"] == "active"
    assert {state(each)["handshake_failure"] for each in bad} == {"unsendable"}


def test_an_answer_that_could_not_be_written_down_is_kept_for_the_next_step(job):
    """The database went away in between."""
    with Receiver(replying(consent)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        job.ask()
        db.execute_sql("ALTER TABLE hookjetty.endpoints RENAME TO away")
        with pytest.raises(Exception, match="endpoints"):
            job.settle()
        db.execute_sql("ALTER TABLE hookjetty.away RENAME TO endpoints")
        job.settle()
    assert state(endpoint)["status"] == "active"


def test_more_than_one_step_can_begin_are_all_asked(job):
    with Receiver(replying(consent)) as receiver:
        endpoints = [pending_endpoint(receiver.url(f"/{number}")) for number in range(120)]
        wait_until(
            lambda: job.settle() or {state(each)["status"] for each in endpoints} == {"active"}, 10
        )
    assert receiver.connections <= 120


# ------------------------------------------------------------------------------------ all together


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running


def test_registering_waits_for_the_receivers_consent_and_answers_active(
    database: str, receiver: RecordingReceiver
) -> None:
    """And what follows is delivered; a receiver that refuses leaves it pending, and says so."""
    with LiveService(database) as live, requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {live.tenant_token(7)}"
        answer = session.post(live.url + REGISTER, json={"url": receiver.url("/willing")})
        assert (answer.status_code, answer.json()["status"]) == (201, "active")
        answer = session.post(
            live.url + REGISTER, json={"url": receiver.url("/unwilling", consent="no")}
        )
        assert (answer.status_code, answer.json()["status"]) == (201, "pending")
        assert answer.json()["verification"]["failure"] == "wrong_answer"
        publish(7)
        wait_until(lambda: len(receiver.at("/willing")) == 2)
        wait_until(lambda: not all_done())
    challenge, delivery = receiver.at("/willing")
    assert challenge.event.startswith("chl_")
    assert delivery.event.startswith("evt_")
    assert [request.event[:4] for request in receiver.at("/unwilling")] == ["chl_"]
    assert sorted(row["status"] for row in task_rows()) == ["delivered", "waiting"]


def test_what_was_published_before_the_consent_is_delivered_after_it(
    database: str, receiver: RecordingReceiver
) -> None:
    with LiveService(database) as live, requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {live.tenant_token(7)}"
        url = receiver.url("/late", status=503, times=1)
        answer = session.post(live.url + REGISTER, json={"url": url})
        assert answer.json()["status"] == "pending"
        assert answer.json()["verification"]["failure"] == "http_5xx"
        events = [f"evt_{publish(7)[0]}" for _ in range(3)]
        endpoint_id = answer.json()["endpoint_id"]
        answer = session.post(f"{live.url}{REGISTER}/{endpoint_id}/verify")
        assert answer.json()["status"] == "active"
        wait_until(all_done)
    refused, agreed, *deliveries = receiver.at("/late")
    assert refused.event != agreed.event
    assert sorted(request.event for request in deliveries) == events
