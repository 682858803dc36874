"""The admin contract, operation by operation and line by line.

Each test's docstring begins with the line of the contract that it holds the API to, so that
searching for a line finds its test. What the contract leaves open follows below the line of its
operation.
"""

# ruff: noqa: RUF002 - the contract has Chinese punctuation, which is quoted
from __future__ import annotations

import re
from typing import Any

import pytest
from werkzeug.test import TestResponse

from app.db import db
from tests.conftest import ADMIN_PREFIX, Caller
from tests.factories import make_endpoint, publish, rows, task_rows

URL = "https://app/hook"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

OPERATIONS = [
    ("POST", ""),
    ("POST", "/delete"),
    ("GET", "?tenant_id=7"),
    ("GET", "/tasks?tenant_id=7"),
    ("POST", "/tasks/retry"),
]
# What is no id in JSON.
NO_IDS = ("1", "ep_1", "", 1.0, 1.5, True, None, 0, -1, 2**53, [1], {"id": 1})
WRITES = {"": {"tenant_id": 7, "url": URL}, "/delete": {"id": 1}, "/tasks/retry": {"id": 1}}


def data_of(answer: TestResponse, status: int = 200) -> Any:
    """The data of a success, whose envelope is exactly this."""
    assert answer.status_code == status, answer.text
    assert answer.json["code"] == 0
    assert answer.json["msg"] == "ok"
    return answer.json["data"]


def refusal(answer: TestResponse, status: int) -> str:
    """The message of an error, whose envelope is exactly this."""
    assert answer.status_code == status, answer.text
    assert answer.json == {"code": status, "msg": answer.json["msg"], "data": None}
    return answer.json["msg"]


def is_rfc3339(text: str) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text) is not None


# ------------------------------------------------------------------------------- every operation


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
class TestEveryOperation:
    def test_takes_a_token(self, client, method, path):
        """- 认证: jwt"""
        answer = client.open(ADMIN_PREFIX + path, method=method, json=WRITES.get(path))
        assert refusal(answer, 401).startswith("send a token")
        assert answer.headers["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        "claims",
        [
            {"tenant_id": 7},
            {"tenant_id": 7, "role": "admin"},
            {"tenant_id": 7, "scopes": ["webhooks:read", "webhooks:write", "admin"]},
            {"role": "service", "scopes": ["events:write"]},
            {"role": "Admin"},
            {},
        ],
        ids=str,
    )
    def test_takes_an_admin(self, client, mint, method, path, claims):
        """- 角色: admin"""
        caller = Caller(client, ADMIN_PREFIX, mint(**claims))
        answer = caller.call(method, path, json=WRITES.get(path))
        assert "role admin" in refusal(answer, 403)

    def test_lets_an_admin_in(self, admin, method, path):
        """- 角色: admin"""
        answer = admin.call(method, path, json=WRITES.get(path))
        assert answer.status_code in (200, 201, 404)


# ---------------------------------------------------------------------------------- create


