"""``hookjetty``: what each command prints, where, and with which exit status."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

from app import cli, devdb
from app.auth import Principal, Tokens
from app.db import SCHEMA_VERSION
from app.settings import load
from hookjetty.client import Client
from hookjetty.verify import secret_bytes, sign
from tests.conftest import execute, new_database
from tests.live import LiveService, reserve_port

ROOT = Path(cli.__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "cli.md").read_text()
JWT_SECRET = "0123456789abcdef0123456789abcdef"
THERE_ALREADY = f"schema version {SCHEMA_VERSION} was there already\n"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Of somebody without any setting, except that VAR is empty."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith("HOOKJETTY_")}
    return plain | {"HOOKJETTY_VAR": str(tmp_path), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def live(server_url: str, template: str) -> Iterator[LiveService]:
    """An API; nobody delivers."""
    with new_database(server_url, template) as url, LiveService(url, dispatchers=0) as live:
        yield live


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def hookjetty(environ: dict[str, str], *arguments: str, stdin: str = "") -> Any:
    """Run a command. In this process if it leaves nothing behind there: that takes no start."""
    if arguments[:1] not in {("token",), ("config",), ("publish",)}:
        return hookjetty_process(environ, *arguments)
    unset = {name: None for name in os.environ if name.startswith("HOOKJETTY_")}
    result = CliRunner(env=unset | environ).invoke(cli.main, arguments, input=stdin)
    assert isinstance(result.exception, (SystemExit, NoneType)), result.exc_info
    return Done(result.exit_code, result.stdout, result.stderr)


def hookjetty_process(environ: dict[str, str], *arguments: str, stdin: str = "") -> Any:
    """Run a command as people do; what it printed must not be a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env=environ,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def succeed(environ: dict[str, str], *arguments: str, stdin: str = "") -> str:
    """The output of a command that has nothing to complain about."""
    done = hookjetty(environ, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fail(status: int, environ: dict[str, str], *arguments: str, stdin: str = "") -> str:
    """What a command that cannot do it says, on stderr only."""
    done = hookjetty(environ, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (status, "")
    return done.stderr


# ------------------------------------------------------------------------------------ itself


def commands(group: click.Group = cli.main, path: str = "hookjetty") -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_has_its_section_in_the_documentation():
    assert re.findall(r"^## `(.*)`$", DOCUMENT, re.MULTILINE) == [path for path, _ in commands()]


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*found, id=found[0]) for found in commands()]
)
def test_every_option_of_a_command_is_documented_and_explained(path, command):
    section = DOCUMENT.split(f"## `{path}`\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(--[a-z-]+)", section, re.MULTILINE)
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert documented == [option.opts[0] for option in options]
    assert command.help
    assert [option.name for option in options if not (option.help or option.show_default)] == []


