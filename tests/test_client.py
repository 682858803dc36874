"""hookjetty.client against a live service: what a tenant, a producer and an admin do with it."""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hookjetty import client as client_module
from hookjetty.client import AdminClient, ApiError, Client
from tests.acceptance.receiver import RecordingReceiver
from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX, new_database
from tests.documented import the_document
from tests.hostile import Receiver, read_request
from tests.live import LiveService, reserve_port, wait_until

tenants = itertools.count(1)


@pytest.fixture(scope="module")
def live(server_url: str, template: str) -> Iterator[LiveService]:
    with new_database(server_url, template) as url, LiveService(url, RATE_LIMIT="1000") as live:
        yield live


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path_factory.mktemp("receiver") / "seen") as running:
        yield running


@pytest.fixture
def tenant_id() -> int:
    """A tenant who has nothing yet."""
    return next(tenants)


@pytest.fixture
def client(live: LiveService, tenant_id: int) -> Iterator[Client]:
    with Client(live.url, live.tenant_token(tenant_id)) as client:
        yield client


@pytest.fixture
def admin(live: LiveService) -> Iterator[AdminClient]:
    with AdminClient(live.url, live.admin_token) as admin:
        yield admin


@pytest.fixture
def service(live: LiveService) -> Iterator[Client]:
    with Client(live.url, live.service_token) as service:
        yield service


# ---------------------------------------------------------------------------------- endpoints


def test_an_endpoint_is_registered_changed_and_deleted(client, receiver):
    made = client.register_endpoint(receiver.url("/life"), events=["export.*"])
    assert made["status"] == "active"
    assert made["secret"].startswith("whsec_")
    endpoint_id = made["endpoint_id"]

    changed = client.register_endpoint(endpoint_id=endpoint_id, events=iter(["*"]))
    assert changed == {"endpoint_id": endpoint_id, "status": "active"}
    shown = client.get_endpoint(endpoint_id)
    assert (shown["url"], shown["events"]) == (receiver.url("/life"), ["*"])
    assert client.verify_endpoint(endpoint_id)["status"] == "active"

    assert client.delete_endpoint(endpoint_id)["status"] == "deleted"
    with pytest.raises(ApiError, match="does not exist") as gone:
        client.get_endpoint(endpoint_id)
    assert (gone.value.status, gone.value.code) == (404, "not_found")


def test_a_list_is_read_page_by_page_to_its_end(client, admin, tenant_id, monkeypatch):
    monkeypatch.setattr(client_module, "PAGE_ITEMS", 2)
    urls = [f"https://example.com/{number}" for number in range(5)]
    for url in urls:
        admin.create_endpoint(tenant_id, url)
    assert [endpoint["url"] for endpoint in client.list_endpoints()] == urls


def test_pages_that_nobody_asks_for_are_not_fetched(client, admin, tenant_id, monkeypatch):
    monkeypatch.setattr(client_module, "PAGE_ITEMS", 1)
    for number in range(3):
        admin.create_endpoint(tenant_id, f"https://example.com/{number}")
    calls = []
    monkeypatch.setattr(client._session, "request", _counted(client._session.request, calls))
    assert next(client.list_endpoints())["url"] == "https://example.com/0"
    assert len(calls) == 1


