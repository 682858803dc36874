"""Is a claim slower when a million tasks wait for 5,000 paused endpoints?"""

from __future__ import annotations

from typing import Any

from bench import rows
from bench.ground import EVENT_DATA, Ground
from bench.scenarios.backlog import claim_ratio
from bench.scenarios.future import crowd

ROUNDS = 1  # it takes turns within


def measure(ground: Ground) -> dict[str, Any]:
    """The median claim beside them as a multiple of that without."""

    def make_crowd() -> None:
        rows.insert_waiting(ground.scale.backlog, crowd(ground, "paused"), EVENT_DATA)

    return claim_ratio(ground, "parked", make_crowd)
