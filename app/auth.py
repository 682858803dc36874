"""Who is calling: a bearer token turned into a principal, or ``unauthorized``.

PyJWT verifies the signature. What the token says is read with ``strictjson`` and checked here,
since PyJWT takes ``"exp": "9999999999"``, the last of two equal claims, and a fractional ``exp``
cut down. The rules follow RFC 8725 (JWT Best Current Practices): the algorithms come from the
settings and the keys from one place, nothing from the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jwt

from app import errors, strictjson
from app.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from app.settings import Settings

log = logging.getLogger(__name__)

READ = "webhooks:read"
WRITE = "webhooks:write"
PUBLISH = "events:write"

# What a tenant's token may do that names no scopes: it was made before we had them.
TENANT_DEFAULT_SCOPES = frozenset({READ, WRITE})

# Above this a token is not even looked at. It is also about what gunicorn takes as one header.
MAX_TOKEN_BYTES = 8192
# Ids stay exact in every JSON reader (RFC 8259, section 6).
MAX_TENANT_ID = 2**53 - 1
# The end of the year 9999. Beyond it is a time in milliseconds, that is a token without an end.
LATEST_TIME = 253_402_300_799
# How far the clock of whoever issues tokens may be ahead of ours.
CLOCK_SKEW_SECONDS = 10


@dataclass(frozen=True)
class Principal:
    """What a verified token says about its bearer."""

    subject: str
    tenant_id: int | None
    role: str | None
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """May use the admin surface. A tenant's token may not, whatever role it claims."""
        return self.role == "admin" and self.tenant_id is None

    @property
    def is_service(self) -> bool:
        """A producer that may name the tenant it publishes for; it needs the scope as well."""
        return self.role == "service" and self.tenant_id is None

    def may(self, scope: str) -> bool:
        """Whether the token carries the scope."""
        return scope in self.scopes


