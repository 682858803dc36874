"""Who may have how many of this process's places. Pure: no clock, no database.

A place is what a task takes from its claim until its answer, so a receiver that hangs keeps its
places for as long as it hangs. Four rules keep that from being anybody else's trouble:

* An endpoint has at most its slots, and at first only a few of them: each success opens one more,
  each failure of its server closes half (TCP's slow start). One that never answers never gets far,
  and one that has just recovered is not met by all that has piled up.
* A tenant may hold at most ``SHARE_OF_FREE`` times as many places as are free (the "dynamic
  threshold" of switches with a shared buffer: Choudhury and Hahne, 1998). Alone, it gets three
  quarters of all; however many it fills, some stay free for those who come later.
* One claim is divided equally among the tenants it met, and each tenant's part equally among its
  endpoints (max-min fairness: what one does not want goes to the others).
* Nobody is reserved more than they had last time, doubled: what is not there to be claimed does
  not make the claim smaller for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Of an endpoint that nothing is known of yet.
FIRST_WINDOW = 2
FIRST_DEMAND = 8
SHARE_OF_FREE = 3
# Windows and demands are kept for the endpoints that were busy lately.
MOST_REMEMBERED = 20_000


class Candidate(NamedTuple):
    """An endpoint that has ready tasks, and its slots in each process."""

    tenant_id: int
    endpoint_id: int
    slots: int


class Places:
    """The places of one process: ``total`` of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.held = 0
        self._of_endpoint: dict[int, int] = {}
        self._of_tenant: dict[int, int] = {}
        self._window: dict[int, int] = {}
        self._demand: dict[int, int] = {}
        # Who was refused: endpoints, and tenants.
        self._closed: set[int] = set()
        self._full: set[int] = set()

    @property
    def free(self) -> int:
        """How many places nobody has."""
        return self.total - self.held

    def full_tenants(self) -> list[int]:
        """Tenants that may not hold more at present: a claim need not look at them."""
        full = [
            tenant for tenant, held in self._of_tenant.items() if held >= SHARE_OF_FREE * self.free
        ]
        self._full = set(full)
        return full

    def allot(self, candidates: Sequence[Candidate], limit: int) -> list[int]:
        """How many tasks each of the candidates may give, ``limit`` in all.

        >>> Places(100).allot([Candidate(1, 10, 20), Candidate(2, 20, 20)], 3)
        [2, 1]
        """
        room = min(limit, self.free)
        wishes = [self._wish(each) for each in candidates]
        by_tenant: dict[int, list[int]] = {}
        for place, each in enumerate(candidates):
            by_tenant.setdefault(each.tenant_id, []).append(place)
        tenants = list(by_tenant)
        asked = [
            min(sum(wishes[place] for place in by_tenant[tenant]), self._allowed(tenant))
            for tenant in tenants
        ]
        allotted = [0] * len(candidates)
        for tenant, part in zip(tenants, max_min(asked, room), strict=True):
            places = by_tenant[tenant]
            parts = max_min([wishes[place] for place in places], part)
            for place, given in zip(places, parts, strict=True):
                allotted[place] = given
        for place, each in enumerate(candidates):
            if not allotted[place]:
                self._closed.add(each.endpoint_id)
        return allotted

    def found(self, endpoint_id: int, allotted: int, given: int) -> None:
        """What an allotment came to: how much to reserve for that endpoint next time."""
        demand = 2 * given if given == allotted else max(FIRST_DEMAND, 2 * given)
        _remember(self._demand, endpoint_id, max(FIRST_DEMAND, demand))

    def take(self, tenant_id: int, endpoint_id: int) -> None:
        """A task of theirs was claimed."""
        self.held += 1
        self._of_endpoint[endpoint_id] = self.of_endpoint(endpoint_id) + 1
        self._of_tenant[tenant_id] = self._of_tenant.get(tenant_id, 0) + 1

    def give_back(self, tenant_id: int, endpoint_id: int) -> bool:
        """A place is free again. Whether somebody who was refused one may try once more."""
        self.held -= 1
        left = _lower(self._of_endpoint, endpoint_id)
        of_tenant = _lower(self._of_tenant, tenant_id)
        if tenant_id in self._full and 4 * of_tenant <= SHARE_OF_FREE * self.free * 3:
            self._full.discard(tenant_id)
            return True
        if endpoint_id in self._closed and 2 * left <= self._window.get(endpoint_id, FIRST_WINDOW):
            self._closed.discard(endpoint_id)
            return True
        return False

    def widen(self, endpoint_id: int, slots: int) -> None:
        """Its server works: one more task at a time, up to its slots."""
        window = self._window.get(endpoint_id, FIRST_WINDOW)
        if window < slots:
            _remember(self._window, endpoint_id, window + 1)

    def narrow(self, endpoint_id: int) -> None:
        """Its server failed: half as many tasks at a time, and one at least."""
        _remember(self._window, endpoint_id, self._window.get(endpoint_id, FIRST_WINDOW) // 2 or 1)

    def of_endpoint(self, endpoint_id: int) -> int:
        """How many places its tasks hold."""
        return self._of_endpoint.get(endpoint_id, 0)

    def _wish(self, candidate: Candidate) -> int:
        endpoint_id = candidate.endpoint_id
        window = min(candidate.slots, self._window.get(endpoint_id, FIRST_WINDOW))
        open_slots = window - self.of_endpoint(endpoint_id)
        return max(0, min(open_slots, self._demand.get(endpoint_id, FIRST_DEMAND)))

    def _allowed(self, tenant_id: int) -> int:
        """How many more it may hold, so that it holds what is free then, times the share."""
        held = self._of_tenant.get(tenant_id, 0)
        return max(0, (SHARE_OF_FREE * self.free - held + SHARE_OF_FREE) // (SHARE_OF_FREE + 1))


def max_min(asked: Sequence[int], room: int) -> list[int]:
    """Divide ``room``: nobody gets more than asked, and nobody less than another who asked more.

    >>> max_min([1, 20, 20], 11), max_min([2, 2], 9), max_min([], 5)
    ([1, 5, 5], [2, 2], [])
    """
    given = [0] * len(asked)
    order = sorted(range(len(asked)), key=asked.__getitem__)
    for nth, place in enumerate(order):
        part = -(-room // (len(order) - nth))
        given[place] = min(asked[place], part)
        room -= given[place]
    return given


def _lower(counts: dict[int, int], key: int) -> int:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
    return left


def _remember(values: dict[int, int], key: int, value: int) -> None:
    """The last written is the last forgotten."""
    values.pop(key, None)
    values[key] = value
    if len(values) > MOST_REMEMBERED:
        del values[next(iter(values))]
