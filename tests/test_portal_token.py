"""A short-lived token of a tenant's, for a page that shows it its own webhooks."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from app.db import db
from app.settings import load
from app.wsgi import create_app
from tests.conftest import ADMIN_PREFIX, JWT_SECRET, TENANT_PREFIX, Caller
from tests.factories import rows
from tests.test_admin_api import data_of, refusal

EVENT = {"type": "export.done", "data": {}}


def made(admin: Caller, **wanted: Any) -> dict[str, Any]:
    answer = admin.post("/tenants/portal-token", {"tenant_id": 7} | wanted)
    assert answer.headers["Cache-Control"] == "no-store"
    return data_of(answer, 201)


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, JWT_SECRET, ["HS256"], audience="hookjetty")


def test_it_acts_for_the_tenant_and_says_who_made_it(admin, client):
    answer = made(admin)
    assert (answer["tenant_id"], answer["scope"]) == (7, "webhooks:read webhooks:write")
    said = claims(answer["token"])
    assert (said["sub"], said["tenant_id"]) == ("portal:ada", 7)
    assert "role" not in said
    portal = Caller(client, TENANT_PREFIX, answer["token"])
    assert portal.post("/endpoints", {"url": "https://app/"}).status_code == 201
    (line,) = rows(
        db.execute_sql("SELECT * FROM hookjetty.audit WHERE action = 'register_endpoint'")
    )
    assert (line["tenant_id"], line["actor"], line["role"]) == (7, "portal:ada", "tenant")


def test_it_may_never_publish_nor_act_as_an_admin(admin, client):
    token = made(admin)["token"]
    assert Caller(client, TENANT_PREFIX, token).post("/events", EVENT).status_code == 403
    assert Caller(client, ADMIN_PREFIX, token).get("?tenant_id=7").status_code == 403
    for scope in ("events:write", "webhooks:read events:write"):
        body = {"tenant_id": 7, "scope": scope}
        message = refusal(admin.post("/tenants/portal-token", body), 400)
        assert message.startswith("scope: must be")
        assert "producers" in message


def test_it_may_be_for_looking_alone(admin, client):
    portal = Caller(client, TENANT_PREFIX, made(admin, scope="webhooks:read")["token"])
    assert portal.get("/endpoints").status_code == 200
    assert portal.post("/endpoints", {"url": "https://app/"}).status_code == 403


def test_it_holds_for_a_quarter_of_an_hour_or_as_asked_but_no_longer_than_an_hour(admin):
    for wanted, seconds in (({}, 900), ({"ttl_seconds": 1}, 1), ({"ttl_seconds": 3600}, 3600)):
        answer = made(admin, **wanted)
        said = claims(answer["token"]) if seconds > 1 else jwt.decode(
            answer["token"], options={"verify_signature": False}
        )  # fmt: skip
        assert said["exp"] - said["iat"] == seconds
        assert abs(said["exp"] - time.time() - seconds) < 5
        until = datetime.fromisoformat(answer["expires_at"]).timestamp()
        assert abs(until - said["exp"]) <= 1
    for ttl in (0, -1, 3601, "900", 1.5, True, None):
        body = {"tenant_id": 7, "ttl_seconds": ttl}
        assert refusal(admin.post("/tenants/portal-token", body), 400).startswith("ttl_seconds: ")


@pytest.mark.parametrize("scope", ["", " ", "webhooks:read  webhooks:write", "admin", "*", 7, None])
def test_what_is_no_scope_of_a_portal_is_refused(admin, scope):
    body = {"tenant_id": 7, "scope": scope}
    assert refusal(admin.post("/tenants/portal-token", body), 400).startswith("scope: ")


def test_its_kept_answer_is_sealed_and_repeated(admin):
    body, headers = {"tenant_id": 7}, {"X-Request-Id": "r"}
    first = admin.post("/tenants/portal-token", body, headers=headers)
    again = admin.post("/tenants/portal-token", body, headers=headers)
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    token = first.json["data"]["token"]
    (row,) = rows(db.execute_sql("SELECT * FROM hookjetty.idempotency_keys"))
    assert row["sealed"]
    assert token.rpartition(".")[2] not in row["answer"]
    (line,) = rows(db.execute_sql("SELECT * FROM hookjetty.audit"))
    assert (line["action"], line["tenant_id"]) == ("create_portal_token", 7)


def test_where_there_are_public_keys_alone_it_says_so(environ, tmp_path: Path):
    private = ec.generate_private_key(ec.SECP256R1())
    key = json.loads(ECAlgorithm.to_jwk(private.public_key())) | {"use": "sig", "alg": "ES256"}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key]}))
    del environ["HOOKJETTY_JWT_SECRET"]
    environ["HOOKJETTY_JWT_JWKS"] = str(tmp_path / "keys.json")
    app = create_app(load(environ))
    db.ready()
    said = {"sub": "ada", "aud": "hookjetty", "exp": time.time() + 60, "role": "admin"}
    admin = Caller(app.test_client(), ADMIN_PREFIX, jwt.encode(said, private, "ES256"))
    message = refusal(admin.post("/tenants/portal-token", {"tenant_id": 7}), 409)
    assert "HOOKJETTY_JWT_JWKS" in message
    assert rows(db.execute_sql("SELECT 1 FROM hookjetty.audit")) == []
