"""HTTP clients that cost next to nothing: each sends its next request when it has its answer.

One thread, requests built beforehand, no library: what they use of the machine is the API's loss.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from bench.ground import PATIENCE_SECONDS, BenchError

READ_BYTES = 256 * 1024
NO_DELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@dataclass(frozen=True)
class Answered:
    """What came of it."""

    requests: int
    began: float  # monotonic


def ask(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Answered:
    """Send these requests in turn for so long; each must be answered 202."""
    following = cycle(requests)
    epoll = select.epoll()
    connections: dict[int, socket.socket] = {}
    unfinished: dict[int, bytes] = {}
    began = time.monotonic()
    answered = 0
    try:
        for _ in range(clients):
            connection = _connect(port)
            connections[connection.fileno()] = connection
            epoll.register(connection.fileno(), select.EPOLLIN)
            connection.sendall(next(following))
        waiting = clients
        while waiting:
            ready = epoll.poll(PATIENCE_SECONDS)
            if not ready:
                raise BenchError(f"the API has not answered for {PATIENCE_SECONDS} s")
            for fd, _ in ready:
                piece = connections[fd].recv(READ_BYTES)
                answer = unfinished.pop(fd, b"") + piece
                if not piece or not answer.startswith(b"HTTP/1.1 202 "[: len(answer)]):
                    raise BenchError(f"the API answered {answer.decode(errors='replace')[:500]}")
                if not _is_whole(answer):
                    unfinished[fd] = answer
                    continue
                answered += 1
                if b"\nConnection: close" in answer[: answer.find(b"\r\n\r\n")]:
                    # gunicorn renews a worker, or keeps no more connections than it has threads.
                    epoll.unregister(fd)
                    connections.pop(fd).close()
                    connection = _connect(port)
                    fd = connection.fileno()  # noqa: PLW2901 - it takes the other's place
                    connections[fd] = connection
                    epoll.register(fd, select.EPOLLIN)
                if time.monotonic() - began < seconds:
                    connections[fd].sendall(next(following))
                else:
                    waiting -= 1
    finally:
        for connection in connections.values():
            connection.close()
        epoll.close()
    return Answered(answered, began)


def post(path: str, token: str, body: bytes) -> bytes:
    """A request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(*NO_DELAY)
    return connection


def _is_whole(answer: bytes) -> bool:
    r"""Whether head and body are there.

    >>> _is_whole(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{")
    False
    """
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    start = answer.find(b"Content-Length: ", 0, end)
    return len(answer) >= end + 4 + int(answer[start + 16 : answer.find(b"\r", start)])
