"""Tokens: only what our keys signed, for us, in time, counts; everything else is a 401.

J1 to J6 of the threats.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flask import Flask
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app import auth, errors, settings
from app.db import db
from app.wsgi import create_app
from tests.conftest import ADMIN_PREFIX, JWT_SECRET, SECRET_KEY, TENANT_PREFIX

# No deadline for one example: the machine may be busy with something else.
unhurried = hypothesis_settings(deadline=None)

SECRET = JWT_SECRET
NOW = 1_763_000_000


def settings_with(**given: str) -> settings.Settings:
    return settings.load(
        {"HOOKJETTY_VAR": "/nonexistent"}
        | {f"HOOKJETTY_{name}": text for name, text in given.items()}
    )


@pytest.fixture(scope="module")
def tokens():
    return auth.Tokens(settings_with(JWT_SECRET=SECRET))


def encoded(part: bytes) -> bytes:
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def signed(header: bytes | dict, payload: bytes | dict, secret: str = SECRET) -> str:
    """A token with a valid HS256 signature, whatever nonsense it says."""
    parts = [
        encoded(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    signature = hmac.digest(secret.encode(), b".".join(parts), hashlib.sha256)
    return b".".join([*parts, encoded(signature)]).decode()


def token_with(**claims: object) -> str:
    """A good token of tenant 7, with claims changed, or left out where ``...`` is given."""
    given = {"sub": "alice", "aud": "hookjetty", "exp": NOW + 60, "tenant_id": 7} | claims
    return signed({"alg": "HS256"}, {k: v for k, v in given.items() if v is not ...})


def refusal(tokens: auth.Tokens, token: str) -> str:
    with pytest.raises(errors.Error) as caught:
        tokens.verify(token, now=NOW)
    assert caught.value.code == "unauthorized"
    assert caught.value.status == 401
    return caught.value.message


def test_a_good_token_says_who_bears_it(tokens):
    assert tokens.verify(token_with(), now=NOW) == auth.Principal(
        subject="alice",
        tenant_id=7,
        role=None,
        scopes=frozenset({"webhooks:read", "webhooks:write"}),
    )


# Who may what. ------------------------------------------------------------------------------------


def test_a_tenant_without_a_scope_claim_may_read_and_write_but_not_publish(tokens):
    principal = tokens.verify(token_with(), now=NOW)
    assert principal.may("webhooks:read")
    assert principal.may("webhooks:write")
    assert not principal.may("events:write")


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ("events:write", {"events:write"}),
        ("webhooks:read  events:write", {"webhooks:read", "events:write"}),
        ("", set()),
        ("WEBHOOKS:READ", {"WEBHOOKS:READ"}),
    ],
)
def test_a_scope_claim_is_all_there_is(tokens, scope, scopes):
    assert tokens.verify(token_with(scope=scope), now=NOW).scopes == scopes


def test_j6_an_admin_is_one_without_a_tenant(tokens):
    admin = tokens.verify(token_with(role="admin", tenant_id=...), now=NOW)
    assert admin.is_admin
    assert admin.tenant_id is None
    assert not admin.may("webhooks:read")


def test_j6_a_tenants_token_is_no_admin_and_no_service_whatever_role_it_claims(tokens):
    for claims in ({"role": "admin"}, {"role": "service"}, {"roles": ["admin"]}, {"admin": True}):
        principal = tokens.verify(token_with(**claims), now=NOW)
        assert principal.tenant_id == 7
        assert not principal.is_admin
        assert not principal.is_service


@pytest.mark.parametrize("role", ["Admin", "ADMIN", "admin ", "\uff41dmin", "administrator", ""])
def test_j6_a_role_that_only_looks_like_admin_is_not(tokens, role):
    assert not tokens.verify(token_with(role=role, tenant_id=...), now=NOW).is_admin


def test_a_service_publishes_only_with_the_scope(tokens):
    service = {"role": "service", "tenant_id": ...}
    principal = tokens.verify(token_with(**service), now=NOW)
    assert principal.is_service
    assert not principal.may("events:write")
    assert tokens.verify(token_with(**service, scope="events:write"), now=NOW).may("events:write")


@pytest.mark.parametrize(
    "tenant_id",
    [True, False, "7", "", None, [7], ["a", "b"], {"$ne": 1}, 7.0, 0, -7, 2**53, 10**30],
    ids=str,
)
def test_j6_a_tenant_is_an_integer_from_1_to_2_to_the_53_less_1(tokens, tenant_id):
    assert "tenant_id" in refusal(tokens, token_with(tenant_id=tenant_id))


@pytest.mark.parametrize("tenant_id", [1, 2**53 - 1])
def test_the_first_and_the_last_tenant_are_accepted(tokens, tenant_id):
    assert tokens.verify(token_with(tenant_id=tenant_id), now=NOW).tenant_id == tenant_id


@pytest.mark.parametrize("claim", ["role", "scope"])
@pytest.mark.parametrize("value", [None, True, 1, ["admin"], {"admin": True}], ids=str)
def test_a_role_and_a_scope_are_strings(tokens, claim, value):
    assert f"{claim} is not a string" in refusal(tokens, token_with(**{claim: value}))


def test_the_claims_may_have_the_names_the_platform_gives_them():
    tokens = auth.Tokens(
        settings_with(
            JWT_SECRET=SECRET,
            JWT_TENANT_CLAIM="https://example.com/org",
            JWT_ROLE_CLAIM="https://example.com/role",
            JWT_SCOPE_CLAIM="permissions",
        )
    )
    named = {"https://example.com/org": 9, "permissions": "events:write", "tenant_id": "ignored"}
    principal = tokens.verify(token_with(**named), now=NOW)
    assert (principal.tenant_id, principal.scopes) == (9, {"events:write"})
    admin = token_with(**{"https://example.com/role": "admin"}, tenant_id=..., role="user")
    assert tokens.verify(admin, now=NOW).is_admin
    assert "https://example.com/org" in refusal(
        tokens, token_with(**{"https://example.com/org": "9"})
    )


# What a token must say. ---------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["exp", "sub", "aud"])
@pytest.mark.parametrize("value", [..., None, [], {}, True, ""], ids=str)
def test_j3_expiry_subject_and_audience_are_required_in_their_form(tokens, claim, value):
    assert claim in refusal(tokens, token_with(**{claim: value}))


@pytest.mark.parametrize("exp", [NOW, NOW - 1, 0, NOW - 0.5])
def test_j3_a_token_ends_at_its_expiry(tokens, exp):
    assert refusal(tokens, token_with(exp=exp)) == "the token has expired"
    assert tokens.verify(token_with(exp=NOW + 0.5), now=NOW)


@pytest.mark.parametrize("literal", [b'"9999999999"', b"1e400", b"1e200000", b"NaN", b"9" * 5000])
def test_j3_an_expiry_that_is_no_time_is_refused(tokens, literal):
    payload = b'{"sub":"alice","aud":"hookjetty","tenant_id":7,"exp":%b}' % literal
    refusal(tokens, signed({"alg": "HS256"}, payload))


@pytest.mark.parametrize("exp", [NOW * 1000, 10**18, 10**30, -1])
def test_j3_an_expiry_in_milliseconds_is_refused_instead_of_lasting_for_ever(tokens, exp):
    assert "seconds since 1970" in refusal(tokens, token_with(exp=exp))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_j3_a_token_from_the_future_is_refused_but_clocks_may_differ_a_little(tokens, claim):
    assert tokens.verify(token_with(**{claim: NOW + 10}), now=NOW)
    assert "not valid yet" in refusal(tokens, token_with(**{claim: NOW + 11}))
    for value in ("1", None, [], True):
        assert claim in refusal(tokens, token_with(**{claim: value}))


@pytest.mark.parametrize("audience", ["other", "Hookjetty", ["other"], [["hookjetty"]], 7])
def test_j3_a_token_for_someone_else_is_refused(tokens, audience):
    assert "aud" in refusal(tokens, token_with(aud=audience))


def test_a_token_may_be_for_several_audiences_if_we_are_one(tokens):
    assert tokens.verify(token_with(aud=["billing", "hookjetty"]), now=NOW)


def test_j3_the_issuer_counts_where_the_settings_name_one():
    tokens = auth.Tokens(settings_with(JWT_SECRET=SECRET, JWT_ISSUER="https://id.example.com"))
    assert tokens.verify(token_with(iss="https://id.example.com"), now=NOW)
    for issuer in (..., None, "https://id.example.org", ["https://id.example.com"]):
        assert "iss" in refusal(tokens, token_with(iss=issuer))


def test_j3_a_claim_that_is_there_twice_is_refused(tokens):
    payload = b'{"sub":"a","aud":"hookjetty","exp":%d,"tenant_id":7,"tenant_id":8}' % (NOW + 60)
    assert "payload" in refusal(tokens, signed({"alg": "HS256"}, payload))


# Who signed it. -----------------------------------------------------------------------------------


def test_another_secrets_signature_is_refused(tokens):
    good = {"sub": "alice", "aud": "hookjetty", "exp": NOW + 60, "tenant_id": 7}
    assert "signature" in refusal(tokens, signed({"alg": "HS256"}, good, "x" * 40))


@unhurried
@given(data=some.data())
def test_a_token_in_which_one_character_changed_is_refused(tokens, data):
    token = token_with()
    at = data.draw(some.integers(0, len(token) - 1))
    changed = (
        token[:at] + data.draw(some.characters(exclude_characters=token[at])) + token[at + 1 :]
    )
    refusal(tokens, changed)


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "nOnE", "NONE", "HS384", "HS512", "hs256", ""]
)
def test_j1_another_algorithm_than_the_settings_name_is_refused(tokens, algorithm):
    payload = {"sub": "alice", "aud": "hookjetty", "exp": NOW + 60, "tenant_id": 7}
    assert "algorithm" in refusal(tokens, signed({"alg": algorithm}, payload))
    unsigned = signed({"alg": algorithm}, payload).rpartition(".")[0] + "."
    assert "algorithm" in refusal(tokens, unsigned)


@pytest.mark.parametrize("algorithm", [None, 1, True, [], ["HS256"], {"alg": "HS256"}], ids=str)
def test_j1_an_algorithm_that_is_no_string_is_refused(tokens, algorithm):
    assert "algorithm" in refusal(tokens, signed({"alg": algorithm}, {}))


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None, "exp", 1], ids=str)
def test_j3_critical_extensions_are_refused(tokens, crit):
    header = {"alg": "HS256", "crit": crit, "exp": 1, "b64": False}
    assert "critical" in refusal(tokens, signed(header, {}))


def test_j3_an_unencoded_payload_is_refused(tokens):
    refusal(tokens, signed({"alg": "HS256", "b64": False}, {}))


@pytest.fixture(scope="module")
def private_keys():
    return {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


def jwk(algorithm: str, key, kid: str | None = None, **more: str) -> dict[str, str]:
    kind = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}[algorithm]
    named = {} if kid is None else {"kid": kid}
    return kind.to_jwk(key.public_key(), as_dict=True) | named | more


@pytest.fixture
def jwks(tmp_path, private_keys):
    """A file with one key of each kind, named after its algorithm."""
    path = tmp_path / "jwks.json"
    keys = [jwk(algorithm, key, algorithm) for algorithm, key in private_keys.items()]
    path.write_text(json.dumps({"keys": keys}))
    return path


def by_private_key(algorithm: str, key, kid: str | None = None, **header: object) -> str:
    payload = {"sub": "alice", "aud": "hookjetty", "exp": NOW + 60, "tenant_id": 7}
    named = {} if kid is None else {"kid": kid}
    return jwt.encode(payload, key, algorithm, headers={**named, **header})


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_each_kind_of_public_key_verifies_with_and_without_its_name(jwks, private_keys, algorithm):
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(jwks)))
    for kid in (algorithm, None):
        token = by_private_key(algorithm, private_keys[algorithm], kid)
        assert tokens.verify(token, now=NOW).tenant_id == 7
    stranger = {
        "RS256": lambda: rsa.generate_private_key(65537, 2048),
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }[algorithm]()
    assert "signature" in refusal(tokens, by_private_key(algorithm, stranger, algorithm))


def test_j2_a_public_key_used_as_a_shared_secret_is_refused(jwks, private_keys):
    """The HS/RS confusion: everybody knows the public key (GHSA-ffqj-6fqr-9h24)."""
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(jwks)))
    public = private_keys["RS256"].public_key()
    payload = {"sub": "alice", "aud": "hookjetty", "exp": NOW + 60, "tenant_id": 7}
    for known in (
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ).decode(),
        json.dumps(jwk("RS256", private_keys["RS256"], "RS256")),
        jwks.read_text(),
    ):
        for algorithm in ("HS256", "RS256"):
            refusal(tokens, signed({"alg": algorithm, "kid": "RS256"}, payload, known))


def test_the_settings_choose_among_the_keys(jwks, private_keys):
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(jwks), JWT_ALGORITHMS="ES256"))
    assert tokens.verify(by_private_key("ES256", private_keys["ES256"], "ES256"), now=NOW)
    assert "algorithm" in refusal(tokens, by_private_key("RS256", private_keys["RS256"], "RS256"))


def test_j2_a_key_verifies_its_own_algorithm_only(jwks, private_keys):
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(jwks)))
    for kid in ("RS256", "EdDSA"):
        refusal(tokens, by_private_key("ES256", private_keys["ES256"], kid))


def test_j2_the_kid_is_a_name_in_the_file_and_nothing_else(jwks, private_keys, tmp_path):
    """No path, no query, no URL that someone fetches, and no key that the token brings along."""
    canary = socket.create_server(("127.0.0.1", 0))
    canary.settimeout(0)
    url = f"http://127.0.0.1:{canary.getsockname()[1]}/jwks.json"
    (tmp_path / "empty").write_text("")
    attacker = ed25519.Ed25519PrivateKey.generate()
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(jwks)))
    headers = [
        {"kid": kid} for kid in ("../../dev/null", "' OR 1=1--", str(tmp_path / "empty"), url)
    ]
    headers += [{"jku": url}, {"x5u": url}, {"jwk": jwk("EdDSA", attacker)}]
    headers += [{"kid": "EdDSA", "jwk": jwk("EdDSA", attacker, "EdDSA")}]
    for header in headers:
        assert "signature" in refusal(tokens, by_private_key("EdDSA", attacker, **header))
    with canary, pytest.raises(BlockingIOError):
        canary.accept()


@pytest.mark.parametrize("kid", [None, 1, True, [], {}], ids=str)
def test_j2_a_kid_that_is_no_string_is_refused(tokens, kid):
    assert "kid" in refusal(tokens, signed({"alg": "HS256", "kid": kid}, {}))


def test_two_keys_of_one_kind_are_told_apart_by_kid_or_tried_in_turn(tmp_path):
    old, new = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk("ES256", old, "old"), jwk("ES256", new, "new")]}))
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(path)))
    for token in (by_private_key("ES256", new, "new"), by_private_key("ES256", new)):
        assert tokens.verify(token, now=NOW)
    refusal(tokens, by_private_key("ES256", new, "old"))


# The key file changes. ----------------------------------------------------------------------------


def replace(path, document: object) -> None:
    """As a deployment does it: a new file takes the old one's place."""
    beside = path.with_suffix(".new")
    beside.write_text(document if isinstance(document, str) else json.dumps(document))
    beside.replace(path)


