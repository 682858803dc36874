"""The other limit: what PostgreSQL makes of the dispatchers' statements when nothing is sent.

As many processes as there are dispatchers claim and record, each in turn, until nothing is due.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from bench.ground import DISPATCHERS, BenchError, Ground


def measure(ground: Ground) -> dict[str, Any]:
    """Tasks per second, and how long the statements take for one."""
    ground.use_history(ground.scale.history)
    tasks = ground.scale.tasks
    with ExitStack() as stack:
        processes = [_start(ground, stack) for _ in range(DISPATCHERS)]
        ground.publish(tasks)
        ground.calm()
        began = time.monotonic()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        spent = [json.loads(process.stdout.readline()) for process in processes]
        took = time.monotonic() - began
    if (recorded := sum(one["tasks"] for one in spent)) != tasks:
        raise BenchError(f"{recorded} of {tasks} tasks were claimed and recorded")
    return {
        "statements_alone_per_s": tasks / took,
        "claim_us": sum(one["claim_seconds"] for one in spent) * 1e6 / tasks,
        "record_us": sum(one["record_seconds"] for one in spent) * 1e6 / tasks,
    }


def _start(ground: Ground, stack: ExitStack) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.statements"],
        env=ground.live.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in the terminal is for its starter alone
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise BenchError("bench.statements did not start")
    return process
