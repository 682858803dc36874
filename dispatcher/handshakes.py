"""Ask a new endpoint whether it is its tenant's: a signed challenge that only a willing receiver
answers (tenant-api.md, Register Endpoint: "Validates ownership via challenge handshake").

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
from app.signing import UnreadableSecret, Vault
from dispatcher.engine import Engine, signer_for
from dispatcher.transport import Outcome, Request

log = structlog.get_logger()

# After the n-th unanswered challenge; then hourly, until three days are over.
DELAYS_SECONDS = (5, 30, 120, 600)
LATER_DELAY_SECONDS = 3600
MOST_TRIES = len(DELAYS_SECONDS) + 72

AT_ONCE = 50  # challenges begun by one step


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge under way, valid for the endpoint's state of that version."""

    endpoint_id: int
    version: int
    tries: int
    value: str


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
        for row in due:
            self._begin(*row)
        return len(due) == AT_ONCE

    def settle(self) -> None:
        """Write down what the receivers answered meanwhile."""
        while self._answers:
            challenge, outcome = self._answers.popleft()
            try:
                self._settle(challenge, failure_of(challenge, outcome))
            except Exception:
                self._answers.appendleft((challenge, outcome))
                raise

    def _claim(self) -> list[tuple[int, int, str, str, int, int, datetime]]:
        """Lease the endpoints whose challenge is due: another dispatcher leaves them alone."""
        cursor = db.execute_sql(
            """
            WITH due AS MATERIALIZED (
                SELECT id FROM hookjetty.endpoints
                WHERE handshake_at <= now() ORDER BY handshake_at LIMIT %s
                FOR UPDATE SKIP LOCKED)
            UPDATE hookjetty.endpoints n
            SET handshake_at = now() + %s * interval '1 second',
                handshake_tries = handshake_tries + 1
            FROM due WHERE n.id = due.id
            RETURNING n.id, n.tenant_id, n.url_key, n.secret, n.version, n.handshake_tries, now()
            """,
            (AT_ONCE, self._settings.lease_seconds),
        )
        return list(cursor.fetchall())

    def _begin(
        self,
        endpoint_id: int,
        tenant_id: int,
        url: str,
        secret: str,
        version: int,
        tries: int,
        now: datetime,
    ) -> None:
        challenge = Challenge(endpoint_id, version, tries, secrets.token_urlsafe(16))
        message_id = f"chl_{secrets.token_hex(12)}"
        body = challenge_body(message_id, challenge.value, now)
        try:
            signer = signer_for(self._vault, (secret,), tenant_id)
        except UnreadableSecret as error:
            log.error("handshake_unsendable", endpoint=f"ep_{endpoint_id}", error=str(error))
            self._settle(challenge, "unsendable")
            return
        request = Request(
            url=url,
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

    def _settle(self, challenge: Challenge, failure: str | None) -> None:
        """Write the result down, unless the endpoint was changed since the challenge was sent."""
        log.info("handshake", endpoint=f"ep_{challenge.endpoint_id}", failure=failure)
        if failure is None:
            db.execute_sql(
                """
                UPDATE hookjetty.endpoints
                SET status = 'active', verified_at = now(), updated_at = now(), settling = true,
                    handshake_at = NULL, handshake_failure = NULL
                WHERE id = %s AND version = %s AND status = 'pending'
                """,
                (challenge.endpoint_id, challenge.version),
            )
            return
        delay = next_delay_seconds(challenge.tries)
        db.execute_sql(
            """
            UPDATE hookjetty.endpoints
            SET handshake_failure = %s, handshake_at = now() + %s * interval '1 second'
            WHERE id = %s AND version = %s AND status = 'pending'
            """,
            (failure, delay, challenge.endpoint_id, challenge.version),
        )


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


def next_delay_seconds(tries: int) -> int | None:
    """The delay after the ``tries``-th challenge failed; None when three days are over.

    >>> [next_delay_seconds(n) for n in (1, 4, 5, 75, 76)]
    [5, 600, 3600, 3600, None]
    """
    if tries >= MOST_TRIES:
        return None
    return DELAYS_SECONDS[tries - 1] if tries <= len(DELAYS_SECONDS) else LATER_DELAY_SECONDS