def test_a_key_added_to_the_file_counts_at_once_and_one_taken_out_no_longer(tmp_path):
    old, new = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
    path = tmp_path / "jwks.json"
    replace(path, {"keys": [jwk("EdDSA", old, "old")]})
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(path)))
    by_old, by_new = by_private_key("EdDSA", old, "old"), by_private_key("EdDSA", new, "new")
    assert tokens.verify(by_old, now=NOW)
    refusal(tokens, by_new)

    replace(path, {"keys": [jwk("EdDSA", old, "old"), jwk("EdDSA", new, "new")]})
    assert tokens.verify(by_old, now=NOW)
    assert tokens.verify(by_new, now=NOW)

    replace(path, {"keys": [jwk("EdDSA", new, "new")]})
    assert tokens.verify(by_new, now=NOW)
    assert "signature" in refusal(tokens, by_old)  # although it was remembered


@pytest.mark.parametrize("broken", ["", '{"keys": [', "[]", '{"keys": []}', None], ids=repr)
def test_a_key_file_that_breaks_leaves_the_keys_as_they_were(tmp_path, caplog, broken):
    key, other = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))
    path = tmp_path / "jwks.json"
    replace(path, {"keys": [jwk("EdDSA", key, "one")]})
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(path)))
    if broken is None:
        path.unlink()
    else:
        replace(path, broken)
    for _ in range(3):
        assert tokens.verify(by_private_key("EdDSA", key, "one"), now=NOW)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text

    replace(path, {"keys": [jwk("EdDSA", other, "two")]})
    assert tokens.verify(by_private_key("EdDSA", other, "two"), now=NOW)


