"""How much memory one dispatcher takes at worst: 512 in flight, answers of 64 KiB."""

from __future__ import annotations

import itertools
from typing import Any

from bench.ground import Ground

ROUNDS = 1


def measure(ground: Ground) -> dict[str, Any]:
    """Its peak resident set, in MB (10^6 bytes)."""
    ground.use_history(ground.scale.history)
    targets = ground.make_targets(next(_tenants), ground.receiver.talkative_urls)
    tasks = ground.scale.tasks // 2
    delivery = ground.deliver(lambda: ground.publish(tasks, targets), tasks, 1)
    return {
        "dispatcher_rss_mb": delivery.peak_rss_mb,
        "talkative_per_s": delivery.per_second,
    }


_tenants = itertools.count(30_001, 100)
