"""What people and programs may try with the API: J7 to J17 of the threats.

J1 to J6, about tokens, are in test_tokens.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from flask import Flask

from app.db import db
from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX, Caller, execute, new_database
from tests.dispatching import (
    SECRET,
    add_endpoint,
    all_done,
    count,
    parse_request,
    running_engine,
    sealed,
    wait_until,
)
from tests.factories import attempt_rows, make_endpoint, publish, task_rows
from tests.hostile import OK, Receiver, answer, hang
from tests.live import LiveService

EVENT = {"type": "export.done", "data": {"n": 1}}
URL = "https://app/hook"


@pytest.fixture(scope="module")
def live(server_url: str, template: str) -> Iterator[LiveService]:
    """The API as it is shipped, with four workers; nobody delivers. Each test has its tenant."""
    with (
        new_database(server_url, template) as url,
        LiveService(url, dispatchers=0, API_WORKERS="4") as live,
    ):
        yield live


@pytest.fixture
def publisher(client, mint) -> Caller:
    """Tenant 7, who may also publish."""
    scopes = ["webhooks:read", "webhooks:write", "events:write"]
    return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=scopes))


# ------------------------------------------------------------------- J7: what is another tenant's


def test_j7_what_belongs_to_another_tenant_does_not_exist(app: Flask, owner, stranger):
    """Every route with an id answers to its stranger exactly as for an id that nobody has."""
    endpoint = make_endpoint(7, URL)
    event, _ = publish()
    (task,) = task_rows()
    replay = owner.post("/replay", {"endpoint_id": f"ep_{endpoint}", "from": f"evt_{event}"})
    ids = {
        "endpoint_id": f"ep_{endpoint}",
        "event_id": f"evt_{event}",
        "task_id": f"task_{task['id']}",
        "replay_id": replay.json["replay_id"],
    }
    nobodys = {name: re.sub("[0-9]+", "4711", text) for name, text in ids.items()}
    visited = 0
    for rule in app.url_map.iter_rules():
        path = rule.rule.removeprefix(TENANT_PREFIX)
        if path == rule.rule or not rule.arguments <= set(ids) or not rule.arguments:
            continue
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            told = [
                seen_of(stranger.call(method, filled(path, each)), each) for each in (ids, nobodys)
            ]
            assert told[0] == told[1], (method, path)
            assert told[0][0] in (404, 400), (method, path)
            assert told[0][0] == 404 or owner.call(method, filled(path, ids)).status_code == 400
            visited += 1
    assert visited >= 7


def test_j7_no_list_filter_watermark_cursor_or_key_reaches_over(owner, stranger):
    endpoints = [make_endpoint(7, f"https://app/{n}") for n in range(3)]
    event, _ = publish()
    mine, nobodys = ({"endpoint_id": f"ep_{n}"} for n in (endpoints[0], 4711))
    for method, path, body in (
        ("GET", "/tasks?endpoint_id={endpoint_id}", None),
        ("POST", "/replay", {"from": "2025-10-05T06:00:00Z"}),
        ("POST", "/endpoints", {"url": "https://another/"}),
    ):
        told = []
        for each in (mine, nobodys):
            asked = {} if body is None else {"json": body | each}
            told.append(seen_of(stranger.call(method, filled(path, each), **asked), each))
        assert told[0] == told[1], (method, path)
        assert told[0][0] == 404 or told[0][2] == '{"items":[],"next_cursor":null}', path
    theirs = make_endpoint(8, URL)
    watermark = {"endpoint_id": f"ep_{theirs}", "from": f"evt_{event}"}
    assert stranger.post("/replay", watermark).status_code == 404
    for path in ("/endpoints?limit=1", "/tasks?limit=1"):
        page = owner.get(path).json
        assert path != "/endpoints?limit=1" or page["next_cursor"]
        cursor = page["next_cursor"]
        if cursor:
            assert stranger.get(f"{path}&cursor={cursor}").status_code == 400
    same = {"headers": {"X-Request-Id": "one and the same".replace(" ", "-")}}
    ours = owner.post("/endpoints", {"url": "https://both/"}, **same)
    other = stranger.post("/endpoints", {"url": "https://both/"}, **same)
    assert (ours.status_code, other.status_code) == (201, 201)
    assert "Idempotent-Replayed" not in other.headers
    assert ours.json["secret"] != other.json["secret"]


def filled(path: str, ids: dict[str, str]) -> str:
    return re.sub(r"[<{](\w+)[>}]", lambda found: ids[found[1]], path)


def seen_of(answered, ids: dict[str, str]) -> tuple[int, list[str], str]:
    """What an answer tells, but for the ids that were asked for and its own request's."""
    text = answered.get_data(as_text=True)
    for name, value in ids.items():
        text = text.replace(value, name)
    own = answered.headers["X-Request-Id"]
    headers = sorted(name for name in dict(answered.headers) if name != "Content-Length")
    return answered.status_code, headers, text.replace(own, "").strip()


