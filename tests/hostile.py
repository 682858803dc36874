"""Receivers and name servers on loopback that misbehave on purpose.

A receiver hands each connection, in a thread of its own, to a behaviour: a function of the
connected socket. What it leaves open is closed for it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Self

Behaviour = Callable[[socket.socket], None]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Receiver:
    """A listener on loopback; a context manager. ``connections`` counts those it accepted."""

    def __init__(self, behave: Behaviour, *, address: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.behave = behave
        self.address = address
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((address, port), family=family, backlog=512)
        self.port = self._listener.getsockname()[1]

    def url(self, path: str = "/hook", *, scheme: str = "http", host: str | None = None) -> str:
        host = host or (f"[{self.address}]" if ":" in self.address else self.address)
        return f"{scheme}://{host}:{self.port}{path}"

    def __enter__(self) -> Self:
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown(), since close() alone does not end an accept() in another thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        try:
            self.behave(connection)
        except OSError:
            pass  # The other side hung up, as it should.
        finally:
            self._open.discard(connection)
            connection.close()


# --- Behaviours --------------------------------------------------------------------------------


def read_request(connection: socket.socket) -> bytes:
    """One whole request as it came over the wire; empty if the other side hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answer(response: bytes, *, seen: list[bytes] | None = None, delay: float = 0.0) -> Behaviour:
    """Answer every request of a connection with the same bytes."""

    def behave(connection: socket.socket) -> None:
        while request := read_request(connection):
            if seen is not None:
                seen.append(request)
            if delay:
                time.sleep(delay)
            connection.sendall(response)

    return behave


def answer_and_close(response: bytes) -> Behaviour:
    """Answer the first request of a connection, then close it."""

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(response)

    return behave


def answer_and_reset(response: bytes) -> Behaviour:
    """Answer, then cut the connection with a RST rather than a FIN."""

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(response)
        time.sleep(0.05)
        reset(connection)

    return behave


def reset(connection: socket.socket) -> None:
    """Close with a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang(connection: socket.socket) -> None:
    """Read whatever comes and never answer."""
    while connection.recv(65536):
        pass


def never_read(connection: socket.socket) -> None:
    """Leave all that comes in the buffers, so that the sender's window closes."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    poll.poll(30_000)


def drip(start: bytes, piece: bytes, *, every: float = 0.05) -> Behaviour:
    """Send ``start`` at once, then ``piece`` again and again, for as long as anyone listens."""

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(every)

    return behave


def pour(start: bytes, pieces: Iterable[bytes], *, poured: Counter[str] | None = None) -> Behaviour:
    """Send ``start``, then all pieces as fast as they go; ``poured["bytes"]`` counts them."""

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(start)
        for piece in pieces:
            connection.sendall(piece)
            if poured is not None:
                poured["bytes"] += len(piece)

    return behave


def over_tls(context: ssl.SSLContext, behave: Behaviour) -> Behaviour:
    """The same behaviour on an encrypted connection."""

    def behave_encrypted(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            behave(encrypted)

    return behave_encrypted


def drip_tls_record(connection: socket.socket) -> None:
    """Begin a TLS handshake record and send the rest of it a byte at a time."""
    connection.recv(65536)
    connection.sendall(b"\x16\x03\x03\x40\x00")
    while True:
        connection.sendall(b"\x02")
        time.sleep(0.05)


# --- Names -------------------------------------------------------------------------------------

A, AAAA = 1, 28
NXDOMAIN, SERVFAIL = 3, 2


class Silence:
    """A question that is never answered."""


# What a name server says to a question: addresses of the type asked for, an error code, or nothing.
Reply = list[str] | int | type[Silence]
Zone = Callable[[str, int], Reply]


class NameServer:
    """A DNS server on a loopback port; a context manager.

    ``zone(name, query_type)`` gives the reply. ``asked`` counts questions by name. Answers that
    do not fit into a datagram are truncated there and whole over TCP.
    """

    def __init__(self, zone: Zone, *, ttl: int = 0, delay: float = 0.0) -> None:
        self.zone = zone
        self.ttl = ttl
        self.delay = delay
        self.asked: Counter[str] = Counter()
        self._udp, self._tcp = _udp_and_tcp()
        self.port = self._udp.getsockname()[1]
        self._closed = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=serve, daemon=True)
            for serve in (self._serve_udp, self._serve_tcp)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join()
        self._tcp.close()
        self._udp.close()

    def _serve_udp(self) -> None:
        while True:
            query, client = self._udp.recvfrom(4096)
            if self._closed:
                return
            reply = self._reply(query)
            if reply is None:
                continue
            if len(reply) > 1232:
                reply = _truncated(reply, query)
            if self.delay:
                threading.Timer(self.delay, self._send, (reply, client)).start()
            else:
                self._send(reply, client)

    def _send(self, reply: bytes, client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):  # Closed, since the test is over.
            self._udp.sendto(reply, client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                (length,) = struct.unpack("!H", connection.recv(2))
                reply = self._reply(connection.recv(length))
                if reply is not None:
                    connection.sendall(struct.pack("!H", len(reply)) + reply)
                with contextlib.suppress(OSError):
                    connection.recv(1)

    def _reply(self, query: bytes) -> bytes | None:
        name, query_type, end = _question(query)
        self.asked[name] += 1
        reply = self.zone(name, query_type)
        if reply is Silence:
            return None
        code = reply if isinstance(reply, int) else 0
        records = b"".join(self._records(reply if isinstance(reply, list) else [], query_type))
        count = len(records) // (16 if query_type == A else 28)
        flags = 0x8180 | code
        return query[:2] + struct.pack("!5H", flags, 1, count, 0, 0) + query[12:end] + records

    def _records(self, addresses: list[str], query_type: int) -> Iterator[bytes]:
        version = 4 if query_type == A else 6
        for address in map(ip_address, addresses):
            if address.version == version:
                data = address.packed
                # 0xc00c: the name in the question.
                yield struct.pack("!HHHIH", 0xC00C, query_type, 1, self.ttl, len(data)) + data


def _udp_and_tcp() -> tuple[socket.socket, socket.socket]:
    """Two sockets on the same port of loopback."""
    while True:
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
        else:
            return udp, tcp


def _question(query: bytes) -> tuple[str, int, int]:
    """The name asked for in lower case, the type, and where the question ends."""
    labels, position = [], 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode())
        position += 1 + length
    (query_type,) = struct.unpack("!H", query[position + 1 : position + 3])
    return ".".join(labels).lower(), query_type, position + 5


def _truncated(reply: bytes, query: bytes) -> bytes:
    _, _, end = _question(query)
    return reply[:2] + struct.pack("!5H", 0x8380, 1, 0, 0, 0) + reply[12:end]
