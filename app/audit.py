"""The log of people's actions: who did what to which thing, when, for which tenant, from where.

A line is written in the transaction of the action itself, so there is one if and only if it was
done. It names things and holds nothing of what they contain.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from peewee import SQL

from app.auth import Principal
from app.models import AuditLine, Endpoint, Event, Replay, Task, id_at
from app.pages import Page, sparse_page
from app.schemas.fields import parse_id

MOST_CHARACTERS = 255

# How the things of an operation are written, by the last word of its name.
_PREFIXES = {"endpoint": "ep", "task": "task", "event": "evt", "replay": "rpl", "bulk_retry": "blk"}
# Where the tenant of a thing is found, if the request does not name it.
_OWNED: Mapping[str, Any] = {"ep": Endpoint, "task": Task, "evt": Event, "rpl": Replay}


class Action(NamedTuple):
    """Something that a person does, as the request and its answer say."""

    principal: Principal
    name: str  # of the operation, such as delete_endpoint
    path: Mapping[str, Any]  # the parameters in the path
    wanted: Mapping[str, Any]  # the body or the query
    answer: Mapping[str, Any]  # without the admin surface's envelope
    address: str | None
    request_id: str
    status_code: int


def note(action: Action) -> None:
    """Write an action down, in the transaction that is open."""
    thing = _thing(action)
    line = AuditLine.insert(
        id=SQL("hookjetty.new_id()"),
        tenant_id=_tenant(action, thing),
        actor=action.principal.subject[:MOST_CHARACTERS],
        role=_role(action.principal),
        action=action.name,
        object=thing,
        address=action.address,
        request_id=action.request_id,
        status_code=action.status_code,
    )
    # An id that was taken (schema.sql, "ids") is tried again with another.
    while not line.on_conflict_ignore().as_rowcount().execute():
        pass


def page_of_actions(
    *,
    limit: int,
    cursor: str | None = None,
    tenant_id: int | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page:
    """People's actions, the newest first; ``until`` is excluded.

    An index answers for one tenant's, or else one person's; what narrows that further is looked
    for in a bounded number of lines at a time.
    """
    query = AuditLine.select().order_by(AuditLine.id.desc())
    narrowed = []
    if since is not None:
        query = query.where(AuditLine.id >= id_at(since))
    if until is not None:
        query = query.where(AuditLine.id < id_at(until))
    if tenant_id is not None:
        query = query.where(AuditLine.tenant_id == tenant_id)
    if actor is not None:
        by_actor = AuditLine.actor == actor
        if tenant_id is None:
            query = query.where(by_actor)
        else:
            narrowed.append(by_actor)
    if action is not None:
        narrowed.append(AuditLine.action == action)
    of = ("audit", tenant_id, actor, action, since, until)
    return sparse_page(query, AuditLine.id, narrowed, limit=limit, cursor=cursor, of=of)


def _role(principal: Principal) -> str:
    if principal.is_admin:
        return "admin"
    return "service" if principal.is_service else "tenant"


def _thing(action: Action) -> str | None:
    """What was acted on: what the path names, or what was made, or what the body names."""
    if _is_on_the_catalogue(action):
        return str(action.answer["name"])
    prefix = _PREFIXES.get(action.name.rpartition("_")[2])
    if action.path:
        return str(next(iter(action.path.values())))[:MOST_CHARACTERS]
    for named in (action.answer, action.wanted):
        for field, value in named.items():
            if not isinstance(value, (int, str)):
                continue
            if field == "id":
                return f"{prefix}_{value}" if prefix else str(value)
            noun = field.removesuffix("_id")
            if noun in _PREFIXES and noun != field:
                return value if isinstance(value, str) else f"{_PREFIXES[noun]}_{value}"
    return None


def _is_on_the_catalogue(action: Action) -> bool:
    """Whether it acts on an event type: of nobody's, and named rather than numbered."""
    return action.name.endswith("_event_type")


def _tenant(action: Action, thing: str | None) -> int | None:
    """Whose things they are: the caller's, or those of the tenant that an admin acts on."""
    if action.principal.tenant_id is not None:
        return action.principal.tenant_id
    for named in (action.wanted, action.answer):
        if isinstance(tenant_id := named.get("tenant_id"), int):
            return tenant_id
    if _is_on_the_catalogue(action):
        return None
    prefix, _, number = (thing or "").partition("_")
    if prefix not in _OWNED or not number.isdigit():
        return None
    model = _OWNED[prefix]
    found: int | None = (
        model.select(model.tenant_id).where(model.id == parse_id(prefix, thing or "")).scalar()
    )
    return found
