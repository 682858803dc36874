"""How requests come in: whole, in pieces, several at once, or when the client is told to."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from time import monotonic, sleep

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import ThreadWorker

from app import server
from app.server import BufferingWorker, Connection, Request
from tests.conftest import new_database
from tests.live import LiveService

HEAD = b"POST /nowhere HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "no body": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a length": HEAD + b"Content-Length: 5\r\n\r\n\r\n\r\n.",
    "a length, oddly spelled": HEAD + b"conTENT-length: \t5 \r\n\r\n12345",
    "a length with zeros in front": HEAD + b"Content-Length: " + b"0" * 20 + b"5\r\n\r\n12345",
    "an empty line first": b"\r\n" + HEAD + b"Content-Length: 5\r\n\r\n12345",
    "no length at all": HEAD + b"Content-Length: 0\r\n\r\n",
    "chunks": CHUNKED + b"3\r\nabc\r\nA;x=y\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
    "behind a proxy": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "behind a proxy that speaks binary": server.PROXY_V2
    + b"\x21\x11\x00\x0c\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunks and a trailer": CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\n\r\n",
}


@pytest.mark.parametrize("sent", WHOLE.values(), ids=WHOLE)
def test_a_request_is_whole_with_its_last_byte_and_not_before(sent):
    request = Request()
    for n in range(len(sent)):
        assert not request.is_whole(), sent[:n]
        request.add(sent[n : n + 1])
    assert request.is_whole()
    assert Request(sent).is_whole()
    assert Request(sent + b"GET").is_whole(), "and what follows is the next one's"


@pytest.mark.parametrize(
    "sent",
    [
        b"x" * (server.MOST_HEAD_BYTES + 1),
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED + b"-3\r\n",
        CHUNKED + b"0x3\r\n",
        CHUNKED + b"\r\n",
        CHUNKED + b"3" * 17 + b"\r\n",
        CHUNKED + b"3" * (server.MOST_CHUNK_LINE_BYTES + 1),
        CHUNKED + b"0\r\nX: " + b"y" * server.MOST_HEAD_BYTES,
        HEAD + b"Content-Length: 5\r\nX: " + b"y" * server.MOST_HEAD_BYTES + b"\r\n\r\n",
        HEAD + b"Content-Length: 99999999999\r\n\r\n" + b"x" * server.MOST_REQUEST_BYTES,
    ],
    ids=lambda sent: f"{sent[34:70]!r}",
)
def test_for_what_is_odd_or_endless_nobody_waits(sent):
    assert Request(sent).is_whole()


# ----------------------------------------------------------------------------------- the worker


class Listener:
    """Where the worker's clients come from; out of files when there is none."""

    def __init__(self) -> None:
        self.waiting: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, str]:
        if not self.waiting:
            raise OSError(errno.EMFILE, "Too many open files")
        return self.waiting.pop(), ""

    def getsockname(self) -> str:
        return ""


class Desk:
    """A worker without threads: what it would have them answer is in ``queue``."""

    def __init__(self) -> None:
        self.worker = BufferingWorker(0, os.getppid(), [], None, 30, Config(), logging)
        self.worker.poller = selectors.DefaultSelector()
        self.queue: list[Connection] = []
        self.worker.enqueue_req = self.queue.append
        self.listener = Listener()
        self.clients: list[socket.socket] = []

    def client(self, said: bytes = b"") -> socket.socket:
        """One that has connected and said that."""
        mine, its = socket.socketpair()
        mine.settimeout(5)
        mine.sendall(said)
        self.clients.append(mine)
        self.listener.waiting.append(its)
        self.worker.accept(self.listener)
        return mine

    def finish(self, result: bool) -> None:
        """The first of the queue is answered."""
        done: Future[bool] = Future()
        done.set_result(result)
        self.worker.finish_request(self.queue.pop(0), done)

    def close(self) -> None:
        for each in self.clients:
            each.close()
        open_ones = [key.fileobj for key in self.worker.poller.get_map().values()]
        for each in [*open_ones, *(conn.sock for conn in self.queue)]:
            each.close()
        self.worker.poller.close()
        self.worker.tmp.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_what_waits_for_a_thread_is_held_too(desk, monkeypatch):
    """However many long requests come in while all threads are busy, memory has a bound."""
    monkeypatch.setattr(server, "MOST_HEAD_BYTES", 1000)
    monkeypatch.setattr(server, "MOST_HELD_BYTES", 6000)
    long = HEAD + b"Content-Length: 5000\r\n\r\n"
    desk.client(long + b"x" * 5000)
    assert len(desk.queue) == 1
    short, too_much = desk.client(HEAD), desk.client(long + b"x" * 2000)
    last = desk.client(HEAD)
    assert (is_open(short), is_open(too_much), is_open(last)) == (True, False, True)
    desk.finish(False)
    assert is_open(desk.client(long + b"x" * 2000)), "once that one is answered"


