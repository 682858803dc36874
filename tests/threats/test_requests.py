"""What is sent, to whom, and what cannot be smuggled into it: H1, H2 and H4 to H7 of the threats.

H3 is in test_secrets.py.
"""

from __future__ import annotations

import ast
import hmac
import json
import re
from datetime import UTC, datetime
from itertools import pairwise

import pytest
import standardwebhooks

from app import signing
from dispatcher import handshakes
from hookjetty import verify as verifying
from tests.conftest import TENANT_PREFIX, Caller
from tests.dispatching import (
    SECRET,
    add_endpoint,
    all_done,
    parse_request,
    running_engine,
    sealed,
    wait_until,
)
from tests.factories import attempt_rows, publish, task_rows
from tests.hostile import OK, Receiver, answer
from tests.live import ROOT

pytestmark = pytest.mark.usefixtures("database")

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

INJECTED = (
    "\r\nX-Injected: 1",
    "\nX-Injected: 2",
    "\rX-Injected: 3",
    "\r\n\r\nPOST / HTTP/1.1",
    "\x00X-Injected: 4",
)
# All that a delivery has; a replay's has webhook-replay beside them.
OUR_HEADERS = [
    "accept",
    "content-length",
    "content-type",
    "host",
    "user-agent",
    "webhook-attempt",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
]
# What may be compared with ==: here, what is encrypted.
NOT_SECRET = [
    "(self.secret, self.retired) != (endpoint.secret, endpoint.retired_secrets)",
]
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture
def publisher(client, mint) -> Caller:
    scopes = ["webhooks:read", "webhooks:write", "events:write"]
    return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=scopes))


# ------------------------------------------------------------------------------ H1: our headers


def test_h1_a_delivery_has_our_headers_and_no_others_whatever_people_wrote():
    seen: list[bytes] = []
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url("/%0d%0aX-Injected:%20yes?a=%0d%0aX-Injected:%20yes"))
        with running_engine():
            for each in INJECTED:
                publish(data={each.strip("\x00"): 1}, key=each.strip("\r\n\x00"))
            wait_until(all_done)
    assert len(seen) == len(INJECTED)
    for request in seen:
        head, _, body = request.partition(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        assert line.lower() == "post /%0d%0ax-injected:%20yes?a=%0d%0ax-injected:%20yes http/1.1"
        assert sorted(header.partition(":")[0].lower() for header in headers) == OUR_HEADERS
        assert int(parse_request(request)[1]["content-length"]) == len(body)


def test_h1_what_would_inject_a_header_is_refused_where_it_comes_in(publisher, admin):
    for each in INJECTED:
        for url in (f"https://app/hook{each}", f"https://app{each}/hook", f"https://app/?a={each}"):
            assert publisher.post("/endpoints", {"url": url}).status_code == 400
            assert admin.post("", {"tenant_id": 7, "url": url}).status_code == 400
        event = {"type": f"export.done{each}", "data": {}}
        assert publisher.post("/events", event).status_code == 400
        answered = publisher.get("/endpoints", environ_overrides={"HTTP_X_REQUEST_ID": f"a{each}"})
        assert answered.status_code == 400
        assert "X-Injected" not in answered.headers
        assert re.fullmatch("[0-9a-f]{32}", answered.headers["X-Request-Id"])


def test_h1_there_are_no_custom_headers(publisher, admin):
    """docs/security.md, "Decided otherwise"."""
    for name in ("headers", "custom_headers"):
        body = {"url": "https://app/hook", name: {"Host": "169.254.169.254"}}
        assert publisher.post("/endpoints", body).status_code == 400
        assert admin.post("", body | {"tenant_id": 7}).status_code == 400


# --------------------------------------------------------------------- H2: what is signed is ours


def test_h2_the_id_and_the_time_that_are_signed_are_ours(publisher):
    """A `.` in either would let one signed text stand for another."""
    seen: list[bytes] = []
    for name in ("id", "event_id", "timestamp", "created_at"):
        refused = publisher.post("/events", {"type": "a", "data": {}, name: "evt_1.2\n"})
        assert refused.status_code == 400
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url())
        for key in ("a.b.c", "evt_1", ".", "1.2", "k" * 255):
            body = {"type": "a", "data": {"id": "x.y", "timestamp": "1"}, "key": key}
            assert publisher.post("/events", body).status_code == 202
        with running_engine():
            wait_until(all_done)
    assert len(seen) == 5
    for request in seen:
        _, headers, body = parse_request(request)
        assert re.fullmatch("evt_[0-9]{1,16}", headers["webhook-id"])
        assert re.fullmatch("[0-9]{10}", headers["webhook-timestamp"])
        sent = json.loads(body)
        assert sent["id"] == headers["webhook-id"]
        happened = datetime.fromisoformat(sent["timestamp"])
        assert abs((happened - datetime.now(UTC)).total_seconds()) < 30


# ------------------------------------------------------------------------- H4: nothing is HTML


