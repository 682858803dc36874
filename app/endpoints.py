"""Register an endpoint and change it: the verbs behind both surfaces' lists of endpoints.

Those that take ``if_match`` raise ``version_conflict`` when it does not match.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from peewee import PeeweeException, fn

from app import errors
from app.db import clock, db, hold_secret_key, is_away
from app.destinations import Policy, Refused
from app.models import (
    OPERATOR,
    WELL,
    Dispatcher,
    Endpoint,
    IfMatch,
    Tenant,
    rfc3339,
    wake,
)
from app.pages import Page, page
from app.publish import TestSent, publish_test
from app.settings import Settings
from app.signing import UnreadableSecret, Vault, generate_secret, is_same_secret

EVERYTHING = ["*"]

# So many endpoints of a tenant may name operational events (docs/operational-events.md).
MOST_LISTENERS = 10

# A replaced secret signs beside the new one for so long, unless it was chosen otherwise.
DEFAULT_OVERLAP = timedelta(hours=24)

# The type of a test event for an endpoint that names none.
TEST_TYPE = "hookjetty.test"

# So many replaced secrets may still be signed with; the oldest make way.
MAX_RETIRED_SECRETS = 10

# POST /endpoints waits so long for the receiver's consent, looking again after these pauses.
HANDSHAKE_WAIT_SECONDS = 3.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.01, 0.05

# The handshake starts, or starts again: whatever was known of the receiver is of the past.
_ASK_FOR_CONSENT: Mapping[str, Any] = {
    "status": "pending",
    "reason": None,
    "handshake_at": fn.now(),
    "handshake_tries": 0,
    "handshake_failure": None,
    "verified_at": None,
    "checks_signatures": False,
    "verifies_signatures": None,
    **WELL,
}

# The receiver is to be asked twice: well signed, and then with a wrong signature.
_CHECK_SIGNATURES: Mapping[str, Any] = {
    "handshake_at": fn.now(),
    "handshake_tries": 0,
    "handshake_failure": None,
    "checks_signatures": True,
    "verifies_signatures": None,
}

# Nobody is going to be asked.
_ASK_NOTHING: Mapping[str, Any] = {
    "handshake_at": None,
    "handshake_failure": None,
    "checks_signatures": False,
}

# What makes an endpoint active that is in this status.
REMEDIES = {
    "pending": "its receiver has not consented yet; verify it",
    "paused": "resume it",
    "disabled": "register it again",
}


class Registered(NamedTuple):
    """An endpoint as it is now. ``secret`` is in clear, and only there if it was made up now."""

    endpoint: Endpoint
    is_new: bool
    secret: str | None = None


class Switched(NamedTuple):
    """An endpoint that was paused or resumed, and how many tasks waited for it at that moment."""

    endpoint: Endpoint
    waiting: int


class Rotated(NamedTuple):
    """An endpoint and, if it was made up now, its new secret in clear."""

    endpoint: Endpoint
    secret: str | None
    previous_until: datetime | None


class Revealed(NamedTuple):
    """An endpoint's secret in clear, and until when an earlier one signs as well."""

    endpoint: Endpoint
    secret: str
    previous_until: datetime | None


