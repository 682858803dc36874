"""The receiver of the bench: answers every POST with 200, and notes which event came when.

    with Receiver(ports=100, hanging=10, talkative=100) as receiver:
        receiver.urls           one per port, so that each endpoint has a server of its own
        receiver.hanging_urls   servers that accept and read, and never answer
        receiver.talkative_urls servers whose answer has 64 KiB
        receiver.report()       what came since the last ``reset()``, but for what hangs

It must never be what is measured. So: one process and one thread, epoll by hand, each request one
``recv`` and one ``send`` of an answer that was built beforehand. It listens on loopback only and
ends with whoever started it, kill -9 included, since it then reads the end of its standard input.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ANSWER_BODY = b'{"received":true}'
# As long as what an ordinary web server says, since all of it is recorded.
ANSWER = b"\r\n".join(
    [
        b"HTTP/1.1 200 OK",
        b"Server: bench",
        b"Date: Thu, 01 Jan 2026 00:00:00 GMT",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(ANSWER_BODY),
        b"Connection: keep-alive",
        b"X-Request-Id: 0123456789abcdef0123456789abcdef",
        b"",
        ANSWER_BODY,
    ]
)
TALK_BYTES = 64 * 1024
TALK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
    TALK_BYTES,
    b"x" * TALK_BYTES,
)
REFUSAL = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

READ_BYTES = 16 * 1024  # more than any request of the bench
LONGEST_REQUEST_BYTES = 1024 * 1024
BACKLOG = 1024


@dataclass(frozen=True)
class Report:
    """What came since the last reset. Times are ``time.monotonic()``, which all processes share."""

    requests: int
    connections: int  # opened
    # Of each request in the order they came: its webhook-id ("" if it has none), and when.
    ids: list[str]
    times: list[float]
    cpu_seconds: float

    @property
    def events(self) -> int:
        """How many different events there were."""
        return len(set(self.ids))

    @property
    def first(self) -> float:
        """When the first request came."""
        return self.times[0]

    @property
    def last(self) -> float:
        """When the last request came."""
        return self.times[-1]


class Receiver:
    """The receiving process, seen from the one that started it."""

    def __init__(self, ports: int, hanging: int = 0, talkative: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *map(str, (ports, hanging, talkative))],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for its starter alone
        )
        self.urls, self.hanging_urls, self.talkative_urls = (
            [f"http://127.0.0.1:{port}/hook" for port in ports_of_kind]
            for ports_of_kind in self._answer()
        )

    def count(self) -> int:
        """How many requests came since the last reset."""
        return self._ask("count")

    def report(self) -> Report:
        """Everything about them."""
        return Report(**self._ask("report"))

    def reset(self) -> None:
        """Forget what came so far."""
        self._ask("reset")

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, question: str):
        assert self._process.stdin is not None
        self._process.stdin.write(question.encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the receiver has ended by itself")
        return json.loads(line)


# --- the process ----------------------------------------------------------------------------------


def main() -> int:
    """Listen, say on which ports, and serve until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ports, hanging, talkative = map(int, sys.argv[1:])
    listeners = [(_listen(), ANSWER) for _ in range(ports)]
    listeners += [(_listen(), None) for _ in range(hanging)]
    # Room for an answer as a whole, whatever the other side has read of the one before.
    listeners += [(_listen(4 * TALK_BYTES), TALK) for _ in range(talkative)]
    numbers = [listener.getsockname()[1] for listener, _ in listeners]
    _say([numbers[:ports], numbers[ports : ports + hanging], numbers[ports + hanging :]])
    serve(listeners)
    return 0


def serve(listeners: Iterable[tuple[socket.socket, bytes | None]]) -> None:
    """Answer requests and questions. A connection has at most one request under way.

    Each listener comes with the answer to give; None: none.
    """
    control = sys.stdin.buffer.raw
    by_fd = {listener.fileno(): (listener, answer) for listener, answer in listeners}
    connections: dict[int, tuple[socket.socket, bytes | None]] = {}
    unfinished: dict[int, bytes] = {}
    notes: list[tuple[bytes, float]] = []
    opened = 0
    cpu_at_reset = time.process_time()
    epoll = select.epoll()
    epoll.register(control.fileno(), select.EPOLLIN)
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    monotonic = time.monotonic

    while True:
        for fd, _ in epoll.poll():
            found = connections.get(fd)
            if found is None:
                if fd in by_fd:
                    opened += _accept(*by_fd[fd], connections, epoll)
                    continue
                question = control.readline().strip()
                if question == b"reset":
                    notes.clear()
                    opened = 0
                    cpu_at_reset = time.process_time()
                    _say(None)
                elif question == b"count":
                    _say(len(notes))
                elif question == b"report":
                    _say(
                        {
                            "requests": len(notes),
                            "connections": opened,
                            "ids": [message_id.decode() for message_id, _ in notes],
                            "times": [moment for _, moment in notes],
                            "cpu_seconds": time.process_time() - cpu_at_reset,
                        }
                    )
                else:
                    return
                continue
            connection, answer = found
            try:
                data = connection.recv(READ_BYTES)
                if fd in unfinished:
                    data = unfinished.pop(fd) + data if data else data
                if not data:
                    del connections[fd]
                    connection.close()
                    continue
                if answer is None:
                    continue
                missing = _missing_bytes(data)
                if missing == 0:
                    start = data.find(b"webhook-id: ") + 12
                    message_id = data[start : data.find(b"\r", start)] if start > 11 else b""
                    notes.append((message_id, monotonic()))
                    connection.send(answer)
                elif missing > 0 and len(data) < LONGEST_REQUEST_BYTES:
                    unfinished[fd] = data
                else:
                    connection.send(REFUSAL)
                    del connections[fd]
                    connection.close()
            except OSError:  # reset by the other side
                connections.pop(fd)[0].close()
                unfinished.pop(fd, None)


def _missing_bytes(data: bytes) -> int:
    r"""How much of a request is still to come: at least that many bytes, 0 if it is complete, and
    less than 0 if it is none that the bench sends.

    >>> _missing_bytes(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    0
    >>> _missing_bytes(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n")
    2
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 1
    start = data.find(b"Content-Length: ", 0, end)
    if start < 0:
        return -1
    return end + 4 + int(data[start + 16 : data.find(b"\r", start)]) - len(data)


def _listen(send_buffer_bytes: int | None = None) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    # Accepted ones inherit these.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    return listener


def _accept(
    listener: socket.socket,
    answer: bytes | None,
    connections: dict[int, tuple[socket.socket, bytes | None]],
    epoll: select.epoll,
) -> int:
    """Take all that are waiting; returns how many."""
    accepted = 0
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return accepted
        accepted += 1
        connection.setblocking(False)
        connections[connection.fileno()] = (connection, answer)
        epoll.register(connection.fileno(), select.EPOLLIN)


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main())
