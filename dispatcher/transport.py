"""The libcurl multi loop: many requests in flight on one thread, every limit enforced.

What a request may cost is bounded whatever the receiver does: one deadline over name, connect,
TLS, headers and body; 64 KiB of headers and 64 KiB of body are read at most, and not much more of
whatever else a receiver may send, then we hang up.
Success is a 2xx with complete headers; what the body does after that changes nothing.

The way of a request: ``submit`` → ``_start`` (judge the URL, find its addresses) →
``_Transfer.begin`` (hand it to libcurl) → libcurl's callbacks, as its socket becomes ready →
``_collect`` → ``_Transfer.outcome`` → ``on_done``.
"""

from __future__ import annotations

import codecs
import functools
import logging
import math
import re
import resource
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import certifi
import pycurl

from app.destinations import Destination, Policy, Refused
from dispatcher.resolve import Answer, Resolver

# Why an attempt failed, as far as this module can tell; ``interrupted`` and ``expired`` are
# written by others. The words are stored, shown to tenants and counted.
FAILURES = {
    "dns": "the name has no address, or no name server said so in time",
    "connect": "nobody listens there, or the network leads nowhere",
    "tls": "no encrypted connection: certificate, name or protocol version",
    "timeout": "connecting or answering took longer than allowed",
    "blocked_address": "the URL or the address it leads to may not be called",
    "too_large": "more headers than a response may have",
    "redirect": "a 3xx; redirects are not followed",
    "http_4xx": "the receiver refused",
    "http_5xx": "the receiver failed",
    "reset": "the connection ended before the response's headers did",
    "bad_response": "what came back is not HTTP, or no final status",
    "unsendable": "the request cannot be written as HTTP",
}

MAX_HEADER_BYTES = 64 * 1024
# Read further than is kept, so that an ordinary response of some KiB leaves the connection usable.
MAX_BODY_BYTES = 64 * 1024
# All that a connection may bring for one request, TLS included, and how often that is looked at.
MAX_WIRE_BYTES = 1024 * 1024
FLOOD_SECONDS = 0.25
KEPT_HEADER_BYTES = 16 * 1024
KEPT_BODY_BYTES_ON_SUCCESS = 1024
KEPT_BODY_BYTES_ON_FAILURE = 16 * 1024
KEPT_RETRY_AFTER_CHARACTERS = 256
BODY_BYTES_KEPT_WHILE_IDLE = 4096
# An idle connection is not used again after MAXAGE, no connection after MAXLIFETIME: receivers
# move, and a name's addresses are asked for again every 60 s.
IDLE_CONNECTION_SECONDS = 60
MOST_CONNECTIONS = 4096
CONNECTION_LIFETIME_SECONDS = 300

NO_NAME = Answer()  # The URL has an address itself.

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Request:
    """A POST to be made. ``headers`` are whole lines (``"Name: value"``); ``tag`` comes back.

    ``fill``, if given, is called right before the request is sent, to set headers and body, with
    the request and the monotonic time at which its attempt started: what is signed then bears that
    time. ``start_before`` is a monotonic time; a request that could not be started before then is
    not started at all.
    """

    url: str
    headers: list[str]
    body: bytes
    timeout_seconds: float
    tag: object = None
    fill: Callable[[Request, float], None] | None = None
    start_before: float = math.inf


@dataclass(slots=True)
class Outcome:
    """What came of a request. ``failure`` is None exactly on success, else one of ``FAILURES``.

    Times are microseconds from the start of the attempt to the end of each phase; None: the phase
    was not reached, or not needed (a reused connection needs neither connect nor TLS).
    ``truncated``: the receiver's body was longer than what is kept, or did not end.
    ``resent``: libcurl sent the request twice, since a reused connection closed unanswered.
    ``detail`` is for operators' logs; it may tell what a tenant must not learn of our network.
    ``started_at`` is a monotonic time; None: it was too late to start, and nothing was sent.
    """

    tag: object
    started_at: float | None
    status_code: int | None = None
    failure: str | None = None
    resolve_us: int | None = None
    connect_us: int | None = None
    tls_us: int | None = None
    first_byte_us: int | None = None
    total_us: int | None = None
    address: str | None = None
    response_headers: str | None = None
    response_body: str | None = None
    truncated: bool = False
    resent: bool = False
    retry_after: str | None = None
    detail: str = ""


