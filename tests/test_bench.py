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

import pytest

from bench import receiver, report
from bench.__main__ import FOLDER, SCENARIOS, run
from bench.ground import Scale
from bench.receiver import ANSWER, Receiver
from bench.scenarios import latency

TINY = Scale("tiny", tasks=400, history=1000, seconds=1, rounds=1)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run of all scenarios, as they would be written to results.json."""
    return run(TINY, list(SCENARIOS), tmp_path_factory.mktemp("bench") / "var")


def test_a_run_has_every_figure_by_its_name(results):
    for key in ("deliver_per_s", "libcurl_alone_per_s", "receiver_alone_per_s"):
        assert results[key] > 0
    assert 0 < results["latency_ms"]["p50"] <= results["latency_ms"]["p99"]
    assert 0 < results["latency_sql_ms"]["p50"] <= results["latency_sql_ms"]["p99"]
    assert results["ratios"]["deliver_per_s / libcurl_alone_per_s"] == pytest.approx(
        results["deliver_per_s"] / results["libcurl_alone_per_s"]
    )


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


def test_results_go_to_the_json_and_between_the_markers_of_the_readme(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()).keys() == results.keys()
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| `deliver_per_s` |" in text and "| `latency_ms.p99` |" in text


def test_the_readmes_tables_are_those_of_the_results_json_beside_it():
    kept = json.loads((FOLDER / "results.json").read_text())
    written = (FOLDER / "README.md").read_text().partition(report.BEGIN)[2]
    assert written.partition(report.END)[0].strip() == report.tables(kept).strip()


def test_the_readme_names_every_scenario():
    described = re.findall(r"^\| `(\w+)` \| ", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(SCENARIOS) <= set(described)


def test_the_examples_in_the_bench_are_true():
    for module in (receiver, latency):
        failed, attempted = doctest.testmod(module)
        assert attempted and not failed


# ------------------------------------------------------------------------------- the receiver


@pytest.fixture
def listening() -> Iterator[Receiver]:
    with Receiver(ports=2) as running:
        yield running


def connect(listening: Receiver, place: int = 0) -> socket.socket:
    port = int(re.findall(r":(\d+)/", listening.urls[place])[0])
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


def test_ctrl_c_ends_everything_that_the_bench_started(tmp_path):
    process = start(tmp_path, QUICK="1")
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
