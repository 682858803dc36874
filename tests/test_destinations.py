"""Which URLs may be registered, and which addresses may be connected to."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.destinations import (
    _SPECIAL_IPV4,
    _SPECIAL_IPV6,
    MAX_URL_CHARACTERS,
    Policy,
    Refused,
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
        ("https:///path", "no host"),
        ("https://[1.2.3.4]/", "not an IPv6 address"),
        ("https://[]/", "not an IPv6 address"),
        ("https://[v1.a]/", "not an IPv6 address"),
        ("https://example.com：80/", "not a valid international name"),
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


ANY_IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address)


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


def test_the_security_page_lists_the_networks_that_are_refused():
    page = (Path(__file__).parent.parent / "docs/security.md").read_text()
    table = page.split("### Networks\n")[1].split("\n* ")[0]
    listed = re.findall(r"`([0-9a-f.:]+/[0-9]+)`", table)
    assert sorted(listed) == sorted(str(each) for each, _ in _SPECIAL_IPV4 + _SPECIAL_IPV6)
