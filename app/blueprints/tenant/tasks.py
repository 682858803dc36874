"""Tasks: what became of an event at each endpoint, and every attempt that was made."""

from __future__ import annotations

from typing import Any

from app.blueprints.common import called_by, link_to_next
from app.blueprints.tenant.surface import a_reader, blueprint
from app.models import Task
from app.pages import page_of_tasks
from app.ratelimit import Limits
from app.schemas.fields import parse_id
from app.schemas.tasks import TaskPage, TaskQuery, TaskWithAttempts

blp = blueprint("tasks", "Events on their way to endpoints.")


@blp.route("/tasks", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(TaskQuery(), location="query")
@blp.response(200, TaskPage())
def list_tasks(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the tenant's tasks

    The newest first.
    """
    found = page_of_tasks(tenant_id, **wanted)
    return found, link_to_next(found.next_cursor)


@blp.route("/tasks/<task_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, TaskWithAttempts())
def get_task(tenant_id: int, task_id: str) -> Any:
    """Look at one task and its attempts

    The attempts in the order they were made, the newest 100 of them.
    """
    return Task.get_of(tenant_id, parse_id("task", task_id))