class Transport:
    """Sends requests; calls ``on_done`` with each one's outcome, on its own thread.

    ``in_flight`` is how many may be with libcurl at a time. Names being resolved are not counted:
    they hold no connection, and a silent name server must not keep others from theirs.
    """

    def __init__(
        self,
        policy: Policy,
        resolver: Resolver,
        *,
        ca_bundle: Path | str | None = None,
        in_flight: int = 512,
        connect_timeout_seconds: float = 5.0,
        on_done: Callable[[Outcome], None],
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self._ca_bundle = str(ca_bundle or certifi.where())
        self._in_flight = in_flight
        self._connect_timeout_ms = max(1, round(connect_timeout_seconds * 1000))
        self._on_done = on_done
        self._destination = functools.lru_cache(maxsize=16_384)(policy.destination)

        self._submitted: deque[Request] = deque()
        self._resolved: deque[tuple[_Start, Answer]] = deque()
        self._load = 0
        self._load_lock = threading.Lock()
        self._active = 0
        self._idle: list[_Transfer] = []
        self._running: dict[_Transfer, None] = {}  # The oldest first.
        self._look_for_floods_at = 0.0
        self._transfers: dict[pycurl.Curl, _Transfer] = {}

        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, _connections())
        self._timer_at: float | None = None
        self._selector = selectors.DefaultSelector()
        self._wanted: dict[int, int] = {}
        self._watched: dict[int, int] = {}
        self._retired_ports: set[int] = set()

        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._wake_fd = self._wake_reader.fileno()
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._woken = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="transport", daemon=True)

    # --- What others call, from any thread ------------------------------------------------------

    def start(self) -> None:
        """Start the loop and its resolver; what libcurl or c-ares cannot work with is raised."""
        self._idle.append(self._new_transfer())
        self._resolver.start()
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Have a request sent as soon as there is room for it."""
        self.submit_many((request,))

    def submit_many(self, requests: Iterable[Request]) -> None:
        """Like ``submit``, for a batch."""
        batch = tuple(requests)
        with self._load_lock:
            self._load += len(batch)
        self._submitted.extend(batch)
        self._wake()

    @property
    def load(self) -> int:
        """How many requests were submitted and are not done."""
        return self._load

    def withdraw(self) -> list[Request]:
        """Take back the requests that were never started: nothing was sent for them."""
        withdrawn = []
        try:
            while True:
                withdrawn.append(self._submitted.popleft())
        except IndexError:
            pass
        with self._load_lock:
            self._load -= len(withdrawn)
        return withdrawn

    def stop(self) -> None:
        """End the loop. Requests in flight are cut off and have no outcome: drain first."""
        self._stopping = True
        self._wake()
        self._thread.join()
        self._resolver.stop()

    # --- The loop -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._turn()
                except Exception:
                    log.exception("the transport met a defect; it goes on")
                    time.sleep(0.01)
        finally:
            self._close()

    def _turn(self) -> None:
        """Wait for something to happen, start what there is room for, collect what has ended."""
        socket_action, wanted = self._multi.socket_action, self._wanted
        for key, events in self._selector.select(self._seconds_to_wait()):
            fd = key.fd
            if wanted.get(fd):
                # The masks of selectors (READ 1, WRITE 2) are libcurl's (CSELECT_IN, _OUT).
                socket_action(fd, events)
            elif fd == self._wake_fd:
                # In this order: whoever submits after the flag falls must send a byte.
                self._wake_reader.recv(4096)
                self._woken = False
            elif events & selectors.EVENT_READ:
                self._retire(fd)
            else:
                # It went idle while waited for as writable, which it always is.
                self._selector.modify(fd, selectors.EVENT_READ)
                self._watched[fd] = selectors.EVENT_READ
        self._start_all()
        if self._timer_at is not None and self._timer_at <= time.monotonic():
            self._timer_at = None
            socket_action(pycurl.SOCKET_TIMEOUT, 0)
        if self._running:
            self._cut_off_floods()
        # Last: a transfer may end in any call above, and nothing would end the next wait for it.
        self._collect()

    def _start_all(self) -> None:
        while self._resolved:
            # A name that leads nowhere needs no place in flight.
            if self._active >= self._in_flight and self._resolved[0][1].failure is None:
                break
            start, answer = self._resolved.popleft()
            self._send(start, answer, time.monotonic())
        while self._submitted and self._active < self._in_flight:
            try:
                request = self._submitted.popleft()
            except IndexError:
                return  # Withdrawn in this moment.
            try:
                self._start(request)
            except Exception:
                log.exception("a request could not be started")
                self._done(
                    Outcome(
                        request.tag, time.monotonic(), failure="unsendable", detail="see the log"
                    )
                )

    def _start(self, request: Request) -> None:
        """Find out where a request goes; send it, unless its name has to be asked for."""
        started_at = time.monotonic()
        if started_at > request.start_before:
            self._done(Outcome(request.tag, None))
            return
        try:
            destination = self._destination(request.url)
        except Refused as refused:
            self._done(
                Outcome(
                    request.tag,
                    started_at,
                    failure="blocked_address",
                    total_us=0,
                    detail=str(refused),
                )
            )
            return
        start = _Start(request, destination, started_at)
        if destination.is_literal:
            self._send(start, NO_NAME, started_at)
            return
        host, port, scheme = destination.host, destination.port, destination.scheme
        answer = self._resolver.known(host, port, scheme)
        if answer is not None:
            self._send(start, answer, started_at)
            return

        def on_answer(answer: Answer) -> None:
            self._resolved.append((start, answer))
            self._wake()

        self._resolver.lookup(host, port, scheme, on_answer, request.timeout_seconds)

    def _send(self, start: _Start, answer: Answer, now: float) -> None:
        """Hand a request whose addresses are known to libcurl."""
        request = start.request
        if answer.failure is not None:
            self._done(
                Outcome(
                    request.tag,
                    start.started_at,
                    failure=answer.failure,
                    total_us=start.microseconds_until(now),
                    detail=answer.detail,
                )
            )
            return
        transfer = self._idle.pop() if self._idle else self._new_transfer()
        try:
            if request.fill is not None:
                request.fill(request, start.started_at)
            transfer.begin(start, answer.addresses, now)
            self._multi.add_handle(transfer.curl)
        except (TypeError, ValueError, pycurl.error) as error:
            self._idle.append(transfer)
            self._done(
                Outcome(request.tag, start.started_at, failure="unsendable", detail=str(error))
            )
            return
        self._active += 1
        self._running[transfer] = None

    def _cut_off_floods(self) -> None:
        """Hang up on receivers that send more than any response may have.

        Headers and body are counted as they come (``_Transfer._on_header``, ``_on_body``), but what
        is neither, such as a chunk's extensions, libcurl reads without end and without a word. One
        receiver could keep the loop busy with that until its deadline.

        Rejected: MAX_RECV_SPEED, which counts the body alone and holds ordinary responses up.
        """
        now = time.monotonic()
        if now < self._look_for_floods_at:
            return
        self._look_for_floods_at = now + FLOOD_SECONDS
        floods = []
        for transfer in self._running:
            if transfer.begun_at > now - FLOOD_SECONDS:
                break  # Nor are those behind it old enough; most are done before they are.
            if transfer.is_flooded():
                floods.append(transfer)
        for transfer in floods:
            self._end(transfer, E_TOO_LARGE, "more than a response may have", now)

    def _collect(self) -> None:
        """Take from libcurl what has ended."""
        _, succeeded, failed = self._multi.info_read()
        if not succeeded and not failed:
            return
        now = time.monotonic()
        for curl in succeeded:
            self._end(self._transfers[curl], 0, "", now)
        for curl, code, message in failed:
            self._end(self._transfers[curl], code, message, now)

    def _end(self, transfer: _Transfer, code: int, message: str, now: float) -> None:
        self._multi.remove_handle(transfer.curl)
        if transfer.offered_unusable_connection:
            transfer.begin_again(now)
            self._multi.add_handle(transfer.curl)
            return
        self._active -= 1
        del self._running[transfer]
        try:
            outcome = transfer.outcome(code, message, now)
        except Exception:
            log.exception("a response could not be read")
            outcome = Outcome(
                transfer.tag, transfer.started_at, failure="bad_response", detail="see the log"
            )
        transfer.let_go()
        self._idle.append(transfer)
        self._done(outcome)

    def _done(self, outcome: Outcome) -> None:
        with self._load_lock:
            self._load -= 1
        try:
            self._on_done(outcome)
        except Exception:
            log.exception("an outcome could not be handed on")

    def _new_transfer(self) -> _Transfer:
        transfer = _Transfer(
            self._policy,
            self._forget_socket,
            self._retired_ports,
            self._connect_timeout_ms,
            self._ca_bundle,
        )
        self._transfers[transfer.curl] = transfer
        return transfer

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            pass  # The loop has ended.

    def _close(self) -> None:
        # The multi handle first: its pooled connections belong to easy handles.
        for curl in self._transfers:
            try:
                self._multi.remove_handle(curl)
            except pycurl.error:
                pass  # It was idle.
        self._multi.close()
        for curl in self._transfers:
            curl.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    # --- libcurl's sockets and timer ------------------------------------------------------------

    # A connection goes idle and back to work with every request. A socket stays in the selector
    # while it is idle: that saves two system calls per request, and a connection that becomes
    # readable then is of no use any more (``_retire``). ``_wanted`` is what libcurl waits for,
    # ``_watched`` what the selector was told.
    #
    # Rejected: multi.perform() with select(), which stops at 1,024 descriptors and looks at every
    # transfer on every turn. With 400 hanging receivers beside 16 fast ones it made 0.6 times as
    # many requests per CPU second; with none, 1.2 times.

    def _on_socket(self, what: int, fd: int, _multi: object, _data: object) -> None:
        # What is neither POLL_IN (1) nor POLL_OUT (2) is POLL_REMOVE (4) or POLL_NONE (0).
        events = what & (pycurl.POLL_IN | pycurl.POLL_OUT)
        self._wanted[fd] = events
        if not events:
            return
        watched = self._watched.get(fd)
        if watched is None:
            self._selector.register(fd, events)
        elif watched != events:
            self._selector.modify(fd, events)
        self._watched[fd] = events

    def _retire(self, fd: int) -> None:
        """An idle connection was closed by its receiver, or has bytes that nobody asked for.

        Those would be taken for the answer to the next request: libcurl itself looks at an idle
        connection once a second at most, and gives up after five dead ones. It is told when it
        wants to send there (``_on_ready_to_send``), which knows connections by our port.
        """
        self._selector.unregister(fd)
        del self._watched[fd]
        try:
            connection = socket.socket(fileno=fd)
        except OSError:
            return  # libcurl closed it in this very turn.
        try:
            self._retired_ports.add(connection.getsockname()[1])
        finally:
            connection.detach()  # It is libcurl's to close.

    def _forget_socket(self, fd: int) -> None:
        """A new socket has this number: what is known of it was another's, closed by libcurl."""
        self._wanted.pop(fd, None)
        if self._watched.pop(fd, None) is not None:
            self._selector.unregister(fd)

    def _on_timer(self, milliseconds: int) -> None:
        self._timer_at = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def _seconds_to_wait(self) -> float | None:
        if (self._submitted or self._resolved) and self._active < self._in_flight:
            return 0
        if self._timer_at is None:
            return None
        return max(0.0, self._timer_at - time.monotonic())


