"""What the acceptance tests share: a receiver with a memory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.receiver import RecordingReceiver


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running
