"""Tasks and their attempts, as a tenant sees them; what finds them, and retries many of them."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, post_load, validates_schema

from app.bulk_retries import RETRIED_STATUSES
from app.models import ENDPOINT_STATUSES, FAILURES, TASK_STATUSES, WALK_STATUSES
from app.schemas.base import Body, Incoming, Outgoing, PageQuery, Query
from app.schemas.fields import Flag, Moment, Pattern, PrefixedId, Text, Time, next_cursor, one_of
from app.tasks import CODE_CLASSES, TaskFilter


class _EventTypes(Pattern):
    """An event type, or all below a prefix; everything would be no narrowing."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if text == "*":
            raise ValidationError("must be an event type such as export.done, or export.*")
        return text


class _Narrowed(Incoming):
    """What narrows tasks; all that is given must be true of a task."""

    status = one_of(TASK_STATUSES)
    endpoint_id = PrefixedId("ep")
    event_id = PrefixedId("evt")
    type = _EventTypes(
        metadata={
            "description": "The event's type: exact, or all below a prefix.",
            "examples": ["export.*"],
        }
    )
    code_class = one_of(
        tuple(CODE_CLASSES),
        metadata={
            "description": "What the receiver answered to the latest try, by its hundreds.",
            "examples": ["5xx"],
        },
    )
    failure = one_of(
        FAILURES,
        metadata={"description": "How the latest try failed.", "examples": ["timeout"]},
    )
    since = Moment(
        data_key="from",
        metadata={
            "description": "Made then or later.",
            "format": "date-time",
            "examples": ["2025-10-05T06:00:00Z"],
        },
    )
    until = Moment(
        data_key="to",
        metadata={
            "description": "Made before.",
            "format": "date-time",
            "examples": ["2025-10-06T06:00:00Z"],
        },
    )

    @validates_schema
    def _from_before_to(self, loaded: dict[str, Any], **_kwargs: Any) -> None:
        if "since" in loaded and "until" in loaded and loaded["since"] >= loaded["until"]:
            raise ValidationError("must be later than from", "to")


class TaskQuery(_Narrowed, PageQuery):
    """A tenant's tasks, narrowed."""


class BulkRetryRequest(_Narrowed, Body):
    """POST /tasks/retry: which tasks, as in GET /tasks; at least one field."""

    status = one_of(
        RETRIED_STATUSES,
        metadata={"description": "`failed` when absent.", "example": "failed"},
    )

    @post_load
    def _as_filter(self, loaded: dict[str, Any], **_kwargs: Any) -> TaskFilter:
        return TaskFilter(**loaded)


class HowToRetry(Query):
    """Whether to retry, or to count."""

    dry_run = Flag(
        load_default=False,
        metadata={"description": "Retry nothing; say how many tasks it would be."},
    )


class Recovery(Body):
    """POST /endpoints/{id}/recover."""

    since = Text(
        required=True,
        metadata={
            "description": "RFC 3339 time, `evt_…`, or `failing_since`.",
            "example": "2025-10-05T06:00:00Z",
        },
    )


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

    where_it_applies: tuple[str, ...] = ("replay_id",)


class TaskPage(Outgoing):
    """A page of a tenant's tasks."""

    items = fields.List(fields.Nested(TaskItem()))
    next_cursor = Text(
        allow_none=True,
        metadata={
            "description": "Asks for the next page; null on the last one. Where few tasks are"
            " wanted of many, a page may have fewer items than `limit`, or none, and yet not be"
            " the last one."
        },
    )


class TaskChanged(TaskItem):
    """POST /tasks/{id}/retry and /cancel: the task as it is now."""

    message = Text(metadata={"description": "Why it has to wait."})

    where_it_applies = ("replay_id", "message")


class TimingsMs(Outgoing):
    """Milliseconds from the start of an attempt to the end of each phase; null: not reached."""

    resolve = fields.Float(allow_none=True)
    connect = fields.Float(allow_none=True)
    tls = fields.Float(allow_none=True)
    first_byte = fields.Float(allow_none=True)
    total = fields.Float(allow_none=True)


