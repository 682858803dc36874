"""Everything that can be set from outside: one frozen object, built once from the environment.

``load()`` reads ``HOOKJETTY_<NAME>`` for each field of ``Settings`` below, or the contents of the
file that ``HOOKJETTY_<NAME>_FILE`` names (Docker secrets, systemd credentials). An empty value
counts as not set. A bad value, an unknown name and an impossible combination are refused, all of
them in one message. docs/settings.md lists the same table for operators; a test compares the two.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import os
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import psycopg2
from psycopg2.extensions import parse_dsn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "HOOKJETTY_"

# "changeme" and "password", repeated until they are long enough, have seven characters; a random
# secret, even in hexadecimal, has more. And what documentation shows (jwt.io, RFC 7515).
LEAST_DISTINCT_CHARACTERS = 8
EXAMPLE_JWT_SECRETS = frozenset(
    {
        "a-string-secret-at-least-256-bits-long",
        "your-256-bit-secret-your-256-bit-secret",
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
    }
)

# What `make run` leaves in VAR for the other processes of its instance and for the CLI.
INSTANCE_FILES = ("database_url", "jwt_secret", "secret_keys")

SYMMETRIC = ("HS256",)
ASYMMETRIC = ("RS256", "ES256", "EdDSA")


class SettingsError(Exception):
    """The settings cannot be used. The message has one line per problem and what to do."""


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process; ``SettingsError`` lists everything that is wrong with them.

    Without a DATABASE_URL, the files of the embedded instance in VAR stand in for the settings
    of their names; a setting that is given explicitly always wins.
    """
    environ = os.environ if environ is None else environ
    given, problems = _given(environ)
    values: dict[str, Any] = {}
    for spec in fields(Settings):
        text = given.get(spec.name, spec.metadata["default"])
        try:
            values[spec.name] = None if text is None else spec.metadata["parse"](text)
        except ValueError as reason:
            problems.append(_refusal(spec.name, text, reason))
            values[spec.name] = None
    if not problems:
        problems = _contradictions(values)
    if problems:
        raise SettingsError("\n".join(problems))
    return Settings(**_with_derived_defaults(values))


