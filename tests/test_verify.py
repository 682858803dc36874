"""Receivers verify: what Hookjetty signed passes, everything else is refused with a reason."""

from __future__ import annotations

import base64
import email.message
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import standardwebhooks
import svix.webhooks
from hypothesis import given, settings
from hypothesis import strategies as some
from werkzeug.datastructures import Headers

from hookjetty.verify import VerificationError, challenge_response, secret_bytes, sign, verify

# No deadline for one example: the machine may be busy with something else.
unhurried = settings(deadline=None)

# The known answer that the Standard Webhooks libraries share (libraries/go/webhook_test.go).
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OTHER_SECRET = "another secret of this endpoint"


def headers(
    signature: str = SIGNATURE, timestamp: object = TIMESTAMP, message_id: str = MESSAGE_ID
) -> dict[str, str]:
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }


def test_the_known_answer_verifies_and_is_returned_parsed():
    assert verify(BODY, headers(), SECRET, now=TIMESTAMP) == {"test": 2432232314}


@pytest.mark.parametrize(
    ("key", "message_id", "timestamp", "body", "signature"),
    [
        (base64.b64decode(SECRET[6:]), MESSAGE_ID, TIMESTAMP, BODY, SIGNATURE),
        (
            # From Svix' documentation. 18 bytes: they sign so, and a secret of ours is longer.
            base64.b64decode("plJ3nmyCDGBKInavdOK15jsl"),
            "msg_loFOjxBNrRLzqYUf",
            1731705121,
            b'{"event_type":"ping","data":{"success":true}}',
            "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=",
        ),
    ],
)
def test_signatures_are_those_that_others_published(key, message_id, timestamp, body, signature):
    assert sign(key, message_id, timestamp, body) == signature


def test_every_published_vector_is_met():
    folder = os.environ.get("HOOKJETTY_CORPORA")
    if not folder:
        pytest.skip("HOOKJETTY_CORPORA names no folder of inputs from other projects")
    vectors = json.loads((Path(folder) / "standard_webhooks_vectors.json").read_text())
    for vector in vectors["symmetric"]:
        key = base64.b64decode(vector["secret"].removeprefix("whsec_"))
        body = vector["payload"].encode()
        assert sign(key, vector["id"], vector["timestamp"], body) == vector["signature"]


@unhurried
@given(
    key=some.binary(min_size=24, max_size=64),
    data=some.dictionaries(some.text(max_size=5), some.text()),
)
def test_what_we_sign_is_accepted_by_two_libraries_that_are_not_ours(key, data):
    secret = "whsec_" + base64.b64encode(key).decode()
    body = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")
    now = int(time.time())
    sent = headers(sign(secret_bytes(secret), MESSAGE_ID, now, body), now)
    assert standardwebhooks.Webhook(secret).verify(body, sent) == json.loads(body)
    svix.webhooks.Webhook(secret).verify(body, sent)  # raises, or returns nothing
    assert verify(body, sent, secret) == json.loads(body)


@pytest.mark.parametrize("body", [b"{}", b'{"a":"' + b"x" * 1_000_000 + b'"}', b'{"\xc3\xa9":1}'])
def test_bodies_small_large_and_not_ascii_verify_in_a_foreign_library_too(body):
    now = int(time.time())
    sent = headers(sign(secret_bytes(SECRET), MESSAGE_ID, now, body), now)
    assert standardwebhooks.Webhook(SECRET).verify(body, sent) == verify(body, sent, SECRET)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"webhook-signature": "v1,"}, "does not match"),
        ({"webhook-signature": SIGNATURE[:-2] + "A="}, "does not match"),
        ({"webhook-signature": SIGNATURE.replace("v1,", "v2,")}, "does not match"),
        ({"webhook-signature": SIGNATURE.removeprefix("v1,")}, "does not match"),
        ({"webhook-signature": "v1,é\udc80"}, "does not match"),
        ({"webhook-id": MESSAGE_ID + "x"}, "does not match"),
        ({"webhook-timestamp": str(TIMESTAMP + 1)}, "does not match"),
        ({"webhook-id": "msg_é"}, "webhook-id is not ASCII"),
        ({"webhook-id": "msg_\udc80"}, "webhook-id is not ASCII"),
        ({"webhook-timestamp": "hello"}, "not a whole number"),
        ({"webhook-timestamp": f"{TIMESTAMP}.0"}, "not a whole number"),
        ({"webhook-timestamp": f"-{TIMESTAMP}"}, "not a whole number"),
        ({"webhook-timestamp": "9" * 5000}, "not a whole number"),
        ({"webhook-timestamp": "\u0661"}, "not a whole number"),
        ({"webhook-id": ""}, "webhook-id is missing"),
        ({"webhook-timestamp": ""}, "webhook-timestamp is missing"),
        ({"webhook-signature": ""}, "webhook-signature is missing"),
    ],
)
def test_a_changed_header_is_refused(changed, reason):
    with pytest.raises(VerificationError, match=reason):
        verify(BODY, headers() | changed, SECRET, now=TIMESTAMP)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name):
    present = {key: value for key, value in headers().items() if key != name}
    with pytest.raises(VerificationError, match=f"the header {name} is missing"):
        verify(BODY, present, SECRET, now=TIMESTAMP)