def test_the_command_line_needs_neither_flask_nor_the_dispatcher():
    loaded = subprocess.run(
        [sys.executable, "-c", "import app.cli, sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "app.cli" in loaded
    assert [
        name for name in loaded if name.split(".")[0] in {"flask", "dispatcher", "pycurl"}
    ] == []


# ------------------------------------------------------------------------------------- token


def principal(environ: dict[str, str], token: str) -> Principal:
    return Tokens(load(environ)).verify(token.removesuffix("\n"))


@pytest.mark.parametrize(
    ("arguments", "tenant_id", "role", "scopes"),
    [
        (["--role", "admin"], None, "admin", set()),
        (["--role", "service"], None, "service", {"events:write"}),
        (["--tenant", "7"], 7, None, {"webhooks:read", "webhooks:write"}),
        (["--tenant", "7", "--scope", "webhooks:read"], 7, None, {"webhooks:read"}),
        (
            ["--tenant", "7", "--scope", "webhooks:read events:write", "--ttl", "7d"],
            7,
            None,
            {"webhooks:read", "events:write"},
        ),
    ],
)
def test_a_token_is_all_that_token_prints(environ, arguments, tenant_id, role, scopes):
    environ["HOOKJETTY_JWT_SECRET"] = JWT_SECRET
    made = principal(environ, succeed(environ, "token", *arguments))
    assert (made.tenant_id, made.role, made.scopes) == (tenant_id, role, scopes)


def test_a_token_is_for_the_instance_in_var(environ, tmp_path):
    (tmp_path / "jwt_secret").write_text(f"{JWT_SECRET}\n")
    assert principal(environ, succeed(environ, "token", "--role", "admin")).is_admin


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43200), ("2d", 172800)]
)
def test_a_token_holds_as_long_as_was_asked_for(environ, ttl, seconds):
    environ["HOOKJETTY_JWT_SECRET"] = JWT_SECRET
    before = time.time()
    payload = succeed(environ, "token", "--role", "admin", "--ttl", ttl).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert before - 1 <= claims["exp"] - seconds <= time.time()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--role admin, --role service or --tenant 7"),
        (["--role", "admin", "--tenant", "7"], "--role admin, --role service or --tenant 7"),
        (["--role", "root"], "'root' is not one of 'admin', 'service'"),
        (["--tenant", "0"], "0 is not in the range"),
        (["--tenant", "9007199254740992"], "is not in the range"),
        (["--tenant", "7", "--scope", "webhook:read"], "'webhook:read' is none of webhooks:read"),
        (["--tenant", "7", "--ttl", "soon"], "'soon' is not a time such as 90s"),
        (["--tenant", "7", "--ttl", "0"], "'0' is not a time such as 90s"),
    ],
)
def test_a_token_for_nobody_is_a_mistake(environ, arguments, words):
    environ["HOOKJETTY_JWT_SECRET"] = JWT_SECRET
    assert words in fail(2, environ, "token", *arguments)


def test_as_a_process_of_its_own_it_does_the_same(environ):
    environ["HOOKJETTY_JWT_SECRET"] = JWT_SECRET
    done = hookjetty_process(environ, "token", "--role", "admin")
    assert (done.returncode, done.stderr) == (0, "")
    assert principal(environ, done.stdout).is_admin
    failed = hookjetty_process(environ, "publish", "a", "-", stdin="{")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.endswith(
        "\nError: say whose event it is: --tenant 7, or a tenant's HOOKJETTY_TOKEN\n"
    )


def test_without_a_secret_token_says_what_to_set(environ):
    words = fail(2, environ, "token", "--role", "admin")
    assert "HOOKJETTY_JWT_SECRET or HOOKJETTY_JWT_JWKS is not set" in words
    assert "make run" in words


def test_where_others_issue_tokens_token_says_so(environ, tmp_path):
    key = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [key]}))
    environ["HOOKJETTY_JWT_JWKS"] = str(tmp_path / "jwks.json")
    words = fail(2, environ, "token", "--role", "admin")
    assert "HOOKJETTY_JWT_JWKS" in words
    assert "ask the service that issues them" in words


# ----------------------------------------------------------------------------------- publish


def events(live: LiveService) -> list[tuple]:
    return execute(
        live.database_url,
        "SELECT 'evt_' || id, tenant_id, type, data::text FROM hookjetty.events ORDER BY id",
    )


def test_publish_makes_a_token_of_the_tenant_if_the_secret_is_at_hand(live):
    output = succeed(live.environ, "publish", "export.done", '{"rows": 1.50}', "--tenant", "7")
    event_id = output.split(",")[0]
    assert output == f"{event_id}, tasks: 0\n"
    assert events(live)[-1] == (event_id, 7, "export.done", '{"rows": 1.50}')


@pytest.fixture
def outside(live: LiveService, environ: dict[str, str]) -> dict[str, str]:
    """Somebody who has a token and knows nothing of the instance."""
    environ["HOOKJETTY_URL"] = live.url
    environ["HOOKJETTY_TOKEN"] = live.tenant_token(8)
    return environ