def test_without_files_left_who_waited_longest_makes_room(desk):
    """And the worker lives on, with all that it has under way."""
    first, second = desk.client(), desk.client(HEAD)
    desk.worker.accept(desk.listener)
    assert (is_open(first), is_open(second)) == (False, True)
    desk.worker.accept(desk.listener)
    assert not is_open(second)
    desk.worker.accept(desk.listener)


def test_who_takes_an_answer_drop_by_drop_keeps_a_thread_for_a_bounded_time(desk, monkeypatch):
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.3)
    answer = b"x" * 16 * 1024 * 1024
    monkeypatch.setattr(
        ThreadWorker, "handle_request", lambda _self, _req, conn: conn.sock.sendall(answer)
    )
    client = desk.client(WHOLE["no body"])
    (conn,) = desk.queue
    conn.sock.setblocking(True)
    taken = []

    def drink() -> None:
        with suppress(OSError):
            while len(taken) < 2000:
                taken.append(client.recv(8192))
                sleep(0.01)

    drinking = Thread(target=drink)
    drinking.start()
    began = monotonic()
    with pytest.raises(OSError, match="does not read") as refused:
        desk.worker.handle_request(None, conn)
    assert refused.value.errno == errno.EPIPE
    assert monotonic() - began < 2
    client.shutdown(socket.SHUT_RDWR)
    drinking.join()


# --------------------------------------------------------------------------------- on the wire


@pytest.fixture(scope="module")
def live(server_url: str, template: str) -> Iterator[LiveService]:
    """One process, so that all connections meet."""
    with (
        new_database(server_url, template) as url,
        LiveService(url, dispatchers=0, API_WORKERS="1", API_THREADS="2") as live,
    ):
        yield live


def heard(connection: socket.socket, until: bytes) -> bytes:
    """What comes back, up to these bytes."""
    said = b""
    while until not in said:
        piece = connection.recv(65536)
        assert piece, said
        said += piece
    return said


@pytest.fixture
def connection(live: LiveService) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        yield connection


def test_requests_that_come_together_are_answered_one_after_the_other(connection):
    paths = (b"/healthz", b"/nowhere", b"/healthz", b"/elsewhere")
    asked = [b"GET %b HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n" % (path, n)
             for n, path in enumerate(paths)]  # fmt: skip
    connection.sendall(b"".join(asked))
    said = heard(connection, b"/elsewhere")
    found = [line for line in said.split(b"\r\n") if line.lower().startswith(b"x-request-id: ")]
    assert [line.split(b": ")[1] for line in found] == [b"0", b"1", b"2", b"3"]


