"""One request, one outcome, within its deadline, whatever the receiver does."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from dispatcher import resolve, transport
from dispatcher.resolve import Resolver
from dispatcher.transport import FAILURES, Transport
from tests.hostile import (
    NXDOMAIN,
    OK,
    NameServer,
    Silence,
    answer,
    answer_and_close,
    answer_and_reset,
    hang,
    never_read,
    over_tls,
    pour,
    read_request,
    reset,
)
from tests.wire import HERE, Wire, post, response, serving, wired


@pytest.fixture
def wire():
    with wired() as wire:
        yield wire


# --- What goes out -----------------------------------------------------------------------------


def test_the_receiver_gets_exactly_our_headers_and_the_exact_body(wire, receivers):
    seen = []
    receiver = receivers(answer(OK, seen=seen))
    body = b"\x00\xff{}" * 100_000
    outcome = wire.send_one(receiver.url("/a/../b?x=%2F"), body=body)
    assert outcome.failure is None
    head, _, sent = seen[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /a/../b?x=%2F HTTP/1.1",
        b"Host: 127.0.0.1:%d" % receiver.port,
        b"Accept: */*",
        b"content-type: application/json",
        b"webhook-id: evt_7",
        b"Content-Length: 400000",
    ]
    assert sent == body


def test_an_empty_body_is_sent_as_such(wire, receivers):
    seen = []
    assert wire.send_one(receivers(answer(OK, seen=seen)).url(), body=b"").failure is None
    assert b"Content-Length: 0\r\n" in seen[0]


@pytest.mark.parametrize(
    "header", ["x: a\r\nhost: evil", "x: a\nb", "x: a\0b", "x: ü", "x: \ud800"]
)
def test_a_header_that_would_break_the_request_is_never_sent(wire, receivers, header):
    receiver = receivers(answer(OK))
    bad, good = wire.send(post(receiver.url(), headers=[header]), post(receiver.url()))
    assert bad.failure == "unsendable" and bad.status_code is None
    assert good.failure is None


# --- What comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behave",
    [
        lambda _: None,
        lambda connection: read_request(connection) and None,
        lambda connection: read_request(connection) and reset(connection),
        answer_and_close(b"HTTP/1.1 200 OK\r\nContent-"),
        answer_and_close(b"HTTP/1.1 200 OK\r\n"),
        answer_and_close(b"HTTP/1.1 100 Continue\r\n\r\n"),
        answer_and_reset(b"HTTP/1.1 200 OK\r\nX: y\r\n"),
    ],
)
def test_a_connection_that_ends_before_the_headers_do_is_a_reset(wire, receivers, behave):
    outcome = wire.send_one(receivers(behave).url(), timeout=2.0)
    assert (outcome.failure, outcome.status_code) == ("reset", None), outcome.detail


# --- What is kept ------------------------------------------------------------------------------


def test_little_is_kept_of_a_success_and_more_of_a_failure(wire, receivers):
    body = "aä€".encode() * 5000
    good = receivers(answer(response(body=body)))
    bad = receivers(answer(response(b"500 Oops", body=body)))
    first, second = wire.send(post(good.url()), post(bad.url()))
    for outcome, limit in ((first, 1024), (second, 16 * 1024)):
        assert outcome.truncated
        assert limit - 4 <= len(outcome.response_body.encode()) <= limit
        assert body.decode().startswith(outcome.response_body)
    [small] = wire.send(post(receivers(answer(response(body=b"fine"))).url()))
    assert (small.response_body, small.truncated) == ("fine", False)
    assert small.response_headers == "HTTP/1.1 200 OK\nContent-Length: 4"


def test_trailers_without_end_do_not_turn_a_success_into_a_failure(wire, receivers):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    trailers = itertools.repeat(b"X-T: " + b"y" * 1000 + b"\r\n", 1_000_000)
    outcome = wire.send_one(receivers(pour(head, trailers)).url())
    assert (outcome.failure, outcome.truncated) == (None, True)
    assert outcome.response_headers == "HTTP/1.1 200 OK\nTransfer-Encoding: chunked"


@pytest.mark.parametrize(
    "value",
    ["120", "-1", "99999999999999999999", "nan", "Fri, 31 Dec 9999 23:59:59 GMT", "", "\ufffd"],
)
def test_retry_after_is_passed_on_as_it_came(wire, receivers, value):
    header = b"retry-AFTER:  " + value.encode().replace("\ufffd".encode(), b"\xff") + b" "
    receiver = receivers(answer(response(b"503 Busy", [b"X: y", header, b"Z: z"])))
    assert wire.send_one(receiver.url()).retry_after == value


def test_a_success_has_no_retry_after_and_a_long_one_is_cut(wire, receivers):
    good = receivers(answer(response(headers=[b"Retry-After: 7"])))
    bad = receivers(answer(response(b"429 Slow", [b"Retry-After: " + b"9" * 5000])))
    blank = receivers(answer(response(b"503 Busy", [b"Retry-After: 7" + b" \t" * 7000 + b"x"])))
    first, second, third = wire.send(post(good.url()), post(bad.url()), post(blank.url()))
    assert first.retry_after is None
    assert second.retry_after == "9" * 256
    assert third.retry_after.startswith("7 ") and third.total_us < 500_000


def test_an_idle_handle_holds_no_large_body(wire, receivers):
    """Or a burst of the largest events would cost their size for every place in flight, for good.

    What a receiver could not take whole is gone as well as what was answered.
    """
    receiver, never = receivers(answer_and_close(OK)), receivers(never_read)
    tracemalloc.start()
    try:
        for urls, seconds in (([receiver.url()] * 40, 5.0), ([never.url()] * 40, 0.3)):
            wire.send(*(post(url, body=bytes(1_000_000), timeout=seconds) for url in urls))
        wait_until(lambda: tracemalloc.get_traced_memory()[0] < 4_000_000)
    finally:
        tracemalloc.stop()


# --- Deadlines ---------------------------------------------------------------------------------


def test_a_deadline_is_that_of_its_own_request(receivers):
    receiver = receivers(hang)
    with wired(in_flight=1) as wire:
        long, short = (wire.send_one(receiver.url(), timeout=seconds) for seconds in (1.0, 0.2))
    assert 190_000 < short.total_us < 900_000 < long.total_us


def test_connecting_has_a_shorter_limit_of_its_own(receivers):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        address = full.getsockname()
        for _ in range(4):  # Nobody accepts: the backlog is full and further SYNs are dropped.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        with wired(connect_timeout_seconds=0.4) as wire:
            silent_tls = receivers(hang)
            tcp, tls = wire.send(
                post(f"http://127.0.0.1:{address[1]}/"), post(silent_tls.url(scheme="https"))
            )
    for outcome in (tcp, tls):
        assert outcome.failure == "timeout"
        assert 390_000 < outcome.total_us < 1_400_000


def test_nobody_listening_is_a_connect_failure_at_once(wire):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    outcome = wire.send_one(f"http://127.0.0.1:{port}/")
    assert outcome.failure == "connect"
    assert outcome.status_code is None and outcome.address is None
    assert outcome.total_us < 1_000_000 and outcome.connect_us is None


def test_hundreds_of_hanging_receivers_slow_nobody(receivers):
    slow, quick = receivers(hang), receivers(answer(OK))
    with wired(in_flight=450) as wire:
        wire.submit(*(post(slow.url(), timeout=3.0) for _ in range(400)))
        outcomes = wire.send(*(post(quick.url()) for _ in range(50)))
        assert {o.failure for o in outcomes} == {None}
        assert max(o.total_us for o in outcomes) < 1_500_000


# --- Times and addresses -----------------------------------------------------------------------


def test_the_outcome_says_when_what_happened_and_where(wire, receivers):
    receiver = receivers(answer(OK, delay=0.2))
    first = wire.send_one(receiver.url())
    assert first.address == f"127.0.0.1:{receiver.port}"
    assert 0 < first.connect_us <= first.first_byte_us <= first.total_us
    assert first.first_byte_us > 200_000
    assert first.resolve_us is None and first.tls_us is None
    second = wire.send_one(receiver.url())
    assert second.connect_us is None, "a reused connection needs no connecting"
    assert second.first_byte_us > 200_000


def test_an_ipv6_receiver_is_reached_and_shown_in_brackets(wire, receivers):
    receiver = receivers(answer(OK), address="::1")
    outcome = wire.send_one(receiver.url())
    assert (outcome.failure, outcome.address) == (None, f"[::1]:{receiver.port}")


# --- Connections -------------------------------------------------------------------------------


def test_a_connection_is_used_again_also_after_a_body_longer_than_what_is_kept(wire, receivers):
    receiver = receivers(answer(response(body=b"x" * 50_000)))
    for _ in range(5):
        assert wire.send_one(receiver.url()).failure is None
    assert receiver.connections == 1


def test_a_new_connection_has_nothing_to_do_with_an_old_one_that_had_its_port(wire, receivers):
    receiver = receivers(answer(OK))
    wire.transport._retired_ports.update(range(65536))
    for _ in range(3):
        assert wire.send_one(receiver.url()).failure is None
    assert receiver.connections == 1


def test_connections_to_many_receivers_stay_open(receivers):
    many = [receivers(answer(OK)) for _ in range(30)]
    with wired(in_flight=20) as wire:
        for _ in range(3):
            outcomes = wire.send(*(post(receiver.url()) for receiver in many))
            assert {o.failure for o in outcomes} == {None}
    assert {receiver.connections for receiver in many} == {1}


def test_a_body_that_is_cut_off_costs_the_connection(wire, receivers):
    receiver = receivers(answer(response(body=b"x" * 200_000)))
    for _ in range(2):
        assert wire.send_one(receiver.url()).failure is None
    assert receiver.connections == 2


def test_idle_connections_that_the_receiver_closed_are_replaced(wire, receivers):
    """Twenty at once, as when it restarts: libcurl alone gives up after five dead ones."""
    restarting = threading.Event()

    def close_when_restarting(connection):
        read_request(connection)
        time.sleep(0.1)
        connection.sendall(OK)
        restarting.wait(5)

    receiver = receivers(close_when_restarting)
    outcomes = wire.send(*(post(receiver.url()) for _ in range(20)))
    assert receiver.connections == 20
    restarting.set()
    receiver.behave = answer(OK)
    time.sleep(0.1)
    outcomes += [wire.send_one(receiver.url()) for _ in range(3)]
    assert {(o.failure, o.resent) for o in outcomes} == {(None, False)}
    assert receiver.connections == 21


def test_connections_to_one_host_are_not_shared_with_another(wire, receivers):
    seen_here, seen_there = [], []
    here = receivers(answer(OK, seen=seen_here))
    there = receivers(answer(OK, seen=seen_there), address="127.0.0.2", port=here.port)
    wire.send(post(here.url()), post(there.url()))
    wire.send(post(there.url()), post(here.url()))
    assert len(seen_here) == len(seen_there) == 2


# --- Where we do not go ------------------------------------------------------------------------


def test_a_connection_is_not_used_again_once_its_name_has_moved(receivers, monkeypatch):
    monkeypatch.setattr(resolve, "MIN_TTL_SECONDS", 0.0)
    old = receivers(answer(OK))
    new = receivers(answer(OK), address="127.0.0.2", port=old.port)
    addresses = ["127.0.0.1"]
    with NameServer(lambda *_: addresses) as server:
        with wired(nameservers=[server.address]) as wire:
            url = old.url(host="moving.test")
            before = wire.send(*(post(url) for _ in range(5)))
            kept = old.connections
            addresses[0] = "127.0.0.2"
            after = [wire.send_one(url) for _ in range(3)]
    assert {o.address for o in before} == {f"127.0.0.1:{old.port}"}
    assert {o.address for o in after} == {f"127.0.0.2:{new.port}"}
    assert {o.failure for o in before + after} == {None}
    assert not any(o.resent for o in after)
    assert (old.connections, new.connections) == (kept, 1)


def test_a_name_that_stays_keeps_its_connection(receivers, monkeypatch):
    monkeypatch.setattr(resolve, "MIN_TTL_SECONDS", 0.0)
    receiver = receivers(answer(OK))
    with NameServer(lambda *_: ["127.0.0.1", "::1"]) as server:
        with wired(nameservers=[server.address]) as wire:
            for _ in range(4):
                outcome = wire.send_one(receiver.url(host="staying.test"))
                assert outcome.failure is None and outcome.resolve_us >= 0
    assert receiver.connections == 1


# --- Names -------------------------------------------------------------------------------------


def test_ten_names_on_a_silent_name_server_slow_nobody(receivers):
    receiver = receivers(answer(OK))

    def zone(name, _kind):
        return Silence if name.startswith("silent") else ["127.0.0.1"]

    with NameServer(zone, ttl=60) as server:
        # One place in flight: whoever waits for a name does not hold it.
        with wired(nameservers=[server.address], in_flight=1) as wire:
            tags = wire.submit(
                *(post(f"https://silent-{n % 10}.test/", timeout=1.0) for n in range(200))
            )
            outcomes = wire.send(*(post(receiver.url(host="good.test")) for _ in range(20)))
            assert {o.failure for o in outcomes} == {None}
            assert max(o.total_us for o in outcomes) < 900_000
            for outcome in wire.wait_for(tags):
                assert outcome.failure == "dns"
                assert 950_000 < outcome.total_us < 1_900_000


def test_a_name_that_does_not_exist_is_a_dns_failure(receivers):
    with NameServer(lambda *_: NXDOMAIN) as server:
        with wired(nameservers=[server.address]) as wire:
            outcome = wire.send_one("https://nowhere.test/")
    assert (outcome.failure, outcome.address, outcome.resolve_us) == ("dns", None, None)


def test_the_deadline_covers_the_name_too(receivers):
    with NameServer(lambda *_: ["127.0.0.1"], delay=0.4) as server:
        with wired(nameservers=[server.address]) as wire:
            outcome = wire.send_one(receivers(hang).url(host="slow.test"), timeout=0.8)
    assert outcome.failure == "timeout"
    assert 390_000 < outcome.resolve_us < 790_000 < outcome.total_us < 1_500_000


# --- TLS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def ca_bundle(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def test_an_encrypted_connection_that_the_receiver_closed_is_replaced(
    receivers, authority, ca_bundle
):
    context = serving(authority.issue_cert("127.0.0.1"))
    receiver = receivers(over_tls(context, answer_and_close(OK)))
    with wired(ca_bundle=ca_bundle) as wire:
        for _ in range(3):
            outcome = wire.send_one(receiver.url(scheme="https"))
            assert (outcome.failure, outcome.resent) == (None, False)
            time.sleep(0.05)
    assert receiver.connections == 3


# --- The loop ----------------------------------------------------------------------------------


def test_no_more_than_in_flight_are_connected_at_a_time(receivers):
    together, most = Counter(), Counter()
    lock = threading.Lock()

    def behave(connection):
        while read_request(connection):
            with lock:
                together["now"] += 1
                most["now"] = max(most["now"], together["now"])
            time.sleep(0.03)
            with lock:
                together["now"] -= 1
            connection.sendall(OK)

    receiver = receivers(behave)
    with wired(in_flight=4) as wire:
        outcomes = wire.send(*(post(receiver.url()) for _ in range(40)))
        assert {o.failure for o in outcomes} == {None}
        assert wire.transport.load == 0
    assert most["now"] == 4


def test_what_was_never_started_can_be_taken_back(receivers):
    seen = []
    receiver = receivers(answer(OK, seen=seen, delay=0.5))
    with wired(in_flight=2) as wire:
        tags = wire.submit(*(post(receiver.url()) for _ in range(10)))
        wait_until(lambda: len(seen) == 2)
        withdrawn = wire.transport.withdraw()
        assert [request.tag for request in withdrawn] == tags[2:]
        assert wire.transport.load == 2
        assert {o.failure for o in wire.wait_for(tags[:2])} == {None}
        wait_until(lambda: wire.transport.load == 0)
    assert len(seen) == 2


def test_many_threads_may_submit_at_once(wire, receivers):
    receiver = receivers(answer(OK))
    outcomes = []

    def submit():
        outcomes.extend(wire.send(*(post(receiver.url()) for _ in range(25))))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 200 and {o.failure for o in outcomes} == {None}


def test_an_idle_loop_starts_a_request_within_milliseconds(wire, receivers):
    receiver = receivers(answer(OK))
    waits = []
    for _ in range(20):
        time.sleep(0.01)
        began = time.monotonic()
        wire.send_one(receiver.url())
        waits.append(time.monotonic() - began)
    assert sorted(waits)[10] < 0.05


def test_a_loop_with_nothing_to_do_takes_no_time(wire, receivers):
    """Connections are idle, one of them was closed and one has unwanted bytes to read."""
    wire.send(*(post(receivers(answer(OK)).url()) for _ in range(20)))
    wire.send(post(receivers(answer_and_close(OK)).url()))

    def add_bytes_later(connection):
        answer_and_close(OK)(connection)
        time.sleep(0.02)
        connection.sendall(b"unwanted")
        hang(connection)

    wire.send(post(receivers(add_bytes_later).url()))
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1


def test_whoever_cannot_take_an_outcome_does_not_stop_the_loop(receivers, caplog):
    receiver = receivers(answer(OK))
    heard = []

    def unkind(outcome):
        heard.append(outcome)
        raise RuntimeError("unkind")

    policy = HERE
    unkindly = Transport(policy, Resolver(policy, ["127.0.0.1:9"]), on_done=unkind)
    unkindly.start()
    for _ in range(3):
        unkindly.submit(post(receiver.url()))
    wait_until(lambda: len(heard) == 3)
    unkindly.stop()
    assert {o.failure for o in heard} == {None}
    assert "could not be handed on" in caplog.text


def test_without_descriptors_a_request_fails_and_the_loop_goes_on(wire, receivers):
    receiver = receivers(answer(OK))
    assert wire.send_one(receiver.url()).failure is None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    with ExitStack() as stack:
        for _ in range(used):  # Fill the gaps below.
            if (fd := os.open(os.devnull, os.O_RDONLY)) > used:
                os.close(fd)
                break
            stack.callback(os.close, fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        try:
            url = f"http://127.0.0.2:{receiver.port}/"
            outcomes = wire.send(*(post(url) for _ in range(3)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {o.failure for o in outcomes} == {"connect"}
    assert wire.send_one(receiver.url()).failure is None


def test_stopping_with_requests_in_flight_does_not_wait_for_them(receivers):
    receiver = receivers(hang)
    wire = Wire()
    wire.transport.start()
    wire.submit(*(post(receiver.url(), timeout=30) for _ in range(5)))
    wait_until(lambda: receiver.connections == 5)
    began = time.monotonic()
    wire.transport.stop()
    assert time.monotonic() - began < 2
    assert not wire.outcomes


def test_every_failure_has_its_meaning_in_words():
    assert set(transport._FAILURE_OF_CODE.values()) <= set(FAILURES)
    assert {transport._failure_of_status(n) for n in range(1000)} - {None} <= set(FAILURES)


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