def test_h4_whatever_was_stored_comes_back_as_json_that_no_browser_sniffs(app, publisher, admin):
    """What a receiver answered, too. The console is not there yet (docs/security.md)."""
    hostile = (
        b"HTTP/1.1 404 <script>\r\nContent-Type: text/html\r\nX: %b\r\nContent-Length: %d\r\n\r\n%b"
    )
    body = SCRIPT.encode()
    with Receiver(answer(hostile % (body, len(body), body))) as receiver:
        endpoint = add_endpoint(7, receiver.url(f"/{SCRIPT}?{SCRIPT}".replace(" ", "+")))
        event, _ = publish(data={SCRIPT: SCRIPT}, key=SCRIPT)
        with running_engine(RETRY_SCHEDULE="0", RETRY_JITTER="0"):
            wait_until(all_done)
    (task,) = task_rows()
    ids = {
        "endpoint_id": f"ep_{endpoint}",
        "event_id": f"evt_{event}",
        "task_id": f"task_{task['id']}",
    }
    shown = 0
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(\w+)>", lambda found: ids.get(found[1], "x_1"), rule.rule)
        asked = [
            client.client.open(path + query, headers={"Authorization": f"Bearer {client.token}"})
            for client in (publisher, admin)
            for query in ("", "?tenant_id=7", f"?cursor={SCRIPT}", f"?{SCRIPT}={SCRIPT}")
        ]
        for answered in asked:
            assert answered.headers["X-Content-Type-Options"] == "nosniff", path
            assert answered.headers["Cache-Control"], path
            if answered.mimetype == "text/html":
                assert "default-src" in answered.headers["Content-Security-Policy"], path
                assert SCRIPT not in answered.text
            else:
                assert answered.mimetype in ("application/json", "text/plain"), path
                shown += SCRIPT in answered.text
    assert shown >= 2, "nothing was shown, so nothing was shown harmlessly"
    assert publisher.get(f"/{SCRIPT}").mimetype == "application/json"


@pytest.mark.parametrize(
    "scheme", ["javascript:alert(1)//", "data:text/html,", "vbscript:", "JaVaScRiPt:"]
)
def test_h4_a_url_that_runs_when_it_is_clicked_is_refused(publisher, admin, scheme):
    for url in (f"{scheme}https://app/", f"{scheme}//app/"):
        assert publisher.post("/endpoints", {"url": url}).status_code == 400
        assert admin.post("", {"tenant_id": 7, "url": url}).status_code == 400


# --------------------------------------------------------------------- H5: comparisons take as long


PACKAGES = ("app", "dispatcher", "hookjetty")
SECRET_WORDS = re.compile("secret|signature|token|challenge|password|offered", re.IGNORECASE)


def test_h5_nothing_secret_is_compared_with_an_operator():
    """The words for it are few, and every use of them with == or != or `in` is looked at here."""
    found = []
    for path in sorted(
        file for name in ("app", "dispatcher", "hookjetty") for file in (ROOT / name).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
                operands = [node.left, *node.comparators]
                if not any(isinstance(each, ast.Constant) for each in operands) and any(
                    SECRET_WORDS.search(ast.unparse(each)) for each in operands
                ):
                    found.append((path.name, ast.unparse(node)))
    assert [each for each in found if each[1] not in NOT_SECRET] == []


def test_h5_signatures_challenges_and_secrets_are_compared_in_constant_time(monkeypatch):
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(one, other):
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    headers = dict(
        line.split(": ", 1)
        for line in signing.Signer([SECRET, OLD_SECRET]).headers("evt_1", 1, b"{}")
    )
    verifying.verify(b"{}", headers, [SECRET, OLD_SECRET], now=1)
    assert len(compared) == 4, "each with each, whether or not one was right already"
    compared.clear()
    assert not signing.is_same_secret(SECRET, OLD_SECRET)
    assert len(compared) == 1
    assert "compare_digest" in handshakes.failure_of.__code__.co_names


# ------------------------------------------------------------- H6, H7: timestamps and rotation


def test_h6_every_try_has_the_same_id_and_body_its_own_number_and_a_signature_of_its_time():
    seen: list[bytes] = []
    with Receiver(answer(NOT_FOUND, seen=seen)) as receiver:
        add_endpoint(7, receiver.url())
        publish()
        with running_engine(RETRY_SCHEDULE="0,1s,1s", RETRY_JITTER="0"):
            wait_until(all_done)
    requests = [parse_request(request) for request in seen]
    assert len({body for _, _, body in requests}) == 1
    assert len({headers["webhook-id"] for _, headers, _ in requests}) == 1
    assert [headers["webhook-attempt"] for _, headers, _ in requests] == ["1", "2", "3"]
    assert len({headers["webhook-timestamp"] for _, headers, _ in requests}) == 3
    for _, headers, body in requests:
        standardwebhooks.Webhook(SECRET).verify(body, headers)
    (task,) = task_rows()
    assert (task["status"], task["failure"], task["tries"]) == ("failed", "http_4xx", 3)
    times = [row["started_at"] for row in attempt_rows()]
    waits = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    assert all(0.99 <= wait < 2 for wait in waits), waits


def test_h7_while_a_secret_rotates_old_and_new_verify_and_a_retired_one_does_not():
    seen: list[bytes] = []
    overlap = [
        {"secret": sealed(OLD_SECRET, 7), "until": "2999-01-01T00:00:00.000Z"},
        {"secret": sealed("an ancient secret", 7), "until": "2020-01-01T00:00:00.000Z"},
    ]
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url(), retired_secrets=json.dumps(overlap))
        publish()
        with running_engine():
            wait_until(all_done)
    _, headers, body = parse_request(seen[0])
    assert len(headers["webhook-signature"].split(" ")) == 2
    standardwebhooks.Webhook(SECRET).verify(body, headers)
    standardwebhooks.Webhook(OLD_SECRET).verify(body, headers)


def test_h7_no_two_endpoints_share_a_secret_that_we_made(publisher, admin):
    made = []
    for number in range(3):
        by_tenant = publisher.post("/endpoints", {"url": f"https://app/{number}"})
        by_admin = admin.post("", {"tenant_id": 7, "url": f"https://app/a{number}"})
        made += [by_tenant.json["secret"], by_admin.json["data"]["secret"]]
    assert len(set(made)) == 6
    for secret in made:
        assert 24 <= len(verifying.secret_bytes(secret)) <= 64
