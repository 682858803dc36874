"""Publish events from inside your own database transaction.

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

import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any, NamedTuple, NoReturn

PUBLISH = (
    "SELECT event_id, tasks FROM hookjetty.publish_event(%s::bigint, %s::text, %s::json, %s::text)"
)
PUBLISH_BATCH = "SELECT event_id, tasks FROM hookjetty.publish_events(%s::bigint, %s::json)"


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

    ``ValueError`` if ``data`` is not JSON, ``TypeError`` if ``connection`` is none of these. What
    PostgreSQL refuses is raised as an exception of your driver, with the SQLSTATE 22023 and
    ``field: reason``; as with every failed statement, the transaction can then only be rolled back.
    """
    (published,) = _run(connection, PUBLISH, (tenant_id, type, json_text(data), key))
    return published


def publish_batch(
    connection: Any, tenant_id: int, events: Iterable[Mapping[str, Any]]
) -> list[Published]:
    """Publish 1 to 1,000 events of one tenant, at a tenth of the cost of as many ``publish``.

    Each is ``{"type": …, "data": …}``, with a ``"key"`` if it is to be idempotent. All of them are
    published or none is: a reason names the event by its place, as in ``events.3.type: …``.
    Otherwise as ``publish``; the answers are in the order of ``events``.
    """
    texts = [event_text(**event) for event in events]
    return _run(connection, PUBLISH_BATCH, (tenant_id, f"[{','.join(texts)}]"))


def event_text(type: str, data: Mapping[str, Any] | str, key: str | None = None) -> str:
    """An event of a batch as JSON, with the text of ``data`` as it is.

    >>> event_text("export.done", '{"size": 1.50}')
    '{"type": "export.done","data":{"size": 1.50}}'
    """
    head = json.dumps({"type": type} | ({} if key is None else {"key": key}))
    return f'{head.removesuffix("}")},"data":{json_text(data)}}}'


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
        json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("data is not JSON: it is nested too deeply") from None
    except ValueError as reason:
        raise ValueError(f"data is not JSON: {reason}") from None
    return data


def _refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{name} is no JSON value")


def _run(connection: Any, statement: str, parameters: tuple[Any, ...]) -> list[Published]:
    """Run the statement the way this kind of connection does; all of them take ``%s``."""
    if inspect.iscoroutinefunction(getattr(connection, "execute", None)):
        raise TypeError(
            f"cannot publish through {_a(connection)}, which is asynchronous; "
            "with SQLAlchemy: await session.run_sync(publish, 7, ...)"
        )
    if hasattr(connection, "get_bind"):  # SQLAlchemy's Session
        connection = connection.connection()
    if hasattr(connection, "exec_driver_sql"):  # SQLAlchemy's Connection
        return _published(connection.exec_driver_sql(statement, parameters))
    if hasattr(connection, "execute_sql"):  # Peewee's Database
        return _published(connection.execute_sql(statement, parameters))
    if hasattr(connection, "fetchall"):  # a cursor
        connection.execute(statement, parameters)
        return _published(connection)
    if hasattr(connection, "cursor"):
        # psycopg 3 may be set to make objects of any class from rows.
        plain = {"row_factory": _plain_rows} if hasattr(connection, "row_factory") else {}
        with closing(connection.cursor(**plain)) as cursor:
            cursor.execute(statement, parameters)
            return _published(cursor)
    raise TypeError(f"cannot publish through {_a(connection)}")


def _published(cursor: Any) -> list[Published]:
    rows = (row.values() if isinstance(row, Mapping) else row for row in cursor.fetchall())
    return [Published(f"evt_{event_id}", tasks) for event_id, tasks in rows]


def _plain_rows(_cursor: Any) -> type[tuple[Any, ...]]:
    return tuple


def _a(connection: Any) -> str:
    kind = connection.__class__
    return f"a {kind.__module__}.{kind.__qualname__}"
