"""Tasks: what became of an event at each endpoint, every attempt, and what can be done about it."""

from __future__ import annotations

from functools import wraps
from typing import Any

from flask import request

from app import bulk_retries, tasks
from app.blueprints.common import called_by, idempotent, link_to_next, or_dry_run
from app.blueprints.tenant.surface import a_reader, a_writer, blueprint
from app.models import BulkRetry, Event, Task
from app.ratelimit import Limits
from app.schemas.base import PageQuery
from app.schemas.fields import parse_id
from app.schemas.tasks import (
    BulkRetryCount,
    BulkRetryItem,
    BulkRetryPage,
    BulkRetryRequest,
    BulkRetryStarted,
    EventReasons,
    HowToRetry,
    Recovery,
    TaskChanged,
    TaskItem,
    TaskPage,
    TaskQuery,
    TaskWithAttempts,
)
from app.tasks import TaskFilter

blp = blueprint("tasks", "Events on their way to endpoints.")

_COUNT = BulkRetryCount()


@wraps(Limits.replay)
def _unless_dry_run(limits: Limits, tenant_id: int) -> None:
    """A bulk retry counts like a replay; to ask how many tasks it would be does not."""
    if request.args.get("dry_run") not in ("1", "true"):
        limits.replay(tenant_id)


def _would_be_retried(tenant_id: int, wanted: TaskFilter) -> Any:
    return _COUNT.dump(bulk_retries.count(tenant_id, wanted))


@blp.route("/tasks", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(TaskQuery(), location="query")
@blp.response(200, TaskPage())
def list_tasks(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the tenant's tasks

    The newest first. What narrows the list has to be true of a task altogether. A page may have
    fewer tasks than `limit`, even none, and yet a `next_cursor`: one request looks at 10,000 tasks
    at most, however few of them are wanted.
    """
    found = tasks.page_of_tasks(tenant_id, **wanted)
    return found, link_to_next(found.next_cursor)


@blp.route("/tasks/<task_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, TaskWithAttempts())
def get_task(tenant_id: int, task_id: str) -> Any:
    """Look at one task and its attempts

    The attempts in the order they were made, the newest 100 of them. Requests are not stored but
    built again: with the body that was sent, to the byte, and without the signature.
    """
    return tasks.look_at(tenant_id, parse_id("task", task_id))


@blp.route("/tasks/<task_id>/retry", methods=["POST"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, TaskChanged())
def retry_task(tenant_id: int, task_id: str) -> Any:
    """Retry a task at once

    Whatever its status, it starts the schedule anew, and does not wait for a hold of its endpoint
    to end. 409 while it is being delivered, or when nothing can be delivered any more; `message`
    tells when it has to wait for its endpoint.
    """
    number = parse_id("task", task_id)
    Task.get_of(tenant_id, number)
    message = tasks.retry(number)
    return _changed(tenant_id, number) | {"message": None if message == "ok" else message}


@blp.route("/tasks/<task_id>/cancel", methods=["POST"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, TaskChanged())
def cancel_task(tenant_id: int, task_id: str) -> Any:
    """Cancel a task

    It is not tried again. 409 while it is being delivered, and once it was delivered or has
    failed; one that is canceled stays so.
    """
    number = parse_id("task", task_id)
    tasks.cancel(tenant_id, number)
    return _changed(tenant_id, number)


def _changed(tenant_id: int, task_id: int) -> dict[str, Any]:
    """A task as it is now, by the names of a task that is listed."""
    task = Task.get_of(tenant_id, task_id)
    names = (field.attribute or name for name, field in TaskItem().fields.items())
    return {name: getattr(task, name) for name in names}


@blp.route("/events/<event_id>/why", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, EventReasons())
def get_why(tenant_id: int, event_id: str) -> Any:
    """Ask why an event was delivered, or was not

    In words, for every endpoint that the tenant had since: what became of its tasks, or why it has
    none. Of deleted endpoints without a task of the event, the latest 100.
    """
    event = Event.get_of(tenant_id, parse_id("evt", event_id))
    return {
        "event_id": event.id,
        "type": event.type,
        "endpoints": tasks.why_of_event(event),
    }


# ----------------------------------------------------------------------------------- bulk retries


@blp.route("/tasks/retry", methods=["POST"])
@called_by(a_writer, Limits.request, _unless_dry_run)
@blp.arguments(BulkRetryRequest())
@blp.arguments(HowToRetry(), location="query")
@or_dry_run(_would_be_retried)
@idempotent()
@blp.response(202, BulkRetryStarted())
@blp.alt_response(200, schema=BulkRetryCount(), success=True)
def start_bulk_retry(tenant_id: int, wanted: TaskFilter) -> Any:
    """Retry all tasks that a filter finds

    The filter is that of `GET /tasks`, and narrows at least something. Only tasks that failed are
    retried, or, where `status` names them, canceled ones; those of deleted endpoints are not. It
    is about the tasks that there are at this moment, and goes on in the background, behind live
    traffic: tasks of an endpoint that is not active or on hold wait for it. 409 while another bulk
    retry of the tenant runs.

    With `dry_run=1` nothing is retried: 200, and how many tasks it would be. Of many, counting is
    given up at 20,000 failed tasks, wanted or not: `capped`.
    """
    return bulk_retries.start(tenant_id, wanted)


@blp.route("/endpoints/<endpoint_id>/recover", methods=["POST"])
@called_by(a_writer, Limits.request, Limits.replay)
@blp.arguments(Recovery())
@idempotent()
@blp.response(202, BulkRetryStarted())
def recover_endpoint(tenant_id: int, wanted: dict[str, Any], endpoint_id: str) -> Any:
    """Retry what failed at an endpoint since then

    A bulk retry of the endpoint's failed tasks whose latest try began at `since` or later. That is
    a time, an event (the time of it), or `failing_since`, the beginning of the present failures.
    """
    return bulk_retries.recover(tenant_id, parse_id("ep", endpoint_id), wanted["since"])


@blp.route("/bulk-retries", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.arguments(PageQuery(), location="query")
@blp.response(200, BulkRetryPage())
def list_bulk_retries(tenant_id: int, wanted: dict[str, Any]) -> Any:
    """List the tenant's bulk retries

    The newest first.
    """
    found = bulk_retries.page_of_bulk_retries(tenant_id, **wanted)
    return found, link_to_next(found.next_cursor)


@blp.route("/bulk-retries/<bulk_retry_id>", methods=["GET"])
@called_by(a_reader, Limits.request)
@blp.response(200, BulkRetryItem())
def get_bulk_retry(tenant_id: int, bulk_retry_id: str) -> Any:
    """Look at one bulk retry, and at how far it has come"""
    return BulkRetry.get_of(tenant_id, parse_id("blk", bulk_retry_id))


@blp.route("/bulk-retries/<bulk_retry_id>/cancel", methods=["POST"])
@called_by(a_writer, Limits.request)
@idempotent()
@blp.response(200, BulkRetryItem())
def cancel_bulk_retry(tenant_id: int, bulk_retry_id: str) -> Any:
    """Cancel a bulk retry

    It retries no more tasks; those that it retried stay so. 409 once it has finished.
    """
    return BulkRetry.cancel_of(tenant_id, parse_id("blk", bulk_retry_id))
