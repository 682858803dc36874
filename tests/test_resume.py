"""A person says that an endpoint is to be called again (app/endpoints.py)."""

from __future__ import annotations

import pytest
from peewee import IntegrityError

from app import endpoints
from app.errors import Error
from app.models import Endpoint
from tests.factories import make_endpoint

pytestmark = pytest.mark.usefixtures("database")

FAILING = {"failures": 12, "failing_since": "2026-01-01", "recovered_at": "2026-01-01"}


def resumed(**columns) -> Endpoint:
    endpoint_id = make_endpoint(7, **columns)
    assert endpoints.resume(7, endpoint_id).endpoint.id == endpoint_id
    return Endpoint.get_by_id(endpoint_id)


@pytest.mark.parametrize("status", ["active", "paused"])
def test_nothing_is_held_against_a_resumed_endpoint(status):
    row = resumed(status=status, verified_at="2026-01-01", hold_until="2999-01-01", **FAILING)
    assert (row.status, row.failures, row.failing_since) == ("active", 0, None)
    assert (row.hold_until, row.recovered_at) == (None, None)
    assert row.settling, "its tasks have to follow"


@pytest.mark.parametrize(
    ("status", "reason"), [("disabled", "gone"), ("disabled", "failing"), ("paused", None)]
)
def test_one_that_was_disabled_or_never_gave_its_consent_is_asked(status, reason):
    verified_at = "2026-01-01" if status == "disabled" else None
    row = resumed(status=status, reason=reason, verified_at=verified_at, **FAILING)
    assert (row.status, row.reason, row.failures) == ("pending", None, 0)
    assert row.handshake_at is not None and row.recovered_at is None


def test_one_that_is_being_asked_stays_so():
    assert resumed(status="pending").version == 1


def test_a_strangers_endpoint_is_not_found():
    endpoint_id = make_endpoint(8, status="paused")
    with pytest.raises(Error) as caught:
        endpoints.resume(7, endpoint_id)
    assert caught.value.code == "not_found"


def test_a_deleted_endpoint_has_nothing_held_against_it():
    endpoint_id = make_endpoint(7, hold_until="2999-01-01", **FAILING)
    gone = Endpoint.delete_of(Endpoint.get_by_id(endpoint_id))
    assert (gone.status, gone.hold_until, gone.failures) == ("deleted", None, 0)


# ------------------------------------------------------------------------------- what can be stored


@pytest.mark.parametrize(
    "columns",
    [
        {"slots": 0},
        {"slots": 1001},
        {"timeout_seconds": 0},
        {"timeout_seconds": 30.5},
        {"timeout_seconds": float("nan")},
        {"retry_schedule": []},
        {"retry_schedule": [0] * 33},
        {"retry_schedule": [0, -1]},
        {"retry_schedule": [0, 2592001]},
        {"retry_schedule": [0, None]},
        {"retry_schedule": [0, float("nan")]},
        {"failures": -1},
        {"failures": 1},
        {"failing_since": "2026-01-01"},
        {"status": "disabled", "reason": "bored"},
    ],
    ids=str,
)
def test_what_no_endpoint_can_be_is_refused_by_the_table(columns):
    with pytest.raises(IntegrityError):
        make_endpoint(7, **columns)


def test_an_endpoint_may_have_slots_a_deadline_and_a_schedule_of_its_own():
    columns = {"slots": 200, "timeout_seconds": 2.5, "retry_schedule": [0.0, 0.5, 2592000.0]}
    row = Endpoint.get_by_id(make_endpoint(7, **columns))
    assert (row.slots, row.timeout_seconds, row.retry_schedule) == tuple(columns.values())
    row = Endpoint.get_by_id(make_endpoint(7))
    assert (row.slots, row.timeout_seconds, row.retry_schedule) == (None, None, None)
