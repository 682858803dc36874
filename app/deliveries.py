"""What is sent for a task: the body and the headers of an attempt.

The dispatcher sends them. They are not stored but built again for whoever looks at an attempt; the
signature, which only the endpoint's secret could make, is left out then.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from app import __version__
from app.models import ID_EPOCH_MS
from app.signing import signature_headers

METHOD = "POST"
USER_AGENT = f"user-agent: Hookjetty/{__version__}"
# In place of a signature: whoever may see an attempt must not be able to send it again.
HIDDEN_SIGNATURE = "v1,***"


def event_body(event_id: int, event_type: str, data: str) -> bytes:
    """The body sent for an event: the same bytes on every attempt, the data as it came in."""
    second, milliseconds = divmod((event_id >> 12) + ID_EPOCH_MS, 1000)
    when = f"{_rfc3339_second(second)}.{milliseconds:03}Z"
    head = f'{{"id":"evt_{event_id}","type":"{event_type}","timestamp":"{when}","data":'
    return f"{head}{data}}}".encode()


@lru_cache(maxsize=1000)
def _rfc3339_second(second: int) -> str:
    """A Unix time in UTC without its fraction; many events of a second are sent at once."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def header_lines(try_number: int, replay_id: int | None, signed: Sequence[str]) -> list[str]:
    """An attempt's headers but those that HTTP itself needs; ``signed`` are the signature's."""
    lines = [
        "content-type: application/json",
        USER_AGENT,
        f"webhook-attempt: {try_number}",
        *signed,
    ]
    if replay_id is not None:
        lines.append(f"webhook-replay: rpl_{replay_id}")
    return lines


def shown_headers(
    event_id: int, try_number: int, replay_id: int | None, started_at: datetime
) -> dict[str, str]:
    """The headers of an attempt that was made then, by name, without its signature.

    >>> shown_headers(7, 2, None, datetime(2026, 1, 2, 3, 4, 5, 678000, UTC))["webhook-timestamp"]
    '1767323045'
    """
    signed = signature_headers(f"evt_{event_id}", int(started_at.timestamp()), HIDDEN_SIGNATURE)
    lines = header_lines(try_number, replay_id, signed)
    return dict(line.split(": ", 1) for line in lines)