# -------------------------------------------------------------------------- J8: idempotency keys


def at_once(number: int, work: Callable[[], Any]) -> list[Any]:
    """The results of ``work`` in so many threads that begin together."""
    barrier = threading.Barrier(number)
    results: list[Any] = []

    def run() -> None:
        barrier.wait()
        results.append(work())

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_j8_fifty_at_once_do_the_work_once_and_get_one_answer(live):
    """Across gunicorn's workers, and whatever the limits: a repeat does no work."""
    for path, body, table in (
        ("/events", EVENT, "events"),
        ("/events/batch", {"events": [EVENT] * 5}, "events"),
        ("/endpoints", {"url": URL}, "endpoints"),
    ):
        counted = f"SELECT count(*) FROM hookjetty.{table} WHERE tenant_id = 88"
        ((before,),) = execute(live.database_url, counted)

        def call(path: str = path, body: Any = body) -> requests.Response:
            return requests.post(
                live.url + TENANT_PREFIX + path,
                json=body,
                headers={
                    "Authorization": f"Bearer {live.tenant_token(88)}",
                    "X-Request-Id": f"at-once{path}",
                },
                timeout=30,
            )

        answers = at_once(50, call)
        ((after,),) = execute(live.database_url, counted)
        assert after - before == (5 if "batch" in path else 1)
        assert len({(answer.status_code, answer.text) for answer in answers}) == 1
        assert answers[0].status_code in (201, 202)
        repeats = Counter(answer.headers.get("Idempotent-Replayed") for answer in answers)
        assert repeats == {"true": 49, None: 1}


def test_j8_a_key_is_one_request_of_one_tenant_and_nothing_odd(publisher, stranger, monkeypatch):
    key = {"headers": {"X-Request-Id": "r-1"}}
    first = publisher.post("/events", EVENT, **key)
    assert publisher.post("/events", EVENT, **key).json == first.json
    assert publisher.post("/events", EVENT | {"data": {}}, **key).status_code == 409
    for odd in ("x" * 10_000, "a\x00b", "\u00e9", "a b", ""):
        refused = publisher.post("/events", EVENT, environ_overrides={"HTTP_X_REQUEST_ID": odd})
        assert (refused.status_code, refused.json["error"]) == (400, "invalid_request"), odd
    # The key and the work are one transaction: what fails between them leaves neither.
    monkeypatch.setattr("app.idempotency.IdempotencyKey.update", None)
    crashed = publisher.post("/events", EVENT, headers={"X-Request-Id": "r-2"})
    assert (crashed.status_code, count("events"), count("idempotency_keys")) == (500, 1, 1)
    monkeypatch.undo()
    again = publisher.post("/events", EVENT, headers={"X-Request-Id": "r-2"})
    assert (again.status_code, count("events")) == (202, 2)


# ------------------------------------------------------------------------ J9: replays as a weapon


