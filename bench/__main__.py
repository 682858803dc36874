"""``make bench``: measure every scenario, write bench/results.json and the tables of README.md.

``QUICK=1`` measures less of everything, in a few minutes. ``SCENARIO=name`` measures one scenario
and prints its figures; what is written always comes from one run of all of them.
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
from bench.scenarios import deliver, latency, libcurl_alone, receiver_alone

FOLDER = Path(__file__).parent

# In this order, which begins with the limits; the two of the ratio are neighbours.
SCENARIOS: dict[str, ModuleType] = {
    "receiver_alone": receiver_alone,
    "libcurl_alone": libcurl_alone,
    "deliver": deliver,
    "latency": latency,
}


def main(folder: Path = FOLDER) -> int:
    """Write into the folder; returns the exit status.

    Ctrl-C and SIGTERM stop it, and everything that it started.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    scale = FULL if os.environ.get("QUICK", "") in ("", "0") else QUICK
    only = os.environ.get("SCENARIO", "")
    if only and only not in SCENARIOS:
        say(f"SCENARIO={only} is not one of {', '.join(SCENARIOS)}")
        return 2
    try:
        measured = run(scale, [only] if only else list(SCENARIOS), folder / "var")
    except KeyboardInterrupt:
        say("stopped; nothing was written")
        return 130
    except (BenchError, DevDatabaseError) as error:
        say(str(error))
        return 1
    results = report.rounded(measured)
    if only:
        print(json.dumps(results["scenarios"], indent=2))
    else:
        report.write(results, folder)
        print(report.tables(results))
    return 0


def run(scale: Scale, names: Sequence[str], var: Path) -> dict[str, Any]:
    """Measure these scenarios in turn, as many rounds as the scale says; the folder is removed.

    In turn, so that what slows the machine for a minute slows both sides of a ratio.
    """
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    machine = report.machine()
    try:
        with Ground(var, scale) as ground:
            machine["postgresql"] = ground.postgresql_version
            others = OthersMeter()
            for number in range(1, scale.rounds + 1):
                for name in names:
                    figures = SCENARIOS[name].measure(ground)
                    rounds[name].append(figures)
                    say(f"{name}, round {number} of {scale.rounds}: {report.in_short(figures)}")
            machine["others_cpu_percent"] = others.percent()
    finally:
        shutil.rmtree(var, ignore_errors=True)
    return report.results(scale, machine, rounds)


if __name__ == "__main__":
    sys.exit(main())
