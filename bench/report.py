"""From the figures of all rounds to results.json, and from there to the tables of README.md."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pycurl

from app import __version__
from bench.ground import Scale

BEGIN = "<!-- from results.json: written by make bench -->"
END = "<!-- end of what make bench writes -->"

# What stands at the top of results.json: the scenario, and its figure.
HEADLINES = {
    "deliver_per_s": "deliver",
    "libcurl_alone_per_s": "libcurl_alone",
    "receiver_alone_per_s": "receiver_alone",
    "latency_ms": "latency",
    "latency_sql_ms": "latency",
}
RATIOS = (("deliver_per_s", "libcurl_alone_per_s"),)


def results(
    scale: Scale, machine: Mapping[str, Any], rounds: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """All that a run has to say: medians over the rounds, and the rounds themselves."""
    scenarios = {name: _medians(figures) for name, figures in rounds.items()}
    headlines = {key: scenarios[name][key] for key, name in HEADLINES.items() if name in scenarios}
    return {
        "hookjetty": __version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": scale.name == "quick",
        "scale": asdict(scale),
        "machine": dict(machine),
        **headlines,
        "ratios": {
            f"{one} / {other}": headlines[one] / headlines[other]
            for one, other in RATIOS
            if one in headlines and other in headlines
        },
        "scenarios": {
            name: figures | {"rounds": list(rounds[name])} for name, figures in scenarios.items()
        },
    }


def machine() -> dict[str, Any]:
    """What the figures are measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libcurl": pycurl.version_info()[1],
    }


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write results.json, and its tables into README.md between the markers."""
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    readme = folder / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}")


def tables(results: Mapping[str, Any]) -> str:
    """The figures in Markdown."""
    machine, scale, scenarios = results["machine"], results["scale"], results["scenarios"]
    made_on = (
        f"{results['measured_at'][:10]}, {'**QUICK**, ' if results['quick'] else ''}"
        f"{machine['cores']} cores ({machine['cpu']}, {machine['memory_gib']} GiB),"
        f" Linux {machine['kernel']}, Python {machine['python']},"
        f" PostgreSQL {machine['postgresql']}, libcurl {machine['libcurl']}."
        f" {_number(machine['others_cpu_percent'])} % of the CPU went to others meanwhile."
    )
    method = (
        f"{scale['tasks']:,} tasks a round, {scale['history']:,} events of history,"
        f" median of {scale['rounds']} rounds."
    )
    lines = [
        *(made_on, "", method, ""),
        "| figure | median | each round |",
        "|---|---:|---|",
    ]
    for key, name in HEADLINES.items():
        every = [one[key] for one in scenarios[name]["rounds"]]
        for label, value, values in _flat(key, results[key], every):
            lines.append(f"| `{label}` | {_number(value)} | {', '.join(map(_number, values))} |")
    for label, value in results["ratios"].items():
        lines.append(f"| `{label}` | {_number(value)} | |")
    lines += ["", "| CPU of | in | microseconds per task |", "|---|---|---:|"]
    for name in ("deliver", "libcurl_alone"):
        for process, used in scenarios[name]["cpu_us"].items():
            lines.append(f"| {process} | `{name}` | {_number(used)} |")
    return "\n".join(lines) + "\n"


def rounded(value: Any) -> Any:
    """No more digits than mean something."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def in_short(figures: Mapping[str, Any]) -> str:
    """A round's headlines on one line."""
    flat = [one for key in HEADLINES if key in figures for one in _flat(key, figures[key], [])]
    return ", ".join(f"{label} {_number(value)}" for label, value, _ in flat)


def _flat(key: str, value: Any, every: Sequence[Any]) -> list[tuple[str, float, list[float]]]:
    """A figure, or each of a group's, with its rounds."""
    if not isinstance(value, Mapping):
        return [(key, value, list(every))]
    return [(f"{key}.{name}", value[name], [one[name] for one in every]) for name in value]


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure, in groups too."""
    return {
        key: _medians([one[key] for one in rounds])
        if isinstance(rounds[0][key], Mapping)
        else statistics.median(one[key] for one in rounds)
        for key in rounds[0]
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, model = line.partition(":")
        if name.strip() == "model name":
            return model.strip()
    return platform.machine()
