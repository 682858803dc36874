"""The way of a dispatcher's claims over all endpoints with ready tasks."""

from __future__ import annotations

import pytest

from dispatcher import claim as claims
from dispatcher import engine
from dispatcher.engine import Round
from tests.factories import make_endpoint, publish

pytestmark = pytest.mark.usefixtures("database")


def claim(round_: Round, most: int = 500) -> claims.Claim:
    """One step, as the engine makes it; every endpoint may give so many tasks."""
    visited = round_.visit([])
    return claims.claim(
        visited,
        lambda candidates: [most] * len(candidates),
        slots=500,
        steps=10,
        lease_seconds=60,
        floors=round_.floors,
    )


def make_due(tenants: range, events: int = 1) -> None:
    for tenant in tenants:
        make_endpoint(tenant)
        for _ in range(events):
            publish(tenant)


def tenants_of(claimed: claims.Claim) -> list[int]:
    return sorted({task.target.tenant_id for task in claimed.tasks})


def test_a_round_goes_over_all_endpoints_and_starts_over(monkeypatch):
    monkeypatch.setattr(claims, "HOPS", 2)
    monkeypatch.setattr(claims.visit, "__defaults__", ((), 2))
    monkeypatch.setattr(engine, "VISITING_SHARE", 1)
    make_due(range(1, 6), events=2)
    round_ = Round()
    seen = []
    for _ in range(6):
        claimed = claim(round_, most=1)
        round_.note(claimed)
        seen.append(tenants_of(claimed))
    assert seen == [[1, 2], [3, 4], [5], [1, 2], [3, 4], [5]]


def test_it_says_whether_there_may_be_more():
    make_due(range(1, 4), events=2)
    round_ = Round()
    assert round_.note(claim(round_, most=2)) is True
    round_._visit_again_at = 0
    assert round_.note(claim(round_)) is False
    publish(2)
    assert round_.note(claim(round_)) is False


def test_while_looking_takes_long_the_endpoints_that_gave_all_are_asked_again():
    make_due(range(1, 3), events=5)
    publish(1)
    round_ = Round()
    round_.note(claim(round_, most=5))
    round_._visit_again_at = float("inf")
    make_due(range(3, 4))
    assert tenants_of(claim(round_)) == [1]
    round_._visit_again_at = 0
    assert tenants_of(claim(round_)) == [3]


def test_what_became_visible_late_is_found_when_it_looks_anew():
    """A publish in a long transaction has an old time, and newer ones were claimed before it."""
    make_due(range(1, 2))
    round_ = Round()
    round_.note(claim(round_))
    claims.db.execute_sql(
        "INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready,"
        " next_try_at) SELECT hookjetty.new_id(), tenant_id, endpoint_id, event_id, 'pending',"
        " true, now() - interval '30 s' FROM hookjetty.tasks"
    )
    round_._visit_again_at = 0
    assert tenants_of(claim(round_)) == []
    round_.look_anew()
    assert tenants_of(claim(round_)) == [1]
