"""Hookjetty's HTTP API for Python programs: ``Client`` for tenants and producers, ``AdminClient``.

    from hookjetty.client import Client

    with Client("https://hooks.example.com", token) as client:
        client.register_endpoint("https://example.com/hook", events=["export.*"])
        client.publish("export.done", {"export": 41}, key="export-41")

Answers are the API's JSON objects as dictionaries (``hookjetty.answers`` has their types); every
failure is an ``ApiError``.

Every write but publishing gets an X-Request-Id of its own, unless you name one with ``request_id``,
and is done once however often it is sent. So what was refused for now, with ``Retry-After``, is
sent again by itself; a publish only where nothing can have been done, or a ``key`` or
``request_id`` makes it safe.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic, sleep
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import quote

import requests
from requests.auth import AuthBase

from hookjetty import answers
from hookjetty.publish import Published, event_text

DEFAULT_URL = "http://127.0.0.1:8080"
TENANT_PREFIX = "/api/v1/data-consumption/webhooks"
ADMIN_PREFIX = "/api/webhooks"
PAGE_ITEMS = 200  # the most that one request may ask for

CODE_OF_STATUS = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "version_conflict",
    429: "rate_limited",
    500: "internal_error",
    503: "dependency_down",
}


class ApiError(Exception):
    """A request that failed.

    ``status`` is the HTTP status; None when no answer came, and whether the request was carried
    out is then unknown. ``code`` is one of the API's eight error codes, ``unreachable`` without
    an answer, or ``unexpected`` for one that is not of the API. ``details`` maps fields to their
    reasons. ``retry_after`` is in seconds and set where waiting helps. ``request_id`` finds the
    request in the service's log.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        details: Mapping[str, str] | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.details = dict(details or {})
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        known = [self.code, self.request_id and f"request id {self.request_id}"]
        return f"{self.message} ({', '.join(filter(None, known))})"


