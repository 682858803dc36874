"""The log of people's actions."""

from __future__ import annotations

from typing import Any

from app import audit
from app.blueprints.admin.surface import an_admin, blueprint, paged
from app.blueprints.common import called_by
from app.schemas.base import enveloped_page
from app.schemas.tenants import AuditItem, AuditQuery

blp = blueprint("audit", "What people did.")


@blp.route("/audit", methods=["GET"])
@called_by(an_admin)
@blp.arguments(AuditQuery(), location="query")
@blp.response(200, enveloped_page("Actions", AuditItem()))
def list_actions(_owner: int, wanted: dict[str, Any]) -> Any:
    """List what people did

    Every write over the API but publishing, and every look at a secret, the newest first. A page
    that is narrowed by `action` can be shorter than `limit` although there is more: go on while
    there is a `next_cursor`.
    """
    found = audit.page_of_actions(**wanted)
    return paged(found)
