"""The short way to publish: nearly every event and batch, without a framework in between.

A WSGI application in front of the whole API. It answers what is published as it nearly always is:
with a good token, good JSON and no idempotency key. Everything else, and every refusal, it leaves
to the views, so that their rules and wording stay in one place:

* Before anything was done, by passing the request on as it came.
* Afterwards, as when a limit is reached or the database is away, by passing on what was raised as
  well (``RAISED``), for the views' error handler to answer.

Whoever changes what those views accept or answer has to look here too; tests/test_ingest.py
compares the two.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from app import errors, strictjson
from app.auth import PUBLISH, Principal, Tokens
from app.db import dependable, retrying
from app.models import LARGEST_ID
from app.publish import (
    MAX_BATCH,
    MAX_DATA_BYTES,
    MAX_KEY_CHARACTERS,
    Published,
    publish_batch_of,
    publish_within_limit,
)
from app.ratelimit import Limits
from app.schemas.events import Batch, EventToPublish
from app.schemas.fields import is_event_type

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# The key in a request's environ under which what was raised here is passed on.
RAISED = "hookjetty.raised"

# As long as an event's data may be, so that no data in it is too long.
MAX_BODY_BYTES = MAX_DATA_BYTES

# What makes a request idempotent; by its key in an environ.
_UNUSUAL = frozenset({"HTTP_X_REQUEST_ID", "HTTP_IDEMPOTENCY_KEY"})
_JSON = frozenset({"application/json", "application/json; charset=utf-8"})
_length = re.compile(r"[1-9][0-9]{0,5}", re.ASCII).fullmatch
_OF_EVENT = frozenset({"type", "data", "key"})


class Ingest:
    """Wraps ``app``, which publishes events at ``path`` and batches at ``path`` + ``/batch``.

    Until ``may_use_database`` all is left to the app.
    """

    def __init__(
        self,
        app: WSGIApplication,
        path: str,
        tokens: Tokens,
        limits: Limits,
        may_use_database: Callable[[], bool],
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._limits = limits
        self._may_use_database = may_use_database
        self._publishers = {path: self._event, f"{path}/batch": self._batch}

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        publisher = self._publishers.get(environ["PATH_INFO"])
        if publisher is not None and environ["REQUEST_METHOD"] == "POST":
            try:
                answer = self._published(environ, publisher)
            except Exception as error:  # noqa: BLE001 - the views' error handler knows them all
                environ[RAISED] = error
            else:
                if answer is not None:
                    return _send(*answer, start)
        return self._app(environ, start)

    def _published(
        self, environ: WSGIEnvironment, publisher: Callable[[Principal, bytes], Any]
    ) -> tuple[str, bytes] | None:
        """The answer to what is asked for, or None, and nothing done: that is for the view."""
        principal = self._principal(environ)
        raw = _body(environ) if principal else None
        if principal is None or raw is None or not self._may_use_database():
            return None
        answer: tuple[str, bytes] | None = publisher(principal, raw)
        return answer

    def _principal(self, environ: WSGIEnvironment) -> Principal | None:
        """Who publishes, if the token is good and allows it."""
        authorization = environ.get("HTTP_AUTHORIZATION", "")
        if not authorization.startswith("Bearer ") or not _UNUSUAL.isdisjoint(environ):
            return None
        try:
            principal = self._tokens.verify(authorization[7:])
        except errors.Error:
            return None
        if principal.may(PUBLISH) and (principal.tenant_id or principal.is_service):
            return principal
        return None

    def _event(self, principal: Principal, raw: bytes) -> tuple[str, bytes] | None:
        event = event_of(raw)
        tenant_id = _publishing_for(principal, event)
        if event is None or tenant_id is None:
            return None
        try:
            with dependable():
                published = publish_within_limit(
                    tenant_id, event["type"], raw.decode(), event.get("key")
                )
        except errors.Error as error:
            if error.code == "invalid_request":
                EventToPublish().read(raw)  # raises the same, with the place in the data
            raise
        return "202 ACCEPTED" if published.is_new else "200 OK", b"%b\n" % _item(published)

    def _batch(self, principal: Principal, raw: bytes) -> tuple[str, bytes] | None:
        batch = batch_of(raw)
        tenant_id = _publishing_for(principal, batch)
        if batch is None or tenant_id is None:
            return None
        try:
            with dependable():
                # As the views do: one that is refused for its length has cost the tenant one.
                cost = len(batch["events"])
                if principal.tenant_id:
                    self._limits.publish(tenant_id)
                    cost -= 1
                if cost:
                    self._limits.publish(tenant_id, cost)
                published = retrying(lambda: publish_batch_of(tenant_id, raw.decode()))
        except errors.Error as error:
            if error.code == "invalid_request":
                Batch().read(raw)
            raise
        return "202 ACCEPTED", b'{"items":[%b]}\n' % b",".join(map(_item, published))


def event_of(raw: bytes) -> dict[str, Any] | None:
    """The members of the event in a body, unless the view of ``POST /events`` would refuse it.

    It may have an object in its data that names a key twice; publishing refuses that.
    """
    event = strictjson.plain_object(raw)
    if event is None or not _has_each_once(raw, event):
        try:
            event = strictjson.event_fields(raw).values
        except errors.Error:
            return None
    return event if _is_event(event, _OF_EVENT | {"tenant_id"}) and _has_tenant(event) else None


def batch_of(raw: bytes) -> dict[str, Any] | None:
    """The same of a batch; publishing also refuses an event that names a member twice."""
    batch = strictjson.plain_object(raw)
    if batch is None or not _has_each_once(raw, batch):
        try:
            others, read = strictjson.batch_fields(raw, MAX_BATCH)
        except errors.Error:
            return None
        batch = others | {"events": [event.values for event in read]}
    events = batch.get("events")
    if (
        batch.keys() <= {"events", "tenant_id"}
        and type(events) is list
        and 1 <= len(events) <= MAX_BATCH
        and all(map(_is_event, events))
        and _has_tenant(batch)
    ):
        return batch
    return None


def _has_each_once(raw: bytes, members: Iterable[str]) -> bool:
    """Whether no member of a body can be there twice. If so, orjson would take the last."""
    return all(raw.count(b'"%b"' % name.encode()) == 1 for name in members)


def _is_event(event: Any, members: frozenset[str] = _OF_EVENT) -> bool:
    if type(event) is not dict or not event.keys() <= members:
        return False
    type_, key = event.get("type"), event.get("key", "-")
    return (
        type(type_) is str
        and is_event_type(type_)
        and type(event.get("data")) is dict
        and type(key) is str
        and 1 <= len(key) <= MAX_KEY_CHARACTERS
    )


def _has_tenant(body: dict[str, Any]) -> bool:
    tenant_id = body.get("tenant_id", 1)
    return type(tenant_id) is int and 1 <= tenant_id <= LARGEST_ID


def _publishing_for(principal: Principal, body: dict[str, Any] | None) -> int | None:
    """The tenant for whom is published; None if that is not said or not allowed."""
    if body is None:
        return None
    tenant_id: int | None = body.get("tenant_id", principal.tenant_id)
    return tenant_id if principal.tenant_id in (None, tenant_id) else None


def _body(environ: WSGIEnvironment) -> bytes | None:
    """The whole body, if it is JSON of a known and moderate length. The view can read it again."""
    length = environ.get("CONTENT_LENGTH", "")
    if (
        environ.get("CONTENT_TYPE") not in _JSON
        or not _length(length)
        or int(length) > MAX_BODY_BYTES
        or environ.get("QUERY_STRING")
        or "HTTP_CONTENT_ENCODING" in environ
        or "HTTP_TRANSFER_ENCODING" in environ
    ):
        return None
    try:
        raw: bytes = environ["wsgi.input"].read(int(length))
    except Exception:  # noqa: BLE001 - each server has its own, and the view meets it again
        return None
    environ["wsgi.input"] = io.BytesIO(raw)
    return raw if len(raw) == int(length) else None


def _item(published: Published) -> bytes:
    return b'{"event_id":"evt_%d","tasks":%d}' % (published.event_id, published.tasks)


def _send(status: str, body: bytes, start: StartResponse) -> Sequence[bytes]:
    start(
        status,
        [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Request-Id", os.urandom(16).hex()),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ],
    )
    return (body,)