class TestCreateEndpoint:
    """## 接口: 创建Webhook端点"""

    def create(self, admin: Caller, **fields: Any) -> TestResponse:
        return admin.post("", {"tenant_id": 7, "url": URL} | fields)

    def test_is_a_post_to_api_webhooks(self, client, mint):
        """- 方法: POST / - 路径: /api/webhooks"""
        headers = {"Authorization": f"Bearer {mint(role='admin')}"}
        body = {"tenant_id": 7, "url": URL}
        assert client.post("/api/webhooks", json=body, headers=headers).status_code == 201

    def test_adds_an_endpoint_for_the_tenant(self, admin):
        """- 说明: 为租户添加Webhook接收地址"""
        made = data_of(self.create(admin), 201)
        (row,) = rows(db.execute_sql("SELECT * FROM hookjetty.endpoints"))
        assert (row["id"], row["tenant_id"], row["url"]) == (made["id"], 7, URL)
        assert (row["status"], row["events"]) == ("active", ["*"])
        assert row["verified_at"] is not None

    def test_takes_an_optional_secret(self, admin, app):
        """- [body] secret (string) 必填:false 说明:签名密钥"""
        data_of(self.create(admin, secret=SECRET), 201)
        (row,) = rows(db.execute_sql("SELECT secret FROM hookjetty.endpoints"))
        assert SECRET not in row["secret"]
        vault = app.extensions["hookjetty"].registry.vault
        assert vault.decrypt(row["secret"], tenant_id=7) == SECRET

    def test_without_a_secret_makes_one_and_shows_it_once(self, admin):
        """- [body] secret (string) 必填:false 说明:签名密钥"""
        made = data_of(self.create(admin), 201)
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", made["secret"])
        assert "secret" not in admin.get("?tenant_id=7").text

    def test_refuses_what_cannot_be_a_secret(self, admin):
        """- [body] secret (string) 必填:false 说明:签名密钥"""
        for secret in ("short", "whsec_c2hvcnQ=", "x" * 257, "***", "", 7, None):
            assert refusal(self.create(admin, secret=secret), 400).startswith("secret: ")

    def test_requires_the_tenant_id(self, admin):
        """- [body] tenant_id (int) 必填:true 说明:租户ID"""
        assert refusal(admin.post("", {"url": URL}), 400) == "tenant_id: is missing"

    def test_refuses_what_is_no_tenant_id(self, admin):
        """- [body] tenant_id (int) 必填:true 说明:租户ID"""
        for tenant_id in NO_IDS:
            message = refusal(self.create(admin, tenant_id=tenant_id), 400)
            assert message.startswith("tenant_id: must"), tenant_id

    def test_takes_the_largest_tenant_id(self, admin):
        """- [body] tenant_id (int) 必填:true 说明:租户ID"""
        data_of(self.create(admin, tenant_id=2**53 - 1), 201)

    def test_requires_the_url(self, admin):
        """- [body] url (string) 必填:true 说明:回调地址"""
        assert refusal(admin.post("", {"tenant_id": 7}), 400) == "url: is missing"

    def test_refuses_what_cannot_be_called(self, admin):
        """- [body] url (string) 必填:true 说明:回调地址"""
        for url in (7, None, "", "ftp://app/", "https://127.0.0.1/", "http://app/"):
            assert refusal(self.create(admin, url=url), 400).startswith("url: "), url

    def test_answers_201(self, admin):
        """- 状态码: 201"""
        assert self.create(admin).status_code == 201

    def test_answers_the_id_and_the_url(self, admin):
        """- 返回说明: 返回创建的端点ID与URL"""
        made = data_of(self.create(admin, secret=SECRET), 201)
        assert type(made["id"]) is int
        assert made == {"id": made["id"], "url": URL}

    def test_answers_in_the_envelope(self, admin):
        """- msg (string)
        - data (object)
        - id (integer) — 端点ID
        - url (string) — 回调URL
        - code (int)
        """
        answer = self.create(admin, secret=SECRET)
        assert answer.content_type == "application/json"
        assert set(answer.json) == {"code", "data", "msg"}
        assert (answer.json["code"], answer.json["msg"]) == (0, "ok")

    def test_answers_the_url_as_it_was_given(self, admin):
        """- url (string) — 回调URL"""
        given = "HTTPS://App:443/hook"
        assert data_of(self.create(admin, url=given), 201)["url"] == given

    def test_takes_the_event_types_that_are_wanted(self, admin):
        self.create(admin, events=["export.*", "import.done", "export.*"])
        (row,) = rows(db.execute_sql("SELECT events FROM hookjetty.endpoints"))
        assert row["events"] == ["export.*", "import.done"]

    def test_the_same_live_url_twice_is_a_409_that_names_the_id(self, admin):
        made = data_of(self.create(admin), 201)
        for url in (URL, "https://APP:443/hook"):
            assert f"endpoint {made['id']} " in refusal(self.create(admin, url=url), 409)

    def test_the_same_url_is_fine_for_another_tenant_and_after_a_deletion(self, admin):
        first = data_of(self.create(admin), 201)
        second = data_of(self.create(admin, tenant_id=8), 201)
        data_of(admin.post("/delete", {"id": first["id"]}))
        third = data_of(self.create(admin), 201)
        assert len({first["id"], second["id"], third["id"]}) == 3

    def test_the_101st_endpoint_is_a_400(self, admin):
        for number in range(100):
            make_endpoint(7, f"https://app/{number}")
        assert "100 endpoints" in refusal(self.create(admin), 400)
        data_of(self.create(admin, tenant_id=8), 201)

    def test_refuses_a_field_that_is_not_there(self, admin):
        message = refusal(self.create(admin, secrets=SECRET), 400)
        assert message.startswith("secrets: is not a field of this")
        assert "secret" in message