def test_a_key_file_without_a_usable_key_stops_the_start(tmp_path, private_keys):
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - RFC 7518 3.3: 2,048 or more
    path = tmp_path / "jwks.json"
    for document, reason in (
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", '{"keys": [...]}'),
        ({"keys": {}}, '{"keys": [...]}'),
        ({"keys": []}, "no key for RS256, ES256, EdDSA"),
        ({"keys": ["x"]}, "key 0 is not an object"),
        ({"keys": [{"kty": "EC", "crv": "P-256"}]}, "no key for"),
        ({"keys": [jwk("ES256", private_keys["ES256"], use="enc")]}, "no key for"),
        ({"keys": [jwk("RS256", weak)]}, "too short"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}, "key 0 is a secret or private key"),
        (
            {"keys": [OKPAlgorithm.to_jwk(private_keys["EdDSA"], as_dict=True)]},
            "key 0 is a secret or private key",
        ),
    ):
        replace(path, document)
        with pytest.raises(settings.SettingsError) as caught:
            auth.Tokens(settings_with(JWT_JWKS=str(path)))
        assert reason in str(caught.value)
        assert f"HOOKJETTY_JWT_JWKS={str(path)!r}" in str(caught.value)


def test_keys_for_other_purposes_are_passed_over(tmp_path, private_keys):
    path = tmp_path / "jwks.json"
    key = private_keys["ES256"]
    others = [
        {"kty": "EC", "crv": "P-999"},
        {"kty": ["EC"]},
        {"kty": "RSA", "n": 1, "e": None},
        jwk("RS256", private_keys["RS256"], use="enc"),
        jwk("ES256", key, alg="PS256"),
        jwk("EdDSA", private_keys["EdDSA"], kid=["EdDSA"]),
    ]
    path.write_text(json.dumps({"keys": [*others, jwk("ES256", key, "mine", use="sig")]}))
    tokens = auth.Tokens(settings_with(JWT_JWKS=str(path)))
    assert tokens.verify(by_private_key("ES256", key, "mine"), now=NOW)


