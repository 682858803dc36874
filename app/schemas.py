"""Both contracts field by field, as marshmallow schemas: what may come in, and what goes out.

Types are strict (``"7"`` is no integer and ``true`` is none either), and a field that is not in a
schema is refused rather than ignored: a mistyped one would silently do something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_dump, post_load, validate

from app import errors, strictjson
from app.models import ENDPOINT_STATUSES, LARGEST_ID, TASK_STATUSES, rfc3339
from app.publish import MAX_BATCH, MAX_DATA_BYTES, MAX_KEY_CHARACTERS, NewEvent
from hookjetty.verify import secret_bytes

MAX_URL_CHARACTERS = 2048
MAX_PATTERNS = 100
MAX_LIMIT = 200
MAX_TYPE_CHARACTERS = 128

_INTEGER = f"must be an integer from 1 to {LARGEST_ID}"
_SEGMENTS = r"[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*"
_is_segments = re.compile(_SEGMENTS).fullmatch


def parse_id(prefix: str, text: str, field: str | None = None) -> int:
    """The number in a tenant-facing id, or ``invalid_request``.

    >>> parse_id("ep", "ep_7")
    7
    """
    number = text.removeprefix(f"{prefix}_")
    if number == text or not re.fullmatch(r"[1-9][0-9]{0,15}", number) or int(number) > LARGEST_ID:
        raise errors.invalid(field or "path", _id_reason(prefix))
    return int(number)


def _id_reason(prefix: str) -> str:
    return f"must be an id such as {prefix}_7"


# --------------------------------------------------------------------------------------- fields

# Reasons follow the field's name and a colon.
_WORDING: dict[str, Any] = {"required": "is missing", "null": "must not be null"}


class Text(fields.String):
    """A string."""

    default_error_messages = _WORDING | {"invalid": "must be a string"}


class TextOrEmpty(Text):
    """A string where the admin contract has no null: none is the empty one."""

    def _serialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        return value or ""


class Id(fields.Integer):
    """An id as admins and services see it: an integer that every JSON reader keeps exact."""

    default_error_messages = _WORDING

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if type(value) is not int or not 1 <= value <= LARGEST_ID:
            raise ValidationError(_INTEGER)
        return value


class TextId(Id):
    """The same in a query string."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,15}", value):
            raise ValidationError(_INTEGER)
        return super()._deserialize(int(value), *args, **kwargs)


class Limit(fields.Integer):
    """How many items a page has at most, in a query string."""

    default_error_messages = _WORDING

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,2}", value) or int(value) > MAX_LIMIT:
            raise ValidationError(f"must be an integer from 1 to {MAX_LIMIT}")
        return int(value)


class PrefixedId(Text):
    """An id as tenants see it: ``ep_7`` and the like."""

    def __init__(self, prefix: str, **kwargs: Any) -> None:
        metadata = {"example": f"{prefix}_7"} | kwargs.pop("metadata", {})
        super().__init__(metadata=metadata, **kwargs)
        self.prefix = prefix

    def _serialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str | None:
        return None if value is None else f"{self.prefix}_{value}"

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        try:
            return parse_id(self.prefix, text)
        except errors.Error:
            raise ValidationError(_id_reason(self.prefix)) from None


class Time(fields.DateTime):
    """RFC 3339 in UTC with milliseconds."""

    def _serialize(self, value: datetime | None, *_args: Any, **_kwargs: Any) -> str | None:
        return rfc3339(value)


class TimeOrEmpty(Time):
    """The same where the admin contract has no null: none is the empty string."""

    def _serialize(self, value: datetime | None, *_args: Any, **_kwargs: Any) -> str:
        return rfc3339(value) or ""


class Url(Text):
    """A URL as text; whether it may be called is the policy's to say."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if not 1 <= len(text) <= MAX_URL_CHARACTERS:
            raise ValidationError(f"must have 1 to {MAX_URL_CHARACTERS} characters")
        return text


class Secret(Text):
    """What signs an endpoint's deliveries (Standard Webhooks 1.0, and plain text besides)."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if text and not text.strip("*"):
            raise ValidationError(
                "is a mask and not a secret; leave it out to keep the present one, or to get a new"
                " one with a new endpoint"
            )
        try:
            secret_bytes(text)
        except ValueError as reason:
            raise ValidationError(str(reason)) from None
        return text


