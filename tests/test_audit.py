"""The log of people's actions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from app import audit, pages
from app.db import db
from app.models import AuditLine, id_at, id_time, rfc3339
from dispatcher import jobs
from tests.conftest import TENANT_PREFIX, Caller
from tests.factories import make_endpoint, publish, rows, task_rows
from tests.test_admin_api import data_of, is_rfc3339, refusal

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def lines() -> list[dict[str, Any]]:
    """The log as it is stored."""
    return rows(db.execute_sql("SELECT * FROM hookjetty.audit ORDER BY id"))


def done() -> list[tuple[int | None, str, str | None]]:
    """Whose things, what, to which."""
    return [(line["tenant_id"], line["action"], line["object"]) for line in lines()]


def log(admin: Caller, **query: object) -> Any:
    asked = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
    return data_of(admin.get(f"/audit?{asked}"))


# ------------------------------------------------------------------------------------ what is in it


def test_a_line_says_who_did_what_to_which_thing_when_and_from_where(admin, owner):
    endpoint = make_endpoint()
    owner.delete(
        f"/endpoints/ep_{endpoint}",
        headers={"X-Request-Id": "r-1", "X-Forwarded-For": "203.0.113.9"},
        environ_base={"REMOTE_ADDR": "192.0.2.7"},
    )
    (line,) = log(admin, tenant_id=7)
    assert is_rfc3339(line.pop("created_at"))
    assert type(line.pop("id")) is int
    assert line == {
        "tenant_id": 7,
        "actor": "olga",
        "role": "tenant",
        "action": "delete_endpoint",
        "object": f"ep_{endpoint}",
        "address": "192.0.2.7",
        "request_id": "r-1",
        "status_code": 200,
    }


def test_every_write_of_both_surfaces_is_in_it(admin, owner):
    owner.post("/endpoints", {"url": "https://app/1"})
    owner.post("/endpoints/ep_1/verify")
    admin.post("", {"tenant_id": 7, "url": "https://app/2"})
    publish()
    task = task_rows()[0]["id"]
    owner.post("/replay", {"endpoint_id": "ep_2", "from": "2025-10-05T06:00:00Z"})
    owner.post("/replays/rpl_1/cancel")
    admin.post("/tasks/retry", {"id": task})
    admin.post("/delete", {"id": 2})
    owner.delete("/endpoints/ep_1")
    admin.post("/tenants/limits", {"tenant_id": 7, "endpoints": 5})
    admin.post("/tenants/portal-token", {"tenant_id": 7})
    admin.post("/operator/endpoints", {"url": "https://ops/"})
    admin.post("/delete", {"id": 3})
    admin.post("/event-types", {"name": "task_1"})
    admin.post("/event-types/delete", {"name": "task_1"})
    owner.post("/tasks/retry", {"status": "failed"})
    assert done() == [
        (7, "register_endpoint", "ep_1"),
        (7, "verify_endpoint", "ep_1"),
        (7, "create_endpoint", "ep_2"),
        (7, "start_replay", "rpl_1"),
        (7, "cancel_replay", "rpl_1"),
        (7, "retry_task", f"task_{task}"),
        (7, "delete_endpoint", "ep_2"),
        (7, "delete_endpoint", "ep_1"),
        (7, "limit_tenant", "7"),
        (7, "create_portal_token", None),
        (0, "create_operator_endpoint", "ep_3"),
        (0, "delete_endpoint", "ep_3"),
        (None, "save_event_type", "task_1"),
        (None, "delete_event_type", "task_1"),
        (7, "start_bulk_retry", "blk_1"),
    ]
    assert {(line["actor"], line["role"]) for line in lines()} == {
        ("olga", "tenant"),
        ("ada", "admin"),
    }


def test_every_route_that_writes_is_an_action_but_publishing(app):
    """A new one that is not made by ``idempotent`` fails here."""
    unaudited = {
        rule.endpoint.rpartition(".")[2]
        for rule in app.url_map.iter_rules()
        if (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
        and not _is_audited(app.view_functions[rule.endpoint])
    }
    assert unaudited == {"publish_event", "publish_events"}


def _is_audited(view: Any) -> bool:
    while view is not None:
        if getattr(view, "is_audited", False):
            return True
        view = getattr(view, "__wrapped__", None)
    return False


def test_publishing_and_looking_are_not_in_it(admin, owner, client, mint, producer):
    event = {"type": "export.done", "data": {}}
    publisher = Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=["events:write"]))
    for headers in ({}, {"X-Request-Id": "r"}):
        publisher.post("/events", event, headers=headers)
        producer.post("/events/batch", {"events": [event], "tenant_id": 7}, headers=headers)
    owner.get("/endpoints")
    admin.get("?tenant_id=7")
    assert done() == []


def test_what_is_refused_changes_nothing_and_is_not_in_it(admin, owner, client):
    owner.delete("/endpoints/ep_1")
    owner.post("/endpoints", {"url": "ftp://app/"})
    admin.post("/tasks/retry", {"id": 1})
    client.post("/api/webhooks", json={})
    assert done() == []


def test_a_repeat_is_no_second_action(owner):
    body = {"url": "https://app/"}
    for _ in range(3):
        owner.post("/endpoints", body, headers={"X-Request-Id": "r"})
    assert done() == [(7, "register_endpoint", "ep_1")]


@pytest.mark.parametrize("headers", [{}, {"X-Request-Id": "r"}], ids=["plain", "keyed"])
def test_action_and_line_are_one_transaction(owner, monkeypatch, headers):
    def fail(_action: audit.Action) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(audit, "note", fail)
    assert owner.post("/endpoints", {"url": "https://app/"}, headers=headers).status_code == 500
    assert rows(db.execute_sql("SELECT 1 FROM hookjetty.endpoints")) == []


def test_no_secret_url_or_body_is_in_it(admin, owner):
    body = {"url": "https://app/canary-in-a-url", "secret": SECRET, "events": ["canary.done"]}
    owner.post("/endpoints", body, headers={"X-Request-Id": "r"})
    made = admin.post("", {"tenant_id": 7, "url": "https://app/other-canary"}).json["data"]
    token = admin.post("/tenants/portal-token", {"tenant_id": 7}).json["data"]["token"]
    text = str(lines())
    assert len(lines()) == 3
    for canary in ("canary", SECRET, made["secret"], token):
        assert canary not in text


def test_a_look_at_a_secret_is_in_it(owner):
    made = owner.post("/endpoints", {"url": "https://app/"}).json
    assert owner.get("/endpoints/ep_1/secret").json["secret"] == made["secret"]
    owner.get("/endpoints/ep_2/secret")
    assert done() == [(7, "register_endpoint", "ep_1"), (7, "reveal_secret", "ep_1")]
    assert made["secret"] not in str(lines())


def test_an_actor_of_any_length_and_spelling_can_be_stored(client, mint):
    for subject in ("x" * 3000, "ä 'q\" \\ ☃", "a\tb"):
        caller = Caller(client, TENANT_PREFIX, mint(subject=subject, tenant_id=7))
        assert caller.post("/endpoints", {"url": "https://app/"}).status_code in (200, 201)
        assert lines()[-1]["actor"] == subject[:255]


# ---------------------------------------------------------------------------------- how it is read


@pytest.fixture
def many(database: str) -> list[int]:
    """A line for each second of five minutes, of two tenants and three people."""
    started = datetime(2026, 1, 1, tzinfo=UTC)
    ids = [id_at(started + timedelta(seconds=n)) for n in range(300)]
    AuditLine.insert_many(
        {
            "id": each,
            "tenant_id": 7 + n % 2,
            "actor": f"person {n % 3}",
            "role": "tenant",
            "action": "rare" if n == 10 else "frequent",
            "request_id": "r",
            "status_code": 200,
        }
        for n, each in enumerate(ids)
    ).execute()
    return ids


def walk(admin: Caller, query: str) -> tuple[list[int], int]:
    """All ids of a list, and how many pages it has."""
    seen, path, number = [], f"/audit?{query}", 0
    while path:
        answer = admin.get(path)
        seen += [each["id"] for each in data_of(answer)]
        number += 1
        cursor = answer.json["next_cursor"]
        path = f"/audit?{query}&cursor={cursor}" if cursor else ""
        assert ("Link" in answer.headers) == bool(cursor)
    return seen, number


def test_it_is_a_keyset_newest_first(admin, many):
    assert walk(admin, "limit=70") == (many[::-1], 5)


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ("tenant_id=7", lambda n: n % 2 == 0),
        ("actor=person%201", lambda n: n % 3 == 1),
        ("tenant_id=8&actor=person%201", lambda n: n % 6 == 1),
        ("action=rare", lambda n: n == 10),
        ("from=2026-01-01T00:00:10Z&to=2026-01-01T01:00:20%2B01:00", lambda n: 10 <= n < 20),
        ("action=unknown", lambda _n: False),
        ("tenant_id=9", lambda _n: False),
    ],
)
@pytest.mark.parametrize("most_read", [20, 5000])
def test_it_can_be_narrowed_whatever_one_page_may_read(
    admin, many, query, chosen, most_read, monkeypatch
):
    monkeypatch.setattr(pages, "MOST_LOOKED_AT", most_read)
    expected = [many[n] for n in range(300) if chosen(n)][::-1]
    assert walk(admin, f"limit=7&{query}")[0] == expected


def test_what_is_rare_is_looked_for_a_bounded_way_at_a_time(admin, many, monkeypatch):
    monkeypatch.setattr(pages, "MOST_LOOKED_AT", 50)
    answer = admin.get("/audit?action=rare")
    assert data_of(answer) == []
    assert answer.json["next_cursor"] is not None
    assert walk(admin, "action=rare")[1] <= 7


def test_a_cursor_is_of_one_list(admin, many):
    cursor = admin.get("/audit?limit=5&tenant_id=7").json["next_cursor"]
    for query in ("tenant_id=8", "action=x", "", "from=2026-01-01T00:00:00Z"):
        assert refusal(admin.get(f"/audit?{query}&cursor={cursor}"), 400).startswith("cursor: ")


@pytest.mark.parametrize(
    "query",
    ["from=yesterday", "to=2026-01-01", "from=2026-13-01T00:00:00Z", "actor=", "action=", "limit=x",
     "from=2026-01-01T00:00:00", "from=20260101T000000Z", "actor=" + "x" * 256],
)  # fmt: skip
def test_what_narrows_nothing_is_refused(admin, query):
    assert refusal(admin.get(f"/audit?{query}"), 400).startswith(query.partition("=")[0])


# -------------------------------------------------------------------------------- how long it stays


def test_it_is_kept_as_long_as_the_setting_says(admin):
    now = datetime.now(UTC)
    for days in (1, 29, 31, 400):
        AuditLine.insert(
            id=id_at(now - timedelta(days=days)),
            actor=str(days),
            role="admin",
            action="x",
            request_id="r",
            status_code=200,
        ).execute()
    jobs.until_done(lambda: jobs.prune_step(30, 365))
    assert [line["actor"] for line in log(admin)] == ["1", "29", "31"]
    jobs.until_done(lambda: jobs.prune_step(30, 30))
    assert [line["actor"] for line in log(admin)] == ["1", "29"]
    assert log(admin)[0]["created_at"] == rfc3339(id_time(id_at(now - timedelta(days=1))))