def test_a_header_sent_twice_with_two_values_is_refused():
    doubled = [*headers().items(), ("Webhook-Id", "msg_other")]
    with pytest.raises(VerificationError, match="webhook-id was sent more than once"):
        verify(BODY, doubled, SECRET, now=TIMESTAMP)


@unhurried
@given(position=some.integers(0, len(BODY) - 1), byte=some.integers(0, 255))
def test_a_changed_body_is_refused(position, byte):
    changed = bytearray(BODY)
    changed[position] = byte
    if changed == BODY:
        assert verify(bytes(changed), headers(), SECRET, now=TIMESTAMP)
    else:
        with pytest.raises(VerificationError, match="does not match"):
            verify(bytes(changed), headers(), SECRET, now=TIMESTAMP)


@pytest.mark.parametrize("direction", [-1, 1], ids=["clock behind", "clock ahead"])
def test_the_timestamp_may_be_as_far_away_as_the_tolerance_says(direction):
    for tolerance in (300, 10):
        edge = TIMESTAMP + direction * tolerance
        assert verify(BODY, headers(), SECRET, tolerance, now=edge)
        with pytest.raises(VerificationError, match=f"more than {tolerance} s away"):
            verify(BODY, headers(), SECRET, tolerance, now=edge + direction)


def test_without_a_clock_given_this_machines_is_used():
    now = int(time.time())
    assert verify(
        BODY, headers(sign(secret_bytes(SECRET), "evt_1", now, BODY), now, "evt_1"), SECRET
    )
    with pytest.raises(VerificationError, match="300 s away"):
        verify(BODY, headers(), SECRET)


def test_one_good_signature_among_several_is_enough():
    other = sign(secret_bytes(OTHER_SECRET), MESSAGE_ID, TIMESTAMP, BODY)
    for both in (f"{other} {SIGNATURE}", f"{SIGNATURE} {other}", f"v1a,x= v9 {SIGNATURE}"):
        assert verify(BODY, headers(both), SECRET, now=TIMESTAMP)


def test_a_receiver_may_hold_several_secrets():
    assert verify(BODY, headers(), [OTHER_SECRET, SECRET], now=TIMESTAMP)
    assert verify(BODY, headers(), (SECRET, OTHER_SECRET), now=TIMESTAMP)
    with pytest.raises(VerificationError, match="does not match"):
        verify(BODY, headers(), [OTHER_SECRET], now=TIMESTAMP)
    with pytest.raises(VerificationError, match="does not match"):
        verify(BODY, headers(), [], now=TIMESTAMP)


def test_every_signature_is_compared_with_every_secret_whichever_matches(monkeypatch):
    """How long it takes tells nothing about where a guess went wrong."""
    compared = []

    def compare_digest(one, other):
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hookjetty.verify.hmac.compare_digest", compare_digest)
    offered = f"{SIGNATURE} v1,AAAA v1,BBBB"
    assert verify(BODY, headers(offered), [SECRET, OTHER_SECRET], now=TIMESTAMP)
    ours = [sign(secret_bytes(one), MESSAGE_ID, TIMESTAMP, BODY) for one in (SECRET, OTHER_SECRET)]
    assert compared == [(one.encode(), two.encode()) for one in ours for two in offered.split()]


def test_the_headers_of_common_frameworks_are_understood():
    message = email.message.Message()  # http.server
    for name, value in headers().items():
        message[name] = value
    upper = {name.upper(): value for name, value in headers().items()}
    title = Headers([(name.title(), value) for name, value in headers().items()])  # Flask
    for form in (message, upper, title, list(headers().items())):
        assert verify(BODY, form, SECRET, now=TIMESTAMP)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
    ],
)
def test_a_signed_body_that_is_no_event_is_refused(body, reason):
    sent = headers(sign(secret_bytes(SECRET), MESSAGE_ID, TIMESTAMP, body))
    with pytest.raises(VerificationError, match=reason):
        verify(body, sent, SECRET, now=TIMESTAMP)


