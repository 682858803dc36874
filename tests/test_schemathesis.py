"""schemathesis calls every operation of the OpenAPI document on a live service, with all its
checks: no 5xx, no status, header, media type or member that is not documented, nothing accepted
that the document forbids, nothing refused that it allows.

A few examples of each operation here; ``make fuzz`` tries 5,000, or FUZZ_EXAMPLES.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ADMIN_PREFIX, TENANT_PREFIX, execute, new_database
from tests.documented import resolved, the_document
from tests.live import LiveService

TENANT = 7
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))

# What JSON Schema cannot say of a value, so that one which fits its schema may still be a 400.
OPAQUE = {
    "cursor": "only those that a page gave are good",
    "url": "the address policy has the last word",
    "from": "a time, an event's id or a word; within reason",
    "data": "without NUL, without lone surrogates, without absurd depth",
    "events": "the same, in a batch",
    "schema": "any object fits, and not all are JSON Schema",
    "example": "it has to satisfy the schema",
    "tenant_id": "7.0 is an integer to JSON Schema, and none to us",
    "id": "the same",
    "If-Match": "the generator gives up on its pattern and sends 0",
}


# What the ids in the document's examples are of: ep_7, rpl_7, export.done.
THINGS = """
    INSERT INTO hookjetty.tenants VALUES (7);
    INSERT INTO hookjetty.endpoints (id, tenant_id, url, url_key, events, status, secret)
    OVERRIDING SYSTEM VALUE
    VALUES (7, 7, 'https://app.example.com/7', 'https://app.example.com/7', '{*}', 'active', '');
    INSERT INTO hookjetty.replays
        (id, tenant_id, endpoint_id, status, from_id, upto_id, cursor_id, finished_at)
    OVERRIDING SYSTEM VALUE
    VALUES (7, 7, 7, 'finished', 1, 2, 2, now());
    INSERT INTO hookjetty.event_types (name, description) VALUES ('export.done', '');
"""


@pytest.fixture(scope="module")
def live(server_url: str, template: str) -> Iterator[LiveService]:
    with new_database(server_url, template) as url:
        # 429 is documented, and would hide everything else.
        execute(
            url,
            "CREATE OR REPLACE FUNCTION hookjetty.count_hit(limit_key text, at_most integer,"
            " span interval) RETURNS double precision LANGUAGE sql AS 'SELECT NULL::float8'",
        )
        execute(url, THINGS)
        with LiveService(url, ENDPOINTS_PER_TENANT="1000") as live:
            yield live


@pytest.mark.timeout(3600)
def test_the_live_service_is_as_the_document_says(live: LiveService, tmp_path: Path):
    tokens = {TENANT_PREFIX: live.tenant_token(TENANT), ADMIN_PREFIX: live.admin_token}
    config = tmp_path / "schemathesis.toml"
    config.write_text(configuration(tokens))
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


def configuration(tokens: dict[str, str]) -> str:
    """schemathesis.toml: each surface's token, and what is not held against an operation."""
    lines = [
        "workers = 1",
        "continue-on-failure = true",
        'suppress-health-check = ["all"]',
        "[generation]",
        'database = "none"',
    ]
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
