"""What a tenant notes down about an endpoint: description and metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tests.factories import make_endpoint

URL = "https://app/hook"


def register(caller, status: int = 200, **fields: Any) -> Any:
    answer = caller.post("/endpoints", {"url": URL} | fields)
    assert answer.status_code == status, answer.text
    return answer.json


def noted(caller) -> tuple[str | None, dict[str, str]]:
    detail = caller.get("/endpoints/ep_1").json
    return detail.get("description"), detail["metadata"]


def test_both_are_kept_until_they_are_changed_or_cleared(owner):
    register(owner, 201)
    assert noted(owner) == (None, {})
    register(owner, description="Über ☃", metadata={"team": "billing", "note": ""})
    assert noted(owner) == ("Über ☃", {"team": "billing", "note": ""})
    register(owner, events=["x"])
    assert noted(owner) == ("Über ☃", {"team": "billing", "note": ""})
    register(owner, metadata={"other": "1"})
    assert noted(owner) == ("Über ☃", {"other": "1"})
    register(owner, description=None, metadata=None)
    assert noted(owner) == (None, {})
    register(owner, description="x", metadata={"a": "b"})
    register(owner, description="", metadata={})
    assert noted(owner) == (None, {})


def test_a_new_endpoint_may_have_both_and_lists_show_the_description(owner):
    register(owner, 201, description="x", metadata={"a": "b"})
    (item,) = owner.get("/endpoints").json["items"]
    assert item["description"] == "x" and "metadata" not in item
    assert noted(owner) == ("x", {"a": "b"})


def test_a_note_asks_no_receiver_again(owner):
    make_endpoint(7, URL)
    register(owner, description="x")
    assert owner.get("/endpoints/ep_1").json["status"] == "active"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", "x" * 501),
        ("description", 7),
        ("description", ["x"]),
        ("metadata", "x"),
        ("metadata", []),
        ("metadata", {"a": 1}),
        ("metadata", {"a": None}),
        ("metadata", {"a": {"b": "c"}}),
        ("metadata", {"": "x"}),
        ("metadata", {"a" * 41: "x"}),
        ("metadata", {"a": "x" * 501}),
        ("metadata", {str(number): "x" for number in range(51)}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_too_much_or_of_another_kind_is_refused(owner, field, value):
    assert list(register(owner, 400, **{field: value})["details"]) == [field]


@pytest.mark.parametrize("text", ['"a\\u0000b"', '"\\ud800"', '"\\udc00x"'])
def test_what_no_text_can_hold_is_refused(owner, text):
    for notes in (
        f'"description":{text}',
        f'"metadata":{{"a":{text}}}',
        f'"metadata":{{{text}:""}}',
    ):
        body = f'{{"url":"{URL}",{notes}}}'
        answer = owner.post("/endpoints", data=body, content_type="application/json")
        assert answer.status_code == 400, body


texts = some.text(some.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(description=texts, metadata=some.dictionaries(texts.filter(bool), texts, max_size=5))
def test_any_text_comes_back_as_it_was(owner, description, metadata):
    body = json.dumps({"url": URL, "description": description, "metadata": metadata})
    answer = owner.post("/endpoints", data=body, content_type="application/json")
    assert answer.status_code in (200, 201)
    detail = owner.get(f"/endpoints/{answer.json['endpoint_id']}").json
    assert (detail.get("description") or "", detail["metadata"]) == (description, metadata)
