"""Is a claim slower when a million tasks are planned for tomorrow, over 5,000 endpoints?"""

from __future__ import annotations

from typing import Any

from bench import rows
from bench.ground import EVENT_DATA, Ground
from bench.rows import Target
from bench.scenarios.backlog import claim_ratio

ROUNDS = 1  # it takes turns within
ENDPOINTS_OF_A_TENANT = 5


def measure(ground: Ground) -> dict[str, Any]:
    """The median claim beside them as a multiple of that without."""

    def make_crowd() -> None:
        rows.insert_for_tomorrow(ground.scale.backlog, crowd(ground, "active"), EVENT_DATA)

    return claim_ratio(ground, "future", make_crowd)


def crowd(ground: Ground, status: str) -> list[Target]:
    """Endpoints in that status, of many tenants; they are not called."""
    endpoints = ground.scale.backlog_endpoints
    urls = [f"{ground.receiver.urls[0]}?{number}" for number in range(endpoints)]
    return ground.make_targets(
        1001, urls, tenants=endpoints // ENDPOINTS_OF_A_TENANT or 1, status=status
    )
