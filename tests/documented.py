"""Holds what the API really answers against what the OpenAPI document says that it answers.

``checked`` is for a Flask test client: each of its answers has to be one that the document names
for that operation, with those headers, and with no member that is not in the schema. So every test
of the API is one of the document as well, unless it has the API do what it never does, and sets
``is_checked`` to False.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jsonschema_rs
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.blueprints.documentation import document
from app.settings import load
from app.wsgi import assemble
from docs.generate import NEEDED

# What a path answers to methods that it does not have, or that Flask gives it.
NOT_OPERATIONS = {405}


@cache
def the_document() -> dict[str, Any]:
    """The document of the API with the settings' defaults."""
    return document(assemble(load(NEEDED)))


@cache
def _operations() -> list[tuple[str, re.Pattern[str], str, dict[str, Any]]]:
    found = []
    for path, methods in the_document()["paths"].items():
        pattern = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))
        for method, operation in methods.items():
            found.append((method.upper(), pattern, path, operation))
    # The paths without parameters first: /events/batch is no event.
    return sorted(found, key=lambda each: each[2].count("{"))


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """The operation that a request is for."""
    for of, pattern, _, operation in _operations():
        if of == method and pattern.fullmatch(path):
            return operation
    return None


def resolved(each: dict[str, Any]) -> dict[str, Any]:
    """What a reference refers to."""
    while "$ref" in each:
        found: Any = the_document()
        for part in each["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        each = found
    return each


def assert_documented(method: str, path: str, response: TestResponse) -> None:
    """The answer is one that the document has."""
    operation = operation_of(method, path)
    if operation is None or response.status_code in NOT_OPERATIONS:
        return
    what = f"{method} {path} answered {response.status_code}"
    assert str(response.status_code) in operation["responses"], f"{what}, which is not documented"
    answer = resolved(operation["responses"][str(response.status_code)])
    for name, header in answer.get("headers", {}).items():
        known = resolved(header)
        value = response.headers.get(name)
        if value is None:
            assert not known.get("required"), f"{what} without {name}"
        else:
            is_number = known["schema"].get("type") == "integer"
            jsonschema_rs.validate(known["schema"], int(value) if is_number else value)
    if response.is_json and "application/json" in answer.get("content", {}):
        validator = _validator(operation["operationId"], str(response.status_code))
        for error in validator.iter_errors(response.get_json()):
            raise AssertionError(f"{what}, and {error}")


@cache
def _validator(operation_id: str, status: str) -> Any:
    """For an operation's answer; strict: a member that is not documented is refused."""
    (operation,) = (each for *_, each in _operations() if each["operationId"] == operation_id)
    answer = resolved(operation["responses"][status])
    schema = answer["content"]["application/json"]["schema"]
    components = {"schemas": {}}
    for name, each in the_document()["components"]["schemas"].items():
        is_open = "properties" in each and "additionalProperties" not in each
        components["schemas"][name] = each | ({"additionalProperties": False} if is_open else {})
    return jsonschema_rs.Draft202012Validator({**schema, "components": components})


def checked(client_class: type[FlaskClient]) -> type[FlaskClient]:
    """A test client that asserts that each of its answers is documented."""

    class Checked(client_class):  # type: ignore[valid-type,misc]
        is_checked = True

        def open(self, *args: Any, **kwargs: Any) -> TestResponse:
            response: TestResponse = super().open(*args, **kwargs)
            if self.is_checked:
                assert_documented(response.request.method, response.request.path, response)
            return response

    return Checked
