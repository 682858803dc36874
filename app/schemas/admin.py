"""The admin contract (admin-api.md), field by field."""

from __future__ import annotations

from marshmallow import fields

from app.models import ENDPOINT_STATUSES, TASK_STATUSES
from app.schemas.base import Body, Outgoing, PageQuery, Query
from app.schemas.fields import (
    Id,
    Limit,
    Patterns,
    Secret,
    Text,
    TextId,
    TextOrEmpty,
    Time,
    TimeOrEmpty,
    Url,
    one_of,
)


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


class AdminTaskQuery(PageQuery):
    """admin-api.md, Webhook任务列表, and what narrows it further."""

    tenant_id = TextId(required=True)
    status = one_of(TASK_STATUSES)
    endpoint_id = TextId()
    limit = Limit(load_default=100)


class AdminEndpointCreated(Outgoing):
    """admin-api.md, 创建Webhook端点."""

    id = Id(attribute="endpoint.id")
    url = Text(attribute="endpoint.url")
    secret = Text(metadata={"description": "Only if it was made up now; it is not shown again."})

    where_it_applies = ("secret",)


class AdminEndpoint(Outgoing):
    """admin-api.md, 列出Webhook端点."""

    id = Id()
    url = Text()
    status = one_of(ENDPOINT_STATUSES, metadata={"example": "active"})
    created_at = Time()


class AdminTask(Outgoing):
    """admin-api.md, Webhook任务列表."""

    id = Id()
    url = TextOrEmpty()
    event = TextOrEmpty(attribute="type", metadata={"description": "Empty once it has expired."})
    status = one_of(TASK_STATUSES)
    retries = fields.Integer()
    next_try_at = TimeOrEmpty()
    created_at = Time()


class JustId(Outgoing):
    """admin-api.md: the id of what was deleted or retried."""

    id = Id()
