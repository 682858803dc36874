"""Endpoints' secrets: made, used for signing through a rotation, and encrypted at rest."""

from __future__ import annotations

import base64
import time

import pytest
import standardwebhooks
import svix.webhooks
from cryptography.fernet import Fernet

from app.signing import Signer, UnreadableSecret, Vault, generate_secret, is_same_secret
from hookjetty.verify import VerificationError, secret_bytes, verify

BODY = '{"id":"evt_1","type":"export.done","data":{"name":"Zoë"}}'.encode()


def parsed(lines: list[str]) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in lines)


def test_a_generated_secret_is_32_fresh_bytes_behind_whsec():
    secrets = {generate_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("whsec_") for secret in secrets)
    assert {len(secret_bytes(secret)) for secret in secrets} == {32}


def test_an_attempt_gets_the_three_headers_of_standard_webhooks():
    secret, now = generate_secret(), int(time.time())
    lines = Signer([secret]).headers("evt_1", now, BODY)
    assert [line.split(":")[0] for line in lines] == [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
    assert parsed(lines)["webhook-id"] == "evt_1"
    assert parsed(lines)["webhook-timestamp"] == str(now)
    assert standardwebhooks.Webhook(secret).verify(BODY, parsed(lines))["id"] == "evt_1"
    svix.webhooks.Webhook(secret).verify(BODY, parsed(lines))  # raises, or returns nothing


def test_while_a_secret_rotates_both_holders_can_verify_and_a_stranger_cannot():
    new, old, stranger, now = generate_secret(), generate_secret(), generate_secret(), time.time()
    sent = parsed(Signer([new, old]).headers("evt_1", int(now), BODY))
    assert sent["webhook-signature"].count("v1,") == 2
    for holder in (new, old):
        assert standardwebhooks.Webhook(holder).verify(BODY, sent)["id"] == "evt_1"
        svix.webhooks.Webhook(holder).verify(BODY, sent)
        assert verify(BODY, sent, holder)["id"] == "evt_1"
    with pytest.raises(VerificationError):
        verify(BODY, sent, stranger)
    with pytest.raises(svix.webhooks.WebhookVerificationError):
        svix.webhooks.Webhook(stranger).verify(BODY, sent)


def test_two_attempts_of_one_event_differ_in_time_and_signature_but_not_in_id():
    signer = Signer([generate_secret()])
    first, second = (parsed(signer.headers("evt_1", now, BODY)) for now in (1000, 1005))
    assert first["webhook-id"] == second["webhook-id"]
    assert first["webhook-timestamp"] != second["webhook-timestamp"]
    assert first["webhook-signature"] != second["webhook-signature"]


def test_a_secret_chosen_by_the_tenant_signs_as_its_own_bytes():
    plain = "correct horse battery staple"
    sent = parsed(Signer([plain]).headers("evt_1", int(time.time()), BODY))
    foreign = standardwebhooks.Webhook("whsec_" + base64.b64encode(plain.encode()).decode())
    assert foreign.verify(BODY, sent)["id"] == "evt_1"


def test_nothing_is_signed_without_a_secret():
    with pytest.raises(ValueError, match="without a secret"):
        Signer([])


def test_two_spellings_of_one_secret_are_the_same_secret():
    plain = "a secret of 24 bytes ..."
    encoded = "whsec_" + base64.b64encode(plain.encode()).decode()
    assert is_same_secret(plain, encoded)
    assert not is_same_secret(plain, plain + "x")


def key() -> str:
    return Fernet.generate_key().decode()


def test_what_is_stored_does_not_show_the_secret_and_turns_back_into_it():
    vault, secret = Vault([key()]), generate_secret()
    stored = vault.encrypt(secret, tenant_id=7)
    assert stored.isascii()
    assert secret not in stored
    assert stored != vault.encrypt(secret, tenant_id=7)
    assert vault.decrypt(stored, tenant_id=7) == secret


def test_any_text_survives_whatever_it_looks_like():
    vault = Vault([key()])
    for plain in ("", ":", "7:x", '{"secret":"Zoë\\u0000"}', "x" * 10_000):
        assert vault.decrypt(vault.encrypt(plain, tenant_id=7), tenant_id=7) == plain


def test_after_a_change_of_keys_the_newest_writes_and_the_old_one_still_reads():
    old, new = key(), key()
    before, during, after = Vault([old]), Vault([new, old]), Vault([new])
    written_before = before.encrypt("secret", tenant_id=7)
    assert during.decrypt(written_before, tenant_id=7) == "secret"
    written_during = during.encrypt("secret", tenant_id=7)
    assert after.decrypt(written_during, tenant_id=7) == "secret"
    with pytest.raises(UnreadableSecret, match="HOOKJETTY_SECRET_KEYS"):
        after.decrypt(written_before, tenant_id=7)


def test_a_row_that_was_moved_to_another_tenant_does_not_decrypt():
    vault = Vault([key()])
    stored = vault.encrypt("secret", tenant_id=7)
    with pytest.raises(UnreadableSecret, match="tenant 8"):
        vault.decrypt(stored, tenant_id=8)


@pytest.mark.parametrize("stored", ["", "plain text", "whsec_abc", "gAAAAA==", "Zoë"])
def test_a_row_that_was_never_encrypted_is_refused_with_the_remedy(stored):
    with pytest.raises(UnreadableSecret, match="HOOKJETTY_SECRET_KEYS"):
        Vault([key()]).decrypt(stored, tenant_id=7)


def test_a_changed_row_is_refused():
    vault = Vault([key()])
    stored = vault.encrypt("secret", tenant_id=7)
    position = len(stored) // 2
    changed = stored[:position] + ("A" if stored[position] != "A" else "B") + stored[position + 1 :]
    with pytest.raises(UnreadableSecret):
        vault.decrypt(changed, tenant_id=7)


def test_fingerprints_tell_keys_apart_stay_the_same_and_give_nothing_away():
    first, second = key(), key()
    assert Vault([first]).fingerprints == Vault([first]).fingerprints
    assert Vault([first, second]).fingerprints == (
        *Vault([first]).fingerprints,
        *Vault([second]).fingerprints,
    )
    (fingerprint,) = Vault([first]).fingerprints
    assert len(fingerprint) == 16
    assert fingerprint not in base64.urlsafe_b64decode(first).hex()
    assert Vault([first]).fingerprints != Vault([second]).fingerprints
