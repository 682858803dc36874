"""The catalogue of event types: what the platform's events mean, for people and for test events.

It describes; nothing that is published is held against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app import errors, jsonschemas
from app.db import db
from app.pages import Page, cursor_at, position_in
from app.publish import MAX_DATA_BYTES, NewEvent, check

MOST_TYPES = 1000
MAX_SCHEMA_BYTES = 64 * 1024

_OF: tuple[object, ...] = ("event types",)


@dataclass(slots=True)
class Entry:
    """A type in the catalogue. In a list without schema and example."""

    name: str
    description: str
    created_at: datetime
    updated_at: datetime
    schema: Any = None
    example: Any = None


def save(name: str, wanted: Mapping[str, Any]) -> tuple[Entry, bool]:
    """Create a type, or change what ``wanted`` has: description, schema, example.

    Returns it, and whether it is new. The example must satisfy the schema, and be something that
    can be published.
    """
    with db.atomic():
        db.execute_sql("SELECT pg_advisory_xact_lock(hashtext('hookjetty.event_types'))")
        present = _find(name)
        schema, example = (
            wanted[field] if field in wanted else present and getattr(present, field)
            for field in ("schema", "example")
        )
        _check(name, schema, example)
        if present is None and _count() >= MOST_TYPES:
            raise errors.invalid("name", f"would be one too many; there are {MOST_TYPES} types")
        db.execute_sql(
            """
            INSERT INTO hookjetty.event_types AS t (name, description, schema, example)
            VALUES (%s, coalesce(%s, ''), %s::json, %s::json)
            ON CONFLICT (name) DO UPDATE
            SET description = coalesce(%s, t.description), schema = excluded.schema,
                example = excluded.example, updated_at = now()
            """,
            (name, wanted.get("description"), _text(schema), _text(example),
             wanted.get("description")),
        )  # fmt: skip
        return get(name), present is None


def get(name: str) -> Entry:
    """One type, or ``not_found``."""
    entry = _find(name)
    if entry is None:
        raise errors.not_found(f"event type {name}")
    return entry


def delete(name: str) -> None:
    """Take a type out of the catalogue, or ``not_found``. Its events stay what they are."""
    deleted = db.execute_sql("DELETE FROM hookjetty.event_types WHERE name = %s", (name,))
    if not deleted.rowcount:
        raise errors.not_found(f"event type {name}")


def page_of_event_types(*, limit: int, cursor: str | None = None) -> Page:
    """The types by name, without schema and example."""
    last = "" if cursor is None else position_in(cursor, _OF).decode(errors="replace")
    rows = db.execute_sql(
        "SELECT name, description, created_at, updated_at FROM hookjetty.event_types"
        " WHERE name > %s ORDER BY name LIMIT %s",
        (last.replace("\0", ""), limit + 1),
    ).fetchall()
    entries = [Entry(*row) for row in rows]
    if len(entries) <= limit:
        return Page(entries, None)
    return Page(entries[:limit], cursor_at(entries[limit - 1].name.encode(), _OF))


def _find(name: str) -> Entry | None:
    row = db.execute_sql(
        "SELECT name, description, created_at, updated_at, schema, example"
        " FROM hookjetty.event_types WHERE name = %s",
        (name,),
    ).fetchone()
    return row and Entry(*row)


def _count() -> int:
    (count,) = db.execute_sql("SELECT count(*) FROM hookjetty.event_types").fetchone()
    return int(count)


def _check(name: str, schema: Any, example: Any) -> None:
    if schema is not None and len(_text(schema) or "") > MAX_SCHEMA_BYTES:
        raise errors.invalid("schema", f"is longer than 64 KiB ({MAX_SCHEMA_BYTES} bytes)")
    if example is not None:
        text = _text(example) or ""
        if len(text) > MAX_DATA_BYTES:
            raise errors.invalid("example", f"is longer than 256 KiB ({MAX_DATA_BYTES} bytes)")
        try:
            check(NewEvent(name, text))
        except errors.Error as error:
            reason = error.details.get("data", error.message)
            raise errors.invalid("example", reason) from None
    objection = None if schema is None else jsonschemas.objection(schema, example)
    if objection is not None:
        field, _, reason = objection.partition(": ")
        raise errors.invalid(field, reason)


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"))
