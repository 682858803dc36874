"""POST /replay with `to`, `events` and `only`; GET /replays; how far a replay has come."""

from __future__ import annotations

import pytest

from app.db import db
from app.models import Replay, id_time, rfc3339
from dispatcher import jobs
from tests.factories import make_endpoint, make_task, publish, rows, task_rows
from tests.test_tenant_api import answered, invalid, refusal

pytestmark = pytest.mark.usefixtures("database")

LONG_AGO = "2025-10-05T06:00:00Z"


def start(owner, endpoint: int, **options) -> dict:
    body = {"endpoint_id": f"ep_{endpoint}", "from": LONG_AGO} | options
    return answered(owner.post("/replay", body), 202)


def replayed() -> list[int]:
    """The events that replays made tasks of, in order."""
    jobs.until_done(jobs.replay_step)
    return [task["event_id"] for task in task_rows("replay_id IS NOT NULL")]


def publish_apart(number: int, type: str = "export.done") -> list[int]:
    """Events of different milliseconds."""
    return [
        db.execute_sql(
            "UPDATE hookjetty.events SET id = id - (%s::bigint << 12) WHERE id = %s RETURNING id",
            (1000 * (number - n), publish(type=type)[0]),
        ).fetchone()[0]
        for n in range(number)
    ]


# ----------------------------------------------------------------------------------------------- to


def test_it_ends_before_a_time_and_with_an_event(owner):
    events = publish_apart(4)
    endpoint = make_endpoint(7)
    started = start(owner, endpoint, to=rfc3339(id_time(events[2])))
    assert replayed() == events[:2]
    shown = answered(owner.get(f"/replays/{started['replay_id']}"))
    assert shown["to"] == rfc3339(id_time(events[2]))
    db.execute_sql("DELETE FROM hookjetty.tasks")
    start(owner, endpoint, to=f"evt_{events[2]}")
    assert replayed() == events[:3]


def test_it_ends_now_at_the_latest(owner):
    endpoint = make_endpoint(7, events=["nothing"])
    start(owner, endpoint, to="2999-01-01T00:00:00Z")
    publish_apart(1)
    db.execute_sql("UPDATE hookjetty.events SET id = id + (5000::bigint << 12)")
    db.execute_sql("UPDATE hookjetty.endpoints SET events = '{*}'")
    assert replayed() == []


