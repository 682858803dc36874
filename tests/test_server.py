"""How requests come in: whole, in pieces, several at once, or when the client is told to."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app import server
from app.server import Request
from tests.conftest import new_database
from tests.live import LiveService

HEAD = b"POST /nowhere HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "no body": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a length": HEAD + b"Content-Length: 5\r\n\r\n\r\n\r\n.",
    "a length, oddly spelled": HEAD + b"conTENT-length: \t5 \r\n\r\n12345",
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
        HEAD + b"Content-Length: 99999999999\r\n\r\n" + b"x" * server.MOST_REQUEST_BYTES,
    ],
    ids=lambda sent: f"{sent[34:70]!r}",
)
def test_for_what_is_odd_or_endless_nobody_waits(sent):
    assert Request(sent).is_whole()


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
