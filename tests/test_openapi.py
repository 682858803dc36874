"""The OpenAPI document: valid, whole, kept in docs/, and served; and nothing of it is a secret.

Whether it is true is for tests/documented.py, through which every test of the API looks at it, and
for tests/test_schemathesis.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import errors
from app.blueprints.common import notes
from app.blueprints.documentation import as_json, document
from docs.generate import files
from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX
from tests.documented import resolved, the_document

DOCUMENT = the_document()
OPERATIONS = [
    pytest.param(path, method, operation, id=operation["operationId"])
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
every_operation = pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)


def test_the_files_in_docs_are_what_make_openapi_writes():
    for path, text in files().items():
        assert path.read_text() == text, f"{path.name} is out of date: make openapi"


def test_it_is_valid_openapi_3_1():
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_it_has_every_route_and_no_other(app: Flask):
    there = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {parameters.values[:2] for parameters in OPERATIONS} == there


def test_operation_ids_are_unique_and_begin_with_the_surface():
    ids = [parameters.id for parameters in OPERATIONS]
    assert len(set(ids)) == len(ids)
    for path, _, operation in (parameters.values for parameters in OPERATIONS):
        is_admins = path.startswith(ADMIN_PREFIX)
        assert operation["operationId"].startswith("admin_") == is_admins


@every_operation
def test_an_operation_says_what_it_is_for(path, method, operation):
    assert operation["summary"]
    assert not operation["summary"].endswith(".")
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}


@every_operation
def test_an_operation_has_the_errors_that_its_surface_can_answer(path, method, operation):
    answers = set(operation["responses"])
    assert answers >= {"400", "500"}
    if path.startswith((TENANT_PREFIX, ADMIN_PREFIX)):
        assert answers >= {"401", "403", "503"}
        assert operation["security"]
        assert (
            ("429" in answers)
            == path.startswith(TENANT_PREFIX)
            == bool(operation.get("x-rate-limit"))
        )
    else:
        assert operation["security"] == []
    prefix = "admin_" if path.startswith(ADMIN_PREFIX) else ""
    for status, answer in operation["responses"].items():
        if int(status) >= 400:
            (code,) = (code for code, each in errors.STATUS_OF_CODE.items() if str(each) == status)
            assert answer == {"$ref": f"#/components/responses/{prefix}{code}"}
    if "{" in path:
        assert "404" in answers


@every_operation
def test_a_write_can_be_made_idempotent(path, method, operation):
    keys = [resolved(each) for each in operation["parameters"]]
    (key,) = (each for each in keys if each["name"] == "X-Request-Id")
    assert ("idempotent" in key["description"]) == (method != "get")
    if method != "get":
        assert "409" in operation["responses"]
        for status, answer in operation["responses"].items():
            if int(status) < 400:
                assert "Idempotent-Replayed" in answer["headers"]


@every_operation
def test_a_page_has_bounds_and_a_link(path, method, operation):
    parameters = {each["name"]: each for each in map(resolved, operation["parameters"])}
    assert ("cursor" in parameters) == ("limit" in parameters)
    if "limit" in parameters:
        assert "Link" in operation["responses"]["200"]["headers"]
        schema = parameters["limit"]["schema"]
        assert (schema["minimum"], schema["maximum"]) == (1, 200)


@every_operation
def test_examples_are_instances_of_their_schemas(path, method, operation):
    for where, media in _contents(operation):
        if "example" in media:
            validator = _validator(media["schema"])
            assert list(validator.iter_errors(media["example"])) == [], where
        else:
            assert "application/json" not in where


def _contents(operation: dict[str, Any]) -> Any:
    holders = {"body": operation.get("requestBody", {}), **operation["responses"]}
    for name, holder in holders.items():
        for kind, media in resolved(holder).get("content", {}).items():
            yield f"{name} {kind}", media


def _validator(schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator(schema | {"components": DOCUMENT["components"]})


def test_webhooks_say_what_receivers_get():
    assert {"event", "endpoint.challenge"} <= set(DOCUMENT["webhooks"])
    for methods in DOCUMENT["webhooks"].values():
        operation = methods["post"]
        headers = {each["name"] for each in operation["parameters"]}
        assert headers == {
            "webhook-id",
            "webhook-timestamp",
            "webhook-signature",
            "webhook-attempt",
            "webhook-replay",
        }
        media = operation["requestBody"]["content"]["application/json"]
        assert list(_validator(media["schema"]).iter_errors(media["example"])) == []


def test_it_has_no_secret_that_looks_like_one(app: Flask):
    for text in (*files().values(), as_json(document(app))):
        assert not re.search(r"whsec_[A-Za-z0-9+/]{8}", text)
        assert not re.search(r"eyJ[A-Za-z0-9_-]{8}", text)
        for name in ("HOOKJETTY_JWT_SECRET", "HOOKJETTY_SECRET_KEYS", "postgresql://"):
            assert name not in text


# --------------------------------------------------------------------------------- as served


def test_it_is_served_without_a_token(client, app: Flask):
    answer = client.get("/openapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert answer.data.decode() == as_json(document(app))
    assert answer.json["servers"][0]["url"] == "/"


def test_it_is_made_once(client, monkeypatch):
    first = client.get("/openapi.json").data
    monkeypatch.setattr("app.blueprints.documentation.document", lambda _: pytest.fail("again"))
    assert client.get("/openapi.json").data == first


class Page(HTMLParser):
    """What a page has in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_fetches_nothing_and_runs_nothing(client):
    answer = client.get("/docs")
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    page = Page(answer.text)
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "form",
    } == set()
    for _, attributes in page.tags:
        assert not {"style", "src", "srcset"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        href = attributes.get("href", "#")
        assert href.startswith("#") or href == "/openapi.json"


def test_the_page_has_every_operation_and_webhook_where_its_links_lead(client):
    page = Page(client.get("/docs").text)
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"} - {
        "openapi.json"
    }
    assert links <= anchors
    assert {parameters.id for parameters in OPERATIONS} <= links
    assert {f"webhook-{name}" for name in DOCUMENT["webhooks"]} <= anchors


def test_the_pages_style_is_the_one_that_its_policy_allows(client):
    answer = client.get("/docs")
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["Content-Security-Policy"]


def test_every_view_of_both_surfaces_says_who_may_call_it(app: Flask):
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith((TENANT_PREFIX, ADMIN_PREFIX)):
            assert notes(app.view_functions[rule.endpoint])["caller"].lets_in


def test_the_document_is_json_that_every_reader_takes():
    assert json.loads(as_json(DOCUMENT)) == DOCUMENT