# Tokens made to break the reader. -----------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "Bearer",
        "Bearer e30.e30.e30",
        "e30.e30.e30",
        "\x00",
        "e30.\x00.e30",
        "é.é.é",
        "\udcff.\udcff.\udcff",
        "eyJhbGciOiJIUzI1NiJ9.\udcff.e30",  # {"alg":"HS256"}
        "eyJhbGciOiJIUzI1NiJ9.e30.\udcff",
        "====.====.====",
        "e30=.e30=.e30=",
        " e30.e30.e30 ",
        "🎫" * 1000,
        "a" * 8192,
        "." * 8192,
        "a" * 8190 + "..",
        "a" * 100_000_000,
    ],
    ids=lambda token: f"{token[:12]!a} {len(token)}",
)
def test_j4_a_text_that_is_no_token_is_refused_at_once(tokens, token):
    started = time.thread_time()
    refusal(tokens, token)
    assert time.thread_time() - started < 0.1  # a few microseconds; machines differ


@pytest.mark.parametrize(
    "part",
    [
        b"[" * 5000,
        b'{"a":' * 1000,
        b"[]",
        b"null",
        b'"HS256"',
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"alg":"HS256","alg":"HS256"}',
        b'{"alg":"HS256","x":"\\u0000"}',
        b'{"alg":"HS256","x":"\\ud800"}',
        b'{"alg":"HS256","x":NaN}',
        b'{"alg":"HS256","x":1e400}',
        b'{"alg":"HS256","x":' + b"9" * 5000 + b"}",
        b'{"alg":"HS256","x":' + b"[" * 2000 + b"]" * 2000 + b"}",
    ],
    ids=lambda part: f"{part[:24]!r}",
)
def test_j4_a_header_or_payload_that_no_reader_agrees_on_is_refused(tokens, part):
    refusal(tokens, signed(part, b"{}"))
    refusal(tokens, signed({"alg": "HS256"}, part))


