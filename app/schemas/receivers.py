"""What receivers get, in the words of OpenAPI: the challenge, events, and operational events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.schemas.fields import EventType, Time, described_id

_TIME = {"type": "string", "format": "date-time", **Time.described}

_HEADERS: dict[str, tuple[bool, str, dict[str, Any]]] = {
    "webhook-id": (
        True,
        "The event's id, the same on every try and replay: remember it, and skip what came before.",
        {"type": "string", "examples": ["evt_244175641309186"]},
    ),
    "webhook-timestamp": (
        True,
        "When this attempt was made, in Unix seconds; it is part of what is signed.",
        {"type": "integer", "examples": [1795303997]},
    ),
    "webhook-signature": (
        True,
        "`v1,` and a base64, as in Standard Webhooks; several while a secret is replaced.",
        {"type": "string", "pattern": "^v1,[A-Za-z0-9+/=]+( v1,[A-Za-z0-9+/=]+)*$"},
    ),
    "webhook-attempt": (
        True,
        "1 on the first try.",
        {"type": "integer", "minimum": 1},
    ),
    "webhook-replay": (
        False,
        "There if a replay sends this.",
        {"type": "string", **described_id("rpl")},
    ),
}


def _request(
    summary: str,
    description: str,
    type_: Mapping[str, Any],
    data: Mapping[str, Any],
    example: Mapping[str, Any],
    answers: Mapping[str, Any],
    *,
    id_prefix: str = "evt",
) -> dict[str, Any]:
    """What is sent to a receiver, and what it is to answer."""
    body = {
        "type": "object",
        "required": ["id", "type", "timestamp", "data"],
        "properties": {
            "id": {"type": "string", **described_id(id_prefix)},
            "type": {"type": "string", **type_},
            "timestamp": _TIME,
            "data": data,
        },
    }
    return {
        "post": {
            "summary": summary,
            "description": description,
            "parameters": [
                {
                    "name": name,
                    "in": "header",
                    "required": is_required,
                    "description": meaning,
                    "schema": schema,
                }
                for name, (is_required, meaning, schema) in _HEADERS.items()
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": body, "example": example}},
            },
            "responses": answers,
        }
    }


_ANSWERS = {
    "2XX": {"description": "It is delivered, whatever the answer's body is."},
    "410": {"description": "The receiver is gone for good: its endpoint is disabled."},
    "429": {"description": "Too many; `Retry-After` (1 s to 24 h) is when to come back."},
    "503": {"description": "Not now; `Retry-After` (1 s to 24 h) is when to come back."},
    "default": {"description": "It is tried again; redirects are not followed."},
}

_SENT = {"timestamp": Time.described["examples"][0]}

_OPERATIONAL = "To endpoints that name the type, or `hookjetty.*`; `*` does not match it."


def _operational(
    type_: str, summary: str, description: str, example: Mapping[str, Any]
) -> dict[str, Any]:
    """An event of ours about a tenant's own things (docs/operational-events.md)."""
    kinds = {str: "string", int: "integer", type(None): "null"}
    properties: dict[str, Any] = {name: {"type": kinds[type(of)]} for name, of in example.items()}
    for name in properties.keys() & {"failing_since", "reason"}:
        properties[name] = {"type": ["string", "null"]}
    data = {
        "type": "object",
        "required": list(properties),
        "properties": {"tenant_id": {"type": "integer", "description": _OPERATORS}} | properties,
    }
    body = {"id": "evt_7", "type": type_, **_SENT, "data": example}
    return _request(
        summary, f"{description} {_OPERATIONAL}", {"const": type_}, data, body, _ANSWERS
    )


_OPERATORS = "In the operator's copy alone."
_ENDPOINT = {"endpoint_id": "ep_7", "url": "https://app.example.com/hook"}

WEBHOOKS: dict[str, Any] = {
    "event": _request(
        "An event that the endpoint wants",
        "Sent until it is answered with 2xx within 15 seconds, by default ten times over three"
        " days. The body is the same, byte for byte, every time; `data` is the JSON text that was"
        " published. Events come in no particular order.",
        EventType.described,
        {"type": "object"},
        {"id": "evt_7", "type": "export.done", **_SENT, "data": {"export": 42, "rows": 1000}},
        _ANSWERS,
    ),
    "endpoint.challenge": _request(
        "Does this receiver want to be called?",
        "Sent once to a tenant's new endpoint, then again after 5 s, 30 s, 2 min, 10 min, and"
        " hourly for three days until it is answered; and whenever its verification is asked for.",
        {"const": "endpoint.challenge"},
        {
            "type": "object",
            "required": ["challenge"],
            "properties": {"challenge": {"type": "string"}},
        },
        {
            "id": "chl_7",
            "type": "endpoint.challenge",
            **_SENT,
            "data": {"challenge": "Qm9vLi4u"},
        },
        {
            "2XX": {
                "description": "Yes, with the challenge's value: as JSON, or just as text. A"
                " receiver that sends back all it gets does not pass.",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["challenge_response"],
                            "properties": {"challenge_response": {"type": "string"}},
                        },
                        "example": {"challenge_response": "Qm9vLi4u"},
                    },
                    "text/plain": {"schema": {"type": "string"}, "example": "Qm9vLi4u"},
                },
            },
            "default": {"description": "No, or not now."},
        },
        id_prefix="chl",
    ),
    "hookjetty.endpoint.disabled": _operational(
        "hookjetty.endpoint.disabled",
        "We stopped calling an endpoint",
        "It answered 410 (`reason` is `gone`), or there was nothing but failures for five days"
        " (`failing`).",
        _ENDPOINT | {"reason": "failing", "failing_since": _SENT["timestamp"]},
    ),
    "hookjetty.endpoint.recovered": _operational(
        "hookjetty.endpoint.recovered",
        "An endpoint works again",
        "It had been on hold after five failures in a row.",
        _ENDPOINT | {"reason": None, "failing_since": _SENT["timestamp"]},
    ),
    "hookjetty.task.exhausted": _operational(
        "hookjetty.task.exhausted",
        "No tries are left for a task",
        "`type` is that of the event that could not be delivered. That an operational event could"
        " not be is told to nobody.",
        {
            "task_id": "task_7",
            "event_id": "evt_6",
            "endpoint_id": "ep_7",
            "type": "export.done",
            "tries": 10,
            "failure": "http_5xx",
        },
    ),
    "hookjetty.replay.finished": _operational(
        "hookjetty.replay.finished",
        "A replay has made all of its tasks",
        "They are on their way.",
        {
            "replay_id": "rpl_7",
            "endpoint_id": "ep_7",
            "status": "finished",
            "events": 1200,
            "tasks": 1187,
        },
    ),
}
