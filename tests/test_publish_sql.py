"""The SQL functions that publish: one event, a list of them, and what they do about collisions."""

from __future__ import annotations

import json
import threading
from typing import Any

import psycopg2
import pytest
from peewee import DataError

from app.db import db
from tests.factories import make_endpoint, publish, rows, task_rows

pytestmark = pytest.mark.usefixtures("database")


def publish_list(events: list[dict[str, Any]] | str, tenant_id: int | None = 7):
    text = events if isinstance(events, str) else json.dumps(events)
    cursor = db.execute_sql("SELECT * FROM hookjetty.publish_events(%s, %s)", (tenant_id, text))
    return cursor.fetchall()


def event(**fields: Any) -> dict[str, Any]:
    return {"type": "export.done", "data": {"n": 1}} | fields


def event_rows() -> list[dict[str, Any]]:
    return rows(db.execute_sql("SELECT *, data::text AS text FROM hookjetty.events ORDER BY id"))


def refusal(*args: Any) -> str:
    with pytest.raises(DataError) as caught:
        publish_list(*args)
    assert caught.value.orig.pgcode == "22023"
    assert event_rows() == []
    return caught.value.orig.diag.message_primary


def few_ids(colliding: int) -> None:
    """Let each of the next ids be one that was just given to another row, so many times."""
    db.execute_sql("CREATE SEQUENCE hookjetty.collisions")
    db.cursor().execute(
        f"""
        ALTER FUNCTION hookjetty.new_id() RENAME TO good_id;
        CREATE FUNCTION hookjetty.new_id() RETURNS bigint LANGUAGE plpgsql AS $$
        BEGIN
            RETURN CASE WHEN nextval('hookjetty.collisions') <= {colliding} * 2
                             AND currval('hookjetty.collisions') % 2 = 0
                        THEN coalesce((SELECT max(id) FROM hookjetty.events),
                                      (SELECT max(id) FROM hookjetty.tasks))
                        ELSE hookjetty.good_id() END;
        END $$
        """
    )


# ---------------------------------------------------------------------------------- subscriptions


@pytest.mark.parametrize(
    ("type", "patterns"),
    [
        ("x", ["*", "x"]),
        ("export.done", ["*", "export.done", "export.*"]),
        ("a.b.c.d", ["*", "a.b.c.d", "a.*", "a.b.*", "a.b.c.*"]),
        ("hookjetty", ["*", "hookjetty"]),
        ("hookjetty.task.x", ["hookjetty.task.x", "hookjetty.*", "hookjetty.task.*"]),
    ],
)
def test_a_type_is_wanted_by_itself_and_by_all_that_stand_above_it(type, patterns):
    row = db.execute_sql("SELECT hookjetty.patterns_for(%s)", (type,)).fetchone()
    assert row == (patterns,)


@pytest.mark.parametrize("how", ["one", "list"])
def test_tasks_wait_where_the_endpoint_may_not_be_called(how):
    """Not active, or on hold, which may be over already: who ends it lets its tasks go."""
    states = {
        make_endpoint(7, "https://app/1"): "pending",
        make_endpoint(7, "https://app/2", status="paused"): "waiting",
        make_endpoint(7, "https://app/3", status="pending"): "waiting",
        make_endpoint(7, "https://app/4", status="disabled"): "waiting",
        make_endpoint(7, "https://app/5", hold_until="2100-01-01"): "waiting",
        make_endpoint(7, "https://app/6", hold_until="2001-01-01"): "waiting",
    }
    make_endpoint(7, "https://app/7", status="deleted")
    made = publish() if how == "one" else publish_list([event()])[0]
    assert made[1] == 6
    assert {task["endpoint_id"]: task["status"] for task in task_rows()} == states
    for task in task_rows():
        is_due = task["status"] == "pending"
        assert (task["ready"], task["next_try_at"] is not None) == (is_due, is_due)


# ------------------------------------------------------------------------------------------ lists


