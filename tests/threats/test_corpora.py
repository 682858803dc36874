"""Inputs that other people collected to break programs, all the way through the API (J11, J12).

They are not part of the project: HOOKJETTY_CORPORA names the folder, or these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest
from flask import Flask

from app.db import db
from app.models import Endpoint
from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX, Caller
from tests.dispatching import add_endpoint, all_done, parse_request, running_engine, wait_until
from tests.hostile import OK, Receiver, answer
from tests.test_strictjson import REFUSED_ON_PURPOSE

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def corpora() -> Path:
    folder = os.environ.get("HOOKJETTY_CORPORA")
    if not folder:
        pytest.skip("HOOKJETTY_CORPORA names no folder of inputs from other projects")
    return Path(folder)


@pytest.fixture
def naughty(corpora: Path) -> list[str]:
    """The big list of naughty strings, each once."""
    strings = list(dict.fromkeys(json.loads((corpora / "blns.json").read_text())))
    assert len(strings) > 500
    return strings


@pytest.fixture
def publisher(client, mint) -> Caller:
    scopes = ["webhooks:read", "webhooks:write", "events:write"]
    return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=scopes))


# ---------------------------------------------------------------------------------- JSONTestSuite


def test_j11_all_of_the_json_test_suite_is_published_or_refused_and_j12_comes_out_as_it_was(
    corpora, publisher
):
    """y_ accepted, or refused on purpose; n_ refused; i_ either. What is accepted is delivered."""
    accepted: dict[str, bytes] = {}
    seen: list[bytes] = []
    files = 0
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url())
        with tarfile.open(corpora / "JSONTestSuite.tar.gz") as suite:
            for member in suite:
                content = suite.extractfile(member)
                if content is None:
                    continue
                files += 1
                name, raw = Path(member.name).name, content.read()
                json_type = {"content_type": "application/json"}
                # As the whole body it is no event, whatever it is.
                assert publisher.post("/events", data=raw, **json_type).status_code == 400, name
                data = b'{"value":%b}' % raw
                body = b'{"type":"a","data":%b}' % data
                answered = publisher.post("/events", data=body, **json_type)
                assert answered.status_code in (202, 400), name
                if answered.status_code == 202:
                    assert not name.startswith("n_"), name
                    accepted[answered.json["event_id"]] = data
                else:
                    assert answered.json["details"], name
                    if name.startswith("y_"):
                        assert REFUSED_ON_PURPOSE[name] in answered.json["message"], name
        with running_engine():
            wait_until(all_done)
    assert files == 340
    assert len(accepted) > 95
    for event_id, data in accepted.items():
        shown = publisher.get(f"/events/{event_id}").get_data()
        assert shown.rstrip().endswith(b',"data":%b}' % data), data
    delivered = [parse_request(request) for request in seen]
    assert len(delivered) == len(accepted)
    for _, headers, body in delivered:
        assert body.endswith(b',"data":%b}' % accepted[headers["webhook-id"]])


# --------------------------------------------------------------------------------- naughty strings


def refused(answered) -> None:
    assert answered.status_code == 400, answered.text
    assert answered.json["error"] == "invalid_request"


def test_j11_every_naughty_string_in_an_event_is_kept_as_it_is_or_refused(naughty, publisher):
    kept = 0
    for text in naughty:
        answered = publisher.post("/events", {"type": text, "data": {}})
        if not re.fullmatch(r"[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*", text, re.ASCII):
            refused(answered)
        elif not text.startswith("hookjetty."):
            assert answered.status_code == 202, text
            assert publisher.get(f"/events/{answered.json['event_id']}").json["type"] == text
        body = {"type": "a", "data": {"text": text, text: 1}, "key": text}
        answered = publisher.post("/events", body)
        if answered.status_code != 202:
            refused(answered)
            assert not 1 <= len(text) <= 255 or "\x00" in text, text
            continue
        event_id = answered.json["event_id"]
        assert publisher.post("/events", body).json["event_id"] == event_id
        assert publisher.get(f"/events/{event_id}").json["data"] == body["data"]
        (key,) = db.execute_sql(
            "SELECT key FROM hookjetty.event_keys WHERE event_id = %s", (event_id[4:],)
        ).fetchone()
        assert key == text
        kept += 1
    assert kept > 480


def test_j11_every_naughty_string_of_an_endpoint_is_kept_as_it_is_or_refused(
    naughty, admin, app: Flask
):
    """By an admin, who is not limited in time; each for a tenant of its own."""
    vault = app.extensions["hookjetty"].registry.vault
    kept = {"url": 0, "secret": 0}
    for tenant_id, text in enumerate(naughty, 1):
        for number, given in enumerate(
            (
                {"url": text},
                {"url": f"https://{text}/"},
                {"url": f"https://example.com/{text}"},
                {"secret": text},
                {"events": [text]},
            )
        ):
            body = {"tenant_id": tenant_id, "url": f"https://example.com/{number}"} | given
            answered = admin.post("", body)
            assert answered.status_code in (201, 400, 409), (given, answered.text)
            if answered.status_code != 201:
                assert answered.json["msg"]
                continue
            row = Endpoint.get_by_id(answered.json["data"]["id"])
            assert answered.json["data"]["url"] == row.url == body["url"]
            if "secret" in given:
                assert vault.decrypt(row.secret, tenant_id) == text
                assert text not in row.secret
            for name in given.keys() & kept.keys():
                kept[name] += 1
                assert name == "secret" or getattr(row, name) == given[name]
    assert kept["url"] > 200
    assert kept["secret"] > 200


def test_j11_every_naughty_string_is_a_description_and_comes_back_as_it_was(naughty, publisher):
    made = publisher.post("/endpoints", {"url": "https://example.com/"}).json["endpoint_id"]
    kept = 0
    for text in naughty:
        db.execute_sql("DELETE FROM hookjetty.rate_limits")
        answered = publisher.post("/endpoints", {"endpoint_id": made, "description": text})
        if answered.status_code == 200:
            assert publisher.get(f"/endpoints/{made}").json.get("description", "") == text
            kept += 1
        else:
            refused(answered)
    assert kept > 400


def test_j11_every_naughty_string_in_a_header_a_path_and_a_query_is_answered(
    naughty, publisher, admin
):
    for text in naughty:
        raw = text.encode().decode("latin-1")  # as a server hands over what came in
        answered = publisher.get("/endpoints", environ_overrides={"HTTP_X_REQUEST_ID": raw})
        if re.fullmatch("[!-~]{1,255}", raw):
            assert answered.status_code == 200
            assert answered.headers["X-Request-Id"] == raw
        else:
            refused(answered)
        for headers in ({"HTTP_AUTHORIZATION": raw}, {"HTTP_AUTHORIZATION": f"Bearer {raw}"}):
            answered = publisher.client.get(f"{TENANT_PREFIX}/tasks", environ_overrides=headers)
            assert answered.status_code == 401
        for caller, path in ((publisher, "/endpoints"), (admin, "/tasks")):
            query = {"tenant_id": "7"} if caller is admin else {}
            answered = caller.get(path, query_string=query | {"cursor": text})
            assert answered.status_code == 400, text
        for path in ("/endpoints/", "/events/"):
            answered = publisher.get(path + quote(text, safe=""))
            assert answered.status_code in (400, 404, 405) or not text, (path, text)
            assert answered.mimetype == "application/json"
        assert admin.client.get(
            f"{ADMIN_PREFIX}?tenant_id={quote(text)}",
            headers={"Authorization": f"Bearer {admin.token}"},
        ).status_code in (200, 400)
