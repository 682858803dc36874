"""Publish events through the SQL function that every publisher uses (schema.sql, "publish")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from peewee import DataError

from app import errors
from app.db import db, sqlstate

MAX_BATCH = 1000
MAX_DATA_BYTES = 256 * 1024
MAX_KEY_CHARACTERS = 255

INVALID_PARAMETER_VALUE = "22023"


class NewEvent(NamedTuple):
    """What is to be published; ``data`` is JSON text and is kept byte for byte."""

    type: str
    data: str
    key: str | None = None


class Published(NamedTuple):
    """An event's id and for how many endpoints it became a task; not new if its key was known."""

    event_id: int
    tasks: int
    is_new: bool = True


def publish(tenant_id: int, event: NewEvent) -> Published:
    """Publish one event, in a transaction of its own or in the one that is open.

    ``invalid_request`` names the field that PostgreSQL refused.
    """
    try:
        cursor = db.execute_sql(
            "SELECT event_id, tasks, pg_current_xact_id()::text"
            " FROM hookjetty.publish_event(%s, %s, %s, %s)",
            (tenant_id, event.type, event.data, event.key),
        )
    except DataError as error:
        raise _refusal(error) from error
    event_id, tasks, transaction = cursor.fetchone()
    is_new = event.key is None or _was_made_by(transaction, event_id)
    return Published(event_id, tasks, is_new)


def publish_batch(tenant_id: int, events: Sequence[NewEvent]) -> list[Published]:
    """Publish all of them or, if one cannot be accepted, none: its place is in the error's fields.

    One statement. It takes the events by their keys in sorted order, so that two batches with keys
    in common wait for each other and never for each other both ways.
    """
    order = sorted(range(len(events)), key=lambda place: (events[place].key or "", place))
    columns = [[getattr(events[place], name) for place in order] for name in NewEvent._fields]
    try:
        with db.atomic():
            rows = db.execute_sql(
                """
                SELECT p.event_id, p.tasks
                FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY
                     AS e (type, data, key, place)
                CROSS JOIN LATERAL hookjetty.publish_event(%s, e.type, e.data::json, e.key) p
                ORDER BY e.place
                """,
                (*columns, tenant_id),
            ).fetchall()
    except DataError:
        _find_refused(tenant_id, events)
        raise
    by_place = dict(zip(order, rows, strict=True))
    return [Published(*by_place[place]) for place in range(len(events))]


def _was_made_by(transaction: str, event_id: int) -> bool:
    """Whether that transaction made the event, rather than having found its key."""
    row = db.execute_sql(
        "SELECT xid = %s::xid8 FROM hookjetty.events WHERE id = %s", (transaction, event_id)
    ).fetchone()
    return row is not None and row[0]


def _find_refused(tenant_id: int, events: Sequence[NewEvent]) -> None:
    """Publish them one by one, for nothing, and raise what the first refused one is refused for."""
    with db.atomic() as trial:
        for place, event in enumerate(events):
            try:
                publish(tenant_id, event)
            except errors.Error as error:
                details = {f"events.{place}.{name}": why for name, why in error.details.items()}
                raise errors.Error(error.code, f"events.{place}.{error.message}", details) from None
        trial.rollback()


def _refusal(error: DataError) -> errors.Error:
    """PostgreSQL's reason: ``field: reason`` of publish_event, or what json could not hold."""
    # Peewee's own stubs do not know where it keeps psycopg2's error.
    message: str = error.orig.diag.message_primary  # type: ignore[attr-defined]
    field, separator, reason = message.partition(": ")
    if sqlstate(error) == INVALID_PARAMETER_VALUE and separator:
        return errors.invalid(field, reason)
    return errors.invalid("data", message)