class Headers(fields.Dict):
    """A request's headers by name."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = {
            "description": "As they were sent, without the signature and what HTTP itself adds.",
            "examples": [{"webhook-id": "evt_7", "webhook-attempt": "1"}],
        }
        super().__init__(keys=Text(), values=Text(), metadata=metadata, **kwargs)


class AttemptItem(Outgoing):
    """One HTTP request made for a task, and what came back."""

    attempt_id = PrefixedId("att", attribute="id")
    try_ = fields.Integer(attribute="number", data_key="try")
    started_at = Time(allow_none=True)
    status_code = fields.Integer(allow_none=True)
    failure = one_of(FAILURES, allow_none=True)
    timings_ms = fields.Nested(TimingsMs())
    address = Text(allow_none=True)
    request_headers = Headers(allow_none=True)
    response_headers = Text(allow_none=True)
    response_body = Text(allow_none=True)
    truncated = fields.Boolean()
    resent = fields.Boolean()


class RequestItem(Outgoing):
    """The latest attempt's request, built again."""

    method = Text(metadata={"examples": ["POST"]})
    url = Text(metadata={"description": "The one that the endpoint has now."})
    headers = Headers()
    body = Text(metadata={"description": "The very text that was sent, the same on every try."})


class TaskWithAttempts(TaskItem):
    """GET /tasks/{id}."""

    why = Text(metadata={"description": "Why it is where it is, in words."})
    request = fields.Nested(
        RequestItem(),
        allow_none=True,
        metadata={"description": "Null before the first try, and once the event is gone."},
    )
    attempts = fields.List(fields.Nested(AttemptItem()))


class TaskReason(Outgoing):
    """A task, and why it is where it is."""

    task_id = PrefixedId("task", attribute="id")
    status = one_of(TASK_STATUSES)
    why = Text()

    def get_attribute(self, obj: Any, attr: str, default: Any) -> Any:
        """The reason's own, and the task's."""
        own = super().get_attribute(obj, attr, None)
        return getattr(obj.task, attr, default) if own is None else own


class EndpointReason(Outgoing):
    """An endpoint, and what became of an event there, or why nothing did."""

    endpoint_id = PrefixedId("ep", attribute="endpoint.id")
    url = Text(attribute="endpoint.url")
    status = one_of(ENDPOINT_STATUSES, attribute="endpoint.status")
    why = Text(metadata={"examples": ["paused; its tasks wait until it is resumed"]})
    tasks = fields.List(fields.Nested(TaskReason()))


class EventReasons(Outgoing):
    """GET /events/{id}/why."""

    event_id = PrefixedId("evt")
    type = Text()
    endpoints = fields.List(fields.Nested(EndpointReason()))


# ----------------------------------------------------------------------------------- bulk retries


class ShownFilter(Outgoing):
    """What a bulk retry was narrowed to."""

    status = Text()
    endpoint_id = PrefixedId("ep")
    event_id = PrefixedId("evt")
    type = Text()
    code_class = Text()
    failure = Text()
    since = Text(data_key="from")
    until = Text(data_key="to")
    failed_since = Text(metadata={"description": "Their latest try began then or later."})

    where_it_applies = (
        "endpoint_id", "event_id", "type", "code_class", "failure", "from", "to", "failed_since",
    )  # fmt: skip


class BulkRetryStarted(Outgoing):
    """POST /tasks/retry."""

    status = Text(dump_default="started")
    bulk_retry_id = PrefixedId("blk", attribute="id")

    def get_attribute(self, obj: Any, attr: str, default: Any) -> Any:
        """That it has started is all there is to say."""
        return default if attr == "status" else super().get_attribute(obj, attr, default)


class BulkRetryCount(Outgoing):
    """POST /tasks/retry?dry_run=1."""

    tasks = fields.Integer(metadata={"description": "So many would be retried."})
    capped = fields.Boolean(
        metadata={"description": "Counting was given up: it is so many or more."}
    )


class BulkRetryItem(Outgoing):
    """A bulk retry and how far it has come."""

    bulk_retry_id = PrefixedId("blk", attribute="id")
    status = one_of(WALK_STATUSES)
    filter = fields.Nested(ShownFilter(), attribute="wanted")
    progress = fields.Float(
        metadata={"description": "In percent of the time of its tasks.", "examples": [50.0]}
    )
    looked_at = fields.Integer(metadata={"description": "Tasks so far, wanted or not."})
    tasks = fields.Integer(metadata={"description": "Retried so far."})
    created_at = Time()
    finished_at = Time(allow_none=True)


class BulkRetryPage(Outgoing):
    """A page of a tenant's bulk retries."""

    items = fields.List(fields.Nested(BulkRetryItem()))
    next_cursor = next_cursor()
