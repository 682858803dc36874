"""GET /tasks: what narrows the list, and what one request looks at."""

from __future__ import annotations

import pytest

from app import tasks
from app.db import db
from app.models import rfc3339
from app.tasks import page_of_tasks
from dispatcher import claim as claims
from tests.factories import claim, make_endpoint, make_task, publish, task_rows
from tests.test_tenant_api import answered, invalid


def ids_of(answer) -> list[str]:
    return [task["task_id"] for task in answered(answer)["items"]]


def all_pages(owner, query: str) -> tuple[list[str], int]:
    """What a client finds that follows the links, and how many pages it was."""
    found, pages, path = [], 0, f"/tasks?{query}"
    while path:
        answer = owner.get(path)
        found += ids_of(answer)
        pages += 1
        link = answer.headers.get("Link")
        assert (answer.json["next_cursor"] is not None) == (link is not None)
        path = link and link[1:].partition(">")[0].removeprefix(owner.prefix)
    return found, pages


# --------------------------------------------------------------------------- what narrows the list


@pytest.fixture
def stored(database: str) -> dict[str, str]:
    """Tasks by a name for each, the oldest first; "foreign" is another tenant's."""
    one, two = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
    other = make_endpoint(8)
    done, began, gone = (
        event for event, _ in (publish(9, "export.done"), publish(9, "export.began"), publish(9))
    )
    db.execute_sql("DELETE FROM hookjetty.events WHERE id = %s", (gone,))
    made = {
        "ancient": make_task(one, done, age="50 s", status="failed", failure="http_5xx"),
        "refused": make_task(two, began, age="40 s", status="failed", failure="http_4xx"),
        "moved": make_task(one, done, age="30 s", status="retry", failure="redirect"),
        "fine": make_task(one, began, age="25 s"),
        "waiting": make_task(two, done, age="20 s", status="waiting", failure="http_5xx"),
        "canceled": make_task(two, done, age="15 s", status="canceled"),
        "orphan": make_task(one, gone, age="10 s", status="failed", failure="expired"),
        "pending": make_task(one, began, status="pending", ready=True),
        "foreign": make_task(other, done, 8, status="failed", failure="http_5xx"),
    }
    return {name: f"task_{number}" for name, number in made.items()}


QUERIES = [
    ("", "pending orphan canceled waiting fine moved refused ancient"),
    ("status=failed", "orphan refused ancient"),
    ("status=delivered", "fine"),
    ("endpoint_id=ep_2", "canceled waiting refused"),
    ("endpoint_id=ep_3", ""),
    ("endpoint_id=ep_4711", ""),
    ("type=export.done", "canceled waiting moved ancient"),
    ("type=export.began", "pending fine refused"),
    ("type=export.*", "pending canceled waiting fine moved refused ancient"),
    ("type=expor.*", ""),
    ("type=export", ""),
    ("code_class=2xx", "fine"),
    ("code_class=3xx", "moved"),
    ("code_class=4xx", "refused"),
    ("code_class=5xx", "waiting ancient"),
    ("failure=http_5xx", "waiting ancient"),
    ("failure=expired", "orphan"),
    ("failure=tls", ""),
    ("failure=http_5xx&status=failed", "ancient"),
    ("failure=http_5xx&endpoint_id=ep_2", "waiting"),
    ("failure=http_5xx&code_class=2xx", ""),
    ("status=failed&endpoint_id=ep_2", "refused"),
    ("status=failed&type=export.began", "refused"),
    ("status=retry&code_class=3xx&type=export.*&endpoint_id=ep_1", "moved"),
    ("status=delivering", ""),
    ("event_id=evt_1", ""),
]


@pytest.mark.parametrize("looked_at", [tasks.MOST_LOOKED_AT, 4])
def test_what_is_asked_for_is_found_newest_first(owner, stored, monkeypatch, looked_at):
    """However little one request may look at: then it takes more pages."""
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", looked_at)
    for query, names in QUERIES:
        wanted = [stored[name] for name in names.split()]
        for limit in ("", "limit=1&"):
            assert all_pages(owner, limit + query)[0] == wanted, query


def test_times_include_their_beginning_and_not_their_end(owner, stored):
    listed = {task["task_id"]: task for task in owner.get("/tasks").json["items"]}
    fine, refused = listed[stored["fine"]]["created_at"], listed[stored["refused"]]["created_at"]
    found = ids_of(owner.get(f"/tasks?from={refused}&to={fine}"))
    assert found == [stored["moved"], stored["refused"]]
    assert ids_of(owner.get(f"/tasks?to={refused}")) == [stored["ancient"]]
    assert ids_of(owner.get("/tasks?from=2999-01-01T00:00:00Z")) == []
    assert ids_of(owner.get("/tasks?to=0001-01-01T00:00:00Z")) == []


def test_the_tasks_of_an_event_are_those_it_was_made_with_and_those_of_replays(owner, stranger):
    endpoint = make_endpoint(7)
    event, _ = publish()
    publish()
    made_with_it = task_rows()[0]["id"]
    replayed = make_task(endpoint, event, lane=1, replay_id=1, status="failed")
    query = f"/tasks?event_id=evt_{event}"
    assert ids_of(owner.get(query)) == [f"task_{replayed}", f"task_{made_with_it}"]
    assert ids_of(owner.get(f"{query}&status=failed")) == [f"task_{replayed}"]
    assert ids_of(stranger.get(query)) == []


