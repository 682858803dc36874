"""May we call this URL, may we connect to this address? One policy for registering and connecting.

>>> from ipaddress import ip_network
>>> policy = Policy()
>>> policy.judge_url("HTTPS://Example.COM:443?a=1")
'https://example.com/?a=1'
>>> policy.judge_url("https://0x7f.1/")
Traceback (most recent call last):
    ...
app.destinations.Refused: the host 0x7f.1 is a number in disguise; write an address as four \
decimal numbers, such as 203.0.114.7
>>> policy.judge_address("127.0.0.1", 443, "https")
Traceback (most recent call last):
    ...
app.destinations.Refused: 127.0.0.1 is loopback (127.0.0.0/8); use a public address
>>> Policy(allow_networks=(ip_network("127.0.0.0/8"),)).judge_address("127.0.0.1", 8000, "http")

Registering looks at the text of the URL and asks no name server: a literal address is judged at
once, a name when it is connected to. So ``judge_url`` is a courtesy to whoever registers, and
``judge_address``, called with the very address a socket is about to be opened to, is the guard:
rebinding names and clever spellings have nothing to win there.

The networks are listed here rather than asked of ``ipaddress.is_global``, which lets multicast,
6to4 and others pass and changes its mind between Python's patch releases.
"""

from __future__ import annotations

import re
import socket
import unicodedata
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Protocol
from urllib.parse import quote

import idna

MAX_URL_CHARACTERS = 2048
DENY_PORTS = frozenset({22, 25, 5432, 6379, 11211})
DEFAULT_PORTS = {"http": 80, "https": 443}
LOOPBACK = ("127.0.0.1", "::1")


class Refused(ValueError):
    """We may not call this. The text says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Destination:
    """An accepted URL, taken apart.

    ``host`` has no brackets and is an address rather than a name if ``is_literal``; ``port`` is
    never absent.
    """

    url: str
    scheme: str
    host: str
    port: int
    is_literal: bool


class PolicySettings(Protocol):
    """The settings that make a policy."""

    @property
    def allow_networks(self) -> tuple[IPv4Network | IPv6Network, ...]: ...
    @property
    def allow_http(self) -> bool: ...
    @property
    def deny_ports(self) -> frozenset[int]: ...
    @property
    def bind_port(self) -> int: ...


@dataclass(frozen=True)
class Policy:
    """Where deliveries may go.

    ``allow_networks`` opens networks that are refused otherwise (empty by default), ``allow_http``
    accepts plain http everywhere; without it, plain http goes to ``allow_networks`` only.
    ``deny_ports`` are never called. ``own_listeners`` are the ports that our own processes listen
    on; they are refused on this machine's own addresses, so that no delivery can reach our API.
    """

    allow_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    allow_http: bool = False
    deny_ports: frozenset[int] = DENY_PORTS
    own_listeners: frozenset[int] = frozenset()

    @classmethod
    def from_settings(cls, settings: PolicySettings) -> Policy:
        """The policy that the settings describe; the API's port is what is ours."""
        return cls(
            allow_networks=settings.allow_networks,
            allow_http=settings.allow_http,
            deny_ports=settings.deny_ports,
            own_listeners=frozenset({settings.bind_port}),
        )

    def judge_url(self, url: str) -> str:
        """The canonical form of a URL that may be registered, or ``Refused``.

        Two URLs with the same canonical form are the same destination: scheme and host in lower
        case, an international name as its A-label, no default port, no final dot after the host,
        an empty path as ``/``, characters outside ASCII percent-encoded. A fragment is refused:
        it is never sent, so whoever wrote one meant something else.
        """
        return self.destination(url).url

    def destination(self, url: str) -> Destination:
        """What ``judge_url`` accepts, taken apart for whoever connects to it."""
        scheme, host_text, port, rest = _split(url)
        host = canonical_host(host_text)
        if port in self.deny_ports:
            raise Refused(f"port {port} is never called; use the port of a web server")
        is_literal = ":" in host or is_numeric(host)
        if is_literal:
            self.judge_address(host, port, scheme)
        elif is_localhost(host):
            self._judge_localhost(host, port, scheme)
        elif scheme == "http" and not (self.allow_http or self.allow_networks):
            raise Refused("plain http is not accepted; use https://")

        shown_host = f"[{host}]" if ":" in host else host
        shown_port = "" if port == DEFAULT_PORTS[scheme] else f":{port}"
        if not rest.startswith("/"):
            rest = f"/{rest}"
        canonical = f"{scheme}://{shown_host}{shown_port}{_ascii(rest)}"
        if len(canonical) > MAX_URL_CHARACTERS:
            raise Refused(
                f"the URL has {len(canonical)} characters once percent-encoded; "
                f"use at most {MAX_URL_CHARACTERS}"
            )
        return Destination(canonical, scheme, host, port, is_literal)

    def judge_address(self, address: str, port: int, scheme: str) -> None:
        """Return if a socket may be opened to this address and port, raise ``Refused`` if not."""
        ip = parse_address(address)
        if port in self.deny_ports:
            raise Refused(f"port {port} is never called; use the port of a web server")
        # Where only IPv6 is routed, an operator allows 64:ff9b::/96 to reach IPv4 receivers at
        # all; that must not open 10.0.0.0/8 along with them.
        inner = embedded_ipv4(ip)
        for each in (ip,) if inner is None else (inner, ip):
            reason = None if self._is_allowed(each) else why_special(each)
            if reason is not None:
                raise Refused(f"{address} is {reason}; use a public address")
        if scheme == "http" and not (self.allow_http or self._is_allowed(ip)):
            raise Refused("plain http is not accepted to this address; use https://")
        if port in self.own_listeners and is_own_address(ip):
            raise Refused(f"port {port} of this machine is our own; call another service")

    def _judge_localhost(self, host: str, port: int, scheme: str) -> None:
        """RFC 6761 section 6.3: such names are loopback, whatever a name server would say."""
        refusals = []
        for address in LOOPBACK:
            try:
                self.judge_address(address, port, scheme)
            except Refused as refused:
                refusals.append(refused)
        if len(refusals) == len(LOOPBACK):
            raise Refused(f"{host}: {refusals[0]}") from None

    def _is_allowed(self, ip: IPv4Address | IPv6Address) -> bool:
        return any(ip.version == n.version and ip in n for n in self.allow_networks)