def test_j4_a_token_longer_than_8_kib_is_not_even_read(tokens):
    good = token_with(sub="a" * 5900)
    assert 7900 < len(good) <= 8192
    assert tokens.verify(good, now=NOW)
    assert "longer than 8,192 bytes" in refusal(tokens, token_with(sub="a" * 6300))


claims = some.dictionaries(
    some.sampled_from(
        ["sub", "aud", "exp", "nbf", "iat", "iss", "tenant_id", "role", "scope", "x"]
    ),
    some.recursive(
        some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
        lambda inner: (
            some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3)
        ),
        max_leaves=4,
    ),
)


@unhurried
@given(
    header=some.binary(max_size=60) | claims.map(lambda found: found | {"alg": "HS256"}),
    payload=some.binary(max_size=60) | claims,
)
def test_j4_whatever_a_signed_token_says_it_is_accepted_or_unauthorized(tokens, header, payload):
    try:
        principal = tokens.verify(signed(header, payload), now=NOW)
    except errors.Error as refused:
        principal = None
        code = refused.code
    assert principal or code == "unauthorized"


def test_a_reason_never_repeats_the_token(tokens):
    for claim in ("role", "scope", "tenant_id", "exp", "sub", "aud", "iat"):
        assert "MARKER" not in refusal(tokens, token_with(**{claim: ["MARKER"]}))
    assert "MARKER" not in refusal(tokens, signed({"alg": "MARKER"}, {}))