def test_what_a_stranger_lists_is_not_ours(stranger, stored):
    for query in ("", "status=failed", "endpoint_id=ep_1", "failure=http_5xx", "code_class=2xx"):
        found, _ = all_pages(stranger, query)
        assert set(found) <= {stored["foreign"]}, query


def test_what_is_no_filter_is_refused(owner):
    for query in (
        "type=*", "type=", "type=a..b", "code_class=4", "code_class=1xx", "failure=bad", "failure=",
        "from=yesterday", "to=2025-10-05", "event_id=7", "event_id=evt_x", "endpoint_id=7",
        "status=open", "since=2025-10-05T06:00:00Z", "failed_since=2025-10-05T06:00:00Z",
    ):  # fmt: skip
        assert query.partition("=")[0] in invalid(owner.get(f"/tasks?{query}")), query
    earlier, later = "2025-10-05T06:00:00Z", "2025-10-05T07:00:00%2B01:00"
    message = invalid(owner.get(f"/tasks?from={earlier}&to={later}"))
    assert message == "to: must be later than from"


def test_a_cursor_belongs_to_its_filter(owner, stored):
    assert stored
    cursor = owner.get("/tasks?failure=http_5xx&limit=1").json["next_cursor"]
    assert len(ids_of(owner.get(f"/tasks?failure=http_5xx&cursor={cursor}"))) == 1
    for query in ("", "failure=http_4xx&", "code_class=5xx&", "failure=http_5xx&type=export.*&"):
        assert "cursor" in invalid(owner.get(f"/tasks?{query}cursor={cursor}"))


# ------------------------------------------------------------------------ what one request looks at


def test_a_sparse_filter_ends_a_page_before_it_has_looked_at_everything(owner, monkeypatch):
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", 10)
    endpoint = make_endpoint(7)
    event, _ = publish(9)
    oldest = make_task(endpoint, event, age="50 s", status="delivered")
    publish()
    db.execute_sql(
        "INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready)"
        " SELECT hookjetty.id_at(now() - n * interval '1 s'), 7, %s, 1, 'delivered', false"
        " FROM generate_series(1, 34) n",
        (endpoint,),
    )
    first = owner.get("/tasks?type=export.done&status=delivered")
    assert ids_of(first) == [] and first.json["next_cursor"] and first.headers["Link"]
    assert all_pages(owner, "type=export.done&status=delivered") == ([f"task_{oldest}"], 4)


def test_tasks_of_several_indexes_come_in_order_and_once(owner, monkeypatch):
    """A failure is one of a failed, canceled, waiting or retried task, or of one under way."""
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", 10)  # 2 of each
    endpoint = make_endpoint(7)
    event, _ = publish(9)
    states = ["failed", "retry", "failed", "failed", "waiting", "canceled", "failed", "delivering"]
    made = [
        make_task(endpoint, event, age=f"{second} s", status=status, failure="dns")
        for second, status in enumerate(states * 3)
    ]
    db.execute_sql(
        "INSERT INTO hookjetty.leases SELECT 1, now(), array_agg(id) FROM hookjetty.tasks"
        " WHERE status = 'delivering'"
    )
    found, pages = all_pages(owner, "failure=dns")
    assert found == [f"task_{number}" for number in made]
    assert pages > 2


def test_a_task_whose_lease_has_ended_is_still_listed_as_being_delivered(owner):
    make_endpoint(7)
    publish()
    (task,) = claim(lease_seconds=-1).tasks
    assert ids_of(owner.get("/tasks?status=delivering")) == [f"task_{task.task_id}"]
    assert claims.promote() == 1, "its lease has ended, and it is due again"
    assert ids_of(owner.get("/tasks?status=delivering")) == [f"task_{task.task_id}"]
    assert ids_of(owner.get("/tasks?status=pending")) == []


def test_a_page_of_what_moved_meanwhile_is_found_by_what_is_shown(monkeypatch, database):
    """Tasks that have yet to follow their endpoint, beside those that did."""
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", 4)
    parked, gone = make_endpoint(7, status="paused"), make_endpoint(7, status="deleted")
    db.execute_sql("UPDATE hookjetty.endpoints SET settling = true")
    expected: dict[str, list[int]] = {"waiting": [], "canceled": []}
    for second in range(5):
        for endpoint, shown in ((parked, "waiting"), (gone, "canceled")):
            for status in (shown, "pending", "delivered"):
                made = make_task(endpoint, age=f"{second} s", status=status)
                if status != "delivered":
                    expected[shown].append(made)
    for status, made in expected.items():
        found, cursor = [], None
        while True:
            page = page_of_tasks(7, limit=3, cursor=cursor, status=status)
            found += [task.id for task in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == sorted(made, reverse=True)


def test_the_times_in_a_filter_are_read_as_everywhere():
    stored = tasks.TaskFilter(status="failed", since=tasks.datetime.fromisoformat("2026-01-02T03Z"))
    assert tasks.TaskFilter.stored(stored.storable()) == stored
    assert stored.storable()["since"] == rfc3339(stored.since)


def test_nothing_is_told_of_how_much_goes_to_another_tenant(owner, database, monkeypatch):
    """Neither by a cursor nor by how many pages there are."""
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", 5)
    event, _ = publish(8)
    theirs = make_endpoint(8)
    for _ in range(7):
        make_task(theirs, event, 8, status="pending", ready=True)
    claim()
    for query in (f"endpoint_id=ep_{theirs}", "status=delivering", "failure=http_5xx"):
        assert all_pages(owner, query) == ([], 1), query
