"""How gunicorn waits for clients: without a thread.

Its own worker of threads gives each connection to a thread, which then waits for the request: a
hundred clients that send one byte a second, or nothing, stop an API of sixteen threads. Here the
loop that polls the sockets collects a request, head and body, and a thread gets it when it is
whole, as behind a proxy that buffers. Nor does the loop wait for a client to close.
"""

from __future__ import annotations

import errno
import re
import selectors
import socket
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from gunicorn import http
from gunicorn.http.unreader import IterUnreader
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

# So long may a request take to come in whole: 4 MiB at 140 KB/s.
REQUEST_SECONDS = 30.0
# So long an answered connection waits to be closed by the client, who may not have read it all yet.
LINGER_SECONDS = 2.0
# So long a thread waits in all for a client to take an answer, and how much of that is to fit into
# the kernel's buffer, for which nobody waits; the kernel may allow less.
ANSWER_SECONDS = 30.0
SEND_BUFFER_BYTES = 1024 * 1024

# Longer ones are handed over as they are, for gunicorn or a view to refuse. A view reads up to
# 16 MiB of a body that it refuses, so that the client gets to see the answer.
MOST_HEAD_BYTES = 64 * 1024
MOST_REQUEST_BYTES = 17 * 1024 * 1024
# Of all requests of a process that come in or wait for a thread or its answer. If they hold more,
# those that still come in make way, the longest first, unless they are short.
MOST_HELD_BYTES = 128 * 1024 * 1024

RECEIVED_AT_A_TIME = 256 * 1024
MOST_CHUNK_LINE_BYTES = 4096

