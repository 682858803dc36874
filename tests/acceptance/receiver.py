"""A receiver of webhooks in a process of its own, which knows nothing of our database.

Each request is appended to a file before it is answered: that file is the other side's truth, which
the tests hold against our books. The query of the URL that is called tells how to answer:

    delay, jitter    after so many seconds, and up to so many more at random
    status, times    with this status instead of 200, the first so many times (default: always)
    retry_after      with this header
    consent=no       without answering a challenge

As a program: ``receiver.py FILE`` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit


class Seen(NamedTuple):
    """A request as it arrived. ``at`` is this machine's clock, which the database has too."""

    at: float
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def event(self) -> str:
        return self.headers["webhook-id"]

    @property
    def number(self) -> int:
        return int(self.headers["webhook-attempt"])


class RecordingReceiver:
    """The process, and what it has seen so far; a context manager."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read_up_to = 0
        self._seen: list[Seen] = []

    def __enter__(self) -> Self:
        self._file.touch()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self._file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1", **query: object) -> str:
        """A URL to register; ``query`` is how to answer there."""
        asked_for = "&".join(f"{name}={value}" for name, value in query.items())
        return f"http://{host}:{self.port}{path}{'?' if query else ''}{asked_for}"

    @property
    def seen(self) -> list[Seen]:
        """Every request so far, in the order of arrival."""
        with self._file.open("rb") as file:
            file.seek(self._read_up_to)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read_up_to += len(whole) + len(newline)
        for line in whole.splitlines():
            at, target, headers, body = json.loads(line)
            self._seen.append(Seen(at, target, headers, body.encode("latin-1")))
        return self._seen

    def at(self, path: str) -> list[Seen]:
        """The requests for one path."""
        return [request for request in self.seen if request.path == path]


# --- the program ----------------------------------------------------------------------------------


async def serve(file: int) -> None:
    loop = asyncio.get_running_loop()
    counts: Counter[str] = Counter()
    server = await loop.create_server(
        lambda: Connection(file, counts, loop.call_later), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - a program's output
    over = asyncio.Event()
    loop.add_reader(sys.stdin, over.set)  # readable when the test run has closed it, or is gone
    await over.wait()


class Connection(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def __init__(self, file: int, counts: Counter[str], call_later: Callable[..., object]) -> None:
        self._file = file
        self._counts = counts
        self._call_later = call_later
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (each.partition(": ") for each in lines)
        }
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._received = b""
        self._answer(first.split(" ")[1], headers, body)

    def _answer(self, target: str, headers: dict[str, str], body: bytes) -> None:
        line = json.dumps([time.time(), target, headers, body.decode("latin-1")])
        os.write(self._file, f"{line}\n".encode())
        self._counts[target] += 1
        asked_for = dict(parse_qsl(urlsplit(target).query))
        response = self._response(target, asked_for, body)
        delay = float(asked_for.get("delay", "0"))
        delay += random.uniform(0, float(asked_for.get("jitter", "0")))
        if delay:
            self._call_later(delay, self._transport.write, response)
        else:
            self._transport.write(response)

    def _response(self, target: str, asked_for: dict[str, str], body: bytes) -> bytes:
        status, answer, more = 200, b"thank you", ""
        if self._counts[target] <= int(asked_for.get("times", sys.maxsize)):
            status = int(asked_for.get("status", "200"))
            if "retry_after" in asked_for:
                more = f"Retry-After: {asked_for['retry_after']}\r\n"
        event = json.loads(body)
        if event["type"] == "endpoint.challenge" and asked_for.get("consent") != "no":
            answer = json.dumps({"challenge_response": event["data"]["challenge"]}).encode()
        head = f"HTTP/1.1 {status} As Asked\r\n{more}Content-Length: {len(answer)}\r\n\r\n"
        return head.encode() + answer


if __name__ == "__main__":
    asyncio.run(serve(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)))
