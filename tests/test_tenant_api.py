"""The tenant contract, section by section and line by line, and what is added to it.

Each test's docstring begins with the line of the contract that it holds the API to, so that
searching for a line finds its test. What the contract leaves open follows its section.
"""

# ruff: noqa: RUF002 - the contract has typographic hyphens, which are quoted
from __future__ import annotations

import json
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from app.db import db
from app.models import Endpoint, id_at, rfc3339
from tests.conftest import TENANT_PREFIX, Caller, execute
from tests.factories import attempt_rows, make_endpoint, publish, rows, task_rows

URL = "https://app/hook"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "a secret in plain words"

CALLS = [
    ("POST", "/endpoints", {"url": URL, "events": ["export.done"], "secret": SECRET}),
    ("GET", "/endpoints", None),
    ("POST", "/replay", {"endpoint_id": "ep_1", "from": "2025-10-05T06:00:00Z"}),
]
OTHER_CALLS = [
    ("GET", "/endpoints/ep_1", None),
    ("DELETE", "/endpoints/ep_1", None),
    ("POST", "/endpoints/ep_1/verify", None),
    ("POST", "/endpoints/ep_1/pause", None),
    ("POST", "/endpoints/ep_1/resume", None),
    ("POST", "/endpoints/ep_1/test", None),
    ("GET", "/endpoints/ep_1/secret", None),
    ("POST", "/endpoints/ep_1/secret/rotate", None),
    ("GET", "/events/evt_1", None),
    ("GET", "/tasks", None),
    ("GET", "/tasks/task_1", None),
    ("POST", "/tasks/task_1/retry", None),
    ("POST", "/tasks/task_1/cancel", None),
    ("POST", "/tasks/retry", {"status": "failed"}),
    ("GET", "/events/evt_1/why", None),
    ("POST", "/endpoints/ep_1/recover", {"since": "2025-10-05T06:00:00Z"}),
    ("GET", "/bulk-retries", None),
    ("GET", "/bulk-retries/blk_1", None),
    ("POST", "/bulk-retries/blk_1/cancel", None),
    ("GET", "/replays", None),
    ("GET", "/replays/rpl_1", None),
    ("POST", "/replays/rpl_1/cancel", None),
]