# What a proxy may say first, with a length behind it (its PROXY protocol, version 2).
PROXY_V2 = b"\r\n\r\n\x00\r\nQUIT\n"

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*0*([0-9]{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_ENCODING = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


class Request:
    r"""What has come in of a request, and whether that is all of it. Judges nothing else.

    Asked after each piece that comes in, however small, in the loop of the whole process: so what
    was looked at is not looked at again, but for a last line, and trailers within bounds.

    >>> request = Request()
    >>> request.add(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{")
    >>> request.is_whole()
    False
    >>> request.add(b"}")
    >>> request.is_whole()
    True
    """

    def __init__(self, received: bytes = b"") -> None:
        self.received = bytearray(received)
        self._searched = 0  # for the end of the head
        self._head = 0  # its length, once known
        self._needed = 0  # the length of it all, unless it comes in chunks
        self._chunk: int | None = None  # where the next chunk begins
        self._expects_continue = False

    def add(self, data: bytes) -> None:
        """What came next."""
        self.received += data

    def is_whole(self) -> bool:
        """Whether it is complete, or too long or too odd to wait for more of it."""
        if not self._head and not self._find_head():
            return len(self.received) > MOST_HEAD_BYTES
        if len(self.received) > MOST_REQUEST_BYTES:
            return True
        if self._chunk is not None:
            return self._has_last_chunk()
        return len(self.received) >= self._needed

    def takes_continue(self) -> bool:
        """Whether the client sends the body when it is told to (RFC 9110, section 10.1.1)."""
        return self._expects_continue

    def _find_head(self) -> bool:
        beginning = self.received[: len(PROXY_V2)]
        if self._searched < len(PROXY_V2) and PROXY_V2.startswith(beginning):
            if len(self.received) < 16:
                return False
            self._searched = 16 + int.from_bytes(self.received[14:16]) + 3
        at = self.received.find(b"\r\n\r\n", max(0, self._searched - 3))
        self._searched = max(self._searched, len(self.received))
        if at < 0:
            return False
        self._head = self._needed = at + 4
        if self._head > MOST_HEAD_BYTES:
            return True
        self._expects_continue = bool(_EXPECT.search(self.received, 0, self._head))
        lengths = _LENGTH.findall(self.received, 0, self._head)
        if _ENCODING.search(self.received, 0, self._head):
            if not lengths:
                self._chunk = self._head
        elif len(lengths) == 1:
            self._needed += int(lengths[0])
        return True

    def _has_last_chunk(self) -> bool:
        """Goes on behind the last chunk that was there as a whole (RFC 9112, section 7.1)."""
        assert self._chunk is not None
        while True:
            line = self.received.find(b"\r\n", self._chunk)
            if line < 0:
                return len(self.received) - self._chunk > MOST_CHUNK_LINE_BYTES
            digits = bytes(self.received[self._chunk : line]).partition(b";")[0].strip()
            if not re.fullmatch(b"[0-9A-Fa-f]{1,16}", digits):
                return True
            size = int(digits, 16)
            if size == 0:  # and trailers, which are as a head is
                is_endless = len(self.received) - line > MOST_HEAD_BYTES
                return is_endless or self.received.find(b"\r\n\r\n", line) >= 0
            if line + 2 + size + 2 > len(self.received):
                return False
            self._chunk = line + 2 + size + 2


class Received(IterUnreader):  # type: ignore[misc]  # it has no types
    """What has come in of a request, for gunicorn's parser, which says where the request ends."""

    def __init__(self, received: bytes) -> None:
        super().__init__([received])
        self.was_too_little = False

    def chunk(self, size_hint: int | None = None) -> bytes:
        """All of it, once. Who wants more has read the request otherwise than we did."""
        data: bytes = super().chunk(size_hint)
        self.was_too_little |= not data
        return data


class Connection(TConn):  # type: ignore[misc]  # it has no types
    """A client, and the request that it is sending."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.initialized = self.data_ready = True  # no thread has to wait for a beginning
        self.request = Request()
        self.handed_over = 0  # bytes of the request that is being answered
        self.was_told_to_continue = False


class BufferingWorker(ThreadWorker):  # type: ignore[misc]  # it has no types
    """The worker. All of this runs in its loop, except for ``handle_request``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lingering: deque[Connection] = deque()
        self._held_bytes = 0
        self._stopped_at: float | None = None

    # -------------------------------------------------------------------------------- requests

    def accept(self, listener: socket.socket) -> None:
        """A new client."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            elif error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.nr_conns += 1
        self._await_request(Connection(self.cfg, client, address, listener.getsockname()))

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        """A client that was answered before sends something."""
        self.keepalived_conns.remove(conn)
        if self._has_all(conn):
            self.poller.unregister(client)
            self._hand_over(conn)
        else:
            self._wait_for_more(conn, self.poller.modify)

    def on_pending_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        """More of a request has come in, or its end; unless it was dropped in the same round."""
        if conn.sock.fileno() < 0 or not self._has_all(conn):
            return
        self.poller.unregister(client)
        self.pending_conns.remove(conn)
        self._hand_over(conn)

    def _await_request(self, conn: Connection) -> None:
        """Mostly it is there already."""
        conn.sock.setblocking(False)
        self._held_bytes += len(conn.request.received)
        if conn.request.is_whole() or self._has_all(conn):
            self._hand_over(conn)
            return
        self._wait_for_more(conn, self.poller.register)

    def _wait_for_more(self, conn: Connection, register: Callable[..., object]) -> None:
        conn.timeout = time.monotonic() + REQUEST_SECONDS
        self.pending_conns.append(conn)
        register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def _has_all(self, conn: Connection) -> bool:
        """Take what has come; whether nothing more is to be waited for.

        Looks twice: most clients send head and body one right after the other.
        """
        for _ in range(2):
            try:
                data = conn.sock.recv(RECEIVED_AT_A_TIME)
            except BlockingIOError:
                break
            except OSError:
                return True
            if not data:
                return True
            conn.request.add(data)
            self._held_bytes += len(data)
            if conn.request.is_whole():
                return True
        if not conn.was_told_to_continue and conn.request.takes_continue():
            conn.was_told_to_continue = True
            with suppress(OSError):
                conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self._held_bytes > MOST_HELD_BYTES and self.pending_conns:
            longest = max(self.pending_conns, key=lambda one: len(one.request.received))
            if len(longest.request.received) <= MOST_HEAD_BYTES:
                break
            self._drop_pending(longest)
        return False

    def _hand_over(self, conn: Connection) -> None:
        """Let a thread answer it. The parser has these bytes and no others: it never waits."""
        received = bytes(conn.request.received)
        conn.handed_over = len(received)
        if not received:
            self._close(conn)
            return
        conn.request = Request()
        conn.was_told_to_continue = False
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, (), conn.client)
        conn.parser.unreader = Received(received)
        self.enqueue_req(conn)

    def handle_request(self, req: Any, conn: Connection) -> Any:
        """Answer, in a thread."""
        conn.sock.settimeout(ANSWER_SECONDS)  # of a whole sendall: trickling does not help
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            raise OSError(errno.EPIPE, "the client does not read its answer") from None

    # -------------------------------------------------------------------------------- afterwards

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        """What becomes of the connection: the next request on it, a pause, or its end.

        Its end, too, if the request was not there as a whole: the rest of its body may be on its
        way, and must never be taken for another request (RFC 9112, section 11.2).
        """
        self._held_bytes -= conn.handed_over
        is_over = fs.cancelled() or fs.exception() is not None or not fs.result()
        if is_over or conn.parser.unreader.was_too_little:
            self._linger(conn)
            return
        conn.request = Request(conn.parser.unreader.take_buffered())
        if conn.request.received:
            self._await_request(conn)
        else:
            super().finish_request(conn, fs)

    def _linger(self, conn: Connection) -> None:
        """Say that this was all, and let the client close: what it has not read yet would be lost
        if it were still sending when we do (RFC 9112, section 9.6).
        """
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._discard, conn))
        except (OSError, ValueError, KeyError, RuntimeError):
            self._close(conn)
            return
        conn.timeout = time.monotonic() + LINGER_SECONDS
        self._lingering.append(conn)

    def _discard(self, conn: Connection, client: socket.socket) -> None:
        try:
            if client.recv(RECEIVED_AT_A_TIME):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._lingering.remove(conn)
        self.poller.unregister(client)
        self._close(conn)

    def murder_pending(self) -> None:
        """Close those whose time is over; a worker that stops waits for no first byte."""
        now = time.monotonic()
        if not self.alive and self._stopped_at is None:
            self._stopped_at = now
        if self._stopped_at is not None and now > self._stopped_at + STOP_KEEPALIVE_LINGER:
            for conn in [one for one in self.pending_conns if not one.request.received]:
                self._drop_pending(conn)
        while self.pending_conns and self.pending_conns[0].timeout <= now:
            self._drop_pending(self.pending_conns[0])
        while self._lingering and self._lingering[0].timeout <= now:
            conn = self._lingering.popleft()
            self.poller.unregister(conn.sock)
            self._close(conn)

    def _drop_pending(self, conn: Connection) -> None:
        self.pending_conns.remove(conn)
        self.poller.unregister(conn.sock)
        self._held_bytes -= len(conn.request.received)
        self._close(conn)

    def _make_room(self) -> None:
        """This process may open no more files: who has said nothing for longest is closed."""
        if self.pending_conns:
            self._drop_pending(self.pending_conns[0])
        elif self.keepalived_conns:
            conn = self.keepalived_conns.popleft()
            self.poller.unregister(conn.sock)
            self._close(conn)

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()
