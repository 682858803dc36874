"""The catalogue of event types: a JSON Schema and an example of each, checked when they come in."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app import event_types
from app.db import db
from app.jsonschemas import PATIENCE_SECONDS, objection
from tests.conftest import Caller
from tests.factories import publish

SCHEMA = {"type": "object", "properties": {"rows": {"type": "integer"}}, "required": ["rows"]}


def save(admin: Caller, status: int | None = None, **wanted: Any) -> Any:
    answer = admin.post("/event-types", {"name": "export.done"} | wanted)
    if status is not None:
        assert answer.status_code == status, answer.text
    return answer.json["data"] if answer.json["code"] == 0 else answer.json["msg"]


def test_a_type_is_described_and_read_on_both_surfaces(admin, owner):
    made = save(admin, 201, description="An export is ready", schema=SCHEMA, example={"rows": 3})
    assert made.items() >= {"name": "export.done", "schema": SCHEMA, "example": {"rows": 3}}.items()
    assert owner.get("/event-types/export.done").json == made
    assert admin.get("/event-types/export.done").json["data"] == made
    (listed,) = owner.get("/event-types").json["items"]
    assert listed == {name: made[name] for name in
                      ("name", "description", "created_at", "updated_at")}  # fmt: skip
    assert admin.get("/event-types").json["data"] == [listed]


def test_what_is_absent_stays_and_null_takes_it_away(admin):
    made = save(admin, 201, description="d", schema=SCHEMA, example={"rows": 3})
    changed = save(admin, 200, example={"rows": 4})
    assert (changed["description"], changed["schema"], changed["example"]) == (
        "d", SCHEMA, {"rows": 4},
    )  # fmt: skip
    assert changed["created_at"] == made["created_at"]
    assert save(admin, 200, schema=None)["schema"] is None
    assert save(admin, 200, example={"rows": "x"})["example"] == {"rows": "x"}


def test_a_type_can_be_taken_out(admin, owner):
    save(admin, 201)
    assert admin.post("/event-types/delete", {"name": "export.done"}).json["data"] == {
        "name": "export.done"
    }
    assert admin.post("/event-types/delete", {"name": "export.done"}).status_code == 404
    assert owner.get("/event-types/export.done").status_code == 404
    assert owner.get("/event-types").json == {"items": [], "next_cursor": None}


def test_the_list_comes_by_name_and_in_pages(admin, owner):
    for name in ("b", "a.x", "B", "a"):
        save(admin, 201, name=name)
    first = owner.get("/event-types?limit=3").json
    second = owner.get("/event-types", query_string={"cursor": first["next_cursor"]}).json
    names = [item["name"] for item in first["items"] + second["items"]]
    assert (names, second["next_cursor"]) == (["B", "a", "a.x", "b"], None)
    assert owner.get("/event-types?cursor=x").status_code == 400


def test_it_refuses_nothing_that_is_published(admin):
    save(admin, 201, schema=SCHEMA)
    assert publish(type="export.done", data={"rows": "not a number"})
    assert publish(type="unheard.of")


def test_only_admins_change_it_and_all_readers_see_it(owner, client, mint):
    assert owner.client.post("/api/webhooks/event-types").status_code == 401
    headers = {"Authorization": f"Bearer {owner.token}"}
    answer = owner.client.post("/api/webhooks/event-types", json={"name": "x"}, headers=headers)
    assert answer.status_code == 403
    owner.token = mint(tenant_id=7, scopes=["events:write"])
    assert owner.get("/event-types").status_code == 403
    assert owner.get("/event-types/x").status_code == 403


# ------------------------------------------------------------------------------------ the checks


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"name": "export.*"}, "name: must be segments of letters"),
        ({"name": "hookjetty.x"}, "name: the prefix hookjetty. is reserved"),
        ({"description": "x" * 501}, "description: must have at most 500 characters"),
        ({"schema": []}, "schema: must be a JSON object"),
        ({"example": [1]}, "example: must be a JSON object"),
        ({"schema": {"type": "nothing"}}, "schema: type: 'nothing' is not valid under any"),
        ({"schema": {"pattern": "("}}, "schema: pattern: '(' is not a 'regex'"),
        (
            {"schema": {"$schema": "http://json-schema.org/draft-07/schema#"}},
            "schema: $schema must be https://json-schema.org/draft/2020-12/schema, or absent",
        ),
        ({"schema": {"$schema": 7}}, "schema: $schema must be"),
        (
            {"schema": SCHEMA, "example": {"rows": "3"}},
            "example: rows: '3' is not of type 'integer'",
        ),
        ({"schema": SCHEMA, "example": {}}, "example: 'rows' is a required property"),
        ({"schema": {"$ref": "#/$defs/x"}}, "schema: refers to '#/$defs/x', which is not in it"),
        ({"schema": {"$ref": "#nowhere"}}, "schema: refers to '#nowhere', which is not in it"),
        ({"schema": {"title": "x" * 70_000}}, "schema: is longer than 64 KiB"),
        ({"example": {"x": "x" * 270_000}}, "example: is longer than 256 KiB"),
        ({"unknown": 1}, "unknown: is not a field of this"),
    ],
)
def test_what_is_no_good_is_refused_with_its_reason(admin, wanted, reason):
    assert save(admin, 400, **wanted).startswith(reason)
    assert db.execute_sql("SELECT count(*) FROM hookjetty.event_types").fetchone() == (0,)


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"type": "integer"}}, "properties": {"rows": {"$ref": "#/$defs/n"}}},
        {"$id": "https://datajetty.com/export", "$defs": {"n": {"$anchor": "n"}},
         "properties": {"rows": {"$ref": "#n"}}},
        {"$id": "https://datajetty.com/a", "$defs": {"b": {"$id": "b"}}, "properties":
         {"rows": {"$ref": "https://datajetty.com/b"}}},
        {"properties": {"children": {"items": {"$ref": "#"}}}},
        {"properties": {"$ref": {"type": "string"}}, "const": {"$ref": "https://x/", "rows": 3},
         "enum": [{"$ref": "https://x/", "rows": 3}], "not": {"const": 1}},
    ],
)  # fmt: skip
def test_references_within_a_schema_are_good(schema):
    assert objection(schema, schema.get("const", {"rows": 3})) is None


@pytest.fixture
def canary() -> Iterator[socket.socket]:
    """A server that must never be called."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@pytest.mark.parametrize(
    "hostile",
    [
        {"$ref": "URL"},
        {"$dynamicRef": "URL"},
        {"$id": "URL", "$ref": "other.json"},
        {"properties": {"rows": {"items": {"$ref": "URL#/x"}}}},
        {"$schema": "URL"},
        {"$ref": "//127.0.0.1:PORT/x"},
        {"$ref": "file:///etc/passwd"},
    ],
)
def test_no_reference_is_ever_fetched(canary, hostile):
    port = str(canary.getsockname()[1])

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(each) for name, each in value.items()}
        return value.replace("URL", "http://127.0.0.1:PORT/x").replace("PORT", port)

    said = objection(filled(hostile), {"rows": 3})
    assert said is not None
    assert said.startswith(("schema: refers to", "schema: $schema must be"))
    with pytest.raises(BlockingIOError):
        canary.accept()


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        ({"properties": {"x": {"pattern": "^(a+)+$"}}}, {"x": "a" * 60 + "!"}),
        ({"patternProperties": {"^(a|a)*$": {}}}, {"a" * 60 + "!": 1}),
        ({"$ref": "#"}, {}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
         {}),
        ({"properties": {"x": {"multipleOf": 1e-300}}}, {"x": 1e300}),
    ],
)  # fmt: skip
def test_what_would_take_for_ever_is_given_up(schema, example):
    began = time.monotonic()
    said = objection(schema, example)
    assert said is not None
    assert said.startswith(("schema: ", "example: "))
    assert time.monotonic() - began < PATIENCE_SECONDS + 5


def test_there_are_so_many_types_at_most(admin, monkeypatch):
    monkeypatch.setattr(event_types, "MOST_TYPES", 2)
    save(admin, 201, name="a")
    save(admin, 201, name="b")
    assert save(admin, 400, name="c") == "name: would be one too many; there are 2 types"
    save(admin, 200, name="b")
