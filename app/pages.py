"""Pages of a list by keyset: a page costs the same however far down the list it is."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from peewee import Expression, Field, ModelSelect

from app import errors

_ID_BYTES = 8
_MARK_BYTES = 8

# At most so many items are looked at for a page of those that no index tells apart.
MOST_LOOKED_AT = 5_000


class Page(NamedTuple):
    """Some items of a list, and what asks for those behind them; None at its end."""

    items: list[Any]
    next_cursor: str | None


def page(
    query: ModelSelect[Any],
    key: Field[Any],
    *,
    limit: int,
    cursor: str | None,
    of: tuple[object, ...],
    newest_first: bool = False,
) -> Page:
    """The first ``limit`` items of a query that is ordered by ``key``, or those behind a cursor.

    ``of`` names the list and everything that narrows it: a cursor continues that very list, and is
    an ``invalid_request`` for any other.
    """
    if cursor is not None:
        last = last_id_in(cursor, of)
        query = query.where(key < last if newest_first else key > last)
    items = list(query.limit(limit + 1))
    if len(items) <= limit:
        return Page(items, None)
    return Page(items[:limit], cursor_behind(items[limit - 1].id, of))


def sparse_page(
    query: ModelSelect[Any],
    key: Field[Any],
    narrowed: Sequence[Expression],
    *,
    limit: int,
    cursor: str | None,
    of: tuple[object, ...],
) -> Page:
    """The same, newest first, of those items of an indexed query that fulfil ``narrowed`` as well.

    They may be few and far between, so only the next ``MOST_LOOKED_AT`` items are looked at. A page
    can then be short, or empty, although there is more: its ``next_cursor`` says so.
    """
    if cursor is not None:
        query = query.where(key < last_id_in(cursor, of))
    last_read = query.select(key).offset(MOST_LOOKED_AT - 1).limit(1).scalar() if narrowed else None
    if last_read is not None:
        query = query.where(key >= last_read)
    for each in narrowed:
        query = query.where(each)
    items = list(query.limit(limit + 1))
    if len(items) > limit:
        return Page(items[:limit], cursor_behind(items[limit - 1].id, of))
    return Page(items, None if last_read is None else cursor_behind(last_read, of))


def cursor_at(position: bytes, of: tuple[object, ...]) -> str:
    """Opaque to clients: a position, and a mark of the list it belongs to.

    The mark catches mistakes and is no secret: whoever makes up a cursor gets a page of a list
    that he may read anyway.
    """
    raw = position + _mark(position, of)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def position_in(
    cursor: str, of: tuple[object, ...], *, size: int | None = None, field: str = "cursor"
) -> bytes:
    """The position in a cursor of that very list, of ``size`` bytes, or ``invalid_request``."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    position = raw[:-_MARK_BYTES]
    # Compared as a whole, since base64 can write the same bytes in several ways.
    if len(position) != (size or len(position)) or cursor != cursor_at(position, of):
        raise errors.invalid(
            field,
            "is not one of this list; take next_cursor of the page before, with the same filters",
        )
    return position


def cursor_behind(last_id: int, of: tuple[object, ...]) -> str:
    """The cursor of a list that is ordered by id."""
    return cursor_at(last_id.to_bytes(_ID_BYTES, "big"), of)


def last_id_in(cursor: str, of: tuple[object, ...]) -> int:
    """The id in it.

    >>> last_id_in(cursor_behind(4711, ("tasks", 7)), ("tasks", 7))
    4711
    >>> last_id_in(cursor_behind(4711, ("tasks", 7)), ("tasks", 8))
    Traceback (most recent call last):
      ...
    app.errors.Error: cursor: is not one of this list; take next_cursor of the page before, \
with the same filters
    """
    return int.from_bytes(position_in(cursor, of, size=_ID_BYTES), "big")


def _mark(position: bytes, of: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr((position, *of)).encode()).digest()[:_MARK_BYTES]
