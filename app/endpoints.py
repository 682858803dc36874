"""Register an endpoint and change it: the verbs behind both surfaces' lists of endpoints."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from peewee import PeeweeException, fn

from app import errors
from app.db import db, hold_secret_key, is_away
from app.destinations import Policy, Refused
from app.models import (
    RETIRED_SECRET_HOURS,
    WELL,
    Dispatcher,
    Endpoint,
    Tenant,
    rfc3339,
    wake,
)
from app.settings import Settings
from app.signing import UnreadableSecret, Vault, generate_secret, is_same_secret

EVERYTHING = ["*"]

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
    **WELL,
}


class Registered(NamedTuple):
    """An endpoint as it is now. ``secret`` is in clear, and only there if it was made up now."""

    endpoint: Endpoint
    is_new: bool
    secret: str | None = None


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

    def register(self, tenant_id: int, wanted: Mapping[str, Any]) -> Registered:
        """A tenant's own registration: creates an endpoint, or updates the one it selects.

        ``wanted`` has any of ``url``, ``events``, ``secret`` and ``endpoint_id``; what is absent
        stays as it is. The endpoint is selected by its id, or else by the canonical form of the
        URL. A new endpoint, a new URL, and one that we had disabled need the receiver's consent
        first; a paused one stays paused.
        """
        url_key = self._canonical(wanted["url"]) if "url" in wanted else None
        with db.atomic():
            now = Tenant.lock(tenant_id)
            endpoint = _selected(tenant_id, wanted.get("endpoint_id"), url_key)
            if endpoint is None:
                return self._create(tenant_id, wanted, url_key, _ASK_FOR_CONSENT)
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
        generated = None if "secret" in wanted else generate_secret()
        rows = (
            Endpoint.insert(
                tenant_id=tenant_id,
                url=wanted["url"],
                url_key=url_key,
                events=wanted.get("events", EVERYTHING),
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
            for name in ("url", "events")
            if name in wanted and wanted[name] != getattr(endpoint, name)
        }
        if "secret" in wanted:
            columns |= self._rotation(endpoint, wanted["secret"], now)
        moves = url_key is not None and url_key != endpoint.url_key
        if moves:
            columns["url_key"] = url_key
        if endpoint.status in ("pending", "disabled") or (moves and endpoint.status == "active"):
            columns |= _ASK_FOR_CONSENT
        elif moves:
            columns["verified_at"] = None  # whoever resumes it must ask for consent
        changed = Endpoint.change(endpoint.id, **columns) if columns else endpoint
        assert changed is not None, "the tenant's row is locked"
        return changed

    def _rotation(self, endpoint: Endpoint, secret: str, now: datetime) -> dict[str, Any]:
        """The columns that make ``secret`` the present one; the one before signs on for a while."""
        tenant_id = endpoint.tenant_id
        try:
            present = self.vault.decrypt(endpoint.secret, tenant_id)
        except UnreadableSecret:
            retired = []  # it signs nothing any more, and this is how to mend that
        else:
            if is_same_secret(secret, present):
                return {}
            until = now + timedelta(hours=RETIRED_SECRET_HOURS)
            retired = [{"secret": endpoint.secret, "until": rfc3339(until)}]
        retired += [
            old for old in endpoint.retired_secrets if datetime.fromisoformat(old["until"]) > now
        ]
        return {
            "secret": self.vault.encrypt(secret, tenant_id),
            "retired_secrets": retired[:MAX_RETIRED_SECRETS],
        }


def verify(tenant_id: int, endpoint_id: int) -> Endpoint:
    """Ask a pending endpoint's receiver for its consent at once; an active one has given it.

    ``version_conflict`` for one that is paused or disabled: it is not consent that it lacks.
    """
    with db.atomic():
        endpoint = Endpoint.get_of(tenant_id, endpoint_id, lock=True)
        if endpoint.status == "active":
            return endpoint
        if endpoint.status != "pending":
            remedy = "register it again" if endpoint.status == "disabled" else "resume it"
            raise errors.conflict(f"endpoint ep_{endpoint_id} is {endpoint.status}; {remedy}")
        changed = Endpoint.change(endpoint_id, **_ASK_FOR_CONSENT)
        assert changed is not None, "its row is locked"
        return changed


def resume(tenant_id: int, endpoint_id: int) -> Endpoint:
    """A person says that the endpoint is to be called again, now and at full speed.

    Ends a pause, and whatever is held against it. One that never gave its consent, or that we had
    disabled, is asked for it first; a pending one is being asked already.
    """
    with db.atomic():
        endpoint = Endpoint.get_of(tenant_id, endpoint_id, lock=True)
        if endpoint.status == "pending":
            return endpoint
        paused_with_consent = endpoint.status == "paused" and endpoint.verified_at is not None
        consents = endpoint.status == "active" or paused_with_consent
        state = {"status": "active", **WELL} if consents else _ASK_FOR_CONSENT
        changed = Endpoint.change(endpoint_id, **state)
        assert changed is not None, "its row is locked"
        return changed


def await_consent(endpoint: Endpoint, seconds: float = HANDSHAKE_WAIT_SECONDS) -> Endpoint:
    """The endpoint once its handshake has ended well or badly, or as it is after ``seconds``.

    Call it outside of any transaction. Waits for nothing while no dispatcher is there to ask, and
    does not fail when the database goes away meanwhile: what was registered stays registered.
    """
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE_SECONDS
    try:
        is_awaited = Dispatcher.alive().exists()
        while is_awaited and endpoint.status == "pending" and endpoint.handshake_failure is None:
            if time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
            endpoint = Endpoint.get_by_id(endpoint.id)
    except PeeweeException as error:
        if not is_away(error):
            raise
        db.give_up()
    return endpoint


def _selected(tenant_id: int, endpoint_id: int | None, url_key: str | None) -> Endpoint | None:
    """The endpoint that a registration is about; None if it makes a new one."""
    same_url = (
        Endpoint.of(tenant_id).where(Endpoint.url_key == url_key).first() if url_key else None
    )
    if endpoint_id is None:
        return same_url
    endpoint = Endpoint.get_of(tenant_id, endpoint_id)
    if same_url is not None and same_url.id != endpoint_id:
        raise errors.conflict(f"endpoint ep_{same_url.id} has that url already")
    return endpoint