@dataclass(frozen=True)
class Registry:
    """What registering needs to know about this instance."""

    policy: Policy
    vault: Vault
    at_most: int  # endpoints of one tenant

    @classmethod
    def from_settings(cls, settings: Settings) -> Registry:
        """The registry of an instance."""
        return cls(
            Policy.from_settings(settings),
            Vault(settings.secret_keys, before_encrypting=hold_secret_key),
            settings.endpoints_per_tenant,
        )

    def register(
        self, tenant_id: int, wanted: Mapping[str, Any], if_match: IfMatch = None
    ) -> Registered:
        """A tenant's own registration: creates an endpoint, or updates the one it selects.

        ``wanted`` has any of ``url``, ``events``, ``secret``, ``description``, ``metadata`` and
        ``endpoint_id``; what is absent stays as it is. The endpoint is selected by its id, or else
        by the canonical form of the URL. A new endpoint, a new URL, and one that we had disabled
        need the receiver's consent first; a paused one stays paused.
        """
        url_key = self._canonical(wanted["url"]) if "url" in wanted else None
        with db.atomic():
            now = Tenant.lock(tenant_id)
            endpoint = _selected(tenant_id, wanted.get("endpoint_id"), url_key)
            if endpoint is None:
                if if_match is not None:
                    raise errors.conflict(
                        "If-Match: there is no endpoint with that url; leave it out to make one"
                    )
                return self._create(tenant_id, wanted, url_key, _ASK_FOR_CONSENT)
            endpoint.must_match(if_match)
            return Registered(self._update(endpoint, wanted, url_key, now), is_new=False)

    def add(self, tenant_id: int, wanted: Mapping[str, Any]) -> Registered:
        """An admin's registration: active at once, since the admin vouches for the receiver.

        ``version_conflict`` if the tenant has a live endpoint with this URL.
        """
        url_key = self._canonical(wanted["url"])
        with db.atomic():
            Tenant.lock(tenant_id)
            known = Endpoint.of(tenant_id).where(Endpoint.url_key == url_key).first()
            if known is not None:
                raise errors.conflict(f"endpoint {known.id} of tenant {tenant_id} has that url")
            vouched = {"status": "active", "verified_at": fn.now()}
            return self._create(tenant_id, wanted, url_key, vouched)

    def reveal(self, tenant_id: int, endpoint_id: int) -> Revealed:
        """An endpoint's secret; ``version_conflict`` if nobody can read it any more."""
        endpoint = Endpoint.get_of(tenant_id, endpoint_id)
        try:
            secret = self.vault.decrypt(endpoint.secret, tenant_id)
        except UnreadableSecret:
            raise errors.conflict(
                f"the secret of endpoint ep_{endpoint_id} cannot be read any more; rotate it"
            ) from None
        return Revealed(endpoint, secret, _previous_until(endpoint, clock()))

    def rotate(
        self,
        tenant_id: int,
        endpoint_id: int,
        secret: str | None = None,
        overlap: timedelta = DEFAULT_OVERLAP,
        if_match: IfMatch = None,
    ) -> Rotated:
        """Give an endpoint another secret, one that is made up unless it is given.

        What signed until now signs on for ``overlap`` at most. A secret equal to the present one
        changes nothing. A receiver that is still to consent is asked again.
        """
        generated = None if secret is not None else generate_secret()
        with db.atomic():
            endpoint = Endpoint.get_to_change(tenant_id, endpoint_id, if_match)
            now = clock()
            columns = self._rotation(endpoint, generated or secret or "", now, overlap)
            if columns:
                if endpoint.status == "pending":
                    columns |= _ASK_FOR_CONSENT
                endpoint = _changed(endpoint, columns)
        return Rotated(endpoint, generated, _previous_until(endpoint, now))

    def _canonical(self, url: str) -> str:
        try:
            return self.policy.judge_url(url)
        except Refused as refused:
            raise errors.invalid("url", str(refused)) from None

    def _create(
        self,
        tenant_id: int,
        wanted: Mapping[str, Any],
        url_key: str | None,
        state: Mapping[str, Any],
    ) -> Registered:
        if url_key is None:
            raise errors.invalid("url", "is missing; it is what a new endpoint is made of")
        at_most = Tenant.most_endpoints(tenant_id, self.at_most)
        if Endpoint.of(tenant_id).count() >= at_most:
            raise errors.Error(
                "invalid_request",
                f"the tenant has {at_most} endpoints, which is the most; delete one first",
            )
        _check_listeners(tenant_id, wanted.get("events", EVERYTHING))
        generated = None if "secret" in wanted else generate_secret()
        rows = (
            Endpoint.insert(
                tenant_id=tenant_id,
                url=wanted["url"],
                url_key=url_key,
                events=wanted.get("events", EVERYTHING),
                description=wanted.get("description"),
                metadata=wanted.get("metadata", {}),
                secret=self.vault.encrypt(generated or wanted["secret"], tenant_id),
                **state,
            )
            .returning(Endpoint)
            .execute()
        )
        wake()
        return Registered(next(iter(rows)), is_new=True, secret=generated)

    def _update(
        self, endpoint: Endpoint, wanted: Mapping[str, Any], url_key: str | None, now: datetime
    ) -> Endpoint:
        """Write what differs; nothing at all if nothing does."""
        columns: dict[str, Any] = {
            name: wanted[name]
            for name in ("url", "events", "description", "metadata")
            if name in wanted and wanted[name] != getattr(endpoint, name)
        }
        if "events" in columns:
            _check_listeners(endpoint.tenant_id, columns["events"], besides=endpoint.id)
        if "secret" in wanted:
            columns |= self._rotation(endpoint, wanted["secret"], now, DEFAULT_OVERLAP)
        moves = url_key is not None and url_key != endpoint.url_key
        if moves:
            columns["url_key"] = url_key
        if endpoint.status in ("pending", "disabled") or (moves and endpoint.status == "active"):
            columns |= _ASK_FOR_CONSENT
        elif moves:
            # Whoever resumes it must ask for consent.
            columns |= {"verified_at": None, "verifies_signatures": None}
        return _changed(endpoint, columns) if columns else endpoint

    def _rotation(
        self, endpoint: Endpoint, secret: str, now: datetime, overlap: timedelta
    ) -> dict[str, Any]:
        """The columns that make ``secret`` the present one; those before sign on for a while."""
        tenant_id = endpoint.tenant_id
        try:
            present = self.vault.decrypt(endpoint.secret, tenant_id)
        except UnreadableSecret:
            retired = []  # it signs nothing any more, and this is how to mend that
        else:
            if is_same_secret(secret, present):
                return {}
            retired = [(endpoint.secret, now + overlap)]
        retired += [
            (old["secret"], min(datetime.fromisoformat(old["until"]), now + overlap))
            for old in endpoint.retired_secrets
        ]
        kept = [{"secret": old, "until": rfc3339(until)} for old, until in retired if until > now]
        return {
            "secret": self.vault.encrypt(secret, tenant_id),
            "retired_secrets": kept[:MAX_RETIRED_SECRETS],
        }