class Tokens:
    """Verifies tokens by the settings, and makes them where there is a shared secret.

    Thread-safe. ``SettingsError`` if there is nothing usable to verify with.
    """

    def __init__(self, settings: Settings, cached: int = 1024) -> None:
        """``cached`` tokens are remembered: verifying one costs 80 us and more, that 3 to 6."""
        settings.require("jwt_secret or jwt_jwks")
        self._settings = settings
        self._jws = jwt.PyJWS(algorithms=list(settings.jwt_algorithms))
        self._keys: _Secret | _KeyFile
        if settings.jwt_jwks:
            self._keys = _KeyFile(settings.jwt_jwks, settings.jwt_algorithms)
        else:
            self._keys = _Secret(settings.jwt_secret or "")
        self._verified = _Verified(cached)

    def verify(self, token: str, now: float | None = None) -> Principal:
        """Who bears the token; ``unauthorized`` with a reason that is safe to show.

        ``now`` is in Unix seconds; this machine's clock by default.
        """
        now = time.time() if now is None else now
        if len(token) > MAX_TOKEN_BYTES:
            raise _unauthorized(f"the token is longer than {MAX_TOKEN_BYTES:,} bytes")
        keys = self._keys.current()
        # A digest, so that tokens lie in memory no longer than they are used.
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        principal = self._verified.get(digest, keys, now)
        if principal is None:
            claims = self._claims(token, keys)
            principal = self._principal(claims, now)
            self._verified.put(digest, _Entry(principal, keys, claims["exp"]))
        return principal

    def mint(
        self,
        *,
        subject: str,
        ttl_seconds: float,
        role: str | None = None,
        tenant_id: int | None = None,
        scopes: Iterable[str] | None = None,
    ) -> str:
        """A new HS256 token; ``SettingsError`` where tokens are signed elsewhere."""
        settings = self._settings
        if not settings.jwt_secret:
            raise SettingsError(
                "tokens are verified with HOOKJETTY_JWT_JWKS, so only who holds the private key"
                " can make them; ask the service that issues them"
            )
        now = int(time.time())
        claims: dict[str, Any] = {
            "sub": subject,
            "aud": settings.jwt_audience,
            "iat": now,
            "exp": now + int(ttl_seconds),
        }
        optional = {
            "iss": settings.jwt_issuer,
            settings.jwt_role_claim: role,
            settings.jwt_tenant_claim: tenant_id,
            settings.jwt_scope_claim: None if scopes is None else " ".join(scopes),
        }
        claims |= {name: value for name, value in optional.items() if value is not None}
        return jwt.encode(claims, settings.jwt_secret, algorithm="HS256")

    def _claims(self, token: str, keys: _Keys) -> dict[str, Any]:
        """The claims, once the signature is verified."""
        if not token.isascii() or token.count(".") != 2:
            raise _unauthorized("the token is not three parts of base64url joined by dots")
        header = _json_object(_decoded(token.partition(".")[0]), "header")
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._settings.jwt_algorithms:
            raise _unauthorized("the token's algorithm is not one that is accepted here")
        if "crit" in header:  # RFC 7515, section 4.1.11: what is critical must be understood
            raise _unauthorized("the token has critical header parameters, and none is known here")
        if "kid" in header and not isinstance(kid, str):
            raise _unauthorized("the token's kid is not a string")
        # The kid is compared with the names in our own file, and used for nothing else. A token
        # without one fits every key of its algorithm, and a key without one every token.
        for key in keys:
            if key.algorithm == algorithm and (None in (kid, key.kid) or key.kid == kid):
                try:
                    payload = self._jws.decode(token, key.material, [key.algorithm])
                except jwt.PyJWTError:
                    continue
                return _json_object(payload, "payload")
        raise _unauthorized("the token's signature is not by a key that is accepted here")

    def _principal(self, claims: dict[str, Any], now: float) -> Principal:
        """The principal that valid claims describe (RFC 7519, section 4.1)."""
        settings = self._settings
        if _time(claims, "exp") <= now:
            raise _unauthorized("the token has expired")
        for claim in ("nbf", "iat"):
            if claim in claims and _time(claims, claim) > now + CLOCK_SKEW_SECONDS:
                raise _unauthorized(f"the token is not valid yet ({claim})")
        audiences = claims.get("aud")
        if settings.jwt_audience not in (audiences if isinstance(audiences, list) else [audiences]):
            raise _unauthorized(f"the token is not made for {settings.jwt_audience} (aud)")
        if settings.jwt_issuer and claims.get("iss") != settings.jwt_issuer:
            raise _unauthorized("the token is not by the issuer that is accepted here (iss)")
        subject = _text(claims, "sub")
        if not subject:
            raise _unauthorized("the token does not say whose it is (sub)")
        tenant_id = claims.get(settings.jwt_tenant_claim)
        # type(), since True is an int as well.
        if settings.jwt_tenant_claim in claims and not (
            type(tenant_id) is int and 1 <= tenant_id <= MAX_TENANT_ID
        ):
            raise _unauthorized(f"the token's {settings.jwt_tenant_claim} is not a tenant's id")
        scope = _text(claims, settings.jwt_scope_claim)
        if scope is None:
            scopes = TENANT_DEFAULT_SCOPES if tenant_id else frozenset()
        else:
            scopes = frozenset(scope.split())
        return Principal(subject, tenant_id, _text(claims, settings.jwt_role_claim), scopes)


def bearer_token(authorization: str | None) -> str:
    """The token in an ``Authorization`` header (RFC 6750, section 2.1), or ``unauthorized``."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or " " in token:
        raise _unauthorized("send a token: Authorization: Bearer <token>")
    return token


def _unauthorized(reason: str) -> errors.Error:
    return errors.Error("unauthorized", reason)


def _decoded(segment: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError:
        raise _unauthorized("the token's header is not base64url") from None


def _json_object(raw: bytes, part: str) -> dict[str, Any]:
    try:
        value = strictjson.loads(raw)
    except errors.Error:
        raise _unauthorized(f"the token's {part} is not acceptable JSON") from None
    if not isinstance(value, dict):
        raise _unauthorized(f"the token's {part} is not a JSON object")
    return value


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _unauthorized(f"the token's {name} is missing or not a number of seconds")
    if not 0 <= value <= LATEST_TIME:
        raise _unauthorized(f"the token's {name} is not a time in seconds since 1970")
    return value


def _text(claims: dict[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if name in claims and not isinstance(value, str):
        raise _unauthorized(f"the token's {name} is not a string")
    return value


class _Key(NamedTuple):
    """What verifies one algorithm's signatures; ``kid`` is its name in the JWKS file."""

    kid: str | None
    algorithm: str
    material: Any


