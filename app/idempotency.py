"""X-Request-Id makes a write idempotent: the same request again gets the same answer, and its work
is done once (tenant-api.md: "X-Request-Id | Optional | Idempotency key").
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from peewee import SQL, Expression, fn

from app import errors
from app.db import db
from app.models import IdempotencyKey
from app.signing import Vault

HOURS_KEPT = 24


class Call(NamedTuple):
    """A write, and what makes it the same as another one.

    ``owner`` is the tenant it is made for, or 0 for an admin or a service; ``body`` is compared
    byte by byte.
    """

    owner: int
    method: str
    path: str
    key: str
    body: bytes


class Answer(NamedTuple):
    """What was answered, or what was answered the first time."""

    status_code: int
    body: str
    etag: str | None = None
    is_repeat: bool = False


def once(call: Call, work: Callable[[], Answer], vault: Vault, *, seal: bool = False) -> Answer:
    """Do ``work`` for the first call with its key; give every other one the first one's answer.

    1. The key is inserted first, in the transaction of the work itself. Of concurrent duplicates
       one inserts it, the others wait here until that one has committed or rolled back.
    2. Who inserted it does the work and stores the answer. When the work raises, everything rolls
       back, so only successes are kept, and the key is free for another try.
    3. Who did not reads the answer; ``version_conflict`` if the body is not the same.

    ``seal`` encrypts the stored answer, which holds a secret.
    """
    digest = hashlib.sha256(call.body).digest()
    with db.atomic():
        while not _insert(call, digest):
            known = IdempotencyKey.get_or_none(_is(call))
            if known is not None:
                return _repeated(call, digest, known, vault)
            # It is older than it counts, or was pruned between the two statements.
            IdempotencyKey.delete().where(_is(call, kept=False)).execute()
        answer = work()
        kept = vault.encrypt(answer.body, call.owner) if seal else answer.body
        IdempotencyKey.update(
            status_code=answer.status_code, answer=kept, etag=answer.etag, sealed=seal
        ).where(_is(call)).execute()
    return answer


def _insert(call: Call, digest: bytes) -> bool:
    """Whether this call is the first with its key."""
    rows = (
        IdempotencyKey.insert(
            owner=call.owner,
            method=call.method,
            path=call.path,
            key=call.key,
            body_sha256=digest,
        )
        .on_conflict_ignore()
        .as_rowcount()
        .execute()
    )
    return bool(rows)


def _is(call: Call, *, kept: bool = True) -> Expression:
    """The row of a call's key, while it counts or once it does not any more."""
    oldest = fn.now() - SQL(f"interval '{HOURS_KEPT} hours'")
    age = IdempotencyKey.created_at > oldest if kept else IdempotencyKey.created_at <= oldest
    return (
        (IdempotencyKey.owner == call.owner)
        & (IdempotencyKey.method == call.method)
        & (IdempotencyKey.path == call.path)
        & (IdempotencyKey.key == call.key)
        & age
    )


def _repeated(call: Call, digest: bytes, known: IdempotencyKey, vault: Vault) -> Answer:
    if bytes(known.body_sha256) != digest:
        raise errors.conflict(
            f"X-Request-Id {call.key} was used for this request with another body within the last"
            f" {HOURS_KEPT} hours; use a new one"
        )
    assert known.answer is not None, "stored with the work"
    assert known.status_code is not None, "likewise"
    body = vault.decrypt(known.answer, call.owner) if known.sealed else known.answer
    return Answer(known.status_code, body, known.etag, is_repeat=True)
