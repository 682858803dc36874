"""Publishing over HTTP: POST /events and POST /events/batch."""

from __future__ import annotations

import json
import threading
from typing import Any

import psycopg2
import pytest
from werkzeug.test import TestResponse

from app import publish as publishing
from app.db import db
from tests.conftest import TENANT_PREFIX, Caller
from tests.factories import make_endpoint, rows, task_rows

KIB = 1024


@pytest.fixture
def publisher(client, mint) -> Caller:
    """Tenant 7 with a token that may publish."""
    return Caller(client, TENANT_PREFIX, mint(tenant_id=7, scopes=["events:write"]))


def event(**fields: Any) -> dict[str, Any]:
    return {"type": "export.done", "data": {"n": 1}} | fields


def raw(caller: Caller, body: str | bytes, path: str = "/events", **options: Any) -> TestResponse:
    return caller.post(path, data=body, content_type="application/json", **options)


def accepted(answer: TestResponse, status: int = 202) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json


def refusal(answer: TestResponse, status: int = 400, code: str = "invalid_request") -> str:
    assert answer.status_code == status, answer.text[:500]
    assert answer.json["error"] == code
    assert event_rows() == []
    return answer.json["message"]


def event_rows() -> list[dict[str, Any]]:
    return rows(db.execute_sql("SELECT *, data::text AS text FROM hookjetty.events ORDER BY id"))


# ------------------------------------------------------------------------------------ one event


def test_an_event_becomes_a_task_for_every_endpoint_that_wants_it(publisher):
    wanting = [make_endpoint(7, f"https://app/{n}", events=[p]) for n, p in
               enumerate(["*", "export.*", "export.done"])]  # fmt: skip
    make_endpoint(7, "https://app/other", events=["import.*"])
    make_endpoint(8)
    made = accepted(publisher.post("/events", event()))
    (row,) = event_rows()
    assert made == {"event_id": f"evt_{row['id']}", "tasks": 3}
    assert (row["tenant_id"], row["type"]) == (7, "export.done")
    assert sorted(task["endpoint_id"] for task in task_rows()) == wanting


def test_an_event_that_nobody_wants_is_kept(publisher):
    assert accepted(publisher.post("/events", event()))["tasks"] == 0
    assert len(event_rows()) == 1


def test_the_very_text_of_the_data_is_kept(publisher):
    text = '{"z": 1.50,\n"a" :[1E2, 12345678901234567890, "\\u00e9é\\/"],"n":-0.0}'
    accepted(raw(publisher, f'{{"data" : {text} , "type": "x"}}'))
    assert event_rows()[0]["text"] == text


def test_a_known_key_gets_the_first_answer_with_200(publisher):
    make_endpoint()
    first = accepted(publisher.post("/events", event(key="k")))
    again = accepted(publisher.post("/events", event(key="k", data={"n": 2})), 200)
    assert again == first
    assert accepted(publisher.post("/events", event(key="K"))) != first
    assert len(event_rows()) == 2


def test_the_same_key_at_the_same_time_makes_one_event_and_one_202(app, mint):
    answers: list[tuple[int, str]] = []
    token = mint(tenant_id=7, scopes=["events:write"])

    def publish() -> None:
        caller = Caller(app.test_client(), TENANT_PREFIX, token)
        answer = caller.post("/events", event(key="k"))
        answers.append((answer.status_code, answer.json["event_id"]))
        db.give_up()

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200] * 7 + [202]
    assert {event_id for _, event_id in answers} == {f"evt_{row['id']}" for row in event_rows()}


def test_a_key_whose_event_has_expired_is_still_known(publisher):
    first = accepted(publisher.post("/events", event(key="k")))
    db.execute_sql("DELETE FROM hookjetty.events")
    assert accepted(publisher.post("/events", event(key="k")), 200) == first


def test_the_hot_path_is_one_statement_in_autocommit(publisher, monkeypatch):
    """It commits twice, once for the bucket and once for the event."""
    publisher.post("/events", event())
    statements: list[str] = []
    execute_sql = db.execute_sql

    def listening(sql: str, *args: Any, **kwargs: Any) -> Any:
        statements.append(sql)
        return execute_sql(sql, *args, **kwargs)

    monkeypatch.setattr(db, "execute_sql", listening)
    monkeypatch.setattr(db, "begin", lambda *_: pytest.fail("a transaction was begun"))
    accepted(publisher.post("/events", event()))
    assert len(statements) == 1
    assert "publish_within_limit" in statements[0]


