"""All tasks for one endpoint, with 200 slots and with the usual 20, against 100 endpoints."""

from __future__ import annotations

from typing import Any

from app.db import db
from bench.ground import Ground

SLOTS = 200


def measure(ground: Ground) -> dict[str, Any]:
    """Throughput of one endpoint as a share of a hundred endpoints'."""
    ground.use_history(ground.scale.history)
    tasks = ground.scale.tasks // 2
    target = ground.targets[0]
    has_column = db.execute_sql(
        """
        SELECT FROM information_schema.columns
        WHERE table_schema = 'hookjetty' AND table_name = 'endpoints' AND column_name = 'slots'
        """
    ).rowcount

    def one_endpoint(slots: int | None) -> float:
        settings = {}
        if slots is not None and not has_column:
            settings["SLOTS"] = str(slots)
        if has_column:
            db.execute_sql(
                "UPDATE hookjetty.endpoints SET slots = %s WHERE id = %s", (slots, target.id)
            )
        try:
            made = lambda: ground.publish(tasks, [target])  # noqa: E731 - one line says it
            return ground.deliver(made, tasks, **settings).per_second
        finally:
            if has_column:
                db.execute_sql(
                    "UPDATE hookjetty.endpoints SET slots = NULL WHERE id = %s", (target.id,)
                )

    many = ground.deliver(lambda: ground.publish(tasks), tasks).per_second
    wide, usual = one_endpoint(SLOTS), one_endpoint(None)
    return {
        "single_endpoint_ratio": wide / many,
        "single_endpoint_ratio_20_slots": usual / many,
        "many_endpoints_per_s": many,
        "single_endpoint_per_s": wide,
        "single_endpoint_per_s_20_slots": usual,
    }