def test_j9_replays_are_jobs_one_at_a_time_few_a_minute_and_can_be_canceled(owner):
    """They count as tasks of lane 1, and are made in batches (tests/test_jobs.py)."""
    one, other = (make_endpoint(7, f"https://app/{n}") for n in range(2))
    wanted = {"endpoint_id": f"ep_{one}", "from": "2025-10-05T06:00:00Z"}
    key = {"headers": {"X-Request-Id": "once"}}
    started = owner.post("/replay", wanted, **key)
    assert started.status_code == 202
    assert owner.post("/replay", wanted, **key).json == started.json
    assert owner.post("/replay", wanted).status_code == 409
    assert owner.post("/replay", wanted | {"endpoint_id": f"ep_{other}"}).status_code == 202
    canceled = owner.post(f"/replays/{started.json['replay_id']}/cancel")
    assert canceled.status_code == 200
    answers = [owner.post("/replay", wanted).status_code for _ in range(5)]
    assert answers == [202, 409, 409, 429, 429]
    assert count("tasks") == 0, "nothing is made before a dispatcher does, in batches"


@pytest.mark.usefixtures("database")
def test_j9_a_replay_yields_to_live_events():
    seen: list[bytes] = []
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url())
        for _ in range(20):
            publish()
        db.execute_sql("UPDATE hookjetty.tasks SET lane = 1, replay_id = 1")
        live = [f"evt_{publish()[0]}" for _ in range(5)]
        with running_engine(SLOTS="1"):
            wait_until(all_done)
    arrived = [parse_request(request)[1]["webhook-id"] for request in seen]
    assert len(arrived) == 25
    assert arrived[:5] == live


# -------------------------------------------------------------------------- J10: SQL in the input

SQL_INJECTIONS = [
    "'",
    '"',
    "';--",
    "' OR '1'='1",
    "1; DROP TABLE hookjetty.events;--",
    "') OR 1=1--",
    "1' AND (SELECT 1 FROM pg_sleep(9))::text='1",
    "'||pg_sleep(9)||'",
    "1;SELECT pg_sleep(9)--",
    "$$;SELECT pg_sleep(9);$$",
    "\\'; SELECT pg_sleep(9);--",
    "%27%20OR%201=1",
    "{7}",
    "ARRAY[1]",
    "1::text",
    "current_user",
    "(SELECT secret FROM hookjetty.endpoints LIMIT 1)",
    "%s",
    "%(tenant)s",
    "' UNION SELECT secret FROM hookjetty.endpoints--",
    "id DESC; SELECT 1",
    "hookjetty.events",
    "\ufe68' OR 1=1--",
    "-1",
    "1e9",
    "0x31",
    "NULL",
    "ep_1' OR '1'='1",
    "evt_1;--",
    "$1",
    ":1",
    "?",
]


def test_j10_sql_in_any_parameter_or_field_is_just_text(publisher, admin, app: Flask):
    make_endpoint(7, URL)
    publish(data={"text": "mine"})
    lists = (publisher, "/tasks"), (publisher, "/endpoints"), (admin, "/tasks")
    published = 0
    started = time.monotonic()
    for text in SQL_INJECTIONS:
        db.execute_sql("DELETE FROM hookjetty.rate_limits")
        for name in (
            "cursor",
            "limit",
            "status",
            "endpoint_id",
            "type",
            "tenant_id",
            "sort",
            "key",
        ):
            for who, path in lists:
                query = {"tenant_id": "7"} if who is admin else {}
                harmless(who.get(path, query_string=query | {name: text}))
        for path in ("/endpoints/{}", "/tasks/{}", "/events/{}", "/replays/{}"):
            harmless(publisher.get(path.format(text)))
        for body in ({"url": text}, {"url": URL, "events": [text]}, {"endpoint_id": text}):
            harmless(publisher.post("/endpoints", body))
        harmless(publisher.post("/endpoints", {"url": URL, "secret": text}))
        harmless(publisher.post("/replay", {"endpoint_id": text, "from": text}))
        harmless(admin.post("", {"tenant_id": text, "url": text}))
        harmless(admin.post("/delete", {"id": text}))
        named = publisher.post("/events", {"type": text, "data": {}})
        harmless(named)
        published += named.status_code == 202
        kept = publisher.post("/events", {"type": "a", "data": {text: text}, "key": text})
        assert kept.status_code == 202
        found = publisher.get(f"/events/{kept.json['event_id']}")
        assert json.loads(found.text)["data"] == {text: text}
    assert (count("endpoints"), count("events")) == (1, 1 + published + len(SQL_INJECTIONS))
    assert time.monotonic() - started < 30, "something slept"