def verify(
    tenant_id: int,
    endpoint_id: int,
    *,
    check_signatures: bool = False,
    if_match: IfMatch = None,
) -> Endpoint:
    """Have a pending endpoint's receiver asked for its consent now; an active one has given it.

    With ``check_signatures`` either is asked, and whoever answers well is asked once more with a
    wrong signature. ``version_conflict`` for an endpoint that is paused or disabled.
    """
    with db.atomic():
        endpoint = Endpoint.get_to_change(tenant_id, endpoint_id, if_match)
        if endpoint.status not in ("pending", "active"):
            raise _not_active(endpoint)
        columns = dict(_ASK_FOR_CONSENT) if endpoint.status == "pending" else {}
        if check_signatures:
            columns |= _CHECK_SIGNATURES
        return _changed(endpoint, columns) if columns else endpoint


def pause(tenant_id: int, endpoint_id: int, if_match: IfMatch = None) -> Switched:
    """A person wants no calls to the endpoint for now; its tasks wait.

    ``version_conflict`` for one that we had disabled: it gets no calls as it is.
    """
    with db.atomic():
        endpoint = Endpoint.get_to_change(tenant_id, endpoint_id, if_match)
        if endpoint.status == "disabled":
            raise errors.conflict(
                f"endpoint ep_{endpoint_id} is disabled, so it is not called; to have it called,"
                f" {REMEDIES['disabled']}"
            )
        if endpoint.status != "paused":
            columns = {"status": "paused", "hold_until": None, **_ASK_NOTHING}
            endpoint = _changed(endpoint, columns)
        return Switched(endpoint, endpoint.waiting)


def resume(tenant_id: int, endpoint_id: int, if_match: IfMatch = None) -> Switched:
    """A person says that the endpoint is to be called again, now and at full speed.

    Ends a pause, and whatever is held against it. One that never gave its consent, or that we had
    disabled, is asked for it first; a pending one is being asked already.
    """
    with db.atomic():
        endpoint = Endpoint.get_to_change(tenant_id, endpoint_id, if_match)
        waiting = endpoint.waiting
        if endpoint.status != "pending":
            paused_with_consent = endpoint.status == "paused" and endpoint.verified_at is not None
            consents = endpoint.status == "active" or paused_with_consent
            state = {"status": "active", **WELL} if consents else _ASK_FOR_CONSENT
            endpoint = _changed(endpoint, state)
        return Switched(endpoint, waiting)


