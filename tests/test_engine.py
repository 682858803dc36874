"""claim -> send -> decide -> record, in this process: what is sent, and what nothing can stop."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import standardwebhooks

from app import __version__
from app.db import db
from dispatcher.__main__ import Heart
from dispatcher.claim import Claimed
from dispatcher.engine import Engine
from dispatcher.fairness import FIRST_WINDOW
from dispatcher.transport import Outcome
from tests.dispatching import (
    SECRET,
    Parts,
    add_endpoint,
    all_done,
    count,
    execute,
    parse_request,
    running_engine,
    running_parts,
    wait_until,
)
from tests.factories import attempt_rows, claim, publish, task_rows
from tests.hostile import OK, Receiver, answer, hang

pytestmark = pytest.mark.usefixtures("database")

NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


# -------------------------------------------------------------------------------- what is sent


def test_a_delivery_is_a_signed_post_of_the_event_as_it_came_in():
    seen: list[bytes] = []
    text = '{"big": 12345678901234567890.10, "text": "\\u00e4 ä \\/", "n" : 1e40}'
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url("/hook?a=1"))
        with running_engine():
            event, _ = db.execute_sql(
                "SELECT * FROM hookjetty.publish_event(7, 'export.done', %s)", (text,)
            ).fetchone()
            wait_until(all_done)
    (request,) = seen
    line, headers, body = parse_request(request)
    assert line == "POST /hook?a=1 HTTP/1.1"
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == f"Hookjetty/{__version__}"
    assert headers["webhook-id"] == f"evt_{event}"
    assert headers["webhook-attempt"] == "1"
    assert "webhook-replay" not in headers
    assert standardwebhooks.Webhook(SECRET).verify(body, headers)["type"] == "export.done"
    assert body.decode().endswith(f',"data":{text}}}')
    parsed_body = json.loads(body)
    assert list(parsed_body) == ["id", "type", "timestamp", "data"]
    published_at = datetime.fromisoformat(parsed_body["timestamp"])
    assert abs(published_at - datetime.now(UTC)) < timedelta(seconds=30)


def test_a_replayed_delivery_says_so():
    seen: list[bytes] = []
    with Receiver(answer(OK, seen=seen)) as receiver:
        add_endpoint(7, receiver.url())
        publish()
        db.execute_sql("UPDATE hookjetty.tasks SET lane = 1, replay_id = 12")
        with running_engine():
            wait_until(all_done)
    assert parse_request(seen[0])[1]["webhook-replay"] == "rpl_12"


def test_an_attempts_times_are_the_databases():
    """Hosts' clocks may differ; what is stored and signed must not."""
    with Receiver(answer(OK)) as receiver:
        add_endpoint(7, receiver.url())
        with running_engine():
            (before,) = db.execute_sql("SELECT clock_timestamp()").fetchone()
            publish()
            wait_until(all_done)
            (after,) = db.execute_sql("SELECT clock_timestamp()").fetchone()
    (attempt,) = attempt_rows()
    assert before <= attempt["started_at"] <= after


# ------------------------------------------------------------------------ what cannot be delivered


def test_an_endpoint_that_is_deleted_while_it_is_called_gets_no_second_try():
    with Receiver(answer(NOT_FOUND, delay=0.3)) as receiver:
        endpoint = add_endpoint(7, receiver.url())
        publish()
        with running_engine(RETRY_SCHEDULE="0,0.2s", RETRY_JITTER="0"):
            wait_until(lambda: receiver.connections)
            db.execute_sql("DELETE FROM hookjetty.endpoints WHERE id = %s", (endpoint,))
            wait_until(all_done, 5)
    (task,) = task_rows()
    assert (task["status"], task["tries"]) == ("canceled", 1)
    assert len(attempt_rows()) == 1


# ---------------------------------------------------------------------------- what is written down


def test_an_answer_that_cannot_be_stored_takes_neither_its_neighbours_nor_itself_along():
    """Unrecorded, it would be sent again when its lease ends, for ever."""
    with running_parts() as parts:
        add_endpoint(7, "http://127.0.0.1:9/")
        for _ in range(4):
            publish()
        *tasks, still_under_way = claim().tasks
        outcomes = [Outcome(task, 0.0, 200, response_body="fine") for task in tasks]
        outcomes[1].response_body = "a NUL: \0"
        parts.engine._clock.set(time.time())
        take_places(parts.engine, tasks)
        for outcome in outcomes:
            parts.engine.done(outcome)
        parts.engine._record_finished()
        # Were its lease forgotten, a crash now would leave it under way for ever.
        assert (still_under_way.lease.left, count("leases")) == (1, 1)
    assert [row["status"] for row in task_rows()] == ["delivered"] * 3 + ["delivering"]
    assert [row["response_body"] for row in attempt_rows()] == ["fine", None, "fine"]


