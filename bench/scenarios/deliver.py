"""The main figure: how many tasks per second are claimed, signed, sent, decided and recorded.

One dispatcher per core. The tasks are due before they may begin, so that there is always enough to
do.
"""

from __future__ import annotations

from typing import Any

from bench.ground import Ground


def measure(ground: Ground) -> dict[str, Any]:
    """Tasks per second from the first request received to the last task recorded as delivered."""
    tasks = ground.scale.tasks
    ground.use_history(ground.scale.history)
    delivery = ground.deliver(lambda: ground.publish(tasks), tasks)
    report = delivery.report
    return {
        "deliver_per_s": delivery.per_second,
        "received_per_s": tasks / (report.last - report.first),
        "connections": report.connections,
        "duplicates": report.requests - report.events,
        "cpu_us": delivery.cpu_us,
    }
