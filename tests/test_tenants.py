"""Tenants as an admin sees them, and the operator's own endpoints."""

from __future__ import annotations

from typing import Any

import pytest

from app.db import db
from tests.conftest import ADMIN_PREFIX, Caller
from tests.factories import make_endpoint, publish, rows
from tests.test_admin_api import NO_IDS, data_of, is_rfc3339, refusal

EVERYBODYS = {
    "requests_per_second": 10000,  # the tests' setting
    "registrations_per_minute": 30,
    "replays_per_minute": 6,
    "events_per_second": 1000,
    "endpoints": 100,
}
OPERATIONS = [
    ("GET", "/tenants", None),
    ("GET", "/tenants/detail?tenant_id=7", None),
    ("POST", "/tenants/limits", {"tenant_id": 7, "endpoints": 5}),
    ("POST", "/tenants/portal-token", {"tenant_id": 7}),
    ("POST", "/tenants/erase", {"tenant_id": 7}),
    ("GET", "/tenants/erasures", None),
    ("GET", "/audit", None),
    ("GET", "/operator/endpoints", None),
    ("POST", "/operator/endpoints", {"url": "https://ops/"}),
    ("GET", "/operator/tasks", None),
]


@pytest.mark.parametrize(("method", "path", "body"), OPERATIONS)
class TestEveryOperation:
    def test_is_for_admins_alone(self, client, mint, admin, method, path, body):
        assert refusal(client.open(ADMIN_PREFIX + path, method=method, json=body), 401)
        for claims in ({"tenant_id": 7, "role": "admin"}, {"role": "service"}):
            caller = Caller(client, ADMIN_PREFIX, mint(**claims))
            assert "role admin" in refusal(caller.call(method, path, json=body), 403)
        assert admin.call(method, path, json=body).status_code in (200, 201, 202, 404)

    def test_refuses_what_it_does_not_know(self, admin, method, path, body):
        if method == "GET":
            path += "&x=1" if "?" in path else "?x=1"
            assert refusal(admin.get(path), 400).startswith("x: ")
        else:
            assert refusal(admin.post(path, body | {"x": 1}), 400).startswith("x: ")
            assert refusal(admin.post(path, data=b"{"), 400)


@pytest.mark.parametrize("path", ["/tenants/limits", "/tenants/portal-token", "/tenants/erase"])
def test_what_is_no_tenant_id_is_refused_and_so_is_the_operators(admin, path):
    for tenant_id in NO_IDS:
        body = {"tenant_id": tenant_id} | ({"endpoints": 1} if path.endswith("limits") else {})
        assert refusal(admin.post(path, body), 400).startswith("tenant_id: must"), tenant_id


@pytest.mark.parametrize("path", ["/tenants/detail", "/tenants/erasures", "/audit"])
def test_nor_may_a_query_name_the_operator(admin, path):
    for tenant_id in ("0", "-1", "x", "", str(2**53), "1.0"):
        message = refusal(admin.get(f"{path}?tenant_id={tenant_id}"), 400)
        assert message.startswith("tenant_id: must"), tenant_id