def test_a_list_is_published_in_its_order():
    make_endpoint(7, "https://app/1", events=["a", "b.*"])
    make_endpoint(7, "https://app/2", events=["b.c"])
    make_endpoint(8, "https://app/3")
    made = publish_list([event(type=t, data={"n": n}) for n, t in enumerate(["a", "b.c", "c"] * 2)])
    assert [tasks for _, tasks in made] == [1, 2, 0, 1, 2, 0]
    stored = event_rows()
    assert [row["id"] for row in stored] == [event_id for event_id, _ in made]
    assert [json.loads(row["text"]) for row in stored] == [{"n": n} for n in range(6)]
    assert [row["fanout"] for row in stored] == [1, 2, 0, 1, 2, 0]
    tasks = task_rows()
    assert len(tasks) == 6
    for row in stored:
        assert sum(task["event_id"] == row["id"] for task in tasks) == row["fanout"]


def test_the_text_of_each_data_is_kept():
    texts = ['{"z": 1.50,\n"a" :[1E2, 12345678901234567890, "\\u00e9é\\/"],"n":-0.0}', "{ }"]
    publish_list(f'[{{ "data" : {texts[0]} , "type":"x"}},{{"type":"x","data":{texts[1]}}}]')
    assert [row["text"] for row in event_rows()] == texts


def test_keys_that_are_known_or_repeated_make_no_event():
    make_endpoint()
    (known, _) = publish(key="old")
    made = publish_list([event(key=key) for key in ("b", "old", "a", "b", None, "é")])
    ids = [event_id for event_id, _ in made]
    assert ids[1] == known
    assert ids[0] == ids[3]
    assert len(set(ids)) == 5
    assert [tasks for _, tasks in made] == [1] * 6
    assert len(event_rows()) == len(task_rows()) == 5
    assert publish_list([event(key="b")])[0] == made[0]


def test_of_a_repeated_key_the_first_event_is_published():
    publish_list([event(key="k", data={"n": n}) for n in range(3)])
    assert [row["text"] for row in event_rows()] == ['{"n": 0}']


def test_a_known_key_whose_event_has_expired_is_answered_with_no_tasks():
    (known, _) = publish(key="old")
    db.execute_sql("DELETE FROM hookjetty.events")
    assert publish_list([event(key="old")]) == [(known, 0)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (event(type="a b"), ".type: must be segments"),
        (event(type="hookjetty.x"), ".type: the prefix hookjetty. is reserved"),
        (event(type="x" * 129), ".type: must be segments"),
        (event(type=7), ".type: must be a string"),
        (event(type=None), ".type: must be a string"),
        ({"data": {}}, ".type: must be segments"),
        (event(key=""), ".key: must have 1 to 255 characters"),
        (event(key="k" * 256), ".key: must have 1 to 255 characters"),
        (event(key=7), ".key: must be a string"),
        (event(data=[]), ".data: must be a JSON object"),
        (event(data=None), ".data: must be a JSON object"),
        ({"type": "x"}, ".data: must be a JSON object"),
        (event(data={"a": "x" * 262_144}), ".data: is longer than 256 KiB"),
        (event(data={"a": int("9" * 1001)}), ".data: has a number of more than 1000"),
        (event(kye="k"), ": has a member other than type, data and key"),
    ],
)
def test_an_event_that_cannot_be_accepted_is_named_by_its_place(bad, reason):
    if isinstance(bad.get("data"), dict) and isinstance(bad["data"].get("a"), int):
        text = json.dumps([event(), event(data={"a": "HERE"})]).replace('"HERE"', "9" * 1001)
        assert refusal(text).startswith("events.1" + reason)
        return
    assert refusal([event(), bad, event(type="c d")]).startswith("events.1" + reason)


def test_members_that_are_there_twice_are_refused():
    good = json.dumps(event())
    assert "events.1.data: has an object that names a key twice" in refusal(
        f'[{good},{{"type":"x","data":{{"a":1,"a":1}}}}]'
    )
    assert refusal('[{"type":"x","type":"x","data":{}}]').startswith("events: ")


@pytest.mark.parametrize("events", ["{}", "7", "[]", json.dumps([event()] * 1001)])
def test_what_is_no_list_of_1_to_1000_events_is_refused(events):
    assert refusal(events) == "events: must be a list of 1 to 1000 events"


@pytest.mark.parametrize("tenant_id", [None, 0, -1, 2**53])
def test_a_tenant_that_cannot_be_is_refused(tenant_id):
    assert refusal([event()], tenant_id).startswith("tenant_id: must be an integer")
    with pytest.raises(DataError, match="tenant_id: must be an integer"):
        publish(tenant_id=tenant_id)


