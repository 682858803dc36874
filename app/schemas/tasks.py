"""Tasks and their attempts, as a tenant sees them."""

from __future__ import annotations

from marshmallow import fields

from app.models import FAILURES, TASK_STATUSES
from app.schemas.base import Outgoing, PageQuery
from app.schemas.fields import PrefixedId, Text, Time, next_cursor, one_of


class TaskQuery(PageQuery):
    """A tenant's tasks, narrowed."""

    status = one_of(TASK_STATUSES)
    endpoint_id = PrefixedId("ep")


class TaskItem(Outgoing):
    """One event to be delivered to one endpoint."""

    task_id = PrefixedId("task", attribute="id")
    endpoint_id = PrefixedId("ep")
    event_id = PrefixedId("evt")
    type = Text(allow_none=True, metadata={"description": "Null once the event has expired."})
    url = Text(allow_none=True)
    status = one_of(TASK_STATUSES)
    failure = one_of(
        FAILURES, allow_none=True, metadata={"description": "How its last attempt failed."}
    )
    tries = fields.Integer(metadata={"minimum": 0, "description": "Attempts begun."})
    next_try_at = Time(allow_none=True)
    created_at = Time()
    replay_id = PrefixedId("rpl")

    where_it_applies = ("replay_id",)


class TaskPage(Outgoing):
    """A page of a tenant's tasks."""

    items = fields.List(fields.Nested(TaskItem()))
    next_cursor = next_cursor()


class TimingsMs(Outgoing):
    """Milliseconds from the start of an attempt to the end of each phase; null: not reached."""

    resolve = fields.Float(allow_none=True)
    connect = fields.Float(allow_none=True)
    tls = fields.Float(allow_none=True)
    first_byte = fields.Float(allow_none=True)
    total = fields.Float(allow_none=True)


class AttemptItem(Outgoing):
    """One HTTP request made for a task, and what came back."""

    attempt_id = PrefixedId("att", attribute="id")
    try_ = fields.Integer(attribute="number", data_key="try")
    started_at = Time(allow_none=True)
    status_code = fields.Integer(allow_none=True)
    failure = one_of(FAILURES, allow_none=True)
    timings_ms = fields.Nested(TimingsMs())
    address = Text(allow_none=True)
    response_headers = Text(allow_none=True)
    response_body = Text(allow_none=True)
    truncated = fields.Boolean()
    resent = fields.Boolean()


class TaskWithAttempts(TaskItem):
    """GET /tasks/{id}."""

    attempts = fields.List(fields.Nested(AttemptItem()))