def _counted(function: Callable, calls: list) -> Callable:
    def counted(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return counted


def test_an_id_cannot_lead_to_another_path(client):
    with pytest.raises(ApiError) as refused:
        client.get_endpoint("ep_1/../../replay?x=")
    assert refused.value.status in {400, 404}


def test_an_endpoint_is_paused_resumed_tried_and_given_another_secret(client, receiver):
    made = client.register_endpoint(receiver.url("/switch"), description="d", metadata={"a": "b"})
    endpoint_id = made["endpoint_id"]
    shown = client.get_endpoint(endpoint_id)
    assert (shown["description"], shown["metadata"]) == ("d", {"a": "b"})
    etag = f'"{endpoint_id}.{shown["version"]}"'
    assert client.pause_endpoint(endpoint_id, if_match=etag)["status"] == "paused"
    with pytest.raises(ApiError) as conflict:
        client.resume_endpoint(endpoint_id, if_match=etag)
    assert conflict.value.code == "version_conflict"
    assert client.resume_endpoint(endpoint_id)["status"] == "active"
    verified = client.verify_endpoint(endpoint_id, check_signatures=True)
    assert verified["verifies_signatures"] is not None

    sent = client.test_endpoint(endpoint_id, "export.done")
    wait_until(lambda: client.get_task(sent["task_id"])["status"] == "delivered")
    assert client.reveal_secret(endpoint_id)["secret"] == made["secret"]
    rotated = client.rotate_secret(endpoint_id, overlap_seconds=60)
    assert rotated["secret"] != made["secret"]
    assert client.reveal_secret(endpoint_id)["secret"] == rotated["secret"]


# ------------------------------------------------------------------------------------ events


def test_an_event_arrives_with_the_very_text_that_was_published(client, receiver):
    client.register_endpoint(receiver.url("/text"))
    text = '{"price": 1.50, "who": "Zoë", "n": 12345678901234567890}'
    published = client.publish("export.done", text)
    assert published.tasks == 1
    wait_until(lambda: [seen for seen in receiver.at("/text") if seen.event == published.event_id])
    (seen,) = [seen for seen in receiver.at("/text") if seen.event == published.event_id]
    assert f'"data":{text}}}'.encode() in seen.body

    event = client.get_event(published.event_id)
    assert (event["type"], event["data"]["who"]) == ("export.done", "Zoë")
    assert len(event["tasks"]) == 1


def test_a_key_makes_publishing_again_harmless(client):
    first = client.publish("export.done", {"rows": 1}, key="export-1")
    assert client.publish("export.done", {"rows": 2}, "export-1") == first
    assert client.get_event(first.event_id)["data"] == {"rows": 1}


def test_a_batch_is_published_in_its_order(client):
    first = client.publish("export.done", {}, key="b")
    published = client.publish_batch(
        [
            {"type": "export.started", "data": {"n": 1}},
            {"type": "export.done", "data": '{"n": 2.0}', "key": "b"},
        ]
    )
    assert [client.get_event(one.event_id)["type"] for one in published] == [
        "export.started",
        "export.done",
    ]
    assert published[1] == first


def test_a_refused_batch_names_the_event(client):
    with pytest.raises(ApiError) as refused:
        client.publish_batch([{"type": "a", "data": {}}, {"type": "b c", "data": {}}])
    assert list(refused.value.details) == ["events.1.type"]


def test_a_service_publishes_for_the_tenant_it_names(service, client, tenant_id):
    published = service.publish("export.done", {}, tenant_id=tenant_id)
    (in_batch,) = service.publish_batch([{"type": "a", "data": {}}], tenant_id=tenant_id)
    assert client.get_event(published.event_id)["type"] == "export.done"
    assert client.get_event(in_batch.event_id)["type"] == "a"
    with pytest.raises(ApiError, match="tenant_id: is missing"):
        service.publish("export.done", {})


@pytest.mark.parametrize("data", ['{}, "tenant_id": 8', "{", {"x": float("inf")}, "\udcff"])
def test_data_that_is_not_json_is_not_sent(client, data, monkeypatch):
    monkeypatch.setattr(client._session, "request", lambda *_, **__: pytest.fail("was sent"))
    with pytest.raises(ValueError, match=r"data is not JSON"):
        client.publish("export.done", data)


# ----------------------------------------------------------------------------- tasks, replays


def test_tasks_are_listed_shown_and_retried(client, admin, tenant_id, receiver):
    good = client.register_endpoint(receiver.url("/good"))["endpoint_id"]
    bad = client.register_endpoint(receiver.url("/bad", status=500, times=2))["endpoint_id"]
    assert client.get_endpoint(bad)["status"] == "pending"  # its challenge was answered with 500
    admin.create_endpoint(tenant_id, receiver.url("/worse", status=500))
    event = client.publish("export.done", {})
    assert event.tasks == 3

    settled = {"delivered", "waiting", "retry"}
    wait_until(lambda: {task["status"] for task in client.list_tasks()} == settled)
    (task,) = client.list_tasks(status="delivered", endpoint_id=good)
    assert (task["event_id"], task["tries"]) == (event.event_id, 1)
    (attempt,) = client.get_task(task["task_id"])["attempts"]
    assert attempt["status_code"] == 200
    assert len(list(client.list_tasks())) == 3

    by_url = {task["url"]: task for task in admin.list_tasks(tenant_id)}
    assert len(by_url) == 3
    (waiting,) = admin.list_tasks(tenant_id, status="waiting", endpoint_id=int(bad[3:]))
    assert waiting["url"] == receiver.url("/bad", status=500, times=2)
    assert "waiting" in admin.retry_task(waiting["id"])
    assert admin.retry_task(by_url[receiver.url("/worse", status=500)]["id"]) == "ok"


def test_a_replay_delivers_again_and_tells_how_far_it_is(client, receiver):
    endpoint = client.register_endpoint(receiver.url("/replay"))["endpoint_id"]
    event = client.publish("export.done", {})
    started = client.start_replay(endpoint, event.event_id)
    assert started["status"] == "started"
    wait_until(lambda: client.get_replay(started["replay_id"])["status"] == "finished")
    assert client.get_replay(started["replay_id"])["events"] == 1


def test_events_are_listed_followed_tried_and_erased(client, receiver):
    client.register_endpoint(receiver.url("/events"))
    (wanted,) = client.dry_run("export.done", {})
    assert wanted["would_receive"]
    published = client.publish("export.done", {"n": 1}, key="e")
    wait_until(lambda: client.feed()["items"])
    page = client.feed(type="export.*", limit=5)
    assert [(each["event_id"], each["data"]) for each in page["items"]] == [
        (published.event_id, {"n": 1})
    ]
    assert client.feed(page["next_cursor"])["items"] == []
    assert [each["event_id"] for each in client.list_events(key="e")] == [published.event_id]
    assert list(client.list_events(until="2026-01-01T00:00:00Z")) == []
    assert client.get_why(published.event_id)["event_id"] == published.event_id
    assert client.erase_event_data(published.event_id)["erased"]


def test_failed_tasks_are_retried_one_by_one_and_many_at_once(client, admin, tenant_id, receiver):
    made = admin.create_endpoint(tenant_id, receiver.url("/fails", status=500))
    endpoint_id = f"ep_{made['id']}"
    client.publish("export.done", {})
    wait_until(lambda: list(client.list_tasks(status="retry", code_class="5xx")))
    (task,) = client.list_tasks(type="export.*", since="2026-01-01T00:00:00Z")
    client.pause_endpoint(endpoint_id)
    assert "paused" in (client.retry_task(task["task_id"])["message"] or "")
    assert client.cancel_task(task["task_id"])["status"] == "canceled"

    assert client.count_bulk_retry(status="canceled", endpoint_id=endpoint_id)["tasks"] == 1
    started = client.start_bulk_retry(status="canceled", endpoint_id=endpoint_id)
    bulk_retry_id = started["bulk_retry_id"]
    assert client.get_bulk_retry(bulk_retry_id)["bulk_retry_id"] == bulk_retry_id
    wait_until(lambda: client.get_bulk_retry(bulk_retry_id)["status"] == "finished")
    recovered = client.recover_endpoint(endpoint_id, "2026-01-01T00:00:00Z")["bulk_retry_id"]
    listed = [each["bulk_retry_id"] for each in client.list_bulk_retries()]
    assert listed == [recovered, bulk_retry_id]
    wait_until(lambda: client.get_bulk_retry(recovered)["status"] == "finished")
    with pytest.raises(ApiError, match="finished"):
        client.cancel_bulk_retry(recovered)


def test_replays_are_narrowed_listed_and_canceled(client, receiver):
    endpoint = client.register_endpoint(receiver.url("/narrow"))["endpoint_id"]
    started = client.start_replay(
        endpoint,
        "2026-01-01T00:00:00Z",
        until="2999-01-01T00:00:00Z",
        events=["a.*"],
        only="missing",
    )
    (listed,) = client.list_replays(endpoint_id=endpoint)
    assert listed["replay_id"] == started["replay_id"]
    wait_until(lambda: client.get_replay(started["replay_id"])["status"] == "finished")
    with pytest.raises(ApiError, match="finished"):
        client.cancel_replay(started["replay_id"])


# ------------------------------------------------------------------------------------- admin


def test_an_admin_adds_lists_and_deletes_endpoints(admin, tenant_id):
    made = admin.create_endpoint(tenant_id, "https://example.com/a", ["export.done"])
    assert made["secret"].startswith("whsec_")
    other = admin.create_endpoint(tenant_id, "https://example.com/b", secret="sixteen characters")
    assert "secret" not in other
    listed = admin.list_endpoints(tenant_id)
    assert [(each["id"], each["status"]) for each in listed] == [
        (made["id"], "active"),
        (other["id"], "active"),
    ]
    admin.delete_endpoint(made["id"])
    assert [each["id"] for each in admin.list_endpoints(tenant_id)] == [other["id"]]


def test_the_admin_surfaces_errors_have_the_same_words(admin):
    with pytest.raises(ApiError) as refused:
        admin.delete_endpoint(2**53 - 1)
    assert (refused.value.status, refused.value.code) == (404, "not_found")
    assert refused.value.message == f"endpoint {2**53 - 1} does not exist"
    assert refused.value.request_id


def test_an_admin_keeps_the_catalogue_of_event_types(admin, client):
    name = f"catalogue.{next(tenants)}"
    schema = {"type": "object", "required": ["rows"]}
    saved = admin.save_event_type(name, "Told at the end", schema=schema, example={"rows": 3})
    assert (saved["description"], saved["example"]) == ("Told at the end", {"rows": 3})
    assert admin.get_event_type(name) == saved
    assert client.get_event_type(name)["schema"] == schema
    assert name in [each["name"] for each in client.list_event_types()]
    assert name in [each["name"] for each in admin.list_event_types()]
    admin.delete_event_type(name)
    with pytest.raises(ApiError, match="does not exist"):
        client.get_event_type(name)


def test_an_admin_limits_follows_and_erases_a_tenant(live, admin, tenant_id):
    limited = admin.limit_tenant(tenant_id, requests_per_second=50)
    assert limited["own_limits"] == {"requests_per_second": 50}
    assert admin.limit_tenant(tenant_id, requests_per_second=None)["own_limits"] == {}
    assert admin.get_tenant(tenant_id)["id"] == tenant_id
    assert tenant_id in [each["id"] for each in admin.list_tenants()]

    portal = admin.create_portal_token(tenant_id, ttl_seconds=60, scope="webhooks:read")
    with Client(live.url, portal["token"]) as visitor:
        assert list(visitor.list_endpoints()) == []

    assert admin.erase_tenant(tenant_id)["tenant_id"] == tenant_id
    assert [each["tenant_id"] for each in admin.list_erasures(tenant_id)] == [tenant_id]
    assert "erase_tenant" in [each["action"] for each in admin.list_actions(tenant_id=tenant_id)]


def test_an_admin_adds_endpoints_of_the_operator(admin):
    url = f"https://example.com/operator/{next(tenants)}"
    made = admin.create_operator_endpoint(url, ["hookjetty.*"])
    assert made["id"] in [each["id"] for each in admin.list_operator_endpoints()]
    assert list(admin.list_operator_tasks(endpoint_id=made["id"])) == []
    admin.delete_endpoint(made["id"])


# ------------------------------------------------------------------------------- request ids


def test_a_request_id_makes_a_write_idempotent(admin, tenant_id):
    url = "https://example.com/once"
    first = admin.create_endpoint(tenant_id, url, request_id=f"once-{tenant_id}")
    assert admin.create_endpoint(tenant_id, url, request_id=f"once-{tenant_id}") == first
    with pytest.raises(ApiError) as conflict:
        admin.create_endpoint(tenant_id, f"{url}/2", request_id=f"once-{tenant_id}")
    assert (conflict.value.status, conflict.value.code) == (409, "version_conflict")
    assert conflict.value.request_id == f"once-{tenant_id}"


def request_id_of(request: bytes) -> str | None:
    found = re.search(rb"\r\nX-Request-Id: (\S+)\r\n", request, re.IGNORECASE)
    return found[1].decode() if found else None


def test_without_one_each_write_gets_its_own():
    with canned(success({})) as (url, requests):
        client = Client(url, "token")
        client.get_endpoint("ep_1")
        client.delete_endpoint("ep_1", request_id="mine")
        client.delete_endpoint("ep_1")
        client.delete_endpoint("ep_1")
    read, named, *made_up = map(request_id_of, requests)
    assert (read, named) == (None, "mine")
    assert None not in made_up
    assert len(set(made_up)) == 2


def test_publishing_gets_none_since_its_key_does_the_same():
    answer = b'{"event_id":"evt_1","tasks":0}'
    head = b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n" % len(answer)
    with canned(head + answer) as (url, requests):
        Client(url, "token").publish("a", {})
    assert request_id_of(requests[0]) is None


# ----------------------------------------------------------------------------------- patience


def refusal(status: int, after: int = 1) -> bytes:
    body = b'{"error":"rate_limited","message":"slow down","request_id":"r-2"}'
    head = f"HTTP/1.1 {status} Not Now\r\nRetry-After: {after}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


def success(answer: Any) -> bytes:
    body = json.dumps(answer).encode()
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


PUBLISHED = success({"event_id": "evt_1", "tasks": 1})


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """How long the client waited, which it does not really do."""
    found: list[float] = []
    monkeypatch.setattr(client_module, "sleep", found.append)
    return found


def test_what_is_refused_for_now_is_asked_again_with_the_same_request_id(waits):
    with scripted(refusal(429), refusal(503, 2), success({"endpoint_id": "ep_1"})) as (url, seen):
        assert Client(url, "token").delete_endpoint("ep_1") == {"endpoint_id": "ep_1"}
    assert waits == [1, 2]
    assert len({request_id_of(request) for request in seen}) == 1


def test_a_read_is_asked_again(waits):
    with scripted(refusal(503), success({"endpoint_id": "ep_1"})) as (url, _):
        assert Client(url, "token").get_endpoint("ep_1") == {"endpoint_id": "ep_1"}
    assert waits == [1]


@pytest.mark.parametrize(
    "safe", [{"key": "k"}, {"request_id": "r"}, {"key": "k", "request_id": "r"}]
)
def test_a_publish_of_unknown_outcome_is_asked_again_if_it_is_safe(safe, waits):
    with scripted(refusal(503), PUBLISHED) as (url, _):
        assert Client(url, "token").publish("a", {}, **safe).event_id == "evt_1"
    assert waits == [1]


def test_a_publish_of_unknown_outcome_is_not_repeated_otherwise(waits):
    with scripted(refusal(503)) as (url, seen), pytest.raises(ApiError):
        Client(url, "token").publish("a", {})
    with scripted(refusal(503)) as (url, _), pytest.raises(ApiError):
        Client(url, "token").publish_batch([{"type": "a", "data": {}, "key": "k"}, EVENT])
    assert (len(seen), waits) == (1, [])


def test_a_publish_beyond_the_limit_did_nothing_and_is_asked_again(waits):
    with scripted(refusal(429), PUBLISHED) as (url, _):
        assert Client(url, "token").publish("a", {}).event_id == "evt_1"
    assert waits == [1]


def test_patience_ends(waits):
    with scripted(refusal(429, after=11)) as (url, _), pytest.raises(ApiError) as refused:
        Client(url, "token").get_endpoint("ep_1")
    assert refused.value.retry_after == 11
    with scripted(refusal(429)) as (url, _), pytest.raises(ApiError):
        Client(url, "token", patience_seconds=0).get_endpoint("ep_1")
    assert waits == []


# ------------------------------------------------------------------------------------ errors


EVENT = {"type": "a", "data": {}}


def canned(response: bytes):
    """A server with one answer to everything: its URL, and what it was asked."""
    return _answering(itertools.repeat(response))


def scripted(*responses: bytes):
    """A server with these answers, one after the other."""
    return _answering(iter(responses))


def _answering(responses: Iterator[bytes]):
    requests: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        requests.append(read_request(connection))
        connection.sendall(next(responses))

    class Canned(Receiver):
        def __enter__(self):
            super().__enter__()
            return self.url(""), requests

    return Canned(behave)


def test_a_refused_field_is_told_with_its_reason(client):
    with pytest.raises(ApiError) as refused:
        client.register_endpoint("ftp://example.com/", request_id="r-1")
    error = refused.value
    assert (error.status, error.code, error.retry_after) == (400, "invalid_request", None)
    assert list(error.details) == ["url"]
    assert error.request_id == "r-1"
    assert str(error) == f"{error.message} (invalid_request, request id r-1)"


def test_a_number_instead_of_an_id_is_refused_with_what_an_id_is(client):
    with pytest.raises(ApiError, match="must be an id such as ep_7"):
        client.get_endpoint(1)


def test_a_token_that_is_not_valid_is_unauthorized(live):
    with pytest.raises(ApiError) as refused:
        list(Client(live.url, "e30.e30.e30").list_endpoints())
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")


def test_how_long_to_wait_is_told():
    body = b'{"error":"rate_limited","message":"slow down","request_id":"r-2"}'
    head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: %d\r\n\r\n"
    with canned(head % len(body) + body) as (url, _), pytest.raises(ApiError) as refused:
        Client(url, "token", patience_seconds=0).publish("a", {})
    error = refused.value
    assert (error.status, error.code, error.retry_after) == (429, "rate_limited", 3.0)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", 200),
        (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 2\r\n\r\n{}", 302),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", 404),
    ],
)
def test_what_stands_before_the_api_is_not_taken_for_it(response, status):
    with canned(response) as (url, requests), pytest.raises(ApiError) as refused:
        Client(url, "token").publish("a", {})
    assert (refused.value.status, refused.value.code) == (status, "unexpected")
    assert f"answered {status}" in refused.value.message
    assert len(requests) == 1


