"""Publish an event from inside your own database transaction.

For a service that shares its PostgreSQL database with Hookjetty: the event exists if and only if
the change that it tells of was committed.

    from hookjetty.publish import publish

    with connection:  # psycopg2: commits at the end, or rolls back
        cursor.execute("UPDATE exports SET done = true WHERE id = 41")
        publish(connection, 7, "export.done", {"export": 41})

Standard library only; what you have open is what is used. The role that you connect as needs
``GRANT hookjetty_publisher TO …``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple

PUBLISH = (
    "SELECT event_id, tasks FROM hookjetty.publish_event(%s::bigint, %s::text, %s::json, %s::text)"
)


class Published(NamedTuple):
    """An event's id (``evt_…``), and for how many endpoints it became a task."""

    event_id: str
    tasks: int


def publish(
    connection: Any,
    tenant_id: int,
    type: str,
    data: Mapping[str, Any] | str,
    key: str | None = None,
) -> Published:
    """Publish an event in the transaction that is open on ``connection``; commits nothing.

    ``connection`` is a connection or cursor of psycopg2 or psycopg 3, a Connection or Session of
    SQLAlchemy, Django's ``connection``, or a Peewee database. One that commits every statement by
    itself commits this one too. ``data`` is a JSON object, or its text, which is then delivered
    byte for byte. A second publish with the same ``key`` returns the first event.

    ``ValueError`` if ``data`` is not JSON. What PostgreSQL refuses is raised as an exception of
    your driver, with the SQLSTATE 22023 and ``field: reason``; as with every failed statement, the
    transaction can then only be rolled back.
    """
    row = _first_row(connection, (tenant_id, type, json_text(data), key))
    event_id, tasks = row.values() if isinstance(row, Mapping) else row
    return Published(f"evt_{event_id}", tasks)


def json_text(data: Mapping[str, Any] | str) -> str:
    """``data`` as JSON text; text is checked and stays as it is. ``ValueError`` if it is not JSON.

    >>> json_text({"rows": 3})
    '{"rows":3}'
    >>> json_text('{"size": 1.50}')
    '{"size": 1.50}'
    >>> json_text('{"size": 1.50')
    Traceback (most recent call last):
      ...
    ValueError: data is not JSON: Expecting ',' delimiter: line 1 column 14 (char 13)
    """
    try:
        if not isinstance(data, str):
            return json.dumps(data, separators=(",", ":"), allow_nan=False)
        json.loads(data)
    except RecursionError:
        raise ValueError("data is not JSON: it is nested too deeply") from None
    except ValueError as reason:
        raise ValueError(f"data is not JSON: {reason}") from None
    return data


def _first_row(connection: Any, parameters: tuple[Any, ...]) -> Any:
    """Run the statement the way this kind of connection does; all of them take ``%s``."""
    if hasattr(connection, "get_bind"):  # SQLAlchemy's Session
        connection = connection.connection()
    if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy's Connection
        return connection.exec_driver_sql(PUBLISH, parameters).fetchone()
    if hasattr(connection, "execute_sql"):  # Peewee's Database
        return connection.execute_sql(PUBLISH, parameters).fetchone()
    if hasattr(connection, "fetchone"):  # a cursor
        connection.execute(PUBLISH, parameters)
        return connection.fetchone()
    if hasattr(connection, "cursor"):
        with closing(connection.cursor()) as cursor:
            cursor.execute(PUBLISH, parameters)
            return cursor.fetchone()
    kind = connection.__class__
    raise TypeError(f"cannot publish through a {kind.__module__}.{kind.__qualname__}")