def test_publish_takes_data_from_stdin_and_from_files(live, outside, tmp_path):
    succeed(outside, "publish", "export.done", "-", stdin='{"from": "stdin"}')
    (tmp_path / "event.json").write_text('{"from": "é"}', encoding="utf-8")
    succeed(outside, "publish", "export.done", f"@{tmp_path}/event.json")
    succeed(outside, "publish", "export.done")
    assert [data for _, _, _, data in events(live)[-3:]] == [
        '{"from": "stdin"}',
        '{"from": "é"}',
        "{}",
    ]
    assert {tenant for _, tenant, _, _ in events(live)[-3:]} == {8}


def test_publishing_a_key_again_answers_with_the_first_event(live, outside):
    command = ["publish", "export.done", "--key", "export-1", "--json"]
    first = json.loads(succeed(outside, *command))
    assert first == {"event_id": events(live)[-1][0], "tasks": 0}
    assert json.loads(succeed(outside, *command)) == first


def test_a_service_says_for_whom_it_publishes(live, outside):
    outside["HOOKJETTY_TOKEN"] = live.service_token
    succeed(outside, "publish", "export.done", "--tenant", "9")
    assert events(live)[-1][1] == 9
    assert "tenant_id: is missing" in fail(1, outside, "publish", "export.done")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["export done"], 1, "type: must be segments of letters"),
        (["export.done", "[]"], 1, "data: must be a JSON object"),
        (["export.done", "{"], 2, "data is not JSON"),
        (["export.done", "@/nonexistent"], 2, "/nonexistent: No such file or directory"),
        ([], 2, "Missing argument 'TYPE'"),
    ],
)
def test_what_cannot_be_published_is_told_in_a_sentence(outside, arguments, status, words):
    assert words in fail(status, outside, "publish", *arguments)


def test_a_file_that_is_not_text_is_told_in_a_sentence(outside, tmp_path):
    (tmp_path / "event.json").write_bytes(b'{"a": "\xff"}')
    assert "utf-8" in fail(2, outside, "publish", "export.done", f"@{tmp_path}/event.json")


def test_a_refusal_names_the_request(outside):
    outside["HOOKJETTY_TOKEN"] = "e30.e30.e30"
    assert re.search(r"\(unauthorized, request id \w+\)", fail(1, outside, "publish", "a"))


def test_publish_says_when_there_is_nobody(environ):
    reserved, port = reserve_port()
    with reserved:
        environ |= {"HOOKJETTY_URL": f"http://127.0.0.1:{port}", "HOOKJETTY_TOKEN": "token"}
        words = fail(1, environ, "publish", "export.done")
    assert "Connection refused" in words
    assert "is HOOKJETTY_URL right" in words


def test_publish_says_what_is_missing_to_publish(environ, live):
    assert "HOOKJETTY_TOKEN is not set" in fail(2, environ, "publish", "export.done")
    assert "say whose event it is" in fail(2, live.environ, "publish", "export.done")


# ------------------------------------------------------------------------------------ listen