def test_answers_that_come_while_the_database_refuses_are_written_down_later(database):
    """The server is there and lets nobody in: too many connections, say."""
    name = db.execute_sql("SELECT current_database()").fetchone()[0]
    with Receiver(answer(OK, delay=0.3)) as receiver:
        add_endpoint(7, receiver.url())
        publish()
        with running_engine():
            wait_until(lambda: receiver.connections)
            execute(server(database), f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            execute(server(database), f"SELECT {CUT} WHERE datname = '{name}'")
            time.sleep(1)
            execute(server(database), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            db.ready()
            wait_until(all_done)
    assert [row["status_code"] for row in attempt_rows()] == [200]
    assert receiver.connections == 1


CUT = "pg_terminate_backend(pid) FROM pg_stat_activity"


def server(database: str) -> str:
    """Another database of the same server."""
    return urlsplit(database)._replace(path="/postgres").geturl()


# ------------------------------------------------------------------------------------------- drain


def test_a_drain_finishes_what_is_in_flight_and_claims_nothing_more():
    with Receiver(answer(OK, delay=0.5)) as receiver:
        add_endpoint(7, receiver.url())
        for _ in range(30):
            publish()
        with running_engine() as engine:
            wait_until(lambda: receiver.connections == FIRST_WINDOW)
        assert engine.in_flight == 0
    statuses = Counter(row["status"] for row in task_rows())
    assert statuses == {"delivered": FIRST_WINDOW, "pending": 30 - FIRST_WINDOW}
    assert len(attempt_rows()) == FIRST_WINDOW


def test_a_drain_gives_back_what_was_never_started():
    """As if it had not been claimed: no attempt, no try, no step."""
    add_endpoint(7, "http://127.0.0.1:9/")
    publish()
    before = task_rows()
    parts = Parts()  # with a transport that does not run
    parts.engine.start()
    wait_until(lambda: parts.engine.in_flight == 1)
    parts.engine.drain()
    parts.transport.start()
    parts.transport.stop()
    (task,) = task_rows()
    later = {"next_try_at": None, "due_at": None}
    assert task | later == before[0] | later
    assert not attempt_rows()


def test_what_was_claimed_too_long_ago_is_given_back_unsent():
    """A dispatcher that was stopped between its claim and here has no lease left to send in."""
    with running_parts() as parts, Receiver(answer(OK)) as receiver:
        add_endpoint(7, receiver.url())
        publish()
        claimed = claim()
        parts.engine._clock.set(claimed.now)
        take_places(parts.engine, claimed.tasks)
        parts.engine._hand_over(claimed.tasks, claimed_at=time.monotonic() - 41)  # 60 - 15 - 5 + 1
        wait_until(lambda: parts.engine.in_flight == 0)
        parts.engine._record_finished()
        assert receiver.connections == 0
    (task,) = task_rows()
    assert (task["status"], task["ready"], task["tries"]) == ("pending", True, 0)


def test_an_answer_that_comes_at_the_very_end_of_a_drain_is_written_down():
    """Between the recorder's last look and its decision that nothing is left to do."""
    with running_parts() as parts:
        add_endpoint(7, "http://127.0.0.1:9/")
        publish()
        engine, claimed = parts.engine, claim()
        (task,) = claimed.tasks
        engine._clock.set(claimed.now)
        take_places(engine, claimed.tasks)
        engine._stopping.set()
        answers = [Outcome(task, time.monotonic(), status_code=200)]

        class Finished(deque):
            """The answer arrives just after it was seen that there is none."""

            def __len__(self) -> int:
                size = super().__len__()
                if not size and answers:
                    engine.done(answers.pop())
                return size

        engine._finished = Finished()
        engine._to_record.set()
        engine._recorder.start()
        engine._recorder.join(5)
    assert task_rows()[0]["status"] == "delivered"


def test_no_heartbeat_brings_back_a_dispatcher_that_has_stopped():
    """The scheduler may be in the middle of one while the process ends."""
    with running_parts() as parts:
        heart = Heart(parts.engine.id, parts.engine)
        heart.beat()
        assert count("dispatchers") == 1
        heart.stop()
        heart.beat()
    assert count("dispatchers") == 0


def take_places(engine: Engine, tasks: list[Claimed]) -> None:
    """As the claim does before it hands tasks over."""
    for task in tasks:
        engine._places.take(task.target.tenant_id, task.target.endpoint_id)


# ------------------------------------------------------------------------------------ fair shares


def test_an_endpoint_has_at_most_its_slots_in_flight():
    with Receiver(hang) as hanging:
        add_endpoint(7, hanging.url())
        for _ in range(10):
            publish()
        with running_engine(SLOTS="1", TIMEOUT_SECONDS="1"):
            wait_until(lambda: hanging.connections == 1)
            time.sleep(0.3)
            assert hanging.connections == 1
            assert count("tasks WHERE status = 'delivering'") == 1
            wait_until(lambda: hanging.connections > 1)


def test_an_endpoint_is_met_by_few_tasks_at_first_and_by_more_with_each_success():
    with Receiver(answer(OK, delay=0.2)) as receiver:
        add_endpoint(7, receiver.url())
        for _ in range(40):
            publish()
        with running_engine(SLOTS="8"):
            wait_until(lambda: receiver.connections == FIRST_WINDOW)
            time.sleep(0.1)
            assert count("tasks WHERE status = 'delivering'") == FIRST_WINDOW
            wait_until(lambda: count("tasks WHERE status = 'delivering'") == 8)
            wait_until(all_done)
    assert receiver.connections == 8


def test_two_engines_share_the_work_and_send_nothing_twice():
    seen: list[bytes] = []
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver(answer(OK, seen=seen, delay=0.01)))
        for tenant_id in range(1, 11):
            add_endpoint(tenant_id, receiver.url(f"/{tenant_id}"))
            for _ in range(30):
                publish(tenant_id)
        for _ in range(2):
            stack.enter_context(running_engine(SLOTS="5"))
        wait_until(all_done)
    ids = [parse_request(request)[1]["webhook-id"] for request in seen]
    assert len(ids) == len(set(ids)) == 300
    assert len(attempt_rows()) == 300
