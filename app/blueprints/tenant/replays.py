"""Replays: start one, list them, look how far they have come, cancel (tenant-api.md, Replay)."""

from __future__ import annotations

from typing import Any

from app import replays
from app.blueprints.common import called_by, idempotent, link_to_next
from app.blueprints.tenant.surface import a_reader, a_writer, blueprint
from app.models import Replay
from app.ratelimit import Limits
from app.schemas.fields import parse_id
from app.schemas.replays import (
    ReplayItem,
    ReplayPage,
    ReplayQuery,
    ReplayRequest,
    ReplayStarted,
)

blp = blueprint("replays", "Past events delivered again.")


@blp.route("/replay", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.replay)
@blp.arguments(ReplayRequest())
@idempotent()
@blp.response(202, ReplayStarted())
def start_replay(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """Replay from a watermark

    What happened from then to now and is wanted by the endpoint is delivered to it again, but for
    events that have an open task there. `to` ends it sooner, `events` and `only` choose among the
    events. 409 while another replay of the endpoint runs.
    """
    return replays.start(tenant_id, **wanted)


@blp.route("/replays", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(ReplayQuery(), location="query")
@blp.response(200, ReplayPage())
def list_replays(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the tenant's replays

    The newest first; those of one endpoint or in one status if so wanted.
    """
    found = replays.page_of_replays(tenant_id, **wanted)
    return found, link_to_next(found.next_cursor)


@blp.route("/replays/<replay_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, ReplayItem())
def get_replay(tenant_id: int, replay_id: str) -> Any:
    """Look at one replay, and at how far it has come"""
    return Replay.get_of(tenant_id, parse_id("rpl", replay_id))


@blp.route("/replays/<replay_id>/cancel", methods=["POST"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, ReplayItem())
def cancel_replay(tenant_id: int, replay_id: str) -> Any:
    """Cancel a replay

    It makes no more tasks; those it made stay. 409 once it has finished.
    """
    return Replay.cancel_of(tenant_id, parse_id("rpl", replay_id))