class _Api:
    """Calls the API with a bearer token. Keeps its connection; for one thread at a time."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        timeout_seconds: float = 10,
        *,
        patience_seconds: float = 10,
    ) -> None:
        """By default, ``url`` and ``token`` are HOOKJETTY_URL and HOOKJETTY_TOKEN.

        ``timeout_seconds`` is for connecting and again for the answer. A call waits so long as
        ``Retry-After`` asks, ``patience_seconds`` in all, and then tries again. ``ValueError`` if
        there is no token.
        """
        self.url = (url or os.environ.get("HOOKJETTY_URL") or DEFAULT_URL).rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.patience_seconds = patience_seconds
        token = (token or os.environ.get("HOOKJETTY_TOKEN") or "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise ValueError("a token is needed: pass one, or set HOOKJETTY_TOKEN")
        self._session = requests.Session()
        self._session.auth = _Bearer(token)

    def __repr__(self) -> str:
        """Where it calls, and nothing of the token."""
        return f"{type(self).__name__}({self.url!r})"

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | str | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        if_match: str | None = None,
    ) -> Any:
        """A call and its answer, tried again while it is refused for now and may be.

        Members of ``body`` and ``query`` that are None are left out; the body may also be JSON
        text.
        """
        if request_id is None and method != "GET":
            request_id = uuid.uuid4().hex
        headers = {"X-Request-Id": request_id, "If-Match": if_match}
        return self._patiently(method, path, body, query, headers, may_repeat=True)

    def _patiently(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | str | None,
        query: Mapping[str, Any] | None,
        headers: Mapping[str, str | None],
        *,
        may_repeat: bool,
    ) -> Any:
        """A 429 did nothing; after a 503 only what ``may_repeat`` is sent again."""
        over = monotonic() + self.patience_seconds
        while True:
            try:
                return self._once(method, path, body, query, headers)
            except ApiError as error:
                if error.retry_after is None or monotonic() + error.retry_after > over:
                    raise
                if not (error.status == 429 or (error.status == 503 and may_repeat)):
                    raise
                wait = error.retry_after
            sleep(wait)

    def _once(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | str | None,
        query: Mapping[str, Any] | None,
        given: Mapping[str, str | None],
    ) -> dict[str, Any]:
        """One request and its answer."""
        headers = {name: value for name, value in given.items() if value is not None}
        if body is not None:
            headers["Content-Type"] = "application/json"
            if not isinstance(body, str):
                body = json.dumps({name: x for name, x in body.items() if x is not None})
        try:
            response = self._session.request(
                method,
                self.url + path,
                params=query,
                data=None if body is None else body.encode(),
                headers=headers,
                timeout=self.timeout_seconds,
                allow_redirects=False,  # a POST would become a GET
            )
        except requests.Timeout:
            raise ApiError(
                f"{self.url} did not answer within {self.timeout_seconds:g} s", code="unreachable"
            ) from None
        except requests.RequestException as error:
            raise ApiError(f"{self.url}: {_reason(error)}", code="unreachable") from error
        try:
            answer = response.json()
        except requests.JSONDecodeError:
            answer = None
        if not 200 <= response.status_code < 300 or not isinstance(answer, dict):
            raise _error_of(response, answer if isinstance(answer, dict) else {})
        return answer

    def _pages(self, path: str, items: str, **query: Any) -> Iterator[Any]:
        """All items of a list, asking for the next page when it is needed."""
        cursor = None
        while True:
            page = self._call("GET", path, query=query | {"limit": PAGE_ITEMS, "cursor": cursor})
            yield from page[items]
            cursor = page.get("next_cursor")
            if cursor is None:
                return


class TaskFilter(TypedDict, total=False):
    """What narrows tasks; all that is given has to be true of a task.

    ``code_class`` is such as ``"5xx"``; ``since`` and ``until`` are times in RFC 3339 between which
    it was made.
    """

    status: str
    endpoint_id: str
    event_id: str
    type: str
    code_class: str
    failure: str
    since: str
    until: str


class Client(_Api):
    """What a tenant may do, and what a producer may. Ids are those of the API, such as ``ep_7``.

    A ``request_id`` makes its request idempotent for 24 hours: sent again with the same content, it
    is answered as the first time. An ``if_match`` (the ``ETag`` of an answer, such as
    ``'"ep_7.3"'``: its id and ``version``) makes a change only if nobody else's came in between.
    """

    # -------------------------------------------------------------------------------- endpoints

    def register_endpoint(
        self,
        url: str | None = None,
        events: Iterable[str] | None = None,
        secret: str | None = None,
        *,
        endpoint_id: str | None = None,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        request_id: str | None = None,
    ) -> answers.EndpointRegistered:
        """Create an endpoint, or change the one with this ``url`` or ``endpoint_id``.

        What is left out stays as it is; ``""`` and ``{}`` clear a description and metadata.
        ``secret`` is in the answer only if it was made up now.
        """
        body = {
            "url": url,
            "events": _listed(events),
            "secret": secret,
            "endpoint_id": endpoint_id,
            "description": description,
            "metadata": metadata,
        }
        return self._call(
            "POST", _path("endpoints"), body, request_id=request_id, if_match=if_match
        )

    def list_endpoints(self) -> Iterator[answers.EndpointItem]:
        """All endpoints, the oldest first."""
        return self._pages(_path("endpoints"), "items")

    def get_endpoint(self, endpoint_id: str) -> answers.EndpointDetail:
        """One endpoint."""
        return self._call("GET", _path("endpoints", endpoint_id))

    def delete_endpoint(
        self, endpoint_id: str, *, if_match: str | None = None, request_id: str | None = None
    ) -> answers.EndpointState:
        """Delete an endpoint and cancel its open tasks."""
        path = _path("endpoints", endpoint_id)
        return self._call("DELETE", path, request_id=request_id, if_match=if_match)

    def pause_endpoint(
        self, endpoint_id: str, *, if_match: str | None = None, request_id: str | None = None
    ) -> answers.EndpointSwitched:
        """Stop calling an endpoint; its tasks wait."""
        path = _path("endpoints", endpoint_id, "pause")
        return self._call("POST", path, request_id=request_id, if_match=if_match)

    def resume_endpoint(
        self, endpoint_id: str, *, if_match: str | None = None, request_id: str | None = None
    ) -> answers.EndpointSwitched:
        """Call an endpoint again; what waits for it flows."""
        path = _path("endpoints", endpoint_id, "resume")
        return self._call("POST", path, request_id=request_id, if_match=if_match)

    def verify_endpoint(
        self,
        endpoint_id: str,
        *,
        check_signatures: bool = False,
        if_match: str | None = None,
        request_id: str | None = None,
    ) -> answers.EndpointVerified:
        """Ask a pending endpoint's receiver for its consent now; the endpoint as it then is.

        With ``check_signatures``, find out whether the receiver refuses a wrong signature.
        """
        path = _path("endpoints", endpoint_id, "verify")
        body = {"check_signatures": True} if check_signatures else None
        return self._call("POST", path, body, request_id=request_id, if_match=if_match)

    def test_endpoint(
        self,
        endpoint_id: str,
        type: str | None = None,
        *,
        if_match: str | None = None,
        request_id: str | None = None,
    ) -> answers.TestSent:
        """Send an endpoint the example of an event type, as a test event for it alone."""
        path = _path("endpoints", endpoint_id, "test")
        body = {"type": type} if type else None
        return self._call("POST", path, body, request_id=request_id, if_match=if_match)

    def reveal_secret(self, endpoint_id: str) -> answers.SecretRevealed:
        """An endpoint's secret; the token must be one that may write."""
        return self._call("GET", _path("endpoints", endpoint_id, "secret"))

    def rotate_secret(
        self,
        endpoint_id: str,
        secret: str | None = None,
        *,
        overlap_seconds: int | None = None,
        if_match: str | None = None,
        request_id: str | None = None,
    ) -> answers.SecretRotated:
        """Give an endpoint a new secret; the old one signs as well for 24 hours, or so long."""
        path = _path("endpoints", endpoint_id, "secret", "rotate")
        body = {"secret": secret, "overlap_seconds": overlap_seconds}
        return self._call("POST", path, body, request_id=request_id, if_match=if_match)

    def recover_endpoint(
        self, endpoint_id: str, since: str, *, request_id: str | None = None
    ) -> answers.BulkRetryStarted:
        """Retry what failed at an endpoint since a time, an event's id, or ``failing_since``."""
        path = _path("endpoints", endpoint_id, "recover")
        return self._call("POST", path, {"since": since}, request_id=request_id)

    # ----------------------------------------------------------------------------------- events

    def publish(
        self,
        type: str,
        data: Mapping[str, Any] | str,
        key: str | None = None,
        *,
        tenant_id: int | None = None,
        request_id: str | None = None,
    ) -> Published:
        """Publish an event.

        ``data`` is a JSON object, or its text, which is then delivered byte for byte. A second
        publish with the same ``key`` returns the first event. A service says with ``tenant_id`` for
        whom it publishes. ``ValueError`` if ``data`` is not JSON.
        """
        body = _joined(event_text(type, data, key), tenant_id)
        answer = self._publish(_path("events"), body, request_id, has_keys=key is not None)
        return Published(answer["event_id"], answer["tasks"])

    def publish_batch(
        self,
        events: Iterable[Mapping[str, Any]],
        *,
        tenant_id: int | None = None,
        request_id: str | None = None,
    ) -> list[Published]:
        """Publish up to 1,000 events: all of them or, if one cannot be accepted, none.

        Each is ``{"type": …, "data": …}``, with a ``"key"`` if it is to be idempotent.
        """
        events = list(events)
        body = _joined(_batch_text(events), tenant_id)
        have_keys = all(event.get("key") is not None for event in events)
        answer = self._publish(_path("events", "batch"), body, request_id, has_keys=have_keys)
        return [Published(item["event_id"], item["tasks"]) for item in answer["items"]]

    def dry_run(
        self, type: str, data: Mapping[str, Any] | str, *, tenant_id: int | None = None
    ) -> list[answers.WouldReceive]:
        """Who would get an event, and who would not and why; nothing is published."""
        body = _joined(event_text(type, data), tenant_id)
        return self._call("POST", _path("events"), body, query={"dry_run": "1"})["items"]

    def list_events(
        self,
        *,
        type: str | None = None,
        key: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> Iterator[answers.EventListed]:
        """Events, the newest first, without data: of a type, with a key, between two times."""
        narrowed = {"type": type, "key": key, "from": since, "to": until}
        return self._pages(_path("events"), "items", **narrowed)

    def feed(
        self, after: str = "start", *, type: str | None = None, limit: int = PAGE_ITEMS
    ) -> answers.EventPage:
        """The next events in the order in which they were committed, each once and with its data.

        ``after`` is the ``next_cursor`` of the page before, ``start`` for the oldest event kept, or
        ``now``. Keep ``next_cursor`` with what you have done; ask again at once if ``has_more``.
        """
        query = {"after": after, "type": type, "limit": limit}
        return self._call("GET", _path("events"), query=query)

    def get_event(self, event_id: str) -> answers.EventWithTasks:
        """One event, with its tasks."""
        return self._call("GET", _path("events", event_id))

    def get_why(self, event_id: str) -> answers.EventReasons:
        """Why an event was delivered, or was not, in words."""
        return self._call("GET", _path("events", event_id, "why"))

    def erase_event_data(
        self, event_id: str, *, request_id: str | None = None
    ) -> answers.EventItem:
        """Erase an event's data, and cancel its open tasks."""
        return self._call("DELETE", _path("events", event_id, "data"), request_id=request_id)

    def list_event_types(self) -> Iterator[answers.EventTypeItem]:
        """The catalogue of event types, by name."""
        return self._pages(_path("event-types"), "items")

    def get_event_type(self, name: str) -> answers.EventTypeDetail:
        """One event type, with its JSON Schema and an example."""
        return self._call("GET", _path("event-types", name))

    # ------------------------------------------------------------------------------------ tasks

    def list_tasks(self, **narrowed: Unpack[TaskFilter]) -> Iterator[answers.TaskItem]:
        """Tasks, the newest first."""
        return self._pages(_path("tasks"), "items", **_filter(narrowed))

    def get_task(self, task_id: str) -> answers.TaskWithAttempts:
        """One task, with its attempts."""
        return self._call("GET", _path("tasks", task_id))

    def retry_task(self, task_id: str, *, request_id: str | None = None) -> answers.TaskChanged:
        """Try a task again at once; ``message`` tells what it has to wait for."""
        return self._call("POST", _path("tasks", task_id, "retry"), request_id=request_id)

    def cancel_task(self, task_id: str, *, request_id: str | None = None) -> answers.TaskChanged:
        """Do not try a task again."""
        return self._call("POST", _path("tasks", task_id, "cancel"), request_id=request_id)

    def start_bulk_retry(
        self, *, request_id: str | None = None, **narrowed: Unpack[TaskFilter]
    ) -> answers.BulkRetryStarted:
        """Retry all tasks that failed and that the filter finds, in the background."""
        return self._call("POST", _path("tasks", "retry"), _filter(narrowed), request_id=request_id)

    def count_bulk_retry(self, **narrowed: Unpack[TaskFilter]) -> answers.BulkRetryCount:
        """How many tasks that would be."""
        path = _path("tasks", "retry")
        return self._call("POST", path, _filter(narrowed), query={"dry_run": "1"})

    def list_bulk_retries(self) -> Iterator[answers.BulkRetryItem]:
        """Bulk retries, the newest first."""
        return self._pages(_path("bulk-retries"), "items")

    def get_bulk_retry(self, bulk_retry_id: str) -> answers.BulkRetryItem:
        """One bulk retry, and how far it has come."""
        return self._call("GET", _path("bulk-retries", bulk_retry_id))

    def cancel_bulk_retry(
        self, bulk_retry_id: str, *, request_id: str | None = None
    ) -> answers.BulkRetryItem:
        """Retry no more tasks of a bulk retry."""
        path = _path("bulk-retries", bulk_retry_id, "cancel")
        return self._call("POST", path, request_id=request_id)

    # ---------------------------------------------------------------------------------- replays

    def start_replay(
        self,
        endpoint_id: str,
        watermark: str,
        *,
        until: str | None = None,
        events: Iterable[str] | None = None,
        only: str | None = None,
        request_id: str | None = None,
    ) -> answers.ReplayStarted:
        """Deliver an endpoint's past events again, from ``watermark`` to now or ``until``.

        Each is a time in RFC 3339 or an event's id, and the watermark may be ``failing_since``.
        ``events`` are types; ``only`` those that ``failed`` or that are ``missing``.
        """
        body = {
            "endpoint_id": endpoint_id,
            "from": watermark,
            "to": until,
            "events": _listed(events),
            "only": only,
        }
        return self._call("POST", _path("replay"), body, request_id=request_id)

    def list_replays(
        self, *, endpoint_id: str | None = None, status: str | None = None
    ) -> Iterator[answers.ReplayItem]:
        """Replays, the newest first: all, those of an endpoint, those in a status."""
        return self._pages(_path("replays"), "items", endpoint_id=endpoint_id, status=status)

    def get_replay(self, replay_id: str) -> answers.ReplayItem:
        """One replay, and how far it has come."""
        return self._call("GET", _path("replays", replay_id))

    def cancel_replay(self, replay_id: str, *, request_id: str | None = None) -> answers.ReplayItem:
        """Make no more tasks of a replay."""
        return self._call("POST", _path("replays", replay_id, "cancel"), request_id=request_id)

    # ----------------------------------------------------------------------------------- inside

    def _publish(self, path: str, body: str, request_id: str | None, *, has_keys: bool) -> Any:
        """Without a made-up X-Request-Id: remembering one costs the service more than the event."""
        headers = {"X-Request-Id": request_id}
        may_repeat = has_keys or request_id is not None
        return self._patiently("POST", path, body, None, headers, may_repeat=may_repeat)


class AdminClient(_Api):
    """What an admin may do, for every tenant. Ids are integers; ``request_id`` as in ``Client``."""

    # -------------------------------------------------------------------- endpoints and tasks

    def create_endpoint(
        self,
        tenant_id: int,
        url: str,
        events: Iterable[str] | None = None,
        secret: str | None = None,
        *,
        request_id: str | None = None,
    ) -> answers.AdminEndpointCreated:
        """Add an endpoint, which is active at once; it wants all events unless some are named.

        ``secret`` is in the answer only if it was made up now.
        """
        body = {"tenant_id": tenant_id, "url": url, "events": _listed(events), "secret": secret}
        return self._data("POST", _admin_path(), body, request_id=request_id)

    def list_endpoints(self, tenant_id: int) -> list[answers.AdminEndpoint]:
        """A tenant's endpoints."""
        return self._data("GET", _admin_path(), query={"tenant_id": tenant_id})

    def delete_endpoint(self, endpoint_id: int, *, request_id: str | None = None) -> None:
        """Delete an endpoint and cancel its open tasks."""
        self._data("POST", _admin_path("delete"), {"id": endpoint_id}, request_id=request_id)

    def list_tasks(
        self, tenant_id: int, *, status: str | None = None, endpoint_id: int | None = None
    ) -> Iterator[answers.AdminTask]:
        """A tenant's tasks, the newest first: all, those of a status, those of an endpoint."""
        narrowed = {"tenant_id": tenant_id, "status": status, "endpoint_id": endpoint_id}
        return self._pages(_admin_path("tasks"), "data", **narrowed)

    def retry_task(self, task_id: int, *, request_id: str | None = None) -> str:
        """Try a task again at once; what comes of it: ``"ok"``, or what it has to wait for."""
        path = _admin_path("tasks", "retry")
        message: str = self._call("POST", path, {"id": task_id}, request_id=request_id)["msg"]
        return message

    # ------------------------------------------------------------------------------ event types

    def list_event_types(self) -> Iterator[answers.EventTypeItem]:
        """The catalogue of event types, by name."""
        return self._pages(_admin_path("event-types"), "data")

    def get_event_type(self, name: str) -> answers.EventTypeDetail:
        """One event type, with its JSON Schema and an example."""
        return self._data("GET", _admin_path("event-types", name))

    def save_event_type(
        self,
        name: str,
        description: str | None = None,
        *,
        schema: Mapping[str, Any] | None = None,
        example: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> answers.EventTypeDetail:
        """Create or update an event type; what is left out stays as it is."""
        body = {"name": name, "description": description, "schema": schema, "example": example}
        return self._data("POST", _admin_path("event-types"), body, request_id=request_id)

    def delete_event_type(self, name: str, *, request_id: str | None = None) -> None:
        """Take an event type out of the catalogue."""
        path = _admin_path("event-types", "delete")
        self._data("POST", path, {"name": name}, request_id=request_id)

    # ---------------------------------------------------------------------------------- tenants

    def list_tenants(self) -> Iterator[answers.TenantItem]:
        """The tenants, by id, with their limits."""
        return self._pages(_admin_path("tenants"), "data")

    def get_tenant(self, tenant_id: int) -> answers.TenantItem:
        """One tenant, with its limits."""
        return self._data("GET", _admin_path("tenants", "detail"), query={"tenant_id": tenant_id})

    def limit_tenant(
        self, tenant_id: int, *, request_id: str | None = None, **limits: int | None
    ) -> answers.TenantItem:
        """Give a tenant limits of its own, such as ``requests_per_second``; None: everybody's."""
        body = json.dumps({"tenant_id": tenant_id, **limits})
        return self._data("POST", _admin_path("tenants", "limits"), body, request_id=request_id)

    def create_portal_token(
        self,
        tenant_id: int,
        *,
        ttl_seconds: int | None = None,
        scope: str | None = None,
        request_id: str | None = None,
    ) -> answers.PortalToken:
        """A short-lived token of a tenant's, for a page that shows it its own webhooks."""
        body = {"tenant_id": tenant_id, "ttl_seconds": ttl_seconds, "scope": scope}
        path = _admin_path("tenants", "portal-token")
        return self._data("POST", path, body, request_id=request_id)

    def erase_tenant(self, tenant_id: int, *, request_id: str | None = None) -> answers.ErasureItem:
        """Delete all that is known of a tenant, in the background."""
        path = _admin_path("tenants", "erase")
        return self._data("POST", path, {"tenant_id": tenant_id}, request_id=request_id)

    def list_erasures(self, tenant_id: int | None = None) -> Iterator[answers.ErasureItem]:
        """Erasures of tenants, the newest first, and how far they have come."""
        return self._pages(_admin_path("tenants", "erasures"), "data", tenant_id=tenant_id)

    def list_actions(
        self,
        *,
        tenant_id: int | None = None,
        actor: str | None = None,
        action: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> Iterator[answers.AuditItem]:
        """What people did, the newest first."""
        narrowed = {"tenant_id": tenant_id, "actor": actor, "action": action}
        return self._pages(_admin_path("audit"), "data", **narrowed, **{"from": since, "to": until})

    # ----------------------------------------------------------------------------- the operator

    def create_operator_endpoint(
        self,
        url: str,
        events: Iterable[str] | None = None,
        secret: str | None = None,
        *,
        request_id: str | None = None,
    ) -> answers.AdminEndpointCreated:
        """Add an endpoint that hears of every tenant's operational events."""
        body = {"url": url, "events": _listed(events), "secret": secret}
        path = _admin_path("operator", "endpoints")
        return self._data("POST", path, body, request_id=request_id)

    def list_operator_endpoints(self) -> list[answers.AdminEndpoint]:
        """The operator's endpoints."""
        return self._data("GET", _admin_path("operator", "endpoints"))

    def list_operator_tasks(
        self, *, status: str | None = None, endpoint_id: int | None = None
    ) -> Iterator[answers.AdminTask]:
        """The operator's tasks, the newest first."""
        path = _admin_path("operator", "tasks")
        return self._pages(path, "data", status=status, endpoint_id=endpoint_id)

    # ----------------------------------------------------------------------------------- inside

    def _data(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        return self._call(method, path, *args, **kwargs)["data"]


class _Bearer(AuthBase):
    """The token as requests' own idea of authentication: a mere header gives way to a .netrc."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


def _path(*parts: str) -> str:
    # A number where an id belongs is for the API to refuse, which says what an id looks like.
    return "/".join([TENANT_PREFIX, *(quote(str(part), safe="") for part in parts)])


def _admin_path(*parts: str) -> str:
    return "/".join([ADMIN_PREFIX, *(quote(part, safe="") for part in parts)])


def _filter(narrowed: TaskFilter) -> dict[str, Any]:
    """By the API's names, of which one is a word of Python's."""
    names = {"since": "from", "until": "to"}
    return {names.get(name, name): value for name, value in narrowed.items()}


def _listed(values: Iterable[str] | None) -> list[str] | None:
    return None if values is None else list(values)


def _batch_text(events: Iterable[Mapping[str, Any]]) -> str:
    return f'{{"events":[{",".join(event_text(**event) for event in events)}]}}'


def _joined(body: str, tenant_id: int | None) -> str:
    if tenant_id is None:
        return body
    return f'{body.removesuffix("}")},"tenant_id":{json.dumps(tenant_id)}}}'


def _error_of(response: requests.Response, answer: Mapping[str, Any]) -> ApiError:
    """What the answer tells, in the words of either surface, or of whatever stands before it."""
    status = response.status_code
    told = answer.get("message") or answer.get("msg")
    after = response.headers.get("Retry-After", "")
    return ApiError(
        told or f"{response.url} answered {status} {response.reason}, which is not of the API",
        code=answer.get("error") or (CODE_OF_STATUS.get(status) if told else None) or "unexpected",
        status=status,
        details=answer.get("details"),
        request_id=answer.get("request_id") or response.headers.get("X-Request-Id"),
        retry_after=float(after) if after.isdecimal() else None,
    )


def _reason(error: BaseException) -> str:
    """What is at the bottom of requests' and urllib3's exceptions, in the system's words."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error)