def test_no_events_at_all_are_refused():
    with pytest.raises(DataError, match="events: must be a list"):
        db.execute_sql("SELECT * FROM hookjetty.publish_events(7, NULL)")


def test_the_largest_list_is_published():
    for number in range(3):
        make_endpoint(7, f"https://app/{number}")
    made = publish_list([event(key=str(n)) for n in range(1000)])
    assert len({event_id for event_id, _ in made}) == len(event_rows()) == 1000
    assert len(task_rows()) == 3000


def test_a_list_wakes_one_dispatcher_once(database):
    """That of the latest heartbeat, of those that have nothing to do."""
    make_endpoint()
    db.execute_sql(
        "INSERT INTO hookjetty.dispatchers (id, host, pid, parked, seen_at) VALUES"
        " (1, 'here', 1, true, now() - interval '9 s'),"
        " (2, 'here', 2, true, now() - interval '1 s'),"
        " (3, 'here', 3, false, now()), (4, 'gone', 4, true, now() - interval '1 day')"
    )
    listener = psycopg2.connect(database)
    listener.autocommit = True
    with listener.cursor() as cursor:
        cursor.execute("LISTEN hookjetty")
        publish_list([event()] * 3)
        cursor.execute("SELECT 1")
        assert [notify.payload for notify in listener.notifies] == ["tasks 2"]
    listener.close()


def test_lists_with_common_keys_in_opposite_order_do_not_deadlock(database):
    keys = [f"k{number}" for number in range(200)]
    failures: list[Exception] = []

    def run(order: list[str]) -> None:
        connection = psycopg2.connect(database)
        try:
            for number in range(5):
                text = json.dumps([event(key=f"{number}{key}") for key in order])
                with connection, connection.cursor() as cursor:
                    cursor.execute("SELECT * FROM hookjetty.publish_events(7, %s)", (text,))
        except psycopg2.Error as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(order,)) for order in (keys, keys[::-1]) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(event_rows()) == 1000


# ------------------------------------------------------------------------------------- collisions


@pytest.mark.parametrize("how", ["one", "list"])
def test_ids_that_are_taken_are_replaced_everywhere(how):
    """Of events, of their tasks, and in the keys."""
    for number in range(3):
        make_endpoint(7, f"https://app/{number}")
    publish()
    few_ids(colliding=20)
    before = len(event_rows())
    if how == "one":
        made = [publish(key=f"k{n}") for n in range(10)]
        again = [publish(key=f"k{n}") for n in range(10)]
    else:
        made = publish_list([event(key=f"k{n}", data={"n": n}) for n in range(10)])
        again = publish_list([event(key=f"k{n}") for n in range(10)])
        texts = {row["id"]: row["text"] for row in event_rows()}
        assert [json.loads(texts[event_id])["n"] for event_id, _ in made] == list(range(10))
    assert again == made
    stored = event_rows()
    assert len(stored) == before + 10
    assert {event_id for event_id, _ in made} < {row["id"] for row in stored}
    tasks = task_rows()
    assert len(tasks) == 3 * len(stored)
    pairs = {(task["event_id"], task["endpoint_id"]) for task in tasks}
    assert len(pairs) == len(tasks)
    assert {task["event_id"] for task in tasks} == {row["id"] for row in stored}
    (used,) = db.execute_sql("SELECT last_value FROM hookjetty.collisions").fetchone()
    assert used > 40, "so all collisions happened"


# ----------------------------------------------------------------------------------------- rights


def test_the_publishers_role_may_publish_and_nothing_else(database):
    make_endpoint()
    db.execute_sql("SET ROLE hookjetty_publisher")
    try:
        assert publish()[1] == 1
        assert publish_list([event()])[0][1] == 1
        for sql in (
            "SELECT * FROM hookjetty.publish(7, 'x', '{}', NULL)",
            "SELECT hookjetty.make_tasks(7, '{1}', '{1}', '{true}')",
            "CALL hookjetty.publish_within_limit(7, 'x', '{}', NULL, 1, NULL, NULL, NULL, NULL)",
            "SELECT * FROM hookjetty.events",
        ):
            with pytest.raises(Exception, match="permission denied"):
                db.execute_sql(sql)
    finally:
        db.execute_sql("RESET ROLE")