def harmless(answered) -> None:
    assert answered.status_code in (200, 201, 202, 400, 404, 409), answered.text
    assert "not encrypted" not in answered.text, "the factory's secret"


# ---------------------------------------------------------------- J11: size and shape of a request


def test_j11_bodies_that_only_a_real_server_sees(live):
    """Chunked, too long, of a length that is a lie."""
    headers = {
        "Authorization": f"Bearer {live.tenant_token(11)}",
        "Content-Type": "application/json",
    }
    path = f"{TENANT_PREFIX}/events"
    event = b'{"type": "x", "data": {}}'
    too_long = event[:-1] + b" " * (512 * 1024 + 1 - len(event)) + b"}"
    with requests.Session() as session:
        for body, status in (
            (event, 202),
            (too_long[:-2] + b"}", 202),
            (too_long, 400),
            (too_long * 10, 400),
            (event, 202),
        ):
            for sent in (body, iter([body[:10], body[10:]])):  # with Content-Length, and chunked
                answer = session.post(live.url + path, data=sent, headers=headers, timeout=10)
                assert answer.status_code == status, answer.text
                if status == 400:
                    assert answer.json()["details"] == {"body": "is longer than 524288 bytes"}
    for lie in (
        b"Content-Length: 99\r\n\r\n" + event,
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n{}\r\n0\r\n\r\n",
    ):
        token = headers["Authorization"].encode()
        said = talk(
            live.port,
            b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\n"
            b"Content-Type: application/json\r\n%b" % (path.encode(), token, lie),
        )
        assert said == b"" or said.startswith(b"HTTP/1.1 400 "), said
    assert "Traceback" not in live.log()
    answer = requests.post(live.url + path, data=event, headers=headers, timeout=10)
    assert answer.status_code == 202


def test_j11_shapes_that_break_readers_are_refused(publisher):
    """All of JSONTestSuite is in test_corpora.py, the limits' places in test_publish_api.py."""
    for data in [
        "[" * 100_000,
        '{"a":' * 50_000,
        "[" + "1," * 100_000 + "1]",
        '{"a": %s}' % ("9" * 5000),
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": "\\ud800"}',
        '{"a": "\\u0000"}',
        "{}{}",
        "{",
        "",
        "null",
        "[]",
        '"{}"',
        "\ufeff{}",
        "{" + '"' * 100_001 + "}",
    ]:
        for path, body in (
            ("/events", f'{{"type": "a", "data": {data}}}'),
            ("/events/batch", f'{{"events": [{{"type": "a", "data": {data}}}]}}'),
            ("/endpoints", data),
        ):
            answered = publisher.post(path, data=body, content_type="application/json")
            assert (answered.status_code, answered.json["error"]) == (400, "invalid_request"), data
    million = json.dumps({"type": "a", "data": dict.fromkeys(map(str, range(30_000)), 0)})
    assert publisher.post("/events", data=million, content_type="application/json").status_code in (
        202,
        400,
    )
    gzipped = publisher.post("/events", EVENT, headers={"Content-Encoding": "gzip"})
    assert gzipped.status_code == 400


# -------------------------------------------------------------------- J12: what comes in goes out

TEXTS = [
    '{"a":1e400}',
    '{"a":0.1,"b":12345678901234567890.10,"c":1e-400,"d":-0.0,"e":1E+2}',
    '{"b":1,"a":2}',
    '{ "a" :\t1 ,\n"b" : [ ] }',
    '{"a":"\\/\\u00e4\u00e4\\ud83d\\ude00\U0001f600"}',
    '{"a":9007199254740993,"b":18446744073709551616}',
    '{"":{"":[]}}',
    '{"a":"\u2028\\u2028\x7f"}',
]