def test_what_is_no_end_is_refused(owner):
    endpoint = make_endpoint(7)
    foreign, _ = publish(8)
    body = {"endpoint_id": f"ep_{endpoint}", "from": LONG_AGO}
    for to in ("yesterday", "failing_since", "", "evt_x", "2025-13-05T06:00:00Z"):
        message = invalid(owner.post("/replay", body | {"to": to}))
        assert message.startswith("to: must be a time such as"), to
        db.execute_sql("DELETE FROM hookjetty.rate_limits")
    for to in ("2024-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "evt_1"):
        message = invalid(owner.post("/replay", body | {"to": to}))
        assert message.startswith("to: lies before the first event"), to
    refusal(owner.post("/replay", body | {"to": f"evt_{foreign}"}), 404, "not_found")


# ------------------------------------------------------------------------------------------- events


def test_of_what_the_endpoint_wants_only_these_types(owner):
    publish(type="export.done")
    (began,) = (publish(type="export.began")[0],)
    publish(type="import.done")
    endpoint = make_endpoint(7, events=["export.*"])
    started = start(owner, endpoint, events=["export.began", "import.*"])
    assert replayed() == [began]
    shown = answered(owner.get(f"/replays/{started['replay_id']}"))
    assert (shown["event_types"], shown["events"]) == (["export.began", "import.*"], 3)
    assert "only" not in shown
    for bad in ([], "export.done", ["ex*"], [7]):
        body = {"endpoint_id": f"ep_{endpoint}", "from": LONG_AGO, "events": bad}
        assert invalid(owner.post("/replay", body)).startswith("events"), bad


# --------------------------------------------------------------------------------------------- only


@pytest.fixture
def histories(database: str) -> tuple[int, dict[str, int]]:
    """An endpoint, and events by what became of them there."""
    events = {
        name: publish()[0]
        for name in (
            "missing", "failed", "canceled", "delivered", "open", "failed, then delivered",
            "failed, then open", "failed twice", "elsewhere",
        )
    }  # fmt: skip
    endpoint, elsewhere = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
    for name, statuses in {
        "failed": ["failed"],
        "canceled": ["canceled"],
        "delivered": ["delivered"],
        "open": ["waiting"],
        "failed, then delivered": ["failed", "delivered"],
        "failed, then open": ["failed", "retry"],
        "failed twice": ["failed", "failed"],
    }.items():
        for number, status in enumerate(statuses):
            again = {"lane": 1, "replay_id": 4711} if number else {}
            make_task(endpoint, events[name], status=status, **again)
    make_task(elsewhere, events["elsewhere"], status="failed")
    return endpoint, events


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (
            {},
            "missing, failed, canceled, delivered, failed, then delivered, failed twice, elsewhere",
        ),
        ({"only": "failed"}, "failed, failed twice"),
        ({"only": "missing"}, "missing, elsewhere"),
    ],
)
def test_what_became_of_an_event_there_decides(owner, histories, only, names):
    endpoint, events = histories
    db.execute_sql("DELETE FROM hookjetty.endpoints WHERE id <> %s", (endpoint,))
    started = start(owner, endpoint, **only)
    jobs.until_done(jobs.replay_step)
    replay = int(started["replay_id"].removeprefix("rpl_"))
    made = {task["event_id"] for task in task_rows(f"replay_id = {replay}")}
    chosen = {name for name, event in events.items() if event in made}
    assert ", ".join(name for name in events if name in chosen) == names
    assert answered(owner.get(f"/replays/rpl_{replay}")).get("only") == only.get("only")


def test_only_has_two_words(owner):
    body = {"endpoint_id": f"ep_{make_endpoint(7)}", "from": LONG_AGO, "only": "delivered"}
    assert invalid(owner.post("/replay", body)) == "only: must be one of failed, missing"


@pytest.mark.parametrize("only", [None, "failed", "missing"])
def test_a_narrowed_replay_goes_on_where_its_last_batch_was_committed(owner, monkeypatch, only):
    monkeypatch.setattr(jobs, "BATCH", 3)
    events = [publish()[0] for _ in range(8)]
    endpoint = make_endpoint(7)
    if only == "failed":
        for event in events:
            make_task(endpoint, event, status="failed")
    start(owner, endpoint, **({"only": only} if only else {}))
    jobs.replay_step()
    with db.atomic() as transaction:
        jobs.replay_step()
        transaction.rollback()
    assert len(task_rows("replay_id IS NOT NULL")) == 3
    assert replayed() == events
    (row,) = rows(db.execute_sql("SELECT * FROM hookjetty.replays"))
    assert (row["status"], row["events"], row["tasks"]) == ("finished", 8, 8)


def test_what_the_first_replay_made_is_not_missing_for_the_second(owner):
    event, _ = publish()
    endpoint = make_endpoint(7)
    start(owner, endpoint, only="missing")
    assert replayed() == [event]
    start(owner, endpoint, only="missing")
    assert replayed() == [event]