# ---------------------------------------------------------------------------------- delete


class TestDeleteEndpoint:
    """## 接口: 删除Webhook端点"""

    def test_is_a_post_to_delete(self, client, mint):
        """- 方法: POST / - 路径: /api/webhooks/delete"""
        headers = {"Authorization": f"Bearer {mint(role='admin')}"}
        body = {"id": make_endpoint()}
        assert client.post("/api/webhooks/delete", json=body, headers=headers).status_code == 200

    def test_deletes_that_endpoint(self, admin):
        """- 说明: 删除指定端点"""
        one, other = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
        data_of(admin.post("/delete", {"id": one}))
        assert [item["id"] for item in data_of(admin.get("?tenant_id=7"))] == [other]

    def test_requires_the_id(self, admin):
        """- [body] id (int) 必填:true 说明:端点ID"""
        assert refusal(admin.post("/delete", {}), 400) == "id: is missing"

    def test_refuses_what_is_no_id(self, admin):
        """- [body] id (int) 必填:true 说明:端点ID"""
        for identifier in NO_IDS:
            answer = admin.post("/delete", {"id": identifier})
            assert refusal(answer, 400).startswith("id: must"), identifier

    def test_answers_200_and_the_id_in_the_envelope(self, admin):
        """- 状态码: 200
        - 返回说明: 返回删除的端点ID
        - code (int)
        - msg (string)
        - data (object)
        - id (int)
        """
        endpoint = make_endpoint()
        answer = admin.post("/delete", {"id": endpoint})
        assert answer.status_code == 200
        assert answer.json == {"code": 0, "msg": "ok", "data": {"id": endpoint}}

    def test_an_unknown_and_a_deleted_id_are_404(self, admin):
        endpoint = make_endpoint()
        data_of(admin.post("/delete", {"id": endpoint}))
        assert str(endpoint) in refusal(admin.post("/delete", {"id": endpoint}), 404)
        refusal(admin.post("/delete", {"id": 4711}), 404)

    def test_cancels_open_tasks_and_keeps_the_others_listed(self, admin):
        endpoint = make_endpoint()
        publish()
        publish()
        db.execute_sql(
            "UPDATE hookjetty.tasks SET status = 'delivered', ready = false, next_try_at = NULL"
            " WHERE id = (SELECT max(id) FROM hookjetty.tasks)"
        )
        data_of(admin.post("/delete", {"id": endpoint}))
        tasks = data_of(admin.get("/tasks?tenant_id=7"))
        assert sorted(task["status"] for task in tasks) == ["canceled", "delivered"]
        assert {task["url"] for task in tasks} == {"https://example.com/"}

    def test_ends_its_replay(self, admin):
        endpoint = make_endpoint()
        db.execute_sql(
            "INSERT INTO hookjetty.replays (tenant_id, endpoint_id, status, from_id, upto_id,"
            " cursor_id) VALUES (7, %s, 'running', 0, 1, 0)",
            (endpoint,),
        )
        data_of(admin.post("/delete", {"id": endpoint}))
        assert rows(db.execute_sql("SELECT status FROM hookjetty.replays")) == [
            {"status": "canceled"}
        ]


# ----------------------------------------------------------------------------------- list


