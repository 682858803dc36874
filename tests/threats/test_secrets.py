"""H3: nothing secret is anywhere but where it belongs.

Canaries, texts that are unique, stand for everything that is secret. A whole scenario with them
runs through real processes that log at DEBUG; then all that was said, logged or stored is searched.

A new route is one more line of ``scenario``. It may stand there before the route does: what this
version does not have yet is left out.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg2
import pytest
import requests
from flask import Flask
from werkzeug.exceptions import HTTPException

from hookjetty.client import Client
from tests.acceptance.receiver import RecordingReceiver
from tests.conftest import ADMIN_PREFIX, SECRET_KEY, TENANT_PREFIX, execute
from tests.dispatching import all_done, wait_until
from tests.live import ROOT, LiveService

# Where a canary may be stored. The URL is the tenant's, and no secret to those who may see it.
TABLES_OF_URLS = ("endpoints",)
TABLES_OF_DATA = ("events",)


class Step(NamedTuple):
    """A request, and which canaries its answer may show.

    ``makes`` names a secret that the answer generates, ``saves`` what is needed of it later; in
    ``path`` and ``body`` {names} stand for canaries and for what was saved.
    """

    who: str
    method: str
    path: str
    status: int
    body: Any = None
    shows: tuple[str, ...] = ()
    makes: str = ""
    saves: dict[str, str] = {}  # noqa: RUF012 - never changed
    key: str = ""  # X-Request-Id


def scenario(url: Callable[..., str]) -> Iterator[Step | Callable[[], None]]:
    """What a tenant, an admin and a producer do; a function is to be waited for."""
    hook = f"{url('/hook')}?token={{query}}"
    flaky = f"{url('/flaky')}?status=404&token={{query}}"  # 404: no hold
    mine, other = "/endpoints/{mine}", "/endpoints/{other}"
    event = {"type": "export.done", "data": {"name": "{data}"}}
    broken = '{"type": "export.done", "data": {"name": "{data}", "name": NaN}}'

    # Endpoints, by their tenant.
    given = {"url": hook, "secret": "{given}"}
    yield Step("tenant", "POST", "/endpoints", 201, given, saves={"mine": "endpoint_id"})
    made_up = {"url": hook + "&other"}
    yield Step(
        "tenant", "POST", "/endpoints", 201, made_up,
        makes="generated", saves={"other": "endpoint_id"}, key="the first",
    )  # fmt: skip
    yield Step("tenant", "POST", "/endpoints", 201, made_up, shows=("generated",), key="the first")
    yield Step("tenant", "POST", "/endpoints", 409, given, key="the first")
    yield Step("tenant", "POST", "/endpoints", 200, {"url": hook, "secret": "{changed}"}, key="2nd")
    for refused in (
        {"url": hook, "secret": "{short}"},
        {"url": hook, "secret": ["{refused}"]},
        {"url": hook, "secret": "whsec_{refused}"},
        {"url": "https://u:{refused}@example.com/"},
        {"url": "https://10.0.0.1/{refused}"},
        {"url": "ftp://example.com/?{refused}"},
    ):
        yield Step("tenant", "POST", "/endpoints", 400, refused)
        yield Step("tenant", "POST", "/endpoints", 400, refused, key="refused")
    for path in ("/endpoints", mine):
        yield Step("tenant", "GET", path, 200, shows=("query",))
    yield Step("tenant", "GET", f"{mine}/secret", 200, shows=("changed",))
    yield Step("tenant", "POST", f"{mine}/secret/rotate", 200, {}, makes="rotated", key="3rd")
    yield Step("tenant", "POST", f"{mine}/secret/rotate", 200, {}, shows=("rotated",), key="3rd")
    yield Step("tenant", "GET", f"{mine}/secret", 200, shows=("rotated",))
    yield Step("tenant", "POST", f"{mine}/test", 202, {"type": "export.done"}, shows=("query",))
    yield Step("tenant", "POST", f"{mine}/verify", 200, shows=("query",))
    yield Step("tenant", "POST", f"{other}/pause", 200, shows=("query",))
    yield Step("tenant", "POST", f"{other}/resume", 200, shows=("query",))

    # Endpoints, by an admin.
    by_admin = {"tenant_id": 7, "url": hook + "&admin", "secret": "{by_admin}"}
    yield Step("admin", "POST", "", 201, by_admin, shows=("query",))
    yield Step(
        "admin", "POST", "", 201, {"tenant_id": 7, "url": flaky},
        shows=("query",), makes="made_for_admin", key="the first",
    )  # fmt: skip
    yield Step(
        "admin", "POST", "", 201, {"tenant_id": 7, "url": flaky},
        shows=("query", "made_for_admin"), key="the first",
    )  # fmt: skip
    yield Step("admin", "POST", "", 400, {"tenant_id": 7, "url": hook, "secret": "whsec_{refused}"})
    yield Step("admin", "GET", "?tenant_id=7", 200, shows=("query",))

    yield Step(
        "admin", "POST", "/operator/endpoints", 201, {"url": hook + "&operator"},
        shows=("query",), makes="made_for_operator",
    )  # fmt: skip
    yield Step("admin", "GET", "/operator/endpoints", 200, shows=("query",))
    portal = {"tenant_id": 7}
    yield Step("admin", "POST", "/tenants/portal-token", 201, portal, makes="portal", key="4th")
    yield Step("admin", "POST", "/tenants/portal-token", 201, portal, shows=("portal",), key="4th")

    # Events, their tasks and attempts.
    for who, more in (("tenant", {}), ("service", {"tenant_id": 7})):
        yield Step(who, "POST", "/events", 202, event | more, saves={"event": "event_id"})
        yield Step(who, "POST", "/events", 202, event | more, key=f"{who}'s".replace("'", "-"))
        yield Step(who, "POST", "/events", 400, event | more | {"type": "a b"})
        yield Step(who, "POST", "/events/batch", 202, {"events": [event]} | more)
    yield Step("tenant", "POST", "/events", 400, broken)
    yield Step("tenant", "POST", "/events", 400, event | {"key": ["{refused}"]})
    yield _all_done
    yield Step("tenant", "GET", "/events/{event}", 200, shows=("data", "query"))
    yield Step("tenant", "GET", "/events", 200, shows=("data",))
    yield Step(
        "tenant", "GET", "/tasks?status=failed", 200,
        shows=("query",), saves={"task": "items.0.task_id"},
    )  # fmt: skip
    yield Step("tenant", "GET", "/tasks/{task}", 200, shows=("query", "data"))
    yield Step("admin", "GET", "/tasks?tenant_id=7", 200, shows=("query",))
    yield Step("tenant", "POST", "/tasks/{task}/retry", 200, shows=("query",))
    yield _all_done
    yield Step("tenant", "POST", "/tasks/{task}/cancel", 409)
    replay = {"endpoint_id": "{mine}", "from": "2025-10-05T06:00:00Z"}
    yield Step("tenant", "POST", "/replay", 202, replay, saves={"replay": "replay_id"})
    yield Step("tenant", "GET", "/replays/{replay}", 200)
    yield _all_done

    # What operators read.
    yield Step("admin", "GET", "/tenants", 200)
    yield Step("admin", "GET", "/audit?tenant_id=7", 200, shows=("query",))
    for path in ("/metrics", "/openapi.json", "/docs", "/healthz", "/readyz"):
        yield Step("nobody", "GET", path, 200)

    # Those who may not.
    for who in ("forger", "basic", "nobody"):
        yield Step(who, "GET", TENANT_PREFIX + mine, 401)
        yield Step(who, "POST", TENANT_PREFIX + "/endpoints", 401, given)
    yield Step("tenant", "GET", "/endpoints?token={refused}", 400)
    yield Step("tenant", "DELETE", mine, 200)


def _all_done() -> None:
    wait_until(all_done)


class Story:
    """Plays the scenario, and keeps what was answered."""

    def __init__(self, live: LiveService, app: Flask) -> None:
        self._live = live
        self._routes = app.url_map.bind("localhost")
        self.canaries = {
            name: f"canary-{name}-{uuid.uuid4().hex}".replace("_", "-")
            for name in (
                "given", "changed", "refused", "by_admin", "query", "data", "forged", "password",
            )
        } | {"short": uuid.uuid4().hex[:12]}  # fmt: skip
        self._saved: dict[str, str] = {}
        self._headers = {
            "tenant": f"Bearer {live.tenant_token(7)}",
            "service": f"Bearer {live.service_token}",
            "admin": f"Bearer {live.admin_token}",
            "forger": f"Bearer {self.canaries['forged']}.e30.{self.canaries['forged']}",
            "basic": f"Basic {self.canaries['password']}",
        }
        for who in ("tenant", "service", "admin"):
            self.canaries[f"{who}'s token"] = self._headers[who].rpartition(".")[2]
        self.answers: list[tuple[Step, str]] = []
        self.left_out: list[str] = []

    def play(self, steps: Iterator[Step | Callable[[], None]]) -> None:
        with requests.Session() as session:
            for step in steps:
                if isinstance(step, Step):
                    self._take(session, step)
                else:
                    step()

    def _take(self, session: requests.Session, step: Step) -> None:
        prefix = {"admin": ADMIN_PREFIX, "tenant": TENANT_PREFIX, "service": TENANT_PREFIX}
        body = step.body if isinstance(step.body, str | None) else json.dumps(step.body)
        try:
            path = prefix.get(step.who, "") + self._filled(step.path)
            self._routes.match(path.partition("?")[0], step.method)
        except (HTTPException, KeyError):
            self.left_out.append(f"{step.method} {step.path}")
            return
        headers = {"Content-Type": "application/json"}
        if step.who in self._headers:
            headers["Authorization"] = self._headers[step.who]
        if step.key:
            headers["X-Request-Id"] = step.key.replace(" ", "-")
        answer = session.request(
            step.method,
            self._live.url + path,
            data=None if body is None else self._filled(body),
            headers=headers,
            timeout=20,
        )
        assert answer.status_code == step.status, (step, answer.text)
        if step.makes:
            told = answer.json().get("data", answer.json())
            self.canaries[step.makes] = (told.get("secret") or told["token"]).removeprefix("whsec_")
        for name, member in step.saves.items():
            self._saved[name] = str(_member(answer.json(), member))
        self.answers.append((step, f"{answer.headers}\n{answer.text}"))

    def _filled(self, text: str) -> str:
        for name, value in (self.canaries | self._saved).items():
            text = text.replace(f"{{{name}}}", value)
        if "{" in text.replace("{}", "") and text.startswith("/"):
            raise KeyError(text)
        return text


def _member(answer: Any, path: str) -> Any:
    for name in path.split("."):
        answer = answer[int(name)] if isinstance(answer, list) else answer.get(name)
        if answer is None:
            return None
    return answer


def dumped(url: str) -> dict[str, str]:
    """Every table's rows as COPY writes them, by the table's name; partitions by their parent's."""
    tables = execute(
        url,
        """
        SELECT c.oid::regclass::text, coalesce(root.relname, c.relname)
        FROM pg_class c LEFT JOIN pg_class root ON root.oid = pg_partition_root(c.oid)
        WHERE c.relkind IN ('r', 'm') AND c.relnamespace = 'hookjetty'::regnamespace
        """,
    )
    found: dict[str, str] = {}
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        for table, name in tables:
            text = StringIO()
            cursor.copy_expert(f"COPY {table} TO STDOUT", text)
            found[name] = found.get(name, "") + text.getvalue()
    connection.close()
    return found


