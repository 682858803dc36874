"""Rotate the keys that secrets are encrypted with: ``hookjetty db rotate-secrets``.

Everything that a ``Vault`` wrote is encrypted again with the newest of SECRET_KEYS, in steps that
commit by themselves while API and dispatchers go on. Nothing is remembered between the steps: what
the newest key encrypted is skipped, so after a crash the command is simply run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from app.db import db, retrying, secret_keys_in_use
from app.models import Endpoint, Tenant
from app.signing import UnreadableSecret, Vault

# Rows looked at by one step. Decrypting and encrypting a secret takes some 100 us, so 500 endpoints
# are locked for a tenth of a second. Of answers few have a secret.
ENDPOINTS_AT_A_TIME = 500
ANSWERS_AT_A_TIME = 5000

# Start again so often when something was written with an older key meanwhile.
PASSES = 3

# The next stored answers after a key, those with a secret; and the last one, from which to go on.
NEXT_ANSWERS = """
SELECT owner, method, path, key, CASE WHEN sealed THEN answer END, place = %(most)s
FROM (SELECT k.*, row_number() OVER (ORDER BY owner, method, path, key) AS place
      FROM hookjetty.idempotency_keys k
      WHERE (owner, method, path, key) > %(after)s
      ORDER BY owner, method, path, key LIMIT %(most)s) page
WHERE sealed OR place = %(most)s
ORDER BY place
"""


class NotRestarted(Exception):
    """Some process does not use the newest key yet. The message says what to do."""


class Unreadable(NamedTuple):
    """An endpoint of which a secret cannot be decrypted, so that it was left alone."""

    endpoint_id: int
    tenant_id: int


@dataclass
class Report:
    """What was done.

    ``answers`` are those to writes that made a secret, stored for a repeat. ``forgotten`` are
    fingerprints of keys.
    """

    endpoints: int = 0
    answers: int = 0
    forgotten: list[str] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    unreadable_answers: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether everything could be decrypted."""
        return not self.unreadable and not self.unreadable_answers


def rotate_secrets(vault: Vault) -> Report:
    """Encrypt everything with the vault's newest key, then forget the keys that are not needed.

    What cannot be decrypted is reported and left alone. ``NotRestarted`` if no process was started
    with the newest key, or if one goes on writing with an older one.
    """
    if vault.fingerprints[0] not in secret_keys_in_use():
        raise NotRestarted(
            "no process was started with the newest of HOOKJETTY_SECRET_KEYS, so none would"
            " understand what it encrypts: restart API and dispatchers with it first; if they have"
            " it, this command was given an older list than they"
        )
    report = Report()
    for _ in range(PASSES):
        report.unreadable, report.unreadable_answers = [], 0
        for page in _pages_of_endpoints():
            _renew_endpoints(vault, page, report)
        for answers in _pages_of_answers():
            _renew_answers(vault, answers, report)
        forgotten = retrying(lambda: _forget_keys(vault, report))
        if forgotten is not None:
            report.forgotten = forgotten
            return report
    raise NotRestarted(
        "some process goes on encrypting with an older one of HOOKJETTY_SECRET_KEYS: restart API"
        " and dispatchers with the newest in front, then run this again"
    )


# ------------------------------------------------------------------------------------ endpoints


def _pages_of_endpoints() -> Iterator[list[Endpoint]]:
    """All of them in id order, without locks; deleted ones too, which still have their secret."""
    query = Endpoint.select(
        Endpoint.id, Endpoint.tenant_id, Endpoint.status, Endpoint.secret, Endpoint.retired_secrets
    ).order_by(Endpoint.id)
    page = list(query.limit(ENDPOINTS_AT_A_TIME))
    while page:
        yield page
        page = list(query.where(Endpoint.id > page[-1].id).limit(ENDPOINTS_AT_A_TIME))


def _renew_endpoints(vault: Vault, page: list[Endpoint], report: Report) -> None:
    """Encrypt again what an older key encrypted; commits.

    What was read without locks only tells which to lock: a change made meanwhile counts.
    """
    found = [(each, _renewed(vault, each)) for each in page]
    # Nobody signs for a deleted one any more.
    report.unreadable += [
        Unreadable(each.id, each.tenant_id)
        for each, renewed in found
        if renewed.is_unreadable and each.status != "deleted"
    ]
    stale = [each for each, renewed in found if renewed.is_change_of(each)]
    if stale:
        report.endpoints += retrying(lambda: _write_endpoints(vault, stale))


def _write_endpoints(vault: Vault, stale: list[Endpoint]) -> int:
    """Lock them, read them again and write them; how many there were to write.

    First the tenants, as whoever registers does. So everybody who has read one of these secrets
    in order to write it back, as a retired one, has committed by now.
    """
    with db.atomic():
        tenant_ids = sorted({each.tenant_id for each in stale})
        tenants = Tenant.select(Tenant.id).where(Tenant.id.in_(tenant_ids)).order_by(Tenant.id)
        list(tenants.for_update())
        endpoints = Endpoint.select().where(Endpoint.id.in_([each.id for each in stale]))
        locked = endpoints.order_by(Endpoint.id).for_update()
        changes = [
            (each.id, renewed.secret, json.dumps(renewed.retired))
            for each in locked
            if (renewed := _renewed(vault, each)).is_change_of(each)
        ]
        if changes:
            ids, secrets, retired = zip(*changes, strict=True)
            # Not a change for people: neither `version` nor `updated_at`.
            db.execute_sql(
                """
                UPDATE hookjetty.endpoints e
                SET secret = n.secret, retired_secrets = n.retired_secrets
                FROM unnest(%s::bigint[], %s::text[], %s::jsonb[])
                     AS n (id, secret, retired_secrets)
                WHERE e.id = n.id
                """,
                (list(ids), list(secrets), list(retired)),
            )
    return len(changes)