@dataclass(slots=True)
class _Start:
    """A request, where it goes, and when it began (monotonic seconds)."""

    request: Request
    destination: Destination
    started_at: float

    def microseconds_until(self, now: float) -> int:
        return int((now - self.started_at) * 1_000_000)


class _Transfer:
    """A libcurl handle and what it receives; used again for request after request.

    Its methods named ``_on_…`` are libcurl's callbacks. None of them may raise.
    """

    __slots__ = (
        "_addresses",
        "_begun_us",
        "_body",
        "_body_bytes",
        "_forget_socket",
        "_head",
        "_head_is_too_large",
        "_opened",
        "_peer",
        "_pinned",
        "_policy",
        "_refusal",
        "_retired_ports",
        "_sends",
        "_start",
        "_timeout_ms",
        "_wire_bytes_before",
        "begun_at",
        "curl",
        "offered_unusable_connection",
    )

    def __init__(
        self,
        policy: Policy,
        forget_socket: Callable[[int], None],
        retired_ports: set[int],
        connect_timeout_ms: int,
        ca_bundle: str,
    ) -> None:
        self._policy = policy
        self._forget_socket = forget_socket
        self._retired_ports = retired_ports
        self._head = bytearray()
        self._body = bytearray()
        self._pinned = False
        self._timeout_ms = 0
        self._wire_bytes_before: int | None = None
        self.begun_at = 0.0
        self.curl = curl = pycurl.Curl()
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.POST, 1),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.USERAGENT, ""),
            (pycurl.HTTP09_ALLOWED, 0),
            # The path goes out as it was registered, dots and all.
            (pycurl.PATH_AS_IS, 1),
            (pycurl.FOLLOWLOCATION, 0),
            # Nothing from the environment or the home directory.
            (pycurl.PROXY, ""),
            (pycurl.NOPROXY, "*"),
            (pycurl.NETRC, pycurl.NETRC_IGNORED),
            (pycurl.HTTP_CONTENT_DECODING, 0),
            (pycurl.CONNECTTIMEOUT_MS, connect_timeout_ms),
            (pycurl.MAXAGE_CONN, IDLE_CONNECTION_SECONDS),
            (pycurl.MAXLIFETIME_CONN, CONNECTION_LIFETIME_SECONDS),
            (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),
            (pycurl.SSL_VERIFYPEER, 1),
            (pycurl.SSL_VERIFYHOST, 2),
            (pycurl.CAINFO, ca_bundle),
            # The bundle alone is trusted, not what a build of libcurl adds by default.
            (pycurl.CAPATH, None),
            (pycurl.OPENSOCKETFUNCTION, self._on_open_socket),
            (pycurl.PREREQFUNCTION, self._on_ready_to_send),
            (pycurl.HEADERFUNCTION, self._on_header),
            (pycurl.WRITEFUNCTION, self._on_body),
        ):
            curl.setopt(option, value)

    def begin(self, start: _Start, addresses: tuple[str, ...], now: float) -> None:
        """Prepare the handle; ``ValueError`` if the request cannot be written as HTTP.

        ``addresses`` are those its name leads to; none if the URL has an address itself.
        """
        request, destination = start.request, start.destination
        headers = request.headers
        text = "".join(headers)
        if "\n" in text or "\r" in text or "\0" in text:
            raise ValueError("a header contains a line break or a NUL")
        self._start = start
        self._addresses = addresses
        self.offered_unusable_connection = False
        self.begun_at = now
        self._clear()
        setopt = self.curl.setopt
        setopt(pycurl.URL, destination.url)
        # No wait for "100 Continue", whatever the size of the body.
        setopt(pycurl.HTTPHEADER, [*headers, "Expect:"])
        setopt(pycurl.POSTFIELDS, request.body)
        if addresses:
            setopt(pycurl.RESOLVE, [_pin(destination, addresses)])
            self._pinned = True
        elif self._pinned:
            setopt(pycurl.RESOLVE, [])
            self._pinned = False
        self._set_deadline(now)

    @property
    def tag(self) -> object:
        """Whose request this is."""
        return self._start.request.tag

    @property
    def started_at(self) -> float:
        """When its request began (monotonic seconds)."""
        return self._start.started_at

    def begin_again(self, now: float) -> None:
        """Prepare the handle once more, for another connection.

        Nothing was sent yet: the pool offered one that is retired or leads where the name no
        longer does, and libcurl has closed it. That ends, since it can offer each only once.
        """
        self.offered_unusable_connection = False
        self._clear()
        self._set_deadline(now)

    def outcome(self, code: int, message: str, now: float) -> Outcome:
        """What came of it. ``code`` is libcurl's, 0 if it saw the end of the response."""
        curl, start = self.curl, self._start
        outcome = Outcome(self.tag, start.started_at, total_us=start.microseconds_until(now))
        outcome.resent = self._sends > 1
        outcome.address = self._address()
        self._note_times(outcome)

        head = _final_head(self._head)
        status = curl.getinfo(pycurl.RESPONSE_CODE)
        garbled = False
        if head is not None and status < 200 and code != 0:
            # The final response never came; but 101 or "1000" is nothing it could follow.
            garbled = _INTERIM.match(head) is None
            head = None
        if head is not None:
            outcome.status_code = status
            outcome.failure = _failure_of_status(status)
            outcome.response_headers = _storable(head, KEPT_HEADER_BYTES)
        elif self._refusal:
            outcome.failure = "blocked_address"
        elif self._head_is_too_large:
            outcome.failure = "too_large"
        elif garbled:
            outcome.failure = "bad_response"
        else:
            outcome.failure = _FAILURE_OF_CODE.get(code, "bad_response")

        kept = KEPT_BODY_BYTES_ON_SUCCESS
        if outcome.failure is not None:
            kept = KEPT_BODY_BYTES_ON_FAILURE
            outcome.detail = self._refusal or message
            if outcome.response_headers is not None:
                outcome.retry_after = _retry_after(outcome.response_headers)
        if head is not None:
            outcome.response_body = _storable(self._body, kept)
            outcome.truncated = code != 0 or self._body_bytes > kept
        return outcome

    def is_flooded(self) -> bool:
        """Whether its connection has brought more than any response may have, as far as the kernel
        says. Of a connection that was used before, what came until the first look is not counted.
        """
        fd = self.curl.getinfo(pycurl.ACTIVESOCKET)
        received = _bytes_received(fd) if fd >= 0 else 0
        if self._wire_bytes_before is None:
            self._wire_bytes_before = 0 if self._opened else received
        return received - self._wire_bytes_before > MAX_WIRE_BYTES

    def let_go(self) -> None:
        """Keep no large body while idle: hundreds of handles would hold on to the largest events
        that each has ever sent.
        """
        if len(self._start.request.body) > BODY_BYTES_KEPT_WHILE_IDLE:
            self._start.request.body = b""
            self.curl.setopt(pycurl.POSTFIELDS, b"")

    def _clear(self) -> None:
        self._head.clear()
        self._body.clear()
        self._body_bytes = 0
        self._head_is_too_large = False
        self._refusal = ""
        self._sends = 0
        self._opened = False
        self._peer = ("", 0)
        self._wire_bytes_before = None

    def _set_deadline(self, now: float) -> None:
        start = self._start
        self._begun_us = start.microseconds_until(now)
        seconds_left = start.started_at + start.request.timeout_seconds - now
        timeout_ms = max(1, round(seconds_left * 1000))
        if timeout_ms != self._timeout_ms:
            self.curl.setopt(pycurl.TIMEOUT_MS, timeout_ms)
            self._timeout_ms = timeout_ms

    def _address(self) -> str | None:
        ip, port = self._peer
        if not ip:  # Not ready to send: perhaps connected, but without TLS.
            ip = self.curl.getinfo(pycurl.PRIMARY_IP)
            port = self.curl.getinfo(pycurl.PRIMARY_PORT)
        if not ip:
            return None
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    def _note_times(self, outcome: Outcome) -> None:
        """libcurl counts from where it was handed the request, we from the start of the attempt."""
        getinfo, begun_us = self.curl.getinfo, self._begun_us
        outcome.resolve_us = begun_us if self._addresses else None
        if self._opened:
            connected = getinfo(pycurl.CONNECT_TIME_T)
            encrypted = getinfo(pycurl.APPCONNECT_TIME_T)
            outcome.connect_us = begun_us + connected if connected else None
            outcome.tls_us = begun_us + encrypted if encrypted else None
        if self._head:
            outcome.first_byte_us = begun_us + getinfo(pycurl.STARTTRANSFER_TIME_T)

    # --- libcurl's callbacks --------------------------------------------------------------------

    def _on_open_socket(self, _purpose: int, address: tuple[int, int, int, tuple[str, int]]) -> int:
        """The one place where a connection can begin; libcurl names the very address."""
        family, kind, protocol, where = address
        if family not in {socket.AF_INET, socket.AF_INET6}:
            self._refusal = f"address family {family} is not the internet's"
            return pycurl.SOCKET_BAD
        try:
            self._policy.judge_address(where[0], where[1], self._start.destination.scheme)
            fd = socket.socket(family, kind, protocol).detach()
            self._forget_socket(fd)
        except Refused as refused:
            self._refusal = str(refused)
            return pycurl.SOCKET_BAD
        except OSError as error:
            # No descriptor is left, most likely.
            log.warning("no socket for a delivery: %s", error)
            return pycurl.SOCKET_BAD
        self._opened = True
        return fd

    def _on_ready_to_send(self, ip: str, _own_ip: str, port: int, own_port: int) -> int:
        """Before each sending: a pooled connection must be sound and lead where the name does."""
        if self._opened:
            # If it is there, it was another connection's, which libcurl closed without offering it.
            self._retired_ports.discard(own_port)
        elif own_port in self._retired_ports or (self._addresses and ip not in self._addresses):
            self._retired_ports.discard(own_port)
            self.offered_unusable_connection = True
            return pycurl.PREREQFUNC_ABORT
        self._sends += 1
        self._peer = (ip, port)
        return pycurl.PREREQFUNC_OK

    def _on_header(self, line: bytes) -> int | None:
        self._head += line
        if len(self._head) > MAX_HEADER_BYTES:
            self._head_is_too_large = True
            return 0
        return None

    def _on_body(self, piece: bytes) -> int | None:
        room = KEPT_BODY_BYTES_ON_FAILURE - len(self._body)
        if room > 0:
            self._body += piece[:room]
        self._body_bytes += len(piece)
        return 0 if self._body_bytes > MAX_BODY_BYTES else None


