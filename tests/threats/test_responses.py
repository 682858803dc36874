"""R1 to R11: whatever a receiver answers, or does not, is an attempt with its word, in its time.

One real dispatcher for all of them, with a deadline of a second. It must end as it began: no
memory or thread more, and delivering.
"""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
import random
import socket
import ssl
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app import db as database_module
from app.db import db
from dispatcher.transport import FAILURES
from tests.conftest import new_database
from tests.dispatching import Dispatchers, add_endpoint, count, parse_request, wait_until
from tests.factories import attempt_rows, publish, task_rows
from tests.hostile import (
    OK,
    Behaviour,
    NameServer,
    Receiver,
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
from tests.wire import post, response, serving, wired

DEADLINE_SECONDS = 1
# Where nothing is to be waited for, and the receivers, all in this process, may be slow.
AMPLE_SECONDS = 10
AT_ONCE = 50
MEBIBYTE = 2**20
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

tenants = itertools.count(100)


@pytest.fixture(scope="module")
def dispatcher(server_url: str, template: str) -> Iterator[int]:
    """The process id of a dispatcher that tries each task once."""
    with new_database(server_url, template) as url:
        database_module.open_database(url)
        db.ready()
        once = {"TIMEOUT_SECONDS": "1", "CONNECT_TIMEOUT_SECONDS": "1", "RETRY_SCHEDULE": "0"}
        try:
            with Dispatchers(url, **once) as live:
                yield live.dispatchers[0].pid
        finally:
            db.give_up()


@pytest.fixture
def unharmed(dispatcher: int, receivers: Callable[..., Receiver]) -> Iterator[int]:
    """The same, and afterwards it has grown by less than 50 MB at any time, and delivers."""
    healthy = receivers(answer(OK))
    tenant_id = next(tenants)
    add_endpoint(tenant_id, healthy.url())
    publish(tenant_id)
    wait_until(lambda: count(f"attempts WHERE tenant_id = {tenant_id}") == 1)
    Path(f"/proc/{dispatcher}/clear_refs").write_text("5")  # VmHWM starts anew
    memory, threads = state_of(dispatcher, "VmRSS"), state_of(dispatcher, "Threads")
    yield dispatcher
    assert state_of(dispatcher, "VmHWM") - memory < 50_000  # kB
    assert state_of(dispatcher, "Threads") == threads
    publish(tenant_id)
    wait_until(lambda: count(f"attempts WHERE tenant_id = {tenant_id}") == 2, 5)
    assert {row["failure"] for row in attempt_rows(f"tenant_id = {tenant_id}")} == {None}


def state_of(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def attempts_at(
    urls: Mapping[Any, str], *, seconds: int = AMPLE_SECONDS, event_bytes: int = 0, **columns: Any
) -> dict[Any, dict[str, Any]]:
    """What came of one event for each of the URLs, all at once, with a deadline of ``seconds``."""
    tenant_id = next(tenants)
    columns["timeout_seconds"] = seconds
    endpoints = {add_endpoint(tenant_id, url, **columns): key for key, url in urls.items()}
    publish(tenant_id, data={"filler": "x" * event_bytes})
    return attempts_of(tenant_id, endpoints, seconds)


def attempts_of(
    tenant_id: int, endpoints: Mapping[int, Any], seconds: int = DEADLINE_SECONDS
) -> dict[Any, dict[str, Any]]:
    """The attempts of the tenant's endpoints, as soon as each has one."""
    where = f"tenant_id = {tenant_id}"
    wait_until(lambda: count(f"attempts WHERE {where}") >= len(endpoints), 30)
    found = {endpoints[row["endpoint_id"]]: row for row in attempt_rows(where)}
    assert set(found) == set(endpoints.values())
    for key, row in found.items():
        assert row["total_us"] < (seconds + 1) * 1_000_000, key
        assert row["failure"] is None or row["failure"] in FAILURES, key
    return found


def fifty_at_once(
    kinds: Mapping[str, Behaviour], **options: int
) -> dict[str, list[dict[str, Any]]]:
    """The attempts at 50 endpoints of each kind; ``https`` in its name says how it is called."""
    with ExitStack() as stack:
        urls = {}
        for kind, behave in kinds.items():
            receiver = stack.enter_context(Receiver(behave))
            scheme = "https" if "https" in kind else "http"
            for number in range(AT_ONCE):
                urls[kind, number] = receiver.url(f"/{number}", scheme=scheme)
        attempts = attempts_at(urls, **options)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for (kind, _), row in attempts.items():
        found[kind].append(row)
    assert {len(each) for each in found.values()} == {AT_ONCE}
    return found


def words(attempts: Mapping[Any, Any]) -> dict[Any, set[tuple[str | None, int | None]]]:
    """Failure and status of the attempts, by kind."""
    return {
        kind: {(row["failure"], row["status_code"]) for row in (rows or ())}
        for kind, rows in attempts.items()
    }


# --- R1, R2: bodies ----------------------------------------------------------------------------


def test_r1_a_gibibyte_costs_neither_memory_nor_time(unharmed):
    pieces = [b"x" * 65536] * (1024 * 16)
    chunks = [b"10000\r\n" + pieces[0] + b"\r\n"] * len(pieces)
    poured: Counter[str] = Counter()
    length = b"Content-Length: %d\r\n\r\n" % 2**30
    found = fifty_at_once(
        {
            "with a length": pour(HEAD + length, pieces, poured=poured),
            "in chunks": pour(CHUNKED, chunks, poured=poured),
            "until it closes": pour(b"HTTP/1.1 500 No\r\n\r\n", pieces, poured=poured),
            "with a length, failing": pour(b"HTTP/1.1 503 No\r\n" + length, pieces, poured=poured),
        }
    )
    assert words(found) == {
        "with a length": {(None, 200)},
        "in chunks": {(None, 200)},
        "until it closes": {("http_5xx", 500)},
        "with a length, failing": {("http_5xx", 503)},
    }
    for attempts in found.values():
        assert all(row["truncated"] for row in attempts)
        assert max(len(row["response_body"]) for row in attempts) <= 16 * 1024
    # We read 64 KiB of each and hang up; the rest is what the kernel's buffers took.
    assert poured["bytes"] < len(found) * AT_ONCE * 16 * MEBIBYTE


# A chunk of one byte, whose size line does not end, or ends late.
EXTENSIONS = [b"e" * 65536]
CHUNKS_WITH_EXTENSIONS = [b"1;" + b"e" * 60_000 + b"\r\nx\r\n"]


@pytest.mark.parametrize("is_kept_open", [False, True], ids=["new", "kept open"])
def test_r1_what_is_neither_header_nor_body_ends_it_as_well(receivers, is_kept_open):
    """libcurl reads a chunk's extensions without end and does not show them."""
    if not hasattr(socket, "TCP_INFO"):
        pytest.skip("this system does not say what a connection has brought")
    for status, flood in itertools.product((b"200", b"500"), (EXTENSIONS, CHUNKS_WITH_EXTENSIONS)):
        poured: Counter[str] = Counter()
        head = CHUNKED.replace(b"200", status) + b"1;"
        pouring = pour(head, flood * 1_000_000, poured=poured)

        def behave(connection: socket.socket, pouring: Behaviour = pouring) -> None:
            if is_kept_open:
                read_request(connection)
                connection.sendall(OK)
            pouring(connection)

        receiver = receivers(behave)
        with wired() as wire:
            if is_kept_open:
                assert wire.send_one(receiver.url()).failure is None
            outcome = wire.send_one(receiver.url(), timeout=20.0)
        assert outcome.status_code == int(status)
        assert outcome.failure == (None if status == b"200" else "http_5xx")
        assert outcome.truncated
        assert receiver.connections == 1
        assert outcome.total_us < 10_000_000  # within half a second, on an idle machine
        assert poured["bytes"] > MEBIBYTE


def test_r2_nothing_is_inflated(unharmed):
    zeros = gzip.compress(bytes(20 * MEBIBYTE))
    deep = gzip.compress(gzip.compress(gzip.compress(bytes(200 * MEBIBYTE), 6)))
    seen: list[bytes] = []

    def encoded(encoding: bytes, body: bytes, status: bytes = b"200 OK") -> Behaviour:
        return answer(response(status, [b"Content-Encoding: " + encoding], body), seen=seen)

    found = fifty_at_once(
        {
            "20 MB": encoded(b"gzip", zeros),
            "20 MB after a failure": encoded(b"gzip", zeros, b"500 Boom"),
            "10 GB": pour(HEAD + b"Content-Encoding: gzip\r\n\r\n", [zeros] * 512),
            "three times over": encoded(b"gzip, gzip, gzip", deep),
            "hundreds of times over": encoded(b", ".join([b"gzip"] * 500), zeros),
            "deflate": encoded(b"deflate", zlib.compress(bytes(MEBIBYTE))),
            "not what it says": encoded(b"br, zstd", b"\x1f nothing of the kind"),
            # libcurl decodes only what was asked for, which is nothing.
            "as a transfer encoding": answer_and_close(
                HEAD
                + b"Transfer-Encoding: gzip, chunked\r\n\r\n%x\r\n" % len(zeros)
                + zeros
                + b"\r\n0\r\n\r\n"
            ),
        }
    )
    expected: dict[str, set[Any]] = {kind: {(None, 200)} for kind in found}
    expected["20 MB after a failure"] = {("http_5xx", 500)}
    expected["as a transfer encoding"] = {("bad_response", None)}
    assert words(found) == expected
    for kind in ("20 MB", "10 GB", "three times over", "not what it says"):
        assert {row["response_body"][0] for row in found[kind]} == {"\x1f"}
    assert not [request for request in seen if b"accept-encoding" in request.lower()]


# --- R3: slowness ------------------------------------------------------------------------------


EVERY = 0.2
SLOW = {
    "status line": drip(b"HTTP/1.1 2", b"0", every=EVERY),
    "header": drip(HEAD + b"X: ", b"y", every=EVERY),
    "100-continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", every=EVERY),
    "https handshake": drip_tls_record,
    "body": drip(HEAD + b"Content-Length: 99999\r\n\r\n", b"b", every=EVERY),
    "chunk size": drip(CHUNKED, b"0", every=EVERY),
    "trailers": drip(CHUNKED + b"0\r\n", b"T: t\r\n", every=EVERY),
}
SLOWER = {
    "headers": drip(HEAD, b"X: y\r\n", every=EVERY),
    "nothing": hang,
    "https and nothing": hang,
    "body without a length": drip(HEAD + b"\r\n", b"b", every=EVERY),
    "chunk": drip(CHUNKED + b"ffff\r\n", b"b", every=EVERY),
    "body of a failure": drip(b"HTTP/1.1 500 No\r\n\r\n", b"b", every=EVERY),
    "silence in the body": drip(HEAD + b"Content-Length: 5\r\n\r\nab", b"", every=20),
}
# The status decides once the headers are complete; without them it is a timeout.
ANSWERED = {
    **dict.fromkeys(("body", "chunk size", "trailers"), (None, 200)),
    **dict.fromkeys(("body without a length", "chunk", "silence in the body"), (None, 200)),
    "body of a failure": ("http_5xx", 500),
}


# More than the receiver's buffers take, so that the sender's window closes.
UNREAD = {"request that nobody reads": never_read}


@pytest.mark.parametrize(
    ("kinds", "event_bytes"),
    [(SLOW, 0), (SLOWER, 0), (UNREAD, 200_000)],
    ids=["slow", "slower", "zero window"],
)
def test_r3_every_kind_of_slowness_ends_at_the_deadline(unharmed, kinds, event_bytes):
    found = fifty_at_once(kinds, seconds=DEADLINE_SECONDS, event_bytes=event_bytes)
    assert words(found) == {kind: {ANSWERED.get(kind, ("timeout", None))} for kind in kinds}
    for kind, attempts in found.items():
        # The end of the second is libcurl's, in milliseconds.
        assert min(row["total_us"] for row in attempts) > DEADLINE_SECONDS * 1_000_000 - 2000
        assert {row["truncated"] for row in attempts} == {kind in ANSWERED}
        # They were under way together.
        began = [row["started_at"] for row in attempts]
        assert max(began) - min(began) < dt.timedelta(seconds=DEADLINE_SECONDS)


# --- R4: headers -------------------------------------------------------------------------------


def test_r4_six_megabytes_of_headers_are_too_large_and_of_fewer_16_kib_are_kept(unharmed):
    fat = [b"X-%d: %b\r\n" % (number, b"v" * 60_000) for number in range(98)]
    thin = [b"X-%d: %b\r\n" % (number, b"v" * 85) for number in range(60_000)]
    line = [b"z" * 60_000] * 100
    kept = [b"X-%d: %b" % (number, b"v" * 100) for number in range(400)]
    long = response(b"503 Busy", [b"X: y", b"Retry-After: 7" + b" \t" * 7000 + b"x", b"Z: z"])
    found = fifty_at_once(
        {
            "98 of 60 kB": pour(HEAD, fat),
            "60,000": pour(HEAD, [b"".join(thin)]),
            "one of 6 MB": pour(HEAD + b"X: ", line),
            "a status line of 6 MB": pour(b"HTTP/1.1 200 ", line),
            "folded": pour(HEAD + b"X: y\r\n", [b" folded\r\n" * 1000] * 700),
            "interim responses": pour(b"", [b"HTTP/1.1 100 Continue\r\n\r\n" * 1000] * 240),
            "40 kB": answer(response(headers=kept)),
            "white space": answer(long),
        }
    )
    expected: dict[str, set[Any]] = {kind: {("too_large", None)} for kind in found}
    expected |= {"40 kB": {(None, 200)}, "white space": {("http_5xx", 503)}}
    assert words(found) == expected
    for kind, attempts in found.items():
        for row in attempts:
            size = len((row["response_headers"] or "").encode())
            assert size <= 16 * 1024
            assert size > 14_000 or kind not in {"40 kB", "white space"}


# --- R5, R6: framing and statuses --------------------------------------------------------------

# No final HTTP response.
GARBAGE = [
    b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 -200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"220 mail.test ESMTP\r\n",
    b"-ERR unknown command 'POST'\r\n",
    b"<html>HTTP 0.9</html>",
    b"\x15\x03\x01\x00\x02\x02\x28",
    b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    bytes(range(256)) * 20,
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: nonsense\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
]
# Odd, but an answer: a 2xx and complete headers, whatever the body does.
ODD = [
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1\t200 OK\r\n\r\n",
    b"HTTP/1.0 200 OK\n\nhello",
    b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk size\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nxyz",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + OK,
    b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    OK + OK + OK,
]


def mangled(rng: random.Random) -> bytes:
    """A response with a few wounds."""
    raw = bytearray(rng.choice(GARBAGE + ODD))
    tokens = [b"\r", b"\n", b"\r\n", b"\0", b"\xff", b":", b" ", b"HTTP/1.1 ", b"200", b"0", b"-"]
    tokens += [b"chunked", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n", b"\t"]
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(raw) + 1)
        raw[where : where + rng.choice((0, 0, 1, 9))] = rng.choice(tokens)
    return bytes(raw)


class Misbehaving:
    """Answers the first request for ``/n`` with the n-th response, every other one properly.

    After every second one it hangs up; the others leave the connection open.
    """

    def __init__(self, responses: list[bytes]) -> None:
        self.responses = dict(enumerate(responses))

    def __call__(self, connection: socket.socket) -> None:
        while request := read_request(connection):
            number = int(request.split(b" ", 2)[1][1:])
            raw = self.responses.pop(number, OK)
            connection.sendall(raw)
            if raw is not OK and number % 2:
                return


def answered_with(
    responses: list[bytes], receivers: Callable[..., Receiver]
) -> list[tuple[bytes, dict[str, Any]]]:
    """What the receiver answered and the attempt; then each endpoint is delivered to."""
    receiver = receivers(Misbehaving(responses))
    tenant_id = next(tenants)
    urls = {number: receiver.url(f"/{number}") for number in range(len(responses))}
    endpoints = {add_endpoint(tenant_id, url): number for number, url in urls.items()}
    publish(tenant_id)
    first = attempts_of(tenant_id, endpoints)
    # On the same connections, as far as they are left: none is poisoned.
    publish(tenant_id)
    where = f"tenant_id = {tenant_id}"
    wait_until(lambda: count(f"attempts WHERE {where}") == 2 * len(endpoints))
    known = {row["id"] for row in first.values()}
    second = [row for row in attempt_rows(where) if row["id"] not in known]
    assert {(row["failure"], row["status_code"]) for row in second} == {(None, 200)}
    return [(responses[number], row) for number, row in first.items()]


def test_r5_what_is_not_a_final_http_response_is_no_success(unharmed, receivers):
    for raw, row in answered_with(GARBAGE * 2, receivers):
        assert row["failure"] == "bad_response", raw


def test_r5_a_2xx_with_complete_headers_is_success_whatever_the_body_does(unharmed, receivers):
    for raw, row in answered_with(ODD * 3, receivers):
        assert (row["failure"], row["status_code"]) == (None, 204 if b" 204 " in raw else 200), raw
        headers = row["response_headers"]
        assert headers.startswith("HTTP/1.")
        assert "Trailer" not in headers
        assert "Hints" not in headers


def test_r5_every_mangled_response_is_an_attempt(unharmed, receivers):
    rng = random.Random(5)
    answered_with([mangled(rng) for _ in range(300)], receivers)


STATUSES = {
    **dict.fromkeys((200, 201, 202, 204, 205, 206, 226, 299), None),
    **dict.fromkeys((300, 301, 302, 303, 304, 305, 307, 308, 333, 399), "redirect"),
    **dict.fromkeys((400, 401, 403, 404, 407, 408, 410, 417, 429, 451, 499), "http_4xx"),
    **dict.fromkeys((500, 502, 503, 504, 599), "http_5xx"),
    **dict.fromkeys((600, 666, 999), "bad_response"),
}


def test_r6_the_status_decides_and_any_is_stored(unharmed, receivers):
    urls = {
        status: receivers(answer(response(b"%d Whatever" % status))).url() for status in STATUSES
    }
    found = attempts_at(urls)
    assert {status: row["failure"] for status, row in found.items()} == STATUSES
    assert {status: row["status_code"] for status, row in found.items()} == dict(
        zip(STATUSES, STATUSES, strict=True)
    )


def test_r6_what_follows_a_complete_response_is_not_the_answer_to_the_next_request(receivers):
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


# --- R7: Retry-After ---------------------------------------------------------------------------

DAY, HOUR = 86_400, 3600
# What it asks for, and the seconds that are waited: the schedule's hour where it asks for nothing.
RETRY_AFTER = {
    b"120": 120,
    b"0": 1,
    b"000000000000000000000000000120": DAY,
    b"99999999999999999999": DAY,
    b"9" * 5000: DAY,
    b"-1": HOUR,
    b"+5": HOUR,
    b"nan": HOUR,
    b"inf": HOUR,
    b"1e9": HOUR,
    b"12.5": HOUR,
    b"300s": HOUR,
    b"5, 10": HOUR,
    b"": HOUR,
    b"\xff\xfe": HOUR,
    "５".encode(): HOUR,
    b"Fri, 31 Dec 9999 23:59:59 GMT": DAY,
    b"Fri, 31 Dec 99999 23:59:59 GMT": HOUR,
    b"Thu, 01 Jan 1970 00:00:00 GMT": 1,
    b"Mon, 01 Jan 0001 00:00:00 GMT": 1,
    b"Fri, 31 Dec 9999 23:59:59 -9999": HOUR,
    b"tomorrow": HOUR,
}


@pytest.mark.parametrize("status", [b"429 Slow Down", b"503 Busy"])
def test_r7_the_next_try_is_within_a_second_and_a_day_whatever_is_asked_for(
    unharmed, receivers, status
):
    tenant_id = next(tenants)
    endpoints = {}
    for value in RETRY_AFTER:
        url = receivers(answer(response(status, [b"retry-AFTER:  " + value + b" "]))).url()
        endpoints[add_endpoint(tenant_id, url, retry_schedule=[0, HOUR, HOUR])] = value
    publish(tenant_id)
    waits: dict[bytes, float] = {}

    def have_waits() -> bool:
        found = db.execute_sql(
            """
            SELECT t.endpoint_id, extract(epoch FROM t.next_try_at - a.started_at)::float8
            FROM hookjetty.tasks t JOIN hookjetty.attempts a ON a.id = t.attempt_id
            WHERE t.tenant_id = %s AND t.status = 'retry'
            """,
            (tenant_id,),
        )
        for endpoint_id, seconds in found.fetchall():
            waits.setdefault(endpoints[endpoint_id], seconds)
        return len(waits) == len(endpoints)

    try:
        wait_until(have_waits)
    finally:
        db.execute_sql(
            "UPDATE hookjetty.endpoints SET status = 'paused', settling = true"
            " WHERE tenant_id = %s",
            (tenant_id,),
        )
    for value, asked in RETRY_AFTER.items():
        if asked == HOUR:  # ± a fifth
            assert 0.79 * HOUR < waits[value] < 1.21 * HOUR, value
        else:
            assert asked <= waits[value] < asked + 3, value


# --- R8: TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_bundle(authority, tmp_path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def old(certificate: trustme.LeafCert, version: ssl.TLSVersion) -> ssl.SSLContext:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Old versions are the point.
        context = serving(certificate)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    return context


def for_name_only(name: str, issuer: trustme.CA | None, folder: Path) -> ssl.SSLContext:
    """A server whose certificate has no alternative names, signed by itself without ``issuer``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signer, signed_by = key, subject
    if issuer is not None:
        signer = serialization.load_pem_private_key(issuer.private_key_pem.bytes(), None)
        signed_by = x509.load_pem_x509_certificate(issuer.cert_pem.bytes()).subject
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(signer, hashes.SHA256())
    )
    path = folder / f"{name}-{issuer is None}.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_r8_a_good_certificate_is_accepted_and_the_name_is_sent(receivers, authority, ca_bundle):
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


def test_r8_a_certificate_that_proves_nothing_is_a_tls_failure(
    receivers, authority, ca_bundle, tmp_path
):
    """And says so in the log's words; nothing is sent."""
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    good = authority.issue_cert("hooks.test")
    contexts = {
        "expired": serving(authority.issue_cert("hooks.test", not_after=past)),
        "another host": serving(authority.issue_cert("other.test")),
        "a host above": serving(authority.issue_cert("test")),
        "a wildcard too far": serving(authority.issue_cert("*.hooks.test")),
        "an address": serving(authority.issue_cert("127.0.0.1")),
        "unknown authority": serving(trustme.CA().issue_cert("hooks.test")),
        "self-signed": for_name_only("hooks.test", None, tmp_path),
        "no alternative name, another common name": for_name_only("x.test", authority, tmp_path),
        "TLS 1.0": old(good, ssl.TLSVersion.TLSv1),
        "TLS 1.1": old(good, ssl.TLSVersion.TLSv1_1),
    }
    seen: list[bytes] = []
    urls = {
        kind: receivers(over_tls(context, answer(OK, seen=seen))).url(
            scheme="https", host="hooks.test"
        )
        for kind, context in contexts.items()
    }
    plain = receivers(lambda connection: connection.sendall(OK))
    urls["no TLS at all"] = plain.url(scheme="https", host="hooks.test")
    with NameServer(lambda *_: ["127.0.0.1"], ttl=60) as server:
        with wired(nameservers=[server.address], ca_bundle=ca_bundle) as wire:
            for _ in range(2):  # the second time it may have a session to resume
                outcomes = dict(zip(urls, wire.send(*map(post, urls.values())), strict=True))
                for kind, outcome in outcomes.items():
                    assert outcome.failure == "tls", kind
                    assert outcome.detail, kind
                    assert outcome.status_code is None
    assert outcomes["expired"].address is not None
    assert not seen


def test_r8_a_private_authority_is_unknown_without_its_bundle(receivers, authority):
    context = serving(authority.issue_cert("127.0.0.1"))
    receiver = receivers(over_tls(context, answer(OK)))
    with wired() as wire:
        assert wire.send_one(receiver.url(scheme="https")).failure == "tls"


# --- R9: what cannot be stored -----------------------------------------------------------------


def test_r9_whatever_bytes_come_back_are_recorded_as_text(unharmed, receivers):
    wild = b"a\0b\xffc\xed\xa0\x80\\x\\N\t\x1b[31m\x7f\xc2\x85\xe2\x80\xa8\xf4\x90\x80\x80\xc0\xaf"
    megabytes = [b"%b" % (b"\xe2\x82" * 500_000)] * 10
    found = attempts_at(
        {
            "body": receivers(answer(response(b"500 No", body=wild))).url(),
            "body of a success": receivers(answer(response(body=wild))).url(),
            "reason": receivers(answer(response(b"500 \xff\xfe\xed\xa0\x80"))).url(),
            "header": receivers(answer(response(b"500 No", [b"X: \xed\xa0\x80\xff"]))).url(),
            "NUL in a header": receivers(answer(response(b"500 No", [b"X: a\0b"]))).url(),
            "NUL in the reason": receivers(answer(response(b"500 \0"))).url(),
            "a line of 10 MB": receivers(pour(b"HTTP/1.1 500 No\r\n\r\n", megabytes)).url(),
            "NULs only": receivers(answer(response(b"500 No", body=bytes(20_000)))).url(),
            "half a character at the cut": receivers(
                answer(response(b"500 No", body=b"x" * 16_383 + "ä".encode()))
            ).url(),
        }
    )
    assert found["body"]["response_body"].startswith("a\ufffdb\ufffdc\ufffd\ufffd\ufffd\\x\\N\t")
    assert found["body of a success"]["response_body"] == found["body"]["response_body"]
    assert found["NULs only"]["response_body"] == "\ufffd" * 16_384
    assert found["half a character at the cut"]["response_body"] == "x" * 16_383
    assert set(found["a line of 10 MB"]["response_body"]) == {"\ufffd"}
    for kind in ("NUL in a header", "NUL in the reason"):
        assert found[kind]["failure"] in {"bad_response", "http_5xx"}
    for kind in ("reason", "header"):
        assert (found[kind]["failure"], found[kind]["status_code"]) == ("http_5xx", 500)
        assert "\ufffd" in found[kind]["response_headers"]
    for row in found.values():
        assert "\0" not in (row["response_headers"] or "") + (row["response_body"] or "")


# --- R10, R11: connections that end ------------------------------------------------------------


def answer_unread(connection: socket.socket) -> None:
    """Answer as soon as the request begins, then cut the connection."""
    connection.recv(100)
    connection.sendall(response(b"202 Accepted"))
    time.sleep(0.2)
    reset(connection)


def test_r10_a_connection_that_ends_after_the_headers_has_answered(unharmed, receivers):
    """One attempt and one outcome; a 2xx is not tried again, whatever came of its body."""
    half = b"HTTP/1.1 %b\r\nContent-Length: 100\r\n\r\nhalf"
    chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf"
    kinds = {
        "RST after a 200": answer_and_reset(half % b"200 OK"),
        "RST after a 503": answer_and_reset(half % b"503 Busy"),
        "FIN after a 200": answer_and_close(half % b"200 OK"),
        "FIN in a chunk": answer_and_close(chunk),
        "RST in a chunk": answer_and_reset(chunk),
        "RST after an empty 200": answer_and_reset(OK),
        "answered unread": answer_unread,
    }
    running = {kind: receivers(behave) for kind, behave in kinds.items()}
    found = attempts_at(
        {kind: receiver.url() for kind, receiver in running.items()},
        retry_schedule=[0, HOUR],
    )
    expected = dict.fromkeys(kinds, (None, 200))
    expected |= {"RST after a 503": ("http_5xx", 503), "answered unread": (None, 202)}
    assert {k: (row["failure"], row["status_code"]) for k, row in found.items()} == expected
    for kind in set(kinds) - {"RST after an empty 200", "answered unread"}:
        assert (found[kind]["response_body"], found[kind]["truncated"]) == ("half", True), kind
    tenant_id = found["FIN in a chunk"]["tenant_id"]
    statuses = Counter(row["status"] for row in task_rows(f"tenant_id = {tenant_id}"))
    assert statuses == {"delivered": len(kinds) - 1, "retry": 1}
    assert {receiver.connections for receiver in running.values()} == {1}


@pytest.mark.parametrize("reads", [True, False], ids=["after reading", "before reading"])
def test_r11_a_request_that_is_sent_twice_says_so_and_has_the_same_id(unharmed, receivers, reads):
    """A connection that was kept open is closed by its receiver while we send."""
    seen: list[bytes] = []
    is_first = threading.Event()

    def close_on_the_second_request(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK)
        if not is_first.is_set():
            is_first.set()
            if reads:
                seen.append(read_request(connection))
            else:
                connection.recv(1, socket.MSG_PEEK)
            return
        while request := read_request(connection):
            seen.append(request)
            connection.sendall(OK)

    receiver = receivers(close_on_the_second_request)
    tenant_id = next(tenants)
    add_endpoint(tenant_id, receiver.url())
    for number in (1, 2):
        event, _ = publish(tenant_id)
        wait_until(lambda n=number: count(f"attempts WHERE tenant_id = {tenant_id}") == n)
    first, second = attempt_rows(f"tenant_id = {tenant_id}")
    assert [(each["failure"], each["resent"]) for each in (first, second)] == [
        (None, False),
        (None, True),
    ]
    assert receiver.connections == 2
    ids = [parse_request(request)[1]["webhook-id"] for request in seen]
    assert ids[1:] == [f"evt_{event}"] * (2 if reads else 1)
    numbers = [parse_request(request)[1]["webhook-attempt"] for request in seen]
    assert set(numbers) == {"1"}
