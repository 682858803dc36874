"""The bench measures what it says, with a few hundred tasks, and leaves nothing behind."""

from __future__ import annotations

import doctest
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import charts, clients, clock, receiver, report
from bench.__main__ import FOLDER, SCENARIOS, run
from bench.ground import BenchError, Ground, Scale
from bench.receiver import ANSWER, TALK, Receiver
from bench.rows import latest_id
from bench.scenarios import baseline

TINY = Scale(
    "tiny",
    rounds=1,
    turns=1,
    tasks=400,
    baseline_tasks=50,
    short_history=100,
    history=1000,
    long_history=2000,
    seconds=1,
    neighbour_seconds=1,
    neighbour_due=500,
    idle_seconds=1,
    due=1000,
    backlog=2000,
    backlog_endpoints=20,
    snapshot_tasks=500,
)
# One of each kind: the limits, the main figure, two sides in a round, two databases, the API.
MEASURED = ("libcurl_alone", "deliver", "statements_alone", "hanging", "backlog", "latency")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run of some scenarios, as they would be written to results.json."""
    return run(TINY, MEASURED, tmp_path_factory.mktemp("bench") / "var")


def test_a_run_has_every_figure_by_its_name(results):
    for key in ("deliver_per_s", "libcurl_alone_per_s", "statements_alone_per_s"):
        assert results[key] > 0
    for key in ("hanging_ratio", "backlog_ratio"):
        assert results[key] > 0
    assert 0 < results["latency_ms"]["p50"] <= results["latency_ms"]["p99"]
    assert 0 < results["latency_sql_ms"]["p50"] <= results["latency_sql_ms"]["p99"]
    assert results["ratios"]["deliver_per_s / libcurl_alone_per_s"] == pytest.approx(
        results["deliver_per_s"] / results["libcurl_alone_per_s"]
    )


@pytest.mark.skipif(not baseline.PYTHON.exists(), reason="bench/.venv is made by make bench")
def test_the_baseline_delivers_what_it_is_given(tmp_path):
    assert run(TINY, ["baseline"], tmp_path / "var")["baseline_per_s"] > 0


def test_a_lost_task_is_no_figure(tmp_path):
    with Ground(tmp_path / "var", TINY) as ground:
        before = latest_id()
        ground.publish(3)
        with pytest.raises(BenchError, match="of 3 tasks 0 were delivered and 0 recorded"):
            ground.check_delivered(before, 3)


def test_a_run_says_on_what_and_how_much_it_measured(results):
    assert results["quick"] is False and results["scale"]["tasks"] == 400
    for name in ("cores", "cpu", "kernel", "python", "postgresql", "libcurl"):
        assert results["machine"][name], name
    assert 0 <= results["machine"]["others_cpu_percent"] <= 100
    assert results["machine"]["cores"] == len(os.sched_getaffinity(0))


def test_every_task_of_a_run_went_out_once(results):
    (figures,) = results["scenarios"]["deliver"]["rounds"]
    assert figures["duplicates"] == 0
    assert figures["cpu_us"]["dispatcher"] > 0 and figures["cpu_us"]["postgresql"] > 0


def test_a_ratio_is_the_median_of_the_rounds_and_judged_by_its_target():
    rounds = {
        "deliver": [{"deliver_per_s": rate} for rate in (6000.0, 3000.0, 4000.0)],
        "libcurl_alone": [{"libcurl_alone_per_s": rate} for rate in (10000.0, 4000.0, 8000.0)],
        "snapshot": [{"snapshot_ratio": 0.79}],
    }
    judged = report.results(TINY, {}, rounds)
    assert judged["deliver_per_s"] == 4000
    # 0.6, 0.75 and 0.5: slow minutes slow both sides.
    assert judged["ratios"]["deliver_per_s / libcurl_alone_per_s"] == 0.6
    met = {one["figure"]: (one["target"], one["met"]) for one in judged["targets"]}
    assert met == {
        "deliver_per_s / libcurl_alone_per_s": (0.55, True),
        "deliver_per_s": (4500, False),
        "snapshot_ratio": (0.8, False),
    }


@pytest.fixture
def kept() -> dict[str, Any]:
    """The results.json beside the README."""
    return json.loads((FOLDER / "results.json").read_text())


def test_results_go_to_the_json_the_curves_and_between_the_markers_of_the_readme(kept, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(kept, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == kept
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    for name in re.findall(r"\]\((curves/\w+\.svg)\)", text):
        drawing = ET.parse(tmp_path / name).getroot()  # noqa: S314 - our own
        assert drawing.findall("{http://www.w3.org/2000/svg}path[@class='axis']"), name
        assert drawing.findall(".//{http://www.w3.org/2000/svg}text"), name


def test_the_results_kept_have_all_figures_and_all_targets(kept):
    assert kept["scenarios"].keys() == SCENARIOS.keys()
    assert report.HEADLINES.keys() <= kept.keys()
    assert {one["figure"] for one in kept["targets"]} == {one.figure for one in report.TARGETS}


def test_the_readmes_tables_and_curves_are_those_of_the_results_json_beside_it(kept):
    written = (FOLDER / "README.md").read_text().partition(report.BEGIN)[2]
    assert written.partition(report.END)[0].strip() == report.tables(kept).strip()
    for name, drawing in report.drawings(kept).items():
        assert (FOLDER / "curves" / f"{name}.svg").read_text() == drawing


def test_the_readme_names_every_scenario():
    described = re.findall(r"^\| `(\w+)` \| ", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(SCENARIOS) <= set(described)


def test_the_examples_in_the_bench_are_true():
    for module in (receiver, clock, clients, charts):
        failed, attempted = doctest.testmod(module)
        assert attempted and not failed


# ------------------------------------------------------------------------------- the receiver


@pytest.fixture
def listening() -> Iterator[Receiver]:
    with Receiver(ports=2, hanging=1, talkative=1) as running:
        yield running


def connect(listening: Receiver, place: int = 0) -> socket.socket:
    return connect_to(listening.urls[place])


def connect_to(url: str) -> socket.socket:
    port = int(re.findall(r":(\d+)/", url)[0])
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def request(message_id: str, body: bytes = b"{}") -> bytes:
    return (
        f"POST /hook HTTP/1.1\r\nwebhook-id: {message_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def test_the_receiver_answers_many_requests_on_a_connection(listening):
    with connect(listening) as connection:
        for number in range(3):
            connection.sendall(request(f"evt_{number}"))
            assert connection.recv(len(ANSWER), socket.MSG_WAITALL) == ANSWER
    report = listening.report()
    assert report.ids == ["evt_0", "evt_1", "evt_2"] and report.connections == 1
    assert report.first <= report.last


def test_the_receiver_waits_for_the_rest_of_a_request(listening):
    whole = request("evt_1", b"x" * 50_000)
    with connect(listening, 1) as connection:
        for start in range(0, len(whole), 20_000):
            assert listening.count() == 0
            connection.sendall(whole[start : start + 20_000])
        assert connection.recv(len(ANSWER), socket.MSG_WAITALL) == ANSWER
    assert listening.count() == 1


def test_the_receiver_refuses_what_the_bench_does_not_send(listening):
    with connect(listening) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        assert connection.recv(100) == b""


def test_a_hanging_server_reads_and_never_answers(listening):
    with connect_to(listening.hanging_urls[0]) as connection:
        connection.sendall(request("evt_1"))
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert listening.count() == 0


def test_a_talkative_server_answers_64_kib_at_once(listening):
    with connect_to(listening.talkative_urls[0]) as connection:
        for number in range(2):
            connection.sendall(request(f"evt_{number}"))
            assert connection.recv(len(TALK), socket.MSG_WAITALL) == TALK
    assert listening.count() == 2


def test_the_receiver_counts_an_event_that_came_twice(listening):
    with connect(listening) as connection:
        for _ in range(2):
            connection.sendall(request("evt_1"))
            connection.recv(len(ANSWER), socket.MSG_WAITALL)
    assert (listening.report().requests, listening.report().events) == (2, 1)
    listening.reset()
    assert listening.count() == 0


# -------------------------------------------------------------------------------- the command

COMMAND = "import sys, pathlib, bench.__main__ as b; sys.exit(b.main(pathlib.Path(sys.argv[1])))"


def start(folder: Path, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(folder)],
        cwd=FOLDER.parent,
        env=os.environ | environ,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_unknown_scenario_is_refused_with_those_there_are(tmp_path):
    process = start(tmp_path, SCENARIO="deliverr")
    _, complaint = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "deliverr" in complaint and "libcurl_alone, deliver" in complaint
    assert "fairness" in complaint  # a chapter of them


def test_ctrl_c_ends_everything_that_the_bench_started(tmp_path):
    process = start(tmp_path, QUICK="1", SCENARIO="deliver")
    assert process.stderr is not None
    for line in process.stderr:
        if "history" in line:
            break
    started = descendants(process.pid)
    assert len(started) > 4  # receiver, PostgreSQL, gunicorn and its workers
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130 and "nothing was written" in rest
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that these have started."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [one for child in children for one in descendants(child)]
