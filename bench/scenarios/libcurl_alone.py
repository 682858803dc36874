"""The limit: the dispatcher's transport alone sends the same signed requests to the same receiver.

No claims, no signing while it runs, nothing recorded; PostgreSQL is idle.
"""

from __future__ import annotations

import resource
import threading
import time
from typing import Any

from app import __version__
from app.destinations import Policy
from app.signing import Signer
from bench.ground import EVENT_DATA, PATIENCE_SECONDS, BenchError, Ground
from dispatcher.engine import event_body
from dispatcher.resolve import Resolver
from dispatcher.transport import Outcome, Request, Transport


def measure(ground: Ground) -> dict[str, Any]:
    """Requests per second from the first one received to the last one answered."""
    requests = _signed_requests(ground)
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
    policy = Policy.from_settings(ground.settings)
    transport = Transport(
        policy,
        Resolver(policy, ground.settings.nameservers),
        in_flight=ground.settings.in_flight,
        on_done=on_done,
    )
    ground.receiver.reset()
    transport.start()
    try:
        cpu_before = time.process_time()
        transport.submit_many(requests)
        if not all_done.wait(PATIENCE_SECONDS):
            raise BenchError(f"{left} requests have no outcome after {PATIENCE_SECONDS} s")
        ended = time.monotonic()
        cpu = time.process_time() - cpu_before
    finally:
        transport.stop()
    report = ground.receiver.report()
    if failed or report.requests != len(requests):
        raise BenchError(f"{len(failed)} requests failed, {report.requests} arrived: {failed[:1]}")
    return {
        "libcurl_alone_per_s": len(requests) / (ended - report.first),
        "connections": report.connections,
        "cpu_us": {
            "transport": cpu * 1e6 / len(requests),
            "receiver": report.cpu_seconds * 1e6 / len(requests),
        },
    }


def _signed_requests(ground: Ground) -> list[Request]:
    """What the dispatcher would send for as many events as a round of ``deliver`` has."""
    settings, targets = ground.settings, ground.targets
    signers = [Signer([target.secret]) for target in targets]
    first_id, now = ground.latest_id(), int(time.time())
    requests = []
    for number in range(ground.scale.tasks):
        place = number % len(targets)
        target, event_id = targets[place], first_id + number
        body = event_body(event_id, target.type, EVENT_DATA)
        headers = [
            "content-type: application/json",
            f"user-agent: Hookjetty/{__version__}",
            "webhook-attempt: 1",
            *signers[place].headers(f"evt_{event_id}", now, body),
        ]
        requests.append(Request(target.url, headers, body, settings.timeout_seconds))
    return requests