def test_who_waits_for_a_key_keeps_nobody_of_the_tenant_waiting(app, mint, database):
    """The bucket is one row for all that the tenant publishes, and is not held meanwhile."""
    token = mint(tenant_id=7, scopes=["events:write"])
    other = psycopg2.connect(database)
    with other.cursor() as cursor:
        cursor.execute("SELECT * FROM hookjetty.publish_event(7, 'x', '{}', 'k')")

    def wait_for_key() -> None:
        caller = Caller(app.test_client(), TENANT_PREFIX, token)
        accepted(caller.post("/events", event(key="k")), 200)
        db.give_up()

    thread = threading.Thread(target=wait_for_key)
    caller = Caller(app.test_client(), TENANT_PREFIX, token)
    accepted(caller.post("/events", event()))
    thread.start()
    while not rows(
        db.execute_sql("SELECT 1 FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()")
    ):
        pass
    accepted(caller.post("/events", event()))
    assert thread.is_alive()
    other.commit()
    other.close()
    thread.join()


def test_a_single_event_that_is_the_victim_of_a_deadlock_is_tried_again(publisher, database):
    """Somebody else's transaction has one key and wants ours, which waits for that one."""
    publisher.post("/events", event())
    db.execute_sql(
        "CREATE FUNCTION hookjetty.fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('hookjetty.failures') = 1 THEN"
        " RAISE EXCEPTION USING ERRCODE = 'deadlock_detected'; END IF; RETURN NEW; END $$"
    )
    db.execute_sql("CREATE SEQUENCE hookjetty.failures")
    db.execute_sql(
        "CREATE TRIGGER t BEFORE INSERT ON hookjetty.event_keys FOR EACH ROW"
        " EXECUTE FUNCTION hookjetty.fail_once()"
    )
    accepted(publisher.post("/events", event(key="k")))
    assert len(event_rows()) == 2


# ----------------------------------------------------------------------------------- who may


def test_a_service_publishes_for_whichever_tenant_it_names(producer):
    for tenant in (7, 8):
        accepted(producer.post("/events", event(tenant_id=tenant)))
        accepted(producer.post("/events/batch", {"tenant_id": tenant, "events": [event()]}))
    assert [row["tenant_id"] for row in event_rows()] == [7, 7, 8, 8]


def test_a_service_has_to_name_one(producer):
    assert refusal(producer.post("/events", event())).startswith("tenant_id: is missing")
    assert refusal(producer.post("/events/batch", {"events": [event()]})).startswith("tenant_id: ")
    for tenant in ("7", 0, True, 7.0, None, 2**53):
        assert refusal(producer.post("/events", event(tenant_id=tenant))).startswith("tenant_id: ")


def test_a_tenant_may_name_itself_and_nobody_else(publisher):
    for body, path in ((event(), "/events"), ({"events": [event()]}, "/events/batch")):
        answer = publisher.post(path, body | {"tenant_id": 8})
        assert "tenant 7" in refusal(answer, 403, "forbidden")
        assert "tenant_id" in answer.json["details"]
    accepted(publisher.post("/events", event(tenant_id=7)))
    accepted(publisher.post("/events/batch", {"events": [event()], "tenant_id": 7}))


def test_publishing_takes_its_own_scope(client, mint):
    for claims in (
        {"tenant_id": 7},
        {"tenant_id": 7, "scopes": ["webhooks:read", "webhooks:write"]},
        {"role": "service"},
        {"role": "service", "scopes": ["webhooks:write"]},
        {"role": "admin", "scopes": ["events:write"]},
        {"scopes": ["events:write"]},
    ):
        caller = Caller(client, TENANT_PREFIX, mint(**claims))
        refusal(caller.post("/events", event(tenant_id=7)), 403, "forbidden")
        refusal(caller.post("/events/batch", {"events": [event()]}), 403, "forbidden")


# ---------------------------------------------------------------------------------- bad input


def test_bad_fields_are_named_with_the_reason(publisher):
    for body, field, reason in (
        ({"data": {}}, "type", "missing"),
        ({"type": "x"}, "data", "missing"),
        (event(type=7), "type", "string"),
        (event(type=""), "type", "segments"),
        (event(type="a..b"), "type", "segments"),
        (event(type="export done"), "type", "segments"),
        (event(type="export.dóne"), "type", "segments"),
        (event(type="x\n"), "type", "segments"),
        (event(type="a" * 129), "type", "128"),
        (event(type="hookjetty.x"), "type", "reserved"),
        (event(type=None), "type", "null"),
        (event(data=[]), "data", "object"),
        (event(data="{}"), "data", "object"),
        (event(data=None), "data", "null"),
        (event(key=""), "key", "1 to 255"),
        (event(key="k" * 256), "key", "1 to 255"),
        (event(key=7), "key", "string"),
        (event(dta=1), "dta", "type, data, key, tenant_id"),
    ):
        answer = publisher.post("/events", body)
        message = refusal(answer)
        assert message.startswith(f"{field}: "), body
        assert reason in message, body
        assert set(answer.json["details"]) == {field}


