"""Ask a new endpoint whether it is its tenant's: a signed challenge that only a willing receiver
answers (tenant-api.md, Register Endpoint: "Validates ownership via challenge handshake").

On request only, whoever answered it well gets another one with a wrong signature, which a receiver
that verifies signatures refuses.

A challenge lives in this process's memory for one request: random, single use, and gone when the
request ends.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime

import structlog

from app import __version__
from app.db import db
from app.models import rfc3339
from app.settings import Settings
from app.signing import Signer, UnreadableSecret, Vault, generate_secret
from dispatcher.engine import Engine, signer_for, still_valid
from dispatcher.transport import Outcome, Request

log = structlog.get_logger()

# After the n-th unanswered challenge; then hourly, until three days are over.
DELAYS_SECONDS = (5, 30, 120, 600)
LATER_DELAY_SECONDS = 3600
MOST_TRIES = len(DELAYS_SECONDS) + 72

AT_ONCE = 50  # challenges begun by one step

# How an attempt ends whose whole answer came.
ANSWERED = (None, "redirect", "http_4xx", "http_5xx")
# Refusals that say more about the moment than about the signature: the receiver, or what stands
# before it, is too busy or away. Other errors count, a 500 too: that is what becomes of an
# exception of `verify`, and the receiver has answered well a moment ago.
UNTELLING_STATUSES = (408, 429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Addressee:
    """An endpoint whose receiver is asked, in its state of that version."""

    endpoint_id: int
    tenant_id: int
    url: str
    secret: str
    retired_secrets: list[dict[str, str]]
    version: int
    tries: int


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge under way."""

    to: Addressee
    value: str
    is_forged: bool  # its signature is wrong


class Handshakes:
    """The handshake job: each ``step`` settles the answers that came and begins what is due."""

    def __init__(
        self, settings: Settings, vault: Vault, engine: Engine, bring_forward: Callable[[], None]
    ) -> None:
        """``bring_forward`` asks for the next step soon; it is called when an answer has come."""
        self._settings = settings
        self._vault = vault
        self._engine = engine
        self._bring_forward = bring_forward
        self._answers: deque[tuple[Challenge, Outcome]] = deque()

    def step(self) -> bool:
        """Settle and begin; True when there may be more to begin."""
        self.settle()
        due = self._claim()
        for to, now in due:
            self._begin(to, now)
        return len(due) == AT_ONCE

    def settle(self) -> None:
        """Write down what the receivers answered meanwhile."""
        while self._answers:
            challenge, outcome = self._answers.popleft()
            try:
                if challenge.is_forged:
                    self._settle_check(challenge, outcome)
                else:
                    self._settle(challenge.to, failure_of(challenge, outcome))
            except Exception:
                self._answers.appendleft((challenge, outcome))
                raise

    def _claim(self) -> list[tuple[Addressee, datetime]]:
        """Lease the endpoints whose challenge is due: another dispatcher leaves them alone."""
        cursor = db.execute_sql(
            f"""
            WITH due AS MATERIALIZED (
                SELECT id FROM hookjetty.endpoints
                WHERE handshake_at <= now() ORDER BY handshake_at LIMIT %s
                FOR UPDATE SKIP LOCKED)
            UPDATE hookjetty.endpoints n
            SET handshake_at = now() + %s * interval '1 second',
                handshake_tries = handshake_tries + 1
            FROM due WHERE n.id = due.id
            RETURNING {_ADDRESSEE}, now()
            """,
            (AT_ONCE, self._settings.lease_seconds),
        )
        return [(Addressee(*columns), now) for *columns, now in cursor.fetchall()]

    def _begin(self, to: Addressee, now: datetime) -> None:
        try:
            valid = (to.secret, *still_valid(to.retired_secrets, now))
            signer = signer_for(self._vault, valid, to.tenant_id)
        except (UnreadableSecret, LookupError, TypeError, ValueError) as error:
            # Whatever is wrong with this row, it must not take its neighbours with it.
            log.error("handshake_unsendable", endpoint=f"ep_{to.endpoint_id}", error=str(error))
            self._settle(to, "unsendable")
            return
        self._send(to, signer, now, is_forged=False)

    def _send(self, to: Addressee, signer: Signer, now: datetime, *, is_forged: bool) -> None:
        challenge = Challenge(to, secrets.token_urlsafe(16), is_forged)
        message_id = f"chl_{secrets.token_hex(12)}"
        body = challenge_body(message_id, challenge.value, now)
        request = Request(
            url=to.url,
            headers=[
                "content-type: application/json",
                f"user-agent: Hookjetty/{__version__}",
                *signer.headers(message_id, int(now.timestamp()), body),
            ],
            body=body,
            timeout_seconds=self._settings.timeout_seconds,
            tag=None,
        )
        self._engine.send(request).add_done_callback(
            lambda future: self._answered(challenge, future)
        )

    def _answered(self, challenge: Challenge, future: Future[Outcome]) -> None:
        """On the transport's thread: only note it; the database is for the step."""
        self._answers.append((challenge, future.result()))
        self._bring_forward()

    def _settle(self, to: Addressee, failure: str | None) -> None:
        """Write the result down, unless the endpoint was changed since the challenge was sent."""
        log.info("handshake", endpoint=f"ep_{to.endpoint_id}", failure=failure)
        if failure is None:
            self._consented(to)
            return
        # A pending endpoint is asked again; whoever wanted an active one checked can do so again.
        db.execute_sql(
            """
            UPDATE hookjetty.endpoints
            SET handshake_failure = %s,
                handshake_at = CASE status WHEN 'pending' THEN now() + %s * interval '1 second' END,
                checks_signatures = checks_signatures AND status = 'pending'
            WHERE id = %s AND version = %s AND handshake_at IS NOT NULL
            """,
            (failure, next_delay_seconds(to.tries), to.endpoint_id, to.version),
        )

    def _consented(self, to: Addressee) -> None:
        """The endpoint is active. If its receiver is to be checked, that follows at once, and the
        lease is for that.
        """
        row = db.execute_sql(
            """
            UPDATE hookjetty.endpoints
            SET status = 'active', handshake_failure = NULL,
                verified_at = CASE status WHEN 'pending' THEN now() ELSE verified_at END,
                updated_at = CASE status WHEN 'pending' THEN now() ELSE updated_at END,
                settling = settling OR status = 'pending',
                handshake_at = CASE WHEN checks_signatures
                                    THEN now() + %s * interval '1 second' END
            WHERE id = %s AND version = %s AND handshake_at IS NOT NULL
            RETURNING checks_signatures, now()
            """,
            (self._settings.lease_seconds, to.endpoint_id, to.version),
        ).fetchone()
        if row is not None and row[0]:
            self._send(to, Signer([generate_secret()]), row[1], is_forged=True)

    def _settle_check(self, challenge: Challenge, outcome: Outcome) -> None:
        """Write down what the receiver made of the wrong signature, as ``_settle`` does."""
        to = challenge.to
        verifies, failure = verdict_on(challenge, outcome)
        log.info("signature_check", endpoint=f"ep_{to.endpoint_id}", verifies=verifies)
        db.execute_sql(
            """
            UPDATE hookjetty.endpoints
            SET verifies_signatures = %s, handshake_failure = %s, handshake_at = NULL,
                checks_signatures = false
            WHERE id = %s AND version = %s AND status = 'active' AND checks_signatures
            """,
            (verifies, failure, to.endpoint_id, to.version),
        )


