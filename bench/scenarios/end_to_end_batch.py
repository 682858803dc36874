"""The same as `end_to_end`, with `POST /events/batch` and 100 events a request."""

from __future__ import annotations

from typing import Any

from bench.ground import Ground
from bench.scenarios.end_to_end import PATH, end_to_end

EVENTS = 100


def measure(ground: Ground) -> dict[str, Any]:
    """Events per second, from the first call to the last response recorded."""
    return end_to_end(ground, "end_to_end_batch", f"{PATH}/batch", EVENTS)
