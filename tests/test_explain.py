"""Why an endpoint gets an event or does not, in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.db import db
from app.explain import matching, why_endpoint, why_no_task, why_waiting
from app.models import Endpoint

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
SOON, AGO = NOW + timedelta(minutes=5), NOW - timedelta(minutes=5)


def endpoint(**columns) -> Endpoint:
    columns = {"events": ["export.*"], "status": "active", "failures": 0} | columns
    return Endpoint(id=1, tenant_id=7, url="https://app/", updated_at=AGO, **columns)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "active, and export.* matches"),
        ({"events": ["import.done"]}, "does not want export.done, only import.done"),
        ({"events": list("abcdefg")}, "does not want export.done, only a, b, c, d, e and 2 more"),
        ({"status": "deleted"}, "deleted at 2026-05-04T02:57:01.000Z"),
        ({"status": "paused"}, "paused; its tasks wait until it is resumed"),
        (
            {"status": "disabled", "reason": "gone"},
            (
                "disabled (gone): its receiver answered 410 Gone; its tasks wait until it is active"
                " again"
            ),
        ),
        (
            {"status": "pending", "handshake_at": SOON},
            (
                "not verified: its receiver has not answered a challenge yet, the next one is due"
                " at 2026-05-04T03:07:01.000Z; its tasks wait"
            ),
        ),
        (
            {"status": "pending", "handshake_failure": "dns", "handshake_at": AGO},
            (
                "not verified: its last challenge failed (dns), the next one is due now; its tasks"
                " wait"
            ),
        ),
        (
            {"status": "pending", "handshake_failure": "dns"},
            (
                "not verified: its last challenge failed (dns), and no further one is planned; its"
                " tasks wait"
            ),
        ),
        (
            {"hold_until": SOON, "failures": 5, "failing_since": AGO},
            (
                "on hold after 5 failures in a row since 2026-05-04T02:57:01.000Z"
                " until 2026-05-04T03:07:01.000Z; its tasks wait"
            ),
        ),
        (
            {"hold_until": AGO, "failures": 1, "failing_since": AGO},
            (
                "on hold after 1 failure since 2026-05-04T02:57:01.000Z, its next try is due now;"
                " its tasks wait"
            ),
        ),
    ],
)
def test_an_endpoint_is_explained(columns, words):
    assert why_endpoint(endpoint(**columns), "export.done", NOW) == words


def test_whether_a_task_is_made_and_whether_it_waits_are_two_questions():
    paused = endpoint(status="paused")
    assert why_no_task(paused, "export.done") is None
    assert why_waiting(paused, NOW) is not None
    assert why_no_task(paused, "import.done") is not None
    assert why_waiting(endpoint(), NOW) is None


@pytest.mark.parametrize(
    "type_",
    ["x", "export.done", "export.file.done", "exports", "export", "hookjetty.task.exhausted"],
)
def test_what_matches_is_what_publishing_matches(database, type_):
    patterns = ["*", "x", "x.*", "export", "export.*", "export.done", "export.file.*", "exp.*"]
    patterns += ["hookjetty.*", "hookjetty.task.*", "hookjetty.task.exhausted"]
    (known,) = db.execute_sql("SELECT hookjetty.patterns_for(%s)", (type_,)).fetchone()
    assert {each for each in patterns if matching([each], type_)} == set(patterns) & set(known)