class TestListEndpoints:
    """## 接口: 列出Webhook端点"""

    def test_is_a_get_of_api_webhooks(self, client, mint):
        """- 方法: GET / - 路径: /api/webhooks"""
        headers = {"Authorization": f"Bearer {mint(role='admin')}"}
        assert client.get("/api/webhooks?tenant_id=7", headers=headers).status_code == 200

    def test_lists_by_tenant(self, admin):
        """- 说明: 按租户查询Webhook端点"""
        mine = [make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")]
        make_endpoint(8, "https://app/1")
        assert [item["id"] for item in data_of(admin.get("?tenant_id=7"))] == mine

    def test_requires_the_tenant_id(self, admin):
        """- [query] tenant_id (int) 必填:true 说明:租户ID"""
        assert refusal(admin.get(""), 400) == "tenant_id: is missing"

    def test_refuses_what_is_no_tenant_id(self, admin):
        """- [query] tenant_id (int) 必填:true 说明:租户ID"""
        for text in ("", "x", "7.0", "+7", "%207", "07", "0", "-7", 2**53, "%D9%A7", "7%00", "yes"):
            message = refusal(admin.get(f"?tenant_id={text}"), 400)
            assert message.startswith("tenant_id: must"), text

    def test_refuses_two_tenant_ids_and_unknown_parameters(self, admin):
        """- [query] tenant_id (int) 必填:true 说明:租户ID"""
        assert "more than once" in refusal(admin.get("?tenant_id=7&tenant_id=8"), 400)
        assert refusal(admin.get("?tenant_id=7&stauts=x"), 400).startswith("stauts: is not")

    def test_an_unknown_tenant_has_none(self, admin):
        """- 返回说明: 返回端点列表"""
        assert data_of(admin.get("?tenant_id=4711")) == []

    def test_answers_200_and_a_list_in_the_envelope(self, admin):
        """- 状态码: 200 / - code (int) / - msg (string) / - data (array)"""
        answer = admin.get("?tenant_id=7")
        assert answer.status_code == 200
        assert answer.json == {"code": 0, "msg": "ok", "data": []}

    def test_each_item_has_these_four(self, admin):
        """- item (object)
        - id (int)
        - url (string)
        - status (string)
        - created_at (string)
        """
        endpoint = make_endpoint(7, URL)
        (item,) = data_of(admin.get("?tenant_id=7"))
        assert item == {
            "id": endpoint,
            "url": URL,
            "status": "active",
            "created_at": item["created_at"],
        }
        assert is_rfc3339(item["created_at"])

    def test_every_status_but_deleted_is_listed_whoever_made_it(self, admin, owner):
        """- status (string)"""
        owner.post("/endpoints", {"url": "https://app/pending"})
        for status in ("active", "paused", "disabled", "deleted"):
            make_endpoint(7, f"https://app/{status}", status=status)
        listed = data_of(admin.get("?tenant_id=7"))
        assert [item["status"] for item in listed] == ["pending", "active", "paused", "disabled"]

    def test_the_list_is_whole(self, admin):
        for number in range(100):
            make_endpoint(7, f"https://app/{number}")
        assert len(data_of(admin.get("?tenant_id=7"))) == 100


# ----------------------------------------------------------------------------------- tasks


class TestListTasks:
    """## 接口: Webhook任务列表"""

    def test_is_a_get_of_tasks(self, client, mint):
        """- 方法: GET / - 路径: /api/webhooks/tasks"""
        headers = {"Authorization": f"Bearer {mint(role='admin')}"}
        assert client.get("/api/webhooks/tasks?tenant_id=7", headers=headers).status_code == 200

    def test_lists_the_tasks_of_that_tenant(self, admin):
        """- 说明: 查询指定租户的Webhook任务"""
        make_endpoint(7)
        make_endpoint(8)
        publish(7)
        publish(8)
        (mine,) = data_of(admin.get("/tasks?tenant_id=7"))
        assert [mine["id"]] == [row["id"] for row in task_rows("tenant_id = 7")]

    def test_requires_the_tenant_id(self, admin):
        """- [query] tenant_id (int) 必填:true 说明:租户ID"""
        assert refusal(admin.get("/tasks"), 400) == "tenant_id: is missing"
        assert refusal(admin.get("/tasks?tenant_id=x"), 400).startswith("tenant_id: must")

    def test_answers_200_and_a_list_with_the_endpoints_urls(self, admin):
        """- 状态码: 200
        - 返回说明: 返回任务列表与端点URL
        - code (int)
        - msg (string)
        - data (array)
        """
        make_endpoint(7, URL)
        publish()
        answer = admin.get("/tasks?tenant_id=7")
        assert answer.status_code == 200
        assert set(answer.json) == {"code", "msg", "data", "next_cursor"}
        assert [task["url"] for task in data_of(answer)] == [URL]

    def test_each_item_has_these_seven(self, admin):
        """- url (string)
        - id (int)
        - event (string)
        - status (string)
        - retries (int)
        - next_try_at (string)
        - created_at (string)
        """
        make_endpoint(7, URL)
        publish(type="export.done")
        (row,) = task_rows()
        (item,) = data_of(admin.get("/tasks?tenant_id=7"))
        assert item == {
            "url": URL,
            "id": row["id"],
            "event": "export.done",
            "status": "pending",
            "retries": 0,
            "next_try_at": item["next_try_at"],
            "created_at": item["created_at"],
        }
        assert is_rfc3339(item["next_try_at"])
        assert is_rfc3339(item["created_at"])

    def test_retries_are_the_tries_after_the_first(self, admin):
        """- retries (int)"""
        make_endpoint()
        publish()
        for tries, retries in ((0, 0), (1, 0), (2, 1), (5, 4)):
            db.execute_sql("UPDATE hookjetty.tasks SET tries = %s", (tries,))
            assert data_of(admin.get("/tasks?tenant_id=7"))[0]["retries"] == retries

    def test_next_try_at_is_empty_when_nothing_is_planned(self, admin):
        """- next_try_at (string)"""
        make_endpoint(status="paused")
        publish()
        (item,) = data_of(admin.get("/tasks?tenant_id=7"))
        assert (item["status"], item["next_try_at"]) == ("waiting", "")

    def test_a_task_follows_its_endpoint_before_a_job_has_moved_it(self, admin):
        """- status (string)"""
        endpoint = make_endpoint()
        publish()
        for status, shown in (("paused", "waiting"), ("deleted", "canceled")):
            db.execute_sql(
                "UPDATE hookjetty.endpoints SET status = %s, settling = true WHERE id = %s",
                (status, endpoint),
            )
            (item,) = data_of(admin.get("/tasks?tenant_id=7"))
            assert (item["status"], item["next_try_at"]) == (shown, "")
            assert len(data_of(admin.get(f"/tasks?tenant_id=7&status={shown}"))) == 1
            assert data_of(admin.get("/tasks?tenant_id=7&status=pending")) == []

    def test_a_task_whose_event_has_expired_still_has_a_string_for_it(self, admin):
        """- event (string)"""
        make_endpoint()
        publish()
        db.execute_sql("DELETE FROM hookjetty.events")
        assert data_of(admin.get("/tasks?tenant_id=7"))[0]["event"] == ""

    def test_the_newest_100_come_first(self, admin):
        make_endpoint()
        for _ in range(101):
            publish()
        answer = admin.get("/tasks?tenant_id=7")
        newest_first = [row["id"] for row in task_rows()][::-1]
        assert [task["id"] for task in data_of(answer)] == newest_first[:100]
        rest = admin.get(f"/tasks?tenant_id=7&cursor={answer.json['next_cursor']}")
        assert [task["id"] for task in data_of(rest)] == newest_first[100:]
        assert rest.json["next_cursor"] is None

    def test_they_can_be_narrowed(self, admin):
        one, other = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
        publish()
        db.execute_sql(
            "UPDATE hookjetty.tasks SET status = 'failed', failure = 'timeout', ready = false,"
            " next_try_at = NULL WHERE endpoint_id = %s",
            (one,),
        )
        (failed,) = data_of(admin.get("/tasks?tenant_id=7&status=failed"))
        (by_endpoint,) = data_of(admin.get(f"/tasks?tenant_id=7&endpoint_id={other}"))
        assert (failed["url"], by_endpoint["url"]) == ("https://app/1", "https://app/2")

    def test_what_cannot_narrow_them_is_a_400(self, admin):
        for name, values in {
            "limit": ("0", "201", "x", "", "-1", "1e2"),
            "status": ("done", "", "pending%00"),
            "endpoint_id": ("ep_1", "0"),
            "cursor": ("x", "", "%00", "AAAA", "é"),
        }.items():
            for value in values:
                answer = admin.get(f"/tasks?tenant_id=7&{name}={value}")
                assert refusal(answer, 400).startswith(f"{name}: "), value

    def test_a_cursor_of_another_list_is_a_400(self, admin):
        make_endpoint(7)
        make_endpoint(8)
        for tenant in (7, 8):
            publish(tenant)
            publish(tenant)
        cursor = admin.get("/tasks?tenant_id=8&limit=1").json["next_cursor"]
        for query in ("tenant_id=7", "tenant_id=8&status=pending", "tenant_id=8&endpoint_id=1"):
            assert "cursor: " in refusal(admin.get(f"/tasks?{query}&cursor={cursor}"), 400)


# ----------------------------------------------------------------------------------- retry


class TestRetryTask:
    """## 接口: 重试Webhook任务"""

    def failed_task(self, **endpoint: Any) -> int:
        endpoint_id = make_endpoint(**endpoint)
        publish()
        db.execute_sql(
            "UPDATE hookjetty.tasks SET status = 'failed', failure = 'http_5xx', ready = false,"
            " next_try_at = NULL, tries = 10, step = 9 WHERE endpoint_id = %s",
            (endpoint_id,),
        )
        return task_rows(f"endpoint_id = {endpoint_id}")[0]["id"]

    def test_is_a_post_to_retry(self, client, mint):
        """- 方法: POST / - 路径: /api/webhooks/tasks/retry"""
        headers = {"Authorization": f"Bearer {mint(role='admin')}"}
        body = {"id": self.failed_task()}
        answer = client.post("/api/webhooks/tasks/retry", json=body, headers=headers)
        assert answer.status_code == 200

    def test_sets_the_status_to_retry_and_schedules_it_at_once(self, admin):
        """- 说明: 将任务状态设置为retry并立即调度"""
        task = self.failed_task()
        data_of(admin.post("/tasks/retry", {"id": task}))
        (row,) = task_rows("next_try_at <= now()")
        assert (row["status"], row["ready"], row["step"], row["tries"]) == ("retry", True, 0, 10)
        assert row["probe"]

    def test_requires_the_id(self, admin):
        """- [body] id (int) 必填:true 说明:任务ID"""
        assert refusal(admin.post("/tasks/retry", {}), 400) == "id: is missing"

    def test_refuses_what_is_no_id(self, admin):
        """- [body] id (int) 必填:true 说明:任务ID"""
        for identifier in NO_IDS:
            answer = admin.post("/tasks/retry", {"id": identifier})
            assert refusal(answer, 400).startswith("id: must"), identifier

    def test_answers_200_and_the_id_in_the_envelope(self, admin):
        """- 状态码: 200
        - 返回说明: 返回重试的任务ID，包含通用包装
        - code (int)
        - msg (string)
        - data (object)
        - id (integer) — 任务ID
        """
        task = self.failed_task()
        answer = admin.post("/tasks/retry", {"id": task})
        assert answer.status_code == 200
        assert answer.json == {"code": 0, "msg": "ok", "data": {"id": task}}

    def test_the_task_of_an_endpoint_that_is_not_active_waits_and_msg_says_why(self, admin):
        for status in ("paused", "disabled"):
            task = self.failed_task(status=status)
            answer = admin.post("/tasks/retry", {"id": task})
            assert answer.status_code == 200
            assert answer.json == {"code": 0, "msg": answer.json["msg"], "data": {"id": task}}
            assert f"the endpoint is {status}" in answer.json["msg"]
            assert task_rows(f"id = {task}")[0]["status"] == "waiting"

    def test_an_unknown_task_is_a_404(self, admin):
        assert "4711" in refusal(admin.post("/tasks/retry", {"id": 4711}), 404)

    def test_a_task_under_way_or_of_a_deleted_endpoint_or_without_its_event_is_a_409(self, admin):
        task = self.failed_task()
        db.execute_sql(
            "UPDATE hookjetty.tasks SET status = 'delivering', attempt_id = 1, failure = NULL,"
            " next_try_at = now()"
        )
        assert "being delivered" in refusal(admin.post("/tasks/retry", {"id": task}), 409)
        db.execute_sql("UPDATE hookjetty.tasks SET status = 'retry'")
        db.execute_sql("DELETE FROM hookjetty.events")
        assert "retention" in refusal(admin.post("/tasks/retry", {"id": task}), 409)
        db.execute_sql("UPDATE hookjetty.endpoints SET status = 'deleted'")
        assert "deleted" in refusal(admin.post("/tasks/retry", {"id": task}), 409)

    def test_what_was_delivered_can_be_delivered_again(self, admin):
        make_endpoint()
        publish()
        db.execute_sql(
            "UPDATE hookjetty.tasks SET status = 'delivered', ready = false, next_try_at = NULL"
        )
        data_of(admin.post("/tasks/retry", {"id": task_rows()[0]["id"]}))
        assert task_rows()[0]["status"] == "retry"
