"""The example receivers do what docs/receivers.md promises, started as their docstrings say.

Each framework's server runs once, and hears real HTTP: from the dispatcher, and from strangers.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from hookjetty.client import Client
from hookjetty.verify import secret_bytes, sign
from tests.conftest import TENANT_PREFIX, execute, new_database
from tests.live import FOLLOW_PARENT, LiveService, reserve_port, wait_until

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples/receivers"
PAGE = (ROOT / "docs/receivers.md").read_text()
PUBLISHING = (ROOT / "docs/publishing.md").read_text()

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
UNKNOWN_SECRET = "whsec_plJ3nmyCDGBKInavdOK15jslAAAAAAAA"

numbers = count(1)


# ---------------------------------------------------------------------------------------- running


class ExampleReceiver:
    """The server that an example's docstring starts, and what it has kept; a context manager."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._inbox = folder / f"{name}.db"

    def __enter__(self) -> Self:
        self._reserved, self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        docstring = (EXAMPLES / f"{self._name}_receiver.py").read_text().split('"""')[1]
        commands = re.findall(r"^    (.+)", docstring, re.MULTILINE)
        assert commands[0] == "cd examples/receivers"
        secrets, program, *arguments = shlex.split(commands[1].replace("9000", str(self.port)))
        assert secrets == "WEBHOOK_SECRETS=whsec_..."
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", FOLLOW_PARENT, str(int(signal.SIGTERM))),
                *("-m", program, *arguments),
            ],
            cwd=EXAMPLES,
            env=os.environ
            | {"WEBHOOK_SECRETS": f"{SECRET} {NEW_SECRET}", "INBOX": str(self._inbox)},
            stdin=subprocess.DEVNULL,
            stdout=(log := self._inbox.with_suffix(".log").open("wb")),
            stderr=log,
        )
        log.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._reserved.close()

    def await_start(self) -> None:
        def listens() -> bool:
            assert self._process.poll() is None, self._inbox.with_suffix(".log").read_text()
            with closing(socket.socket()) as client:
                return client.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, 30)

    @property
    def kept(self) -> list[bytes]:
        """The bodies of the events in its inbox."""
        with closing(sqlite3.connect(self._inbox)) as connection:
            return [body for (body,) in connection.execute("SELECT body FROM inbox ORDER BY rowid")]

    def post(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """What it answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with closing(connection):
            connection.request("POST", "/hook", body, headers)
            response = connection.getresponse()
            return response.status, response.read()


@pytest.fixture(scope="module")
def receivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ExampleReceiver]]:
    folder = tmp_path_factory.mktemp("receivers")
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(ExampleReceiver(name, folder))
            for name in ("flask", "fastapi", "django")
        }
        for receiver in running.values():
            receiver.await_start()
        yield running


@pytest.fixture(params=["flask", "fastapi", "django"])
def receiver(request: pytest.FixtureRequest, receivers: dict) -> ExampleReceiver:
    return receivers[request.param]


# ----------------------------------------------------------------------------------- from strangers


def event(type: str = "export.done", data: str = '{"who": "Zo\u00eb", "price": 1.50}') -> bytes:
    """A body as we send it, of an event that was not sent yet."""
    name = f"evt_{next(numbers)}"
    at = "2026-11-22T05:00:00.000Z"
    return f'{{"id":"{name}","type":"{type}","timestamp":"{at}","data":{data}}}'.encode()


def challenge() -> bytes:
    return event("endpoint.challenge", '{"challenge":"A1b2_C3d4-E5f6g7"}').replace(b"evt_", b"chl_")


def signed(body: bytes, *secrets: str, seconds: int = 0) -> dict[str, str]:
    """The headers for a body, as of so many seconds from now."""
    name, now = json.loads(body)["id"], int(time.time()) + seconds
    signatures = [sign(secret_bytes(secret), name, now, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signatures),
        "webhook-attempt": "1",
    }


def test_what_is_not_proven_is_refused_and_not_kept(receiver):
    body, before = event(), receiver.kept
    good = signed(body, SECRET)
    for wrong, headers in (
        (body, {"content-type": "application/json"}),
        (body, good | {"webhook-signature": "v1,Zm9yZ2Vk"}),
        (body, good | {"webhook-id": "evt_0"}),
        (body, good | {"webhook-id": "evt_\xe9"}),
        (body, good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}),
        (body.replace(b"1.50", b"1.5"), good),
        (body, signed(body, UNKNOWN_SECRET)),
        (body, signed(body, SECRET, seconds=-310)),
        (body, signed(body, SECRET, seconds=310)),
        (b"", good),
        (b"not JSON", {}),
    ):
        status, answer = receiver.post(wrong, headers)
        assert (status, list(json.loads(answer))) == (400, ["error"])
    assert receiver.kept == before
    assert receiver.post(body, good)[0] == 204


def test_a_challenge_is_answered_only_if_it_is_signed(receiver):
    """The platform sends one that is signed wrongly to see who checks."""
    before = receiver.kept
    body = challenge()
    for headers in (signed(body, UNKNOWN_SECRET), signed(body), signed(body, SECRET, seconds=-310)):
        status, answer = receiver.post(body, headers)
        assert status == 400
        assert b"A1b2_C3d4-E5f6g7" not in answer
    status, answer = receiver.post(body, signed(body, SECRET))
    assert (status, json.loads(answer)) == (200, {"challenge_response": "A1b2_C3d4-E5f6g7"})
    assert receiver.kept == before


def test_each_of_two_secrets_will_do_and_each_of_two_signatures(receiver):
    for secrets in (
        [SECRET],
        [NEW_SECRET],
        [SECRET, NEW_SECRET],
        [UNKNOWN_SECRET, SECRET],
        [NEW_SECRET, UNKNOWN_SECRET],
    ):
        body = event()
        assert receiver.post(body, signed(body, *secrets)) == (204, b"")
        assert receiver.kept[-1] == body


def test_what_arrives_often_is_kept_once(receiver):
    before, body = receiver.kept, event()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: receiver.post(body, signed(body, SECRET)), range(8)))
    assert answers == [(204, b"")] * 8
    assert receiver.post(body, signed(body, SECRET, seconds=1)) == (204, b"")
    assert receiver.kept == [*before, body]


def test_an_operational_event_is_kept_like_any_other(receiver):
    body = event("hookjetty.endpoint.disabled")
    assert receiver.post(body, signed(body, SECRET)) == (204, b"")
    assert receiver.kept[-1] == body


# ------------------------------------------------------------------------------ from the dispatcher


def block_of(heading: str, language: str) -> str:
    """What docs/publishing.md shows."""
    section = PUBLISHING.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[0]


def test_what_is_published_as_the_page_shows_arrives_in_every_framework(
    receivers: dict[str, ExampleReceiver], server_url: str, template: str, monkeypatch: Any
) -> None:
    def state(endpoint_id: str) -> dict[str, Any]:
        return tenant.get_endpoint(endpoint_id)

    def tasks() -> list[dict[str, Any]]:
        return list(tenant.list_tasks())

    with (
        new_database(server_url, template) as url,
        LiveService(url, RATE_LIMIT="1000") as live,
        Client(live.url, live.tenant_token(7)) as tenant,
    ):
        # The handshake: the receivers know this secret, and another one they do not.
        known = [
            tenant.register_endpoint(each.url, ["export.*"], SECRET)["endpoint_id"]
            for each in receivers.values()
        ]
        unknown = [
            tenant.register_endpoint(f"{each.url}?", ["*"], UNKNOWN_SECRET, request_id=f"r-{name}")
            for name, each in receivers.items()
        ]
        wait_until(lambda: all(state(one)["status"] == "active" for one in known))
        for one in unknown:
            wait_until(lambda one=one: state(one["endpoint_id"])["verification"]["failure"])
            refused = state(one["endpoint_id"])
            assert refused["status"] == "pending"
            assert refused["verification"]["failure"] == "http_4xx"
            tenant.delete_endpoint(one["endpoint_id"])

        # Publishing, by every way of the page; the key makes one event of three.
        execute(url, "CREATE TABLE exports (id integer PRIMARY KEY, state text)")
        execute(url, block_of("From SQL", "sql"))
        monkeypatch.setenv("API", live.url + TENANT_PREFIX)
        monkeypatch.setenv("TOKEN", live.service_token)
        monkeypatch.setenv("HOOKJETTY_URL", live.url)
        monkeypatch.setenv("HOOKJETTY_TOKEN", live.service_token)
        done = subprocess.run(
            ["sh", "-ec", block_of("Over HTTP", "sh")], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["tasks"] == len(receivers)
        exec(block_of("With the Python client", "python"), {})  # noqa: S102 - it is ours
        wait_until(lambda: len(tasks()) == 3 * len(receivers))
        wait_until(lambda: {task["status"] for task in tasks()} == {"delivered"})

        # Rotating to a secret that the receivers do not know: the old one still signs, too.
        for each in receivers.values():
            tenant.register_endpoint(each.url, secret=UNKNOWN_SECRET)
        last = tenant.publish("export.done", {"export": 44})
        wait_until(lambda: len(tasks()) == 4 * len(receivers))
        wait_until(lambda: {task["status"] for task in tasks()} == {"delivered"})
        for endpoint_id in known:  # what comes again is known already
            tenant.start_replay(endpoint_id, last.event_id)
        wait_until(lambda: len(tasks()) == 5 * len(receivers))
        wait_until(lambda: {task["status"] for task in tasks()} == {"delivered"})

    for each in receivers.values():
        events = [json.loads(body) for body in each.kept]
        (last_one,) = (one for one in events if one["id"] == last.event_id)
        assert last_one["data"] == {"export": 44}
        assert sum(one["data"].get("export") == 42 for one in events) == 1
        assert sum(b'"data":{"export": 43, "size": 1.50}}' in body for body in each.kept) == 1


# ----------------------------------------------------------------------------------- as documented


def test_the_page_shows_the_examples_as_they_are():
    sources = [path.read_text() for path in EXAMPLES.glob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        assert any(block in source for source in sources), block
