"""A curve: throughput against the number of requests that a dispatcher may have in flight."""

from __future__ import annotations

from typing import Any

from bench.ground import DISPATCHERS, Ground

ROUNDS = 1
IN_FLIGHT = (8, 32, 128, 512, 1024)  # of all processes together


def measure(ground: Ground) -> dict[str, Any]:
    """Tasks per second for each number."""
    ground.use_history(ground.scale.history)
    tasks = ground.scale.tasks // 2
    return {
        "per_s_by_in_flight": {
            str(in_flight): ground.deliver(
                lambda: ground.publish(tasks), tasks, IN_FLIGHT=str(in_flight // DISPATCHERS or 1)
            ).per_second
            for in_flight in IN_FLIGHT
        }
    }
