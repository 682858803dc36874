"""Endpoints' secrets: made, used to sign attempts, and kept encrypted.

What a signature is stands in ``hookjetty.verify``, which receivers use too. Here is what only
the sending side needs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from hookjetty.verify import SECRET_PREFIX, secret_bytes, sign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def generate_secret() -> str:
    """A new secret: ``whsec_`` and the base64 of 32 random bytes."""
    return SECRET_PREFIX + base64.b64encode(os.urandom(32)).decode()


def is_same_secret(one: str, other: str) -> bool:
    """Whether both stand for the same key, so that setting one over the other changes nothing.

    >>> is_same_secret("whsec_" + base64.b64encode(b"k" * 24).decode(), "k" * 24)
    True
    """
    return hmac.compare_digest(secret_bytes(one), secret_bytes(other))


class Signer:
    """Signs an endpoint's attempts.

    ``secrets`` are its secret and, while it rotates, the previous ones that are still valid;
    newest first. Keep it as long as they last: decoding costs more than signing.

    >>> signer = Signer(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    >>> signer.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    ... # doctest: +NORMALIZE_WHITESPACE
    ['webhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek',
     'webhook-timestamp: 1614265330',
     'webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=']
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._keys = [secret_bytes(secret) for secret in secrets]
        if not self._keys:
            raise ValueError("an endpoint without a secret cannot be signed for")

    def headers(self, message_id: str, timestamp: int, body: bytes) -> list[str]:
        """The three header lines of one attempt (Standard Webhooks 1.0), ready for libcurl.

        ``timestamp`` is the attempt's time in Unix seconds; ``body`` the exact bytes sent.
        """
        # hmac.digest on the whole message takes 2.5 us for 300 bytes; copies of a prepared HMAC
        # take 1.8 us, which is not worth a second implementation of the signature.
        signatures = " ".join([sign(key, message_id, timestamp, body) for key in self._keys])
        return signature_headers(message_id, timestamp, signatures)


def signature_headers(message_id: str, timestamp: int, signatures: str) -> list[str]:
    """The three header lines that tell what was signed, when, and the signatures themselves."""
    return [
        f"webhook-id: {message_id}",
        f"webhook-timestamp: {timestamp}",
        f"webhook-signature: {signatures}",
    ]


class UnreadableSecret(Exception):
    """What is stored cannot be decrypted.

    A key is missing from HOOKJETTY_SECRET_KEYS, or the row was changed or moved behind our back.
    """


class Vault:
    """Encrypts secrets with the newest of the keys and reads what any of them encrypted.

    What is encrypted names its tenant, since Fernet has no associated data: a row that someone
    with access to the database copied to another tenant does not decrypt there.

    >>> vault = Vault([Fernet.generate_key().decode()])
    >>> vault.decrypt(vault.encrypt("whsec_...", tenant_id=7), tenant_id=7)
    'whsec_...'
    """

    def __init__(
        self,
        secret_keys: Iterable[str],
        *,
        before_encrypting: Callable[[str], object] = lambda _fingerprint: None,
    ) -> None:
        """``secret_keys`` are HOOKJETTY_SECRET_KEYS, the newest first; at least one.

        ``before_encrypting`` is told each time the fingerprint of the key that will be used.
        """
        keys = list(secret_keys)
        self._newest = Fernet(keys[0])
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._before_encrypting = before_encrypting
        # Stored in the database, so that a process with other keys is stopped when it starts.
        # 64 bits of a MAC tell keys apart and nothing about them.
        self.fingerprints = tuple(_fingerprint(key) for key in keys)

    def encrypt(self, plain: str, tenant_id: int) -> str:
        """ASCII text that only ``decrypt`` for the same tenant turns back into ``plain``."""
        self._before_encrypting(self.fingerprints[0])
        return self._newest.encrypt(f"{tenant_id}:{plain}".encode()).decode()

    def decrypt(self, stored: str, tenant_id: int) -> str:
        """What was encrypted for this tenant; ``UnreadableSecret`` if that is not possible."""
        try:
            owner, _, plain = self._fernet.decrypt(stored.encode()).decode().partition(":")
        except InvalidToken:
            raise UnreadableSecret(
                "a stored secret was encrypted with a key that is not in HOOKJETTY_SECRET_KEYS:"
                " put the key it was written with back at the end of the list"
            ) from None
        if owner != str(tenant_id):
            raise UnreadableSecret(
                f"a secret stored for tenant {tenant_id} was encrypted for another tenant: the"
                " row was moved or changed outside Hookjetty"
            )
        return plain

    def renew(self, stored: str, tenant_id: int) -> str:
        """What is stored, encrypted with the newest key: the same text if it was already.

        ``UnreadableSecret`` as for ``decrypt``.
        """
        plain = self.decrypt(stored, tenant_id)
        try:
            self._newest.decrypt(stored.encode())
        except InvalidToken:
            return self.encrypt(plain, tenant_id)
        return stored


def _fingerprint(key: str) -> str:
    raw = base64.urlsafe_b64decode(key)
    return hmac.digest(raw, b"hookjetty: fingerprint of a secret key", hashlib.sha256).hex()[:16]
