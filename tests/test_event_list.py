"""GET /events and GET /events/{id}: what a tenant sees of what happened."""

from __future__ import annotations

from typing import Any

import pytest

from app import events
from app.db import db
from app.models import id_at, read_time, rfc3339
from tests.conftest import Caller
from tests.factories import make_endpoint, most_rows_of_a_node, publish


def listed(caller: Caller, query: str = "", **parameters: Any) -> dict[str, Any]:
    answer = caller.get("/events", query_string=query or parameters)
    assert answer.status_code == 200, answer.text
    return answer.json


def ids(page: dict[str, Any]) -> list[int]:
    return [int(item["event_id"].removeprefix("evt_")) for item in page["items"]]


def refused(caller: Caller, **parameters: Any) -> str:
    answer = caller.get("/events", query_string=parameters)
    assert (answer.status_code, answer.json["error"]) == (400, "invalid_request"), answer.text
    return answer.json["message"]


def event_at(moment: str, type_: str = "export.done", tenant_id: int = 7) -> int:
    """An event of that moment; returns its id."""
    at = read_time(moment)
    assert at is not None
    db.execute_sql("SELECT hookjetty.make_partitions(%s, 0)", (at,))
    (taken,) = db.execute_sql("SELECT count(*) FROM hookjetty.events").fetchone()
    row = db.execute_sql(
        "INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)"
        " VALUES (%s, %s, %s, '{}', 0) RETURNING id",
        (id_at(at) + taken, tenant_id, type_),
    )
    return row.fetchone()[0]


def test_the_newest_come_first_and_without_their_data(owner):
    make_endpoint(events=["export.*"])
    first, _ = publish(type="export.done", key="k 1")
    second, _ = publish(type="import.done")
    publish(tenant_id=8)
    page = listed(owner)
    assert page == {
        "items": [
            {
                "event_id": f"evt_{second}",
                "type": "import.done",
                "created_at": rfc3339(events.id_time(second)),
                "fanout": 0,
            },
            {
                "event_id": f"evt_{first}",
                "type": "export.done",
                "created_at": rfc3339(events.id_time(first)),
                "fanout": 1,
                "key": "k 1",
            },
        ],
        "next_cursor": None,
    }


def test_nothing_yet_is_an_empty_list(owner):
    assert listed(owner) == {"items": [], "next_cursor": None}


def test_pages_hold_all_of_them_once(owner):
    made = [publish()[0] for _ in range(7)]
    seen: list[int] = []
    answer = owner.get("/events?limit=3&type=export.*")
    while True:
        seen += ids(answer.json)
        if answer.json["next_cursor"] is None:
            break
        link = answer.headers["Link"]
        assert link.endswith('>; rel="next"')
        assert "type=export.%2A" in link
        answer = owner.get(link[1:].split(">")[0].removeprefix(owner.prefix))
    assert "Link" not in answer.headers
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("pattern", "types"),
    [
        ("export.done", ["export.done"]),
        ("export.*", ["export.file.done", "export.done"]),
        ("export", ["export"]),
        ("*", ["exports.x", "import.done", "export", "export.file.done", "export.done"]),
        ("exp.*", []),
    ],
)
def test_a_type_may_be_exact_or_a_pattern(owner, pattern, types):
    for type_ in ("export.done", "export.file.done", "export", "import.done", "exports.x"):
        publish(type=type_)
    assert [item["type"] for item in listed(owner, type=pattern)["items"]] == types


def test_an_underscore_in_a_type_stands_for_itself(owner):
    publish(type="a_b.c")
    publish(type="axb.c")
    assert [item["type"] for item in listed(owner, type="a_b.*")["items"]] == ["a_b.c"]


def test_a_key_names_one_event_of_the_tenant(owner, stranger):
    made, _ = publish(key="k")
    publish(key="K")
    assert ids(listed(owner, key="k")) == [made]
    assert ids(listed(owner, key="k", type="import.done")) == []
    assert ids(listed(owner, key="nobody's")) == []
    assert ids(listed(stranger, key="k")) == []


def test_times_bound_the_list_the_first_included_and_the_second_not(owner):
    made = [event_at(f"2026-03-02T10:00:0{n}Z") for n in range(5)]
    within = {"from": "2026-03-02T12:00:01+02:00", "to": "2026-03-02T10:00:03.000Z"}
    assert ids(listed(owner, **within)) == [made[2], made[1]]
    page = listed(owner, **within, limit=1)
    assert ids(page) == [made[2]]
    page = listed(owner, **within, limit=1, cursor=page["next_cursor"])
    assert (ids(page), page["next_cursor"]) == ([made[1]], None)


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
@pytest.mark.parametrize("bound", ["from", "to"])
def test_any_moment_of_rfc_3339_is_a_bound(owner, bound, moment):
    publish()
    assert len(listed(owner, **{bound: moment})["items"]) == ((bound == "to") == ("9999" in moment))