class TestList:
    def test_has_each_tenant_with_its_endpoints_and_limits(self, admin):
        make_endpoint(7)
        make_endpoint(7, status="paused")
        make_endpoint(7, status="deleted")
        admin.post("/tenants/limits", {"tenant_id": 9, "endpoints": 5})
        seven, nine = data_of(admin.get("/tenants"))
        assert is_rfc3339(seven.pop("created_at"))
        assert seven == {"id": 7, "endpoints": 2, "limits": EVERYBODYS, "own_limits": {}}
        assert (nine["id"], nine["endpoints"]) == (9, 0)
        assert nine["own_limits"] == {"endpoints": 5}
        assert nine["limits"] == EVERYBODYS | {"endpoints": 5}
        assert data_of(admin.get("/tenants/detail?tenant_id=9")) == nine

    def test_has_not_the_operator_nor_those_who_only_published(self, admin):
        data_of(admin.post("/operator/endpoints", {"url": "https://ops/"}), 201)
        publish(8)
        assert data_of(admin.get("/tenants")) == []
        assert "tenant 8" in refusal(admin.get("/tenants/detail?tenant_id=8"), 404)

    def test_is_a_keyset(self, admin):
        for tenant in (3, 1, 2):
            make_endpoint(tenant)
        seen, path = [], "/tenants?limit=2"
        while path:
            answer = admin.get(path)
            seen += [each["id"] for each in data_of(answer)]
            cursor = answer.json["next_cursor"]
            path = f"/tenants?limit=2&cursor={cursor}" if cursor else ""
            assert ("Link" in answer.headers) == bool(cursor)
        assert seen == [1, 2, 3]
        for query in ("limit=0", "limit=201", "cursor=x"):
            assert refusal(admin.get(f"/tenants?{query}"), 400)


class TestTheOperator:
    URL = "https://ops/hook"

    def create(self, admin: Caller, status: int = 201, **fields: Any) -> Any:
        return data_of(admin.post("/operator/endpoints", {"url": self.URL} | fields), status)

    def test_has_endpoints_that_are_active_at_once_and_want_everything(self, admin):
        made = self.create(admin)
        assert made["secret"].startswith("whsec_")
        (row,) = rows(db.execute_sql("SELECT * FROM hookjetty.endpoints"))
        assert (row["tenant_id"], row["status"], row["events"]) == (0, "active", ["*"])
        (listed,) = data_of(admin.get("/operator/endpoints"))
        assert listed == {
            "id": made["id"],
            "url": self.URL,
            "status": "active",
            "created_at": listed["created_at"],
        }

    def test_is_told_what_its_urls_may_not_be(self, admin):
        for url in (None, "http://ops/", "https://127.0.0.1/"):
            assert refusal(admin.post("/operator/endpoints", {"url": url}), 400).startswith("url: ")
        self.create(admin)
        assert refusal(admin.post("/operator/endpoints", {"url": self.URL}), 409)

    def test_names_no_types_that_it_never_gets(self, admin):
        for pattern in ("export.*", "hookjetty"):
            wanted = {"url": self.URL, "events": ["hookjetty.*", pattern]}
            assert refusal(admin.post("/operator/endpoints", wanted), 400).startswith(
                f"events: '{pattern}' matches no operational event"
            )
        self.create(admin, events=["*", "hookjetty.endpoint.*"])

    def test_deletes_them_as_any_other(self, admin):
        made = self.create(admin, secret="x" * 20, events=["hookjetty.endpoint.*"])
        assert "secret" not in made
        data_of(admin.post("/delete", {"id": made["id"]}))
        assert data_of(admin.get("/operator/endpoints")) == []

    def test_sees_its_tasks_and_only_those(self, admin):
        made = self.create(admin)
        make_endpoint(7)
        publish(7)
        db.execute_sql(
            "SELECT hookjetty.tell('{7}', '{hookjetty.task.exhausted}', ARRAY['{\"a\":1}'::json])"
        )
        (task,) = data_of(admin.get("/operator/tasks"))
        assert (task["event"], task["url"]) == ("hookjetty.task.exhausted", self.URL)
        assert data_of(admin.get(f"/operator/tasks?endpoint_id={made['id']}&status=pending"))
        assert data_of(admin.get("/operator/tasks?status=failed")) == []
        assert refusal(admin.get("/operator/tasks?status=x"), 400)

    def test_is_no_tenant_of_the_contracts_operations(self, admin):
        self.create(admin)
        for path in ("?tenant_id=0", "/tasks?tenant_id=0"):
            assert refusal(admin.get(path), 400).startswith("tenant_id: ")
        body = {"tenant_id": 0, "url": "https://x/"}
        assert refusal(admin.post("", body), 400).startswith("tenant_id: ")