@pytest.fixture
def played(
    database: str, app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[tuple[Story, dict[str, str]]]:
    """The story after it was played, and everything that may tell of it, by name."""
    caplog.set_level(logging.DEBUG)
    with (
        RecordingReceiver(tmp_path / "seen") as receiver,
        LiveService(
            database,
            SECRET_KEYS=SECRET_KEY,
            LOG_LEVEL="debug",
            RATE_LIMIT="10000",
            RETRY_SCHEDULE="0,0.05s",
            RETRY_JITTER="0",
        ) as live,
    ):
        story = Story(live, app)
        settings = ("JWT_SECRET", "SECRET_KEYS")
        for name in settings:
            story.canaries[name] = live.environ[f"HOOKJETTY_{name}"]
        if password := urlsplit(database).password:
            story.canaries["the database's password"] = password
        story.play(scenario(receiver.url))
        caplog.clear()  # of what this test itself asked for
        with Client(live.url, live.tenant_token(7)) as client:
            client.publish("export.done", {"name": story.canaries["data"]})
            client.register_endpoint(
                f"{receiver.url()}?token={story.canaries['query']}", secret=story.canaries["given"]
            )
        said = {" ".join(words): _command(live, *words) for words in COMMANDS}
        _all_done()
        challenges = [
            json.loads(seen.body)["data"]["challenge"]
            for seen in receiver.seen
            if "challenge" in seen.body.decode()
        ]
        assert challenges
        story.canaries |= {f"challenge {n}": text for n, text in enumerate(challenges)}
        live.stop_api()
        live.stop_dispatcher(live.dispatchers[0])
        logs = {"the processes' logs": live.log(), "the client's logs": caplog.text}
        yield story, said | logs


COMMANDS = (("config",), ("db", "status"), ("db", "rotate-secrets"), ("token", "--help"))


def _command(live: LiveService, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *words],
        env=live.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_h3_nothing_secret_is_anywhere_but_where_it_belongs(played, database):
    story, texts = played
    assert story.left_out == [], "routes that there are not"
    assert '"level":"debug"' in texts["the processes' logs"].replace(" ", "")
    assert "urllib3" in texts["the client's logs"]
    for name, text in texts.items():
        assert [each for each, canary in story.canaries.items() if canary in text] == [], name

    for step, text in story.answers:
        shown = {each for each, canary in story.canaries.items() if canary in text}
        assert shown <= {*step.shows, step.makes}, step
    for makes in ("generated", "made_for_admin"):
        assert makes in story.canaries

    tables = dumped(database)
    assert {"endpoints", "idempotency_keys", "events", "attempts", "rate_limits"} <= set(tables)
    places = {
        each: {name for name, text in tables.items() if canary in text}
        for each, canary in story.canaries.items()
    }
    assert places.pop("query") == set(TABLES_OF_URLS)
    assert places.pop("data") == set(TABLES_OF_DATA)
    assert {each: where for each, where in places.items() if where} == {}