def test_j12_what_is_accepted_is_delivered_byte_for_byte(publisher):
    seen: list[bytes] = []
    accepted: dict[str, str] = {}
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url())
        for text in TEXTS:
            body = f'{{"type":"a","data":{text}}}'
            answered = publisher.post(
                "/events", data=body.encode(), content_type="application/json"
            )
            if answered.status_code == 202:
                accepted[answered.json["event_id"]] = text
            else:
                assert answered.status_code == 400, text
                assert "1e400" in text, "what PostgreSQL's numbers cannot hold is refused up front"
        with running_engine():
            wait_until(all_done)
    assert len(accepted) >= len(TEXTS) - 1
    for event_id, text in accepted.items():
        assert f'"data":{text}}}' in publisher.get(f"/events/{event_id}").get_data(as_text=True)
    delivered = {parse_request(each)[1]["webhook-id"]: parse_request(each)[2] for each in seen}
    assert {
        event_id: body.decode().partition(',"data":')[2] for event_id, body in delivered.items()
    } == {event_id: f"{text}}}" for event_id, text in accepted.items()}


# ------------------------------------------------------------------------------ J13: slow clients


def test_j13_two_hundred_slow_clients_delay_nobody(live):
    """With gunicorn as it is shipped: silent, dripping a head, dripping a body, not reading."""
    token = live.tenant_token(13)
    head = b"POST %b/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" % (
        TENANT_PREFIX.encode()
    )
    beginnings = (
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ",
        head + b"Content-Length: 100000\r\n\r\n{",
        head + b"Authorization: Bearer %b\r\nContent-Length: 9999\r\n\r\n{" % token.encode(),
        head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 4,
    )
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(200):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", live.port)))
            client.sendall(beginnings[number % len(beginnings)])
            clients.append(client)
        waits = []
        headers = {"Authorization": f"Bearer {live.admin_token}"}
        for _ in range(20):
            for client in clients[:20]:
                with contextlib.suppress(OSError):
                    client.sendall(b"1")
            started = time.monotonic()
            answered = requests.get(
                f"{live.url}{ADMIN_PREFIX}?tenant_id=13", headers=headers, timeout=10
            )
            waits.append(time.monotonic() - started)
            assert answered.status_code == 200
    assert sorted(waits)[-2] < 1, waits


# ----------------------------------------------------------------- J14: ten requests in any second


def test_j14_no_second_of_a_tenant_has_more_than_ten_whichever_worker_is_asked(live):
    """40 a second by 8 connections, which gunicorn spreads over its workers, for 3 seconds."""
    accepted: list[tuple[float, float]] = []
    refused: list[str] = []
    over = time.monotonic() + 3
    barrier = threading.Barrier(8)

    def ask(number: int) -> None:
        with requests.Session() as session:
            session.get(f"{live.url}/healthz", timeout=10)
            barrier.wait()
            while (before := time.monotonic()) < over:
                answered = session.get(
                    f"{live.url}{TENANT_PREFIX}/endpoints",
                    headers={
                        "Authorization": f"Bearer {live.tenant_token(14)}",
                        "X-Forwarded-For": f"192.0.2.{number}",
                    },
                    timeout=10,
                )
                if answered.status_code == 200:
                    accepted.append((before, time.monotonic()))
                else:
                    assert answered.status_code == 429
                    refused.append(answered.headers["Retry-After"])
                time.sleep(max(0.0, before + 0.2 - time.monotonic()))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The database counted each somewhere between its question and its answer.
    for asked, _ in accepted:
        within = sum(1 for before, after in accepted if asked <= before and after < asked + 1)
        assert within <= 10
    assert len(accepted) >= 21
    assert len(refused) > len(accepted)
    assert set(refused) == {"1"}


# ------------------------------------------------------------------------ J15: what is not HTTP