def test_a_parsed_or_decoded_body_is_a_mistake_that_is_named():
    for body in (BODY.decode(), json.loads(BODY)):
        with pytest.raises(TypeError, match="raw request body"):
            verify(body, headers(), SECRET, now=TIMESTAMP)


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("whsec_" + base64.b64encode(b"k" * 24).decode(), b"k" * 24),
        ("whsec_" + base64.b64encode(b"k" * 64).decode(), b"k" * 64),
        ("x" * 16, b"x" * 16),
        ("é" * 256, "é".encode() * 256),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    ],
)
def test_a_secret_is_base64_behind_whsec_and_else_its_own_bytes(secret, key):
    assert secret_bytes(secret) == key


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("", "16 to 256"),
        ("***", "16 to 256"),
        ("x" * 15, "16 to 256"),
        ("x" * 257, "16 to 256"),
        ("x" * 16 + "\ud800", "lone surrogate"),
        ("whsec_", "24 to 64 bytes"),
        ("whsec_" + base64.b64encode(b"k" * 23).decode(), "24 to 64 bytes"),
        ("whsec_" + base64.b64encode(b"k" * 65).decode(), "24 to 64 bytes"),
        ("whsec_not base64 but quite long indeed", "24 to 64 bytes"),
        ("whsec_!" + base64.b64encode(b"k" * 24).decode(), "24 to 64 bytes"),
        ("whsec_éééééééééééééééééééééééé", "24 to 64 bytes"),
    ],
)
def test_a_string_that_cannot_be_a_secret_is_refused(secret, reason):
    with pytest.raises(ValueError, match=reason):
        secret_bytes(secret)
    with pytest.raises(ValueError, match=reason):
        verify(BODY, headers(), secret, now=TIMESTAMP)


CHALLENGE = {"id": "chl_1", "type": "endpoint.challenge", "data": {"challenge": "A1b2_C3d4-E5f6g7"}}


def test_a_challenge_is_answered_with_its_value():
    answer = {"challenge_response": "A1b2_C3d4-E5f6g7"}
    assert challenge_response(CHALLENGE) == answer
    assert challenge_response(json.dumps(CHALLENGE).encode()) == answer


def signed(event: dict, secret: str = SECRET) -> tuple[bytes, dict[str, str]]:
    body = json.dumps(event).encode()
    return body, headers(sign(secret_bytes(secret), MESSAGE_ID, TIMESTAMP, body))


def test_a_challenge_is_verified_like_any_event():
    """One that is signed wrongly is how the platform finds out who checks."""
    body, sent = signed(CHALLENGE)
    assert challenge_response(verify(body, sent, SECRET, now=TIMESTAMP))
    wrongly = signed(CHALLENGE, OTHER_SECRET)[1]
    unsigned = {name: value for name, value in sent.items() if name != "webhook-signature"}
    for refused, now in ((wrongly, TIMESTAMP), (unsigned, TIMESTAMP), (sent, TIMESTAMP + 301)):
        with pytest.raises(VerificationError):
            verify(body, refused, SECRET, now=now)


def test_an_operational_event_is_an_ordinary_event():
    event = {
        "id": "evt_1",
        "type": "hookjetty.endpoint.disabled",
        "timestamp": "2026-11-22T05:00:00.000Z",
        "data": {"endpoint_id": "ep_7"},
    }
    assert verify(*signed(event), SECRET, now=TIMESTAMP) == event
    assert challenge_response(event) is None


@pytest.mark.parametrize(
    "body",
    [
        {"type": "export.done", "data": {"challenge": "A1b2_C3d4-E5f6g7"}},
        {"type": "endpoint.challenge"},
        {"type": "endpoint.challenge", "data": "A1b2_C3d4-E5f6g7"},
        {"type": "endpoint.challenge", "data": {}},
        {"type": "endpoint.challenge", "data": {"challenge": 7}},
        {"type": "endpoint.challenge", "data": {"challenge": "<script>alert(1)</script>"}},
        {"type": "endpoint.challenge", "data": {"challenge": "A" * 129}},
        b"[]",
        b"not JSON",
        b"[" * 100_000,
    ],
)
def test_anything_else_has_no_answer(body):
    assert challenge_response(body) is None


def test_the_file_works_alone_with_nothing_but_the_standard_library(tmp_path):
    source = Path(__file__).parent.parent / "hookjetty" / "verify.py"
    (tmp_path / "verify.py").write_bytes(source.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, '.'); import verify"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
