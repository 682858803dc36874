"""schemathesis calls every operation of the OpenAPI document on a live service, with all its
checks: no 5xx, no status, header, media type or member that is not documented, nothing accepted
that the document forbids, nothing refused that it allows.

A few examples of each operation here; ``make fuzz`` tries 5,000, or FUZZ_EXAMPLES.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.blueprints.documentation import PREFIX_OF
from hookjetty.client import AdminClient, Client
from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX, execute, new_database
from tests.documented import resolved, the_document
from tests.live import LiveService

TENANT = 9  # not the one of the document's examples, who is erased
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

# What JSON Schema cannot say of a value, so that one which fits its schema may still be a 400.
OPAQUE = {
    "cursor": "only those that a page gave are good",
    "url": "the address policy has the last word",
    "from": "a time, an event's id or a word; within reason",
    "to": "the same",
    "since": "the same",
    "data": "without NUL, without lone surrogates, without absurd depth",
    "events": "the same, in a batch",
    "schema": "any object fits, and not all are JSON Schema",
    "example": "it has to satisfy the schema",
    "tenant_id": "7.0 is an integer to JSON Schema, and none to us",
    "id": "the same",
    "If-Match": "the generator gives up on its pattern and sends 0",
}


@pytest.fixture(scope="module")
def live(server_url: str, template: str) -> Iterator[LiveService]:
    with new_database(server_url, template) as url:
        # 429 is documented, and would hide everything else.
        execute(
            url,
            "CREATE OR REPLACE FUNCTION hookjetty.count_hit(limit_key text, at_most integer,"
            " span interval) RETURNS double precision LANGUAGE sql AS 'SELECT NULL::float8'",
        )
        with LiveService(url, ENDPOINTS_PER_TENANT="1000") as live:
            yield live


@pytest.fixture(scope="module")
def ids(live: LiveService) -> dict[str, list[int]]:
    """Things that the tenant has, by the names that their ids have in paths and bodies."""
    with AdminClient(live.url, live.admin_token) as admin:
        for number in range(30):
            admin.create_endpoint(TENANT, f"https://app.example.com/{number}")
        admin.save_event_type("export.done")
    with Client(live.url, live.tenant_token(TENANT)) as client:
        for number in range(10):
            client.publish("export.done", {"number": number})
        for endpoint in itertools.islice(client.list_endpoints(), 10):
            client.start_replay(endpoint["endpoint_id"], "2025-10-05T06:00:00Z")
        client.start_bulk_retry(status="failed")
    tables = {
        "endpoint_id": "endpoints",
        "event_id": "events",
        "task_id": "tasks",
        "replay_id": "replays",
        "bulk_retry_id": "bulk_retries",
    }
    return {
        name: [each for (each,) in execute(live.database_url, f"SELECT id FROM hookjetty.{table}")]
        for name, table in tables.items()
    }


@pytest.mark.timeout(3600)
def test_the_live_service_is_as_the_document_says(
    live: LiveService, ids: dict[str, list[int]], tmp_path: Path
):
    tokens = {TENANT_PREFIX: live.tenant_token(TENANT), ADMIN_PREFIX: live.admin_token}
    config = tmp_path / "schemathesis.toml"
    config.write_text(configuration(tokens, ids))
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)]
    command += ["run", f"{live.url}/openapi.json", "--no-color", f"--report-dir={tmp_path}"]
    if not EXAMPLES:  # the same ones every time, and soon
        command += ["--max-examples=2", "--seed=1"]
        command += ["--phases=examples,coverage,stateful"]
    else:
        operations = sum(len(methods) for methods in the_document()["paths"].values())
        command += [f"--max-examples={-(-EXAMPLES // operations)}"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=live.environ, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr + live.log()[-5000:]
    if "FUZZ_EXAMPLES" in os.environ:
        sys.stdout.write(ran.stdout)


def configuration(tokens: dict[str, str], ids: dict[str, list[int]]) -> str:
    """schemathesis.toml: each surface's token, ids, and what is not held against an operation."""
    lines = [
        "workers = 1",
        "continue-on-failure = true",
        'suppress-health-check = ["all"]',
        "[generation]",
        'database = "none"',
    ]
    # Mostly things that there are; at times also others.
    for name, numbers in ids.items():
        prefix = PREFIX_OF[name]
        lines += [f"[dictionaries.{name}]", f"values = {[f'{prefix}_{each}' for each in numbers]}"]
    lines += [
        "[dictionaries.id]",
        f"values = {ids['endpoint_id'] + ids['task_id']}",
        "[parameters]",
    ]
    for name in ids:
        for place in ("path", "query", "body"):
            lines.append(f'"{place}.{name}" = {{ dictionary = "{name}", probability = 0.8 }}')
    lines.append('"body.id" = { dictionary = "id", probability = 0.8 }')

    paths = the_document()["paths"]
    for prefix, token in tokens.items():
        lines += _table(
            {"include-path-regex": f"^{prefix}", "headers.Authorization": f"Bearer {token}"}
        )
    for path, methods in paths.items():
        for operation in methods.values():
            if names_of_values(operation) & set(OPAQUE):
                lines += _table(
                    {
                        "include-operation-id": operation["operationId"],
                        "checks.positive_data_acceptance.expected-statuses": [
                            *("2xx", "400", "401", "403", "404", "409", "429")
                        ],
                    }
                )
        # GET /events/batch is an event of a malformed id, and no 405.
        if any(is_id_of(path, other) for other in paths):
            lines += _table(
                {
                    "include-path": path,
                    "checks.unsupported_method.enabled": False,
                    "checks.allow_header_conformance.enabled": False,
                }
            )
    return "\n".join(lines)


def _table(members: dict[str, Any]) -> list[str]:
    return ["[[operations]]", *(f"{name} = {json.dumps(value)}" for name, value in members.items())]


def names_of_values(operation: dict[str, Any]) -> set[str]:
    """Its parameters and the members of its body."""
    names = {resolved(each)["name"] for each in operation["parameters"]}
    for media in operation.get("requestBody", {}).get("content", {}).values():
        names |= set(resolved(media["schema"]).get("properties", ()))
    return names


def is_id_of(path: str, other: str) -> bool:
    """Whether a path also fits another one with a parameter."""
    pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(other))
    return path != other and re.fullmatch(pattern, path) is not None
