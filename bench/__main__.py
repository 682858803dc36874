"""``make bench``: measure every scenario, write bench/results.json and the tables of README.md.

``QUICK=1`` measures less of everything, in a few minutes. ``SCENARIO=name`` measures one scenario,
or one chapter of them, and prints its figures; what is written always comes from one run of all.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from app.devdb import DevDatabaseError
from bench import report
from bench.cpu import OthersMeter
from bench.ground import FULL, QUICK, BenchError, Ground, Scale, say
from bench.scenarios import (
    backlog,
    baseline,
    concurrency,
    dead_dns,
    deliver,
    end_to_end,
    end_to_end_batch,
    future,
    hanging,
    history,
    idle,
    latency,
    libcurl_alone,
    memory,
    neighbour,
    parked,
    publish_sql,
    receiver_alone,
    single_endpoint,
    snapshot,
    statements_alone,
)

FOLDER = Path(__file__).parent

# The scenarios of a chapter take turns, round by round, so that what slows the machine for a
# minute slows both sides of a ratio. A scenario with a ratio of its own has both sides in a round.
CHAPTERS: dict[str, dict[str, ModuleType]] = {
    "throughput": {
        "receiver_alone": receiver_alone,
        "libcurl_alone": libcurl_alone,
        "deliver": deliver,
        "statements_alone": statements_alone,
        "baseline": baseline,
    },
    "shape": {
        "single_endpoint": single_endpoint,
        "concurrency": concurrency,
    },
    "ingest": {
        "end_to_end": end_to_end,
        "end_to_end_batch": end_to_end_batch,
        "publish_sql": publish_sql,
        "latency": latency,
    },
    "fairness": {
        "hanging": hanging,
        "dead_dns": dead_dns,
        "neighbour": neighbour,
    },
    "footprint": {
        "memory": memory,
        "idle": idle,
    },
    "flatness": {
        "history": history,
        "backlog": backlog,
        "future": future,
        "parked": parked,
        "snapshot": snapshot,
    },
}
SCENARIOS = {name: module for chapter in CHAPTERS.values() for name, module in chapter.items()}


def main(folder: Path = FOLDER) -> int:
    """Write into the folder; returns the exit status.

    Ctrl-C and SIGTERM stop it, and everything that it started.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    scale = FULL if os.environ.get("QUICK", "") in ("", "0") else QUICK
    only = os.environ.get("SCENARIO", "")
    names = [only] if only in SCENARIOS else list(CHAPTERS.get(only, SCENARIOS))
    if only and only not in SCENARIOS | CHAPTERS:
        say(f"SCENARIO={only} is not one of {', '.join(SCENARIOS)}")
        say(f"nor a chapter of them: {', '.join(CHAPTERS)}")
        return 2
    try:
        results = report.rounded(run(scale, names, folder / "var"))
    except KeyboardInterrupt:
        say("stopped; nothing was written")
        return 130
    except (BenchError, DevDatabaseError) as error:
        say(f"{error}\nnothing was written")
        return 1
    if only:
        print(json.dumps({key: results[key] for key in ("targets", "scenarios")}, indent=2))
    else:
        report.write(results, folder)
        print(report.tables(results))
    return 0


def run(scale: Scale, names: Sequence[str], var: Path) -> dict[str, Any]:
    """Measure these scenarios, chapter by chapter; the folder is removed."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    machine = report.machine()
    try:
        with Ground(var, scale) as ground:
            machine["postgresql"] = ground.postgresql_version
            others = OthersMeter()
            for chapter in CHAPTERS.values():
                for number in range(1, scale.rounds + 1):
                    for name in [name for name in chapter if name in rounds]:
                        of = min(scale.rounds, getattr(chapter[name], "ROUNDS", scale.rounds))
                        if number <= of:
                            figures = chapter[name].measure(ground)
                            rounds[name].append(figures)
                            say(f"{name}, round {number} of {of}: {report.in_short(figures)}")
            machine["others_cpu_percent"] = others.percent()
    finally:
        shutil.rmtree(var, ignore_errors=True)
    return report.results(scale, machine, rounds)


if __name__ == "__main__":
    sys.exit(main())