# --- The text of a URL -----------------------------------------------------------------------

_SHAPE = re.compile(r"(https?)://([^/?]*)(.*)", re.IGNORECASE)
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")


def _split(url: str) -> tuple[str, str, int, str]:
    """Scheme, host as written (IPv6 in brackets), port, and the path with the query.

    Stricter than any parser that sees the URL after us, so that none of them can find another
    host in it: no backslash, userinfo, fragment, whitespace or invisible character anywhere.
    """
    if not url:
        raise Refused("the URL is empty; write https://host/path")
    if len(url) > MAX_URL_CHARACTERS:
        raise Refused(f"the URL has {len(url)} characters; use at most {MAX_URL_CHARACTERS}")
    for position, character in enumerate(url):
        # Separators (Z), and control, format, surrogate and private characters (C).
        if character.isspace() or unicodedata.category(character)[0] in "CZ":
            raise Refused(
                f"the URL has whitespace or an invisible character at position {position + 1}; "
                "percent-encode it or leave it out"
            )
    if "\\" in url:
        raise Refused("the URL has a backslash; use / to separate, or write it as %5C")
    if "#" in url:
        raise Refused("the URL has a fragment (#), which is never sent; leave it out")
    shape = _SHAPE.fullmatch(url)
    if shape is None:
        raise Refused("the URL must start with https:// (or http:// where that is accepted)")
    scheme, authority, rest = shape[1].lower(), shape[2], shape[3]
    if "@" in authority:
        raise Refused(
            "the URL has a user name or password (@); leave it out, deliveries are signed"
        )

    bracketed = re.fullmatch(r"(\[[^\]]*\])(?::(.*))?", authority)
    if bracketed is not None:
        host, port_text = bracketed[1], bracketed[2]
    else:
        host, colon, after = authority.partition(":")
        port_text = after if colon else None
    if not host:
        raise Refused("the URL has no host; write https://host/path")
    if port_text is None:
        return scheme, host, DEFAULT_PORTS[scheme], rest
    if _PORT.fullmatch(port_text) is None or int(port_text) > 65535:
        raise Refused(f"the port {port_text!r} is not a number from 1 to 65535")
    return scheme, host, int(port_text), rest


def canonical_host(text: str) -> str:
    """A host in the one form we store, resolve and compare; IPv6 without its brackets.

    >>> canonical_host("BÜCHER.example.")
    'xn--bcher-kva.example'
    >>> canonical_host("[2606:4700:0::1111]")
    '2606:4700::1111'
    >>> canonical_host("[::ffff:1.1.1.1]")
    '1.1.1.1'
    """
    if "%" in text:
        raise Refused("the host has a percent sign; write the plain name, or the address alone")
    if text.startswith("["):
        return _canonical_ipv6(text)
    host = text.lower()
    if not host.isascii():
        host = _to_a_labels(text)
    if is_numeric(host):
        if host == text and _is_dotted_ipv4(host):
            return host
        raise Refused(
            f"the host {text} is a number in disguise; write an address as four decimal "
            "numbers, such as 203.0.114.7"
        )
    host = host.removesuffix(".")
    if len(host) > 253:
        raise Refused(f"the host has {len(host)} characters; a name has at most 253")
    for label in host.split("."):
        if len(label) > 63:
            raise Refused(f"the host has a label of {len(label)} characters; use at most 63")
        if _LABEL.fullmatch(label) is None:
            raise Refused(
                f"the host {text} is not a name; between its dots use letters, digits, _ and "
                "inner hyphens"
            )
    return host


