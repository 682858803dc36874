"""Tasks and their attempts, as a tenant sees them."""

from __future__ import annotations

from marshmallow import Schema, fields

from app.models import TASK_STATUSES
from app.schemas.base import Outgoing, PageQuery
from app.schemas.fields import PrefixedId, Text, Time, one_of


class TaskQuery(PageQuery):
    """A tenant's tasks, narrowed."""

    status = one_of(TASK_STATUSES)
    endpoint_id = PrefixedId("ep")


class TaskItem(Outgoing):
    """One event to be delivered to one endpoint."""

    task_id = PrefixedId("task", attribute="id")
    endpoint_id = PrefixedId("ep")
    event_id = PrefixedId("evt")
    type = Text()
    url = Text()
    status = one_of(TASK_STATUSES)
    failure = Text(metadata={"description": "How its last attempt failed."})
    tries = fields.Integer()
    next_try_at = Time()
    created_at = Time()
    replay_id = PrefixedId("rpl")

    where_it_applies = ("replay_id",)


class TaskPage(Outgoing):
    """A page of a tenant's tasks."""

    items = fields.List(fields.Nested(TaskItem()))
    next_cursor = Text()


class TimingsMs(Schema):
    """Milliseconds from the start of an attempt to the end of each phase; null: not reached."""

    resolve = fields.Float()
    connect = fields.Float()
    tls = fields.Float()
    first_byte = fields.Float()
    total = fields.Float()


class AttemptItem(Outgoing):
    """One HTTP request made for a task, and what came back."""

    attempt_id = PrefixedId("att", attribute="id")
    try_ = fields.Integer(attribute="number", data_key="try")
    started_at = Time()
    status_code = fields.Integer()
    failure = Text()
    timings_ms = fields.Nested(TimingsMs())
    address = Text()
    response_headers = Text()
    response_body = Text()
    truncated = fields.Boolean()
    resent = fields.Boolean()


class TaskWithAttempts(TaskItem):
    """GET /tasks/{id}."""

    attempts = fields.List(fields.Nested(AttemptItem()))