_Keys = tuple[_Key, ...]


class _Secret:
    """The shared secret as a set of keys that never changes."""

    def __init__(self, secret: str) -> None:
        try:
            jwt.encode({}, secret, algorithm="HS256")
        except jwt.InvalidKeyError:
            raise SettingsError(
                "HOOKJETTY_JWT_SECRET is refused: it looks like a PEM, SSH or JWK key; a shared"
                " secret is plain random text, and public keys belong in HOOKJETTY_JWT_JWKS"
            ) from None
        self._keys: _Keys = (_Key(None, "HS256", secret),)

    def current(self) -> _Keys:
        return self._keys


class _KeyFile:
    """The public keys of a JWKS file (RFC 7517), read again when the file changes.

    A file that is gone or broken changes nothing: what was read before stays, and a warning says
    so; tokens must not all fail because a deployment writes the file in two steps.
    """

    def __init__(self, path: Path, algorithms: tuple[str, ...]) -> None:
        self._path = path
        self._algorithms = algorithms
        self._version = self._present_version()
        self._keys = self._read()

    def current(self) -> _Keys:
        """The same object as long as the keys are the same."""
        version = self._present_version()
        if version != self._version:
            self._version = version
            try:
                self._keys = self._read()
            except SettingsError as reason:
                log.warning("keeping the token keys that were read before: %s", reason)
        return self._keys

    def _present_version(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self) -> _Keys:
        try:
            document = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError) as reason:
            raise self._refusal(f"it cannot be read: {reason}") from None
        members = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(members, list):
            raise self._refusal('it is not {"keys": [...]}')
        keys = tuple(
            key
            for position, member in enumerate(members)
            if (key := self._key(member, f"key {position}"))
        )
        if not keys:
            raise self._refusal(f"it has no key for {', '.join(self._algorithms)}")
        return keys

    def _key(self, member: Any, name: str) -> _Key | None:
        """One public key; ``None`` if it is for something else."""
        if not isinstance(member, dict):
            raise self._refusal(f"{name} is not an object")
        if member.get("kty") == "oct" or "d" in member:
            raise self._refusal(f"{name} is a secret or private key; public ones are enough")
        if member.get("use", "sig") != "sig":
            return None
        try:
            key = jwt.PyJWK(member)
            weakness = key.Algorithm.check_key_length(key.key)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError) as reason:
            log.warning("%s: %s is skipped: %s", self._path, name, type(reason).__name__)
            return None
        if key.algorithm_name not in self._algorithms:
            return None
        if weakness:
            raise self._refusal(f"{name} is too short: {weakness}")
        return _Key(key.key_id, key.algorithm_name, key)

    def _refusal(self, reason: str) -> SettingsError:
        return SettingsError(f"HOOKJETTY_JWT_JWKS={str(self._path)!r} is refused: {reason}")


class _Entry(NamedTuple):
    """A verified token: whose it is, with which keys that was found out, until when it holds."""

    principal: Principal
    keys: _Keys
    expires: float


class _Verified:
    """The tokens verified last. An entry ends with its token and with the keys it relied on."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes, keys: _Keys, now: float) -> Principal | None:
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or entry.keys is not keys or entry.expires <= now:
                return None
            self._entries.move_to_end(digest)
            return entry.principal

    def put(self, digest: bytes, entry: _Entry) -> None:
        with self._lock:
            self._entries[digest] = entry
            self._entries.move_to_end(digest)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