def test_json_that_cannot_be_kept_is_refused_with_the_field_and_the_reason(publisher):
    for data, field, reason in (
        ("NaN", "data", "NaN"),
        ('{"a": NaN}', "data.a", "NaN"),
        ('{"a": [0, Infinity]}', "data.a[1]", "Infinity"),
        ('{"a": -Infinity}', "data.a", "Infinity"),
        ('{"a": 1e200000}', "data.a", "too large"),
        ('{"a": 1e400}', "data.a", "too large"),
        ("[" * 100_000, "data", "nested"),
        ('{"a":' * 100_000, "data.a", "nested"),
        ('{"a": ' + "9" * 5000 + "}", "data.a", "1,000 characters"),
        ('{"a": "x\\u0000y"}', "data.a", "NUL"),
        ('{"a": "\\ud800"}', "data.a", "surrogate"),
        ('{"\\udc00": 1}', "data", "surrogate"),
        ('{"a": 1, "b": 2, "a": 3}', "data.a", "twice"),
        ('{"a": {"b": 1, "b": 1}}', "data.a.b", "twice"),
        ('{"a": 1,}', "data", "key"),
        ("{'a': 1}", "data", "key"),
        ('{"a": 01}', "data.a", "comma"),
        ('{"a": "\x01"}', "data.a", "control"),
        ('{"a": tru}', "data.a", "value"),
    ):
        answer = raw(publisher, f'{{"type": "x", "data": {data}}}')
        message = refusal(answer)
        assert message.startswith(field), (data[:40], message)
        assert reason in message, (data[:40], message)


def test_bodies_that_are_no_json_object_are_refused(publisher):
    for body in (
        b"", b" ", b"{", b"}", b"[]", b"7", b'"x"', b"null", b"[" * 100_000, b"{}x", b"{} {}",
        b"\xff", b"\xef\xbb\xbf{}", b"\x00", b'{"type": "\xc3"}', b'{"type": "x", "data": {}} 1',
        '{"type": "x", "data": {}}'.encode("utf-16"), b'{"type":"x","type":"x","data":{}}',
    ):  # fmt: skip
        refusal(raw(publisher, body))
        refusal(raw(publisher, body, "/events/batch"))


def test_a_body_may_have_512_kib_and_no_byte_more(publisher):
    for size, status in ((512 * KIB, 202), (512 * KIB + 1, 400)):
        body = b'{"type": "x", "data": {}' + b"}"
        padded = body[:-1] + b" " * (size - len(body)) + b"}"
        answer = raw(publisher, padded)
        assert answer.status_code == status
    assert answer.json["message"] == "body: is longer than 524288 bytes"