def _connections() -> int:
    """How many connections may stay open, idle ones included.

    Fewer than there are busy receivers would open a new one for nearly every request; more than
    half of the descriptors this process may have would leave none for the database.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, max(16, descriptors // 2))


# struct tcp_info, linux/tcp.h
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_BYTES_RECEIVED = struct.Struct("@128xQ")


def _bytes_received(fd: int) -> int:
    """What a TCP connection has brought so far; 0 where the system does not tell (only Linux)."""
    if _TCP_INFO is None:
        return 0
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return 0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_RECEIVED.size)
    except OSError:
        return 0
    finally:
        connection.detach()  # It is libcurl's to close.
    received: int = _BYTES_RECEIVED.unpack(info)[0] if len(info) == _BYTES_RECEIVED.size else 0
    return received


def _pin(destination: Destination, addresses: tuple[str, ...]) -> str:
    """The addresses of a name in libcurl's terms; "+" lets the entry expire by itself."""
    pinned = ",".join(f"[{a}]" if ":" in a else a for a in addresses)
    return f"+{destination.host}:{destination.port}:{pinned}"


# --- Reading a response ------------------------------------------------------------------------

_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9][0-9](?:[ \n]|$)")
_RETRY_AFTER = re.compile(r"^retry-after:(.*)$", re.IGNORECASE | re.MULTILINE)