def test_nobody_there_is_one_sentence():
    reserved, port = reserve_port()
    with reserved, pytest.raises(ApiError) as refused:
        Client(f"http://127.0.0.1:{port}", "token").publish("a", {})
    error = refused.value
    assert (error.status, error.code) == (None, "unreachable")
    assert error.message == f"http://127.0.0.1:{port}: Connection refused"


def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_asked():
    def say_nothing(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with Receiver(say_nothing) as silent:
        client = Client(silent.url(""), "token", timeout_seconds=0.2)
        with pytest.raises(ApiError, match=r"did not answer within 0\.2 s") as refused:
            client.publish("a", {})
        client.close()
    assert (refused.value.status, refused.value.code) == (None, "unreachable")


def test_a_connection_that_breaks_is_unreachable():
    def hang_up(connection: socket.socket) -> None:
        read_request(connection)

    with Receiver(hang_up) as broken, pytest.raises(ApiError) as refused:
        Client(broken.url(""), "token").publish("a", {})
    assert refused.value.code == "unreachable"


# ------------------------------------------------------------------------------------- token


def test_url_and_token_come_from_the_environment(live, tenant_id, monkeypatch):
    monkeypatch.setenv("HOOKJETTY_URL", f"{live.url}/")
    monkeypatch.setenv("HOOKJETTY_TOKEN", f"{live.tenant_token(tenant_id)}\n")
    assert list(Client().list_endpoints()) == []


def test_it_is_shown_nowhere(live):
    client = Client(live.url, "the-token-itself")
    with pytest.raises(ApiError) as refused:
        client.get_endpoint("ep_1")
    for shown in (repr(client), repr(vars(client)), repr(refused.value), str(refused.value)):
        assert "the-token-itself" not in shown
    assert repr(client) == f"Client('{live.url}')"


@pytest.mark.parametrize("token", [None, "", " \n", "tok\nen", "tökén"])
def test_a_token_is_needed(token, monkeypatch):
    monkeypatch.delenv("HOOKJETTY_TOKEN", raising=False)
    with pytest.raises(ValueError, match="a token is needed"):
        Client("http://127.0.0.1:1", token)


def test_a_netrc_does_not_replace_the_token(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with canned(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as (url, requests):
        Client(url, "token").get_endpoint("ep_1")
    assert b"Authorization: Bearer token\r\n" in requests[0]


# ------------------------------------------------------------------------------- completeness

# As in hookjetty.publish, and in the words of those who publish.
CALLED_OTHERWISE = {"publish_event": "publish", "publish_events": "publish_batch"}
# Another way to use an operation that has a method of its own.
OTHER_WAYS = {"dry_run", "feed", "count_bulk_retry", "close"}


@pytest.mark.parametrize(
    ("client_class", "prefix", "before"),
    [(Client, TENANT_PREFIX, ""), (AdminClient, ADMIN_PREFIX, "admin_")],
)
def test_there_is_a_method_for_every_operation_and_no_other(client_class, prefix, before):
    operations = {
        operation["operationId"].removeprefix(before)
        for path, methods in the_document()["paths"].items()
        if path.startswith(prefix)
        for operation in methods.values()
    }
    methods = {name for name in dir(client_class) if not name.startswith("_")}
    wanted = {CALLED_OTHERWISE.get(name, name) for name in operations}
    assert wanted - methods == set(), "without a method"
    assert methods - wanted <= OTHER_WAYS, "without an operation"
