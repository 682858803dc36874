"""Proof that a request came from Hookjetty: the signature of Standard Webhooks 1.0.

A receiver calls ``verify`` with the raw body, the headers and its endpoint's secret, before it
looks at anything else. Standard library only, so the file can be copied into any project.

    event = verify(body, headers, secrets)  # VerificationError: answer 400
    if answer := challenge_response(event):
        return answer  # as JSON: this is how an endpoint shows that it wants to be called
    remember(event["id"], event)  # unless it is known; then answer 204 at once


>>> secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
>>> body = b'{"test": 2432232314}'
>>> headers = {
...     "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
...     "webhook-timestamp": "1614265330",
...     "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
... }
>>> verify(body, headers, secret, now=1614265330)
{'test': 2432232314}
>>> verify(body, headers, secret, now=1614265330 + 301)
Traceback (most recent call last):
  ...
hookjetty.verify.VerificationError: webhook-timestamp is more than 300 s away from this clock
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

# Standard Webhooks 1.0: the prefix of a secret that is written in base64, and its length.
SECRET_PREFIX = "whsec_"
SECRET_BYTES = range(24, 64 + 1)
# Any other string is a secret too and stands for its own UTF-8 bytes; this many characters.
PLAIN_SECRET_CHARACTERS = range(16, 256 + 1)


class VerificationError(Exception):
    """The request is not proven to come from Hookjetty. Answer 400 and do nothing with it."""


def verify(
    body: bytes,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    secret: str | Iterable[str],
    tolerance_seconds: float = 300,
    now: float | None = None,
) -> dict[str, Any]:
    """The event in ``body``, once it is proven authentic; ``VerificationError`` says why not.

    ``body`` is the raw request body: parsing and writing it again changes bytes and breaks the
    signature. ``secret`` is one secret, or all that are valid while they are being rotated. The
    timestamp may be ``tolerance_seconds`` behind or ahead of ``now`` (Unix seconds; this
    machine's clock by default). ``ValueError`` if a secret cannot be one.

    A request may arrive twice: remember ``event["id"]`` and skip what was seen before.
    """
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise TypeError("verify needs the raw request body as bytes, not decoded or parsed")
    keys = [secret_bytes(one) for one in ([secret] if isinstance(secret, str) else secret)]
    message_id, timestamp_text, signatures = _signed_headers(headers)
    if not message_id.isascii():  # what a server makes of bytes may not even be encodable
        raise VerificationError("webhook-id is not ASCII")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp_text):
        raise VerificationError("webhook-timestamp is not a whole number of seconds")
    timestamp = int(timestamp_text)
    if abs((time.time() if now is None else now) - timestamp) > tolerance_seconds:
        raise VerificationError(
            f"webhook-timestamp is more than {tolerance_seconds:g} s away from this clock"
        )
    expected = [sign(key, message_id, timestamp, bytes(body)).encode() for key in keys]
    offered = [one.encode("utf-8", "replace") for one in signatures.split()]
    # Every pair is compared, whichever matches.
    matches = [hmac.compare_digest(one, other) for one in expected for other in offered]
    if not any(matches):
        raise VerificationError("webhook-signature does not match the body, or the secret is wrong")
    try:
        event = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise VerificationError("the body is signed, but is not JSON") from None
    if not isinstance(event, dict):
        raise VerificationError("the body is signed, but is not a JSON object")
    return event


def challenge_response(body: bytes | Mapping[str, Any]) -> dict[str, str] | None:
    """What a receiver answers, as JSON with status 200, to show that an endpoint is its own.

    ``None`` for every event that is not such a question. Takes what ``verify`` returned: a
    challenge is signed like any other request, and one that is signed wrongly may be sent on
    purpose, to see whether the receiver checks. Takes the raw body too, for a receiver that does
    not know its secret yet while it is being registered; the answer then discloses nothing but the
    challenge.
    """
    try:
        event = json.loads(body) if isinstance(body, (bytes, bytearray)) else body
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, Mapping) or event.get("type") != "endpoint.challenge":
        return None
    data = event.get("data")
    challenge = data.get("challenge") if isinstance(data, Mapping) else None
    # Only what looks like a random token is repeated: a receiver must not become a mirror that
    # answers strangers with markup of their choice.
    if not isinstance(challenge, str) or not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", challenge):
        return None
    return {"challenge_response": challenge}


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The ``v1`` signature of one request: HMAC-SHA256 over ``id.timestamp.body``.

    ``key`` comes from ``secret_bytes``; ``timestamp`` is in Unix seconds.

    >>> key = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    >>> sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def secret_bytes(secret: str) -> bytes:
    """The key that a secret stands for; ``ValueError`` says why a string cannot be one.

    >>> secret_bytes("correct horse battery staple")
    b'correct horse battery staple'
    >>> secret_bytes("whsec_c2hvcnQ=")
    Traceback (most recent call last):
      ...
    ValueError: whsec_ must be followed by the base64 of 24 to 64 bytes
    """
    if secret.startswith(SECRET_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except ValueError:  # not base64, or not even ASCII
            key = b""
        if len(key) not in SECRET_BYTES:
            raise ValueError("whsec_ must be followed by the base64 of 24 to 64 bytes")
        return key
    if len(secret) not in PLAIN_SECRET_CHARACTERS:
        raise ValueError("a secret is whsec_ and base64, or 16 to 256 other characters")
    try:
        return secret.encode()
    except UnicodeEncodeError:
        raise ValueError("a secret cannot hold a lone surrogate") from None


def _signed_headers(
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
) -> tuple[str, str, str]:
    """The three headers, whatever the case of their names."""
    found: dict[str, str] = {}
    # Frameworks' headers have items() without being a Mapping.
    for name, value in headers.items() if hasattr(headers, "items") else headers:
        if found.setdefault(name.lower(), value) != value and name.lower().startswith("webhook-"):
            # Other code of the receiver might read the one that was not verified.
            raise VerificationError(f"{name.lower()} was sent more than once")
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if not found.get(name):
            raise VerificationError(f"the header {name} is missing")
    return found["webhook-id"], found["webhook-timestamp"], found["webhook-signature"]
