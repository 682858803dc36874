"""One request, one outcome, within its deadline, whatever the receiver does."""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
import os
import resource
import socket
import ssl
import threading
import time
import warnings
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
    drip,
    drip_tls_record,
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
    ("statuses", "failure"),
    [
        ((200, 201, 202, 204, 205, 206, 226, 299), None),
        ((300, 301, 302, 303, 304, 305, 307, 308, 333, 399), "redirect"),
        ((400, 401, 403, 404, 407, 408, 410, 417, 429, 499), "http_4xx"),
        ((500, 502, 503, 504, 599), "http_5xx"),
        ((600, 999), "bad_response"),
    ],
)
def test_the_status_decides(wire, receivers, statuses, failure):
    canary = receivers(answer(OK))
    urls = [
        receivers(
            answer(response(b"%03d Whatever" % status, [b"Location: %b" % canary.url().encode()]))
        ).url()
        for status in statuses
    ]
    outcomes = wire.send(*map(post, urls))
    assert [o.status_code for o in outcomes] == list(statuses)
    assert {o.failure for o in outcomes} == {failure}
    assert canary.connections == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 -200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"<html>HTTP 0.9</html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_what_is_not_a_final_http_response_is_no_success(wire, receivers, raw):
    outcome = wire.send_one(receivers(answer_and_close(raw)).url(), timeout=1.0)
    assert outcome.failure == "bad_response"


@pytest.mark.parametrize(
    "raw",
    [
        # Odd, but an answer: a 2xx and complete headers.
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.0 200 OK\n\nhello",
        b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk size\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nxyz",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + OK,
    ],
)
def test_a_2xx_with_complete_headers_is_success_whatever_the_body_does(wire, receivers, raw):
    outcome = wire.send_one(receivers(answer_and_close(raw)).url(), timeout=2.0)
    assert (outcome.failure, outcome.status_code) == (None, 200)
    assert outcome.response_headers.startswith("HTTP/1.")
    assert "Trailer" not in outcome.response_headers and "Hints" not in outcome.response_headers


def test_after_every_malformed_response_the_next_request_works(receivers):
    """One behind the other on the same transport: no connection is left poisoned in the pool."""
    smuggled = b"HTTP/1.1 500 Smuggled\r\nContent-Length: 0\r\n\r\n"
    heads = [
        b"HTTP/1.1 204 None\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ]
    for head, pause in itertools.product(heads, (0, 0.05)):
        replies = iter([head])

        def behave(connection, replies=replies, pause=pause):
            while read_request(connection):
                reply = next(replies, None)
                connection.sendall(reply or OK)
                if reply:
                    time.sleep(pause)
                    connection.sendall(smuggled)

        receiver = receivers(behave)
        with wired(in_flight=1) as wire:
            wire.send_one(receiver.url(), timeout=1.0)
            time.sleep(0.1)
            second = wire.send_one(receiver.url())
            assert (second.status_code, second.failure, second.resent) == (200, None, False)


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


def test_a_connection_that_is_reset_in_the_body_is_an_answer(wire, receivers):
    half = b"HTTP/1.1 %b\r\nContent-Length: 100\r\n\r\nhalf"
    good = receivers(answer_and_reset(half % b"200 OK"))
    bad = receivers(answer_and_reset(half % b"503 Busy"))
    first, second = wire.send(post(good.url()), post(bad.url()))
    assert (first.failure, first.status_code, first.truncated) == (None, 200, True)
    assert (second.failure, second.status_code, second.truncated) == ("http_5xx", 503, True)
    assert first.response_body == second.response_body == "half"


def test_an_early_answer_counts_although_our_body_was_not_read(wire, receivers):
    def behave(connection):
        connection.recv(100)
        connection.sendall(response(b"202 Accepted"))
        time.sleep(0.2)
        reset(connection)

    outcome = wire.send_one(receivers(behave).url(), body=b"x" * 4_000_000)
    assert (outcome.failure, outcome.status_code) == (None, 202)


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


def test_nul_and_broken_utf8_are_kept_as_replacement_characters(wire, receivers):
    raw = b"HTTP/1.1 500 \xff\xfe\r\nX: \xed\xa0\x80\r\nContent-Length: 7\r\n\r\na\0b\xffc\xed\xa0"
    outcome = wire.send_one(receivers(answer(raw)).url())
    assert outcome.response_body == "a\ufffdb\ufffdc\ufffd\ufffd"
    for text in (outcome.response_body, outcome.response_headers):
        assert "\0" not in text
        text.encode("utf-8")


def test_a_body_is_kept_as_it_came_and_never_decompressed(wire, receivers):
    bomb = gzip.compress(b"\0" * 20_000_000)
    assert len(bomb) < 64 * 1024
    for header in (b"Content-Encoding: gzip", b"Content-Encoding: gzip, gzip, gzip"):
        receiver = receivers(answer(response(b"500 Boom", [header], bomb)))
        before = resident_kib()
        outcome = wire.send_one(receiver.url())
        assert outcome.response_body.startswith("\x1f\ufffd")
        assert resident_kib() - before < 8 * 1024


def test_a_compressed_transfer_is_refused(wire, receivers):
    bomb = gzip.compress(b"\0" * 200_000_000)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
    raw = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(bomb), bomb)
    before = resident_kib()
    outcome = wire.send_one(receivers(answer_and_close(raw)).url())
    assert outcome.failure == "bad_response"  # libcurl decodes only what was asked for.
    assert resident_kib() - before < 16 * 1024