def test_data_may_have_256_kib_and_no_byte_more(publisher):
    for size, status in ((256 * KIB, 202), (256 * KIB + 1, 400)):
        data = '{"a": "' + "é" * ((size - 9) // 2) + "x" * ((size - 9) % 2) + '"}'
        assert len(data.encode()) == size
        answer = raw(publisher, f'{{"type": "x", "data": {data}}}')
        assert answer.status_code == status, answer.text[:200]
    assert answer.json["message"] == "data: is longer than 256 KiB (262144 bytes)"


def test_an_encoded_body_is_refused(publisher):
    answer = raw(publisher, b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert refusal(answer).startswith("Content-Encoding: ")


def test_parameters_that_do_not_exist_are_refused_rather_than_ignored(publisher):
    """Somebody who mistypes ?dry_run=1 must not publish."""
    answer = raw(publisher, json.dumps(event()), "/events?dryrun=1")
    assert refusal(answer) == "dryrun: is not a field of this; there are dry_run"


def test_what_only_postgresql_refuses_is_a_400_with_its_reason(publisher, monkeypatch):
    """The function has the last word, whatever was checked before."""
    monkeypatch.setattr(
        "app.schemas.fields.EventType._deserialize", lambda _self, value, *_, **__: value
    )
    batch = {"events": [event(), event(key="k"), event(type="a b")]}
    for path, body, field in (
        ("/events", event(type="a b"), "type"),
        ("/events/batch", batch, "events.2.type"),
    ):
        for headers in ({}, {"X-Request-Id": "r-1"}):
            answer = publisher.post(path, body, headers=headers)
            assert refusal(answer).startswith(f"{field}: must be segments")
            assert list(answer.json["details"]) == [field]


def test_json_that_only_postgresql_refuses_is_a_400_too(database):
    for data in ("{", '{"a": "\\u0000"}', '{"a": "\\ud800"}', '{"a": 1e999999}', "[1]"):
        with pytest.raises(Exception, match="data: ") as refused:
            publishing.publish(7, publishing.NewEvent("x", data))
        assert refused.value.code == "invalid_request"


# -------------------------------------------------------------------------------------- batch


def test_a_batch_is_answered_in_its_order(publisher):
    make_endpoint(events=["a"])
    events = [event(type="b", key="z"), event(type="a", key="a"), event(type="a"), event(type="c")]
    items = accepted(publisher.post("/events/batch", {"events": events}))["items"]
    by_id = {f"evt_{row['id']}": row for row in event_rows()}
    assert [by_id[item["event_id"]]["type"] for item in items] == ["b", "a", "a", "c"]
    assert [item["tasks"] for item in items] == [0, 1, 1, 0]


def test_a_batch_knows_the_keys_of_others_and_its_own(publisher):
    first = accepted(publisher.post("/events", event(key="old")))
    events = [event(key="new"), event(key="old"), event(key="new")]
    items = accepted(publisher.post("/events/batch", {"events": events}))["items"]
    assert items[1] == first
    assert items[0] == items[2] != first
    assert len(event_rows()) == 2


def test_a_batch_is_all_or_nothing_and_errors_are_by_index(publisher):
    events = [event(), event(type="a b"), event(), {"data": {}, "kye": 1}, event(tenant_id=7)]
    answer = publisher.post("/events/batch", {"events": events})
    assert refusal(answer).startswith("events.1.type: must be segments")
    assert set(answer.json["details"]) == {
        "events.1.type", "events.3.type", "events.3.kye", "events.4.tenant_id"
    }  # fmt: skip
    answer = publisher.post("/events/batch", {"events": [event(), 7]})
    assert refusal(answer).startswith("events.1: ")


def test_json_that_cannot_be_kept_is_named_by_its_index(publisher):
    body = '{"events": [{"type": "x", "data": {}}, {"type": "x", "data": {"a": [NaN]}}]}'
    answer = raw(publisher, body, "/events/batch")
    assert refusal(answer).startswith("events.1.data.a[0]: NaN")
    assert list(answer.json["details"]) == ["events.1.data.a[0]"]


def test_a_batch_has_1_to_1000_events(publisher):
    for events in ([], [event()] * 1001, None, {}, "x", 7):
        refusal(publisher.post("/events/batch", {"events": events}))
    refusal(publisher.post("/events/batch", {}))
    items = accepted(publisher.post("/events/batch", {"events": [event()] * 1000}))["items"]
    assert len({item["event_id"] for item in items}) == 1000


def test_a_batch_may_have_4_mib_and_no_byte_more(producer):
    body = json.dumps({"tenant_id": 7, "events": [event()]}).encode()
    for size, status in ((4 * KIB * KIB, 202), (4 * KIB * KIB + 1, 400)):
        padded = body[:-1] + b" " * (size - len(body)) + b"}"
        answer = raw(producer, padded, "/events/batch")
        assert answer.status_code == status
    assert answer.json["message"] == "body: is longer than 4194304 bytes"


def test_batches_with_common_keys_in_opposite_order_do_not_deadlock(app, mint):
    keys = [f"k{number}" for number in range(100)]
    answers: list[list[str]] = []
    token = mint(tenant_id=7, scopes=["events:write"])

    def publish(order: list[str]) -> None:
        caller = Caller(app.test_client(), TENANT_PREFIX, token)
        answer = caller.post("/events/batch", {"events": [event(key=key) for key in order]})
        by_key = dict(zip(order, accepted(answer)["items"], strict=True))
        answers.append([by_key[key]["event_id"] for key in keys])
        db.give_up()

    threads = [threading.Thread(target=publish, args=(order,)) for order in (keys, keys[::-1]) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert all(answer == answers[0] for answer in answers)
    assert len(event_rows()) == 100


def test_a_deadlock_with_a_publisher_in_sql_is_tried_again(publisher, database):
    """Somebody else's transaction may take keys in any order; the victim may be us."""
    other = psycopg2.connect(database)
    with other.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '10 s'")
        cursor.execute("SELECT * FROM hookjetty.publish_event(7, 'x', '{}', 'b')")
        answers: list[Any] = []

        def publish() -> None:
            events = [event(key="a"), event(key="b")]
            answers.append(accepted(publisher.post("/events/batch", {"events": events})))
            db.give_up()

        thread = threading.Thread(target=publish)
        thread.start()
        while not rows(
            db.execute_sql("SELECT 1 FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()")
        ):
            pass
        cursor.execute("SELECT * FROM hookjetty.publish_event(7, 'x', '{}', 'a')")
        other.commit()
        thread.join()
    other.close()
    assert {item["event_id"] for item in answers[0]["items"]} == {
        f"evt_{row['id']}" for row in event_rows()
    }
