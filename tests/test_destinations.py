"""Which URLs may be registered, and which addresses may be connected to."""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pycurl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.destinations import (
    _SPECIAL_IPV4,
    MAX_URL_CHARACTERS,
    Policy,
    Refused,
    is_numeric,
)

POLICY = Policy()
# The machine may be busy with other tests.
unhurried = settings(deadline=None)

HERE = Policy(allow_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")))


# --- Canonical forms ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "canonical"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://EXAMPLE.com:443/Path", "https://example.com/Path"),
        ("https://example.com:8443", "https://example.com:8443/"),
        ("https://example.com?x=1", "https://example.com/?x=1"),
        ("https://example.com./hook", "https://example.com/hook"),
        ("https://bücher.example/ü?q=ß", "https://xn--bcher-kva.example/%C3%BC?q=%C3%9F"),
        ("https://faß.example/", "https://xn--fa-hia.example/"),
        ("https://example.com/a/../b/./c", "https://example.com/a/../b/./c"),
        ("https://example.com/a[]?b={c}|d@e:f", "https://example.com/a[]?b={c}|d@e:f"),
        ("https://my_service/hook", "https://my_service/hook"),
        ("https://1.1.1.1:443/", "https://1.1.1.1/"),
        ("https://[2606:4700:0:0::1111]:8443/", "https://[2606:4700::1111]:8443/"),
        # Mapped into IPv6 it is the same destination.
        ("https://[::ffff:1.1.1.1]/", "https://1.1.1.1/"),
        ("https://1e100.net/", "https://1e100.net/"),
        ("https://xn--ls8h.la/", "https://xn--ls8h.la/"),
    ],
)
def test_a_url_has_one_canonical_form(given_url, canonical):
    assert POLICY.judge_url(given_url) == canonical
    assert POLICY.judge_url(canonical) == canonical


@unhurried
@given(
    host=st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{1,9}){0,3}", fullmatch=True),
    port=st.integers(1, 65535),
    path=st.text(
        st.characters(categories=("L", "N", "P", "S"), exclude_characters="\\#"), max_size=40
    ),
)
def test_canonicalizing_twice_changes_nothing(host, port, path):
    policy = Policy(deny_ports=frozenset(), allow_networks=HERE.allow_networks)
    once = policy.judge_url(f"https://{host}:{port}/{path}")
    assert policy.judge_url(once) == once
    assert once.isascii()


# --- Refused when registering ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "empty"),
        ("example.com", "must start with https://"),
        ("//example.com/", "must start with https://"),
        ("https:example.com", "must start with https://"),
        ("https:/example.com", "must start with https://"),
        ("ftp://example.com/", "must start with https://"),
        ("file:///etc/passwd", "must start with https://"),
        ("gopher://example.com/", "must start with https://"),
        ("http+unix://%2Fvar%2Frun%2Fdocker.sock/", "must start with https://"),
        ("javascript:alert(1)", "must start with https://"),
        (" https://example.com/", "whitespace"),
        ("https://example.com/ ", "whitespace"),
        ("https://exam\tple.com/", "whitespace"),
        ("https://example.com/\r\nX: y", "whitespace"),
        ("https://example.com/\0", "whitespace"),
        ("https://example.com/\u2028", "whitespace"),
        ("https://exam\u200bple.com/", "invisible"),
        ("https://exam\u00adple.com/", "invisible"),
        ("https://example.com/\u202egnp", "invisible"),
        ("https://example.com/\ud800", "invisible"),
        ("https://127.0.0.1:80\\@example.com/", "backslash"),
        ("https://example.com/\\a", "backslash"),
        ("https://example.com/#top", "fragment"),
        ("https://example.com#@127.0.0.1/", "fragment"),
        ("https://user:secret@example.com/", "user name or password"),
        ("https://a@b@c/", "user name or password"),
        ("https://@example.com/", "user name or password"),
        ("https:///path", "no host"),
        ("https://:443/", "no host"),
        ("https://%6c%6f%63alhost/", "percent"),
        ("https://[fe80::1%25eth0]/", "percent"),
        ("https://[fe80::1%eth0]/", "percent"),
        ("https://[::1", "not a number from 1 to 65535"),
        ("https://[::1]x/", "not a number from 1 to 65535"),
        ("https://[1.2.3.4]/", "not an IPv6 address"),
        ("https://[]/", "not an IPv6 address"),
        ("https://[v1.a]/", "not an IPv6 address"),
        ("https://example.com:/", "not a number from 1 to 65535"),
        ("https://example.com:0/", "not a number from 1 to 65535"),
        ("https://example.com:00443/", "not a number from 1 to 65535"),
        ("https://example.com:65536/", "not a number from 1 to 65535"),
        ("https://example.com:-1/", "not a number from 1 to 65535"),
        ("https://example.com:８０/", "not a number from 1 to 65535"),
        ("https://example.com：80/", "not a valid international name"),
        ("https://example.com:22/", "port 22"),
        ("https://example.com:25/", "port 25"),
        ("https://example.com:5432/", "port 5432"),
        ("https://example.com:6379/", "port 6379"),
        ("https://example.com:11211/", "port 11211"),
        ("https://" + "a" * 64 + ".example/", "label of 64"),
        ("https://" + "a." * 127 + "example/", "at most 253"),
        ("https://a..example/", "is not a name"),
        ("https://.example/", "is not a name"),
        ("https://./", "is not a name"),
        ("https://-a.example/", "is not a name"),
        ("https://a-.example/", "is not a name"),
        ("https://exa;mple.com/", "is not a name"),
        ("https://exa<mple.com/", "is not a name"),
        ("https://a℀b.example/", "not a valid international name"),
        ("https://example.com／evil/", "not a valid international name"),
        ("https://example.com/" + "a" * 3000, "3020 characters"),
        ("https://example.com/" + "ü" * 1000, "once percent-encoded"),
    ],
)
def test_a_url_that_is_not_plainly_one_host_is_refused_with_the_reason(url, reason):
    with pytest.raises(Refused, match=reason):
        POLICY.judge_url(url)


