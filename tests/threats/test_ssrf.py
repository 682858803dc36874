"""S1 to S20: no URL that a tenant chooses reaches what is not the public's.

Where a canary listens on loopback, the policy is the one of the default settings, but for plain
http, so that nothing else is the reason for a refusal; names are asked of a real name server, and
the real engine delivers.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import socket
import threading
import time
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pycurl
import pytest
import trustme
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.db import db
from app.destinations import _SPECIAL_IPV4, _SPECIAL_IPV6, DENY_PORTS, Policy, Refused, is_numeric
from app.settings import load
from dispatcher.handshakes import Handshakes
from dispatcher.resolve import MAX_ADDRESSES_PER_FAMILY
from tests import hostile
from tests.acceptance.receiver import RecordingReceiver
from tests.dispatching import (
    Dispatchers,
    Parts,
    add_endpoint,
    all_done,
    count,
    parse_request,
    running_engine,
    running_parts,
    sealed,
    wait_until,
)
from tests.factories import attempt_rows, make_endpoint, publish, rows, task_rows
from tests.hostile import NXDOMAIN, OK, NameServer, Receiver, Silence, answer, over_tls
from tests.wire import response, serving, wired

DEFAULT = Policy()
ANY_HTTP = Policy(allow_http=True)
# The machine may be busy with other tests.
unhurried = settings(deadline=None)

# What the settings say in production, but for the time that is waited.
AS_BY_DEFAULT = {
    "ALLOW_NETWORKS": "",
    "ALLOW_HTTP": "true",
    "NAMESERVERS": "127.0.0.1:9",
    "RETRY_SCHEDULE": "0",
    "CONNECT_TIMEOUT_SECONDS": "1",
    "TIMEOUT_SECONDS": "2",
}
# A public address for our policy, in a block that IANA has given to nobody: it leads nowhere.
NOWHERE = "2d00::1"


def attempts_at(*urls: str, **otherwise: str) -> dict[str, dict[str, Any]]:
    """What came of one event for each URL, which is stored as if nobody had looked at it."""
    endpoints = {endpoint_at(url): url for url in urls}
    publish()
    with running_engine(**AS_BY_DEFAULT | otherwise):
        wait_until(all_done)
    attempts = {endpoints[row["endpoint_id"]]: row for row in attempt_rows()}
    assert set(attempts) == set(urls)
    return attempts


def endpoint_at(url: str, tenant_id: int = 7) -> int:
    """An endpoint with exactly this URL, whatever registering would say to it."""
    endpoint = make_endpoint(tenant_id, secret=sealed("whsec_" + "c2Vj" * 8, tenant_id))
    db.execute_sql("UPDATE hookjetty.endpoints SET url_key = %s WHERE id = %s", (url, endpoint))
    return endpoint


def failures_of(attempts: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {url: row["failure"] for url, row in attempts.items()}


def is_accepted(policy: Policy, address: str, port: int = 443) -> bool:
    try:
        policy.judge_address(address, port, "https")
    except Refused:
        return False
    return True


def is_registrable(policy: Policy, url: str) -> bool:
    try:
        policy.judge_url(url)
    except Refused:
        return False
    return True


# --- S1: special networks ----------------------------------------------------------------------

# Where we are stricter than one of the projects whose tests the corpus collects.
STRICTER = {
    "64:ff9b::101:101": "NAT64 is refused whole, as two of three projects do",
    "64:ff9b::5db8:d822": "likewise",
    "64:ff9b:1:808:8:800::": "a local NAT64, of which we cannot know where it puts the address",
    "64:ff9c::1": "unassigned; nothing outside 2000::/3 is public",
    "100:0:0:1::1": "a dummy prefix since RFC 9780",
    "2001:2f::1": "ORCHIDv2 are no locations on the network; another project refuses 2001:2f:ffff…",
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, str]:
    """Addresses, and what the tests of other projects say about them: allow, deny or disputed."""
    folder = os.environ.get("HOOKJETTY_CORPORA")
    if not folder:
        pytest.skip("HOOKJETTY_CORPORA is not set: no ip_verdicts.tsv to compare with")
    lines = (Path(folder) / "ip_verdicts.tsv").read_text().splitlines()
    found = dict(line.split("\t")[:2] for line in lines if not line.startswith("#"))
    assert len(found) == 209
    return found


def test_s1_the_verdicts_of_other_projects_are_ours(database, verdicts):
    ours = {a: "allow" if is_accepted(DEFAULT, a) else "deny" for a in verdicts}
    different = {a for a, v in verdicts.items() if v in {"allow", "deny"} and ours[a] != v}
    assert list(verdicts.values()).count("deny") >= 178
    assert different == set(STRICTER)
    assert all(ours[a] == "deny" for a in STRICTER)


def test_s1_no_address_of_the_list_that_is_denied_is_connected_to(database, verdicts):
    """Neither as it is nor behind a name; nothing is waited for."""
    denied = [a for a, verdict in verdicts.items() if verdict == "deny"]
    # As many addresses of a name as are looked at; one that is allowed would be connected to.
    named = [
        denied[n : n + MAX_ADDRESSES_PER_FAMILY]
        for n in range(0, len(denied), MAX_ADDRESSES_PER_FAMILY)
    ]
    with NameServer(lambda name, _: named[int(name.split(".")[0])]) as names:
        attempts = attempts_at(
            *(f"http://{f'[{a}]' if ':' in a else a}/hook" for a in denied),
            *(f"https://{number}.test/hook" for number in range(len(named))),
            NAMESERVERS=names.address,
        )
    assert len(attempts) == len(denied) + len(named)
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}
    assert {row["address"] for row in attempts.values()} == {None}


def test_s1_the_first_the_second_and_the_last_address_of_a_special_network_are_refused():
    for network, _ in _SPECIAL_IPV4 + _SPECIAL_IPV6:
        for position in {0, min(1, network.num_addresses - 1), -1}:
            assert not is_accepted(DEFAULT, str(network[position])), network


def test_s1_nothing_but_allow_networks_opens_a_network_and_it_is_empty_by_default(database, canary):
    assert load({}).allow_networks == ()
    for name, text in (("ALLOW_HTTP", "true"), ("DENY_PORTS", "7"), ("BIND", "0.0.0.0:8080")):
        policy = Policy.from_settings(load({f"HOOKJETTY_{name}": text}))
        assert not any(is_accepted(policy, a) for a in ("127.0.0.1", "::1", "10.0.0.1", "fd00::1"))
    url = f"http://127.0.0.1:{canary.port}/hook"
    assert failures_of(attempts_at(url)) == {url: "blocked_address"}
    assert canary.connections == 0


def test_s1_the_canary_hears_what_allow_networks_lets_through(database, receivers):
    """Or its silence would prove nothing."""
    receiver = receivers(answer(OK))
    attempts = attempts_at(receiver.url(), "http://10.0.0.1/", ALLOW_NETWORKS="127.0.0.0/8")
    assert failures_of(attempts) == {receiver.url(): None, "http://10.0.0.1/": "blocked_address"}
    assert receiver.connections == 1


# --- S2: IPv4 inside IPv6 ----------------------------------------------------------------------

DENIED_IPV4 = st.sampled_from([network for network, _ in _SPECIAL_IPV4]).flatmap(
    lambda network: st.integers(int(network[0]), int(network[-1])).map(IPv4Address)
)
ANY_IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address)


def embeddings(ipv4: IPv4Address, prefix: int) -> list[int]:
    """Every way to carry an IPv4 address in an IPv6 one; ``prefix`` fills what is free."""
    a = int(ipv4)
    return [
        0xFFFF << 32 | a,  # mapped
        a,  # compatible
        0xFFFF << 48 | a,  # SIIT
        0x0064_FF9B << 96 | a,  # NAT64
        0x0064_FF9B_0001 << 80 | a,  # local NAT64, below a /96
        0x0064_FF9B_0001 << 80 | (a >> 16) << 64 | (a & 0xFFFF) << 40,  # below a /48
        0x2002 << 112 | a << 80,  # 6to4
        0x2001 << 112 | (a ^ 0xFFFFFFFF),  # Teredo
        0x2600 << 112 | prefix << 64 | 0x5EFE << 32 | a,  # ISATAP
        0x2600 << 112 | prefix << 64 | 0x02005EFE << 32 | a,
    ]


@unhurried
@given(st.one_of(DENIED_IPV4, ANY_IPV4), st.integers(0, 2**48 - 1))
@example(IPv4Address("127.0.0.1"), 0)
@example(IPv4Address("0.0.0.0"), 0)
def test_s2_an_ipv4_address_that_is_denied_is_denied_inside_ipv6_too(ipv4, prefix):
    if not is_accepted(DEFAULT, str(ipv4)):
        for bits in embeddings(ipv4, prefix):
            assert not is_accepted(DEFAULT, str(IPv6Address(bits))), IPv6Address(bits)


@unhurried
@given(DENIED_IPV4)
def test_s2_allowing_nat64_opens_no_private_ipv4_network(ipv4):
    behind_nat64 = Policy(allow_networks=(ip_network("64:ff9b::/96"),))
    assert is_accepted(behind_nat64, "64:ff9b::1.1.1.1")
    assert not is_accepted(behind_nat64, f"64:ff9b::{ipv4}")


def test_s2_nothing_is_sent_to_loopback_inside_ipv6(database, canary):
    """Nor to a name whose AAAA record is such an address."""
    forms = [str(IPv6Address(bits)) for bits in embeddings(IPv4Address("127.0.0.1"), 0)]
    with NameServer(lambda name, _: [forms[int(name.split(".")[0])]]) as names:
        attempts = attempts_at(
            *(f"http://[{form}]:{canary.port}/" for form in forms),
            *(f"http://{number}.test:{canary.port}/" for number in range(len(forms))),
            NAMESERVERS=names.address,
        )
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}


# --- S3: other spellings of an address ---------------------------------------------------------

FULL_WIDTH = str.maketrans("0123456789abcdefx.", "０１２３４５６７８９ａｂｃｄｅｆｘ．")
CIRCLED = str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")


def spellings(address: str) -> set[str]:
    """What some parser somewhere reads as this IPv4 address, and no plain way to write it."""
    number = int(IPv4Address(address))
    a, b, c, d = IPv4Address(address).packed
    found = set()
    # In one to four parts, as inet_aton(3) takes them, each in any base, cut short or too large.
    for parts in ((number,), (a, number & 0xFFFFFF), (a, b, c << 8 | d), (a, b, c, d)):
        for form in ("{}", "0x{:x}", "0X{:X}", "0x00{:x}", "0{:o}", "00000{:o}", "0{}"):
            found.add(".".join(form.format(part) for part in parts))
        found |= {".".join(str(part + (256 << 24)) for part in parts)}
        found |= {".".join([str(parts[0] + 256), *map(str, parts[1:])])}
        first, *others = parts
        found.add(".".join([f"0x{first:x}", *(f"0{part:o}" for part in others)]))
    found |= {f"{number + 2**32}", f"{address}.", f"{address}.0", f"0.{address}"}
    found |= {each.translate(FULL_WIDTH) for each in list(found)}
    found |= {address.translate(FULL_WIDTH), address.translate(CIRCLED)}
    found |= {address.replace(".", dot) for dot in "。．｡․"}
    found |= {quote(address).replace(".", "%2e"), "".join(f"%{ord(each):02x}" for each in address)}
    found |= {f"[::ffff:{address}]", f"[0:0:0:0:0:FFFF:{address}]", f"[::{address}]"}
    found |= {f"[::ffff:{a:x}{b:02x}:{c:x}{d:02x}]", f"[64:ff9b::{address}]"}
    found |= {f"[::ffff:{address}%25lo]", f"[::ffff:{address}%lo]", f"[{address}]"}
    found |= {f" {address}", f"{address} ", f"{address}\t", f"{address}%00", f"{address}%20"}
    return found - {address}


VICTIMS = ("127.0.0.1", "0.0.0.0", "10.0.0.1", "169.254.169.254", "192.168.1.1", "168.63.129.16")


@pytest.mark.parametrize("address", VICTIMS)
def test_s3_another_spelling_of_a_forbidden_address_cannot_be_registered(address):
    spelled = spellings(address)
    assert len(spelled) > 50
    for host in (address, *spelled):
        for policy, scheme in ((DEFAULT, "https"), (ANY_HTTP, "http")):
            assert not is_registrable(policy, f"{scheme}://{host}/"), host
            assert not is_registrable(policy, f"{scheme}://{host}:8080/"), host


@pytest.mark.parametrize(
    "host",
    [
        "0",
        "127.1",
        "127.0.1",
        "0x7f.1",
        "0X7F.0.0.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "2130706433",
        "127.0.0.01",
        "127.0.0.1.",
        "256.1.1.1",
        "1.2.3.4.5",
        "08.8.8.8",
        "8.8.8",
        "example.0x",
        "１２７．０．０．１",
        "127。0。0。1",
        "①②⑦.⓪.⓪.①",
        "０ｘ７ｆ.1",
    ],
)
def test_s3_a_number_in_disguise_is_no_host(host):
    with pytest.raises(Refused, match="number in disguise"):
        Policy(allow_networks=(ip_network("0.0.0.0/0"),)).judge_url(f"https://{host}/")


@unhurried
@given(st.text(st.sampled_from("0123456789abcdefxX."), min_size=1, max_size=14))
@example("0x7f.1")
def test_s3_whatever_libc_takes_for_an_address_we_take_for_a_number(host):
    try:
        socket.inet_aton(host)
    except OSError:
        return
    assert is_numeric(host)


def test_s3_another_spelling_of_loopback_opens_no_socket(database, canary):
    hosts = sorted(spellings("127.0.0.1") | spellings("0.0.0.0") | {"127.0.0.1", "0.0.0.0"})
    attempts = attempts_at(*(f"http://{host}:{canary.port}/" for host in hosts))
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}


# --- S4, S5: names -----------------------------------------------------------------------------


def test_s4_of_mixed_addresses_only_the_allowed_one_is_tried_in_every_order(database, canary):
    """It leads nowhere, and the other one is no way out."""
    mixed = [
        pair
        for forbidden in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        for pair in ([NOWHERE, forbidden], [forbidden, NOWHERE])
    ]
    with NameServer(lambda name, _: mixed[int(name.split(".")[0])]) as names:
        attempts = attempts_at(
            *(f"http://{number}.test:{canary.port}/" for number in range(len(mixed))),
            NAMESERVERS=names.address,
        )
    # No route, or nobody answers.
    assert {row["failure"] for row in attempts.values()} <= {"connect", "timeout"}


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1", "127.0.0.2"],
        ["127.0.0.2", "127.0.0.1"],
        ["127.0.0.1", "::1"],
        ["::1", "127.0.0.1", "127.0.0.2", "fd00::1"],
    ],
)
def test_s4_a_name_is_delivered_to_at_its_allowed_address_and_nowhere_else(
    database, receivers, addresses
):
    """As long as it answers, and when it does not any more."""
    receiver = receivers(answer(OK))
    forbidden = [
        receivers(answer(OK), address=address, port=receiver.port)
        for address in addresses
        if address not in {"127.0.0.1", "fd00::1"}
    ]
    endpoint_at(receiver.url(host="mixed.test"))
    with NameServer(lambda *_: addresses) as names:
        here = {"NAMESERVERS": names.address, "ALLOW_NETWORKS": "127.0.0.1/32"}
        with running_engine(**AS_BY_DEFAULT | here):
            publish()
            wait_until(all_done)
            receiver.__exit__()
            for _ in range(3):
                publish()
            wait_until(all_done)
    first, *others = attempt_rows()
    assert (first["failure"], first["address"]) == (None, f"127.0.0.1:{receiver.port}")
    assert {row["failure"] for row in others} <= {"connect", "reset"}
    assert [each.connections for each in forbidden] == [0] * len(forbidden)


def first_then(first: str, later: str) -> hostile.Zone:
    """The zone of a name that turns: one answer to the first question of a type, then another."""
    asked: set[tuple[str, int]] = set()

    def zone(name: str, query_type: int) -> hostile.Reply:
        is_first = (name, query_type) not in asked
        asked.add((name, query_type))
        return [first if is_first else later]

    return zone


@pytest.mark.parametrize("later", ["::1", "::ffff:127.0.0.1"])
def test_s5_a_name_that_turns_to_loopback_is_not_followed_by_the_next_try(database, canary, later):
    with NameServer(first_then(NOWHERE, later)) as names:
        endpoint_at(f"http://rebind.test:{canary.port}/")
        publish()
        turning = {"NAMESERVERS": names.address, "RETRY_SCHEDULE": "0,1.2s", "RETRY_JITTER": "0"}
        with running_engine(**AS_BY_DEFAULT | turning):
            wait_until(all_done)
    first, second = attempt_rows()
    assert first["failure"] in {"connect", "timeout"}
    assert second["failure"] == "blocked_address"
    # Each connection, made or not, goes with one answer to A and one to AAAA.
    assert names.asked["rebind.test"] <= 4


def test_s5_an_open_connection_is_not_used_any_more_once_its_name_has_turned(
    database, receivers, canary
):
    """127.0.0.2 stands for a public address here."""
    receiver = receivers(answer(OK), address="127.0.0.2", port=canary.port)
    with NameServer(first_then("127.0.0.2", "127.0.0.1")) as names:
        endpoint_at(receiver.url(host="rebind.test"))
        here = {"NAMESERVERS": names.address, "ALLOW_NETWORKS": "127.0.0.2/32"}
        with running_engine(**AS_BY_DEFAULT | here):
            while not count("attempts WHERE failure = 'blocked_address'"):
                publish()
                wait_until(all_done)
    assert attempt_rows()[0]["failure"] is None
    assert {row["failure"] for row in attempt_rows()} == {None, "blocked_address"}
    assert receiver.connections == 1


def test_s5_the_address_is_judged_once_more_when_the_socket_is_opened(database, canary):
    """Should everything before it be fooled, the connection itself is still refused."""
    fooled = Policy(allow_networks=(ip_network("127.0.0.0/8"),))
    endpoint_at(f"http://127.0.0.1:{canary.port}/")
    endpoint_at(f"http://fooled.test:{canary.port}/")
    publish()
    with NameServer(lambda *_: ["127.0.0.1"]) as names:
        parts = Parts(**AS_BY_DEFAULT | {"NAMESERVERS": names.address})
        parts.transport._resolver._policy = fooled
        parts.transport._destination = fooled.destination
        parts.transport.start()
        parts.engine.start()
        wait_until(all_done)
        parts.engine.drain()
        parts.transport.stop()
    assert [row["failure"] for row in attempt_rows()] == ["blocked_address"] * 2


# --- S6: redirects -----------------------------------------------------------------------------


def test_s6_no_redirect_of_any_kind_is_followed(database, receivers, canary):
    """Not even to where we might go: 127.0.0.1 is allowed here."""
    targets = [
        f"http://127.0.0.1:{canary.port}/",
        f"//127.0.0.1:{canary.port}/",
        f"https://127.0.0.1:{canary.port}/",
        f"http://[::1]:{canary.port}/",
        f"http://2130706433:{canary.port}/",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "/again",
    ]
    zipped = gzip.compress(b"moved" * 1000)
    seen: list[bytes] = []
    expected = {}
    for status in (300, 301, 302, 303, 304, 305, 307, 308, 333, 399, 200, 201, 401, 417, 426):
        for number, target in enumerate(targets):
            headers = [
                f"{name}: {value}".encode()
                for name, value in {
                    "Location": target,
                    "Refresh": f"0; url={target}",
                    "Content-Location": target,
                    "Link": f"<{target}>; rel=preload",
                    "Alt-Svc": f'http/1.1="127.0.0.1:{canary.port}"; ma=60',
                    "WWW-Authenticate": "Basic realm=here",
                    "Content-Encoding": "gzip",
                }.items()
            ]
            raw = response(b"%d Over There" % status, headers, b"" if status == 304 else zipped)
            url = receivers(answer(raw, seen=seen)).url(f"/{status}/{number}")
            expected[url] = status
    attempts = attempts_at(*expected, ALLOW_NETWORKS="127.0.0.1/32")
    for url, status in expected.items():
        attempt = attempts[url]
        redirected = {300 <= status < 400: "redirect", status in {200, 201}: None}
        assert attempt["failure"] == redirected.get(True, "http_4xx"), url
        assert attempt["status_code"] == status
        # What a redirect brings along is not inflated.
        assert attempt["response_body"].startswith("\x1f") or status == 304
    assert len(seen) == len(expected)


# --- S7, S8, S9, S10, S13: the text of a URL ---------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (" https://example.com/", "whitespace"),
        ("https://example.com/ ", "whitespace"),
        ("https://exam\tple.com/", "whitespace"),
        ("https://example.com/\r\nX: y", "whitespace"),
        ("https://example.com/\0", "whitespace"),
        ("https://example.com\0.evil.test/", "whitespace"),
        ("https://example.com/\u2028", "whitespace"),
        ("https://exam\u200bple.com/", "invisible"),
        ("https://exam\u00adple.com/", "invisible"),
        ("https://example.com/\u202egnp", "invisible"),
        ("https://example.com/\ud800", "invisible"),
        ("https://127.0.0.1:80\\@example.com/", "backslash"),
        ("https://example.com\\@127.0.0.1/", "backslash"),
        ("https://example.com/\\a", "backslash"),
        ("https:\\\\example.com/", "backslash"),
        ("https://example.com/#top", "fragment"),
        ("https://example.com#@127.0.0.1/", "fragment"),
        ("https://user:secret@example.com/", "user name or password"),
        ("https://a@b@c/", "user name or password"),
        ("https://@example.com/", "user name or password"),
        ("https://127.0.0.1;@example.com/", "user name or password"),
        ("https://example.com:80@127.0.0.1/", "user name or password"),
        ("https://example.com&@127.0.0.1/", "user name or password"),
        ("https://[fe80::1%eth0]/", "percent"),
        ("https://[::1%25lo]/", "percent"),
        ("https://[::1", "not a number from 1 to 65535"),
        ("https://[::1]x/", "not a number from 1 to 65535"),
        ("https://[::1]@example.com/", "user name or password"),
        ("https://exa;mple.com/", "is not a name"),
        ("https://127.0.0.1,example.com/", "is not a name"),
        ("https:///127.0.0.1/", "no host"),
        ("https://:443/", "no host"),
    ],
)
def test_s7_a_url_in_which_two_parsers_may_find_two_hosts_is_refused(url, reason):
    with pytest.raises(Refused, match=reason):
        DEFAULT.judge_url(url)


def test_s7_a_stored_url_in_which_two_hosts_may_be_found_is_not_called(database, canary):
    """Nor is any name in it asked for."""
    here = f"127.0.0.1:{canary.port}"
    with NameServer(lambda *_: ["127.0.0.1"]) as names:
        attempts = attempts_at(
            f"http://{here}\\@example.test/",
            f"http://example.test\\@{here}/",
            f"http://example.test@{here}/",
            f"http://{here}@example.test/",
            f"http://{here}#@example.test/",
            f"http://example.test#@{here}/",
            f"http://example.test\t@{here}/",
            f"http://{here}\r\n.example.test/",
            f"http://{here};example.test/",
            f"http://{here}&@example.test/",
            f"http:///{here}/",
            f"http:{here}/",
            f"//{here}/",
            f" http://{here}/",
            NAMESERVERS=names.address,
        )
        assert {row["failure"] for row in attempts.values()} == {"blocked_address"}
        assert not names.asked


PLANTED, ELSEWHERE = "127.9.9.9", "127.6.6.6"


def address_libcurl_opens(url: str, pins: list[str]) -> tuple[str, int]:
    """What libcurl would connect to."""
    opened = []
    curl = pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.RESOLVE, pins)

    def note(_purpose, address):
        opened.append(address[3])
        return pycurl.SOCKET_BAD

    curl.setopt(pycurl.OPENSOCKETFUNCTION, note)
    with pytest.raises(pycurl.error):
        curl.perform()
    curl.close()
    return opened[0][:2]


@unhurried
@given(
    st.one_of(
        st.from_regex(r"[a-zA-Z0-9_.@:\[\]~!$&'()*+,;=-]{1,20}", fullmatch=True),
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    ),
    st.sampled_from(["", "/", "/a@b", "?x=@c", "/:99//d"]),
)
@example("example.com", "/")
@example("Exa_mple.COM:8443", "?a")
@example("bücher.example.", "/")
@example("8.8.8.8:81", "/")
@example("[2606:4700::1111]:444", "/")
def test_s7_libcurl_finds_the_host_that_was_judged(authority, rest):
    try:
        destination = DEFAULT.destination(f"https://{authority}{rest}")
    except Refused:
        return
    host, port = destination.host, destination.port
    if destination.is_literal:
        assert address_libcurl_opens(destination.url, []) == (host, port)
    else:
        pins = [f"*:{port}:{ELSEWHERE}", f"{host}:{port}:{PLANTED}"]
        assert address_libcurl_opens(destination.url, pins) == (PLANTED, port)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "example.com", "a.localhost"])
def test_s8_a_percent_sign_in_a_host_is_refused(database, host, canary):
    encoded = [
        "".join(f"%{ord(each):02x}" for each in host),
        f"%{ord(host[0]):02X}{host[1:]}",
        host.replace(".", "%2e") if "." in host else f"{host}%2e",
        f"{host}%00",
        f"{host}%2f",
        f"%20{host}",
        f"%5b{host}%5d",
        f"%2525{host}",
    ]
    for each in encoded:
        with pytest.raises(Refused, match="percent"):
            DEFAULT.judge_url(f"https://{each}/")
    attempts = attempts_at(*(f"http://{each}:{canary.port}/" for each in encoded))
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}


# Letters that look like, or become, others: full-width, circled, ligatures, mathematical, long s.
LOOKALIKES = ["ｌｏｃａｌｈｏｓｔ", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "𝐥𝐨𝐜𝐚𝐥𝐡𝐨𝐬𝐭", "locaLhoſt", "localhoﬆ", "ⅼocalhost"]
DOTS = "。．｡"


@pytest.mark.parametrize("name", LOOKALIKES)
def test_s9_a_name_that_becomes_localhost_is_localhost(name):
    for host in (name, f"a.{name}", f"a。{name}", f"{name}."):
        assert not is_registrable(DEFAULT, f"https://{host}/"), host


@pytest.mark.parametrize("address", VICTIMS)
def test_s9_no_other_digits_or_dots_make_an_address(address):
    digits = [CIRCLED, FULL_WIDTH, *(str.maketrans("0123456789", row) for row in OTHER_DIGITS)]
    for table, dot in itertools.product(digits, "." + DOTS):
        host = address.translate(table).replace("．", ".").replace(".", dot)
        assert not is_registrable(DEFAULT, f"https://{host}/"), host


OTHER_DIGITS = ["𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", "𝟶𝟷𝟸𝟹𝟺𝟻𝟼𝟽𝟾𝟿", "₀₁₂₃₄₅₆₇₈₉", "⁰¹²³⁴⁵⁶⁷⁸⁹"]


@pytest.mark.parametrize(
    ("host", "a_label"),
    [
        ("аpple.test", "xn--pple-43d.test"),  # a Cyrillic a
        ("раураl.test", "xn--l-7sba6dbr.test"),
        ("exаmple。test", "xn--exmple-4nf.test"),
        ("ＥＸＡＭＰＬＥ．test", "example.test"),
        ("faß.test", "xn--fa-hia.test"),
        ("ﬁle.test", "file.test"),
        ("ⅷ.test", "viii.test"),
    ],
)
def test_s9_an_international_name_is_kept_as_its_one_a_label(host, a_label):
    """Which shows that a look-alike is another name; it is stored, asked for and called."""
    url = DEFAULT.judge_url(f"https://{host}/hook")
    assert url == f"https://{a_label}/hook"
    assert DEFAULT.judge_url(url) == url


@pytest.mark.parametrize(
    "host",
    [
        *("example.test／.evil.test", "a℀b.test", "℡.test／", "exa⁄mple.test", "a?b.test"),
        *("xn--a.test", "xn--.test", "xn--80ak6aa92e.test\u200d", "\u0301a.test", "a\u0338.test"),
        *(
            "example.test：80",
            "::1。test",
            "﹒test",
            "a‥b.test",
            "…test",
            "😀\ufe0f.test",
            "-ü.test",
        ),
    ],
)
def test_s9_what_is_no_international_name_reaches_nothing_else(host):
    """It is refused, or it is that very name: ASCII, the same once more, and never an address."""
    try:
        destination = DEFAULT.destination(f"https://{host}/")
    except Refused:
        return
    assert destination.url.isascii()
    assert not destination.is_literal
    assert DEFAULT.destination(destination.url) == destination
    assert set(destination.host) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


@pytest.mark.parametrize(
    ("port", "reason"),
    [
        ("", "not a number from 1 to 65535"),
        ("0", "not a number from 1 to 65535"),
        ("00", "not a number from 1 to 65535"),
        ("00443", "not a number from 1 to 65535"),
        ("65536", "not a number from 1 to 65535"),
        ("4294967739", "not a number from 1 to 65535"),
        ("-1", "not a number from 1 to 65535"),
        ("+443", "not a number from 1 to 65535"),
        ("0x1bb", "not a number from 1 to 65535"),
        ("４４３", "not a number from 1 to 65535"),
        (":０", "not a number from 1 to 65535"),
        ("443:443", "not a number from 1 to 65535"),
        *((str(port), f"port {port}") for port in (22, 25, 5432, 6379, 11211)),
    ],
)
def test_s10_a_port_that_is_none_or_never_called_is_refused(port, reason):
    with pytest.raises(Refused, match=reason):
        DEFAULT.judge_url(f"https://example.com:{port}/")
    assert not is_registrable(DEFAULT, f"https://[2606:4700::1111]:{port}/")
    assert load({}).deny_ports == DENY_PORTS == {22, 25, 5432, 6379, 11211}


def test_s10_a_denied_port_is_not_called_where_everything_else_may_be(database, canary):
    """Neither by address nor by name."""
    with NameServer(lambda *_: ["127.0.0.1"]) as names:
        attempts = attempts_at(
            f"http://127.0.0.1:{canary.port}/",
            f"http://[::1]:{canary.port}/",
            f"http://localhost:{canary.port}/",
            f"http://named.test:{canary.port}/",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:65536/",
            ALLOW_NETWORKS="127.0.0.0/8,::1/128",
            DENY_PORTS=str(canary.port),
            NAMESERVERS=names.address,
        )
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}


# --- S11: the environment ----------------------------------------------------------------------


def test_s11_nothing_of_the_environment_the_home_or_another_tenant_goes_along(
    database, receivers, canary, monkeypatch, tmp_path
):
    here = f"http://127.0.0.1:{canary.port}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        value = "localhost" if name == "no_proxy" else here
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.upper(), value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    login = "login tenant password secret\n"
    (tmp_path / ".netrc").write_text(
        f"machine 127.0.0.1 {login}machine a.test {login}default {login}"
    )
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / ".curlrc").write_text(f'proxy = "{here}"\nheader = "x-curlrc: yes"\n')
    seen: list[bytes] = []
    cookie = b"Set-Cookie: session=tenant-7; Path=/; Max-Age=600"
    receiver = receivers(answer(response(headers=[cookie]), seen=seen))
    for tenant_id in (7, 8):
        endpoint_at(receiver.url(f"/{tenant_id}"), tenant_id)
        endpoint_at(receiver.url(f"/{tenant_id}", host="a.test"), tenant_id)
    with NameServer(lambda *_: ["127.0.0.1"]) as names:
        allowed = {"ALLOW_NETWORKS": "127.0.0.1/32", "NAMESERVERS": names.address}
        with running_engine(**AS_BY_DEFAULT | allowed):
            for tenant_id in (7, 8, 7, 8):
                publish(tenant_id)
                wait_until(all_done)
    assert {row["failure"] for row in attempt_rows()} == {None}
    assert len(seen) == 8
    for request in seen:
        names_sent = set(parse_request(request)[1])
        assert names_sent == {
            *("host", "accept", "content-type", "content-length", "user-agent"),
            *("webhook-id", "webhook-timestamp", "webhook-signature", "webhook-attempt"),
        }


def test_s11_no_authority_of_the_environment_is_trusted(database, receivers, monkeypatch, tmp_path):
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    seen: list[bytes] = []
    context = serving(authority.issue_cert("127.0.0.1"))
    url = receivers(over_tls(context, answer(OK, seen=seen))).url(scheme="https")
    assert failures_of(attempts_at(url, ALLOW_NETWORKS="127.0.0.1/32")) == {url: "tls"}
    assert not seen


# --- S12: metadata services --------------------------------------------------------------------

METADATA = {
    "metadata.google.internal": "169.254.169.254",
    "metadata": "169.254.169.254",
    "instance-data": "169.254.169.254",
    "instance-data.ec2.internal": "fd00:ec2::254",
    "ecs.test": "169.254.170.2",
    "eks.test": "169.254.170.23",
    "eks6.test": "fd00:ec2::23",
    "alibaba.test": "100.100.100.200",
    "oracle.test": "192.0.0.192",
    "wireserver.test": "168.63.129.16",
    "gce6.test": "fd20:ce::254",
    "openstack.test": "fe80::a9fe:a9fe",
    "nip-io.test": "::ffff:169.254.169.254",
    "kubernetes.default.svc": "10.96.0.1",
    "docker.test": "172.17.0.1",
    "rancher.test": "169.254.169.250",
}


def test_s12_no_metadata_service_is_reached_by_address_or_by_name(database):
    literals = {f"[{a}]" if ":" in a else a for a in METADATA.values()}
    for host in literals:
        assert not is_registrable(ANY_HTTP, f"http://{host}/latest/meta-data/"), host
    with NameServer(lambda name, _: [METADATA[name]]) as names:
        attempts = attempts_at(
            *(f"http://{host}/latest/meta-data/" for host in literals),
            *(f"http://{name}/computeMetadata/v1/" for name in METADATA),
            NAMESERVERS=names.address,
        )
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}


NO_WEB_ADDRESSES = [
    *("file:///etc/passwd", "gopher://{}/_GET", "dict://{}/d", "ftp://{}/", "tftp://{}/x"),
    *("jar:http://{}!/", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "unix:/run/docker.sock"),
    *("ws://{}/", "wss://{}/", "ldap://{}/", "telnet://{}/", "smtp://{}/", "imap://{}/"),
    *("scp://{}/x", "rtsp://{}/", "mqtt://{}/t", "smb://{}/s", "data:text/plain,x"),
    *("javascript:alert(1)", "about:blank", "blob:http://{}/", "view-source:http://{}/"),
    *("//{}/", "http:{}", "http:/{}/", "httpx://{}/", "https+http://{}/", "{}/", "://{}/"),
    *("http ://{}/", "ｈttp://{}/", "ht\ttp://{}/", "\thttp://{}/", "url:http://{}/", ""),
]


def test_s13_only_http_and_https_are_called(database, canary):
    urls = [url.format(f"127.0.0.1:{canary.port}") for url in NO_WEB_ADDRESSES]
    open_policy = Policy(allow_networks=(ip_network("127.0.0.0/8"),), allow_http=True)
    assert not [url for url in urls if is_registrable(open_policy, url)]
    attempts = attempts_at(*urls, ALLOW_NETWORKS="127.0.0.0/8,::1/128")
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}


def test_s13_upper_case_is_made_lower_and_http_is_refused_unless_allowed(database):
    assert DEFAULT.judge_url("HTTPS://EXAMPLE.com/") == "https://example.com/"
    assert ANY_HTTP.judge_url("HTTP://EXAMPLE.com/") == "http://example.com/"
    for host in ("example.com", "1.1.1.1", "[2606:4700::1111]"):
        with pytest.raises(Refused, match="plain http"):
            DEFAULT.judge_url(f"http://{host}/")
    url = "http://2d00--1.test/"
    with NameServer(lambda *_: [NOWHERE]) as names:
        attempts = attempts_at(url, ALLOW_HTTP="false", NAMESERVERS=names.address)
    assert failures_of(attempts) == {url: "blocked_address"}


# --- S14, S15: resolving -----------------------------------------------------------------------


def test_s14_no_search_domain_is_tried(database, canary, monkeypatch):
    monkeypatch.setenv("LOCALDOMAIN", "internal.test")
    monkeypatch.setenv("RES_OPTIONS", "ndots:5")

    def zone(name: str, _query_type: int) -> hostile.Reply:
        return ["127.0.0.1"] if name.endswith("internal.test") else NXDOMAIN

    with NameServer(zone) as names:
        attempts = attempts_at(
            *(f"http://{host}:{canary.port}/" for host in ("db", "db.svc", "db.", "a.b.c.d")),
            ALLOW_NETWORKS="127.0.0.0/8",
            NAMESERVERS=names.address,
        )
    assert {row["failure"] for row in attempts.values()} == {"dns"}
    assert set(names.asked) == {"db", "db.svc", "a.b.c.d"}


def test_s14_local_names_lead_nowhere(database, canary):
    """localhost is loopback whoever says otherwise; what a name server says of others is judged."""
    local = ("localhost", "localhost.", "a.localhost", "LOCALHOST", "db", "printer.local")
    others = ("db.internal", "db.svc.cluster.local", "router.home.arpa", "router.lan", "db.")
    with NameServer(lambda *_: ["10.0.0.1", "fd00::1", "127.0.0.1"]) as names:
        attempts = attempts_at(
            *(f"http://{host}:{canary.port}/" for host in local + others),
            NAMESERVERS=names.address,
        )
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}
    assert not any("localhost" in name for name in names.asked)


HEALTHY, BAD = 7, 8  # the tenants


def test_s15_ten_endpoints_on_a_silent_name_server_slow_nobody(database: str, tmp_path) -> None:
    """Nor do they slow a healthy endpoint whose name the same server knows."""

    def zone(name: str, query_type: int) -> hostile.Reply:
        if name.endswith(".silent.test"):
            return Silence
        return ["127.0.0.1"] if query_type == hostile.A else []

    with NameServer(zone) as names, RecordingReceiver(tmp_path / "seen") as receiver:
        with Dispatchers(database, NAMESERVERS=names.address, TIMEOUT_SECONDS="3"):
            for number in range(10):
                add_endpoint(BAD, receiver.url(host=f"{number}.silent.test"))
            add_endpoint(HEALTHY, receiver.url("/by-address"))
            add_endpoint(HEALTHY, receiver.url("/by-name", host="loud.test"))
            for _ in range(30):
                publish(BAD)
            wait_until(lambda: len(names.asked) == 10)
            started_at = time.monotonic()
            for _ in range(30):
                publish(HEALTHY)
            wait_until(lambda: len(receiver.seen) == 60)
            assert time.monotonic() - started_at < 2
            # The silent ones are tried and fail within the deadline.
            wait_until(lambda: count("attempts WHERE failure = 'dns'") >= 20, 10)
    silent = attempt_rows(f"tenant_id = {BAD}")
    assert {row["failure"] for row in silent} == {"dns"}
    assert max(row["total_us"] for row in silent) < 4_000_000


# --- S16: ourselves ----------------------------------------------------------------------------


def test_s16_what_our_own_processes_listen_on_is_not_called(database, canary):
    with NameServer(lambda *_: ["127.0.0.1"]) as names:
        attempts = attempts_at(
            f"http://127.0.0.1:{canary.port}/api/webhooks",
            f"http://127.3.2.1:{canary.port}/",
            f"http://[::1]:{canary.port}/",
            f"http://localhost:{canary.port}/",
            f"http://ours.test:{canary.port}/",
            BIND=f"127.0.0.1:{canary.port}",
            ALLOW_NETWORKS="127.0.0.0/8,::1/128",
            NAMESERVERS=names.address,
        )
    assert {row["failure"] for row in attempts.values()} == {"blocked_address"}


def test_s16_a_delivery_that_comes_back_to_our_api_by_another_way_ends_there(app, client):
    """Through a proxy in front of it, say: a delivery has no token, so nothing follows from it."""
    headers = {
        "content-type": "application/json",
        "webhook-id": "evt_1",
        "webhook-timestamp": "1795303283",
        "webhook-signature": "v1,AAAA",
        "webhook-attempt": "1",
    }
    body = json.dumps({"id": "evt_1", "type": "export.done", "data": {}})
    posts = [rule.rule for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())]
    assert len(posts) > 5
    for path in posts:
        answered = client.post(path.replace("<", "").replace(">", ""), data=body, headers=headers)
        assert 400 <= answered.status_code < 500, path
    assert not count("events")


# --- S17: what a tenant learns -----------------------------------------------------------------


def test_s17_a_tenant_learns_a_word_and_neither_an_address_nor_a_banner(owner, receivers):
    """Nor how long somebody else took: what is blocked is not waited for."""
    banner = b"SSH-2.0-OpenSSH_9.2p1 internal-host-17\r\n"
    speaking = receivers(hostile.answer_and_close(banner))
    silent = receivers(hostile.hang)
    with Receiver(answer(OK)) as gone:
        nobody = gone.url()
    zone = {"inside.test": ["10.11.12.13"], "both.test": ["10.11.12.13", "fd00:aa::bb"]}
    expected = {
        "http://10.11.12.13/": "blocked_address",
        "http://inside.test/": "blocked_address",
        "http://both.test/": "blocked_address",
        "http://nowhere.test/": "dns",
        nobody: "connect",
        speaking.url(): "bad_response",
        silent.url(): "timeout",
    }
    with NameServer(lambda name, _: zone.get(name, NXDOMAIN)) as names:
        attempts = attempts_at(
            *expected,
            ALLOW_NETWORKS="127.0.0.1/32",
            NAMESERVERS=names.address,
            TIMEOUT_SECONDS="1",
        )
    assert failures_of(attempts) == expected
    for task in task_rows():
        shown = owner.get(f"/tasks/task_{task['id']}")
        assert shown.status_code == 200
        (attempt,) = shown.json["attempts"]
        if attempt["failure"] == "blocked_address":
            assert (attempt["address"], attempt["response_body"]) == (None, None)
            assert attempt["timings_ms"]["total"] < 500
            assert attempt["timings_ms"]["connect"] is None
        for secret in ("10.11.12", "fd00:aa", "OpenSSH", "internal-host", "Errno", "loopback"):
            assert secret not in shown.text.replace("http://10.11.12.13/", "")


# --- S18, S19: consent -------------------------------------------------------------------------


def asked_for_consent(*urls: str, **otherwise: str) -> dict[str, dict[str, Any]]:
    """The endpoints after one challenge to each URL."""
    endpoints = {}
    for url in urls:
        endpoint = endpoint_at(url)
        db.execute_sql(
            "UPDATE hookjetty.endpoints SET status = 'pending', handshake_at = now() WHERE id = %s",
            (endpoint,),
        )
        endpoints[endpoint] = url
    with running_parts(**AS_BY_DEFAULT | otherwise) as parts:
        job = Handshakes(parts.settings, parts.vault, parts.engine, threading.Event().set)
        wait_until(
            lambda: (
                job.step()
                or not count("endpoints WHERE status = 'pending' AND handshake_failure IS NULL")
            )
        )
    found = rows(db.execute_sql("SELECT * FROM hookjetty.endpoints"))
    return {endpoints[row["id"]]: row for row in found}


def test_s18_a_challenge_goes_only_where_a_delivery_may_go(database, canary):
    with NameServer(lambda *_: ["127.0.0.1"]) as names:
        asked = asked_for_consent(
            f"http://127.0.0.1:{canary.port}/",
            f"http://[::1]:{canary.port}/",
            f"http://localhost:{canary.port}/",
            f"http://inside.test:{canary.port}/",
            f"http://2130706433:{canary.port}/",
            f"http://user@127.0.0.1:{canary.port}/",
            NAMESERVERS=names.address,
        )
    assert {row["handshake_failure"] for row in asked.values()} == {"blocked_address"}
    assert {row["status"] for row in asked.values()} == {"pending"}


def echo(connection) -> None:
    """Send back whatever comes, as debugging services do."""
    while request := hostile.read_request(connection):
        connection.sendall(response(body=request.partition(b"\r\n\r\n")[2]))


def test_s18_what_the_receiver_answers_to_a_challenge_is_shown_to_nobody(owner, receivers):
    """It would make us the tenant's reader. A server that echoes has not consented, either."""
    secret = b"AKIA-internal-credentials"
    readable = [
        receivers(answer(response(b"%d What" % status, [b"X-Inside: " + secret], secret))).url()
        for status in (200, 302, 404, 500)
    ]
    echoing = receivers(echo).url()
    asked = asked_for_consent(echoing, *readable, ALLOW_NETWORKS="127.0.0.1/32")
    failures = [asked[url]["handshake_failure"] for url in (echoing, *readable)]
    assert failures == ["wrong_answer", "wrong_answer", "redirect", "http_4xx", "http_5xx"]
    shown = [owner.get("/endpoints")]
    shown += [owner.get(f"/endpoints/ep_{row['id']}") for row in asked.values()]
    for each in shown:
        assert secret.decode() not in each.text
    assert secret.decode() not in str(asked)
    assert not count("attempts")