class Renewed(NamedTuple):
    """An endpoint's secrets as they are to be stored; those that are unreadable as they are."""

    secret: str
    retired: Any
    is_unreadable: bool

    def is_change_of(self, endpoint: Endpoint) -> bool:
        """Whether the row is to be written."""
        return (self.secret, self.retired) != (endpoint.secret, endpoint.retired_secrets)


def _renewed(vault: Vault, endpoint: Endpoint) -> Renewed:
    """Its secrets by the newest key, without the retired ones that have run out."""
    is_unreadable = False

    def renew(stored: str) -> str:
        nonlocal is_unreadable
        try:
            return vault.renew(stored, endpoint.tenant_id)
        except UnreadableSecret:
            is_unreadable = True
            return stored

    now = datetime.now().astimezone()
    secret = renew(endpoint.secret)
    try:
        retired = [
            each | {"secret": renew(each["secret"])}
            for each in endpoint.retired_secrets
            if datetime.fromisoformat(each["until"]) > now
        ]
    except (AttributeError, KeyError, TypeError, ValueError):  # not written by us
        retired, is_unreadable = endpoint.retired_secrets, True
    return Renewed(secret, retired, is_unreadable)


# -------------------------------------------------------------------------------------- answers


class _Answer(NamedTuple):
    """A stored answer with a secret, by its key."""

    owner: int
    method: str
    path: str
    key: str
    answer: str


def _pages_of_answers() -> Iterator[list[_Answer]]:
    """All that hold a secret, in the order of their keys."""
    after: tuple[Any, ...] | None = (0, "", "", "")
    while after is not None:
        bounds = {"after": after, "most": ANSWERS_AT_A_TIME}
        rows = db.execute_sql(NEXT_ANSWERS, bounds).fetchall()
        yield [_Answer(*row[:5]) for row in rows if row[4] is not None]
        after = rows[-1][:4] if rows and rows[-1][5] else None


def _renew_answers(vault: Vault, answers: list[_Answer], report: Report) -> None:
    """Encrypt again what an older key encrypted; commits."""
    stale = []
    for each in answers:
        try:
            renewed = vault.renew(each.answer, each.owner)
        except UnreadableSecret:
            report.unreadable_answers += 1
        else:
            if renewed != each.answer:
                stale.append((*each, renewed))
    if stale:
        report.answers += retrying(lambda: _write_answers(stale))


def _write_answers(stale: list[tuple[Any, ...]]) -> int:
    """Nobody changes an answer, but its row may have gone, and another one have come."""
    with db.atomic():
        columns = [list(column) for column in zip(*stale, strict=True)]
        cursor = db.execute_sql(
            """
            WITH renewed AS MATERIALIZED (
                SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[],
                                     %s::text[]) AS n (owner, method, path, key, answer, renewed)),
            locked AS MATERIALIZED (
                SELECT k.owner, k.method, k.path, k.key, n.renewed
                FROM hookjetty.idempotency_keys k
                JOIN renewed n USING (owner, method, path, key)
                WHERE k.answer = n.answer
                ORDER BY k.owner, k.method, k.path, k.key FOR UPDATE OF k)
            UPDATE hookjetty.idempotency_keys k SET answer = l.renewed
            FROM locked l
            WHERE (k.owner, k.method, k.path, k.key) = (l.owner, l.method, l.path, l.key)
            """,
            columns,
        )
    return int(cursor.rowcount)


# ----------------------------------------------------------------------------------------- keys


def _forget_keys(vault: Vault, report: Report) -> list[str] | None:
    """Take the older keys off the books; their fingerprints, or None if one is still needed.

    Who encrypts holds its key's row until it has committed (``hold_secret_key``). So once the older
    rows are locked, nothing by an older key is on its way, and what is found now is all there is.
    A key that is not among ours may be what the unreadable is encrypted with; then it stays.
    """
    newest, *older = vault.fingerprints
    with db.atomic() as transaction:
        rows = db.execute_sql(
            "SELECT fingerprint FROM hookjetty.secret_keys WHERE fingerprint <> %s"
            " ORDER BY fingerprint FOR UPDATE",
            (newest,),
        ).fetchall()
        needless = [key for (key,) in rows if key in older or report.is_complete]
        if needless and _is_anything_stale(vault):
            transaction.rollback()
            return None
        db.execute_sql(
            "DELETE FROM hookjetty.secret_keys WHERE fingerprint = ANY (%s)", (needless,)
        )
    return needless


def _is_anything_stale(vault: Vault) -> bool:
    """Whether an older key encrypted something that we could read."""
    for page in _pages_of_endpoints():
        if any(_renewed(vault, each).is_change_of(each) for each in page):
            return True
    for answers in _pages_of_answers():
        for each in answers:
            try:
                if vault.renew(each.answer, each.owner) != each.answer:
                    return True
            except UnreadableSecret:
                continue
    return False