# CURLE_TOO_LARGE, for which pycurl has no name: a line longer than libcurl takes.
E_TOO_LARGE = 100

# What libcurl's verdict means while the headers are not complete.
_FAILURE_OF_CODE = {
    # libcurl takes a connection that ends amid the headers for one that ends after them.
    pycurl.E_OK: "reset",
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_COULDNT_CONNECT: "connect",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls",
    pycurl.E_SSL_CERTPROBLEM: "tls",
    pycurl.E_SSL_CIPHER: "tls",
    pycurl.E_SSL_CACERT_BADFILE: "tls",
    pycurl.E_SSL_ISSUER_ERROR: "tls",
    pycurl.E_GOT_NOTHING: "reset",
    pycurl.E_SEND_ERROR: "reset",
    pycurl.E_RECV_ERROR: "reset",
    pycurl.E_PARTIAL_FILE: "reset",
    E_TOO_LARGE: "too_large",
}


def _final_head(received: bytearray) -> bytes | None:
    r"""Status line and headers of the final response, or None if they are not complete.

    What was received may begin with interim responses (1xx) and end with a body's trailers.

    >>> _final_head(bytearray(b"HTTP/1.1 100 Go\n\nHTTP/1.1 200 OK\r\nA: b\r\n\r\nX: trailer\r\n"))
    b'HTTP/1.1 200 OK\nA: b'
    >>> _final_head(bytearray(b"HTTP/1.1 200 OK\r\nA: b\r\n")) is None
    True
    """
    head = bytes(received).replace(b"\r\n", b"\n")
    start = 0
    while True:
        end = head.find(b"\n\n", start)
        if end < 0:
            return None
        if not head.startswith(b"HTTP/", end + 2):
            return head[start:end]
        start = end + 2


def _failure_of_status(status: int) -> str | None:
    if 200 <= status <= 299:
        return None
    if 300 <= status <= 399:
        return "redirect"
    if 400 <= status <= 499:
        return "http_4xx"
    if 500 <= status <= 599:
        return "http_5xx"
    return "bad_response"


def _storable(data: bytes | bytearray, limit: int) -> str:
    r"""Text that PostgreSQL stores: no NUL, no broken UTF-8, no character cut in half.

    >>> ascii(_storable(b"a\0b\xff", 10)), _storable("aä".encode(), 2)
    ("'a\\ufffdb\\ufffd'", 'a')
    """
    if not data:
        return ""
    if len(data) >= limit:
        text, _ = codecs.utf_8_decode(data[:limit], "replace", False)
    else:
        text = data.decode("utf-8", "replace")
    return text.replace("\0", "\ufffd")


def _retry_after(headers: str) -> str | None:
    """The value as it came; what it means is for whoever decides about the next try."""
    found = _RETRY_AFTER.search(headers)
    return found[1].strip()[:KEPT_RETRY_AFTER_CHARACTERS] if found else None