@contextmanager
def listening(environ: dict[str, str], *options: str) -> Iterator[Any]:
    """`hookjetty listen` on a free port; yields it with its ``url``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "listen", "--port", "0", *options],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = ""
        while (found := re.search(r"Listening on (http://\S+)\n", said)) is None:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.url, process.said = found[1], said
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (0, "")


def deliver(url: str, event: dict[str, Any], *, secret: str = SECRET, **headers: str) -> tuple:
    """Send an event as a dispatcher does; the status and the answer."""
    body = json.dumps(event).encode()
    timestamp = int(time.time())
    signature = sign(secret_bytes(secret), "evt_1", timestamp, body)
    signed = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
        "webhook-attempt": "1",
    }
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    request = urllib.request.Request(url, body, signed | named)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


EVENT = {"id": "evt_1", "type": "export.done", "data": {"rows": 3}}


def test_listen_prints_what_it_has_verified(environ):
    with listening(environ, "--secret", SECRET) as listener:
        assert deliver(listener.url, EVENT) == (200, {})
        assert deliver(listener.url, EVENT, webhook_replay="rpl_5", webhook_attempt="2")[0] == 200
        lines = [listener.stdout.readline().split("  ", 1)[1] for _ in range(2)]
    assert lines == [
        '200  export.done  evt_1  try 1  {"rows": 3}\n',
        '200  export.done  evt_1  try 2  replay rpl_5  {"rows": 3}\n',
    ]


def test_listen_is_a_receiver_for_the_service(live):
    secret = "tour-of-hookjetty"
    dispatcher = live.start_dispatcher()
    with (
        listening(live.environ, "--secret", secret) as listener,
        Client(live.url, live.tenant_token(21)) as client,
    ):
        assert client.register_endpoint(listener.url, secret=secret)["status"] == "active"
        succeed(live.environ, "publish", "export.done", '{"export": 42}', "--tenant", "21")
        challenge, delivery = (listener.stdout.readline() for _ in range(2))
    assert re.search(r"  200  endpoint\.challenge  chl_\w+  \{", challenge)
    assert re.search(r'  200  export\.done  evt_\d+  try 1  \{"export": 42\}\n$', delivery)
    assert live.stop_dispatcher(dispatcher) == 0


def test_listen_refuses_what_is_not_signed_by_the_secret(environ):
    with listening(environ, "--secret", SECRET) as listener:
        status, answer = deliver(listener.url, EVENT, secret="another secret of 16 and more")
        assert (status, list(answer)) == (400, ["error"])
        line = listener.stdout.readline()
    assert "400  refused: webhook-signature does not match" in line


def test_listen_takes_several_secrets(environ):
    other = "another secret of 16 and more"
    with listening(environ, "--secret", other, "--secret", SECRET) as listener:
        assert deliver(listener.url, EVENT)[0] == 200
        assert deliver(listener.url, EVENT, secret=other)[0] == 200


def test_listen_makes_a_secret_up_and_says_which(environ):
    with listening(environ) as listener:
        (made_up,) = re.findall(r"this secret: (whsec_\S+)\n", listener.said)
        assert deliver(listener.url, EVENT, secret=made_up)[0] == 200
        assert deliver(listener.url, EVENT)[0] == 400


def test_listen_believes_everything_if_told_to(environ):
    with listening(environ, "--no-verify", "--json") as listener:
        assert deliver(listener.url, EVENT, webhook_signature="")[0] == 200
        told = json.loads(listener.stdout.readline())
    assert told == {
        "status": 200,
        "id": "evt_1",
        "type": "export.done",
        "attempt": "1",
        "replay": None,
        "verified": False,
        "data": {"rows": 3},
    }


def test_listen_answers_a_challenge_even_on_a_bad_day(environ):
    challenge = {
        "id": "chl_1",
        "type": "endpoint.challenge",
        "data": {"challenge": "0123456789abcdef"},
    }
    with listening(environ, "--secret", SECRET, "--fail", "1") as listener:
        assert deliver(listener.url, challenge) == (
            200,
            {"challenge_response": "0123456789abcdef"},
        )
        assert deliver(listener.url, EVENT)[0] == 503


@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        (["--fail", "2"], [503, 503, 200, 200]),
        (["--fail", "1", "--status", "410"], [410, 200, 200]),
        (["--status", "429"], [429, 429, 429]),
    ],
)
def test_listen_plays_a_flaky_receiver(environ, options, statuses):
    with listening(environ, "--secret", SECRET, *options) as listener:
        assert [deliver(listener.url, EVENT)[0] for _ in statuses] == statuses


def test_listen_listens_on_its_path_alone(environ):
    with listening(environ, "--secret", SECRET, "--path", "/my/hooks") as listener:
        assert listener.url.endswith("/my/hooks")
        assert deliver(f"{listener.url}?a=1", EVENT)[0] == 200
        assert deliver(f"{listener.url}/other", EVENT)[0] == 404


def test_a_strangers_text_cannot_play_with_the_terminal(environ):
    with listening(environ, "--no-verify") as listener:
        deliver(listener.url, EVENT | {"type": "\x1b[2J\nreset", "data": {"\u202e": "\x07"}})
        line = listener.stdout.readline()
    assert line.endswith('200  \\x1b[2J\\nreset  evt_1  try 1  {"\\u202e": "\\u0007"}\n')


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
        ("POST /hook HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        ("GET /hook HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        ("POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]", 400),
    ],
)
def test_listen_survives_odd_requests(environ, head, status):
    with listening(environ, "--no-verify") as listener:
        port = int(listener.url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode())
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(
                b"POST /hook HTTP/1.1\r\nContent-Length: 100\r\n\r\n{"
            )  # and is gone
        assert deliver(listener.url, EVENT)[0] == 200


def test_a_port_that_is_taken_is_told_in_a_sentence(environ):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = fail(1, environ, "listen", "--port", port, "--no-verify")
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use" in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--secret", "short"], "a secret is whsec_ and base64, or 16 to 256"),
        (["--secret", SECRET, "--no-verify"], "exclude each other"),
        (["--status", "99"], "99 is not in the range"),
    ],
)
def test_listen_called_wrongly_says_so(environ, options, words):
    assert words in fail(2, environ, "listen", *options)


# ------------------------------------------------------------------------------------ config


def test_config_shows_every_setting_and_no_secret(environ):
    environ |= {
        "HOOKJETTY_JWT_SECRET": JWT_SECRET,
        "HOOKJETTY_TOKEN": "my-own-token",
        "HOOKJETTY_DATABASE_URL": "postgresql://somebody:hunter2@db/hooks",
        "HOOKJETTY_RETENTION_DAYS": "8",
    }
    table = succeed(environ, "config")
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}
    assert rows["HOOKJETTY_RETENTION_DAYS"] == ["8", "days", "30"]
    assert set(rows) == {row.env for row in load({}).describe()}
    listed = json.loads(succeed(environ, "config", "--json"))
    assert {row["env"]: row["value"] for row in listed}["HOOKJETTY_RETENTION_DAYS"] == "8"
    for secret in (JWT_SECRET, "my-own-token", "hunter2"):
        assert secret not in table
        assert secret not in json.dumps(listed)


@pytest.mark.parametrize("command", ["config", "token --role admin", "db status", "publish a"])
def test_wrong_settings_are_all_named(environ, command):
    environ |= {"HOOKJETTY_BIND": "nowhere", "HOOKJETTY_RETENTON_DAYS": "8"}
    words = fail(2, environ, *command.split())
    assert "HOOKJETTY_BIND='nowhere' is refused: host:port is needed" in words
    assert (
        "HOOKJETTY_RETENTON_DAYS is not a setting: did you mean HOOKJETTY_RETENTION_DAYS" in words
    )


# ---------------------------------------------------------------------------------------- db


def test_migrate_makes_the_schema_once(environ, server_url):
    with new_database(server_url) as url:
        environ["HOOKJETTY_DATABASE_URL"] = url
        words = hookjetty(environ, "db", "status", "--json")
        assert words.returncode == 1
        assert "the database has no Hookjetty schema: run `hookjetty db migrate`" in words.stderr
        assert json.loads(words.stdout)["schema_version"] is None

        assert succeed(environ, "db", "migrate") == f"schema version {SCHEMA_VERSION} applied\n"
        assert (
            succeed(environ, "db", "migrate")
            == f"schema version {SCHEMA_VERSION} was there already\n"
        )
        assert execute(url, "SELECT version FROM hookjetty.schema_version") == [(SCHEMA_VERSION,)]


def test_status_shows_partitions_and_living_dispatchers(environ, database):
    environ["HOOKJETTY_DATABASE_URL"] = database
    seen = {"here": "now()", "gone": "now() - interval '1 hour'"}
    for number, (host, moment) in enumerate(seen.items()):
        execute(
            database,
            "INSERT INTO hookjetty.dispatchers (id, host, pid, seen_at)"
            f" VALUES ({number}, '{host}', 4711, {moment})",
        )
    shown = json.loads(succeed(environ, "db", "status", "--json"))
    assert shown["schema_version"] == shown["needed_version"] == SCHEMA_VERSION
    assert shown["publisher_role"] is True
    assert {each["table"]: each["weeks"] for each in shown["partitions"]} == {
        "attempts": 9,
        "events": 9,
        "tasks": 9,
    }
    assert [each["host"] for each in shown["dispatchers"]] == ["here"]

    text = succeed(environ, "db", "status")
    assert f"schema version: {SCHEMA_VERSION} (needed: {SCHEMA_VERSION})\n" in text
    assert "partitions of tasks: 9 weeks, " in text
    assert "dispatchers: 1\n  here pid 4711: 0 in flight" in text
    assert "gone" not in text


def test_status_of_a_newer_schema_is_shown_and_refused(environ, database):
    environ["HOOKJETTY_DATABASE_URL"] = database
    execute(database, "INSERT INTO hookjetty.schema_version VALUES (99)")
    done = hookjetty(environ, "db", "status")
    assert done.returncode == 1
    assert f"schema version: 99 (needed: {SCHEMA_VERSION})" in done.stdout
    assert "install the newer Hookjetty" in done.stderr
    assert "install the newer Hookjetty" in fail(1, environ, "db", "migrate")


def test_status_of_an_older_schema_shows_both_versions_and_what_to_run(environ, database):
    environ["HOOKJETTY_DATABASE_URL"] = database
    execute(database, "UPDATE hookjetty.schema_version SET version = 0")
    done = hookjetty(environ, "db", "status")
    assert done.returncode == 1
    assert f"schema version: 0 (needed: {SCHEMA_VERSION})" in done.stdout
    assert "run `hookjetty db migrate`" in done.stderr


def test_a_database_that_is_away_is_told_in_a_sentence(environ):
    environ["HOOKJETTY_DATABASE_URL"] = "postgresql://127.0.0.1:1/none"
    for command in ("status", "migrate"):
        assert "the database cannot be used: connection" in fail(1, environ, "db", command)


def test_without_a_database_db_says_what_to_set(environ):
    assert "HOOKJETTY_DATABASE_URL is not set" in fail(2, environ, "db", "status")


def test_who_may_not_create_roles_is_told_what_a_superuser_has_to_run(environ, tmp_path):
    """A server of its own: roles belong to the whole of one."""
    with devdb.start(tmp_path / "pg", settings={"fsync": "off"}, temporary=True) as server:
        execute(server.url, "CREATE ROLE modest LOGIN PASSWORD 'modest'")
        execute(server.url, "CREATE DATABASE theirs OWNER modest")
        url = server.url_of("theirs")
        password = url.split(":")[2].split("@")[0]
        environ["HOOKJETTY_DATABASE_URL"] = url.replace(f"hookjetty:{password}", "modest:modest")

        said = succeed(environ, "db", "migrate")
        assert said.startswith(f"schema version {SCHEMA_VERSION} applied\n")
        assert "may not create roles" in said
        assert json.loads(succeed(environ, "db", "status", "--json"))["publisher_role"] is False

        execute(url, said[said.index("CREATE ROLE") :])
        assert (
            succeed(environ, "db", "migrate")
            == f"schema version {SCHEMA_VERSION} was there already\n"
        )
        execute(url, "CREATE ROLE producer LOGIN PASSWORD 'p' IN ROLE hookjetty_publisher")
        producer = url.replace(f"hookjetty:{password}", "producer:p")
        publish = "SELECT tasks FROM hookjetty.publish_event(7, 'export.done', '{}')"
        assert execute(producer, publish) == [(0,)]
