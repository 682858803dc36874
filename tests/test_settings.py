"""Settings: read once, refused with every reason at a time, documented as they are."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from pathlib import Path

import pytest

from app import settings

DOCUMENT = Path(__file__).parent.parent / "docs" / "settings.md"
KEY = "A" * 43 + "="
OTHER_KEY = "B" * 42 + "A="
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def load(tmp_path):
    """Loads settings given without their prefix, in a VAR that no instance has used."""

    def load(**given: str) -> settings.Settings:
        environ = {"HOOKJETTY_VAR": str(tmp_path)} | {
            f"HOOKJETTY_{name}": text for name, text in given.items()
        }
        return settings.load(environ)

    return load


@pytest.fixture
def refusal(load):
    """The message with which settings are refused."""

    def refusal(**given: str) -> str:
        with pytest.raises(settings.SettingsError) as caught:
            load(**given)
        return str(caught.value)

    return refusal


def test_without_any_variable_the_documented_defaults_hold(load, tmp_path):
    loaded = load()
    assert loaded.var == tmp_path
    assert loaded.database_url is None
    assert (loaded.bind, loaded.bind_host, loaded.bind_port) == (
        "127.0.0.1:8080",
        "127.0.0.1",
        8080,
    )
    assert loaded.url == "http://127.0.0.1:8080"
    assert (loaded.api_workers, loaded.api_threads) == (2, 8)
    assert (loaded.lease_seconds, loaded.timeout_seconds) == (60, 15)
    assert loaded.connect_timeout_seconds == 5
    assert (loaded.in_flight, loaded.slots) == (512, 20)
    assert loaded.deny_ports == {22, 25, 5432, 6379, 11211}
    assert loaded.allow_networks == ()
    assert loaded.allow_http is False
    assert (loaded.jwt_audience, loaded.jwt_issuer) == ("hookjetty", None)
    assert loaded.retention_days == 30
    assert loaded.retry_schedule == (
        *(0, 5),
        *(5 * 60, 30 * 60),
        *(2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600),
    )
    assert (loaded.retry_jitter, loaded.rate_limit, loaded.endpoints_per_tenant) == (0.2, 10, 100)


@pytest.mark.parametrize(("processors", "dispatchers"), [(1, 1), (3, 3), (8, 8), (64, 8)])
def test_there_is_a_dispatcher_for_each_processor_that_may_be_used(
    load, monkeypatch, processors, dispatchers
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(processors)))
    assert load().dispatchers == dispatchers
    assert load(DISPATCHERS="12").dispatchers == 12


def test_the_environment_of_the_process_is_what_is_read(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("HOOKJETTY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOOKJETTY_VAR", str(tmp_path))
    monkeypatch.setenv("HOOKJETTY_RETENTION_DAYS", "7")
    assert settings.load().retention_days == 7


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("DATABASE_URL", "postgres://u:p@h/d", "postgresql://u:p@h/d"),
        (
            "DATABASE_URL",
            "postgresql://u@a:5432,b:5433/d?target_session_attrs=read-write",
            "postgresql://u@a:5432,b:5433/d?target_session_attrs=read-write",
        ),
        (
            "DATABASE_URL",
            "postgresql:///d?host=/run/postgresql",
            "postgresql:///d?host=/run/postgresql",
        ),
        ("BIND", "[::1]:443", "[::1]:443"),
        ("URL", "https://hooks.example.com/", "https://hooks.example.com"),
        ("TIMEOUT_SECONDS", "0.5", 0.5),
        ("DENY_PORTS", "22, 3306", frozenset({22, 3306})),
        (
            "ALLOW_NETWORKS",
            "10.0.0.0/8,fd00::/8",
            (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
        ),
        ("ALLOW_HTTP", "True", True),
        ("ALLOW_HTTP", "0", False),
        (
            "NAMESERVERS",
            "127.0.0.1:5353,::1,[2001:db8::1]:53",
            ("127.0.0.1:5353", "::1", "[2001:db8::1]:53"),
        ),
        ("RETRY_SCHEDULE", "0, 1.5s, 2m, 1h, 1d", (0, 1.5, 120, 3600, 86400)),
        ("SECRET_KEYS", f"{KEY},{OTHER_KEY}", (KEY, OTHER_KEY)),
        ("SECRET_KEYS", f"{KEY}\n{OTHER_KEY}\n", (KEY, OTHER_KEY)),
    ],
)
def test_a_value_is_read_as_documented(load, name, text, value):
    assert getattr(load(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("LEASE_SECONDS", "soon", "a number from 1 to 3600"),
        ("LEASE_SECONDS", "nan", "a number from 1 to 3600"),
        ("LEASE_SECONDS", "1e3", "a number from 1 to 3600"),
        ("API_WORKERS", "0", "a whole number from 1 to 64"),
        ("API_WORKERS", "2.5", "a whole number from 1 to 64"),
        ("API_WORKERS", "-1", "a whole number from 1 to 64"),
        ("API_WORKERS", "\u0662", "a whole number from 1 to 64"),
        ("RETENTION_DAYS", "9" * 5000, "a whole number from 1 to 3650"),
        ("BIND", "8080", "host:port"),
        ("BIND", "127.0.0.1:0", "host:port"),
        ("BIND", "::1:8080", "host:port"),
        ("BIND", "[::1::]:8080", "host:port"),
        ("URL", "ftp://example.com", "http://host:port"),
        ("URL", "http://user@example.com", "http://host:port"),
        ("ALLOW_HTTP", "maybe", "true or false"),
        ("ALLOW_NETWORKS", "10.0.0.1/8", "host bits set"),
        ("ALLOW_NETWORKS", "everything", "networks such as 10.0.0.0/8"),
        ("DENY_PORTS", "22,http", "a whole number from 1 to 65535"),
        ("NAMESERVERS", "dns.example.com", "'dns.example.com' is not an address"),
        ("NAMESERVERS", "127.0.0.1:99999", "is not an address"),
        ("RETRY_SCHEDULE", "0,5s,soon", "'soon' is not a delay"),
        ("RETRY_SCHEDULE", "0,31d", "'31d' is not a delay of at most 30d"),
        ("RETRY_SCHEDULE", ",", "from 1 to 100 delays"),
        ("RETRY_JITTER", "0.6", "a number from 0 to 0.5"),
        ("LOG_LEVEL", "verbose", "one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "one of json, console"),
        ("JWT_ALGORITHMS", "none", "one of HS256, RS256, ES256, EdDSA"),
        ("CA_BUNDLE", "/does/not/exist", "a readable file"),
        ("JWT_JWKS", "/does/not/exist", "a readable file"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_itself_and_what_is_allowed(
    refusal, name, text, allowed
):
    message = refusal(**{name: text})
    assert f"HOOKJETTY_{name}={text!r} is refused: " in message
    assert allowed in message


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("DATABASE_URL", "mysql://u:MARKER@h/d", "postgresql://user:password@host"),
        ("DATABASE_URL", "postgresql://u:MARKER%@h/d", "libpq says: invalid percent-encoded token"),
        (
            "DATABASE_URL",
            "postgresql://u:MARKER@h/d?nonsense=MARKER",
            "invalid URI query parameter",
        ),
        ("JWT_SECRET", "MARKER", "at least 32 bytes"),
        ("SECRET_KEYS", "MARKER", "key 1 is not 32 bytes in URL-safe base64"),
        ("SECRET_KEYS", f"{KEY},MARKER!{KEY}", "key 2 is not 32 bytes in URL-safe base64"),
        ("SECRET_KEYS", "MARKER" + "/" * 37 + "=", "key 1 is not 32 bytes in URL-safe base64"),
    ],
)
def test_a_bad_secret_is_refused_without_repeating_it(refusal, name, text, allowed):
    message = refusal(**{name: text})
    assert f"HOOKJETTY_{name} is refused: " in message
    assert allowed in message
    assert "MARKER" not in message


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("LEASE_SECOND", "did you mean HOOKJETTY_LEASE_SECONDS?"),
        ("ALLOWED_NETWORKS", "did you mean HOOKJETTY_ALLOW_NETWORKS?"),
        ("JWT_SECRET_FILES", "did you mean HOOKJETTY_JWT_SECRET?"),
        ("XYZZY", "see docs/settings.md"),
        ("XYZZY_FILE", "see docs/settings.md"),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(refusal, name, suggestion):
    assert refusal(**{name: "1"}) == f"HOOKJETTY_{name} is not a setting: {suggestion}"


def test_an_unknown_name_is_refused_even_if_it_is_empty(refusal):
    assert "HOOKJETTY_LEASE is not a setting" in refusal(LEASE="")


def test_all_problems_are_in_one_message(refusal):
    message = refusal(LEASE="1", API_WORKERS="0", JWT_SECRET="short", BIND="here")
    assert len(message.splitlines()) == 4


def test_an_empty_value_counts_as_not_set(load):
    loaded = load(DATABASE_URL="", RETENTION_DAYS="", DENY_PORTS="", URL_FILE="")
    assert dataclasses.replace(loaded, var=Path()) == dataclasses.replace(load(), var=Path())


def test_any_setting_may_be_in_a_file(load, tmp_path):
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "days").write_text("7\r\n")
    loaded = load(
        JWT_SECRET_FILE=str(tmp_path / "secret"), RETENTION_DAYS_FILE=str(tmp_path / "days")
    )
    assert loaded.jwt_secret == SECRET
    assert loaded.retention_days == 7


def test_a_setting_and_its_file_exclude_each_other(refusal, tmp_path):
    (tmp_path / "days").write_text("7")
    message = refusal(RETENTION_DAYS="7", RETENTION_DAYS_FILE=str(tmp_path / "days"))
    assert message == (
        "HOOKJETTY_RETENTION_DAYS and HOOKJETTY_RETENTION_DAYS_FILE are both set: keep one"
    )


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_named(refusal, tmp_path, content):
    path = tmp_path / "days"
    if content:
        path.write_bytes(content)
    assert f"HOOKJETTY_RETENTION_DAYS_FILE={str(path)!r} cannot be read" in refusal(
        RETENTION_DAYS_FILE=str(path)
    )


@pytest.fixture
def instance(tmp_path):
    """The files that a running embedded instance leaves in VAR."""
    (tmp_path / "database_url").write_text("postgresql:///embedded?host=/tmp/x")
    (tmp_path / "jwt_secret").write_text(SECRET)
    (tmp_path / "secret_keys").write_text(KEY)


@pytest.mark.usefixtures("instance")
def test_an_embedded_instance_is_found_through_its_files(load):
    loaded = load()
    assert loaded.database_url == "postgresql:///embedded?host=/tmp/x"
    assert loaded.database_direct_url == loaded.database_url
    assert loaded.jwt_secret == SECRET
    assert loaded.secret_keys == (KEY,)
    loaded.require("database_url", "jwt_secret or jwt_jwks", "secret_keys")


@pytest.mark.usefixtures("instance")
def test_with_a_database_of_ones_own_no_key_is_taken_from_an_embedded_instance(load, tmp_path):
    url = "postgresql://db.example.com/hooks"
    (tmp_path / "url").write_text(url)
    for given in ({"DATABASE_URL": url}, {"DATABASE_URL_FILE": str(tmp_path / "url")}):
        loaded = load(**given)
        assert (loaded.database_url, loaded.jwt_secret, loaded.secret_keys) == (url, None, ())


@pytest.mark.usefixtures("instance")
def test_what_is_given_wins_over_an_embedded_instance(load, tmp_path):
    jwks = tmp_path / "jwks.json"
    jwks.write_text("{}")
    loaded = load(JWT_JWKS=str(jwks), SECRET_KEYS=OTHER_KEY)
    assert loaded.database_url == "postgresql:///embedded?host=/tmp/x"
    assert (loaded.jwt_secret, loaded.jwt_jwks) == (None, jwks)
    assert loaded.secret_keys == (OTHER_KEY,)


def test_an_instance_that_cannot_be_read_is_named(refusal, tmp_path):
    (tmp_path / "database_url").mkdir()
    assert f"the instance in HOOKJETTY_VAR={str(tmp_path)!r} cannot be used" in refusal()


@pytest.mark.parametrize(
    ("lease", "margin", "longest_timeout"),
    [
        ("60", 5, "50"),  # 60 - 2 * 5
        ("20", 5, "10"),  # 20 - 2 * 5
        ("4", 1, "2"),  # a quarter of the lease: 4 - 2 * 1
        ("1", 0.25, "0.5"),  # 1 - 2 * 0.25
    ],
)
def test_a_lease_leaves_room_before_and_after_the_timeout(
    load, refusal, lease, margin, longest_timeout
):
    loaded = load(LEASE_SECONDS=lease, TIMEOUT_SECONDS=longest_timeout)
    assert loaded.start_margin_seconds == margin
    too_long = f"{float(longest_timeout) + 0.1:g}"
    message = refusal(LEASE_SECONDS=lease, TIMEOUT_SECONDS=too_long)
    assert f"HOOKJETTY_LEASE_SECONDS={lease} is too short" in message
    assert f"lower the timeout to {longest_timeout}" in message


def test_a_shared_secret_and_a_jwks_file_exclude_each_other(refusal, tmp_path):
    (tmp_path / "jwks.json").write_text("{}")
    message = refusal(JWT_SECRET=SECRET, JWT_JWKS=str(tmp_path / "jwks.json"))
    assert "HOOKJETTY_JWT_SECRET and HOOKJETTY_JWT_JWKS are both set" in message


def test_the_algorithms_follow_from_the_kind_of_key(load, refusal, tmp_path):
    jwks = str(tmp_path / "jwks.json")
    Path(jwks).write_text("{}")
    assert load(JWT_SECRET=SECRET).jwt_algorithms == ("HS256",)
    assert load(JWT_JWKS=jwks).jwt_algorithms == ("RS256", "ES256", "EdDSA")
    assert load(JWT_JWKS=jwks, JWT_ALGORITHMS="ES256").jwt_algorithms == ("ES256",)
    assert "HS256 is not allowed" in refusal(JWT_JWKS=jwks, JWT_ALGORITHMS="RS256,HS256")
    assert "only HS256 is allowed" in refusal(JWT_SECRET=SECRET, JWT_ALGORITHMS="RS256")


def test_the_api_on_all_addresses_is_called_on_the_loopback_one(load):
    assert load(BIND="0.0.0.0:9000").url == "http://127.0.0.1:9000"
    assert load(BIND="[::]:9000").url == "http://[::1]:9000"
    assert load(BIND="hooks.internal:9000").url == "http://hooks.internal:9000"


def test_what_a_process_needs_and_lacks_is_named_with_the_remedy(load):
    loaded = load(DATABASE_URL="postgresql://h/d")
    with pytest.raises(settings.SettingsError) as caught:
        loaded.require("database_url", "jwt_secret or jwt_jwks", "secret_keys")
    message = str(caught.value)
    assert "HOOKJETTY_JWT_SECRET or HOOKJETTY_JWT_JWKS is not set" in message
    assert "HOOKJETTY_SECRET_KEYS is not set" in message
    assert "HOOKJETTY_DATABASE_URL is not set" not in message
    assert "make run" in message


def test_secrets_are_neither_printed_nor_described(load):
    loaded = load(
        DATABASE_URL="postgresql://u:MARKER@h/d?sslpassword=MARKER&user=u",
        TEST_DATABASE_URL="postgresql://u:M@R:KER@h/d",
        TOKEN="MARKER",
        JWT_SECRET="MARKER of 32 bytes and more of them",
        SECRET_KEYS="MARKER" + "A" * 37 + "=",
    )
    described = {row.env: row.value for row in loaded.describe()}
    assert described["HOOKJETTY_DATABASE_URL"] == "postgresql://u:***@h/d?sslpassword=***&user=u"
    assert described["HOOKJETTY_TEST_DATABASE_URL"] == "postgresql://u:***@h/d"
    assert described["HOOKJETTY_TOKEN"] == "***"
    assert "MARKER" not in repr(loaded)
    assert not any("MARKER" in value for value in described.values())


def test_what_is_described_can_be_set_again(load, tmp_path):
    loaded = load(
        NAMESERVERS="127.0.0.1:5353,::1",
        ALLOW_NETWORKS="10.0.0.0/8",
        ALLOW_HTTP="yes",
        RETRY_SCHEDULE="0,0.5,90s,36h,1d",
        TIMEOUT_SECONDS="2.5",
        CORPORA=str(tmp_path),
    )
    assert settings.load({row.env: row.value for row in loaded.describe()}) == loaded


def test_the_document_lists_exactly_the_settings_there_are(load):
    table = DOCUMENT.read_text().split("## All settings")[1]
    rows = [
        line.replace("`", "") for line in table.splitlines() if line.startswith("| `HOOKJETTY_")
    ]
    assert rows == [
        f"| {row.env} | {row.default or '–'} | {row.unit or '–'} | {row.help.replace('`', '')} |"
        for row in load().describe()
    ]
