"""10 % of the endpoints accept and never answer: what is left to the others?"""

from __future__ import annotations

import itertools
from typing import Any

from bench.ground import Ground
from bench.receiver import Report
from bench.rows import Target, discard_open, latest_id

TIMELINE_SECONDS = 0.25


def measure(ground: Ground) -> dict[str, Any]:
    """The others' throughput as a share of what they have when all answer."""
    ground.use_history(ground.scale.history)
    hanging = ground.make_targets(next(_tenants), ground.receiver.hanging_urls, tenants=2)
    others = ground.targets[: -len(hanging)]
    alone = others_report(ground, others, [])
    beside = others_report(ground, others, hanging)
    return {
        "hanging_ratio": throughput(beside) / throughput(alone),
        "others_alone_per_s": throughput(alone),
        "others_beside_hanging_per_s": throughput(beside),
        "timeline": {"none": timeline(alone), "hanging": timeline(beside)},
    }


# Endpoints of their own for each round, without a past.
_tenants = itertools.count(10_001, 100)


def others_report(
    ground: Ground, others: list[Target], dead: list[Target], **settings: str
) -> Report:
    """What the others got, while as many tasks per endpoint are due for the dead ones."""
    before = latest_id()
    per_target = ground.scale.tasks // len(others)
    tasks = per_target * len(others)
    with ground.dispatchers(kill=True, **settings) as dispatchers:
        dispatchers.halt()
        ground.publish(per_target * (len(others) + len(dead)), others + dead)
        ground.calm()
        ground.receiver.reset()
        dispatchers.go_on()
        ground.wait_until_received(tasks)
        report = ground.receiver.report()
        if not dead:
            ground.wait_until_recorded()
    discard_open(before)
    return report


def throughput(report: Report) -> float:
    """Requests per second, from the first to the last."""
    return report.requests / (report.last - report.first)


def timeline(report: Report) -> list[float]:
    """The same, for each quarter of a second."""
    counts = [0] * (int((report.last - report.first) / TIMELINE_SECONDS) + 1)
    for moment in report.times:
        counts[int((moment - report.first) / TIMELINE_SECONDS)] += 1
    return [count / TIMELINE_SECONDS for count in counts]
