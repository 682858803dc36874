"""``hookjetty``: the command line. It acts on the instance that the settings name.

The exit status is 0 when it is done, 1 when it failed, 2 when it was called wrongly or the settings
are wrong. What goes wrong is a sentence on stderr; what was asked for is all there is on stdout.
docs/cli.md lists the commands; a test compares the two.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import click
import psycopg2
from peewee import PeeweeException

from app import __version__, reencryption
from app import db as database
from app.auth import MAX_TENANT_ID, PUBLISH, READ, WRITE, Tokens
from app.db import db
from app.models import Dispatcher, rfc3339
from app.settings import Settings, SettingsError, load
from app.signing import Vault, generate_secret
from hookjetty.client import ApiError, Client
from hookjetty.verify import VerificationError, challenge_response, secret_bytes, verify

# A token that is made for one call need not outlive it by much.
OWN_TOKEN_SECONDS = 60

MAX_RECEIVED_BYTES = 1024 * 1024
SHOWN_DATA_CHARACTERS = 200
# Longer than a dispatcher keeps an idle connection, so that it is never the receiver who hangs up.
IDLE_CONNECTION_SECONDS = 75


class Failure(click.ClickException):
    """It cannot be done; the message says why."""


class WrongSettings(Failure):
    """It cannot even be tried with these settings."""

    exit_code = 2


class Commands(click.Group):
    """Words for everything that may go wrong in any command."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise WrongSettings(str(error)) from error
        except ApiError as error:
            hint = "; is HOOKJETTY_URL right, and `make run` running?" if not error.status else ""
            raise Failure(f"{error}{hint}") from error
        except database.SchemaMismatch as error:
            raise Failure(str(error)) from error
        except (PeeweeException, psycopg2.Error) as error:
            raise Failure(f"the database cannot be used: {str(error).strip()}") from error


class Duration(click.ParamType[int]):
    """Seconds, written as 90, 90s, 15m, 12h or 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds."""
        found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", value)
        if found is None:
            self.fail(f"{value!r} is not a time such as 90s, 15m, 12h or 7d", param, ctx)
        return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


TENANT = click.IntRange(1, MAX_TENANT_ID)
tenant_option = click.option("--tenant", type=TENANT, metavar="N", help="The tenant's id.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Commands)
@click.version_option(__version__, package_name="hookjetty")
def main() -> None:
    """Hookjetty delivers webhooks. The instance is the one that HOOKJETTY_VAR or the other
    HOOKJETTY_ settings name; see `hookjetty config`.
    """


# ---------------------------------------------------------------------------------- token


@main.command()
@click.option("--role", type=click.Choice(["admin", "service"]), help="For an admin or a producer.")
@tenant_option
@click.option(
    "--scope",
    help=f"What it may do, of {READ}, {WRITE} and {PUBLISH}. By default a tenant's token may read"
    " and write, and a service's publish.",
)
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="How long it holds.")
def token(role: str | None, tenant: int | None, scope: str | None, ttl: int) -> None:
    """Make a token for the API.

    Prints nothing else. Either --role or --tenant. Where tokens are verified with
    HOOKJETTY_JWT_JWKS they come from whoever has the private key.
    """
    if (role is None) == (tenant is None):
        raise click.UsageError("say whose token it is: --role admin, --role service or --tenant 7")
    if scope is None and role == "service":
        scope = PUBLISH
    scopes = None if scope is None else scope.split()
    unknown = sorted(set(scopes or ()) - {READ, WRITE, PUBLISH})
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {READ}, {WRITE} and {PUBLISH}", param_hint="--scope"
        )
    minted = Tokens(load()).mint(
        subject="hookjetty token", ttl_seconds=ttl, role=role, tenant_id=tenant, scopes=scopes
    )
    click.echo(minted)


# -------------------------------------------------------------------------------- publish