class Patterns(fields.List[str]):
    """Event types that are wanted: exact, everything below a prefix (``export.*``), or ``*``."""

    default_error_messages = _WORDING | {"invalid": "must be a list of event types"}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Text(), **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        patterns: list[Any] = super()._deserialize(value, *args, **kwargs)
        if not 1 <= len(patterns) <= MAX_PATTERNS:
            raise ValidationError(f"must have 1 to {MAX_PATTERNS} event types")
        for pattern in patterns:
            if not _is_pattern(pattern):
                raise ValidationError(
                    f"{pattern[:MAX_TYPE_CHARACTERS]!r} is neither an event type such as"
                    f" export.done, nor export.*, nor *; at most {MAX_TYPE_CHARACTERS} characters"
                )
        return list(dict.fromkeys(patterns))


def _is_pattern(text: str) -> bool:
    """Whether it can match a type.

    >>> [_is_pattern(each) for each in ("*", "export.*", "export.done", "ex*", "*.done", "a..b")]
    [True, True, True, False, False, False]
    """
    return text == "*" or (
        len(text) <= MAX_TYPE_CHARACTERS
        and re.fullmatch(_SEGMENTS, text.removesuffix(".*")) is not None
    )


class EventType(Text):
    """The type of an event."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if len(text) > MAX_TYPE_CHARACTERS or not re.fullmatch(_SEGMENTS, text):
            raise ValidationError(
                "must be segments of letters, digits and _ joined by dots, such as export.done, of"
                f" at most {MAX_TYPE_CHARACTERS} characters"
            )
        if text.startswith("hookjetty."):
            raise ValidationError("the prefix hookjetty. is reserved for operational events")
        return text


def is_event_type(text: str) -> bool:
    """Whether ``EventType`` accepts it.

    >>> [is_event_type(each) for each in ("export.done", "x", "a..b", "hookjetty.x", "")]
    [True, True, False, False, False]
    """
    return (
        len(text) <= MAX_TYPE_CHARACTERS
        and _is_segments(text) is not None
        and not text.startswith("hookjetty.")
    )


class JsonText(str):
    """The source text of a JSON object."""

    __slots__ = ()


class JsonObject(fields.Field[str]):
    """A JSON object, of which the very text is kept."""

    default_error_messages = _WORDING

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        if not isinstance(value, JsonText):
            raise ValidationError("must be a JSON object")
        if len(value) > MAX_DATA_BYTES or len(value.encode()) > MAX_DATA_BYTES:
            raise ValidationError(f"is longer than 256 KiB ({MAX_DATA_BYTES} bytes)")
        return value


# ------------------------------------------------------------------------------------- incoming


class Incoming(Schema):
    """Something a client sends."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error_messages["type"] = "must be a JSON object"
        known = ", ".join(self.load_fields)
        self.error_messages["unknown"] = f"is not a field of this; there are {known}"


class Body(Incoming):
    """The JSON object in the body of a write."""

    def read(self, raw: bytes) -> Any:
        """The body as values to load; ``invalid_request`` says what is wrong with it."""
        return strictjson.loads(raw)


class Query(Incoming):
    """The query string."""


class AdminRegistration(Body):
    """admin-api.md, 创建Webhook端点."""

    tenant_id = Id(required=True, metadata={"description": "Whose endpoint it becomes."})
    url = Url(required=True, metadata={"description": "Where deliveries are sent."})
    secret = Secret(metadata={"description": "Signs its deliveries; made up when absent."})
    events = Patterns(metadata={"description": "Wanted event types; all of them when absent."})


class ById(Body):
    """admin-api.md: an endpoint or a task that is named by its id."""

    id = Id(required=True)


class OfTenant(Query):
    """admin-api.md, 列出Webhook端点."""

    tenant_id = TextId(required=True)


class PageQuery(Query):
    """Which page of a list."""

    limit = Limit(load_default=50, metadata={"maximum": MAX_LIMIT})
    cursor = Text(metadata={"description": "The `next_cursor` of the page before."})


def _status_of(statuses: tuple[str, ...]) -> Text:
    reason = f"must be one of {', '.join(statuses)}"
    return Text(validate=validate.OneOf(statuses, error=reason))


class AdminTaskQuery(PageQuery):
    """admin-api.md, Webhook任务列表, and what narrows it further."""

    tenant_id = TextId(required=True)
    status = _status_of(TASK_STATUSES)
    endpoint_id = TextId()
    limit = Limit(load_default=100, metadata={"maximum": MAX_LIMIT})