def answered(answer: TestResponse, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/json"
    return answer.json


def refusal(answer: TestResponse, status: int, code: str) -> str:
    """The message of an error, which has the contract's member and the added ones."""
    assert answer.status_code == status, answer.text
    assert answer.json["error"] == code
    assert set(answer.json) <= {"error", "message", "request_id", "details"}
    assert answer.json["request_id"] == answer.headers["X-Request-Id"]
    return answer.json["message"]


def invalid(answer: TestResponse) -> str:
    return refusal(answer, 400, "invalid_request")


def endpoint_row(endpoint_id: str) -> dict[str, Any]:
    number = int(endpoint_id.removeprefix("ep_"))
    return rows(db.execute_sql("SELECT * FROM hookjetty.endpoints WHERE id = %s", (number,)))[0]


def register(caller: Caller, status: int = 201, **fields: Any) -> dict[str, Any]:
    return answered(caller.post("/endpoints", {"url": URL} | fields), status)


def set_state(endpoint_id: str, **columns: Any) -> None:
    Endpoint.update(**columns).where(Endpoint.id == int(endpoint_id[3:])).execute()


# ------------------------------------------------------------------------------------ overview


class TestOverview:
    def test_the_base_url(self, client, mint):
        """`https://api.datajetty.com/api/v1/data-consumption/webhooks`"""
        headers = {"Authorization": f"Bearer {mint(tenant_id=7)}"}
        path = "/api/v1/data-consumption/webhooks/endpoints"
        assert client.get(path, headers=headers).status_code == 200

    def test_the_content_type(self, owner):
        """**Content Type** / `application/json`"""
        assert owner.get("/endpoints").content_type == "application/json"

    @pytest.mark.parametrize(("method", "path", "body"), [*CALLS, *OTHER_CALLS])
    def test_every_call_takes_a_bearer_token(self, client, mint, method, path, body):
        """Bearer tokens (Access → Authentication). `Authorization: Bearer <token>`"""
        for authorization in (None, "", "Bearer", "Bearer ", f"Basic {mint(tenant_id=7)}", "x"):
            headers = {} if authorization is None else {"Authorization": authorization}
            answer = client.open(TENANT_PREFIX + path, method=method, json=body, headers=headers)
            refusal(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        caller = Caller(client, TENANT_PREFIX, mint(tenant_id=7))
        assert caller.call(method, path, json=body).status_code not in (401, 403)

    def test_the_version_is_in_the_path(self, client, mint):
        """URI‑versioned (`/api/v1/`). Additive changes only."""
        headers = {"Authorization": f"Bearer {mint(tenant_id=7)}"}
        answer = client.get("/api/v2/data-consumption/webhooks/endpoints", headers=headers)
        refusal(answer, 404, "not_found")


# ----------------------------------------------------------------------------------- register


class TestRegisterEndpoint:
    """### Register Endpoint"""

    def test_creates(self, owner):
        """**Purpose:** Create/update endpoint"""
        made = register(owner, events=["export.done"], secret=SECRET)
        row = endpoint_row(made["endpoint_id"])
        assert (row["tenant_id"], row["url"], row["events"]) == (7, URL, ["export.done"])

    def test_updates(self, owner):
        """**Purpose:** Create/update endpoint"""
        made = register(owner, events=["export.done"])
        again = register(owner, 200, events=["import.done"])
        assert again["endpoint_id"] == made["endpoint_id"]
        assert endpoint_row(made["endpoint_id"])["events"] == ["import.done"]

    def test_is_a_post_to_endpoints(self, owner):
        """**Path:** `POST /endpoints`"""
        assert owner.post("/endpoints", {"url": URL}).status_code == 201

    def test_authorization_is_required(self, client):
        """| Authorization | Yes | Bearer token |"""
        answer = client.post(f"{TENANT_PREFIX}/endpoints", json={"url": URL})
        refusal(answer, 401, "unauthorized")

    def test_a_content_type_is_required(self, owner):
        """| Content‑Type | Yes | application/json |"""
        for content_type in (None, "text/plain", "application/x-www-form-urlencoded"):
            answer = owner.post(
                "/endpoints", data=json.dumps({"url": URL}), content_type=content_type
            )
            assert invalid(answer) == "Content-Type: must be application/json"
        answer = owner.post(
            "/endpoints",
            data=json.dumps({"url": URL}),
            content_type="application/json; charset=utf-8",
        )
        assert answer.status_code == 201

    def test_x_request_id_is_an_optional_idempotency_key(self, owner):
        """| X‑Request‑Id | Optional | Idempotency key |"""
        first = owner.post("/endpoints", {"url": URL}, headers={"X-Request-Id": "r-1"})
        again = owner.post("/endpoints", {"url": URL}, headers={"X-Request-Id": "r-1"})
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json == again.json
        assert again.headers["Idempotent-Replayed"] == "true"
        assert "Idempotent-Replayed" not in first.headers

    @pytest.mark.usefixtures("consent")
    def test_the_request(self, owner):
        """{ "url":"https://app/hook","events":["export.done"],"secret":"***"}"""
        body = {"url": "https://app/hook", "events": ["export.done"], "secret": SECRET}
        assert owner.post("/endpoints", body).status_code == 201

    def test_the_mask_in_the_contracts_example_is_no_secret(self, owner):
        """{ "url":"https://app/hook","events":["export.done"],"secret":"***"}"""
        body = {"url": "https://app/hook", "events": ["export.done"], "secret": "***"}
        assert invalid(owner.post("/endpoints", body)).startswith("secret: is a mask")

    @pytest.mark.usefixtures("consent")
    def test_the_response(self, owner):
        """{ "endpoint_id":"ep_7","status":"active"}"""
        made = register(owner, events=["export.done"], secret=SECRET)
        assert made == {"endpoint_id": made["endpoint_id"], "status": "active"}
        assert re.fullmatch(r"ep_[1-9][0-9]*", made["endpoint_id"])

    def test_a_new_endpoint_is_asked_for_its_consent_first(self, owner):
        """- Validates ownership via challenge handshake."""
        made = register(owner)
        row = endpoint_row(made["endpoint_id"])
        assert made["status"] == row["status"] == "pending"
        assert row["verified_at"] is None
        assert made["verification"] == {
            "failure": None,
            "next_try_at": rfc3339(row["handshake_at"]),
        }
        assert row["handshake_at"] <= datetime.now(UTC)

    # -- the wait for the handshake

    @pytest.mark.usefixtures("consent")
    def test_the_answer_waits_until_the_receiver_has_consented(self, owner):
        assert register(owner)["status"] == "active"

    def test_the_answer_does_not_wait_while_nobody_is_there_to_ask(self, owner):
        started = time.monotonic()
        assert register(owner)["status"] == "pending"
        assert time.monotonic() - started < 1

    def test_the_answer_does_not_wait_longer_than_3_seconds(self, owner, database):
        execute(database, "INSERT INTO hookjetty.dispatchers (id, host, pid) VALUES (1, 'x', 1)")
        started = time.monotonic()
        assert register(owner)["status"] == "pending"
        assert 2.5 < time.monotonic() - started < 4

    def test_the_answer_comes_at_once_when_the_handshake_failed(self, owner, database):
        execute(database, "INSERT INTO hookjetty.dispatchers (id, host, pid) VALUES (1, 'x', 1)")
        fail = """
            UPDATE hookjetty.endpoints
            SET handshake_failure = 'connect', handshake_at = now() + interval '5 s'
        """
        failing = threading.Timer(0.1, execute, (database, fail))
        failing.start()
        started = time.monotonic()
        made = register(owner)
        failing.join()
        assert time.monotonic() - started < 2
        assert (made["status"], made["verification"]["failure"]) == ("pending", "connect")
        assert made["verification"]["next_try_at"] > rfc3339(datetime.now(UTC))

    def test_at_most_two_wait_at_a_time(self, owner, app, database):
        execute(database, "INSERT INTO hookjetty.dispatchers (id, host, pid) VALUES (1, 'x', 1)")
        waits = app.extensions["hookjetty"].handshake_waits
        assert waits.acquire(blocking=False)
        assert waits.acquire(blocking=False)
        started = time.monotonic()
        assert register(owner)["status"] == "pending"
        assert time.monotonic() - started < 1

    # -- the fields

    def test_a_new_endpoint_needs_a_url_and_nothing_else(self, owner):
        assert invalid(owner.post("/endpoints", {})).startswith("url: is missing")
        row = endpoint_row(register(owner)["endpoint_id"])
        assert row["events"] == ["*"]

    def test_a_secret_is_made_up_when_absent_and_shown_once(self, owner, app):
        made = register(owner)
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", made["secret"])
        stored = endpoint_row(made["endpoint_id"])["secret"]
        assert made["secret"] not in stored
        vault = app.extensions["hookjetty"].registry.vault
        assert vault.decrypt(stored, tenant_id=7) == made["secret"]
        assert "secret" not in register(owner, 200)
        assert "secret" not in owner.get("/endpoints").text
        assert "secret" not in owner.get(f"/endpoints/{made['endpoint_id']}").text

    def test_bad_fields_are_named_all_at_once(self, owner):
        answer = owner.post("/endpoints", {"url": 7, "events": "x", "secret": 1, "color": "red"})
        invalid(answer)
        assert set(answer.json["details"]) == {"url", "events", "secret", "color"}

    def test_urls_that_may_not_be_called_are_refused_with_the_reason(self, owner):
        for url, reason in {
            "ftp://app/hook": "https://",
            "app/hook": "https://",
            "https://user:pw@app/hook": "user name",
            "https://app/a b": "whitespace",
            "https://app\\@evil/": "backslash",
            "https://%61pp/": "percent",
            "https://10.0.0.1/": "private",
            "https://[::1]/": "loopback",
            "https://localhost/": "loopback",
            "https://0x7f.1/": "number",
            "https://2130706433/": "number",
            "https://169.254.169.254/": "link-local",
            "https://app:0/": "port",
            "https://app:22/": "port",
            "http://app/hook": "http",
            "https://app/#x": "fragment",
            "https://app/" + "x" * 3000: "2048",
            "": "1 to 2048",
        }.items():
            answer = owner.post("/endpoints", {"url": url})
            assert reason in invalid(answer), url
            assert list(answer.json["details"]) == ["url"]
        assert Endpoint.select().count() == 0

    def test_event_types_are_a_list_of_patterns(self, owner):
        for events in (None, "x", [], ["x"] * 101, [1], ["ex*"], ["*.done"], ["a b"], ["a" * 129]):
            message = invalid(owner.post("/endpoints", {"url": URL, "events": events}))
            assert message.startswith("events"), events
        register(owner, events=["*", "export.*", "export.done", "A_1"])

    def test_the_canonical_url_is_what_is_unique(self, owner):
        made = register(owner, url="https://App/hook")
        again = register(owner, 200, url="HTTPS://APP:443/hook")
        assert again["endpoint_id"] == made["endpoint_id"]
        assert owner.get("/endpoints").json["items"][0]["url"] == "HTTPS://APP:443/hook"
        register(owner, 201, url="https://app/hook/")

    def test_the_101st_endpoint_is_refused(self, owner):
        for number in range(100):
            make_endpoint(7, f"https://app/{number}")
        assert "100 endpoints" in invalid(owner.post("/endpoints", {"url": URL}))
        register(owner, 200, url="https://app/7")

    def test_concurrent_registrations_do_not_exceed_the_limit(self, app, mint):
        for number in range(98):
            make_endpoint(7, f"https://app/{number}")
        answers: list[int] = []

        def add(number: int) -> None:
            caller = Caller(app.test_client(), TENANT_PREFIX, mint(tenant_id=7))
            answer = caller.post("/endpoints", {"url": f"https://app/new{number}"})
            answers.append(answer.status_code)
            db.give_up()

        threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [201, 201, 400, 400, 400, 400]

    # -- updates

    def test_absent_fields_stay(self, owner):
        made = register(owner, events=["export.done"], secret=SECRET)
        before = endpoint_row(made["endpoint_id"])
        register(owner, 200)
        after = endpoint_row(made["endpoint_id"])
        for column in ("url", "events", "secret", "retired_secrets"):
            assert after[column] == before[column]

    @pytest.mark.usefixtures("consent")
    def test_an_active_endpoint_stays_active_when_its_events_change(self, owner):
        made = register(owner, events=["export.done"])
        version = endpoint_row(made["endpoint_id"])["version"]
        assert register(owner, 200, events=["*"])["status"] == "active"
        assert endpoint_row(made["endpoint_id"])["version"] == version + 1
        assert register(owner, 200, events=["*"])["status"] == "active"
        assert endpoint_row(made["endpoint_id"])["version"] == version + 1, "nothing changed"

    @pytest.mark.usefixtures("consent")
    def test_the_endpoint_id_selects_one_so_that_its_url_can_change(self, owner):
        made = register(owner)
        set_state(made["endpoint_id"], failures=3, failing_since=datetime.now(UTC))
        version = endpoint_row(made["endpoint_id"])["version"]
        moved = {"endpoint_id": made["endpoint_id"], "url": "https://app/new"}
        assert answered(owner.post("/endpoints", moved))["endpoint_id"] == made["endpoint_id"]
        row = endpoint_row(made["endpoint_id"])
        assert (row["url"], row["url_key"]) == ("https://app/new", "https://app/new")
        assert (row["failures"], row["failing_since"]) == (0, None)
        assert row["version"] > version

    def test_a_url_of_another_of_the_tenants_endpoints_is_a_conflict(self, owner):
        first = register(owner)
        second = register(owner, url="https://app/other")
        moved = {"endpoint_id": second["endpoint_id"], "url": URL}
        message = refusal(owner.post("/endpoints", moved), 409, "version_conflict")
        assert first["endpoint_id"] in message

    @pytest.mark.usefixtures("consent")
    def test_a_disabled_endpoint_is_activated_by_a_handshake(self, owner):
        made = register(owner)
        set_state(made["endpoint_id"], status="disabled", reason="gone")
        assert register(owner, 200)["status"] == "active"
        assert endpoint_row(made["endpoint_id"])["reason"] is None

    @pytest.mark.usefixtures("consent")
    def test_a_paused_endpoint_stays_paused(self, owner):
        made = register(owner)
        set_state(made["endpoint_id"], status="paused")
        assert register(owner, 200, events=["x"])["status"] == "paused"
        moved = {"endpoint_id": made["endpoint_id"], "url": "https://app/new"}
        assert answered(owner.post("/endpoints", moved))["status"] == "paused"
        assert endpoint_row(made["endpoint_id"])["verified_at"] is None

    def test_a_pending_endpoint_is_asked_again_at_once(self, owner):
        made = register(owner)
        later = datetime.now(UTC) + timedelta(hours=1)
        set_state(
            made["endpoint_id"], handshake_at=later, handshake_tries=9, handshake_failure="dns"
        )
        register(owner, 200)
        row = endpoint_row(made["endpoint_id"])
        assert row["handshake_at"] < later - timedelta(minutes=59)
        assert (row["handshake_tries"], row["handshake_failure"]) == (0, None)

    def test_a_new_secret_takes_over_and_the_old_one_signs_on_for_24_hours(self, owner, app):
        made = register(owner, secret=SECRET)
        old = endpoint_row(made["endpoint_id"])["secret"]
        assert "secret" not in register(owner, 200, secret=OTHER_SECRET)
        row = endpoint_row(made["endpoint_id"])
        vault = app.extensions["hookjetty"].registry.vault
        assert vault.decrypt(row["secret"], tenant_id=7) == OTHER_SECRET
        (retired,) = row["retired_secrets"]
        assert retired["secret"] == old
        until = datetime.fromisoformat(retired["until"])
        assert timedelta(hours=23, minutes=59) < until - datetime.now(UTC) < timedelta(hours=24)

    def test_the_present_secret_in_another_spelling_changes_nothing(self, owner):
        made = register(owner, secret="k" * 24)
        before = endpoint_row(made["endpoint_id"])["secret"]
        register(owner, 200, secret="whsec_" + "a2tr" * 8)
        row = endpoint_row(made["endpoint_id"])
        assert (row["secret"], row["retired_secrets"]) == (before, [])

    def test_retired_secrets_that_are_over_or_too_many_are_forgotten(self, owner):
        made = register(owner, secret="secret number -1, long")
        db.execute_sql(
            "UPDATE hookjetty.endpoints SET retired_secrets = %s",
            ('[{"secret": "over", "until": "2025-01-01T00:00:00.000Z"}]',),
        )
        for number in range(12):
            register(owner, 200, secret=f"secret number {number}, long")
        retired = endpoint_row(made["endpoint_id"])["retired_secrets"]
        assert len(retired) == 10
        assert "over" not in [old["secret"] for old in retired]
        assert [old["until"] for old in retired] == sorted(
            (old["until"] for old in retired), reverse=True
        )

    def test_a_secret_that_cannot_be_read_any_more_can_be_replaced(self, owner):
        make_endpoint(7, URL)
        register(owner, 200, secret=SECRET)
        assert endpoint_row("ep_1")["retired_secrets"] == []

    def test_an_unknown_a_foreign_and_a_malformed_endpoint_id(self, owner, stranger):
        made = register(owner)
        for endpoint_id in ("ep_4711", made["endpoint_id"]):
            body = {"endpoint_id": endpoint_id, "events": ["x"]}
            refusal(stranger.post("/endpoints", body), 404, "not_found")
        for endpoint_id in (7, "7", "ep_", "ep_07", "ep_-1", "EP_7", "ep_9007199254740992", None):
            message = invalid(owner.post("/endpoints", {"endpoint_id": endpoint_id}))
            assert message.startswith("endpoint_id: "), endpoint_id
        assert endpoint_row(made["endpoint_id"])["events"] == ["*"]

    def test_two_tenants_may_register_the_same_url(self, owner, stranger):
        assert register(owner)["endpoint_id"] != register(stranger)["endpoint_id"]


# --------------------------------------------------------------------------------------- list


class TestListEndpoints:
    """### List Endpoints"""

    def test_lists_the_tenants_endpoints(self, owner, stranger):
        """**Purpose:** List tenant endpoints"""
        mine = register(owner)
        register(stranger)
        listed = answered(owner.get("/endpoints"))
        assert [item["endpoint_id"] for item in listed["items"]] == [mine["endpoint_id"]]

    def test_is_a_get_of_endpoints(self, owner):
        """**Path:** `GET /endpoints`"""
        assert owner.get("/endpoints").status_code == 200

    def test_authorization_is_required(self, client):
        """| Authorization | Yes | Bearer token |"""
        refusal(client.get(f"{TENANT_PREFIX}/endpoints"), 401, "unauthorized")

    def test_a_content_type_is_taken_and_not_missed(self, owner):
        """| Content‑Type | Yes | application/json |"""
        for content_type in (None, "application/json", "text/plain"):
            answered(owner.get("/endpoints", content_type=content_type))

    def test_x_request_id_is_echoed(self, owner):
        """| X‑Request‑Id | Optional | Idempotency key |"""
        answer = owner.get("/endpoints", headers={"X-Request-Id": "r-1"})
        assert answer.headers["X-Request-Id"] == "r-1"
        register(owner)
        again = owner.get("/endpoints", headers={"X-Request-Id": "r-1"})
        assert len(again.json["items"]) == 1, "a read is not a write that was repeated"

    def test_the_request(self, owner):
        """{}"""
        for data in (b"{}", b"", b"not json"):
            answered(owner.get("/endpoints", data=data, content_type="application/json"))

    @pytest.mark.usefixtures("consent")
    def test_the_response(self, owner):
        """{ "items":[{"endpoint_id":"ep_7","status":"active"}]}"""
        made = register(owner, events=["export.done"])
        listed = answered(owner.get("/endpoints"))
        (item,) = listed["items"]
        assert listed == {"items": [item], "next_cursor": None}
        assert item == {
            "endpoint_id": made["endpoint_id"],
            "status": "active",
            "url": URL,
            "events": ["export.done"],
            "created_at": item["created_at"],
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", item["created_at"])

    def test_pages_follow_one_another_without_gap_or_repeat(self, owner):
        """- Pagination supported."""
        made = [f"ep_{make_endpoint(7, f'https://app/{number}')}" for number in range(7)]
        seen: list[str] = []
        path = "/endpoints?limit=3"
        while path:
            answer = owner.get(path)
            page = answered(answer)
            seen += [item["endpoint_id"] for item in page["items"]]
            link = re.fullmatch(r'<(/[^>]+)>; rel="next"', answer.headers.get("Link", ""))
            assert bool(link) == bool(page["next_cursor"])
            path = link[1].removeprefix(TENANT_PREFIX) if link else ""
            assert not path or f"cursor={page['next_cursor']}" in path
            assert not path or "limit=3" in path
        assert seen == made

    def test_a_page_holds_50_and_at_most_200(self, owner):
        for number in range(60):
            make_endpoint(7, f"https://app/{number}")
        assert len(answered(owner.get("/endpoints"))["items"]) == 50
        assert len(answered(owner.get("/endpoints?limit=200"))["items"]) == 60
        for limit in ("0", "201", "-1", "x", "", "1.0", "1e1", "9" * 400):
            assert invalid(owner.get(f"/endpoints?limit={limit}")).startswith("limit: "), limit

    def test_a_bad_or_foreign_cursor_is_refused(self, owner, stranger):
        for tenant in (7, 8):
            for number in range(2):
                make_endpoint(tenant, f"https://app/{number}")
                publish(tenant)
        foreign = [
            stranger.get("/endpoints?limit=1").json["next_cursor"],
            owner.get("/tasks?limit=1").json["next_cursor"],
        ]
        mine = owner.get("/endpoints?limit=1").json["next_cursor"]
        altered = ("A" if mine[0] != "A" else "B") + mine[1:]
        for cursor in (*foreign, altered, mine + "=", mine[:-1], "", "x", "%00", "%ff", "a" * 9999):
            assert invalid(owner.get(f"/endpoints?cursor={cursor}")).startswith("cursor: "), cursor
        answered(owner.get(f"/endpoints?cursor={mine}"))

    def test_every_status_but_deleted_is_listed_whoever_made_it(self, owner, admin):
        admin.post("", {"tenant_id": 7, "url": URL})
        for status in ("pending", "active", "paused", "disabled", "deleted"):
            make_endpoint(7, f"https://app/{status}", status=status)
        items = answered(owner.get("/endpoints"))["items"]
        statuses = [item["status"] for item in items]
        assert statuses == ["active", "pending", "active", "paused", "disabled"]
        assert items[1]["verification"] == {"failure": None, "next_try_at": None}
        assert items[4]["reason"] == "gone"


# ------------------------------------------------------------------------------------- replay


class TestReplay:
    """### Replay"""

    @pytest.fixture
    def endpoint(self, database: str) -> str:  # noqa: ARG002 - it must be there
        return f"ep_{make_endpoint(7, URL)}"

    def start(self, caller: Caller, endpoint: str, watermark: Any = "2025-10-05T06:00:00Z") -> Any:
        return caller.post("/replay", {"endpoint_id": endpoint, "from": watermark})

    def row(self) -> dict[str, Any]:
        (row,) = rows(db.execute_sql("SELECT * FROM hookjetty.replays"))
        return row

    def test_replays_from_the_watermark_to_this_moment(self, owner, endpoint):
        """**Purpose:** Replay from watermark"""
        event_id, _ = publish()
        watermark = datetime.now(UTC) - timedelta(seconds=2)
        started = answered(self.start(owner, endpoint, rfc3339(watermark)), 202)
        row = self.row()
        assert (row["tenant_id"], f"ep_{row['endpoint_id']}") == (7, endpoint)
        assert f"rpl_{row['id']}" == started["replay_id"]
        assert row["from_id"] == id_at(datetime.fromisoformat(rfc3339(watermark)))
        assert row["cursor_id"] == row["from_id"] - 1
        assert event_id <= row["upto_id"] < id_at(datetime.now(UTC) + timedelta(seconds=2))

    def test_is_a_post_to_replay(self, owner, endpoint):
        """**Path:** `POST /replay`"""
        assert self.start(owner, endpoint).status_code == 202

    def test_authorization_is_required(self, client, endpoint):
        """| Authorization | Yes | Bearer token |"""
        body = {"endpoint_id": endpoint, "from": "2025-10-05T06:00:00Z"}
        refusal(client.post(f"{TENANT_PREFIX}/replay", json=body), 401, "unauthorized")

    def test_a_content_type_is_required(self, owner, endpoint):
        """| Content‑Type | Yes | application/json |"""
        body = json.dumps({"endpoint_id": endpoint, "from": "2025-10-05T06:00:00Z"})
        assert "Content-Type" in invalid(owner.post("/replay", data=body))

    def test_x_request_id_is_an_optional_idempotency_key(self, owner, endpoint):
        """| X‑Request‑Id | Optional | Idempotency key |"""
        body = {"endpoint_id": endpoint, "from": "2025-10-05T06:00:00Z"}
        first = owner.post("/replay", body, headers={"X-Request-Id": "r-1"})
        again = owner.post("/replay", body, headers={"X-Request-Id": "r-1"})
        assert answered(first, 202) == answered(again, 202)

    def test_the_request(self, owner, endpoint):
        """{ "endpoint_id":"ep_7","from":"2025-10-05T06:00:00Z"}"""
        for body, field in (
            ({"from": "2025-10-05T06:00:00Z"}, "endpoint_id"),
            ({"endpoint_id": endpoint}, "from"),
            ({"endpoint_id": 7, "from": "2025-10-05T06:00:00Z"}, "endpoint_id"),
            ({"endpoint_id": endpoint, "from": 7}, "from"),
        ):
            assert invalid(owner.post("/replay", body)).startswith(f"{field}: ")
        body = {"endpoint_id": endpoint, "from": "2025-10-05T06:00:00Z"}
        assert owner.post("/replay", body).status_code == 202

    def test_the_response(self, owner, endpoint):
        """{ "status":"started"}"""
        now = rfc3339(datetime.now(UTC) - timedelta(seconds=1))
        started = answered(self.start(owner, endpoint, now), 202)
        assert started == {"status": "started", "replay_id": started["replay_id"]}

    @pytest.mark.usefixtures("endpoint")
    def test_is_rate_limited(self, owner):
        """- Rate-limited; deliveries signed."""
        endpoints = [f"ep_{make_endpoint(7, f'https://app/{number}')}" for number in range(7)]
        answers = [self.start(owner, endpoint) for endpoint in endpoints]
        assert [answer.status_code for answer in answers] == [202] * 6 + [429]
        refusal(answers[-1], 429, "rate_limited")
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60

    # -- the watermark

    def test_times_are_rfc_3339(self, owner, endpoint):
        for text, moment in {
            "2026-01-02T03:04:05Z": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "2026-01-02t03:04:05.678z": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
            "2026-01-02T03:04:05.123456789-01:30": datetime(2026, 1, 2, 4, 34, 5, 123456, UTC),
            "2026-01-31T23:59:60Z": datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC),
        }.items():
            db.execute_sql("DELETE FROM hookjetty.replays")
            db.execute_sql("SELECT hookjetty.make_partitions('2025-12-29', 8)")
            answered(self.start(owner, endpoint, text), 202)
            assert self.row()["from_id"] == id_at(moment), text

    def test_what_is_no_time_is_refused_with_what_would_be(self, owner, endpoint):
        for text in (
            "", "yesterday", "2025-10-05", "2025-10-05T06:00:00", "2025-10-05 06:00:00Z",
            "20251005T060000Z", "2025-13-05T06:00:00Z", "2025-02-30T06:00:00Z",
            "0000-01-01T00:00:00Z", "2025-10-05T24:00:00Z", "2025-10-05T06:00:00+25:00",
            "2025-10-05T06:00:61Z", "\uff12025-10-05T06:00:00Z", "1759644000",
            "evt_", "evt_x", "evt_0", "evt_9007199254740992",
        ):  # fmt: skip
            db.execute_sql("DELETE FROM hookjetty.rate_limits")
            message = invalid(self.start(owner, endpoint, text))
            assert message.startswith("from: must be a time such as 2025-10-05T06:00:00Z"), text

    def test_an_event_is_a_watermark_that_includes_it(self, owner, endpoint):
        publish()
        event_id, _ = publish()
        answered(self.start(owner, endpoint, f"evt_{event_id}"), 202)
        assert self.row()["from_id"] == event_id

    def test_an_unknown_event_and_a_strangers_are_404(self, owner, endpoint):
        foreign, _ = publish(8)
        refusal(self.start(owner, endpoint, f"evt_{foreign}"), 404, "not_found")
        refusal(self.start(owner, endpoint, f"evt_{foreign + 1}"), 404, "not_found")

    def test_failing_since_is_when_the_endpoint_began_to_fail(self, owner, endpoint):
        message = invalid(self.start(owner, endpoint, "failing_since"))
        assert message == f"from: endpoint {endpoint} is not failing; name a time or an event"
        since = datetime.now(UTC).replace(microsecond=123000) - timedelta(minutes=1)
        set_state(endpoint, failures=1, failing_since=since)
        answered(self.start(owner, endpoint, "failing_since"), 202)
        assert self.row()["from_id"] == id_at(since)

    def test_the_future_is_refused(self, owner, endpoint):
        for text in ("2999-01-01T00:00:00Z", "9999-12-31T23:59:59.999999-23:59"):
            assert invalid(self.start(owner, endpoint, text)).startswith("from: is in the future")

    def test_before_the_retention_starts_at_the_oldest_and_says_so(self, owner, endpoint):
        (oldest,) = db.execute_sql(
            "SELECT min(from_id) FROM hookjetty.partitions WHERE parent = 'events'"
        ).fetchone()
        for watermark in ("2025-01-05T06:00:00Z", "0001-01-01T00:00:00+23:59", "evt_1"):
            db.execute_sql("DELETE FROM hookjetty.replays")
            started = answered(self.start(owner, endpoint, watermark), 202)
            assert self.row()["from_id"] == oldest
            assert "the oldest events kept are of" in started["message"]

    # -- one at a time

    def test_one_runs_per_endpoint(self, owner, endpoint):
        other = f"ep_{make_endpoint(7, 'https://app/other')}"
        answered(self.start(owner, endpoint), 202)
        message = refusal(self.start(owner, endpoint), 409, "version_conflict")
        assert endpoint in message
        answered(self.start(owner, other), 202)
        db.execute_sql("UPDATE hookjetty.replays SET status = 'finished', finished_at = now()")
        answered(self.start(owner, endpoint), 202)

    def test_endpoints_that_are_unknown_deleted_or_a_strangers_are_404(
        self, owner, stranger, endpoint
    ):
        deleted = f"ep_{make_endpoint(7, status='deleted')}"
        for caller, endpoint_id in ((owner, "ep_4711"), (owner, deleted), (stranger, endpoint)):
            refusal(self.start(caller, endpoint_id), 404, "not_found")

    def test_its_progress_can_be_read(self, owner, stranger, endpoint):
        replay_id = self.start(owner, endpoint).json["replay_id"]
        db.execute_sql("UPDATE hookjetty.replays SET events = 5, tasks = 3")
        read = answered(owner.get(f"/replays/{replay_id}"))
        assert read == {
            "replay_id": replay_id,
            "endpoint_id": endpoint,
            "status": "running",
            "from": read["from"],
            "to": read["to"],
            "progress": 0.0,
            "events": 5,
            "tasks": 3,
            "created_at": read["created_at"],
            "finished_at": None,
        }
        refusal(stranger.get(f"/replays/{replay_id}"), 404, "not_found")

    def test_it_can_be_canceled_until_it_has_finished(self, owner, stranger, endpoint):
        replay_id = self.start(owner, endpoint).json["replay_id"]
        refusal(stranger.post(f"/replays/{replay_id}/cancel"), 404, "not_found")
        for _ in range(2):
            canceled = answered(owner.post(f"/replays/{replay_id}/cancel"))
            assert canceled["status"] == "canceled"
            assert canceled["finished_at"] is not None
        again = self.start(owner, endpoint).json["replay_id"]
        db.execute_sql(
            "UPDATE hookjetty.replays SET status = 'finished', finished_at = now()"
            " WHERE status = 'running'"
        )
        refusal(owner.post(f"/replays/{again}/cancel"), 409, "version_conflict")


# -------------------------------------------------------------------------------- error model


class TestErrorModel:
    """## Error Model"""

    def test_400(self, owner):
        """| 400 | Bad Request | {"error":"invalid_request"} |"""
        refusal(owner.post("/endpoints", {"url": 7}), 400, "invalid_request")

    def test_401(self, client):
        """| 401 | Unauthorized | {"error":"unauthorized"} |"""
        headers = {"Authorization": "Bearer x.y.z"}
        refusal(client.get(f"{TENANT_PREFIX}/endpoints", headers=headers), 401, "unauthorized")

    @pytest.mark.parametrize(("method", "path", "body"), [*CALLS, *OTHER_CALLS])
    def test_403(self, client, mint, method, path, body):
        """| 403 | Forbidden | {"error":"forbidden"} |"""
        reads = method == "GET" and not path.endswith("/secret")
        other = "webhooks:write" if reads else "webhooks:read"
        for claims in (
            {"tenant_id": 7, "scopes": []},
            {"tenant_id": 7, "scopes": [other, "events:write", "WEBHOOKS:READ"]},
            {"role": "admin"},
            {"role": "service", "scopes": ["events:write", "webhooks:read", "webhooks:write"]},
            {},
        ):
            caller = Caller(client, TENANT_PREFIX, mint(**claims))
            refusal(caller.call(method, path, json=body), 403, "forbidden")

    def test_404(self, owner):
        """| 404 | Not Found | {"error":"not_found"} |"""
        refusal(owner.get("/endpoints/ep_4711"), 404, "not_found")

    def test_409(self, owner):
        """| 409 | Conflict | {"error":"version_conflict"} |"""
        headers = {"X-Request-Id": "r-1"}
        owner.post("/endpoints", {"url": URL}, headers=headers)
        answer = owner.post("/endpoints", {"url": f"{URL}/2"}, headers=headers)
        refusal(answer, 409, "version_conflict")

    def test_429(self, owner):
        """| 429 | Too Many Requests | {"error":"rate_limited"} |"""
        for _ in range(30):
            owner.post("/endpoints", {})
        answer = owner.post("/endpoints", {})
        refusal(answer, 429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 1

    def test_500(self, owner, monkeypatch):
        """| 500 | Internal Error | {"error":"internal_error"} |"""
        monkeypatch.setattr(Endpoint, "of", None)
        refusal(owner.get("/endpoints"), 500, "internal_error")

    def test_503(self, owner, database, server_url):
        """| 503 | Service Unavailable | {"error":"dependency_down"} |"""
        name = database.partition("?")[0].rpartition("/")[2]
        execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        execute(
            server_url,
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = %s",
            name,
        )
        answer = owner.get("/endpoints")
        refusal(answer, 503, "dependency_down")
        assert answer.headers["Retry-After"] == "1"
        execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        answered(owner.get("/endpoints"))


class TestRateLimits:
    """## Rate Limits"""

    @pytest.fixture
    def environ(self, environ: dict[str, str]) -> dict[str, str]:
        del environ["HOOKJETTY_RATE_LIMIT"]
        return environ

    def test_the_default(self, owner, stranger):
        """Documented per endpoint; defaults: 10 rps per tenant."""
        answers = [owner.get("/endpoints").status_code for _ in range(11)]
        assert answers == [200] * 10 + [429]
        answered(stranger.get("/endpoints"))


# ------------------------------------------------------------------- one endpoint, one task …


class TestOneEndpoint:
    def test_can_be_looked_at(self, owner, stranger):
        made = register(owner, events=["x"])
        read = answered(owner.get(f"/endpoints/{made['endpoint_id']}"))
        assert owner.get("/endpoints").json["items"][0].items() <= read.items()
        refusal(stranger.get(f"/endpoints/{made['endpoint_id']}"), 404, "not_found")

    def test_shows_since_when_it_fails(self, owner):
        made = register(owner)
        since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        set_state(made["endpoint_id"], failures=1, failing_since=since)
        read = owner.get(f"/endpoints/{made['endpoint_id']}").json
        assert read["failing_since"] == "2026-01-02T03:04:05.000Z"

    def test_can_be_deleted_once(self, owner, stranger):
        made = register(owner)["endpoint_id"]
        refusal(stranger.delete(f"/endpoints/{made}"), 404, "not_found")
        deleted = answered(owner.delete(f"/endpoints/{made}"))
        assert deleted == {"endpoint_id": made, "status": "deleted"}
        refusal(owner.delete(f"/endpoints/{made}"), 404, "not_found")
        refusal(owner.get(f"/endpoints/{made}"), 404, "not_found")
        assert register(owner)["endpoint_id"] != made

    @pytest.mark.usefixtures("consent")
    def test_is_verified_at_once_when_pending(self, owner):
        make_endpoint(7, URL, status="pending", handshake_failure="dns", handshake_tries=5)
        assert answered(owner.post("/endpoints/ep_1/verify")) == {
            "endpoint_id": "ep_1",
            "status": "active",
            "verifies_signatures": None,
        }

    def test_has_nothing_to_verify_when_active(self, owner):
        make_endpoint(7, URL)
        version = endpoint_row("ep_1")["version"]
        assert answered(owner.post("/endpoints/ep_1/verify"))["status"] == "active"
        assert endpoint_row("ep_1")["version"] == version

    def test_cannot_be_verified_when_paused_or_disabled_or_not_ones_own(self, owner, stranger):
        make_endpoint(7, "https://app/1", status="paused")
        make_endpoint(7, "https://app/2", status="disabled")
        for endpoint_id, word in (("ep_1", "paused"), ("ep_2", "disabled")):
            answer = owner.post(f"/endpoints/{endpoint_id}/verify")
            assert word in refusal(answer, 409, "version_conflict")
        refusal(stranger.post("/endpoints/ep_1/verify"), 404, "not_found")

    def test_malformed_ids_are_a_400(self, owner):
        for path in ("/endpoints/7", "/endpoints/ep_0", "/endpoints/ep_x", "/endpoints/evt_7",
                     "/endpoints/ep_%00", "/endpoints/ep_9007199254740992"):  # fmt: skip
            invalid(owner.get(path))
            invalid(owner.delete(path))
            invalid(owner.get(f"{path}/secret"))
            for verb in ("verify", "pause", "resume", "test", "secret/rotate"):
                invalid(owner.post(f"{path}/{verb}"))


class TestTasks:
    def test_are_listed_newest_first(self, owner):
        make_endpoint(7, URL)
        make_endpoint(8, URL)
        for _ in range(3):
            publish(7)
            publish(8)
        newest_first = [f"task_{row['id']}" for row in task_rows("tenant_id = 7")][::-1]
        first = answered(owner.get("/tasks?limit=2"))
        rest = answered(owner.get(f"/tasks?limit=2&cursor={first['next_cursor']}"))
        assert [task["task_id"] for task in first["items"] + rest["items"]] == newest_first
        assert rest["next_cursor"] is None

    def test_show_what_there_is_to_know(self, owner):
        endpoint = make_endpoint(7, URL)
        event_id, _ = publish(type="export.done")
        (task,) = answered(owner.get("/tasks"))["items"]
        assert task == {
            "task_id": f"task_{task_rows()[0]['id']}",
            "endpoint_id": f"ep_{endpoint}",
            "event_id": f"evt_{event_id}",
            "type": "export.done",
            "url": URL,
            "status": "pending",
            "failure": None,
            "tries": 0,
            "next_try_at": task["next_try_at"],
            "created_at": task["created_at"],
        }

    def test_can_be_narrowed_and_the_cursor_is_bound_to_that(self, owner):
        one, other = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
        publish()
        publish()
        by_endpoint = answered(owner.get(f"/tasks?endpoint_id=ep_{one}&limit=1"))
        assert [task["endpoint_id"] for task in by_endpoint["items"]] == [f"ep_{one}"]
        assert answered(owner.get("/tasks?status=failed"))["items"] == []
        assert len(answered(owner.get("/tasks?status=pending"))["items"]) == 4
        cursor = by_endpoint["next_cursor"]
        answered(owner.get(f"/tasks?endpoint_id=ep_{one}&cursor={cursor}"))
        for query in ("", f"endpoint_id=ep_{other}&", f"endpoint_id=ep_{one}&status=pending&"):
            assert "cursor" in invalid(owner.get(f"/tasks?{query}cursor={cursor}"))
        assert "endpoint_id" in invalid(owner.get("/tasks?endpoint_id=1"))
        assert "status" in invalid(owner.get("/tasks?status=x"))

    def test_come_with_their_attempts(self, owner, stranger):
        make_endpoint(7, URL)
        publish()
        task = task_rows()[0]["id"]
        db.execute_sql(
            "INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try, started_at,"
            " status_code, failure, resolve_us, connect_us, tls_us, first_byte_us, total_us,"
            " address, response_headers, response_body)"
            " SELECT hookjetty.new_id(), %s, 7, 1, n, '2026-01-02T03:04:05Z', 500, 'http_5xx',"
            " 1500, 2000, NULL, 3000, 4250, '192.0.2.1', 'server: x', 'oops'"
            " FROM generate_series(1, 2) n",
            (task,),
        )
        read = answered(owner.get(f"/tasks/task_{task}"))
        assert [attempt["try"] for attempt in read["attempts"]] == [1, 2]
        assert read["attempts"][0] == {
            "attempt_id": f"att_{attempt_rows()[0]['id']}",
            "try": 1,
            "started_at": "2026-01-02T03:04:05.000Z",
            "status_code": 500,
            "failure": "http_5xx",
            "timings_ms": {
                "resolve": 1.5, "connect": 2.0, "tls": None, "first_byte": 3.0, "total": 4.25
            },
            "address": "192.0.2.1",
            "request_headers": read["attempts"][0]["request_headers"],
            "response_headers": "server: x",
            "response_body": "oops",
            "truncated": False,
            "resent": False,
        }  # fmt: skip
        listed = owner.get("/tasks").json["items"][0]
        assert listed == {
            name: value
            for name, value in read.items()
            if name not in ("attempts", "request", "why")
        }
        refusal(stranger.get(f"/tasks/task_{task}"), 404, "not_found")
        refusal(owner.get("/tasks/task_4711"), 404, "not_found")
        invalid(owner.get(f"/tasks/{task}"))

    def test_only_the_latest_100_attempts_are_shown(self, owner):
        make_endpoint(7, URL)
        publish()
        task = task_rows()[0]["id"]
        db.execute_sql(
            "INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try)"
            " SELECT hookjetty.new_id() + (n << 12), %s, 7, 1, n FROM generate_series(1, 101) n",
            (task,),
        )
        attempts = answered(owner.get(f"/tasks/task_{task}"))["attempts"]
        assert [attempt["try"] for attempt in attempts] == list(range(2, 102))


class TestOneEvent:
    def test_shows_its_very_text_and_its_tasks(self, owner, stranger):
        make_endpoint(7, "https://app/1")
        make_endpoint(7, "https://app/2", status="paused")
        text = '{"b": 1.50, "a" : [1e2,\t"\\u00e9 é \\/"], "big": 12345678901234567890}'
        event_id, _ = db.execute_sql(
            "SELECT * FROM hookjetty.publish_event(7, 'export.done', %s)", (text,)
        ).fetchone()
        answer = owner.get(f"/events/evt_{event_id}")
        read = answered(answer)
        assert f'"data":{text}}}' in answer.text
        assert (read["event_id"], read["type"]) == (f"evt_{event_id}", "export.done")
        assert {task["status"] for task in read["tasks"]} == {"pending", "waiting"}
        assert read["tasks"] == owner.get("/tasks").json["items"]
        refusal(stranger.get(f"/events/evt_{event_id}"), 404, "not_found")
        refusal(owner.get("/events/evt_4711"), 404, "not_found")
        invalid(owner.get(f"/events/{event_id}"))

    def test_shows_the_tasks_of_endpoints_that_were_deleted_since(self, owner):
        make_endpoint(7, URL)
        event_id, _ = publish()
        owner.delete("/endpoints/ep_1")
        (task,) = answered(owner.get(f"/events/evt_{event_id}"))["tasks"]
        assert (task["endpoint_id"], task["status"]) == ("ep_1", "canceled")

    def test_may_have_no_tasks(self, owner):
        event_id, _ = publish()
        assert answered(owner.get(f"/events/evt_{event_id}"))["tasks"] == []
