"""What one dispatcher uses when there is nothing to do."""

from __future__ import annotations

import time
from typing import Any

from bench.cpu import cpu_seconds
from bench.ground import Ground

ROUNDS = 1
SETTLING_SECONDS = 3


def measure(ground: Ground) -> dict[str, Any]:
    """Its CPU time, and PostgreSQL's, in percent of a core."""
    seconds = ground.scale.idle_seconds
    with ground.dispatchers(1) as dispatchers:
        time.sleep(SETTLING_SECONDS)
        dispatcher = dispatchers.cpu_seconds()
        postgresql = cpu_seconds(ground.database.server_pid)
        time.sleep(seconds)
        return {
            "idle_cpu_percent": 100 * (dispatchers.cpu_seconds() - dispatcher) / seconds,
            "idle_postgresql_cpu_percent": 100
            * (cpu_seconds(ground.database.server_pid) - postgresql)
            / seconds,
        }