def resident_kib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def test_endless_bodies_cost_neither_memory_nor_time(wire, receivers):
    gibibyte = 1 << 30
    piece = b"x" * 65536
    chunk = b"10000\r\n" + piece + b"\r\n"
    poured = Counter()
    heads = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % gibibyte, piece),
        (b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % gibibyte, piece),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunk),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", piece),
    ]
    urls = [
        receivers(pour(head, itertools.repeat(piece, gibibyte // 65536), poured=poured)).url()
        for head, piece in heads * 5
    ]
    before = resident_kib()
    outcomes = wire.send(*map(post, urls))
    assert resident_kib() - before < 16 * 1024
    assert [o.failure for o in outcomes] == [None, "http_5xx", None, None] * 5
    assert all(o.truncated for o in outcomes)
    assert max(o.total_us for o in outcomes) < 4_000_000
    # We read 64 KiB of each; the rest is what the kernel's buffers took.
    assert poured["bytes"] < 20 * 16 * 1024 * 1024


def test_more_headers_than_a_response_may_have_are_too_large(wire, receivers):
    endless = itertools.repeat(b"X-Filler: " + b"y" * 1000 + b"\r\n", 1_000_000)
    one_line = itertools.repeat(b"z" * 65536, 10_000)
    interim = itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 1_000_000)
    receivers_of_too_much = [
        receivers(pour(b"HTTP/1.1 200 OK\r\n", endless)),
        receivers(pour(b"HTTP/1.1 200 OK\r\nX-Long: ", one_line)),
        receivers(pour(b"HTTP/1.1 200 ", one_line)),
        receivers(pour(b"", interim)),
        receivers(answer_and_close(response(headers=[b"A: " + b"b" * 70_000]))),
    ]
    before = resident_kib()
    outcomes = wire.send(*(post(r.url()) for r in receivers_of_too_much))
    assert [o.failure for o in outcomes] == ["too_large"] * 5
    assert resident_kib() - before < 16 * 1024


def test_headers_are_kept_to_sixteen_kib(wire, receivers):
    many = [b"X-%d: %b" % (n, b"v" * 100) for n in range(500)]
    outcome = wire.send_one(receivers(answer(response(headers=many))).url())
    assert outcome.failure is None
    assert 16_000 < len(outcome.response_headers) <= 16 * 1024


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


# --- Deadlines ---------------------------------------------------------------------------------


def test_every_kind_of_slowness_ends_at_the_deadline(wire, receivers):
    head = b"HTTP/1.1 200 OK\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    failing = {
        "hang": hang,
        "drip of the status line": drip(b"HTTP/1.1 2", b"0"),
        "drip of a header": drip(head + b"X: ", b"y"),
        "drip of headers": drip(head, b"X: y\r\n"),
        "100-continue again and again": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "never reads": never_read,
    }
    answered = {
        "drip of a body": drip(head + b"Content-Length: 99999\r\n\r\n", b"b"),
        "drip of a body without a length": drip(head + b"\r\n", b"b"),
        "drip of a chunk's size": drip(chunked, b"0"),
        "drip of a chunk": drip(chunked + b"ffff\r\n", b"b"),
        "drip of trailers": drip(chunked + b"0\r\n", b"T: t\r\n"),
        "silence in the body": drip(head + b"Content-Length: 5\r\n\r\nab", b"", every=20),
    }
    over_https = {"hangs in TLS": hang, "drip of a TLS record": drip_tls_record}
    requests = {
        kind: post(receivers(behave).url(), timeout=0.7)
        for kind, behave in (failing | answered).items()
    }
    requests["never reads"].body = b"x" * 10_000_000  # More than the sockets' buffers take.
    for kind, behave in over_https.items():
        requests[kind] = post(receivers(behave).url(scheme="https"), timeout=0.7)
    outcomes = dict(zip(requests, wire.send(*requests.values()), strict=True))
    for kind, outcome in outcomes.items():
        assert 690_000 < outcome.total_us < 1_500_000, kind
        if kind in answered:
            assert (outcome.failure, outcome.status_code) == (None, 200), kind
            assert outcome.truncated, kind
        else:
            assert outcome.failure == "timeout", kind


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


def test_a_request_that_libcurl_repeats_is_marked_as_resent(wire, receivers):
    seen = []
    times = Counter()

    def close_on_second_request(connection):
        while request := read_request(connection):
            seen.append(request)
            times["requests"] += 1
            if times["requests"] == 2:
                return
            connection.sendall(OK)

    receiver = receivers(close_on_second_request)
    first = wire.send_one(receiver.url())
    second = wire.send_one(receiver.url(), body=b"the second")
    assert (first.failure, first.resent) == (None, False)
    assert (second.failure, second.resent) == (None, True)
    assert [request.endswith(b"the second") for request in seen] == [False, True, True]


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


def test_a_good_certificate_is_accepted_and_the_name_is_sent(receivers, authority, ca_bundle):
    seen, names = [], []
    context = serving(authority.issue_cert("hooks.test"))
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    receiver = receivers(over_tls(context, answer(OK, seen=seen)))
    with NameServer(lambda *_: ["127.0.0.1"], ttl=60) as server:
        with wired(nameservers=[server.address], ca_bundle=ca_bundle) as wire:
            first, second = (
                wire.send_one(receiver.url(scheme="https", host="hooks.test")) for _ in range(2)
            )
    assert (first.failure, second.failure) == (None, None)
    assert 0 < first.connect_us < first.tls_us < first.first_byte_us
    assert second.tls_us is None and receiver.connections == 1
    assert names == ["hooks.test"]
    assert b"Host: hooks.test:%d\r\n" % receiver.port in seen[0]


def test_a_certificate_that_proves_nothing_is_a_tls_failure(receivers, authority, ca_bundle):
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Old versions are the point.
        old = serving(authority.issue_cert("127.0.0.1"))
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    contexts = {
        "expired": serving(authority.issue_cert("127.0.0.1", not_after=past)),
        "another host": serving(authority.issue_cert("hooks.test")),
        "unknown authority": serving(trustme.CA().issue_cert("127.0.0.1")),
        "TLS 1.1": old,
    }
    seen = []
    urls = {
        kind: receivers(over_tls(context, answer(OK, seen=seen))).url(scheme="https")
        for kind, context in contexts.items()
    }
    plain = receivers(lambda connection: connection.sendall(OK))
    urls["no TLS at all"] = plain.url(scheme="https")
    with wired(ca_bundle=ca_bundle) as wire:
        outcomes = dict(zip(urls, wire.send(*map(post, urls.values())), strict=True))
    for kind, outcome in outcomes.items():
        assert outcome.failure == "tls", kind
        assert outcome.detail, kind
    assert outcomes["expired"].address is not None
    assert not seen


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


def test_a_private_authority_is_unknown_without_its_bundle(receivers, authority):
    context = serving(authority.issue_cert("127.0.0.1"))
    receiver = receivers(over_tls(context, answer(OK)))
    with wired() as wire:
        assert wire.send_one(receiver.url(scheme="https")).failure == "tls"


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
