"""Is a claim slower when a million tasks are due? Against 10,000."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from app.db import db
from bench import rows
from bench.ground import EVENT_DATA, Ground
from bench.inside import BATCH, Claimer

ROUNDS = 1  # it takes turns within


def measure(ground: Ground) -> dict[str, Any]:
    """The median claim with a million due as a multiple of that with few."""
    backlog = ground.scale.backlog
    return claim_ratio(
        ground, "backlog", lambda: rows.insert_due(backlog, ground.targets, EVENT_DATA)
    )


def claim_ratio(ground: Ground, name: str, make_crowd: Callable[[], None]) -> dict[str, Any]:
    """In two databases: one has the crowd. The same tasks are due in both, turn by turn."""
    sides: dict[str, list[float]] = {"none": [], name: []}
    with ground.fresh("none"), ground.fresh(name):
        make_crowd()
        db.execute_sql("VACUUM (ANALYZE) hookjetty.events, hookjetty.tasks, hookjetty.attempts")
        for _ in range(ground.scale.turns):
            for side, medians in sides.items():
                ground.use_fresh(side)
                medians.append(_median_claim_ms(ground))
    ratios = [crowded / none for none, crowded in zip(sides["none"], sides[name], strict=True)]
    return {
        f"{name}_ratio": statistics.median(ratios),
        "claim_ms": statistics.median(sides[name]),
        "claim_alone_ms": statistics.median(sides["none"]),
        "turns": ratios,
    }


def _median_claim_ms(ground: Ground) -> float:
    """As many claims of a batch as it takes for the tasks that are due on the quiet side."""
    due = ground.scale.due
    ground.publish(due)
    ground.calm()
    claimer = Claimer(ground.settings)
    times = []
    for _ in range(due // BATCH):
        before = time.perf_counter()
        claimer.claim()
        times.append(1000 * (time.perf_counter() - before))
    rows.finish_claimed()
    return statistics.median(times)
