"""Replays in the tenant contract (tenant-api.md, Replay)."""

from __future__ import annotations

from marshmallow import fields

from app.schemas.base import Body, Outgoing
from app.schemas.fields import PrefixedId, Text, Time


class ReplayRequest(Body):
    """tenant-api.md, Replay."""

    endpoint_id = PrefixedId("ep", required=True)
    watermark = Text(
        required=True,
        data_key="from",
        metadata={
            "description": "RFC 3339 time, `evt_…`, or `failing_since`.",
            "example": "2025-10-05T06:00:00Z",
        },
    )


class ReplayStarted(Outgoing):
    """tenant-api.md, Replay."""

    status = Text(dump_default="started")
    replay_id = PrefixedId("rpl")
    message = Text(metadata={"description": "What the requester should know."})

    where_it_applies = ("message",)


class ReplayItem(Outgoing):
    """A replay and how far it has come."""

    replay_id = PrefixedId("rpl", attribute="id")
    endpoint_id = PrefixedId("ep")
    status = Text()
    events = fields.Integer(metadata={"description": "Looked at so far."})
    tasks = fields.Integer(metadata={"description": "Made so far."})
    created_at = Time()
    finished_at = Time(allow_none=True)
