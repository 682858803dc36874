"""Every error has one shape, whatever went wrong and wherever.

Tenant surface (tenant-api.md, Error Model), and every path that belongs to no surface:

    {"error": "<one of eight>", "message": "field: what is wrong and what would be right",
     "request_id": "<as in X-Request-Id>", "details": {"field": "reason"}}   (details: bad fields)

Admin surface (admin-api.md):

    {"code": <the HTTP status>, "msg": "<as message>", "data": null}

The statuses are 400, 401, 403, 404, 409, 429, 500 and 503, and 405, whose code is
``invalid_request``. Every answer, an error or not, has an X-Request-Id.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import requests
from flask import abort

from app import errors, tasks
from app.db import db
from app.models import Endpoint
from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX, Caller
from tests.live import LiveService

CODE_OF_STATUS = {status: code for code, status in errors.STATUS_OF_CODE.items()}


def check_shape(answer: Any, path: str, status: int, code: str | None = None) -> dict[str, Any]:
    """Assert the shape for the surface of that path; returns the body."""
    assert answer.status_code == status, answer.text
    body = answer.json() if isinstance(answer, requests.Response) else answer.json
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-Id"]
    assert answer.headers["Cache-Control"] == "no-store"
    if path == ADMIN_PREFIX or path.startswith(f"{ADMIN_PREFIX}/"):
        assert set(body) == {"code", "msg", "data"}
        assert (body["code"], body["data"]) == (status, None)
        assert body["msg"]
    else:
        assert set(body) - {"details"} == {"error", "message", "request_id"}
        assert body["error"] == (code or CODE_OF_STATUS[status])
        assert body["message"]
        assert body["request_id"] == answer.headers["X-Request-Id"]
        assert all(isinstance(reason, str) for reason in body.get("details", {}).values())
    return body


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nowhere",
        "/openapi",
        "/docs/",
        "/static/x",
        "/api",
        "/api/webhooksx",
        "/api/v1/data-consumption",
        f"{ADMIN_PREFIX}/",
        f"{ADMIN_PREFIX}/nowhere",
        f"{ADMIN_PREFIX}//tasks",
        TENANT_PREFIX,
        f"{TENANT_PREFIX}/",
        f"{TENANT_PREFIX}/nowhere",
        f"{TENANT_PREFIX}/endpoints/",
        f"{TENANT_PREFIX}/endpoints/ep_1/nowhere",
        f"{TENANT_PREFIX}//endpoints",
    ],
)
def test_an_unknown_path_answers_in_the_dialect_of_its_prefix(client, path):
    for method in ("GET", "POST", "DELETE", "PROPFIND"):
        check_shape(client.open(path, method=method), path, 404)


def test_a_method_that_a_path_lacks_is_a_405_that_keeps_allow(client, admin, owner):
    for caller, method, path, allowed in (
        (admin, "PUT", "", {"GET", "HEAD", "OPTIONS", "POST"}),
        (admin, "GET", "/delete", {"OPTIONS", "POST"}),
        (owner, "GET", "/replay", {"OPTIONS", "POST"}),
        (owner, "PATCH", "/endpoints/ep_1", {"DELETE", "GET", "HEAD", "OPTIONS"}),
        (owner, "BREW", "/tasks", {"GET", "HEAD", "OPTIONS"}),
    ):
        answer = caller.call(method, path)
        check_shape(answer, caller.prefix + path, 405, "invalid_request")
        assert set(answer.headers["Allow"].split(", ")) == allowed
        named = " and ".join(sorted(allowed - {"HEAD", "OPTIONS"}))
        assert f"{method} is not for this path; it takes {named}" in answer.text
    assert set(client.post("/healthz").headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_every_path_says_which_methods_it_has(app, client):
    """Whoever calls, and whatever is in the path."""
    routes = app.url_map.bind("")
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<[^>]+>", "x", rule.rule)
        there = set(routes.allowed_methods(path))  # /events/batch is an /events/{id}, too
        assert there >= set(rule.methods or ())
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "BREW"} - there:
            answer = client.open(path, method=method)
            assert answer.status_code == 405, (method, path)
            assert set(answer.headers["Allow"].split(", ")) == there, (method, path)


def test_every_code_in_the_dialect_of_both_surfaces(owner, admin, client, monkeypatch):
    client.is_checked = False  # not every code is one of a list
    for code, status in errors.STATUS_OF_CODE.items():
        error = errors.Error(code, "a reason", retry_after=1.2 if status in (429, 503) else None)

        def fail(*_: Any, error: errors.Error = error) -> None:
            raise error

        monkeypatch.setattr(Endpoint, "of", fail)
        for caller, path in ((owner, "/endpoints"), (admin, "?tenant_id=7")):
            answer = caller.get(path)
            body = check_shape(answer, caller.prefix, status)
            assert "a reason" in body.values()
            assert answer.headers.get("Retry-After") == ("2" if error.retry_after else None)


def test_statuses_outside_the_eight_become_one_of_them(owner, admin, monkeypatch):
    for status, becomes in {
        400: 400, 403: 400, 406: 400, 408: 400, 409: 400, 410: 400, 411: 400, 412: 400, 413: 400,
        415: 400, 416: 400, 417: 400, 418: 400, 422: 400, 423: 400, 424: 400, 428: 400, 429: 400,
        431: 400, 451: 400, 500: 500, 501: 500, 502: 500, 503: 500, 504: 500,
    }.items():  # fmt: skip
        monkeypatch.setattr(Endpoint, "of", lambda *_, status=status: abort(status))
        for caller, path in ((owner, "/endpoints"), (admin, "?tenant_id=7")):
            check_shape(caller.get(path), caller.prefix, becomes)


def test_bad_requests_of_every_kind(owner, admin):
    for caller, path in ((owner, "/endpoints"), (admin, "")):
        for options in (
            {"data": b"{", "content_type": "application/json"},
            {"data": b"\xff", "content_type": "application/json"},
            {"data": b"x" * (512 * 1024 + 1), "content_type": "application/json"},
            {"data": b"a=b", "content_type": "application/x-www-form-urlencoded"},
            {"data": b"{}", "content_type": "multipart/form-data; boundary=x"},
            {"data": b"{}", "content_type": "application/json", "query_string": "x=%ff"},
            {"data": b"{}", "headers": {"Content-Encoding": "br"}},
            {"json": {"unknown": 1}},
            {"json": {"url": {"a": [1]}, "tenant_id": []}},
            {"headers": {"X-Request-Id": "a b"}},
        ):
            check_shape(caller.post(path, **options), caller.prefix + path, 400)
        for token in ("x", "x.y.z", "a" * 9000, "é"):
            stranger = Caller(caller.client, caller.prefix, token)
            answer = stranger.post(path, {})
            check_shape(answer, caller.prefix + path, 401)
            assert answer.headers["WWW-Authenticate"] == "Bearer"


# -------------------------------------------------------------------------------------- 500, 503


def test_a_defect_is_a_500_that_tells_nothing_and_is_logged_whole(
    owner, admin, monkeypatch, caplog
):
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Endpoint, "of", fail)
    for caller, path in ((owner, "/endpoints"), (admin, "?tenant_id=7")):
        caplog.clear()
        answer = caller.get(path)
        check_shape(answer, caller.prefix, 500)
        for word in ("secret detail", "ZeroDivision", "Traceback"):
            assert word not in answer.text
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert "secret detail" in caplog.text
        assert record.exc_info is not None


def test_an_error_of_postgresql_itself_is_a_500_that_tells_nothing(owner, monkeypatch):
    monkeypatch.setitem(tasks.CODE_CLASSES, "2xx", "no_such_column")
    answer = owner.get("/tasks?code_class=2xx")
    check_shape(answer, TENANT_PREFIX, 500)
    assert "no_such_column" not in answer.text


def test_a_connection_that_the_server_has_ended_is_replaced_unseen(owner):
    owner.get("/endpoints")
    (pid,) = db.execute_sql("SELECT pg_backend_pid()").fetchone()
    with psycopg2.connect(db.database) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 1000)", (pid,))
    other.close()
    assert owner.get("/endpoints").status_code == 200


def test_a_connection_that_ends_in_the_middle_is_a_503_and_the_next_call_is_fine(
    owner, monkeypatch
):
    def ended(*_: Any) -> None:
        db.execute_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(Endpoint, "of", ended)
    answer = owner.get("/endpoints")
    check_shape(answer, TENANT_PREFIX, 503)
    assert answer.headers["Retry-After"] == "1"
    monkeypatch.undo()
    assert owner.get("/endpoints").status_code == 200


# --------------------------------------------------------------------------------- on the wire


@pytest.fixture
def live(database: str) -> Iterator[LiveService]:
    """Gunicorn with two workers."""
    with LiveService(database, dispatchers=0, RATE_LIMIT="10000") as service:
        yield service


def test_a_get_with_a_body_does_not_disturb_the_next_request(live):
    headers = {"Authorization": f"Bearer {live.tenant_token(7)}"}
    with requests.Session() as session:
        for _ in range(3):
            answer = session.get(
                f"{live.url}{TENANT_PREFIX}/endpoints",
                data=json.dumps({}),
                headers=headers,
                timeout=10,
            )
            assert answer.json() == {"items": [], "next_cursor": None}
