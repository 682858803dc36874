"""The whole way: 16 clients publish by single `POST /events`, and all is delivered meanwhile.

Gunicorn, PostgreSQL, the dispatchers, the receiver and the clients share the machine.
"""

from __future__ import annotations

from typing import Any

from bench import clients
from bench.ground import EVENT_DATA, Ground
from bench.rows import latest_id

CLIENTS = 16
PATH = "/api/v1/data-consumption/webhooks/events"


def measure(ground: Ground) -> dict[str, Any]:
    """Events per second, from the first call to the last response recorded."""
    return end_to_end(ground, "end_to_end", PATH, 1)


def end_to_end(ground: Ground, name: str, path: str, batch: int) -> dict[str, Any]:
    """The same for one event a request, and for many."""
    ground.use_history(ground.scale.history)
    tokens: dict[int, str] = {}
    requests = []
    for target in ground.targets:
        if target.tenant_id not in tokens:
            tokens[target.tenant_id] = ground.live.tenant_token(target.tenant_id)
        event = f'{{"type":"{target.type}","data":{EVENT_DATA}}}'
        body = event if batch == 1 else f'{{"events":[{",".join([event] * batch)}]}}'
        requests.append(clients.post(path, tokens[target.tenant_id], body.encode()))
    before = latest_id()
    ground.calm()
    ground.receiver.reset()
    with ground.dispatchers():
        answered = clients.ask(
            ground.live.port, requests, clients=CLIENTS, seconds=ground.scale.seconds
        )
        events = answered.requests * batch
        delivered_meanwhile = ground.receiver.count()
        ground.wait_until_received(events)
        recorded = ground.wait_until_recorded()
    ground.check_delivered(before, events)
    return {
        f"{name}_per_s": events / (recorded - answered.began),
        "events": events,
        "delivered_meanwhile_percent": 100 * delivered_meanwhile / events,
    }