def test_s19_a_changed_url_is_called_only_after_its_receiver_has_consented(owner, canary):
    """Whoever took over a name that we were sent to before has not."""
    endpoint = endpoint_at("https://old.test/")
    db.execute_sql("UPDATE hookjetty.endpoints SET verified_at = now() WHERE id = %s", (endpoint,))
    publish()
    change = {"endpoint_id": f"ep_{endpoint}", "url": f"https://new.test:{canary.port}/"}
    assert owner.post("/endpoints", change).json["status"] == "pending"
    (row,) = rows(db.execute_sql("SELECT * FROM hookjetty.endpoints"))
    assert row["handshake_at"] is not None
    assert row["verified_at"] is None
    with NameServer(lambda *_: ["127.0.0.1"]) as names:
        here = {"NAMESERVERS": names.address, "ALLOW_NETWORKS": "127.0.0.0/8"}
        with running_engine(**AS_BY_DEFAULT | here) as engine:
            publish()
            wait_until(lambda: engine.parked)
    assert not count("attempts")
    assert {row["status"] for row in task_rows()} <= {"pending", "waiting"}


# --- S20: connections that were verified for somebody else -------------------------------------


def test_s20_a_connection_is_used_for_the_name_that_it_was_verified_for_only(receivers, tmp_path):
    """At the same address and port, and after as many tries as you like."""
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    seen: list[bytes] = []
    context = serving(authority.issue_cert("one.test"))
    receiver = receivers(over_tls(context, answer(OK, seen=seen)))
    with NameServer(lambda *_: ["127.0.0.1"], ttl=60) as names:
        with wired(nameservers=[names.address], ca_bundle=bundle) as wire:
            one, two = (receiver.url(scheme="https", host=f"{n}.test") for n in ("one", "two"))
            failures = [wire.send_one(url).failure for url in (one, two, one, two, two)]
        # What another transport trusts is not trusted by this one.
        with wired(nameservers=[names.address]) as wire:
            failures += [wire.send_one(one).failure for _ in range(2)]
    assert failures == [None, "tls", None, "tls", "tls", "tls", "tls"]
    assert len(seen) == 2


def test_s20_nothing_turns_verification_off(database):
    """No setting does, and no column of an endpoint."""
    assert not [name for name in load({}).__dataclass_fields__ if "verif" in name or "tls" in name]
    columns = db.execute_sql(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = 'hookjetty' AND table_name = 'endpoints'"
    )
    assert not [name for (name,) in columns if "tls" in name or "verify" in name]
