"""Names to vetted addresses, asked of real name servers on loopback."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from ipaddress import ip_network

import pytest

from app.destinations import Policy
from dispatcher import resolve
from dispatcher.resolve import Answer, Resolver
from tests.hostile import AAAA, NXDOMAIN, SERVFAIL, A, NameServer, Silence

PUBLIC = Policy()
HERE = Policy(allow_networks=(ip_network("127.0.0.0/8"), ip_network("::1/128")))


@pytest.fixture
def no_hosts(tmp_path):
    return tmp_path / "hosts"


@contextmanager
def resolving(zone, hosts, *, policy=PUBLIC, ttl=0, delay=0.0, **options):
    """A name server with this zone, and a resolver that asks it."""
    with NameServer(zone, ttl=ttl, delay=delay) as server:
        resolver = Resolver(policy, [server.address], hosts_path=hosts, **options)
        resolver.start()
        try:
            yield server, resolver
        finally:
            resolver.stop()


def ask(resolver, *hosts, port=443, scheme="https", timeout=5.0):
    """The answers to several names asked for at once, and how long each took."""
    answers: dict[str, tuple[Answer, float]] = {}
    all_there = threading.Event()
    started = time.monotonic()

    def note(host):
        def on_answer(answer):
            answers[host] = (answer, time.monotonic() - started)
            if len(answers) == len(hosts):
                all_there.set()

        return on_answer

    for host in hosts:
        resolver.lookup(host, port, scheme, note(host), timeout)
    assert all_there.wait(10), f"unanswered: {set(hosts) - set(answers)}"
    return [answers[host] for host in hosts]


def ask_one(resolver, host, **options):
    return ask(resolver, host, **options)[0][0]


# --- What a name leads to ----------------------------------------------------------------------


def test_all_allowed_addresses_are_handed_out_ipv4_before_ipv6(no_hosts):
    def zone(_name, _kind):
        return ["2606:4700::1111", "104.16.132.229", "2606::1", "1.0.0.1"]

    with resolving(zone, no_hosts) as (_, resolver):
        assert ask_one(resolver, "a.test").addresses == (
            "104.16.132.229",
            "1.0.0.1",
            "2606:4700::1111",
            "2606::1",
        )


@pytest.mark.parametrize(
    "addresses",
    [
        ["1.1.1.1", "127.0.0.1"],
        ["127.0.0.1", "1.1.1.1"],
        ["::1", "1.1.1.1", "fd00::1", "169.254.169.254"],
    ],
)
def test_an_allowed_address_is_used_and_a_forbidden_one_beside_it_never(no_hosts, addresses):
    with resolving(lambda *_: addresses, no_hosts) as (_, resolver):
        assert ask_one(resolver, "mixed.test") == Answer(("1.1.1.1",))


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::1"], ["10.0.0.1", "::ffff:10.0.0.1"]])
def test_a_name_without_any_allowed_address_is_blocked(no_hosts, addresses):
    with resolving(lambda *_: addresses, no_hosts) as (_, resolver):
        answer = ask_one(resolver, "internal.test")
        assert answer.failure == "blocked_address" and answer.addresses == ()


def test_the_same_name_is_judged_for_each_port_and_scheme(no_hosts):
    with resolving(lambda *_: ["1.1.1.1", "127.0.0.1"], no_hosts, policy=HERE) as (_, resolver):
        assert ask_one(resolver, "a.test").addresses == ("1.1.1.1", "127.0.0.1")
        assert ask_one(resolver, "a.test", port=80, scheme="http").addresses == ("127.0.0.1",)
        assert ask_one(resolver, "a.test", port=6379).failure == "blocked_address"


def test_a_name_with_one_family_only_is_found(no_hosts):
    def zone(name, _kind):
        return ["1.1.1.1"] if name == "four.test" else ["2606:4700::1111"]

    with resolving(zone, no_hosts) as (_, resolver):
        four, six = ask(resolver, "four.test", "six.test")
        assert (four[0].addresses, six[0].addresses) == (("1.1.1.1",), ("2606:4700::1111",))


def test_a_family_that_is_never_answered_holds_the_other_up_by_a_quarter_of_a_second(no_hosts):
    with resolving(lambda _, kind: ["1.1.1.1"] if kind == A else Silence, no_hosts) as (_, r):
        [(answer, seconds)] = ask(r, "half.test")
        assert answer.addresses == ("1.1.1.1",)
        assert 0.2 < seconds < 1.5


@pytest.mark.parametrize("reply", [NXDOMAIN, SERVFAIL, []])
def test_a_name_without_addresses_is_a_dns_failure_at_once(no_hosts, reply):
    with resolving(lambda *_: reply, no_hosts) as (_, resolver):
        [(answer, seconds)] = ask(resolver, "nowhere.test")
        assert answer.failure == "dns" and answer.detail
        assert seconds < 2


def test_a_name_that_does_not_exist_has_no_other_family_to_wait_for(no_hosts):
    with resolving(lambda _, kind: NXDOMAIN if kind == A else Silence, no_hosts) as (_, resolver):
        [(answer, seconds)] = ask(resolver, "nowhere.test")
        assert answer.failure == "dns" and seconds < 1


def test_a_question_that_was_lost_is_asked_again(no_hosts):
    lost = set()

    def zone(_name, kind):
        if kind not in lost:
            lost.add(kind)
            return Silence
        return ["1.1.1.1"]

    with resolving(zone, no_hosts) as (_, resolver):
        [(answer, seconds)] = ask(resolver, "lossy.test")
        assert answer.addresses == ("1.1.1.1",) and seconds < 4.5


def test_one_family_failing_does_not_spoil_the_other(no_hosts):
    with resolving(lambda _, kind: ["2606:4700::1111"] if kind == AAAA else SERVFAIL, no_hosts) as (
        _,
        resolver,
    ):
        assert ask_one(resolver, "half.test").addresses == ("2606:4700::1111",)


def test_a_name_with_thousands_of_addresses_gives_a_few(no_hosts):
    many = [f"1.{n >> 8}.{n & 255}.1" for n in range(3000)]
    with resolving(lambda *_: many, no_hosts) as (_, resolver):
        answer = ask_one(resolver, "many.test")
        assert answer.addresses == tuple(many[:16])


def test_a_slow_name_server_is_waited_for(no_hosts):
    with resolving(lambda *_: ["1.1.1.1"], no_hosts, delay=1.2) as (_, resolver):
        [(answer, seconds)] = ask(resolver, "slow.test")
        assert answer.addresses == ("1.1.1.1",)
        assert 1.1 < seconds < 1.9


# --- The budget --------------------------------------------------------------------------------


def test_hundreds_of_silent_names_delay_no_other(no_hosts):
    def zone(name, _kind):
        return Silence if name.startswith("silent") else ["1.1.1.1"]

    heard = []
    with resolving(zone, no_hosts, budget_seconds=2.0) as (server, resolver):
        started = time.monotonic()
        for n in range(300):
            resolver.lookup(
                f"silent-{n}.test",
                443,
                "https",
                lambda answer: heard.append((answer.failure, time.monotonic() - started)),
            )
            if n % 50 == 49:  # As fast as the name server's own buffer takes the questions.
                wait_until(lambda n=n: len(server.asked) > n)
        [(answer, seconds)] = ask(resolver, "good.test")
        assert answer.addresses == ("1.1.1.1",)
        assert seconds < 0.5 and not heard
        wait_until(lambda: len(heard) == 300)
        assert {failure for failure, _ in heard} == {"dns"}
        assert max(seconds for _, seconds in heard) < 4.0
        # Silence is remembered for a while: nobody waits for it again right away.
        [(answer, seconds)] = ask(resolver, "silent-0.test")
        assert answer.failure == "dns" and seconds < 0.5


def test_a_caller_may_have_less_time_than_the_budget(no_hosts):
    with resolving(lambda *_: Silence, no_hosts) as (_, resolver):
        [(answer, seconds)] = ask(resolver, "silent.test", timeout=0.3)
        assert answer.failure == "dns"
        assert 0.25 < seconds < 1.0


def test_a_name_server_that_is_not_there_is_a_dns_failure_within_the_budget(no_hosts):
    with NameServer(lambda *_: []) as server:
        address = server.address
    resolver = Resolver(PUBLIC, [address], hosts_path=no_hosts, budget_seconds=1.0)
    resolver.start()
    try:
        [(answer, seconds)] = ask(resolver, "a.test")
        assert answer.failure == "dns" and seconds < 2
    finally:
        resolver.stop()


def test_stopping_answers_whoever_waits(no_hosts):
    heard = []
    with resolving(lambda *_: Silence, no_hosts) as (server, resolver):
        resolver.lookup("silent.test", 443, "https", heard.append)
        wait_until(lambda: server.asked["silent.test"])
    assert [answer.failure for answer in heard] == ["dns"]


def test_a_caller_that_raises_harms_nobody(no_hosts, caplog):
    def unkind(_answer):
        raise RuntimeError("unkind")

    with resolving(lambda *_: ["1.1.1.1"], no_hosts) as (_, resolver):
        resolver.lookup("a.test", 443, "https", unkind)
        assert ask_one(resolver, "b.test").addresses == ("1.1.1.1",)
        wait_until(lambda: "could not take the answer" in caplog.text)


def test_a_name_server_that_is_no_address_stops_the_start(no_hosts):
    resolver = Resolver(PUBLIC, ["dns.example"], hosts_path=no_hosts)
    with pytest.raises(ValueError, match=r"nameservers dns\.example"):
        resolver.start()


# --- The cache ---------------------------------------------------------------------------------


def test_an_answer_is_kept_for_its_ttl_and_then_asked_for_again(no_hosts, monkeypatch):
    monkeypatch.setattr(resolve, "MIN_TTL_SECONDS", 0.1)
    addresses = ["1.1.1.1"]
    with resolving(lambda *_: addresses, no_hosts, ttl=1) as (server, resolver):
        assert ask_one(resolver, "a.test").addresses == ("1.1.1.1",)
        assert resolver.known("a.test", 443, "https") == Answer(("1.1.1.1",))
        asked, addresses[0] = server.asked["a.test"], "1.0.0.1"
        assert ask_one(resolver, "a.test").addresses == ("1.1.1.1",)
        assert server.asked["a.test"] == asked == 2
        wait_until(lambda: resolver.known("a.test", 443, "https") is None)
        wait_until(lambda: ask_one(resolver, "a.test").addresses == ("1.0.0.1",))


def test_a_long_ttl_is_cut_to_a_minute(no_hosts, monkeypatch):
    """Ours, that is: c-ares would go on to answer from its memory for an hour."""
    monkeypatch.setattr(resolve, "MAX_TTL_SECONDS", 1.0)
    monkeypatch.setattr(resolve, "CHANNEL_SECONDS", 0.5)
    addresses = ["1.1.1.1"]
    with resolving(lambda *_: addresses, no_hosts, ttl=3600) as (_, resolver):
        started = time.monotonic()
        assert ask_one(resolver, "a.test").addresses == ("1.1.1.1",)
        addresses[0] = "1.0.0.1"
        while ask_one(resolver, "a.test").addresses == ("1.1.1.1",):
            assert time.monotonic() < started + 2.0
            time.sleep(0.02)
        assert time.monotonic() > started + 0.4


def test_that_there_is_no_answer_is_kept_briefly(no_hosts, monkeypatch):
    monkeypatch.setattr(resolve, "NEGATIVE_TTL_SECONDS", 0.3)
    replies = {"a.test": NXDOMAIN}
    with resolving(lambda name, _: replies[name], no_hosts) as (server, resolver):
        assert ask_one(resolver, "a.test").failure == "dns"
        wait_until(lambda: server.asked["a.test"] == 2)  # A and AAAA
        replies["a.test"] = ["1.1.1.1"]
        assert ask_one(resolver, "a.test").failure == "dns"
        assert server.asked["a.test"] == 2
        wait_until(lambda: ask_one(resolver, "a.test").addresses == ("1.1.1.1",))


def test_the_cache_is_bounded(no_hosts, monkeypatch):
    monkeypatch.setattr(resolve, "MAX_CACHED_NAMES", 10)
    with resolving(lambda *_: ["1.1.1.1"], no_hosts, ttl=60) as (_, resolver):
        names = [f"n{n}.test" for n in range(30)]
        ask(resolver, *names)
        known = [name for name in names if resolver.known(name, 443, "https")]
        assert len(known) == 10


def test_callers_of_one_name_share_one_query(no_hosts):
    with resolving(lambda *_: ["1.1.1.1"], no_hosts, delay=0.2) as (server, resolver):
        heard = []
        for _ in range(50):
            resolver.lookup("a.test", 443, "https", heard.append)
        wait_until(lambda: len(heard) == 50)
        assert set(heard) == {Answer(("1.1.1.1",))}
        assert server.asked["a.test"] == 2  # A and AAAA


# --- Without asking ----------------------------------------------------------------------------


def test_localhost_is_loopback_whatever_a_name_server_says(no_hosts):
    with resolving(lambda *_: ["1.1.1.1"], no_hosts, policy=HERE) as (server, resolver):
        for host in ("localhost", "api.localhost"):
            assert ask_one(resolver, host).addresses == ("127.0.0.1", "::1")
        assert not server.asked
    with resolving(lambda *_: ["1.1.1.1"], no_hosts) as (_, resolver):
        assert ask_one(resolver, "localhost").failure == "blocked_address"


def test_an_address_is_passed_through_and_judged(no_hosts):
    with resolving(lambda *_: ["1.1.1.1"], no_hosts) as (server, resolver):
        assert resolver.known("8.8.8.8", 443, "https") == Answer(("8.8.8.8",))
        assert resolver.known("10.0.0.1", 443, "https").failure == "blocked_address"
        assert resolver.known("2606:4700::1111", 443, "https") == Answer(("2606:4700::1111",))
        assert not server.asked


def test_the_hosts_file_comes_before_dns_and_is_judged_like_it(no_hosts):
    no_hosts.write_text(
        "# ours\n9.9.9.9 Nine nine.test. # two names\n::1%lo broken\n10.0.0.1 ten\n"
    )
    with resolving(lambda *_: ["1.1.1.1"], no_hosts) as (server, resolver):
        assert ask_one(resolver, "nine").addresses == ("9.9.9.9",)
        assert ask_one(resolver, "nine.test").addresses == ("9.9.9.9",)
        assert ask_one(resolver, "ten").failure == "blocked_address"
        assert not server.asked
        assert ask_one(resolver, "broken").addresses == ("1.1.1.1",)


def test_a_changed_hosts_file_is_read_again(no_hosts, monkeypatch):
    monkeypatch.setattr(resolve, "HOSTS_REREAD_SECONDS", 0.05)
    no_hosts.write_text("9.9.9.9 nine")
    with resolving(lambda *_: NXDOMAIN, no_hosts) as (_, resolver):
        assert ask_one(resolver, "nine").addresses == ("9.9.9.9",)
        no_hosts.write_text("8.8.8.8 nine")
        wait_until(lambda: ask_one(resolver, "nine").addresses == ("8.8.8.8",))


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
