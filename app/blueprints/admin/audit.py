"""The log of people's actions."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from app import audit
from app.blueprints.admin.surface import an_admin, blueprint
from app.blueprints.common import called_by, link_to_next
from app.schemas.base import enveloped
from app.schemas.fields import next_cursor
from app.schemas.tenants import AuditItem, AuditQuery

blp = blueprint("audit", "What people did.")


@blp.route("/audit", methods=["GET"])
@called_by(an_admin)
@blp.arguments(AuditQuery(), location="query")
@blp.response(
    200,
    enveloped("Actions", fields.List(fields.Nested(AuditItem())), next_cursor=next_cursor()),
)
def list_actions(_owner: int, wanted: dict[str, Any]) -> Any:
    """List what people did

    Every write over the API but publishing, and every look at a secret, the newest first. A page
    that is narrowed by `action` can be shorter than `limit` although there is more: go on while
    there is a `next_cursor`.
    """
    found = audit.page_of_actions(**wanted)
    return {"data": found.items, "next_cursor": found.next_cursor}, link_to_next(found.next_cursor)
