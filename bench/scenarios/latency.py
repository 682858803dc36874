"""How long from the call that publishes an event until its receiver has it, at 200 events/s.

Twice: `POST /events` through gunicorn (the figure), and `publish_event` on a connection of one's
own. The clock starts when the call begins, so what the senders themselves are late by is reported,
not counted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pycurl

from bench.clock import Publish, over_sql, percentile, publish_by_the_clock
from bench.ground import EVENT_DATA, BenchError, Ground
from bench.rows import Target

EVENTS_PER_SECOND = 200
SENDERS = 10
# Of connections and caches; not counted.
WARM_UP_SECONDS = 1
PATH = "/api/v1/data-consumption/webhooks/events"
# Of the curve.
PERCENTILES = (*range(100), 99.5, 99.9)


def measure(ground: Ground) -> dict[str, Any]:
    """Milliseconds; ``late_p99`` is by how much the senders were late to begin their calls."""
    ground.use_history(ground.scale.history)
    with ground.dispatchers():
        http, http_points = _latency(ground, _over_http(ground))
        sql, sql_points = _latency(ground, over_sql(ground.url))
    return {
        "latency_ms": http,
        "latency_sql_ms": sql,
        "points": {"latency_ms": http_points, "latency_sql_ms": sql_points},
    }


def _latency(
    ground: Ground, publishing: Callable[[], AbstractContextManager[Publish]]
) -> tuple[dict[str, float], list[float]]:
    ground.calm()
    ground.receiver.reset()
    calls = publish_by_the_clock(
        publishing,
        ground.targets,
        per_second=EVENTS_PER_SECOND,
        seconds=ground.scale.seconds,
        warm_up_seconds=WARM_UP_SECONDS,
        senders=SENDERS,
    )
    ground.wait_until_received(len(calls.began) + WARM_UP_SECONDS * EVENTS_PER_SECOND)
    ground.wait_until_recorded()
    times = [1000 * seconds for seconds in calls.latencies(ground.receiver.report())]
    return {
        "p50": percentile(times, 50),
        "p99": percentile(times, 99),
        "max": max(times),
        "late_p99": 1000 * percentile(calls.late, 99),
    }, [percentile(times, percent) for percent in PERCENTILES]


def _over_http(ground: Ground) -> Callable[[], AbstractContextManager[Publish]]:
    tenants = {target.tenant_id for target in ground.targets}
    tokens = {tenant_id: ground.live.tenant_token(tenant_id) for tenant_id in tenants}

    @contextmanager
    def publishing() -> Iterator[Publish]:
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, ground.live.url + PATH)
        try:
            yield lambda target: _post(curl, tokens[target.tenant_id], target)
        finally:
            curl.close()

    return publishing


def _post(curl: pycurl.Curl, token: str, target: Target) -> str:
    answer = io.BytesIO()
    headers = [f"Authorization: Bearer {token}", "Content-Type: application/json"]
    curl.setopt(pycurl.HTTPHEADER, headers)
    curl.setopt(pycurl.POSTFIELDS, f'{{"type":"{target.type}","data":{EVENT_DATA}}}')
    curl.setopt(pycurl.WRITEDATA, answer)
    curl.perform()
    status = curl.getinfo(pycurl.RESPONSE_CODE)
    if status != 202:
        raise BenchError(f"POST /events was answered {status}: {answer.getvalue().decode()}")
    return json.loads(answer.getvalue())["event_id"]
