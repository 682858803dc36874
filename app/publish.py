"""Publish events through the SQL function that every publisher uses (schema.sql, "publish")."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from peewee import DataError, OperationalError

from app import errors, ratelimit, strictjson
from app.db import db, is_conflict, retrying, sqlstate

MAX_BATCH = 1000
MAX_DATA_BYTES = 256 * 1024
MAX_KEY_CHARACTERS = 255

INVALID_PARAMETER_VALUE = "22023"


class NewEvent(NamedTuple):
    """What is to be published; ``data`` is JSON text and is kept byte for byte."""

    type: str
    data: str
    key: str | None = None


# What a test event of a type says of which the catalogue has no example.
NO_EXAMPLE = '{"test": true}'


class Published(NamedTuple):
    """An event's id and for how many endpoints it became a task; not new if its key was known."""

    event_id: int
    tasks: int
    is_new: bool = True


def publish(tenant_id: int, event: NewEvent) -> Published:
    """Publish one event, in a transaction of its own or in the one that is open.

    ``invalid_request`` names the field that PostgreSQL refused.
    """
    with _refusals():
        cursor = db.execute_sql(
            "SELECT * FROM hookjetty.publish(%s, %s, %s::json, %s)",
            (tenant_id, event.type, event.data, event.key),
        )
    return Published(*cursor.fetchone())


def publish_within_limit(tenant_id: int, type_: str, body: str, key: str | None) -> Published:
    """Publish the ``data`` of a request's body, which is known to be good JSON, as an event.

    Takes one event of the tenant's bucket before, in a transaction of its own and all in one
    statement, so no transaction may be open. Raises as ``publish`` and ``Limits.publish`` do.
    """
    try:
        with _refusals():
            cursor = db.execute_sql(
                "CALL hookjetty.publish_within_limit("
                "%s, %s, %s::json -> 'data', %s, %s::float8, NULL, NULL, NULL, NULL)",
                (tenant_id, type_, body, key, ratelimit.EVENTS_PER_SECOND),
            )
    except OperationalError as error:
        if not is_conflict(error):
            raise
        # The bucket was paid; somebody else's transaction takes keys in another order.
        event = strictjson.event_fields(body.encode())
        return retrying(lambda: publish(tenant_id, NewEvent(type_, event.data_text or "", key)))
    per_second, wait, *published = cursor.fetchone()
    if wait is not None:
        raise ratelimit.too_many_events(wait, per_second)
    return Published(*published)


def publish_batch(tenant_id: int, events: Sequence[NewEvent]) -> list[Published]:
    """Publish all of them or, if one cannot be accepted, none: the error's fields say which."""
    listed = ",".join(
        f'{{"type":{json.dumps(event.type)},"data":{event.data}'
        + ("}" if event.key is None else f',"key":{json.dumps(event.key)}}}')
        for event in events
    )
    return publish_batch_of(tenant_id, f'{{"events":[{listed}]}}')


def publish_batch_of(tenant_id: int, body: str) -> list[Published]:
    """The same for the ``events`` of a request's body, which is known to be good JSON."""
    with _refusals():
        rows = db.execute_sql(
            "SELECT * FROM hookjetty.publish_events(%s, %s::json -> 'events')", (tenant_id, body)
        ).fetchall()
    return [Published(*row) for row in rows]


class TestSent(NamedTuple):
    """A test event, and the one task it became."""

    event_id: int
    task_id: int


def publish_test(tenant_id: int, endpoint_id: int, type_: str) -> TestSent:
    """Publish the example of an event type to one endpoint alone, whatever that wants.

    From here on it is an event as any other. It was asked for by a person, so like a person's retry
    it passes a hold. Call it in a transaction that has locked the endpoint's row, which is active.
    """
    with _refusals():
        event_id = None
        while event_id is None:  # an id that was taken (schema.sql, "ids") is tried again
            row = db.execute_sql(
                """
                INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout, endpoint_id)
                VALUES (hookjetty.new_id(), %s, %s, %s::json, 1, %s)
                ON CONFLICT (id) DO NOTHING RETURNING id
                """,
                (tenant_id, type_, _example_of(type_), endpoint_id),
            ).fetchone()
            event_id = row and row[0]
    db.execute_sql(
        "SELECT hookjetty.make_tasks(%s, ARRAY[%s]::bigint[], ARRAY[%s]::bigint[], ARRAY[true])",
        (tenant_id, event_id, endpoint_id),
    )
    (task_id,) = db.execute_sql(
        "UPDATE hookjetty.tasks SET probe = true"
        " WHERE endpoint_id = %s AND event_id = %s AND id >= %s RETURNING id",
        (endpoint_id, event_id, event_id >> 12 << 12),  # made in the same millisecond, or later
    ).fetchone()
    db.execute_sql("SELECT hookjetty.wake()")
    return TestSent(event_id, task_id)


def _example_of(type_: str) -> str:
    """The example in the catalogue of event types as JSON text; a stated one if it has none."""
    row = db.execute_sql(
        "SELECT example::text FROM hookjetty.event_types WHERE name = %s", (type_,)
    ).fetchone()
    return (row and row[0]) or NO_EXAMPLE


def check(event: NewEvent) -> None:
    """Raise what publishing the event would raise, and store nothing."""
    with _refusals():
        (objection,) = db.execute_sql(
            "SELECT hookjetty.objection_to_event(%s, %s::json, %s)",
            (event.type, event.data, event.key),
        ).fetchone()
    if objection is not None:
        field, _, reason = objection.partition(": ")
        raise errors.invalid(field, reason)


@contextmanager
def _refusals() -> Iterator[None]:
    """PostgreSQL's reason: ``field: reason`` of our functions, or what json could not hold."""
    try:
        yield
    except DataError as error:
        # Peewee's own stubs do not know where it keeps psycopg2's error.
        message: str = error.orig.diag.message_primary  # type: ignore[attr-defined]
        field, separator, reason = message.partition(": ")
        if sqlstate(error) == INVALID_PARAMETER_VALUE and separator:
            raise errors.invalid(field, reason) from error
        raise errors.invalid("data", message) from error
