"""Does it get slower as it grows? Everything with a long history against a short one.

And the cost of each statement by itself, at three lengths: publish, claim and record by one process
that sends nothing.
"""

from __future__ import annotations

import time
from typing import Any

from bench.ground import Ground
from bench.statements import drain


def measure(ground: Ground) -> dict[str, Any]:
    """Throughput with the long history as a share of that with the short one."""
    scale = ground.scale
    per_second = {}
    for events in (scale.short_history, scale.long_history):
        ground.use_history(events)
        delivery = ground.deliver(lambda: ground.publish(scale.tasks), scale.tasks)
        per_second[events] = delivery.per_second
    costs = {
        str(events): _costs(ground, events)
        for events in (scale.short_history, scale.history, scale.long_history)
    }
    return {
        "history_ratio": per_second[scale.long_history] / per_second[scale.short_history],
        "per_s_by_history": {str(events): rate for events, rate in per_second.items()},
        "us_per_task_by_history": costs,
    }


def _costs(ground: Ground, events: int) -> dict[str, float]:
    """Microseconds per task; published a thousand a statement, claimed and recorded by batches."""
    ground.use_history(events)
    tasks = ground.scale.due
    ground.calm()
    began = time.perf_counter()
    ground.publish(tasks)
    published = time.perf_counter() - began
    spent = drain(ground.settings)
    assert spent.tasks == tasks
    return {
        "publish": published * 1e6 / tasks,
        "claim": spent.claim_seconds * 1e6 / tasks,
        "record": spent.record_seconds * 1e6 / tasks,
    }