def send_test(
    tenant_id: int, endpoint_id: int, type_: str | None = None, if_match: IfMatch = None
) -> TestSent:
    """Send an endpoint a test event; ``version_conflict`` unless it is active.

    Without a type, it is of the first one that the endpoint names, or else ``hookjetty.test``.
    """
    with db.atomic():
        endpoint = Endpoint.get_to_change(tenant_id, endpoint_id, if_match)
        if endpoint.status != "active":
            raise _not_active(endpoint)
        named = (pattern for pattern in endpoint.events if not pattern.endswith("*"))
        return publish_test(tenant_id, endpoint_id, type_ or next(named, TEST_TYPE))


def delete(tenant_id: int, endpoint_id: int, if_match: IfMatch = None) -> Endpoint:
    """Delete a tenant's endpoint (``Endpoint.delete_of``)."""
    with db.atomic():
        return Endpoint.delete_of(Endpoint.get_to_change(tenant_id, endpoint_id, if_match))


def page_of_endpoints(tenant_id: int, *, limit: int, cursor: str | None = None) -> Page:
    """A tenant's endpoints, the oldest first."""
    query = Endpoint.of(tenant_id)
    return page(query, Endpoint.id, limit=limit, cursor=cursor, of=("endpoints", tenant_id))


def await_consent(endpoint: Endpoint, seconds: float = HANDSHAKE_WAIT_SECONDS) -> Endpoint:
    """The endpoint once its receiver has answered well or badly, or as it is after ``seconds``.

    Call it outside of any transaction. Waits for nothing while no dispatcher is there to ask, and
    does not fail when the database goes away meanwhile: what was registered stays registered.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    try:
        is_awaited = Dispatcher.alive().exists()
        while is_awaited and endpoint.is_being_asked:
            if time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
            present = Endpoint.get_or_none(Endpoint.id == endpoint.id)
            if present is None:  # its tenant is being erased
                break
            endpoint = present
    except PeeweeException as error:
        if not is_away(error):
            raise
        db.give_up()
    return endpoint


def _check_listeners(tenant_id: int, patterns: Sequence[str], besides: int = 0) -> None:
    """Bound how many of a tenant's endpoints hear of operational events; its row is locked.

    Each task that is given up becomes a task for every one of them, and all of that is written with
    the recording of what other tenants' receivers answered.
    """
    if tenant_id == OPERATOR or not _listens(patterns):
        return
    others = Endpoint.of(tenant_id).where(Endpoint.id != besides)
    if sum(_listens(each.events) for each in others) >= MOST_LISTENERS:
        raise errors.invalid(
            "events",
            f"operational events (hookjetty.…) are named by {MOST_LISTENERS} endpoints already,"
            " which is the most of a tenant",
        )


def _listens(patterns: Sequence[str]) -> bool:
    return any(pattern.startswith("hookjetty.") for pattern in patterns)


def _changed(endpoint: Endpoint, columns: Mapping[str, Any]) -> Endpoint:
    changed = Endpoint.change(endpoint.id, **columns)
    assert changed is not None, "its row is locked"
    return changed


def _not_active(endpoint: Endpoint) -> errors.Error:
    return errors.conflict(
        f"endpoint ep_{endpoint.id} is {endpoint.status}; {REMEDIES[endpoint.status]}"
    )


def _previous_until(endpoint: Endpoint, now: datetime) -> datetime | None:
    """Until when an earlier secret signs as well; None if none does."""
    ends = [datetime.fromisoformat(old["until"]) for old in endpoint.retired_secrets]
    return max((until for until in ends if until > now), default=None)


def _selected(tenant_id: int, endpoint_id: int | None, url_key: str | None) -> Endpoint | None:
    """The endpoint that a registration is about, its row locked; None if it makes a new one."""
    same_url = None
    if url_key is not None:
        query = Endpoint.of(tenant_id).where(Endpoint.url_key == url_key)
        same_url = query.for_update(endpoint_id is None).first()
    if endpoint_id is None:
        return same_url
    endpoint = Endpoint.get_of(tenant_id, endpoint_id, lock=True)
    if same_url is not None and same_url.id != endpoint_id:
        raise errors.conflict(f"endpoint ep_{same_url.id} has that url already")
    return endpoint