# Remembering. -------------------------------------------------------------------------------------


def test_a_remembered_token_ends_with_its_expiry():
    tokens = auth.Tokens(settings_with(JWT_SECRET=SECRET))
    token = token_with(exp=NOW + 60)
    assert tokens.verify(token, now=NOW) is tokens.verify(token, now=NOW + 59)
    with pytest.raises(errors.Error, match="expired"):
        tokens.verify(token, now=NOW + 60)


def test_only_the_tokens_used_last_are_remembered():
    tokens = auth.Tokens(settings_with(JWT_SECRET=SECRET), cached=2)
    first, second, third = (token_with(sub=name) for name in ("first", "second", "third"))
    remembered = tokens.verify(first, now=NOW)
    forgotten = tokens.verify(second, now=NOW)
    assert tokens.verify(first, now=NOW) is remembered
    tokens.verify(third, now=NOW)
    assert tokens.verify(first, now=NOW) is remembered
    again = tokens.verify(second, now=NOW)
    assert again == forgotten
    assert again is not forgotten


def test_a_refused_token_is_refused_again(tokens):
    token = token_with(tenant_id="7")
    assert refusal(tokens, token) == refusal(tokens, token)


def test_threads_share_what_is_remembered_without_mixing_it_up():
    tokens = auth.Tokens(settings_with(JWT_SECRET=SECRET), cached=4)
    mine = {tenant_id: token_with(tenant_id=tenant_id) for tenant_id in range(1, 9)}
    wrong = []

    def verify(tenant_id: int) -> None:
        for _ in range(100):
            found = tokens.verify(mine[tenant_id], now=NOW).tenant_id
            if found != tenant_id:
                wrong.append((tenant_id, found))

    threads = [threading.Thread(target=verify, args=(tenant_id,)) for tenant_id in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Making tokens. -----------------------------------------------------------------------------------


def test_a_minted_token_verifies_here_and_in_pyjwt(tokens):
    token = tokens.mint(
        subject="ci", ttl_seconds=60, tenant_id=7, scopes=["webhooks:read", "events:write"]
    )
    assert tokens.verify(token) == auth.Principal(
        "ci", 7, None, frozenset({"webhooks:read", "events:write"})
    )
    said = jwt.decode(token, SECRET, ["HS256"], audience="hookjetty")
    assert said["exp"] - said["iat"] == 60
    assert tokens.verify(tokens.mint(subject="ops", ttl_seconds=60, role="admin")).is_admin


def test_a_minted_token_follows_the_settings():
    tokens = auth.Tokens(
        settings_with(
            JWT_SECRET=SECRET, JWT_ISSUER="me", JWT_AUDIENCE="hooks", JWT_TENANT_CLAIM="org"
        )
    )
    token = tokens.mint(subject="ci", ttl_seconds=60, tenant_id=7)
    said = jwt.decode(token, SECRET, ["HS256"], audience="hooks", issuer="me")
    assert said["org"] == 7
    assert tokens.verify(token).tenant_id == 7


def test_a_minted_token_ends(tokens):
    token = tokens.mint(subject="ci", ttl_seconds=60, tenant_id=7)
    with pytest.raises(errors.Error, match="expired"):
        tokens.verify(token, now=time.time() + 61)


def test_without_the_private_key_no_token_is_made(jwks):
    with pytest.raises(settings.SettingsError, match="HOOKJETTY_JWT_JWKS"):
        auth.Tokens(settings_with(JWT_JWKS=str(jwks))).mint(subject="ci", ttl_seconds=60)


def test_without_any_key_there_is_nothing_to_verify_with():
    with pytest.raises(settings.SettingsError, match="HOOKJETTY_JWT_SECRET or HOOKJETTY_JWT_JWKS"):
        auth.Tokens(settings_with())


def test_j2_a_public_key_given_as_the_shared_secret_stops_the_start(private_keys):
    public = private_keys["RS256"].public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for text in (pem.decode(), json.dumps(jwk("RS256", private_keys["RS256"]))):
        with pytest.raises(settings.SettingsError, match="HOOKJETTY_JWT_SECRET is refused"):
            auth.Tokens(settings_with(JWT_SECRET=text))


# The header of the request. -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["Bearer e30.e30.e30", "bearer  e30.e30.e30 ", "BEARER e30.e30.e30"]
)
def test_the_token_is_what_follows_bearer(header):
    assert auth.bearer_token(header) == "e30.e30.e30"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "Bearer",
        "Bearer ",
        "e30.e30.e30",
        "Basic dTpw",
        "Bearer Bearer e30",
        "Bearer a b",
    ],
)
def test_j4_anything_else_is_unauthorized_and_says_what_to_send(header):
    with pytest.raises(errors.Error, match="Authorization: Bearer <token>") as caught:
        auth.bearer_token(header)
    assert caught.value.code == "unauthorized"