@main.command()
@click.argument("type", metavar="TYPE")
@click.argument("data", metavar="[DATA | @FILE | -]", default="{}")
@click.option("--key", help="Publishing again with the same key publishes nothing new.")
@tenant_option
@json_option
def publish(type: str, data: str, key: str | None, tenant: int | None, as_json: bool) -> None:
    """Publish an event over HTTP.

    Its data is a JSON object: given here, in a file, or on stdin. It goes to HOOKJETTY_URL with
    HOOKJETTY_TOKEN; --tenant is needed if that is a service's token. Without HOOKJETTY_TOKEN, but
    with an instance's HOOKJETTY_JWT_SECRET at hand (`make run` leaves it in HOOKJETTY_VAR), a token
    of the tenant is made that holds for a minute.
    """
    settings = load()
    made_up = None if settings.token else _token_of_tenant(settings, tenant)
    with Client(settings.url, settings.token or made_up) as client:
        try:
            published = client.publish(
                type, _text_of(data), key, tenant_id=None if made_up else tenant
            )
        except ValueError as reason:
            raise click.UsageError(str(reason)) from reason
    if as_json:
        click.echo(json.dumps(published._asdict()))
    else:
        click.echo(f"{published.event_id}, tasks: {published.tasks}")


def _token_of_tenant(settings: Settings, tenant: int | None) -> str:
    if not settings.jwt_secret:
        raise WrongSettings(
            "HOOKJETTY_TOKEN is not set, and there is no instance's HOOKJETTY_JWT_SECRET to make a"
            f" token with, nor a running one in {settings.var}"
        )
    if tenant is None:
        raise click.UsageError("say whose event it is: --tenant 7, or a tenant's HOOKJETTY_TOKEN")
    return Tokens(settings).mint(
        subject="hookjetty publish",
        ttl_seconds=OWN_TOKEN_SECONDS,
        tenant_id=tenant,
        scopes=[PUBLISH],
    )


def _text_of(data: str) -> str:
    """What DATA, @FILE or - stands for."""
    try:
        if data == "-":
            return sys.stdin.buffer.read().decode()
        if data.startswith("@"):
            return Path(data[1:]).read_bytes().decode()
    except OSError as error:
        raise click.UsageError(f"{data[1:]}: {error.strerror}") from error
    return data


# --------------------------------------------------------------------------------- listen


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", default=9000, show_default=True)
@click.option("--path", default="/hook", show_default=True, help="Anything else is a 404.")
@click.option(
    "--secret", "secrets", multiple=True, help="The endpoint's secret; several while it is rotated."
)
@click.option("--no-verify", is_flag=True, help="Take what comes, signed or not.")
@click.option(
    "--status",
    type=click.IntRange(200, 599),
    metavar="N",
    help="Answer deliveries with this.  [default: 200, with --fail 503]",
)
@click.option(
    "--fail", type=click.IntRange(min=0), metavar="N", help="Only the first so many; then with 200."
)
@json_option
def listen(
    port: int,
    path: str,
    secrets: tuple[str, ...],
    no_verify: bool,
    status: int | None,
    fail: int | None,
    as_json: bool,
) -> None:
    """Receive webhooks, verify and print them.

    Listens on 127.0.0.1, answers challenges, and prints a line for each request. Without --secret
    one is made up: register the endpoint with it. The service calls this machine only if its
    HOOKJETTY_ALLOW_NETWORKS has 127.0.0.0/8. Ctrl-C ends it.
    """
    if secrets and no_verify:
        raise click.UsageError("--secret and --no-verify exclude each other")
    for secret in secrets:
        try:
            secret_bytes(secret)
        except ValueError as reason:
            raise click.BadParameter(str(reason), param_hint="--secret") from reason
    if not secrets and not no_verify:
        secrets = (generate_secret(),)
        click.echo(f"Register it with this secret: {secrets[0]}", err=True)
    moods = [status or 503] * fail if fail is not None else []
    receiver = Receiver(path, secrets, moods, 200 if fail is not None else status or 200, as_json)
    try:
        server = Listener(port, receiver)
    except OSError as error:
        raise Failure(f"127.0.0.1:{port} cannot be listened on: {error.strerror}") from error
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore SIGINT
        signal.signal(number, _interrupt)
    click.echo(f"Listening on http://127.0.0.1:{server.server_port}{path}", err=True)
    try:
        server.serve_forever(poll_interval=0.1)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        receiver.fall_silent()


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