def _given(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The texts that were set, by field name, and the names that cannot be accepted."""
    given: dict[str, str] = {}
    problems: list[str] = []
    known = {PREFIX + spec.name.upper(): spec.name for spec in fields(Settings)}
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        text = environ[variable]
        name = known.get(variable) or known.get(variable.removesuffix("_FILE"))
        if name is None:
            name = variable.removeprefix(PREFIX).removesuffix("_FILE").lower()
            near = difflib.get_close_matches(name, known.values(), n=1)
            hint = f"did you mean {PREFIX}{near[0].upper()}?" if near else "see docs/settings.md"
            problems.append(f"{variable} is not a setting: {hint}")
        elif text and name in given:
            problems.append(
                f"{variable.removesuffix('_FILE')} and {variable} are both set: keep one"
            )
        elif text and variable in known:
            given[name] = text
        elif text:
            try:
                given[name] = _file_text(Path(text))
            except (OSError, UnicodeDecodeError) as reason:
                problems.append(f"{variable}={text!r} cannot be read: {reason}")
    if "database_url" not in given:
        problems += _fill_from_instance(given)
    return given, problems


def _fill_from_instance(given: dict[str, str]) -> list[str]:
    """Takes what an embedded instance wrote into VAR, for settings that were not given."""
    folder = _folder(given.get("var", "./var"))
    for name in INSTANCE_FILES:
        # A JWKS file and a shared secret exclude each other, and what is given wins.
        if name in given or (name == "jwt_secret" and "jwt_jwks" in given):
            continue
        try:
            text = _file_text(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, UnicodeDecodeError) as reason:
            return [f"the instance in {PREFIX}VAR={str(folder)!r} cannot be used: {reason}"]
        if text:
            given[name] = text
    return []


def _file_text(path: Path) -> str:
    return path.read_text(encoding="utf-8").rstrip("\r\n")


def _refusal(name: str, text: str, reason: ValueError) -> str:
    """Names the variable, the bad value unless it is a secret, and what is allowed."""
    secret = next(spec.metadata["secret"] for spec in fields(Settings) if spec.name == name)
    shown = "" if secret else f"={text!r}"
    return f"{PREFIX}{name.upper()}{shown} is refused: {reason}"


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    """Settings that are fine alone and wrong together."""
    problems = []
    lease, timeout = values["lease_seconds"], values["timeout_seconds"]
    if lease < timeout + 2 * _start_margin(lease):
        problems.append(
            f"HOOKJETTY_LEASE_SECONDS={lease:g} is too short for"
            f" HOOKJETTY_TIMEOUT_SECONDS={timeout:g}: a claimed task needs its timeout, and"
            f" {_start_margin(lease):g} s before and after it, within its lease; raise the lease"
            f" to {timeout + 10:g} or lower the timeout to {lease - 2 * _start_margin(lease):g}"
        )
    if values["jwt_secret"] and values["jwt_jwks"]:
        problems.append(
            "HOOKJETTY_JWT_SECRET and HOOKJETTY_JWT_JWKS are both set: tokens are signed either"
            " with a shared secret or with the keys of a JWKS file; keep one"
        )
    if values["jwt_secret"] and set(values["jwt_algorithms"]) - set(SYMMETRIC):
        problems.append("HOOKJETTY_JWT_ALGORITHMS: with HOOKJETTY_JWT_SECRET only HS256 is allowed")
    if values["jwt_jwks"] and set(values["jwt_algorithms"]) - set(ASYMMETRIC):
        # A public key used as a shared secret is the classic forgery (RFC 8725, section 2.1).
        problems.append("HOOKJETTY_JWT_ALGORITHMS: with HOOKJETTY_JWT_JWKS HS256 is not allowed")
    return problems


def _with_derived_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Defaults that depend on other settings or on the machine."""
    host, _, port = values["bind"].rpartition(":")
    # Who listens on all addresses is reached on the loopback one.
    reachable = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - no bind
    return values | {
        "database_direct_url": values["database_direct_url"] or values["database_url"],
        "url": values["url"] or f"http://{reachable}:{port}",
        "dispatchers": values["dispatchers"] or min(_processors(), 8),
        "jwt_algorithms": values["jwt_algorithms"]
        or (ASYMMETRIC if values["jwt_jwks"] else SYMMETRIC),
        "log_format": values["log_format"] or ("console" if sys.stderr.isatty() else "json"),
    }


def _processors() -> int:
    """Those that this process may run on, which may be fewer than there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _start_margin(lease_seconds: float) -> float:
    return min(5.0, lease_seconds / 4)


# Parsers: text in, value out, ValueError with what is allowed. ------------------------------------


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high} is needed")
        return int(text)

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ValueError(f"a number from {low:g} to {high:g} is needed")
        return float(text)

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)} is needed")
        return text

    return parse


def _yes_or_no(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise ValueError("true or false is needed")
    return words[text.lower()]


def _items(text: str) -> list[str]:
    return [item for item in re.split(r"[\s,]+", text) if item]


def _text(text: str) -> str:
    return text


def _folder(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _readable_file(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError("the path of a readable file is needed")
    return path


def _database_url(text: str) -> str:
    """A connection URL as libpq reads it: several hosts and Unix sockets are fine."""
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("postgresql://user:password@host:5432/database is needed")
    try:
        parse_dsn(text)
    except psycopg2.Error as reason:
        # Its third part quotes the text that it stumbled over, which may be the password.
        raise ValueError(f"libpq says: {str(reason).split(': ')[1].strip()}") from None
    return "postgresql://" + text.split("://", 1)[1]


def _bind(text: str) -> str:
    found = re.fullmatch(r"([A-Za-z0-9.-]+|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", text)
    try:
        if found and found[2]:
            ipaddress.IPv6Address(found[2])
    except ValueError:
        found = None
    if not found or not 1 <= int(found[3]) <= 65535:
        raise ValueError("host:port is needed, such as 127.0.0.1:8080 or [::1]:8080")
    return text


def _http_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text):
        raise ValueError("http://host:port or https://host is needed")
    return text.rstrip("/")


def _nameservers(text: str) -> tuple[str, ...]:
    for item in _items(text):
        try:
            if item.startswith("[") or item.count(":") == 1:
                parts = urlsplit(f"//{item}")
                ipaddress.ip_address(parts.hostname or "")
                _whole(1, 65535)(str(parts.port))
            else:
                ipaddress.ip_address(item)
        except ValueError:
            raise ValueError(
                f"{item!r} is not an address; 192.0.2.1, 192.0.2.1:5353 and [2001:db8::1]:53 are"
            ) from None
    return tuple(_items(text))


def _ports(text: str) -> frozenset[int]:
    return frozenset(_whole(1, 65535)(item) for item in _items(text))


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(text: str) -> tuple[Network, ...]:
    networks = []
    for item in _items(text):
        try:
            networks.append(ipaddress.ip_network(item))
        except ValueError as reason:
            raise ValueError(f"{reason}; networks such as 10.0.0.0/8,fd00::/8 are needed") from None
    return tuple(networks)


def _jwt_secret(text: str) -> str:
    if len(text.encode()) < 32:
        raise ValueError("at least 32 bytes are needed (RFC 7518, section 3.2)")
    if len(set(text)) < LEAST_DISTINCT_CHARACTERS or text in EXAMPLE_JWT_SECRETS:
        raise ValueError("it can be guessed; make one with `openssl rand -base64 48`")
    return text


def _jwt_algorithms(text: str) -> tuple[str, ...]:
    return tuple(_one_of(*SYMMETRIC, *ASYMMETRIC)(item) for item in _items(text))


def _secret_keys(text: str) -> tuple[str, ...]:
    for position, key in enumerate(_items(text), start=1):
        try:
            raw = base64.urlsafe_b64decode(key)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 32 or base64.urlsafe_b64encode(raw).decode() != key:
            raise ValueError(
                f"key {position} is not 32 bytes in URL-safe base64; make one with: python -c"
                " 'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"
            )
    return tuple(_items(text))


_SECONDS_OF_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_DELAY_SECONDS = 30 * 86400


def _schedule(text: str) -> tuple[float, ...]:
    delays = []
    for item in _items(text):
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", item)
        delay = float(found[1]) * _SECONDS_OF_UNIT[found[2]] if found else -1
        if not 0 <= delay <= _LONGEST_DELAY_SECONDS:
            raise ValueError(f"{item!r} is not a delay of at most 30d, such as 0, 5s, 5m or 2h")
        delays.append(delay)
    if not 1 <= len(delays) <= 100:
        raise ValueError("from 1 to 100 delays are needed, such as 0,5s,5m,30m,2h")
    return tuple(delays)


# The table. ---------------------------------------------------------------------------------------


def _setting(
    parse: Callable[[str], Any],
    default: str | None,
    meaning: str,
    *,
    unit: str = "",
    derived: str = "",
    secret: bool = False,
) -> Any:
    """One row of the table.

    ``default`` is written as in the environment; ``derived`` tells in words of one that depends
    on other settings; a ``secret`` is never shown.
    """
    return field(
        repr=not secret,
        metadata={
            "parse": parse,
            "default": default,
            "help": meaning,
            "unit": unit,
            "derived": derived,
            "secret": secret,
        },
    )


class Row(NamedTuple):
    """One setting as people see it; every member is text, and secrets are masked."""

    env: str
    value: str
    default: str
    unit: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the processes of one instance are told. Make one with ``load()``."""

    var: Path = _setting(
        _folder, "./var", "Folder of the embedded PostgreSQL and of the keys made up with it."
    )
    database_url: str | None = _setting(
        _database_url,
        None,
        "PostgreSQL 16 or newer. May name several hosts, with target_session_attrs=read-write.",
        derived="the embedded instance in VAR",
        secret=True,
    )
    database_direct_url: str | None = _setting(
        _database_url,
        None,
        "The same database without a transaction pooler in between, for the dispatcher.",
        derived="DATABASE_URL",
        secret=True,
    )
    test_database_url: str | None = _setting(
        _database_url,
        None,
        "A server on which the tests may create and drop databases.",
        derived="an embedded PostgreSQL",
        secret=True,
    )
    corpora: Path | None = _setting(
        _folder, None, "Folder of inputs from other projects; read by tests only."
    )
    bind: str = _setting(_bind, "127.0.0.1:8080", "Address and port the API listens on.")
    url: str = _setting(
        _http_url,
        None,
        "Where the command line finds the API.",
        derived="http:// and BIND",
    )
    token: str | None = _setting(
        _text, None, "The token the command line calls the API with.", secret=True
    )
    api_workers: int = _setting(_whole(1, 64), "2", "Processes of the API.")
    api_threads: int = _setting(_whole(1, 256), "8", "Threads of each API process.")
    dispatchers: int = _setting(
        _whole(1, 64),
        None,
        "Dispatcher processes of `make run`, and of `make run-dispatcher` on each host.",
        derived="one for each processor, at most 8",
    )
    lease_seconds: float = _setting(
        _number(1, 3600),
        "60",
        "How long a claimed task belongs to its dispatcher. A crash delays its tasks by this.",
        unit="seconds",
    )
    timeout_seconds: float = _setting(
        _number(0.1, 300),
        "15",
        "The time one attempt may take in all: connect, send, headers and body.",
        unit="seconds",
    )
    connect_timeout_seconds: float = _setting(
        _number(0.1, 300), "5", "The part of it that connecting and TLS may take.", unit="seconds"
    )
    in_flight: int = _setting(
        _whole(1, 10_000), "512", "Requests under way at a time in each dispatcher process."
    )
    slots: int = _setting(
        _whole(1, 10_000), "20", "Of these, the most for one endpoint in each dispatcher process."
    )
    nameservers: tuple[str, ...] = _setting(
        _nameservers,
        "",
        "Name servers to ask for receivers' addresses, such as 192.0.2.1 or 127.0.0.1:5353.",
        derived="the system's",
    )
    ca_bundle: Path | None = _setting(
        _readable_file,
        None,
        "PEM file of the authorities that may vouch for receivers.",
        derived="certifi's",
    )
    deny_ports: frozenset[int] = _setting(
        _ports, "22,25,5432,6379,11211", "Ports no endpoint may name."
    )
    allow_networks: tuple[Network, ...] = _setting(
        _networks,
        "",
        "Networks that endpoints may be in although they are private, such as 10.0.0.0/8.",
        derived="none",
    )
    allow_http: bool = _setting(
        _yes_or_no, "false", "Accept http:// URLs everywhere, not only in ALLOW_NETWORKS."
    )
    jwt_secret: str | None = _setting(
        _jwt_secret,
        None,
        "Shared secret of HS256 tokens, 32 bytes or more. Or JWT_JWKS.",
        derived="the embedded instance's",
        secret=True,
    )
    jwt_jwks: Path | None = _setting(
        _readable_file,
        None,
        "JWKS file with the public keys of tokens; read again when it changes. Or JWT_SECRET.",
    )
    jwt_algorithms: tuple[str, ...] = _setting(
        _jwt_algorithms,
        "",
        "Signature algorithms a token may use.",
        derived="HS256 with JWT_SECRET; RS256,ES256,EdDSA with JWT_JWKS",
    )
    jwt_audience: str = _setting(_text, "hookjetty", "The `aud` a token must be made for.")
    jwt_issuer: str | None = _setting(
        _text, None, "The `iss` a token must have.", derived="not checked"
    )
    jwt_tenant_claim: str = _setting(_text, "tenant_id", "The claim that holds the tenant's id.")
    jwt_role_claim: str = _setting(_text, "role", "The claim that holds the role.")
    jwt_scope_claim: str = _setting(_text, "scope", "The claim that holds the scopes.")
    secret_keys: tuple[str, ...] = _setting(
        _secret_keys,
        "",
        "Fernet keys that endpoints' secrets are encrypted with: the newest first, old ones"
        " kept for reading.",
        derived="the embedded instance's",
        secret=True,
    )
    retention_days: int = _setting(
        _whole(1, 3650), "30", "How long events, tasks and attempts are kept.", unit="days"
    )
    audit_days: int = _setting(
        _whole(1, 3650), "365", "How long the log of people's actions is kept.", unit="days"
    )
    retry_schedule: tuple[float, ...] = _setting(
        _schedule,
        "0,5s,5m,30m,2h,5h,10h,14h,20h,24h",
        "The delay before each try of a task, the first included.",
        unit="s, m, h or d",
    )
    retry_jitter: float = _setting(
        _number(0, 0.5), "0.2", "The part of a delay by which it may be shorter or longer."
    )
    rate_limit: int = _setting(
        _whole(1, 100_000), "10", "Requests of one tenant.", unit="requests per second"
    )
    endpoints_per_tenant: int = _setting(
        _whole(1, 1000), "100", "Endpoints one tenant may have at a time."
    )
    log_level: str = _setting(
        _one_of("debug", "info", "warning", "error"), "info", "The least that is logged."
    )
    log_format: str = _setting(
        _one_of("json", "console"),
        None,
        "json for machines, console for people.",
        derived="console on a terminal, else json",
    )

    @property
    def bind_host(self) -> str:
        """The host of BIND, an IPv6 address without its brackets."""
        return self.bind.rpartition(":")[0].strip("[]")

    @property
    def bind_port(self) -> int:
        """The port of BIND."""
        return int(self.bind.rpartition(":")[2])

    @property
    def start_margin_seconds(self) -> float:
        """A task is started only if its timeout and this are left of its lease.

        5 s, or a quarter of a lease shorter than 20 s: the time to record the attempt before the
        lease ends.
        """
        return _start_margin(self.lease_seconds)

    def require(self, *needed: str) -> None:
        """Refuses to go on without ``"database_url"``, or ``"jwt_secret or jwt_jwks"``, and so on.

        ``SettingsError`` names each one that is missing and what to do.
        """
        missing = [names for names in needed if not any(map(self._has, names.split(" or ")))]
        if missing:
            variables = [
                " or ".join(PREFIX + name.upper() for name in names.split(" or "))
                for names in missing
            ]
            raise SettingsError(
                "\n".join(f"{variable} is not set" for variable in variables)
                + "\nset what is missing (docs/settings.md), or start `make run` without"
                f" {PREFIX}DATABASE_URL: it makes up a PostgreSQL and keys of its own in"
                f" {PREFIX}VAR ({self.var})"
            )

    def _has(self, name: str) -> bool:
        return bool(getattr(self, name))

    def describe(self) -> list[Row]:
        """Every setting with its present value, for `hookjetty config` and the documentation."""
        return [
            Row(
                env=PREFIX + spec.name.upper(),
                value=_shown(spec.name, getattr(self, spec.name), spec.metadata["secret"]),
                default=spec.metadata["derived"] or spec.metadata["default"] or "",
                unit=spec.metadata["unit"],
                help=spec.metadata["help"],
            )
            for spec in fields(self)
        ]


def _shown(name: str, value: Any, secret: bool) -> str:
    """A value as it would be written in the environment, or its mask."""
    if value is None or value == ():
        return ""
    if secret:
        return (
            _without_password(value) if name.startswith(("database_", "test_database_")) else "***"
        )
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if name == "retry_schedule":
        return ",".join(_delay(seconds) for seconds in value)
    if isinstance(value, (tuple, frozenset)):
        return ",".join(str(item) for item in (sorted(value) if name == "deny_ports" else value))
    return str(value)


def _delay(seconds: float) -> str:
    for unit in "hms":
        if seconds and seconds % _SECONDS_OF_UNIT[unit] == 0:
            return f"{seconds / _SECONDS_OF_UNIT[unit]:g}{unit}"
    return f"{seconds:g}"


def _without_password(url: str) -> str:
    """The URL with every password in it masked, wherever libpq would take one from."""
    url = re.sub(r"(?<=://)([^:/?@]*):.*@(?=[^@]*$)", r"\1:***@", url)
    return re.sub(r"(?i)([?&](?:ssl)?password=)[^&]*", r"\1***", url)
