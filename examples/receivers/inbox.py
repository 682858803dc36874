"""What arrived, each event once: the part of a receiver that is the same in every framework.

A receiver keeps what it was told and says thank you; the work is done from this table, in its own
time. The primary key makes one event of what arrives twice, also when both arrive at once.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing


class Inbox:
    """A table of events in an SQLite file; yours is one in your own database."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._run("CREATE TABLE IF NOT EXISTS inbox (event_id text PRIMARY KEY, body blob)")

    def add(self, event_id: str, body: bytes) -> bool:
        """Keep an event, on disk when this returns; False if it was here before."""
        insert = "INSERT INTO inbox VALUES (?, ?) ON CONFLICT DO NOTHING"
        return self._run(insert, event_id, body) == 1

    def _run(self, statement: str, *values: object) -> int:
        with closing(sqlite3.connect(self._path)) as connection, connection:
            return connection.execute(statement, values).rowcount