class Receiver:
    """What a good receiver does with a request: verify it, answer a challenge, say thank you.

    The answers to deliveries are the statuses ``first``, then ``later`` for ever. No ``secrets``:
    everything is believed.
    """

    def __init__(
        self, path: str, secrets: Iterable[str], first: Iterable[int], later: int, as_json: bool
    ) -> None:
        self._path = path
        self._secrets = tuple(secrets)
        self._first = list(first)
        self._later = later
        self._as_json = as_json
        self._lock = threading.Lock()

    def answer(
        self, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """The status, the body, and what is to be told about it."""
        if path.partition("?")[0] != self._path:
            return self._refusal(404, f"{path} is not {self._path}")
        try:
            event = verify(body, headers, self._secrets) if self._secrets else json.loads(body)
        except (VerificationError, ValueError, RecursionError) as reason:
            return self._refusal(400, str(reason))
        if not isinstance(event, dict):
            return self._refusal(400, "the body is not a JSON object")
        told = {
            "id": event.get("id"),
            "type": event.get("type"),
            "attempt": headers.get("webhook-attempt"),
            "replay": headers.get("webhook-replay"),
            "verified": bool(self._secrets),
            "data": event.get("data"),
        }
        consent = challenge_response(event)
        if consent is not None:
            return 200, consent, {"status": 200} | told
        with self._lock:
            status = self._first.pop(0) if self._first else self._later
        return status, {}, {"status": status} | told

    def tell(self, told: Mapping[str, Any]) -> None:
        """One line about a request."""
        if self._as_json:
            line = json.dumps(told)
        else:
            words = [time.strftime("%H:%M:%S"), str(told["status"])]
            if "error" in told:
                words.append(f"refused: {told['error']}")
            else:
                words += [str(told["type"]), str(told["id"])]
                words += [f"try {told['attempt']}"] if told["attempt"] else []
                words += [f"replay {told['replay']}"] if told["replay"] else []
                words.append(json.dumps(told["data"])[:SHOWN_DATA_CHARACTERS])
            # Strangers' text must not move the cursor or ring the bell.
            line = "  ".join(_printable(word) for word in words)
        with self._lock:
            click.echo(line)

    def fall_silent(self) -> None:
        """Tell nothing any more: Python aborts when it ends while a thread is writing."""
        self._lock.acquire()

    def _refusal(self, status: int, reason: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
        return status, {"error": reason}, {"status": status, "error": reason, "verified": False}


class Listener(ThreadingHTTPServer):
    """Hands each request to a ``Receiver``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, receiver: Receiver) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.receiver = receiver

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender who hangs up is none of our concern."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Reads a request and writes the answer."""

    server: Listener
    protocol_version = "HTTP/1.1"
    timeout = IDLE_CONNECTION_SECONDS

    def do_POST(self) -> None:
        """One delivery or challenge."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_RECEIVED_BYTES:
            self.close_connection = True
            self.send_error(413 if length.isdecimal() else 411)
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): text for name, text in self.headers.items()}
        status, answer, told = self.server.receiver.answer(self.path, headers, body)
        # Before the answer: who sends one request after another sees them told in that order.
        self.server.receiver.tell(told)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Not the server's own line per request: the receiver tells more."""


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# --------------------------------------------------------------------------------- config


@main.command()
@json_option
def config(as_json: bool) -> None:
    """Show the settings in force, secrets masked.

    Or what is wrong with them, all of it; the exit status is 2 then.
    """
    rows = load().describe()
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    _print_table(
        ("setting", "value", "unit", "default"),
        [(row.env, row.value, row.unit, row.default) for row in rows],
    )


def _print_table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be."""
    lines = [tuple(name.upper() for name in names), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


# ------------------------------------------------------------------------------------- db


@main.group("db")
def db_group() -> None:
    """The schema in PostgreSQL, and what is encrypted there."""


@db_group.command()
def migrate() -> None:
    """Give the database the schema it needs.

    Also tells what a superuser has to run where this role may not create the role for services
    that publish from their own transactions.
    """
    _connect()
    applied = database.migrate()
    state = "applied" if applied else "was there already"
    click.echo(f"schema version {database.SCHEMA_VERSION} {state}")
    grant = database.publisher_grant()
    if grant is not None:
        click.echo(
            "This database role may not create roles. To let other services publish from their own"
            f" transactions, have a superuser run in this database:\n\n{grant}"
        )


@db_group.command()
@json_option
def status(as_json: bool) -> None:
    """Show version, partitions and dispatchers.

    The exit status is 1 if this program cannot work on the database.
    """
    _connect()
    found = _status()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_status(found)
    database.check_schema()


@db_group.command("rotate-secrets")
def rotate_secrets() -> None:
    """Encrypt all secrets with the newest of HOOKJETTY_SECRET_KEYS.

    Then the older keys may go. Run it after API and dispatchers were restarted with the new key in
    front; they go on meanwhile. Names the endpoints whose secrets cannot be decrypted and leaves
    them alone; the exit status is 1 then.
    """
    settings = _connect("secret_keys")
    database.check_schema()
    vault = Vault(settings.secret_keys, before_encrypting=database.hold_secret_key)
    try:
        report = reencryption.rotate_secrets(vault)
    except reencryption.NotRestarted as error:
        raise Failure(str(error)) from error
    click.echo(f"encrypted again: endpoints: {report.endpoints}, stored answers: {report.answers}")
    for fingerprint in report.forgotten:
        click.echo(f"key {fingerprint} encrypts nothing any more")
    if not report.is_complete:
        raise Failure(_unreadable(report))
    kept = "all keys but the newest may be removed from HOOKJETTY_SECRET_KEYS"
    click.echo(kept if len(settings.secret_keys) > 1 else "there is one key, and it is in use")


def _unreadable(report: reencryption.Report) -> str:
    """What could not be decrypted, and how to mend it."""
    lines = [
        f"endpoint {each.endpoint_id} of tenant {each.tenant_id}: a secret cannot be decrypted"
        for each in report.unreadable
    ]
    if report.unreadable:
        lines.append(
            "Put the key they were written with at the end of HOOKJETTY_SECRET_KEYS and run this"
            " again, or give each a new secret."
        )
    if report.unreadable_answers:
        lines.append(
            f"stored answers that cannot be decrypted: {report.unreadable_answers}; they are gone"
            " after 24 hours"
        )
    return "\n".join(lines)


def _connect(*needed: str) -> Settings:
    settings = load()
    settings.require("database_url", *needed)
    database.open_database(settings.database_direct_url or "", "hookjetty cli")
    db.ready()
    return settings


def _status() -> dict[str, Any]:
    found: dict[str, Any] = {
        "schema_version": database.schema_version(),
        "needed_version": database.SCHEMA_VERSION,
        "publisher_role": database.publisher_grant() is None,
        "partitions": [],
        "dispatchers": [],
    }
    if found["schema_version"] != database.SCHEMA_VERSION:
        return found
    partitions = db.execute_sql(
        """
        SELECT parent, count(*), min(hookjetty.id_time(from_id)), max(hookjetty.id_time(upto_id))
        FROM hookjetty.partitions GROUP BY parent ORDER BY parent
        """
    )
    found["partitions"] = [
        {"table": parent, "weeks": weeks, "from": rfc3339(first), "to": rfc3339(last)}
        for parent, weeks, first, last in partitions.fetchall()
    ]
    found["dispatchers"] = [
        {
            "id": dispatcher.id,
            "host": dispatcher.host,
            "pid": dispatcher.pid,
            "in_flight": dispatcher.in_flight,
            "parked": dispatcher.parked,
            "started_at": rfc3339(dispatcher.started_at),
            "seen_at": rfc3339(dispatcher.seen_at),
        }
        for dispatcher in Dispatcher.alive().order_by(Dispatcher.id)
    ]
    return found


def _print_status(found: Mapping[str, Any]) -> None:
    version = "none" if found["schema_version"] is None else found["schema_version"]
    click.echo(f"schema version: {version} (needed: {found['needed_version']})")
    missing = "missing; `hookjetty db migrate` tells what to run"
    click.echo(f"role hookjetty_publisher: {'there' if found['publisher_role'] else missing}")
    for each in found["partitions"]:
        click.echo(
            f"partitions of {each['table']}: {each['weeks']} weeks,"
            f" {each['from'][:10]} to {each['to'][:10]}"
        )
    click.echo(f"dispatchers: {len(found['dispatchers']) or 'none'}")
    for each in found["dispatchers"]:
        click.echo(
            f"  {each['host']} pid {each['pid']}: {each['in_flight']} in flight,"
            f" seen {each['seen_at']}"
        )


if __name__ == "__main__":
    main()