def test_a_client_that_waits_to_be_told_is_told(connection):
    connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert heard(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    connection.sendall(b"{}")
    assert b"HTTP/1.1 404 " in heard(connection, b"not_found")


def test_a_connection_is_used_again_after_a_pause(connection):
    for _ in range(3):
        for piece in (b"GET /heal", b"thz HTTP/1.1\r\nHost: x\r\n", b"\r\n"):
            connection.sendall(piece)
        assert heard(connection, b'"ok"}\n').startswith(b"HTTP/1.1 200 ")


def test_a_body_that_breaks_off_is_answered_and_ends_the_connection(connection):
    connection.sendall(HEAD + b"Content-Length: 9\r\n\r\n{}")
    connection.shutdown(socket.SHUT_WR)
    said = connection.makefile("rb").read()
    assert said == b"" or said.startswith(b"HTTP/1.1 4"), said


SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def heard_after(connection: socket.socket, head: bytes) -> bytes:
    """All that comes back to a request whose body, another request, comes late."""
    connection.sendall(head % len(SMUGGLED))
    with suppress(TimeoutError):  # whoever answers without the body is wrong, and is caught so
        connection.settimeout(0.3)
        connection.recv(1, socket.MSG_PEEK)
    connection.settimeout(10)
    said = b""
    with suppress(OSError):
        connection.sendall(SMUGGLED)
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            said += piece
    return said


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Content-Length: %d\r\n\r\n",
        b"\r\n" + HEAD + b"Content-Length: %d\r\n\r\n",
        b"\r\n\r\n" + HEAD + b"Content-Length: %d\r\n\r\n",
        HEAD + b"Content-Length: 000000000000000000000%d\r\n\r\n",
    ],
    ids=["plain", "an empty line first", "two of them", "zeros first"],
)
def test_no_part_of_a_body_is_taken_for_a_request(connection, head):
    """However oddly it is framed, and however late it comes (RFC 9112, section 11.2)."""
    assert b'"ok"' not in heard_after(connection, head)


def test_where_gunicorn_reads_a_length_that_we_do_not_the_connection_ends(
    server_url: str, template: str, monkeypatch
):
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--strip-header-spaces")
    with new_database(server_url, template) as url, LiveService(url, dispatchers=0) as lenient:
        with socket.create_connection(("127.0.0.1", lenient.port), timeout=10) as connection:
            said = heard_after(connection, HEAD + b"Content-Length : %d\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 4")
            assert b'"ok"' not in said


def test_a_proxy_says_once_for_whom_it_asks(server_url: str, template: str, monkeypatch):
    """docs/security.md, "Who did what"."""
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--proxy-protocol auto --proxy-allow-from 127.0.0.1")
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with new_database(server_url, template) as url, LiveService(url, dispatchers=0) as behind:
        with socket.create_connection(("127.0.0.1", behind.port), timeout=10) as connection:
            connection.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n" + asked)
            assert heard(connection, b'"ok"}\n').startswith(b"HTTP/1.1 200 ")
            connection.sendall(asked)
            assert heard(connection, b'"ok"}\n').startswith(b"HTTP/1.1 200 ")


def test_who_does_not_close_after_the_last_answer_keeps_nobody_waiting(live):
    """gunicorn itself would wait two seconds for each of these, in the one loop it has."""
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    connections = []
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", live.port), timeout=1.5)
        connection.sendall(asked)
        connections.append(connection)
        assert heard(connection, b'"ok"}\n').startswith(b"HTTP/1.1 200 ")
    for connection in connections:
        assert connection.recv(1) == b"", "it was told that this was all"
        connection.close()


def test_the_processes_stop_in_good_time_with_clients_that_say_nothing(
    server_url: str, template: str
):
    with new_database(server_url, template) as url, LiveService(url, dispatchers=0) as live:
        silent = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(5)]
        assert live.process_of_api is not None
        live.process_of_api.terminate()
        assert live.process_of_api.wait(8) == 0
        for connection in silent:
            connection.close()


def test_tls_is_refused_rather_than_left_out():
    command = [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "--certfile", "x"]
    ended = subprocess.run(
        [*command, "app.wsgi:create_app()"], check=False, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert "put TLS in front of it" in ended.stderr