def _canonical_ipv6(text: str) -> str:
    try:
        return str(parse_address(str(IPv6Address(text[1:-1]))))
    except ValueError:
        raise Refused(f"{text} is not an IPv6 address; write it such as [2001:db8::1]") from None


def _to_a_labels(host: str) -> str:
    """An international name as DNS knows it, by UTS #46 as browsers do (IDNA 2008)."""
    try:
        return idna.encode(host, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError):
        pass
    if is_numeric(unicodedata.normalize("NFKC", host)):
        raise Refused(f"the host {host} is a number in disguise; write it in plain digits")
    raise Refused(f"the host {host} is not a valid international name; write its xn-- form")


def is_numeric(host: str) -> bool:
    """A host that some parser reads as an IPv4 address: its last label is a number.

    That is WHATWG's "ends in a number" rule, and covers all that inet_aton accepts. No
    top-level domain is a number, so no name is lost.

    >>> [is_numeric(h) for h in ("10.1", "0x7f.1", "2130706433", "1.2.3.4.", "1e100.net", "f00")]
    [True, True, True, True, False, False]
    """
    last = host.removesuffix(".").rpartition(".")[2].lower()
    return re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last) is not None


def _is_dotted_ipv4(host: str) -> bool:
    try:
        return str(IPv4Address(host)) == host
    except ValueError:
        return False


def is_localhost(host: str) -> bool:
    """``localhost`` and everything below it (RFC 6761)."""
    return host == "localhost" or host.endswith(".localhost")


def _ascii(rest: str) -> str:
    """Path and query as they go over the wire; what is ASCII already stays as it was written."""
    return re.sub(r"[^\x21-\x7e]+", lambda outside: quote(outside[0]), rest)


# --- Addresses -------------------------------------------------------------------------------

# IANA's special-purpose address registries (what is not globally reachable), multicast, and
# every way to write an IPv4 address inside an IPv6 one. 192.0.0.0/24 and 2001:20::/28 are
# refused whole: what is reachable there are no hosts that serve webhooks.
_SPECIAL_IPV4 = tuple(
    (IPv4Network(network), f"{what} ({network})")
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier's NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "Azure's platform address"),
        ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "for benchmarks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_SPECIAL_IPV6 = tuple(
    (IPv6Network(network), f"{what} ({network})")
    for network, what in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "an IPv4-compatible address"),
        ("::ffff:0:0:0/96", "an IPv4-translated address (SIIT)"),
        ("64:ff9b::/96", "an IPv4 address behind NAT64"),
        ("64:ff9b:1::/48", "an IPv4 address behind a local NAT64"),
        ("100::/64", "for discarding"),
        ("100:0:0:1::/64", "a dummy prefix"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "for documentation"),
        ("5f00::/16", "for segment routing"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
# The parts of 2001::/23 that are ordinary anycast services.
_REACHABLE_IPV6 = tuple(
    map(
        IPv6Network,
        ("2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:3::/32", "2001:4:112::/48"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP_IDENTIFIERS = (0x00005EFE, 0x02005EFE)


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """An address; IPv4 mapped into IPv6 is the IPv4 address, since that is what is connected to."""
    ip = ip_address(text)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def why_special(ip: IPv4Address | IPv6Address) -> str | None:
    """Why an address is no public one, or None if it is.

    >>> why_special(parse_address("169.254.169.254"))
    'link-local, where clouds keep their metadata (169.254.0.0/16)'
    >>> why_special(parse_address("2606:4700::1111")) is None
    True
    """
    if isinstance(ip, IPv4Address):
        return next((why for network, why in _SPECIAL_IPV4 if ip in network), None)
    if any(ip in network for network in _REACHABLE_IPV6):
        return None
    why = next((why for network, why in _SPECIAL_IPV6 if ip in network), None)
    if why is None and ip not in _GLOBAL_UNICAST:
        return f"outside {_GLOBAL_UNICAST}, where all public IPv6 addresses are"
    return why


def embedded_ipv4(ip: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that NAT64 (RFC 6052) or ISATAP (RFC 5214) makes of an IPv6 address.

    >>> embedded_ipv4(parse_address("64:ff9b::a00:1"))
    IPv4Address('10.0.0.1')
    """
    bits = int(ip)
    if ip.version == 6 and (ip in _NAT64 or bits >> 32 & 0xFFFFFFFF in _ISATAP_IDENTIFIERS):
        return IPv4Address(bits & 0xFFFFFFFF)
    return None


def is_own_address(ip: IPv4Address | IPv6Address) -> bool:
    """The address is one of this machine's: a socket can be bound to it."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True