def test_a_url_may_have_2048_characters_and_no_more():
    longest = "https://example.com/".ljust(MAX_URL_CHARACTERS, "a")
    assert POLICY.judge_url(longest) == longest
    with pytest.raises(Refused, match="2049 characters"):
        POLICY.judge_url(longest + "a")


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
def test_a_number_in_disguise_is_no_host(host):
    with pytest.raises(Refused, match="number in disguise"):
        Policy(allow_networks=(ip_network("0.0.0.0/0"),)).judge_url(f"https://{host}/")


@unhurried
@given(st.text(st.sampled_from("0123456789abcdefxX."), min_size=1, max_size=14))
@example("0x7f.1")
def test_whatever_libc_takes_for_an_address_we_take_for_a_number(host):
    try:
        socket.inet_aton(host)
    except OSError:
        return
    assert is_numeric(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "0.0.0.0",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[64:ff9b::7f00:1]",
        "localhost",
        "LocalHost.",
        "api.localhost",
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    ],
)
def test_a_literal_private_address_is_refused_when_registered(host):
    with pytest.raises(Refused, match="use a public address"):
        POLICY.judge_url(f"https://{host}/hook")


def test_a_name_is_not_asked_for_when_registered(monkeypatch):
    def no_lookup(*_):
        raise AssertionError("a name was resolved")

    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)
    monkeypatch.setattr(socket, "gethostbyname", no_lookup)
    assert POLICY.judge_url("https://metadata.google.internal/") is not None
    assert POLICY.judge_url("https://db/") == "https://db/"


# --- Plain http --------------------------------------------------------------------------------


def test_plain_http_is_refused_by_default():
    for host in ("example.com", "1.1.1.1"):
        with pytest.raises(Refused, match="plain http"):
            POLICY.judge_url(f"http://{host}/")


def test_plain_http_is_accepted_everywhere_with_allow_http():
    policy = Policy(allow_http=True)
    assert policy.judge_url("http://example.com:80/") == "http://example.com/"
    policy.judge_address("1.1.1.1", 80, "http")
    with pytest.raises(Refused, match="private"):
        policy.judge_url("http://10.0.0.1/")


def test_plain_http_goes_to_allowed_networks_only():
    assert HERE.judge_url("http://127.0.0.1:8000/") == "http://127.0.0.1:8000/"
    assert HERE.judge_url("http://localhost:8000/") == "http://localhost:8000/"
    assert HERE.judge_url("http://receiver.test/") == "http://receiver.test/"
    HERE.judge_address("::1", 80, "http")
    with pytest.raises(Refused, match="plain http"):
        HERE.judge_url("http://1.1.1.1/")
    with pytest.raises(Refused, match="plain http"):
        HERE.judge_address("1.1.1.1", 80, "http")


# --- Addresses ---------------------------------------------------------------------------------

# Where we are stricter than one of the projects whose tests the corpus collects.
STRICTER = {
    "64:ff9b::101:101": "NAT64 is refused whole, as two of three projects do",
    "64:ff9b::5db8:d822": "likewise",
    "64:ff9b:1:808:8:800::": "a local NAT64, of which we cannot know where it puts the address",
    "64:ff9c::1": "unassigned; nothing outside 2000::/3 is public",
    "100:0:0:1::1": "a dummy prefix since RFC 9780",
    "2001:2f::1": "ORCHIDv2 are no locations on the network; another project refuses 2001:2f:ffff…",
}


