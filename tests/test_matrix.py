"""Every operation of the OpenAPI document, visited by everybody who must not get in (threat J7).

As the wrong tenant, without a token, with an expired one, without the scope, with another surface's
token, and with malformed ids; each refusal in the exact dialect of its surface. The requests are
made of the document's own examples, and each is shown to be a good one: as the owner it succeeds.
An operation that cannot be visited so fails the test, so none can be forgotten.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jwt
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import errors
from app.db import db, open_database
from app.settings import load
from app.wsgi import create_app
from docs.generate import NEEDED
from tests.conftest import (
    ADMIN_PREFIX,
    JWT_SECRET,
    OWNER,
    STRANGER,
    TENANT_PREFIX,
    new_database,
)
from tests.documented import checked, resolved, the_document
from tests.factories import make_endpoint, publish

DOCUMENT = the_document()
SCOPES = {"webhooks:read", "webhooks:write", "events:write"}

# What a tenant makes for itself, without naming anything that is there already.
MAKES_ITS_OWN = {"publish_event", "publish_events"}
# What is the platform's and the same for every tenant.
OF_ALL = {"list_event_types", "get_event_type"}

MALFORMED_NAMES = ["a..b", ".a", "a.", "a b", "a-b", "hookjetty.x", "a" * 129, "\u00e4", "a%00"]
# Malformed ids, as a path's part and as a member of a body; P is the id's prefix.
MALFORMED = [
    *("P_0", "P_-7", "P_07", "P_7.0", "P_7e0", "P_", "P7", "7", "P_7 ", "P_9007199254740992"),
    *("xyz_7", "P_" + "7" * 400, "P_\u0667", "'OR 1=1--", "P_7%00"),
]
MALFORMED_NUMBERS = [0, -7, 2**53, 7.5, True, "7", [7], {"id": 7}]


class Operation(NamedTuple):
    """One of the document's, and a request for it that its owner may make."""

    name: str
    method: str
    path: str
    documented: dict[str, Any]

    @property
    def is_admins(self) -> bool:
        return self.path.startswith(ADMIN_PREFIX)

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return [resolved(each) for each in self.documented["parameters"]]

    @property
    def names_in_path(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def body(self) -> dict[str, Any] | None:
        """The document's example."""
        content = self.documented.get("requestBody", {}).get("content")
        return copy.deepcopy(content["application/json"]["example"]) if content else None

    @property
    def ids_in_body(self) -> dict[str, str]:
        """The members that name a thing, and the prefix of such an id."""
        content = self.documented.get("requestBody", {}).get("content")
        if not content:
            return {}
        properties = resolved(content["application/json"]["schema"]).get("properties", {})
        return {
            name: found[1]
            for name, schema in properties.items()
            if (found := re.match(r"\^([a-z]+)_\[1-9\]", schema.get("pattern", "")))
        }

    @property
    def is_list(self) -> bool:
        return any(each["name"] in ("cursor", "after") for each in self.parameters)


def operations(prefix: str, which: Callable[[Operation], Any] = bool) -> Any:
    every = [
        Operation(documented["operationId"], method.upper(), path, documented)
        for path, methods in DOCUMENT["paths"].items()
        for method, documented in methods.items()
        if path.startswith(prefix)
    ]
    found = [each for each in every if which(each)]
    assert found
    return pytest.mark.parametrize("operation", found, ids=lambda each: each.name)


class World:
    """What tenant 7 has, and requests for it."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        for number in range(2):
            endpoint = make_endpoint(OWNER, f"https://example.com/{number}")
        event, _ = publish(OWNER)
        publish(OWNER)
        ((task,),) = db.execute_sql(
            "SELECT id FROM hookjetty.tasks WHERE event_id = %s AND endpoint_id = %s",
            (event, endpoint),
        ).fetchall()
        (replay,), _ = db.execute_sql(
            "INSERT INTO hookjetty.replays (tenant_id, endpoint_id, status, from_id, upto_id,"
            " cursor_id, finished_at) VALUES (%s, %s, 'running', 1, 2, 0, NULL),"
            " (%s, %s, 'finished', 1, 2, 2, now()) RETURNING id",
            (OWNER, endpoint, OWNER, endpoint),
        ).fetchall()
        (bulk_retry,), _ = db.execute_sql(
            "INSERT INTO hookjetty.bulk_retries (tenant_id, status, filter, from_id, upto_id,"
            " cursor_id, finished_at)"
            " SELECT %s, 'canceled', '{\"status\": \"failed\"}', 1, 2, 0, now()"
            " FROM generate_series(1, 2) RETURNING id",
            (OWNER,),
        ).fetchall()
        # By the prefix of their ids, and by the names that they have in paths and bodies.
        self.ids = {"ep": endpoint, "evt": event, "task": task, "rpl": replay, "blk": bulk_retry}
        self.prefix_of = {
            "endpoint_id": "ep",
            "event_id": "evt",
            "task_id": "task",
            "replay_id": "rpl",
            "bulk_retry_id": "blk",
        }
        db.execute_sql(
            "INSERT INTO hookjetty.event_types (name, description) VALUES ('export.done', '')"
        )

    # ------------------------------------------------------------------------------- requests

    def call(
        self,
        operation: Operation,
        token: str | None,
        *,
        path: str | None = None,
        body: Any = None,
        **headers: str,
    ) -> TestResponse:
        db.execute_sql("TRUNCATE hookjetty.rate_limits")
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = self.body(operation) if body is None else body
        return self.client.open(
            path or self.path(operation),
            method=operation.method,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            json=body,
        )

    def path(self, operation: Operation, **instead: str) -> str:
        """The path with the owner's ids, or some instead, and with the query that is required."""
        names = {name: self.id_of(operation, name) for name in operation.names_in_path} | instead
        query = "&".join(
            f"{each['name']}={OWNER}"
            for each in operation.parameters
            if each["in"] == "query" and each.get("required")
        )
        return operation.path.format(**names) + (f"?{query}" if query else "")

    def id_of(self, operation: Operation, name: str) -> str:
        if name == "tenant_id":
            return str(OWNER)
        if name == "name":
            return "export.done"
        if name not in self.prefix_of:
            pytest.fail(f"the matrix knows no {name}: let World have one")
        number = self.ids[self.prefix_of[name]]
        return str(number) if operation.is_admins else f"{self.prefix_of[name]}_{number}"

    def body(self, operation: Operation) -> Any:
        """The document's example with the owner's ids."""
        body = operation.body
        if body is None:
            return None
        for name, prefix in operation.ids_in_body.items():
            body[name] = f"{prefix}_{self.ids[prefix]}"
        if operation.is_admins and "id" in body:
            body["id"] = self.ids[
                "task" if operation.documented["tags"] == ["admin_tasks"] else "ep"
            ]
        return body


@pytest.fixture(scope="module")
def place(server_url: str, template: str) -> Iterator[tuple[str, World]]:
    """A world, and the database it is in, for all who leave it as it is."""
    with new_database(server_url, template) as url:
        app = create_app(
            load(NEEDED | {"HOOKJETTY_DATABASE_URL": url, "HOOKJETTY_JWT_SECRET": JWT_SECRET})
        )
        app.test_client_class = checked(FlaskClient)
        db.ready()
        yield url, World(app.test_client())
        db.give_up()


@pytest.fixture
def world(place: tuple[str, World]) -> Iterator[World]:
    """The world, which the test must not change."""
    url, world = place
    open_database(url)
    db.ready()
    before = snapshot()
    yield world
    assert snapshot() == before
    db.give_up()


@pytest.fixture
def own_world(client: FlaskClient) -> World:
    """One that the test may change."""
    return World(client)


def token(**claims: Any) -> str:
    every = {"sub": "somebody", "aud": "hookjetty", "exp": int(time.time()) + 600}
    return jwt.encode(every | claims, JWT_SECRET, algorithm="HS256")


def of_tenant(tenant_id: int, **claims: Any) -> str:
    return token(**{"tenant_id": tenant_id, "scope": " ".join(SCOPES)} | claims)


ADMIN = {"role": "admin"}
SERVICE = {"role": "service", "scope": " ".join(SCOPES)}
EXPIRED = {"exp": int(time.time()) - 1}


def refused(answer: TestResponse, operation: Operation, code: str) -> dict[str, Any]:
    """The answer is a refusal with that code, in the exact dialect of its surface."""
    status = errors.STATUS_OF_CODE[code]
    told = answer.get_json()
    assert answer.status_code == status, (operation.name, answer.status_code, answer.text)
    assert answer.mimetype == "application/json"
    if operation.is_admins:
        assert told == {"code": status, "msg": told["msg"], "data": None}
        assert told["msg"]
    else:
        assert set(told) - {"details"} == {"error", "message", "request_id"}
        assert told["error"] == code
        assert told["request_id"] == answer.headers["X-Request-Id"]
    if code == "unauthorized":
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    return told


def without_ids(told: dict[str, Any]) -> str:
    return re.sub(r"[0-9]+", "N", json.dumps(told | {"request_id": ""}))


def snapshot() -> str:
    """All that is stored, but for counters of limits."""
    ((found,),) = db.execute_sql(
        """
        SELECT json_agg(rows ORDER BY rows::text) FROM (
            SELECT to_jsonb(x) AS rows FROM hookjetty.endpoints x
            UNION ALL SELECT to_jsonb(x) FROM hookjetty.events x
            UNION ALL SELECT to_jsonb(x) FROM hookjetty.tasks x
            UNION ALL SELECT to_jsonb(x) FROM hookjetty.replays x
            UNION ALL SELECT to_jsonb(x) FROM hookjetty.bulk_retries x
            UNION ALL SELECT to_jsonb(x) FROM hookjetty.idempotency_keys x) AS everything
        """
    ).fetchall()
    return json.dumps(found)


# ------------------------------------------------------------------------------ who may call


@operations(TENANT_PREFIX)
def test_a_tenants_operation_takes_a_valid_token_of_a_tenant_with_its_scope(world, operation):
    takes = {
        role: scopes for each in operation.documented["security"] for role, scopes in each.items()
    }
    (scope,) = takes["tenant_token"]
    for wrong in (None, of_tenant(OWNER, **EXPIRED), token(**SERVICE, **EXPIRED)):
        refused(world.call(operation, wrong), operation, "unauthorized")
    strangers = [
        of_tenant(OWNER, scope=" ".join(SCOPES - {scope})),
        of_tenant(OWNER, scope=""),
        of_tenant(OWNER, scope=scope.upper()),
        of_tenant(OWNER, scope=f"{scope}s x{scope}"),
        token(**ADMIN),
        token(**ADMIN, scope=" ".join(SCOPES)),
        token(scope=" ".join(SCOPES)),
    ]
    if "service_token" not in takes:
        strangers.append(token(**SERVICE))
    for wrong in strangers:
        refused(world.call(operation, wrong), operation, "forbidden")


@operations(ADMIN_PREFIX)
def test_an_admins_operation_takes_a_valid_token_of_an_admin(world, operation):
    assert operation.documented["security"] == [{"admin_token": []}]
    for wrong in (None, token(**ADMIN, **EXPIRED)):
        refused(world.call(operation, wrong), operation, "unauthorized")
    for wrong in (
        of_tenant(OWNER),
        of_tenant(OWNER, **ADMIN),
        token(**SERVICE),
        token(scope=" ".join(SCOPES)),
        token(role="Admin"),
    ):
        refused(world.call(operation, wrong), operation, "forbidden")


@pytest.mark.parametrize(
    "path",
    [path for path in DOCUMENT["paths"] if not path.startswith((TENANT_PREFIX, ADMIN_PREFIX))],
)
def test_an_operators_path_takes_no_token_and_minds_none(client, path):
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eDp5"}):
        assert client.get(path, headers=headers).status_code == 200


# ------------------------------------------------------------------------------ malformed ids


@operations(TENANT_PREFIX, lambda each: each.names_in_path or each.ids_in_body)
def test_a_malformed_id_is_a_400(world, operation):
    for name in operation.names_in_path:
        prefix = world.prefix_of.get(name)
        for malformed in MALFORMED if prefix else MALFORMED_NAMES:
            path = world.path(operation, **{name: malformed.replace("P", prefix or "")})
            refused(
                world.call(operation, of_tenant(OWNER), path=path), operation, "invalid_request"
            )
    for name, prefix in operation.ids_in_body.items():
        for malformed in (*MALFORMED, *MALFORMED_NUMBERS, None):
            wrong = malformed.replace("P", prefix) if isinstance(malformed, str) else malformed
            body = world.body(operation) | {name: wrong}
            refused(
                world.call(operation, of_tenant(OWNER), body=body), operation, "invalid_request"
            )


@operations(ADMIN_PREFIX)
def test_a_malformed_number_is_a_400(world, operation):
    for name in operation.names_in_path:
        numbers = ("0", "-7", "07", "7.5", "ep_7", str(2**53), "7" * 400, "\u0667")
        for malformed in numbers if name.endswith("_id") else MALFORMED_NAMES:
            path = world.path(operation, **{name: malformed})
            refused(world.call(operation, token(**ADMIN), path=path), operation, "invalid_request")
    for name in {"id", "tenant_id"} & set(operation.body or {}):
        for malformed in (*MALFORMED_NUMBERS, None):
            body = world.body(operation) | {name: malformed}
            refused(world.call(operation, token(**ADMIN), body=body), operation, "invalid_request")
    if "tenant_id" in {each["name"] for each in operation.parameters if each["in"] == "query"}:
        for malformed in ("0", "-7", "07", "7.5", "seven", str(2**53), ""):
            path = f"{operation.path}?tenant_id={malformed}"
            refused(world.call(operation, token(**ADMIN), path=path), operation, "invalid_request")


# ---------------------------------------------------------------------------- another tenant's


@operations(TENANT_PREFIX)
def test_another_tenants_things_are_not_there(own_world, operation):
    stranger = of_tenant(STRANGER)
    before = snapshot()
    if operation.name in OF_ALL:
        theirs = own_world.call(operation, of_tenant(OWNER))
        assert own_world.call(operation, stranger).json == theirs.json
    elif operation.names_in_path or operation.ids_in_body:
        foreign = own_world.call(operation, stranger)
        told = refused(foreign, operation, "not_found")
        assert snapshot() == before
        # Word for word what is said of something that nobody has.
        theirs, own_world.ids = own_world.ids, dict.fromkeys(own_world.ids, 2**53 - 1)
        unknown = refused(own_world.call(operation, stranger), operation, "not_found")
        assert without_ids(told) == without_ids(unknown)
        own_world.ids = theirs
        owners = own_world.call(operation, of_tenant(OWNER))
        assert owners.status_code in (200, 201, 202, 409), (
            f"the owner got {owners.status_code}, so the matrix asked for the wrong thing:"
            f" {owners.text}"
        )
    elif operation.is_list:
        answer = own_world.call(operation, stranger)
        assert (answer.status_code, answer.json["items"]) == (200, [])
        owners = own_world.call(operation, of_tenant(OWNER))
        assert owners.json["items"], "the owner has none either: let World have some"
    elif operation.name in MAKES_ITS_OWN:
        answer = own_world.call(operation, stranger)
        assert answer.status_code == 202, answer.text
        assert json.dumps(answer.json).count('"tasks": 0') >= 1, (
            "the owner's endpoints are not ours"
        )
    else:
        pytest.fail("the matrix does not know how to visit this")


@operations(TENANT_PREFIX, lambda each: each.is_list)
def test_a_filter_by_another_tenants_thing_finds_nothing(world, operation):
    for each in operation.parameters:
        if each["in"] == "query" and each["name"] in world.prefix_of:
            path = f"{operation.path}?{each['name']}={world.id_of(operation, each['name'])}"
            answer = world.call(operation, of_tenant(STRANGER), path=path)
            if answer.status_code == 200:
                assert answer.json["items"] == []
            else:
                refused(answer, operation, "not_found")


@operations(TENANT_PREFIX, lambda each: each.is_list and each.name not in OF_ALL)
def test_another_tenants_cursor_is_of_no_use(world, operation):
    page = world.call(operation, of_tenant(OWNER), path=f"{operation.path}?limit=1").json
    assert page["next_cursor"], "the owner has but one: let World have two"
    path = f"{operation.path}?limit=1&cursor={page['next_cursor']}"
    assert world.call(operation, of_tenant(OWNER), path=path).status_code == 200
    refused(world.call(operation, of_tenant(STRANGER), path=path), operation, "invalid_request")


@operations(TENANT_PREFIX, lambda each: each.method != "GET")
def test_another_tenants_idempotency_key_is_of_no_use(own_world, operation):
    body = own_world.body(operation)
    raw = b"" if body is None else json.dumps(body).encode()
    path = own_world.path(operation)
    answer = {"of": "the owner", "endpoint_id": f"ep_{own_world.ids['ep']}"}
    db.execute_sql(
        "INSERT INTO hookjetty.idempotency_keys"
        " (owner, method, path, key, body_sha256, status_code, answer)"
        " VALUES (%s, %s, %s, 'k', %s, 200, %s)",
        (OWNER, operation.method, path, hashlib.sha256(raw).digest(), json.dumps(answer)),
    )
    own_world.client.is_checked = False  # the stored answer is not a real one
    for who, is_replayed in ((STRANGER, False), (OWNER, True)):
        db.execute_sql("TRUNCATE hookjetty.rate_limits")
        got = own_world.client.open(
            path,
            method=operation.method,
            data=raw,
            headers={"Authorization": f"Bearer {of_tenant(who)}", "X-Request-Id": "k"},
            content_type="application/json",
        )
        assert ("Idempotent-Replayed" in got.headers) == is_replayed, got.text
        assert ("the owner" in got.text) == is_replayed
