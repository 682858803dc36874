"""Who used CPU and memory: processes that are not ours to ask, and others. From /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """What proc_pid_stat(5) says, in seconds."""

    parent: int
    used: float  # user and system
    used_by_ended_children: float


def cpu_seconds(pid: int) -> float:
    """What a process and its present children have used so far."""
    return sum(one.used for child, one in _processes().items() if pid in (child, one.parent))


def peak_rss_mb(pid: int) -> float:
    """The most memory that a process, or one of its present children, ever had: 10^6 bytes."""
    pids = [child for child, one in _processes().items() if pid in (child, one.parent)]
    return max(
        int(line.split()[1]) * 1024 / 1e6
        for child in pids
        for line in Path(f"/proc/{child}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )


class OthersMeter:
    """How much of the machine went to others than this process and all that descend from it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._before = _busy_seconds() - _seconds_of_descendants()

    def percent(self) -> float:
        """Of all cores, since it was made; kernel threads and stolen time are others too."""
        used = _busy_seconds() - _seconds_of_descendants() - self._before
        seconds = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, 100 * used / seconds)


def _seconds_of_descendants() -> float:
    """What this process used, and all that it started, also those that have ended."""
    processes = _processes()
    ours = {os.getpid()}
    while more := {pid for pid, one in processes.items() if one.parent in ours} - ours:
        ours |= more
    return sum(processes[pid].used + processes[pid].used_by_ended_children for pid in ours)


def _busy_seconds() -> float:
    """All but idle and waiting for the disk (proc_stat(5))."""
    with Path("/proc/stat").open() as lines:
        user, nice, system, _idle, _iowait, *rest = map(int, lines.readline().split()[1:9])
    return (user + nice + system + sum(rest)) / TICKS_PER_SECOND


def _processes() -> dict[int, Process]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        # The name, in brackets, may hold anything; what follows are numbers, the parent second.
        numbers = stat.rpartition(")")[2].split()
        user, system, user_ended, system_ended = (
            int(ticks) / TICKS_PER_SECOND for ticks in numbers[11:15]
        )
        found[int(folder.name)] = Process(int(numbers[1]), user + system, user_ended + system_ended)
    return found
