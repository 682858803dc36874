"""What the tests of threats share: somebody who must hear nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.hostile import OK, Receiver, answer


@dataclass(frozen=True)
class Canary:
    """Listeners on the same port of 127.0.0.1 and ::1."""

    listeners: tuple[Receiver, Receiver]

    @property
    def port(self) -> int:
        return self.listeners[0].port

    @property
    def connections(self) -> int:
        return sum(listener.connections for listener in self.listeners)


@pytest.fixture
def canary() -> Iterator[Canary]:
    """The canary on loopback; whoever asks for it fails if anybody connects to it."""
    with ExitStack() as stack:
        running = Canary(_on_one_port())
        for listener in running.listeners:
            stack.enter_context(listener)
        yield running
        assert running.connections == 0, "somebody reached the canary"


def _on_one_port() -> tuple[Receiver, Receiver]:
    while True:
        first = Receiver(answer(OK))
        try:
            return first, Receiver(answer(OK), address="::1", port=first.port)
        except OSError:  # That port of ::1 is somebody else's.
            first._listener.close()
