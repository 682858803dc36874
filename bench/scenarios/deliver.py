"""The main figure: how many tasks per second are claimed, signed, sent, decided and recorded.

They are due before the dispatcher starts, so that it always has enough to do.
"""

from __future__ import annotations

from typing import Any

from app.db import db
from bench.cpu import cpu_seconds
from bench.ground import BenchError, Ground


def measure(ground: Ground) -> dict[str, Any]:
    """Tasks per second from the first request received to the last task recorded as delivered."""
    tasks = ground.scale.tasks
    before = ground.latest_id()
    ground.publish(tasks)
    ground.calm()
    ground.receiver.reset()
    postgres_before = cpu_seconds(ground.database.server_pid)
    with ground.dispatcher() as dispatcher:
        # Without what it took to start.
        dispatcher_before = cpu_seconds(dispatcher.pid)
        ground.wait_until_received(tasks)
        recorded = ground.wait_until_recorded()
        dispatcher_cpu = cpu_seconds(dispatcher.pid) - dispatcher_before
        postgres_cpu = cpu_seconds(ground.database.server_pid) - postgres_before
        report = ground.receiver.report()
    _check(before, tasks)
    return {
        "deliver_per_s": tasks / (recorded - report.first),
        "received_per_s": tasks / (report.last - report.first),
        "connections": report.connections,
        "duplicates": report.requests - report.events,
        "cpu_us": {
            "dispatcher": dispatcher_cpu * 1e6 / tasks,
            "postgresql": postgres_cpu * 1e6 / tasks,
            "receiver": report.cpu_seconds * 1e6 / tasks,
        },
    }


def _check(before: int, tasks: int) -> None:
    """Each task was delivered and has its attempt with the response."""
    delivered, recorded = db.execute_sql(
        """
        SELECT (SELECT count(*) FROM hookjetty.tasks WHERE id > %s AND status = 'delivered'),
               (SELECT count(*) FROM hookjetty.attempts
                WHERE id > %s AND status_code = 200 AND response_body <> '')
        """,
        (before, before),
    ).fetchone()
    if delivered != tasks or recorded < tasks:
        raise BenchError(f"of {tasks} tasks {delivered} were delivered and {recorded} recorded")
