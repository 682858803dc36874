"""Our books, held against what a receiver saw."""

from __future__ import annotations

from typing import Any

from app.db import db
from tests.acceptance.receiver import RecordingReceiver
from tests.factories import rows

# A request as both sides can name it: the event, the URL it was sent to, and which try it was.
Request = tuple[str, str, int]


def attempts() -> dict[Request, dict[str, Any]]:
    """Every attempt on the books."""
    cursor = db.execute_sql(
        """
        SELECT a.*, t.event_id, n.url
        FROM hookjetty.attempts a
        JOIN hookjetty.tasks t ON t.id = a.task_id
        JOIN hookjetty.endpoints n ON n.id = a.endpoint_id
        """
    )
    return {(f"evt_{row['event_id']}", row["url"], row["try"]): row for row in rows(cursor)}


def requests_seen(receiver: RecordingReceiver) -> list[Request]:
    """Every request that arrived."""
    return [
        (each.event, f"http://127.0.0.1:{receiver.port}{each.target}", each.number)
        for each in receiver.seen
    ]