class TaskQuery(PageQuery):
    """A tenant's tasks, narrowed."""

    status = _status_of(TASK_STATUSES)
    endpoint_id = PrefixedId("ep")


class Registration(Body):
    """tenant-api.md, Register Endpoint. What is absent stays as it is."""

    url = Url(metadata={"description": "Required for a new endpoint."})
    events = Patterns(metadata={"description": "Wanted event types; all of them when absent."})
    secret = Secret(metadata={"description": "Signs its deliveries; made up when absent."})
    endpoint_id = PrefixedId("ep", metadata={"description": "Selects one, to change its URL."})


class ReplayRequest(Body):
    """tenant-api.md, Replay."""

    endpoint_id = PrefixedId("ep", required=True)
    watermark = Text(
        required=True,
        data_key="from",
        metadata={"description": "RFC 3339 time, `evt_…`, or `failing_since`."},
    )


class EventToPublish(Body):
    """POST /events."""

    type = EventType(required=True)
    data = JsonObject(required=True, metadata={"type": "object", "maxLength": MAX_DATA_BYTES})
    key = Text(
        validate=validate.Length(
            1, MAX_KEY_CHARACTERS, error=f"must have 1 to {MAX_KEY_CHARACTERS} characters"
        ),
        metadata={"description": "Publishing the same key again answers with the first event."},
    )
    tenant_id = Id(metadata={"description": "For whom; only a service's token may choose."})

    def read(self, raw: bytes) -> Any:
        """Its members, with the text of ``data`` for its value."""
        return _with_text(strictjson.event_fields(raw))

    @post_load
    def _event(self, loaded: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        event = NewEvent(loaded["type"], loaded["data"], loaded.get("key"))
        return {"tenant_id": loaded.get("tenant_id"), "events": [event]}


class EventOfBatch(EventToPublish):
    """One of the events in a batch, which has one tenant for all of them."""

    class Meta(EventToPublish.Meta):
        exclude = ("tenant_id",)


class Events(fields.List[dict[str, Any]]):
    """The events of a batch."""

    default_error_messages = _WORDING | {"invalid": "must be a list of events"}


class Batch(Body):
    """POST /events/batch."""

    events = Events(
        fields.Nested(EventOfBatch()),
        required=True,
        validate=validate.Length(1, MAX_BATCH, error=f"must have 1 to {MAX_BATCH} events"),
    )
    tenant_id = Id(metadata={"description": "For whom; only a service's token may choose."})

    def read(self, raw: bytes) -> Any:
        """Its members, each event as in ``EventToPublish``."""
        try:
            others, events = strictjson.batch_fields(raw, MAX_BATCH)
        except errors.Error as error:
            raise _by_index(error) from None
        return others | {"events": [_with_text(event) for event in events]}

    @post_load
    def _batch(self, loaded: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        events = [event for each in loaded["events"] for event in each["events"]]
        return {"tenant_id": loaded.get("tenant_id"), "events": events}


def _with_text(event: strictjson.Event) -> dict[str, Any]:
    data = event.values.get("data")
    if event.data_text is None or not isinstance(data, dict):
        return event.values
    return event.values | {"data": JsonText(event.data_text)}


def _by_index(error: errors.Error) -> errors.Error:
    """``events[3].data.size`` is ``events.3.data.size``, as in every other error of a batch."""
    ((path, reason),) = error.details.items()
    return errors.invalid(re.sub(r"^events\[(\d+)\]", r"events.\1", path), reason)


# ------------------------------------------------------------------------------------- outgoing


class Outgoing(Schema):
    """Something a client gets. Fields in ``where_it_applies`` are left out when they are None."""

    where_it_applies: tuple[str, ...] = ()

    @post_dump
    def _leave_out(self, dumped: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        for name in self.where_it_applies:
            if dumped.get(name) is None:
                dumped.pop(name, None)
        return dumped


def enveloped(name: str, data: fields.Field[Any], **beside: fields.Field[Any]) -> Schema:
    """The admin surface's envelope around ``data``; ``name`` is for the documentation."""
    envelope: dict[str, fields.Field[Any]] = {
        "code": fields.Integer(dump_default=0, metadata={"description": "0 is success."}),
        "msg": Text(dump_default="ok"),
        "data": data,
    }
    return Schema.from_dict(envelope | beside, name=name)()


class AdminEndpointCreated(Outgoing):
    """admin-api.md, 创建Webhook端点."""

    id = fields.Integer(attribute="endpoint.id")
    url = Text(attribute="endpoint.url")
    secret = Text(metadata={"description": "Only if it was made up now; it is not shown again."})

    where_it_applies = ("secret",)


class AdminEndpoint(Outgoing):
    """admin-api.md, 列出Webhook端点."""

    id = fields.Integer()
    url = Text()
    status = _status_of(ENDPOINT_STATUSES)
    created_at = Time()


class AdminTask(Outgoing):
    """admin-api.md, Webhook任务列表."""

    id = fields.Integer()
    url = TextOrEmpty()
    event = TextOrEmpty(attribute="type", metadata={"description": "Empty once it has expired."})
    status = _status_of(TASK_STATUSES)
    retries = fields.Integer()
    next_try_at = TimeOrEmpty()
    created_at = Time()


class JustId(Outgoing):
    """admin-api.md: the id of what was deleted or retried."""

    id = fields.Integer()


class Verification(Outgoing):
    """How a pending endpoint's handshake stands."""

    failure = Text(metadata={"description": "Why the last challenge failed; null: none did."})
    next_try_at = Time()


class EndpointState(Outgoing):
    """tenant-api.md, Register Endpoint: what every answer about an endpoint begins with."""

    endpoint_id = PrefixedId("ep", attribute="id")
    status = _status_of(ENDPOINT_STATUSES)
    verification = fields.Nested(Verification())

    where_it_applies: tuple[str, ...] = ("verification",)


class EndpointRegistered(Outgoing):
    """tenant-api.md, Register Endpoint."""

    endpoint_id = PrefixedId("ep", attribute="endpoint.id")
    status = Text(attribute="endpoint.status", validate=validate.OneOf(ENDPOINT_STATUSES))
    verification = fields.Nested(Verification(), attribute="endpoint.verification")
    secret = Text(metadata={"description": "Only if it was made up now; it is not shown again."})

    where_it_applies = ("secret", "verification")


class EndpointItem(EndpointState):
    """tenant-api.md, List Endpoints."""

    url = Text()
    events = fields.List(Text())
    created_at = Time()
    reason = Text(metadata={"description": "Why it was disabled."})
    failing_since = Time()

    where_it_applies = ("verification", "reason", "failing_since")


class EndpointPage(Outgoing):
    """A page of a tenant's endpoints."""

    items = fields.List(fields.Nested(EndpointItem()))
    next_cursor = Text()


class EventPublished(Outgoing):
    """POST /events."""

    event_id = PrefixedId("evt")
    tasks = fields.Integer(metadata={"description": "For how many endpoints it became a task."})


class BatchPublished(Outgoing):
    """POST /events/batch, in the order of the request."""

    items = fields.List(fields.Nested(EventPublished()))


class TaskItem(Outgoing):
    """One event to be delivered to one endpoint."""

    task_id = PrefixedId("task", attribute="id")
    endpoint_id = PrefixedId("ep")
    event_id = PrefixedId("evt")
    type = Text()
    url = Text()
    status = _status_of(TASK_STATUSES)
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


class EventItem(Outgoing):
    """GET /events/{id}; ``data`` is added as the very text that came in."""

    event_id = PrefixedId("evt", attribute="id")
    type = Text()
    created_at = Time()


class EventWithTasks(EventItem):
    """GET /events/{id}."""

    tasks = fields.List(fields.Nested(TaskItem()))


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
    status = Text()
    events = fields.Integer(metadata={"description": "Looked at so far."})
    tasks = fields.Integer(metadata={"description": "Made so far."})
    created_at = Time()
    finished_at = Time()


def flat(messages: Mapping[Any, Any] | list[Any], path: str = "") -> dict[str, str]:
    """marshmallow's tree of reasons as one reason per field.

    >>> flat({"url": ["is missing"], "events": {3: {"type": ["must be a string"]}}})
    {'url': 'is missing', 'events.3.type': 'must be a string'}
    """
    if isinstance(messages, list):
        return {path or "body": "; ".join(map(str, messages))}
    found: dict[str, str] = {}
    for name, below in messages.items():
        inner = path if name == "_schema" else f"{path}.{name}" if path else str(name)
        found |= flat(below, inner)
    return found
