"""What the admin surface's blueprints share: the prefix, the dialect, and who may call."""

from __future__ import annotations

from typing import Any

from app import errors
from app.auth import Principal
from app.blueprints.common import Blueprint, Dialect, lets_in, link_to_next
from app.pages import Page

PREFIX = "/api/webhooks"


def blueprint(noun: str, description: str) -> Blueprint:
    """The blueprint of one noun."""
    return Blueprint(f"admin_{noun}", __name__, url_prefix=PREFIX, description=description)


def dialect() -> Dialect:
    """HTTP status and ``{"code": <status>, "msg": …, "data": null}``."""
    return Dialect(
        "admin", PREFIX, lambda error, status: {"code": status, "msg": error.message, "data": None}
    )


@lets_in(admin=None)
def an_admin(principal: Principal) -> int:
    """Admins act for no tenant of their own; nobody else is let in."""
    if not principal.is_admin:
        raise errors.Error("forbidden", "this takes a token with the role admin")
    return 0


def paged(found: Page) -> tuple[dict[str, Any], dict[str, str]]:
    """A page of a list, and the header that names the next one; for an ``enveloped_page``."""
    return {"data": found.items, "next_cursor": found.next_cursor}, link_to_next(found.next_cursor)
