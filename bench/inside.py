"""The bench's one door to the dispatcher's inner parts, which may change at any time.

Everything else of the bench sees the dispatcher as its users do: a process, tables and requests.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app import __version__
from app.db import db
from app.deliveries import event_body
from app.destinations import Policy
from app.settings import Settings
from app.signing import Signer
from bench.receiver import ANSWER, ANSWER_BODY
from dispatcher import claim as claims
from dispatcher import holds
from dispatcher.engine import BATCH, Round
from dispatcher.fairness import Candidate, max_min
from dispatcher.record import Result, record
from dispatcher.resolve import Resolver
from dispatcher.retry import Delivered
from dispatcher.transport import Outcome, Request, Transport

__all__ = ["BATCH", "Claimer", "Claims", "event_body", "record_as_delivered", "send_all", "signed"]

ANSWER_HEADERS = ANSWER.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n")


class Claims(NamedTuple):
    """What one look into the tables brought."""

    tasks: list[claims.Claimed]
    end: bool  # nothing was ready behind the last endpoint visited


class Claimer:
    """Claims as the engine of one process does, on this thread's connection.

    Every endpoint it visits may give as many tasks as it has slots, as if nothing were under way.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._round = Round()
        db.ready(for_hot_statements=True)

    def claim(self) -> Claims:
        """One step of the engine: promote what came due, then claim a batch."""
        settings = self._settings
        if claims.promote() + holds.end_due(settings.lease_seconds):
            self._round.look_anew()
        claimed = claims.claim(
            self._round.visit(()),
            _allot,
            slots=settings.slots,
            steps=len(settings.retry_schedule),
            lease_seconds=settings.lease_seconds,
            floors=self._round.floors,
        )
        return Claims(claimed.tasks, not self._round.note(claimed))


def _allot(candidates: Sequence[Candidate]) -> list[int]:
    """As fair as the engine, and with all slots free."""
    return max_min([candidate.slots for candidate in candidates], BATCH)


def record_as_delivered(tasks: Sequence[claims.Claimed]) -> None:
    """Record claimed tasks as if the bench's receiver had answered each of them.

    All that a claim brought, so that its lease is over.
    """
    results = [
        Result(
            task,
            time.time(),
            Outcome(
                tag=None,
                started_at=time.monotonic(),
                status_code=200,
                first_byte_us=1000,
                total_us=1000,
                address="127.0.0.1:80",
                response_headers=ANSWER_HEADERS,
                response_body=ANSWER_BODY.decode(),
            ),
            Delivered(),
        )
        for task in tasks
    ]
    record(results, list({task.lease.id: task.lease for task in tasks}.values()))


def signed(signer: Signer, url: str, event_id: int, type_: str, data: str) -> Request:
    """The request that a dispatcher would send on the first attempt."""
    body = event_body(event_id, type_, data)
    headers = [
        "content-type: application/json",
        f"user-agent: Hookjetty/{__version__}",
        "webhook-attempt: 1",
        *signer.headers(f"evt_{event_id}", int(time.time()), body),
    ]
    return Request(url, headers, body, timeout_seconds=15)


def send_all(
    settings: Settings, requests: Sequence[Request], patience_seconds: float
) -> tuple[float | None, list[Outcome]]:
    """Send with the dispatcher's transport alone. Returns when the last outcome was there
    (monotonic; None: it never was), and the failures.
    """
    failed: list[Outcome] = []
    left = len(requests)
    all_done = threading.Event()

    def on_done(outcome: Outcome) -> None:
        nonlocal left
        left -= 1
        if outcome.failure is not None:
            failed.append(outcome)
        if not left:
            all_done.set()

    # As many descriptors as a dispatcher takes at its start, since they bound the connections kept.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    transport = _transport(settings, on_done)
    transport.start()
    try:
        transport.submit_many(requests)
        ended = time.monotonic() if all_done.wait(patience_seconds) else None
    finally:
        transport.stop()
    return ended, failed


def _transport(settings: Settings, on_done: Callable[[Outcome], None]) -> Transport:
    policy = Policy.from_settings(settings)
    return Transport(
        policy,
        Resolver(policy, settings.nameservers),
        in_flight=settings.in_flight,
        on_done=on_done,
    )