_ADDRESSEE = """n.id, n.tenant_id, n.url_key, n.secret, n.retired_secrets, n.version,
                n.handshake_tries"""


def challenge_body(message_id: str, value: str, now: datetime) -> bytes:
    """The body of a challenge: an event of the one type that asks for an answer."""
    message = {
        "id": message_id,
        "type": "endpoint.challenge",
        "timestamp": rfc3339(now),
        "data": {"challenge": value},
    }
    return json.dumps(message, separators=(",", ":")).encode()


def failure_of(challenge: Challenge, outcome: Outcome) -> str | None:
    """None when the answer proves consent: 2xx and the challenge, as JSON or as bare text.

    A server that sends back whatever it gets does not pass: it would have to take the value out of
    the request, which is what a receiver that knows about us does.
    """
    if outcome.failure is not None:
        return outcome.failure
    text = (outcome.response_body or "").strip()
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = text
    answer = parsed.get("challenge_response") if isinstance(parsed, dict) else parsed
    offered = answer.encode("utf-8", "replace") if isinstance(answer, str) else b""
    return None if hmac.compare_digest(offered, challenge.value.encode()) else "wrong_answer"


def verdict_on(challenge: Challenge, outcome: Outcome) -> tuple[bool | None, str | None]:
    """Whether the receiver verifies signatures, and the failure that keeps us from telling.

    Refusing is any answer but a 2xx, or a 2xx without the challenge's value.
    """
    if outcome.failure not in ANSWERED or outcome.status_code in UNTELLING_STATUSES:
        return None, outcome.failure
    return failure_of(challenge, outcome) is not None, None


def next_delay_seconds(tries: int) -> int | None:
    """The delay after the ``tries``-th challenge failed; None when three days are over.

    >>> [next_delay_seconds(n) for n in (1, 4, 5, 75, 76)]
    [5, 600, 3600, 3600, None]
    """
    if tries >= MOST_TRIES:
        return None
    return DELAYS_SECONDS[tries - 1] if tries <= len(DELAYS_SECONDS) else LATER_DELAY_SECONDS
