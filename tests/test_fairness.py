"""Who may have how many places: one that hangs, floods or fails takes nothing from the others."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dispatcher.fairness import FIRST_WINDOW, SHARE_OF_FREE, Candidate, Places, max_min

SLOTS = 20


def grown(places: Places, *endpoints: int) -> None:
    """Endpoints that have been working for a while, and had a lot to do."""
    for endpoint in endpoints:
        for _ in range(SLOTS):
            places.widen(endpoint, SLOTS)
        places.found(endpoint, 500, 500)


def fill(places: Places, candidates: list[Candidate], limit: int = 500) -> list[int]:
    """One claim that finds all that it allots."""
    parts = places.allot(candidates, limit)
    for candidate, part in zip(candidates, parts, strict=True):
        for _ in range(part):
            places.take(candidate.tenant_id, candidate.endpoint_id)
    return parts


def test_an_endpoint_begins_with_a_few_and_grows_with_each_success():
    places = Places(100)
    candidate = Candidate(1, 10, SLOTS)
    assert fill(places, [candidate]) == [FIRST_WINDOW]
    assert places.allot([candidate], 500) == [0]
    places.give_back(1, 10)
    places.widen(10, SLOTS)
    assert places.allot([candidate], 500) == [2]


def test_an_endpoint_never_has_more_than_its_slots():
    places = Places(1000)
    grown(places, 10)
    assert fill(places, [Candidate(1, 10, SLOTS)]) == [SLOTS]
    assert fill(places, [Candidate(1, 10, SLOTS)]) == [0]


def test_a_failure_closes_half_and_one_stays_open():
    places = Places(1000)
    grown(places, 10)
    windows = []
    for _ in range(6):
        places.narrow(10)
        windows.append(places.allot([Candidate(1, 10, SLOTS)], 500)[0])
    assert windows == [10, 5, 2, 1, 1, 1]


def test_tenants_share_a_claim_equally_however_many_endpoints_they_have():
    places = Places(1000)
    many = [Candidate(1, endpoint, SLOTS) for endpoint in range(10, 60)]
    one = [Candidate(2, 2, 200)]
    grown(places, 2, *range(10, 60))
    for _ in range(200):
        places.widen(2, 200)
    parts = places.allot([*many, *one], 100)
    assert (sum(parts[:50]), parts[50]) == (50, 50)
    assert set(parts[:50]) == {1}


def test_what_one_does_not_want_goes_to_the_others():
    places = Places(1000)
    flooded = [Candidate(1, endpoint, SLOTS) for endpoint in range(10, 60)]
    grown(places, *range(10, 60))
    trickle = [Candidate(tenant, tenant, SLOTS) for tenant in range(100, 119)]
    parts = places.allot([*flooded, *trickle], 500)
    assert parts[50:] == [FIRST_WINDOW] * 19
    assert sum(parts) == 500


def test_a_tenant_whose_endpoints_all_hang_leaves_places_for_the_others():
    places = Places(1024)
    endpoints = range(10, 110)
    grown(places, *endpoints)
    hanging = [Candidate(1, endpoint, SLOTS) for endpoint in endpoints]
    while sum(fill(places, hanging)):
        pass
    assert places.held <= SHARE_OF_FREE * places.free + SHARE_OF_FREE
    assert places.full_tenants() == [1]
    grown(places, 2)
    assert fill(places, [Candidate(2, 2, SLOTS)]) == [SLOTS]


def test_endpoints_that_never_answer_hold_next_to_nothing():
    """As many as a claim visits, each with its first window."""
    places = Places(1024)
    for tenant in range(125):
        fill(places, [Candidate(tenant, tenant, SLOTS)])
    assert places.held == 125 * FIRST_WINDOW


def test_who_was_refused_is_told_when_half_of_it_is_free_again():
    places = Places(1000)
    grown(places, 10)
    candidate = Candidate(1, 10, SLOTS)
    fill(places, [candidate])
    assert fill(places, [candidate]) == [0]
    told = [places.give_back(1, 10) for _ in range(SLOTS)]
    assert told == [False] * 9 + [True] + [False] * 10


@given(st.lists(st.integers(0, 50)), st.integers(0, 500))
def test_a_division_is_whole_and_fair(asked, room):
    given_ = max_min(asked, room)
    assert sum(given_) == min(sum(asked), room)
    for one, part in zip(asked, given_, strict=True):
        assert part <= one
        if part < one:  # refused something: then nobody got two more
            assert max(given_) <= part + 1


class Sharing(RuleBasedStateMachine):
    """Tenants, their endpoints, and answers in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.places = Places(64)
        self.under_way: list[Candidate] = []

    @rule(tenants=st.lists(st.integers(1, 4), min_size=1, max_size=6), limit=st.integers(1, 80))
    def claim(self, tenants: list[int], limit: int) -> None:
        candidates = [
            Candidate(tenant, 10 * tenant + nth % 3, 1 + nth) for nth, tenant in enumerate(tenants)
        ]
        candidates = list({each.endpoint_id: each for each in candidates}.values())
        free = self.places.free
        parts = fill(self.places, candidates, limit)
        assert sum(parts) <= min(limit, free)
        for candidate, part in zip(candidates, parts, strict=True):
            self.under_way += [candidate] * part
            self.places.found(candidate.endpoint_id, part, part)

    @rule(nth=st.integers(0, 100), alive=st.booleans())
    def answer(self, nth: int, alive: bool) -> None:
        if self.under_way:
            candidate = self.under_way.pop(nth % len(self.under_way))
            if alive:
                self.places.widen(candidate.endpoint_id, candidate.slots)
            else:
                self.places.narrow(candidate.endpoint_id)
            self.places.give_back(candidate.tenant_id, candidate.endpoint_id)

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.places.held == len(self.under_way) <= self.places.total
        for candidate in self.under_way:
            assert self.places.of_endpoint(candidate.endpoint_id) == sum(
                each.endpoint_id == candidate.endpoint_id for each in self.under_way
            )

    @invariant()
    def a_newcomer_gets_a_place_unless_all_hold_their_share(self) -> None:
        if self.places.free:
            assert self.places.allot([Candidate(99, 990, SLOTS)], 10)[0] >= 1


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
