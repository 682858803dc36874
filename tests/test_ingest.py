"""The short way to publish answers as the views do, whatever it is sent."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from werkzeug.test import Client

from app import errors, ingest, ratelimit, strictjson
from app.db import db
from app.ingest import Ingest
from tests.conftest import TENANT_PREFIX, Caller
from tests.factories import make_endpoint, rows

EVENT = {"type": "export.done", "data": {"n": 1}}
BATCH = {"events": [EVENT, {"type": "import.done", "data": {"n": 2}, "key": "k"}]}


@pytest.fixture
def token(mint) -> str:
    return mint(tenant_id=7, scopes=["events:write"])


@pytest.fixture
def short(app, views, token) -> Caller:
    """Tenant 7; the views are never reached."""
    caller = Caller(app.test_client(), TENANT_PREFIX, token)
    caller.get("/events/evt_1")  # once the database was looked at, the short way is open
    app.wsgi_app._app = lambda *request: pytest.fail(f"left to a view: {request}")
    return caller


@pytest.fixture
def views(app, token) -> Caller:
    """Tenant 7; straight to the views."""
    return Caller(Client(app.wsgi_app._app), TENANT_PREFIX, token)


@pytest.fixture
def both(app, views, token) -> Caller:
    """Tenant 7, as it is."""
    caller = Caller(Client(app.wsgi_app), TENANT_PREFIX, token)
    caller.get("/events/evt_1")
    return caller


def event_rows() -> list[dict[str, Any]]:
    return rows(
        db.execute_sql(
            "SELECT tenant_id, type, data::text AS text, fanout FROM hookjetty.events ORDER BY id"
        )
    )


def clean() -> None:
    for table in ("events", "event_keys", "rate_limits"):
        db.execute_sql(f"DELETE FROM hookjetty.{table}")


def outcome(caller: Caller, path: str, body: bytes | str, **options: Any) -> Any:
    """All that an answer says but its ids, and what it did."""
    options = {"content_type": "application/json"} | options
    answer = caller.post(path, data=body, **options)
    said = {**(answer.json or {})}
    ids = [said.pop("event_id", None), *(item.pop("event_id") for item in said.get("items", ()))]
    said.pop("request_id", None)
    request_id = answer.headers.pop("X-Request-Id")
    assert request_id
    stored = event_rows()
    buckets = rows(db.execute_sql("SELECT key FROM hookjetty.rate_limits"))
    clean()
    headers = sorted(answer.headers)
    if answer.status_code < 300:
        headers.remove(("Content-Length", answer.headers["Content-Length"]))
        headers.append(("Content-Length", str(len(answer.data))))
    else:
        headers = [each for each in headers if each[0] != "Content-Length"]
    return answer.status, headers, said, len(set(filter(None, ids))), stored, buckets


# -------------------------------------------------------------------------------- the short way


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/events", EVENT),
        ("/events", EVENT | {"key": "k"}),
        ("/events", EVENT | {"tenant_id": 7}),
        ("/events", {"type": "x", "data": {"type": "y", "key": 'é\\"', "at": "12:00"}}),
        ("/events", {"type": "x", "data": {"a": "\u0001\ud83d\ude00", "n": [1e5, -0.0, 2**70]}}),
        ("/events/batch", BATCH),
        ("/events/batch", BATCH | {"tenant_id": 7}),
        ("/events/batch", {"events": [EVENT] * 200}),
    ],
)  # fmt: skip
def test_what_is_published_every_day_takes_the_short_way_and_is_answered_alike(
    short, views, path, body
):
    make_endpoint(7, "https://app/1", events=["export.*"])
    sent = json.dumps(body)
    assert outcome(short, path, sent) == outcome(views, path, sent)


def test_a_service_takes_it_too(short, mint):
    short.token = mint(role="service", scopes=["events:write"])
    for tenant in (7, 8):
        assert short.post("/events", EVENT | {"tenant_id": tenant}).status_code == 202
        assert short.post("/events/batch", BATCH | {"tenant_id": tenant}).status_code == 202
    assert [row["tenant_id"] for row in event_rows()] == [7, 7, 7, 8, 8, 8]


def test_a_known_key_is_answered_with_200(short):
    first = short.post("/events", EVENT | {"key": "k"})
    again = short.post("/events", EVENT | {"key": "k"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json == again.json


def test_the_text_of_the_data_is_kept(short):
    text = '{"z": 1.50,\n"a" :[1E2, 12345678901234567890, "\\u00e9é\\/"],"n":-0.0}'
    for body in (f'{{"data" : {text} , "type": "x"}}', f'{{"type":"x", "data":{text}}}'):
        assert short.post("/events", data=body, content_type="application/json").json
    batch = f'{{"events" : [ {{"data" : {text} , "type": "x"}}]}}'
    assert short.post("/events/batch", data=batch, content_type="application/json").json
    assert [row["text"] for row in event_rows()] == [text] * 3


def test_each_answer_has_a_request_id_of_its_own(short):
    ids = {short.post("/events", EVENT).headers["X-Request-Id"] for _ in range(3)}
    assert len(ids) == 3


# ------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "[]", "7", "null", '"x"', "{}x", "{}",
        '{"type":"x","type":"x","data":{}}',
        '{"type":"x","data":{},"d\\u0061ta":{"n":2}}',
        '{"type":"x","data":{"a":1,"a":2}}',
        '{"type":"x","data":{"a":{"b":1,"\\u0062":2}}}',
        '{"type":"x","data":{"a":1e400}}',
        '{"type":"x","data":{"a":0e99999}}',
        '{"type":"x","data":{"a":1e-20000}}',
        '{"type":"x","data":{"a":' + "9" * 1001 + "}}",
        '{"type":"x","data":{"a":0.' + "1" * 1001 + "}}",
        '{"type":"x","data":{"a":NaN}}',
        '{"type":"x","data":{"a":"\\u0000"}}',
        '{"type":"x","data":{"a":"\\ud800"}}',
        '{"type":"x","data":' + '{"a":' * 128 + "1" + "}" * 129,
        '{"type":"x","data":' + '{"a":' * 127 + "{}" + "}" * 128,
        '{"type":"x","data":' + '{"a":' * 126 + "{}" + "}" * 127,
        '{"type":"x","data":{"a":"' + "x" * 262_130 + '"}}',
        '{"type":"x","data":{"a":"' + "x" * 262_140 + '"}}',
        '{"type":"x","data":[]}', '{"type":"x","data":null}', '{"type":"x"}', '{"data":{}}',
        '{"type":"a b","data":{}}', '{"type":"hookjetty.x","data":{}}', '{"type":7,"data":{}}',
        '{"type":"' + "a" * 129 + '","data":{}}',
        '{"type":"x","data":{},"key":""}', '{"type":"x","data":{},"key":null}',
        '{"type":"x","data":{},"key":"' + "k" * 256 + '"}', '{"type":"x","data":{},"kye":"k"}',
        '{"type":"x","data":{},"tenant_id":8}', '{"type":"x","data":{},"tenant_id":true}',
        '{"type":"x","data":{},"tenant_id":7.0}', '{"type":"x","data":{},"tenant_id":"7"}',
        b'{"type":"x","data":{"a":"\xff"}}', b'\xef\xbb\xbf{"type":"x","data":{}}',
    ],
)  # fmt: skip
def test_whatever_is_sent_is_answered_as_the_views_answer(both, views, body):
    event = body if isinstance(body, bytes) else body.encode()
    for path, sent in (("/events", event), ("/events/batch", b'{"events":[%b]}' % event)):
        with_another = sent.replace(b'{"events":[', b'{"events":[{"type":"a","data":{}},')
        for each in {sent, with_another}:
            assert outcome(both, path, each) == outcome(views, path, each)


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer x.y.z"}},
        {"headers": {"Authorization": ""}},
        {"headers": {"X-Request-Id": "r 1"}},
        {"headers": {"Content-Encoding": "gzip"}},
        {"content_type": "text/plain"},
        {"content_type": "application/cloudevents+json"},
        {"content_type": ""},
        {"query_string": "dry_run=1"},
        {"method": "PUT"},
        {"input_stream": io.BytesIO(b"{"), "content_length": 2},
        {"input_stream": io.BytesIO(b'{"type":"x","data":{}}'), "content_length": 99},
    ],
)
def test_however_it_is_sent_it_is_answered_as_the_views_answer(both, views, options):
    outcomes = []
    for caller in (both, views):
        given_options = dict(options)
        stream = given_options.pop("input_stream", None)
        method = given_options.pop("method", "POST")
        if stream:
            given_options |= {"input_stream": io.BytesIO(stream.getvalue())}
        else:
            given_options |= {"data": json.dumps(EVENT)}
        answer = caller.call(
            method, "/events", **{"content_type": "application/json"} | given_options
        )
        said = dict(answer.json)
        said.pop("request_id", None)
        outcomes.append((answer.status, said.get("error"), said.get("message")))
    assert outcomes[0] == outcomes[1]


def test_those_who_may_not_publish_are_refused_by_the_views(both, mint):
    for claims, status in (
        ({"tenant_id": 7}, 403),
        ({"role": "admin", "scopes": ["events:write"]}, 403),
        ({"role": "service"}, 403),
        ({"role": "service", "scopes": ["events:write"]}, 400),
    ):
        both.token = mint(**claims)
        assert both.post("/events", EVENT).status_code == status
        assert both.post("/events/batch", BATCH).status_code == status
    assert event_rows() == []


def test_a_request_with_an_idempotency_key_is_done_once(both):
    answers = [both.post("/events", EVENT, headers={"X-Request-Id": "r"}) for _ in range(2)]
    assert answers[0].json == answers[1].json
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert len(event_rows()) == 1


def test_what_goes_wrong_later_is_worded_by_the_views(both, monkeypatch, caplog):
    for failure, status, code in (
        (errors.dependency_down(), 503, "dependency_down"),
        (ratelimit.too_many_events(1.5, 1000), 429, "rate_limited"),
        (errors.invalid("type", "no"), 400, "invalid_request"),
        (RuntimeError("secret"), 500, "internal_error"),
    ):
        monkeypatch.setattr(ingest, "publish_within_limit", mock.Mock(side_effect=failure))
        answer = both.post("/events", EVENT)
        assert (answer.status_code, answer.json["error"]) == (status, code)
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]
        assert "secret" not in answer.text
    assert "internal error" in caplog.text
    assert both.get("/endpoints").status_code == 403, "and only that request"


def test_a_body_that_breaks_off_is_met_again_by_the_view(both):
    class Broken:
        def read(self, *_: Any) -> bytes:
            raise OSError("reset by peer")

    answer = both.post(
        "/events",
        content_type="application/json",
        content_length=10,
        environ_overrides={"wsgi.input": Broken()},
    )
    assert answer.status_code == 400
    assert answer.json["message"].startswith("body: ")


def test_nothing_is_published_before_the_database_was_looked_at(app, mint, monkeypatch):
    """Only a view finds out that the schema is another one; it then says so."""
    service = app.extensions["hookjetty"]
    service.is_checked = False
    db.execute_sql("UPDATE hookjetty.schema_version SET version = 0")
    caller = Caller(app.test_client(), TENANT_PREFIX, mint(tenant_id=7, scopes=["events:write"]))
    assert caller.post("/events", EVENT).status_code == 503


def test_the_app_is_wrapped(app):
    assert isinstance(app.wsgi_app, Ingest)


# ------------------------------------------------------------- plain JSON: orjson against our own


def agrees(raw: bytes) -> None:
    """What is called plain is what ``loads`` reads, or is refused for a repeated key alone."""
    plain = strictjson.plain_object(raw)
    if plain is None:
        return
    refusal = ""
    try:
        strict = strictjson.loads(raw)
    except errors.Error as refused:
        strict, refusal = json.loads(raw), refused.message
    assert refusal == "" or "is there twice" in refusal, raw
    assert repr_of(plain) == repr_of(strict), raw


def repr_of(value: Any) -> str:
    """With numbers as PostgreSQL or a receiver will read them: orjson makes 2**64 a float."""
    return json.dumps(value, sort_keys=True, default=str) if not _has_big(value) else ""


def _has_big(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_big, value.values()))
    if isinstance(value, list):
        return any(map(_has_big, value))
    return isinstance(value, (int, float)) and abs(value) >= 2**63


pieces = some.sampled_from([
    "{", "}", "[", "]", ",", ":", '"', '"a"', '"a":', '"b" :1', "1", "-", "0", ".5", "e9999", "E+4",
    "1e1001", "1e308", "9" * 310, "0" * 1001, "null", "true", "NaN", "\\", "\\u0000", "\\ud800",
    "é", "\x00", "\x7f", "\ufeff", " ", "\n", "\x0c", '"type"', '"data":{}',
])  # fmt: skip


@settings(deadline=None, max_examples=500)
@given(text=some.lists(pieces, max_size=12).map("".join), wrap=some.booleans())
def test_no_text_is_plain_that_is_not_strict(text, wrap):
    agrees((f'{{"type":"x","data":{{"a":{text}}}}}' if wrap else text).encode())


values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=5)
    | some.floats(allow_nan=False, allow_infinity=False),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=3), inner),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(
    value=some.dictionaries(some.text(max_size=3), values, max_size=4), ascii_only=some.booleans()
)
def test_plain_values_are_the_strict_ones(value, ascii_only):
    agrees(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


def test_nesting_is_counted_as_the_strict_reader_counts():
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for levels in range(125, 131):
            raw = b'{"a":' + opening * levels + b"1" + closing * levels + b"}"
            agrees(raw)
            assert (strictjson.plain_object(raw) is not None) == (levels < 128)
    wide = json.dumps({"a": [{}] * 500}).encode()
    assert strictjson.plain_object(wide) == json.loads(wide)


def test_the_json_test_suite_is_read_alike():
    folder = os.environ.get("HOOKJETTY_CORPORA")
    if not folder:
        pytest.skip("HOOKJETTY_CORPORA names no folder of inputs from other projects")
    with tarfile.open(Path(folder) / "JSONTestSuite.tar.gz") as suite:
        for member in suite:
            content = suite.extractfile(member)
            if content is not None:
                raw = content.read()
                agrees(raw)
                agrees(b'{"data":%b}' % raw)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=some.dictionaries(some.text(max_size=3), values, max_size=4), text=some.data())
def test_damaged_events_are_answered_as_the_views_answer(both, views, data, text):
    body = json.dumps({"type": "x", "data": data, "key": "k"}, ensure_ascii=False)
    for _ in range(text.draw(some.integers(0, 2))):
        at = text.draw(some.integers(0, len(body)))
        cut = text.draw(some.integers(0, 2))
        body = body[:at] + text.draw(pieces) + body[at + cut :]
    sent = body.encode("utf-8", "surrogatepass")
    assert outcome(both, "/events", sent) == outcome(views, "/events", sent)
    batch = b'{"events":[%b]}' % sent
    assert outcome(both, "/events/batch", batch) == outcome(views, "/events/batch", batch)
