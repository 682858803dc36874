"""50 endpoints have names that a silent name server should know: what is left to the others?"""

from __future__ import annotations

import itertools
import socket
from typing import Any

from bench.ground import Ground
from bench.scenarios.hanging import others_report, throughput, timeline

NAMES = 50


def measure(ground: Ground) -> dict[str, Any]:
    """The others' throughput as a share of what they have without such names."""
    ground.use_history(ground.scale.history)
    first = next(_tenants)
    # Other names in every round, since what was not found is kept for a while.
    names = [f"http://dead-{first}-{n}.hookjetty.test:8080/hook" for n in range(NAMES)]
    dead = ground.make_targets(first, names, tenants=10)
    # It is bound, so questions are not refused; nobody reads them, so they are not answered.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        nameserver = f"127.0.0.1:{silent.getsockname()[1]}"
        alone = others_report(ground, ground.targets, [], NAMESERVERS=nameserver)
        beside = others_report(ground, ground.targets, dead, NAMESERVERS=nameserver)
    return {
        "dead_dns_ratio": throughput(beside) / throughput(alone),
        "others_alone_per_s": throughput(alone),
        "others_beside_dead_dns_per_s": throughput(beside),
        "timeline": {"none": timeline(alone), "dead_dns": timeline(beside)},
    }


_tenants = itertools.count(20_001, 100)