KNOWN = "limit, cursor, type, key, from, to, after"


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"from": "yesterday"}, "from: must be a time such as 2025-10-05T06:00:00Z"),
        ({"to": "2026-02-30T00:00:00Z"}, "to: must be a time such as 2025-10-05T06:00:00Z"),
        ({"type": "ex*"}, "type: must be an event type such as export.done, or export.*, or *"),
        ({"key": ""}, "key: must have 1 to 255 characters"),
        ({"limit": "201"}, "limit: must be an integer from 1 to 200"),
        ({"status": "x"}, "status: is not a field of this"),
        ({"since": "2026-01-01T00:00:00Z"}, f"since: is not a field of this; there are {KNOWN}"),
    ],
)
def test_what_cannot_be_looked_for_is_refused_by_its_name(owner, parameters, reason):
    assert refused(owner, **parameters).startswith(reason)


def test_a_cursor_is_for_its_list_alone(owner, stranger):
    for _ in range(3):
        publish()
        publish(tenant_id=8)
    cursor = listed(owner, limit=1)["next_cursor"]
    for caller, parameters in (
        (stranger, {}),
        (owner, {"type": "export.done"}),
        (owner, {"from": "2026-01-01T00:00:00Z"}),
    ):
        assert "is not one of this list" in refused(caller, cursor=cursor, **parameters)
    for broken in (cursor[:-1], cursor + "A", "", "…"):
        assert "is not one of this list" in refused(owner, cursor=broken)


def test_a_filter_that_hardly_anything_passes_reads_a_bounded_part(owner, monkeypatch):
    """Of each page; page by page all is found."""
    monkeypatch.setattr(events, "MOST_LOOKED_AT", 10)
    monkeypatch.setattr(events, "_LIST", events._LIST.replace("LIMIT 2000", "LIMIT 10"))
    wanted = [publish(type="rare")[0] for _ in range(2)]
    for _ in range(25):
        publish(type="frequent")
    pages = [listed(owner, type="rare")]
    while pages[-1]["next_cursor"]:
        pages.append(listed(owner, type="rare", cursor=pages[-1]["next_cursor"]))
    assert [len(page["items"]) for page in pages] == [0, 0, 2]
    assert ids(pages[-1]) == wanted[::-1]


def test_a_page_reads_an_index_from_where_it_begins(owner):
    """Ten pages down it costs what the first one does, and a rare type is looked for in so many."""
    db.execute_sql(
        "INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)"
        " SELECT hookjetty.id_at(now()) + n, 7, 'frequent', '{}', 0 FROM generate_series(1, 9000) n"
    )
    db.execute_sql("ANALYZE hookjetty.events")
    looked_at = events._LIST.format(one="")
    parameters = {"tenant": 7, "below": 2**63 - 1, "from": 0}
    plan = db.execute_sql(
        f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM ({looked_at}) e WHERE e.type = 'rare'",
        parameters,
    ).fetchone()[0]
    assert most_rows_of_a_node(plan[0]["Plan"]) == events.MOST_LOOKED_AT


def test_a_test_event_is_marked(owner):
    endpoint_id = make_endpoint()
    event_id, _ = publish()
    db.execute_sql("UPDATE hookjetty.events SET endpoint_id = %s", (endpoint_id,))
    assert listed(owner)["items"][0]["test"] is True
    assert owner.get(f"/events/evt_{event_id}").json["test"] is True


def test_one_event_has_its_data_key_and_tasks(owner, stranger):
    endpoint_id = make_endpoint()
    event_id, _ = publish(key="k", data={"rows": 3})
    answer = owner.get(f"/events/evt_{event_id}").json
    assert (answer["key"], answer["fanout"], answer["data"]) == ("k", 1, {"rows": 3})
    assert [task["endpoint_id"] for task in answer["tasks"]] == [f"ep_{endpoint_id}"]
    assert stranger.get(f"/events/evt_{event_id}").status_code == 404


def test_a_list_takes_a_token_that_may_read(client, mint):
    producer = Caller(client, "/api/v1/data-consumption/webhooks",
                      mint(tenant_id=7, scopes=["events:write"]))  # fmt: skip
    assert producer.get("/events").status_code == 403