@pytest.mark.parametrize("only", [None, "failed", "missing"])
def test_a_step_costs_the_same_however_much_became_of_the_rest(owner, monkeypatch, only):
    """EXPLAIN ANALYZE of a batch of 100 among 20,000 events with a task each."""
    monkeypatch.setattr(jobs, "BATCH", 100)
    monkeypatch.setattr(jobs, "MADE_WITHIN", jobs.MADE_WITHIN / 1000)
    endpoint = make_endpoint(7)
    db.execute_sql(
        "WITH made AS (INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)"
        " SELECT hookjetty.id_at(now() - interval '50 s') + (n << 13), 7, 'export.done', '{}', 1"
        " FROM generate_series(1, 20000) n RETURNING id)"
        " INSERT INTO hookjetty.tasks"
        " (id, tenant_id, endpoint_id, event_id, status, ready, failure)"
        " SELECT id + 1, 7, %s, id, 'failed', false, 'tls' FROM made",
        (endpoint,),
    )
    db.execute_sql("ANALYZE hookjetty.tasks, hookjetty.events")
    start(owner, endpoint, **({"only": only} if only else {}))
    plans: list[str] = []
    execute_sql = db.execute_sql

    def explaining(sql: str, params=None):
        if "WITH batch" in sql:
            found = execute_sql(f"EXPLAIN (ANALYZE, TIMING off) {sql}", params).fetchall()
            plans.append("\n".join(line for (line,) in found))
        return execute_sql(sql, params)

    monkeypatch.setattr(db, "execute_sql", explaining)
    for _ in range(3):
        jobs.replay_step()
    for plan in plans:
        numbers = [part.split()[0] for part in plan.split("actual rows=")[1:]]
        assert max(float(number) for number in numbers) <= 400, plan


# ------------------------------------------------------------------------------- list and progress


def test_they_are_listed_newest_first_and_narrowed(owner, stranger):
    one, two = make_endpoint(7, "https://app/1"), make_endpoint(7, "https://app/2")
    started = [start(owner, endpoint)["replay_id"] for endpoint in (one, two)]
    jobs.until_done(jobs.replay_step)
    started.append(start(owner, one)["replay_id"])
    first = owner.get("/replays?limit=2")
    assert first.headers["Link"]
    rest = answered(owner.get(f"/replays?limit=2&cursor={first.json['next_cursor']}"))
    shown = [each["replay_id"] for each in answered(first)["items"] + rest["items"]]
    assert shown == started[::-1]

    def listed(query: str) -> list[str]:
        return [each["replay_id"] for each in answered(owner.get(f"/replays?{query}"))["items"]]

    assert listed(f"endpoint_id=ep_{one}") == [started[2], started[0]]
    assert listed("status=running") == [started[2]]
    assert listed(f"status=finished&endpoint_id=ep_{two}") == [started[1]]
    assert listed("status=canceled") == listed("endpoint_id=ep_4711") == []
    assert answered(stranger.get("/replays"))["items"] == []
    invalid(owner.get("/replays?status=done"))
    invalid(owner.get(f"/replays?status=running&cursor={first.json['next_cursor']}"))


def test_how_far_it_has_come_grows_to_the_end(owner, monkeypatch):
    monkeypatch.setattr(jobs, "BATCH", 2)
    events = publish_apart(6)
    replay_id = start(owner, make_endpoint(7), **{"from": f"evt_{events[0]}"})["replay_id"]
    seen = [answered(owner.get(f"/replays/{replay_id}"))["progress"]]
    while jobs.replay_step():
        seen.append(answered(owner.get(f"/replays/{replay_id}"))["progress"])
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] == 100.0
    assert 0 < seen[1] < 60 and len(set(seen)) >= 4
    shown = answered(owner.get(f"/replays/{replay_id}"))
    assert shown["from"] == rfc3339(id_time(events[0]))


def test_they_are_forgotten_with_the_weeks_of_their_tasks(owner):
    endpoint = make_endpoint(7)
    for _ in range(2):
        start(owner, endpoint)
        jobs.until_done(jobs.replay_step)
    start(owner, endpoint)
    db.execute_sql(
        "UPDATE hookjetty.replays SET finished_at = now() - interval '38 days' WHERE id = 1"
    )
    jobs.until_done(lambda: jobs.prune_step(30, 365))
    assert [each.id for each in Replay.select().order_by(Replay.id)] == [2, 3]
