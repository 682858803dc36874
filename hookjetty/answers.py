"""What the API answers, as types. Made from docs/openapi.json by `make openapi`: do not edit."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Actions(TypedDict):
    code: int
    msg: str
    data: list[AuditItem]
    next_cursor: str | None


class AdminEndpoint(TypedDict):
    id: int
    url: str
    status: str
    created_at: str


class AdminEndpointCreated(TypedDict):
    id: int
    url: str
    secret: NotRequired[str]


class AdminTask(TypedDict):
    id: int
    url: str
    event: str
    status: str
    retries: int
    next_try_at: str
    created_at: str


AttemptItem = TypedDict(
    "AttemptItem",
    {
        "attempt_id": "str",
        "try": "int",
        "started_at": "str | None",
        "status_code": "int | None",
        "failure": "str | None",
        "timings_ms": "TimingsMs",
        "address": "str | None",
        "request_headers": "dict[str, str] | None",
        "response_headers": "str | None",
        "response_body": "str | None",
        "truncated": "bool",
        "resent": "bool",
    },
)


class AuditItem(TypedDict):
    id: int
    created_at: str
    tenant_id: int | None
    actor: str
    role: str
    action: str
    object: str | None
    address: str | None
    request_id: str
    status_code: int


class BatchPublished(TypedDict):
    items: list[EventPublished]


class BulkRetryCount(TypedDict):
    tasks: int
    capped: bool


class BulkRetryItem(TypedDict):
    bulk_retry_id: str
    status: str
    filter: ShownFilter
    progress: float
    looked_at: int
    tasks: int
    created_at: str
    finished_at: str | None


class BulkRetryPage(TypedDict):
    items: list[BulkRetryItem]
    next_cursor: str | None


class BulkRetryStarted(TypedDict):
    status: str
    bulk_retry_id: str


class DryRun(TypedDict):
    items: list[WouldReceive]


class DryRuns(TypedDict):
    items: list[DryRun]


class EndpointCreated(TypedDict):
    code: int
    msg: str
    data: AdminEndpointCreated


class EndpointDeleted(TypedDict):
    code: int
    msg: str
    data: JustId


class EndpointDetail(TypedDict):
    endpoint_id: str
    status: str
    verification: NotRequired[Verification]
    url: str
    events: list[str]
    description: NotRequired[str]
    created_at: str
    reason: NotRequired[str]
    failing_since: NotRequired[str]
    metadata: dict[str, str]
    version: int
    updated_at: str
    verified_at: str | None
    verifies_signatures: bool | None
    failures: int
    hold_until: str | None
    waiting: int


class EndpointItem(TypedDict):
    endpoint_id: str
    status: str
    verification: NotRequired[Verification]
    url: str
    events: list[str]
    description: NotRequired[str]
    created_at: str
    reason: NotRequired[str]
    failing_since: NotRequired[str]


class EndpointPage(TypedDict):
    items: list[EndpointItem]
    next_cursor: str | None


class EndpointReason(TypedDict):
    endpoint_id: str
    url: str
    status: str
    why: str
    tasks: list[TaskReason]


class EndpointRegistered(TypedDict):
    endpoint_id: str
    status: str
    verification: NotRequired[Verification]
    secret: NotRequired[str]


class EndpointState(TypedDict):
    endpoint_id: str
    status: str
    verification: NotRequired[Verification]


class EndpointSwitched(TypedDict):
    endpoint_id: str
    status: str
    verification: NotRequired[Verification]
    waiting: int


class EndpointVerified(TypedDict):
    endpoint_id: str
    status: str
    verification: NotRequired[Verification]
    verifies_signatures: bool | None


class Endpoints(TypedDict):
    code: int
    msg: str
    data: list[AdminEndpoint]


class ErasureItem(TypedDict):
    id: int
    tenant_id: int
    status: str
    created_at: str
    finished_at: str | None
    round: int
    deleted: dict[str, int]
    left: dict[str, int] | None


class ErasureStarted(TypedDict):
    code: int
    msg: str
    data: ErasureItem


class Erasures(TypedDict):
    code: int
    msg: str
    data: list[ErasureItem]
    next_cursor: str | None


class EventItem(TypedDict):
    event_id: str
    type: str
    created_at: str
    fanout: int
    key: NotRequired[str]
    test: NotRequired[bool]
    erased: NotRequired[bool]


class EventListed(TypedDict):
    event_id: str
    type: str
    created_at: str
    fanout: int
    key: NotRequired[str]
    test: NotRequired[bool]
    erased: NotRequired[bool]
    data: NotRequired[dict[str, Any] | None]


class EventPage(TypedDict):
    items: list[EventListed]
    next_cursor: str | None
    has_more: NotRequired[bool]


class EventPublished(TypedDict):
    event_id: str
    tasks: int


class EventReasons(TypedDict):
    event_id: str
    type: str
    endpoints: list[EndpointReason]


class EventTypeDeleted(TypedDict):
    code: int
    msg: str
    data: EventTypeName


class EventTypeDetail(TypedDict):
    name: str
    description: str
    created_at: str
    updated_at: str
    schema: dict[str, dict[str, Any]] | None
    example: dict[str, dict[str, Any]] | None


class EventTypeItem(TypedDict):
    name: str
    description: str
    created_at: str
    updated_at: str


class EventTypeName(TypedDict):
    name: str


class EventTypePage(TypedDict):
    items: list[EventTypeItem]
    next_cursor: str | None


class EventTypeRead(TypedDict):
    code: int
    msg: str
    data: EventTypeDetail


class EventTypeSaved(TypedDict):
    code: int
    msg: str
    data: EventTypeDetail


class EventTypes(TypedDict):
    code: int
    msg: str
    data: list[EventTypeItem]
    next_cursor: str | None


class EventWithTasks(TypedDict):
    event_id: str
    type: str
    created_at: str
    fanout: int
    key: NotRequired[str]
    test: NotRequired[bool]
    erased: NotRequired[bool]
    tasks: list[TaskItem]
    data: dict[str, Any] | None


class JustId(TypedDict):
    id: int


class OperatorEndpointCreated(TypedDict):
    code: int
    msg: str
    data: AdminEndpointCreated


class OperatorEndpoints(TypedDict):
    code: int
    msg: str
    data: list[AdminEndpoint]


class OperatorTasks(TypedDict):
    code: int
    msg: str
    data: list[AdminTask]
    next_cursor: str | None


class OwnLimits(TypedDict):
    requests_per_second: NotRequired[int]
    registrations_per_minute: NotRequired[int]
    replays_per_minute: NotRequired[int]
    events_per_second: NotRequired[int]
    endpoints: NotRequired[int]


class PortalToken(TypedDict):
    tenant_id: int
    token: str
    scope: str
    expires_at: str


class PortalTokenMade(TypedDict):
    code: int
    msg: str
    data: PortalToken


ReplayItem = TypedDict(
    "ReplayItem",
    {
        "replay_id": "str",
        "endpoint_id": "str",
        "status": "str",
        "from": "str",
        "to": "str",
        "event_types": "NotRequired[list[str]]",
        "only": "NotRequired[str]",
        "progress": "float",
        "events": "int",
        "tasks": "int",
        "created_at": "str",
        "finished_at": "str | None",
    },
)


class ReplayPage(TypedDict):
    items: list[ReplayItem]
    next_cursor: str | None


class ReplayStarted(TypedDict):
    status: str
    replay_id: str
    message: NotRequired[str]


class RequestItem(TypedDict):
    method: str
    url: str
    headers: dict[str, str]
    body: str


class SecretRevealed(TypedDict):
    endpoint_id: str
    secret: str
    previous_until: str | None


class SecretRotated(TypedDict):
    endpoint_id: str
    status: str
    verification: NotRequired[Verification]
    secret: NotRequired[str]
    previous_until: str | None


ShownFilter = TypedDict(
    "ShownFilter",
    {
        "status": "str",
        "endpoint_id": "NotRequired[str]",
        "event_id": "NotRequired[str]",
        "type": "NotRequired[str]",
        "code_class": "NotRequired[str]",
        "failure": "NotRequired[str]",
        "from": "NotRequired[str]",
        "to": "NotRequired[str]",
        "failed_since": "NotRequired[str]",
    },
)


class TaskChanged(TypedDict):
    task_id: str
    endpoint_id: str
    event_id: str
    type: str | None
    url: str | None
    status: str
    failure: str | None
    tries: int
    next_try_at: str | None
    created_at: str
    replay_id: NotRequired[str]
    message: NotRequired[str]


class TaskItem(TypedDict):
    task_id: str
    endpoint_id: str
    event_id: str
    type: str | None
    url: str | None
    status: str
    failure: str | None
    tries: int
    next_try_at: str | None
    created_at: str
    replay_id: NotRequired[str]


class TaskPage(TypedDict):
    items: list[TaskItem]
    next_cursor: str | None


class TaskReason(TypedDict):
    task_id: str
    status: str
    why: str


class TaskRetried(TypedDict):
    code: int
    msg: str
    data: JustId


class TaskWithAttempts(TypedDict):
    task_id: str
    endpoint_id: str
    event_id: str
    type: str | None
    url: str | None
    status: str
    failure: str | None
    tries: int
    next_try_at: str | None
    created_at: str
    replay_id: NotRequired[str]
    why: str
    request: RequestItem | None
    attempts: list[AttemptItem]


class Tasks(TypedDict):
    code: int
    msg: str
    data: list[AdminTask]
    next_cursor: str | None


class Tenant(TypedDict):
    code: int
    msg: str
    data: TenantItem


class TenantItem(TypedDict):
    id: int
    created_at: str
    endpoints: int
    limits: TenantLimits
    own_limits: OwnLimits


class TenantLimited(TypedDict):
    code: int
    msg: str
    data: TenantItem


class TenantLimits(TypedDict):
    requests_per_second: int
    registrations_per_minute: int
    replays_per_minute: int
    events_per_second: int
    endpoints: int


class Tenants(TypedDict):
    code: int
    msg: str
    data: list[TenantItem]
    next_cursor: str | None


class TestSent(TypedDict):
    event_id: str
    task_id: str


class TimingsMs(TypedDict):
    resolve: float | None
    connect: float | None
    tls: float | None
    first_byte: float | None
    total: float | None


class Verification(TypedDict):
    failure: str | None
    next_try_at: str | None


class WouldReceive(TypedDict):
    endpoint_id: str
    url: NotRequired[str]
    status: str
    would_receive: bool
    why: str