# Through the API. ---------------------------------------------------------------------------------


def crafted_tokens(secret: str, public_key: rsa.RSAPublicKey, url: str) -> Iterator[bytes]:
    """What attackers send in place of a token; ``secret`` is the true one, ``url`` a canary's."""
    now = int(time.time())
    good = {"sub": "a", "aud": "hookjetty", "exp": now + 60, "tenant_id": 7, "role": "admin"}
    hs256 = {"alg": "HS256", "typ": "JWT"}
    pem = public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    attacker = rsa.generate_private_key(65537, 2048)
    embedded = RSAAlgorithm.to_jwk(attacker.public_key(), as_dict=True)

    def true(header: bytes | dict, payload: bytes | dict) -> bytes:
        return signed(header, payload, secret).encode()

    # J1: none, in every spelling, with a signature, with an empty one, and without the last dot.
    for algorithm in ("none", "None", "NONE", "nOnE", "none ", "", None, 0, ["HS256"], "HS512"):
        token = true({"alg": algorithm}, good)
        yield from (token, token.rpartition(b".")[0] + b".", token.rpartition(b".")[0])
    yield true({}, good)

    # J2: public keys as shared secrets, keys and their addresses in the token, names of keys.
    for key in (pem.decode(), pem.decode().strip(), json.dumps(embedded), "", "secret"):
        yield signed(hs256, good, key).encode()
    for header in (
        {"jwk": embedded}, {"jku": url}, {"x5u": url}, {"x5c": ["MII="]}, {"kid": url},
        {"kid": "../../dev/null"}, {"kid": "' OR 1=1--"}, {"kid": "a\x00b"},
        {"jwk": embedded, "jku": url},
    ):  # fmt: skip
        yield jwt.encode(good, attacker, "RS256", headers=header).encode()
        yield signed(hs256 | header, good, "").encode()
        yield signed(hs256 | header, good, pem.decode()).encode()

    # J3: well signed, and yet not to be believed.
    for claim in ("sub", "aud", "exp"):
        yield true(hs256, {name: value for name, value in good.items() if name != claim})
        for value in (None, "", [], {}, True, "9999999999", -1, 1e300):
            yield true(hs256, good | {claim: value})
    for claim in ("iat", "nbf"):
        yield true(hs256, good | {claim: now + 3600})
    for claims in (
        {"exp": now - 1}, {"exp": now * 1000}, {"aud": "another"}, {"aud": ["another"]},
        {"tenant_id": "7"}, {"tenant_id": [7]}, {"tenant_id": {"$ne": 1}}, {"tenant_id": None},
        {"tenant_id": 7.5}, {"tenant_id": True}, {"tenant_id": 0}, {"role": ["admin"]},
        {"scope": 1},
    ):  # fmt: skip
        yield true(hs256, good | claims)
    for crit in (["exp"], ["b64"], [], "exp", None):
        yield true(hs256 | {"crit": crit, "exp": 1, "b64": False}, good)

    # J4: made to break the reader.
    token = true(hs256, good)
    nested = b"[" * 5000
    yield from (true(nested, good), true(hs256, nested), encoded(nested) + b".e30.x")
    yield from (b"a" * 8100, b"." * 8100, b"a." * 4000, token + b"." + token, token + b".x")
    yield from (token[:-8], token[8:], token.replace(b".", b".."), token + b" " + token)
    yield from (
        b"Bearer " + token,
        token + b", Bearer " + token,
        b"",
        b" ",
        b"\xff\xfe",
        b"\xc3\xa9",
    )
    yield from (token[:20] + b"\xe9" + token[20:], true(b"\xff", good), true(hs256, b"\x00"))
    for payload in (
        b"null",
        b"[]",
        b"7",
        b'{"exp":1e400}',
        b'{"exp":NaN}',
        b'{"exp":' + b"9" * 5000,
    ):
        yield true(hs256, payload)


