"""A PostgreSQL for the session, a fresh database for each test, and the people of the stories.

The server is an embedded one, or the one that HOOKJETTY_TEST_DATABASE_URL names. With pytest-xdist
the controller starts it and its workers share it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import db as database_module
from app import devdb
from app.auth import Tokens
from app.db import db
from app.settings import Settings, load
from app.wsgi import create_app
from tests.documented import checked
from tests.hostile import Receiver

# What makes a server fast and unsafe; nothing here outlives the session. Creating a database takes
# 25 ms with wal_level=minimal and 250 ms without.
THROWAWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}

ADMIN_PREFIX = "/api/webhooks"
TENANT_PREFIX = "/api/v1/data-consumption/webhooks"
JWT_SECRET = "the tests' own secret, of more than 32 bytes"
SECRET_KEY = "dGhlIHRlc3RzJyBvd24ga2V5LCBvZiAzMiBieXRlcyE="

OWNER, STRANGER = 7, 8  # the tenants


# -------------------------------------------------------------------------------------- server


class Server:
    """The session's PostgreSQL, started when first asked for."""

    def __init__(self) -> None:
        self._embedded: devdb.DevDatabase | None = None
        self._url = os.environ.get("HOOKJETTY_TEST_DATABASE_URL", "")

    def url(self) -> str:
        """The URL of a database on it from which others can be created."""
        if not self._url:
            self._embedded = devdb.start(
                Path(tempfile.mkdtemp(prefix="hookjetty-tests-")), settings=THROWAWAY
            )
            self._url = self._embedded.url
        return self._url

    def remove(self) -> None:
        """Stop it and delete its files, if it is ours."""
        if self._embedded is not None:
            self._embedded.stop("immediate")
            self._embedded.remove()
            shutil.rmtree(self._embedded.var)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SERVER] = Server()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """On the controller of pytest-xdist, for each worker."""
    node.workerinput["hookjetty_server_url"] = node.config.stash[SERVER].url()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVER].remove()


SERVER: pytest.StashKey[Server] = pytest.StashKey()


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The URL of the session's PostgreSQL server."""
    given = getattr(request.config, "workerinput", {}).get("hookjetty_server_url")
    return given or request.config.stash[SERVER].url()


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database that has the schema, for CREATE DATABASE … TEMPLATE."""
    yield from template_on(server_url)


def template_on(server_url: str) -> Iterator[str]:
    """The same on whichever server."""
    with new_database(server_url) as url:
        database_module.open_database(url)
        db.ready()
        database_module.migrate()
        db.close()
        yield urlsplit(url).path[1:]


@contextmanager
def new_database(server_url: str, template: str = "template0") -> Iterator[str]:
    """A database that exists as long as the context; yields its URL."""
    name = f"hookjetty_test_{uuid.uuid4().hex[:12]}"
    execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        yield urlsplit(server_url)._replace(path=f"/{name}").geturl()
    finally:
        execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def execute(url: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """One statement on a connection of its own, in autocommit."""
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


@pytest.fixture
def database(server_url: str, template: str) -> Iterator[str]:
    """The URL of a fresh database with the schema; ``app.db.db`` is connected to it."""
    with new_database(server_url, template) as url:
        database_module.open_database(url)
        db.ready()
        try:
            yield url
        finally:
            db.give_up()


# ---------------------------------------------------------------------------------- receivers


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Start receivers that misbehave: ``receivers(behaviour)``."""
    with ExitStack() as stack:
        yield lambda behave, **options: stack.enter_context(Receiver(behave, **options))


# -------------------------------------------------------------------------------- application


@pytest.fixture
def environ(database: str) -> dict[str, str]:
    """The environment of an instance on the test's database; change it before ``settings``."""
    return {
        "HOOKJETTY_DATABASE_URL": database,
        "HOOKJETTY_JWT_SECRET": JWT_SECRET,
        "HOOKJETTY_SECRET_KEYS": SECRET_KEY,
        # Few tests are about the limit; those set their own.
        "HOOKJETTY_RATE_LIMIT": "10000",
    }


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return load(environ)


@pytest.fixture
def app(settings: Settings) -> Flask:
    """The application, in this process."""
    app = create_app(settings)
    app.test_client_class = checked(FlaskClient)
    db.ready()
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A caller without a token."""
    return app.test_client()


class Caller:
    """Somebody with a token, calling one surface. Paths are relative to its prefix."""

    def __init__(self, client: FlaskClient, prefix: str, token: str) -> None:
        self.client = client
        self.prefix = prefix
        self.token = token

    def call(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {self.token}"} | options.pop("headers", {})
        return self.client.open(self.prefix + path, method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        if body is not None:
            options["json"] = body
        return self.call("POST", path, **options)

    def delete(self, path: str, **options: Any) -> TestResponse:
        return self.call("DELETE", path, **options)


@pytest.fixture
def tokens(settings: Settings) -> Tokens:
    return Tokens(settings)


@pytest.fixture
def mint(tokens: Tokens) -> Callable[..., str]:
    """A token: ``mint(tenant_id=7)``."""
    return lambda **claims: tokens.mint(**{"subject": "somebody", "ttl_seconds": 600} | claims)


@pytest.fixture
def admin(client: FlaskClient, mint: Callable[..., str]) -> Caller:
    """An admin, on the admin surface."""
    return Caller(client, ADMIN_PREFIX, mint(subject="ada", role="admin"))


@pytest.fixture
def owner(client: FlaskClient, mint: Callable[..., str]) -> Caller:
    """Tenant 7, on the tenant surface: may read and write, but not publish."""
    return Caller(client, TENANT_PREFIX, mint(subject="olga", tenant_id=OWNER))


@pytest.fixture
def stranger(client: FlaskClient, mint: Callable[..., str]) -> Caller:
    """Tenant 8, who has no business with what is tenant 7's."""
    return Caller(client, TENANT_PREFIX, mint(subject="sven", tenant_id=STRANGER))


@pytest.fixture
def producer(client: FlaskClient, mint: Callable[..., str]) -> Caller:
    """A service that publishes for every tenant."""
    token = mint(subject="exports", role="service", scopes=["events:write"])
    return Caller(client, TENANT_PREFIX, token)


@pytest.fixture
def consent(database: str) -> Iterator[None]:
    """Every receiver consents within milliseconds; stands in for a dispatcher's handshakes."""
    execute(database, "INSERT INTO hookjetty.dispatchers (id, host, pid) VALUES (1, 'here', 1)")
    over = threading.Event()

    def answer() -> None:
        connection = psycopg2.connect(database)
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not over.wait(0.005):
                cursor.execute(
                    "UPDATE hookjetty.endpoints SET status = 'active', verified_at = now(),"
                    " handshake_at = NULL, handshake_failure = NULL WHERE status = 'pending'"
                )
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    over.set()
    thread.join()
