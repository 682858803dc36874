"""Hookjetty's HTTP API for Python programs: ``Client`` for tenants and producers, ``AdminClient``.

    from hookjetty.client import Client

    with Client("https://hooks.example.com", token) as client:
        client.register_endpoint("https://example.com/hook", events=["export.*"])
        client.publish("export.done", {"export": 41}, key="export-41")

Answers are the API's JSON objects as dictionaries; every failure is an ``ApiError``. Nothing is
tried again by itself: do so with the same ``key`` or ``request_id``, and it is done once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self
from urllib.parse import quote

import requests
from requests.auth import AuthBase

from hookjetty.publish import Published, json_text

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
        self, url: str | None = None, token: str | None = None, timeout_seconds: float = 10
    ) -> None:
        """By default, ``url`` and ``token`` are HOOKJETTY_URL and HOOKJETTY_TOKEN.

        ``timeout_seconds`` is for connecting and again for the answer. ``ValueError`` if there is
        no token.
        """
        self.url = (url or os.environ.get("HOOKJETTY_URL") or DEFAULT_URL).rstrip("/")
        self.timeout_seconds = timeout_seconds
        token = (token or os.environ.get("HOOKJETTY_TOKEN") or "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise ValueError("a token is needed: pass one, or set HOOKJETTY_TOKEN")
        self._session = requests.Session()
        self._session.auth = _Bearer(token)

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
    ) -> dict[str, Any]:
        """One request and its answer; members of ``body`` and ``query`` that are None are left out.

        The body may also be JSON text.
        """
        headers = {"X-Request-Id": request_id} if request_id else {}
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

    def _pages(self, path: str, items: str, **query: Any) -> Iterator[dict[str, Any]]:
        """All items of a list, asking for the next page when it is needed."""
        cursor = None
        while True:
            page = self._call("GET", path, query=query | {"limit": PAGE_ITEMS, "cursor": cursor})
            yield from page[items]
            cursor = page.get("next_cursor")
            if cursor is None:
                return


class Client(_Api):
    """What a tenant may do, and what a producer may. Ids are those of the API, such as ``ep_7``.

    A ``request_id`` makes its request idempotent for 24 hours: sent again with the same content, it
    is answered as the first time.
    """

    def register_endpoint(
        self,
        url: str | None = None,
        events: Iterable[str] | None = None,
        secret: str | None = None,
        *,
        endpoint_id: str | None = None,
        request_id: str | None = None,
    ) -> dict[str, Any]:
        """Create an endpoint, or change the one with this ``url`` or ``endpoint_id``.

        What is left out stays as it is. ``secret`` is in the answer only if it was made up now.
        """
        body = {
            "url": url,
            "events": None if events is None else list(events),
            "secret": secret,
            "endpoint_id": endpoint_id,
        }
        return self._call("POST", f"{TENANT_PREFIX}/endpoints", body, request_id=request_id)

    def list_endpoints(self) -> Iterator[dict[str, Any]]:
        """All endpoints, the oldest first."""
        return self._pages(f"{TENANT_PREFIX}/endpoints", "items")

    def get_endpoint(self, endpoint_id: str) -> dict[str, Any]:
        """One endpoint."""
        return self._call("GET", _path("endpoints", endpoint_id))

    def delete_endpoint(self, endpoint_id: str, *, request_id: str | None = None) -> dict[str, Any]:
        """Delete an endpoint and cancel its open tasks."""
        return self._call("DELETE", _path("endpoints", endpoint_id), request_id=request_id)

    def verify_endpoint(self, endpoint_id: str, *, request_id: str | None = None) -> dict[str, Any]:
        """Ask a pending endpoint's receiver for its consent now; the endpoint as it then is."""
        path = _path("endpoints", endpoint_id, "verify")
        return self._call("POST", path, request_id=request_id)

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
        body = _joined(_event_text(type, data, key), tenant_id)
        answer = self._call("POST", f"{TENANT_PREFIX}/events", body, request_id=request_id)
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
        texts = [_event_text(**event) for event in events]
        body = _joined(f'{{"events":[{",".join(texts)}]}}', tenant_id)
        answer = self._call("POST", f"{TENANT_PREFIX}/events/batch", body, request_id=request_id)
        return [Published(item["event_id"], item["tasks"]) for item in answer["items"]]

    def get_event(self, event_id: str) -> dict[str, Any]:
        """One event, with its tasks."""
        return self._call("GET", _path("events", event_id))

    def list_tasks(
        self, *, status: str | None = None, endpoint_id: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Tasks, the newest first: all, those of a status, those of an endpoint."""
        path = f"{TENANT_PREFIX}/tasks"
        return self._pages(path, "items", status=status, endpoint_id=endpoint_id)

    def get_task(self, task_id: str) -> dict[str, Any]:
        """One task, with its attempts."""
        return self._call("GET", _path("tasks", task_id))

    def replay(
        self, endpoint_id: str, watermark: str, *, request_id: str | None = None
    ) -> dict[str, Any]:
        """Deliver an endpoint's past events again, from ``watermark`` to now.

        That is a time in RFC 3339, an event's id, or ``failing_since``.
        """
        body = {"endpoint_id": endpoint_id, "from": watermark}
        return self._call("POST", f"{TENANT_PREFIX}/replay", body, request_id=request_id)

    def get_replay(self, replay_id: str) -> dict[str, Any]:
        """One replay, and how far it has come."""
        return self._call("GET", _path("replays", replay_id))


class AdminClient(_Api):
    """What an admin may do, for every tenant. Ids are integers; ``request_id`` as in ``Client``."""

    def create_endpoint(
        self,
        tenant_id: int,
        url: str,
        events: Iterable[str] | None = None,
        secret: str | None = None,
        *,
        request_id: str | None = None,
    ) -> dict[str, Any]:
        """Add an endpoint, which is active at once; it wants all events unless some are named.

        ``secret`` is in the answer only if it was made up now.
        """
        body = {
            "tenant_id": tenant_id,
            "url": url,
            "events": None if events is None else list(events),
            "secret": secret,
        }
        return self._data("POST", ADMIN_PREFIX, body, request_id=request_id)

    def list_endpoints(self, tenant_id: int) -> list[dict[str, Any]]:
        """A tenant's endpoints."""
        endpoints: list[dict[str, Any]] = self._data(
            "GET", ADMIN_PREFIX, query={"tenant_id": tenant_id}
        )
        return endpoints

    def delete_endpoint(self, endpoint_id: int, *, request_id: str | None = None) -> None:
        """Delete an endpoint and cancel its open tasks."""
        self._data("POST", f"{ADMIN_PREFIX}/delete", {"id": endpoint_id}, request_id=request_id)

    def list_tasks(
        self, tenant_id: int, *, status: str | None = None, endpoint_id: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """A tenant's tasks, the newest first: all, those of a status, those of an endpoint."""
        return self._pages(
            f"{ADMIN_PREFIX}/tasks",
            "data",
            tenant_id=tenant_id,
            status=status,
            endpoint_id=endpoint_id,
        )

    def retry_task(self, task_id: int, *, request_id: str | None = None) -> str:
        """Try a task again at once; what comes of it: ``"ok"``, or what it has to wait for."""
        path = f"{ADMIN_PREFIX}/tasks/retry"
        message: str = self._call("POST", path, {"id": task_id}, request_id=request_id)["msg"]
        return message

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
    return "/".join([TENANT_PREFIX, *(quote(part, safe="") for part in parts)])


def _event_text(type: str, data: Mapping[str, Any] | str, key: str | None = None) -> str:
    """An event as JSON, with the text of ``data`` as it is."""
    head = json.dumps({"type": type} | ({} if key is None else {"key": key}))
    return f'{head.removesuffix("}")},"data":{json_text(data)}}}'


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
