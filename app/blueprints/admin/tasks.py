"""Tasks of any tenant: list, retry (admin-api.md)."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from app import tasks
from app.blueprints.admin.surface import an_admin, blueprint, paged
from app.blueprints.common import called_by, idempotent
from app.schemas.admin import AdminTask, AdminTaskQuery, ById, JustId
from app.schemas.base import enveloped, enveloped_page

blp = blueprint("tasks", "Tasks of any tenant.")


@blp.route("/tasks", methods=["GET"])
@called_by(an_admin)
@blp.arguments(AdminTaskQuery(), location="query")
@blp.response(200, enveloped_page("Tasks", AdminTask()))
def list_tasks(_owner: int, wanted: dict[str, Any]) -> Any:
    """List a tenant's tasks

    The newest first, each with its endpoint's URL.
    """
    found = tasks.page_of_tasks(wanted.pop("tenant_id"), **wanted)
    return paged(found)


@blp.route("/tasks/retry", methods=["POST"])
@called_by(an_admin)
@blp.arguments(ById())
@idempotent()
@blp.response(200, enveloped("TaskRetried", fields.Nested(JustId())))
def retry_task(_owner: int, wanted: dict[str, Any]) -> Any:
    """Retry a task at once

    It starts the schedule anew. 409 while it is being delivered or when nothing can be delivered
    any more; `msg` tells when it has to wait for its endpoint.
    """
    return {"data": wanted, "msg": tasks.retry(wanted["id"])}
