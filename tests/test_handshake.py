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
from random import Random
from typing import Any

import pytest
import requests
import standardwebhooks

from app.db import db
from dispatcher.handshakes import Handshakes
from dispatcher.health import Heard
from dispatcher.holds import note
from dispatcher.retry import Answer
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
        assert self.answered()

    def answered(self) -> bool:
        """Wait for one more answer; whether it came."""
        came = self._answered.wait(5)
        self._answered.clear()
        return came

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


# -------------------------------------------------------------- does the receiver check signatures?


def verifying(*secrets: str, if_wrong: bytes | None = None, asked: list[str] | None = None):
    """A receiver that verifies with these secrets, and answers so to a wrong signature."""

    def behave(connection: socket.socket) -> None:
        while request := read_request(connection):
            _, headers, body = parse_request(request)
            challenge = json.loads(body)["data"]["challenge"]
            if asked is not None:
                asked.append(challenge)
            if any(is_signed_with(secret, body, headers) for secret in secrets):
                connection.sendall(response(200, consent(challenge, request)))
            elif if_wrong is None:
                return
            else:
                connection.sendall(if_wrong)

    return behave


def is_signed_with(secret: str, body: bytes, headers: dict[str, str]) -> bool:
    try:
        standardwebhooks.Webhook(secret).verify(body, headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


def response(status: int, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status} So\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def checked_endpoint(url: str, **columns: Any) -> int:
    """An active endpoint, of whose receiver somebody wants to know."""
    return pending_endpoint(url, **{"status": "active", "checks_signatures": True} | columns)


def outcome(endpoint: int) -> tuple[str, bool | None, str | None, datetime | None]:
    """When the check is over, nothing is planned any more."""
    row = state(endpoint)
    assert not row["checks_signatures"] or row["handshake_at"]
    return (
        row["status"],
        row["verifies_signatures"],
        row["handshake_failure"],
        row["handshake_at"],
    )


def check(job: Job) -> None:
    job.run()  # the challenge is answered well
    assert job.answered()
    job.settle()  # and so is what followed, or not


@pytest.mark.parametrize("status", ["pending", "active"])
def test_a_receiver_that_refuses_a_wrong_signature_verifies(job, status):
    asked: list[str] = []
    with Receiver(verifying(SECRET, if_wrong=response(401), asked=asked)) as receiver:
        endpoint = checked_endpoint(receiver.url(), status=status)
        check(job)
    assert outcome(endpoint) == ("active", True, None, None)
    assert len(set(asked)) == 2, "every challenge has a value of its own"


def test_a_receiver_that_answers_everything_does_not(job):
    seen: list[bytes] = []
    with Receiver(replying(lambda value, request: seen.append(request) or value.encode())) as it:
        endpoint = checked_endpoint(it.url())
        check(job)
    assert outcome(endpoint) == ("active", False, None, None)
    (_, good, good_body), (_, forged, forged_body) = map(parse_request, seen)
    assert is_signed_with(SECRET, good_body, good)
    assert not is_signed_with(SECRET, forged_body, forged)
    # Nothing but the signature tells one from the other.
    assert good.keys() == forged.keys()
    assert len(good["webhook-signature"]) == len(forged["webhook-signature"])
    assert json.loads(good_body).keys() == json.loads(forged_body).keys()


@pytest.mark.parametrize(
    ("answer", "verifies"),
    [
        (response(200, b"thank you"), True),
        (response(204), True),
        (response(302), True),
        (response(403), True),
        (response(500), True),
        (response(408), None),
        (response(429), None),
        (response(502), None),
        (response(503), None),
        (response(504), None),
        (b"nonsense", None),
        (None, None),  # the connection is closed
    ],
    ids=lambda value: str(value)[:20],
)
def test_only_an_answer_tells(job, answer, verifies):
    with Receiver(verifying(SECRET, if_wrong=answer)) as receiver:
        endpoint = checked_endpoint(receiver.url())
        check(job)
    status, told, failure, planned = outcome(endpoint)
    assert (status, told, planned) == ("active", verifies, None)
    assert (failure is None) == (verifies is not None)


def test_an_active_endpoint_that_does_not_answer_the_challenge_stays_active_and_unknown(job):
    """Whoever cannot take a good one shows nothing by refusing a wrong one; it is not repeated."""
    asked: list[str] = []
    with Receiver(verifying(if_wrong=response(401), asked=asked)) as receiver:
        endpoint = checked_endpoint(receiver.url())
        job.run()
        job.settle()
    assert outcome(endpoint) == ("active", None, "http_4xx", None)
    assert len(asked) == 1
    assert not state(endpoint)["checks_signatures"]


def test_a_pending_endpoint_is_asked_until_it_consents_and_then_checked(job):
    with Receiver(verifying(if_wrong=response(401))) as receiver:
        endpoint = checked_endpoint(receiver.url(), status="pending")
        job.run()
    row = state(endpoint)
    assert (row["status"], row["checks_signatures"]) == ("pending", True)
    with Receiver(verifying(SECRET, if_wrong=response(401))) as receiver:
        db.execute_sql("UPDATE hookjetty.endpoints SET url_key = %s", (receiver.url(),))
        ask_again_now(endpoint)
        check(job)
    assert outcome(endpoint) == ("active", True, None, None)


def test_without_being_wanted_no_wrong_signature_is_sent(job):
    asked: list[str] = []
    with Receiver(verifying(SECRET, if_wrong=response(401), asked=asked)) as receiver:
        endpoint = pending_endpoint(receiver.url())
        job.run()
        job.settle()
    assert outcome(endpoint) == ("active", None, None, None)
    assert len(asked) == 1


def test_while_a_secret_rotates_the_challenge_is_signed_with_both(job):
    old = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    retired = json.dumps([{"secret": sealed(old, 7), "until": "2999-01-01T00:00:00.000Z"}])
    with Receiver(verifying(old, if_wrong=response(401))) as receiver:
        endpoint = checked_endpoint(receiver.url(), retired_secrets=retired)
        check(job)
    assert outcome(endpoint) == ("active", True, None, None)


@pytest.mark.parametrize(
    "retired", ['["x"]', "7", '[{"secret": "x"}]', '[{"secret": "x", "until": "some day"}]']
)
def test_broken_retired_secrets_hold_up_no_other(job, retired):
    with Receiver(replying(consent)) as receiver:
        bad = pending_endpoint(receiver.url("/bad"), retired_secrets=retired)
        good = pending_endpoint(receiver.url("/good"))
        job.run()
    assert state(good)["status"] == "active"
    assert state(bad)["handshake_failure"] == "unsendable"


@pytest.mark.parametrize("when", ["during the first", "during the second"])
def test_a_change_made_meanwhile_voids_what_the_check_found(job, when):
    with Receiver(verifying(SECRET, if_wrong=response(401))) as receiver:
        endpoint = checked_endpoint(receiver.url())
        job.ask()
        if when == "during the second":
            job.settle()
            assert job.answered()
        db.execute_sql(
            "UPDATE hookjetty.endpoints SET version = version + 1, status = 'paused',"
            " handshake_at = NULL, checks_signatures = false"
        )
        job.settle()
    assert outcome(endpoint) == ("paused", None, None, None)


def test_one_that_is_disabled_meanwhile_is_not_asked_any_more(job):
    with Receiver(verifying(SECRET, if_wrong=response(401))) as receiver:
        endpoint = checked_endpoint(receiver.url())
        job.ask()
        note([Heard(endpoint, False, Answer(410, "http_4xx"))], Random(1))
        job.settle()
    assert outcome(endpoint) == ("disabled", None, None, None)


def test_a_dispatcher_that_died_during_the_check_is_succeeded(job):
    with Receiver(verifying(SECRET, if_wrong=response(401))) as receiver:
        endpoint = checked_endpoint(receiver.url())
        with handshake_job(TIMEOUT_SECONDS="0.5", LEASE_SECONDS="1") as dying:
            dying.run()  # the wrong one is sent, and its answer is lost
        wait_until(lambda: state(endpoint)["next_in"] < 0, 3)
        check(job)
    assert outcome(endpoint) == ("active", True, None, None)


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


def test_verify_says_whether_the_receiver_checks_signatures(
    database: str, receiver: RecordingReceiver
) -> None:
    """One that answers everything, and one that verifies as hookjetty.verify does."""
    with (
        LiveService(database, RATE_LIMIT="100") as live,
        Receiver(verifying(SECRET, if_wrong=response(400))) as strict,
        requests.Session() as session,
    ):
        session.headers["Authorization"] = f"Bearer {live.tenant_token(7)}"
        for url, expected in ((receiver.url("/credulous"), False), (strict.url(), True)):
            body = {"url": url, "secret": SECRET}
            made = session.post(live.url + REGISTER, json=body).json()
            assert made["status"] == "active"
            one = f"{live.url}{REGISTER}/{made['endpoint_id']}"
            assert session.get(one).json()["verifies_signatures"] is None
            answer = session.post(f"{one}/verify", json={"check_signatures": True})
            assert answer.json() == {
                "endpoint_id": made["endpoint_id"],
                "status": "active",
                "verifies_signatures": expected,
            }
            assert session.get(one).json()["verifies_signatures"] is expected
            # Of another receiver nothing is known.
            moved = {"endpoint_id": made["endpoint_id"], "url": url + "?moved=1"}
            session.post(live.url + REGISTER, json=moved).raise_for_status()
            assert session.get(one).json()["verifies_signatures"] is None