@pytest.fixture
def by_key_file(database: str, jwks) -> Flask:
    """An application that knows no shared secret."""
    return create_app(
        settings_with(DATABASE_URL=database, JWT_JWKS=str(jwks), SECRET_KEYS=SECRET_KEY)
    )


@pytest.mark.parametrize(
    "verified_with", [pytest.param("app", id="secret"), pytest.param("by_key_file", id="keys")]
)
def test_j4_whatever_is_sent_as_a_token_is_a_401_and_nobody_is_asked_for_a_key(
    verified_with, request, private_keys
):
    """J1 to J4 once more, over every way in: both surfaces and the short way to publish."""
    client = request.getfixturevalue(verified_with).test_client()
    secret = JWT_SECRET if verified_with == "app" else ""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0)
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/jwks.json"
        tokens = list(crafted_tokens(secret, private_keys["RS256"].public_key(), url))
        assert len(tokens) > 120
        for token in tokens:
            for method, path in (
                ("GET", f"{TENANT_PREFIX}/endpoints"),
                ("POST", f"{TENANT_PREFIX}/events"),
                ("GET", f"{ADMIN_PREFIX}?tenant_id=7"),
            ):
                answer = client.open(
                    path,
                    method=method,
                    headers={"Authorization": b"Bearer " + token},
                    json={"type": "a", "data": {}} if method == "POST" else None,
                )
                assert answer.status_code == 401, (token, answer.text)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_j5_a_shared_secret_that_is_short_or_can_be_guessed_stops_the_start():
    good = "é" * 8 + "abcdefgh" * 2
    assert settings_with(JWT_SECRET=good).jwt_secret == good
    for secret, reason in (
        ("x" * 31, "at least 32 bytes"),
        ("abcdefgh" * 3 + "abcdefg", "at least 32 bytes"),
        ("x" * 64, "can be guessed"),
        ("\x00" * 32, "can be guessed"),
        ("changeme" * 8, "can be guessed"),
        ("password" * 8, "can be guessed"),
        ("a-string-secret-at-least-256-bits-long", "can be guessed"),
    ):
        with pytest.raises(settings.SettingsError, match=reason) as refused:
            settings_with(JWT_SECRET=secret)
        assert secret not in str(refused.value)


def test_j6_neither_surface_takes_the_others_tokens(client, mint):
    """The tenant is what the token says: no header, parameter, path or body says otherwise."""
    tenant = {"Authorization": f"Bearer {mint(tenant_id=7)}"}
    publisher = {"Authorization": f"Bearer {mint(tenant_id=7, scopes=['events:write'])}"}
    admin = {"Authorization": f"Bearer {mint(role='admin')}"}
    service = {"Authorization": f"Bearer {mint(role='service', scopes=['events:write'])}"}
    both = {"Authorization": f"Bearer {mint(tenant_id=7, role='admin')}"}
    event = {"type": "a", "data": {}}
    for headers in (tenant, publisher, service, both):
        assert client.get(f"{ADMIN_PREFIX}?tenant_id=7", headers=headers).status_code == 403
    for headers in (admin, service):
        assert client.get(f"{TENANT_PREFIX}/endpoints", headers=headers).status_code == 403
    assert client.post(f"{TENANT_PREFIX}/events", headers=admin, json=event).status_code == 403
    for asked in (
        {"json": event | {"tenant_id": 8}, "headers": publisher},
        {"json": {"events": [event], "tenant_id": 8}, "headers": publisher},
    ):
        path = "events/batch" if "events" in asked["json"] else "events"
        assert client.post(f"{TENANT_PREFIX}/{path}", **asked).status_code == 403
    for path in ("/endpoints?tenant_id=8", "/tasks?tenant_id=8"):
        assert client.get(TENANT_PREFIX + path, headers=tenant).status_code == 400
    asked = client.post(
        f"{TENANT_PREFIX}/endpoints",
        json={"url": "https://example.com/", "tenant_id": 8},
        headers=tenant | {"X-Tenant-Id": "8", "Tenant": "8"},
    )
    assert asked.status_code == 400
    asked = client.post(
        f"{TENANT_PREFIX}/endpoints",
        json={"url": "https://example.com/"},
        headers=tenant | {"X-Tenant-Id": "8", "Tenant": "8"},
    )
    assert asked.status_code == 201
    stored = db.execute_sql("SELECT DISTINCT tenant_id FROM hookjetty.endpoints").fetchall()
    assert stored == [(7,)]
