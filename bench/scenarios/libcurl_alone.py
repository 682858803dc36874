"""The limit: the dispatcher's transport alone sends the same signed requests to the same receiver.

No claims, no signing while it runs, nothing recorded; PostgreSQL is idle.
"""

from __future__ import annotations

import time
from typing import Any

from app.signing import Signer
from bench.ground import EVENT_DATA, PATIENCE_SECONDS, BenchError, Ground
from bench.inside import send_all, signed
from bench.rows import latest_id


def measure(ground: Ground) -> dict[str, Any]:
    """Requests per second from the first one received to the last one answered."""
    targets = ground.targets
    signers = [Signer([target.secret]) for target in targets]
    first_id = latest_id()
    requests = []
    for number in range(ground.scale.tasks):
        place = number % len(targets)
        target = targets[place]
        requests.append(
            signed(signers[place], target.url, first_id + number, target.type, EVENT_DATA)
        )
    ground.receiver.reset()
    cpu_before = time.process_time()
    ended, failed = send_all(ground.settings, requests, PATIENCE_SECONDS)
    cpu = time.process_time() - cpu_before
    report = ground.receiver.report()
    if ended is None or failed or report.requests != len(requests):
        raise BenchError(
            f"{len(failed)} of {len(requests)} requests failed, {report.requests} arrived:"
            f" {failed[:1]}"
        )
    return {
        "libcurl_alone_per_s": len(requests) / (ended - report.first),
        "connections": report.connections,
        "cpu_us": {
            "transport": cpu * 1e6 / len(requests),
            "receiver": report.cpu_seconds * 1e6 / len(requests),
        },
    }
