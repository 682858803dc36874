"""Replays in the tenant contract (tenant-api.md, Replay)."""

from __future__ import annotations

from marshmallow import fields

from app.models import REPLAY_ONLY, WALK_STATUSES
from app.schemas.base import Body, Outgoing, PageQuery
from app.schemas.fields import Patterns, PrefixedId, Text, Time, next_cursor, one_of


class ReplayRequest(Body):
    """tenant-api.md, Replay."""

    endpoint_id = PrefixedId("ep", required=True)
    watermark = Text(
        required=True,
        data_key="from",
        metadata={
            "description": "RFC 3339 time, `evt_…`, or `failing_since`; included.",
            "example": "2025-10-05T06:00:00Z",
        },
    )
    end = Text(
        data_key="to",
        metadata={
            "description": "RFC 3339 time, not included, or `evt_…`, included; the moment of the"
            " request when absent, or later.",
            "examples": ["2025-10-05T09:00:00Z"],
        },
    )
    event_types = Patterns(
        data_key="events",
        metadata={
            "description": "Of what the endpoint wants, only these types.",
            "examples": [["export.*"]],
        },
    )
    only_those = one_of(
        REPLAY_ONLY,
        data_key="only",
        attribute="only",
        metadata={
            "description": "`failed`: events of which a task for the endpoint failed, and none was"
            " delivered or is open. `missing`: events that never had a task for it.",
            "examples": ["failed"],
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
    status = one_of(WALK_STATUSES)
    from_time = Time(data_key="from", metadata={"description": "What happened then or later …"})
    upto_time = Time(data_key="to", metadata={"description": "… and before."})
    event_types = fields.List(
        Text(), metadata={"description": "Narrowed to these types of events."}
    )
    only_those = one_of(REPLAY_ONLY, data_key="only", attribute="only")
    progress = fields.Float(
        metadata={"description": "In percent of the time it goes through.", "examples": [50.0]}
    )
    events = fields.Integer(metadata={"description": "Looked at so far."})
    tasks = fields.Integer(metadata={"description": "Made so far."})
    created_at = Time()
    finished_at = Time(allow_none=True)

    where_it_applies = ("event_types", "only")


class ReplayQuery(PageQuery):
    """A tenant's replays, narrowed."""

    endpoint_id = PrefixedId("ep")
    status = one_of(WALK_STATUSES)


class ReplayPage(Outgoing):
    """A page of a tenant's replays."""

    items = fields.List(fields.Nested(ReplayItem()))
    next_cursor = next_cursor()