def request_with(*lines: bytes, line: bytes = b"GET /healthz HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *lines, b"", b""])


HOST = b"Host: x"
NOT_HTTP = [
    b"\r\n\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET\r\n\r\n",
    b"GET /healthz\r\n\r\n",
    request_with(HOST, line=b"GET /healthz HTTP/9.9"),
    request_with(HOST, line=b"GET  HTTP/1.1"),
    request_with(HOST, line=b"GE\x00T /healthz HTTP/1.1"),
    request_with(HOST, line=b"get /healthz HTTP/1.1"),
    request_with(HOST, line=b"GET /" + b"a" * 9000 + b" HTTP/1.1"),
    request_with(HOST, line=b"GET /healthz\x01 HTTP/1.1"),
    request_with(HOST, HOST),
    request_with(HOST, b"A b: c"),
    request_with(HOST, b": c"),
    request_with(HOST, b"A\x00: c"),
    request_with(HOST, b"A: b\x00c"),
    request_with(HOST, b"A: b\rc"),
    request_with(HOST, b"A : b"),
    request_with(HOST, b" folded"),
    request_with(HOST, b"A: b", b" folded"),
    request_with(HOST, *[b"A%d: b" % n for n in range(200)]),
    request_with(HOST, b"A: " + b"b" * 9000),
    request_with(HOST, b"Content-Length: -1"),
    request_with(HOST, b"Content-Length: +1"),
    request_with(HOST, b"Content-Length: 1_0"),
    request_with(HOST, b"Content-Length: 0x1"),
    request_with(HOST, b"Content-Length: 1, 1"),
    request_with(HOST, b"Content-Length: "),
    request_with(HOST, b"Content-Length: 0", b"Content-Length: 1"),
    request_with(HOST, b"Content-Length: 1", b"Transfer-Encoding: chunked"),
    request_with(HOST, b"Transfer-Encoding: chunked, chunked"),
    request_with(HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    request_with(HOST, b"Transfer-Encoding: gzip"),
    request_with(HOST, b"Transfer-Encoding: xchunked"),
    request_with(HOST, b"Transfer-Encoding: chunked", line=b"GET /healthz HTTP/1.0"),
    request_with(HOST, line=b"PRI * HTTP/2.0") + b"SM\r\n\r\n",
]


def test_j15_what_is_not_http_is_a_4xx_or_nothing_and_the_end_of_the_connection(live):
    for said in NOT_HTTP:
        smuggled = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
        heard = talk(live.port, said + smuggled)
        assert heard == b"" or re.match(rb"HTTP/1\.1 (4\d\d|50[15]) ", heard), (said, heard)
        assert len(re.findall(rb"^HTTP/1", heard, re.MULTILINE)) <= 1, (said, heard)
        assert b"schema_version" not in heard, "what followed was answered"
    assert requests.get(f"{live.url}/healthz", timeout=10).status_code == 200
    assert "Traceback" not in live.log()


def talk(port: int, said: bytes) -> bytes:
    """What comes back when the client says this and then nothing more."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


# ------------------------------------------------------------------------------ J16: neighbours


@pytest.mark.usefixtures("database")
def test_j16_a_tenant_whose_server_hangs_with_hundreds_of_events_delays_nobody():
    """And in processes of their own in tests/acceptance/test_bad_receivers.py."""
    with Receiver(hang) as silent, Receiver(answer(OK)) as well:
        for number in range(3):
            add_endpoint(7, silent.url(f"/{number}"))
        db.execute_sql(
            "SELECT hookjetty.publish_events(7, json_agg(json_build_object('type', 'a', 'data',"
            " json_build_object('n', n)))) FROM generate_series(1, 300) n"
        )
        quick = add_endpoint(8, well.url())
        with running_engine(TIMEOUT_SECONDS="1", CONNECT_TIMEOUT_SECONDS="1"):
            wait_until(lambda: silent.connections > 0)
            publish(8)
            started = time.monotonic()
            wait_until(lambda: count(f"tasks WHERE endpoint_id = {quick} AND status = 'delivered'"))
            assert time.monotonic() - started < 1
            assert count("tasks WHERE tenant_id = 7 AND status <> 'delivered'") == 900
            db.execute_sql("UPDATE hookjetty.endpoints SET status = 'paused' WHERE tenant_id = 7")


# --------------------------------------------------------------------------- J17: poisoned tasks


def ends_of(endpoint: int) -> list[tuple[str, str | None]]:
    """How the tasks of an endpoint ended."""
    tasks = task_rows(f"endpoint_id = {endpoint}")
    return [(row["status"], row["failure"]) for row in tasks]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "poison",
    [
        {"secret": "what no key of ours has encrypted"},
        {"secret": sealed(SECRET, 8)},
        {"secret": sealed("short", 7)},
        {"retired_secrets": '[{"secret": "nonsense", "until": "2999-01-01T00:00:00.000Z"}]'},
        {"retired_secrets": '[{"secret": "x", "until": "some day"}]'},
        {"retired_secrets": '[{"secret": "x", "until": "2999-01-01T00:00:00"}]'},
        {"retired_secrets": '[{"secret": "x"}]'},
        {"retired_secrets": '["x"]'},
        {"retired_secrets": "7"},
    ],
    ids=[
        "a secret that does not decrypt",
        "a secret of another tenant",
        "a secret that is none",
        "a retired secret that does not decrypt",
        "a retired secret until some day",
        "a retired secret without a time zone",
        "a retired secret without an end",
        "a retired secret that is a string",
        "retired secrets that are a number",
    ],
)
def test_j17_what_cannot_be_signed_ends_and_its_neighbours_are_delivered(poison):
    """Rows that our own code does not write, but somebody with access to the database may."""
    with Receiver(answer(OK)) as receiver:
        columns = {"secret": sealed(SECRET, 7)} | poison
        bad = make_endpoint(7, receiver.url("/bad"), **columns)
        good = add_endpoint(7, receiver.url("/good"))
        with running_engine(RETRY_SCHEDULE="0,0.2s", RETRY_JITTER="0"):
            for _ in range(3):
                publish()
            wait_until(all_done, 5)
    assert ends_of(good) == [("delivered", None)] * 3
    assert ends_of(bad) == [("failed", "unsendable")] * 3
    # No hot loop: one attempt for each step of the schedule.
    assert [row["try"] for row in attempt_rows(f"endpoint_id = {bad}")] == [1, 2] * 3


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "ftp://127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1/\r\nX-Injected: yes",
        "http://user:password@127.0.0.1/",
        "http://[::1/",
        "http://10.0.0.1/",
        "http://" + "a" * 64 + ".test/",
    ],
)
def test_j17_a_stored_url_that_may_not_be_called_ends_and_its_neighbours_are_delivered(url):
    with Receiver(answer(OK)) as receiver:
        bad, good = add_endpoint(7, "https://example.com/"), add_endpoint(7, receiver.url())
        db.execute_sql("UPDATE hookjetty.endpoints SET url_key = %s WHERE id = %s", (url, bad))
        with running_engine(RETRY_SCHEDULE="0,0.2s", RETRY_JITTER="0"):
            publish()
            wait_until(all_done, 5)
    assert ends_of(good) == [("delivered", None)]
    assert ends_of(bad) == [("failed", "blocked_address")]
    assert [row["try"] for row in attempt_rows(f"endpoint_id = {bad}")] == [1, 2]


@pytest.mark.usefixtures("database")
def test_j17_a_task_whose_event_is_gone_ends_unsent_and_its_neighbours_are_delivered():
    seen: list[bytes] = []
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url())
        gone, _ = publish()
        kept, _ = publish()
        db.execute_sql("DELETE FROM hookjetty.events WHERE id = %s", (gone,))
        with running_engine():
            wait_until(all_done, 5)
    assert {row["event_id"]: (row["status"], row["failure"]) for row in task_rows()} == {
        gone: ("failed", "expired"),
        kept: ("delivered", None),
    }
    assert len(seen) == len(attempt_rows()) == 1


@pytest.mark.usefixtures("database")
def test_j17_a_task_whose_endpoint_is_gone_ends_and_its_neighbours_are_delivered():
    """No row of ours goes, since none is ever deleted; somebody else's DELETE may take it."""
    with Receiver(answer(OK)) as receiver:
        gone = add_endpoint(7, receiver.url("/gone"))
        good = add_endpoint(7, receiver.url("/good"))
        for _ in range(3):
            publish()
        db.execute_sql("DELETE FROM hookjetty.endpoints WHERE id = %s", (gone,))
        with running_engine():
            wait_until(lambda: ends_of(good) == [("delivered", None)] * 3, 5)
            wait_until(all_done, 5)
    assert ends_of(gone) == [("canceled", None)] * 3