def test_the_verdicts_of_other_projects_are_ours():
    folder = os.environ.get("HOOKJETTY_CORPORA")
    if not folder:
        pytest.skip("HOOKJETTY_CORPORA is not set: no ip_verdicts.tsv to compare with")
    verdicts = {}
    for line in (Path(folder) / "ip_verdicts.tsv").read_text().splitlines():
        if not line.startswith("#"):
            address, consensus = line.split("\t")[:2]
            verdicts[address] = consensus
    ours = {a: "allow" if is_accepted(POLICY, a) else "deny" for a in verdicts}
    different = {a for a, v in verdicts.items() if v in {"allow", "deny"} and ours[a] != v}
    assert list(verdicts.values()).count("deny") >= 178
    assert different == set(STRICTER)
    assert all(ours[a] == "deny" for a in STRICTER)


def is_accepted(policy, address, port=443):
    try:
        policy.judge_address(address, port, "https")
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    ("last_outside", "first", "last", "first_outside"),
    [
        ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
        ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"),
        ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
        ("168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"),
        ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"),
        ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"),
        ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"),
        ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"),
        ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"),
        ("2001:db7:ffff::", "2001:db8::", "2001:db8:ffff::", "2001:db9::"),
        ("2001:ffff::", "2002::", "2002:ffff::", "2003::"),
    ],
)
def test_a_special_network_ends_where_it_ends(last_outside, first, last, first_outside):
    assert [is_accepted(POLICY, a) for a in (last_outside, first, last, first_outside)] == [
        True,
        False,
        False,
        True,
    ]


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
@given(DENIED_IPV4, st.integers(0, 2**48 - 1))
@example(IPv4Address("127.0.0.1"), 0)
@example(IPv4Address("0.0.0.0"), 0)
def test_an_ipv4_address_that_is_denied_is_denied_inside_ipv6_too(ipv4, prefix):
    for bits in embeddings(ipv4, prefix):
        assert not is_accepted(POLICY, str(IPv6Address(bits))), IPv6Address(bits)


@unhurried
@given(DENIED_IPV4)
def test_allowing_nat64_opens_no_private_ipv4_network(ipv4):
    behind_nat64 = Policy(allow_networks=(ip_network("64:ff9b::/96"),))
    assert is_accepted(behind_nat64, "64:ff9b::1.1.1.1")
    assert not is_accepted(behind_nat64, f"64:ff9b::{ipv4}")


@unhurried
@given(ANY_IPV4)
def test_a_mapped_address_is_judged_as_what_it_is(ipv4):
    assert is_accepted(HERE, f"::ffff:{ipv4}") == is_accepted(HERE, str(ipv4))


@unhurried
@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_no_ipv6_address_outside_global_unicast_is_allowed(ip):
    if ip not in ip_network("2000::/3") and ip.ipv4_mapped is None:
        assert not is_accepted(POLICY, str(ip))


def test_allowed_networks_open_what_is_refused_and_nothing_else():
    assert not is_accepted(POLICY, "127.0.0.1")
    assert is_accepted(HERE, "127.0.0.1") and is_accepted(HERE, "::1")
    assert not is_accepted(HERE, "10.0.0.1") and not is_accepted(HERE, "fd00::1")


def test_a_denied_port_is_denied_at_allowed_networks_too():
    with pytest.raises(Refused, match="port 6379"):
        HERE.judge_address("127.0.0.1", 6379, "https")


def test_our_own_listeners_are_refused_on_this_machines_addresses_only():
    policy = Policy(
        allow_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("10.0.0.0/8")),
        own_listeners=frozenset({8080}),
    )
    for own in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"):
        with pytest.raises(Refused, match="our own"):
            policy.judge_address(own, 8080, "http")
        policy.judge_address(own, 8081, "http")
    policy.judge_address("1.1.1.1", 8080, "https")


def test_the_settings_make_the_policy():
    class Settings:
        allow_networks = HERE.allow_networks
        allow_http = True
        deny_ports = frozenset({7})
        bind_port = 8080

    assert Policy.from_settings(Settings()) == Policy(
        HERE.allow_networks, True, frozenset({7}), frozenset({8080})
    )
    assert Policy().allow_networks == ()


# --- libcurl sees the same host ----------------------------------------------------------------

PLANTED, ELSEWHERE = "127.9.9.9", "127.6.6.6"


def address_libcurl_opens(url, pins):
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
def test_libcurl_finds_the_host_that_was_judged(authority, rest):
    try:
        destination = POLICY.destination(f"https://{authority}{rest}")
    except Refused:
        return
    host, port = destination.host, destination.port
    if destination.is_literal:
        assert address_libcurl_opens(destination.url, []) == (host, port)
    else:
        pins = [f"*:{port}:{ELSEWHERE}", f"{host}:{port}:{PLANTED}"]
        assert address_libcurl_opens(destination.url, pins) == (PLANTED, port)
