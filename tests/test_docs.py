"""What the documents list is what there is, and what the README shows works as written."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from pathlib import Path

import pytest
from flask import Flask

from app import errors, models
from app.settings import load
from dispatcher.engine import POLL_SECONDS
from hookjetty.verify import secret_bytes, sign

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DATA_MODEL = (ROOT / "docs/data-model.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HTTP_API = (ROOT / "docs/http-api.md").read_text()
ADMIN_PREFIX = "/api/webhooks"
TENANT_PREFIX = "/api/v1/data-consumption/webhooks"


def section(text: str, heading: str) -> str:
    """A document's part under a heading, up to the next one of its level."""
    level = heading.split(" ", maxsplit=1)[0]
    return re.split(rf"^{level} ", text.split(f"{heading}\n", 1)[1], flags=re.MULTILINE)[0]


def first_column(table: str) -> list[str]:
    """The words in code type in a table's first column."""
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [word for cell in cells for word in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    here = [link for link in links if "://" not in link]
    assert [link for link in here if not (document.parent / link).exists()] == []


def test_the_statuses_and_failures_of_the_data_model_are_all_there_are():
    task_statuses, failures = section(DATA_MODEL, "## Tasks").split("How an attempt can fail")
    assert first_column(task_statuses) == list(models.TASK_STATUSES)
    assert sorted(first_column(failures)) == sorted(models.FAILURES)
    endpoints = first_column(section(DATA_MODEL, "## Endpoints"))
    assert endpoints == [status for status in models.ENDPOINT_STATUSES if status != "deleted"]


def test_the_retry_schedule_is_the_default_one():
    delays = "0, 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h"
    seconds = {"": 1, "s": 1, "min": 60, "h": 3600}
    named = [re.fullmatch(r"(\d+) ?(\w*)", one) for one in [*delays.split(", "), "24 h"]]
    assert [int(one[1]) * seconds[one[2]] for one in named] == list(load({}).retry_schedule)
    assert delays in README
    assert delays in DATA_MODEL


def test_every_route_is_in_the_pages_of_the_http_api(app: Flask):
    there = {
        f"`{method} {rule.rule.replace('<', '{').replace('>', '}')}`"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    shown = set(re.findall(r"^`[A-Z]+ /\S*`$", HTTP_API, re.MULTILINE))
    assert shown == there


def test_every_error_code_is_in_the_pages_of_the_http_api():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section(HTTP_API, "## Errors"), re.MULTILINE)
    assert {code: int(status) for status, code in rows} == errors.STATUS_OF_CODE


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_route_that_a_document_names_is_there(document, app: Flask):
    """In code type, by its path below either prefix: `POST /endpoints/{id}/verify`."""
    there = {
        (method, re.sub(r"<\w+>", "{id}", rule.rule.removeprefix(prefix)))
        for rule in app.url_map.iter_rules()
        for prefix in ("", TENANT_PREFIX, ADMIN_PREFIX)
        for method in (rule.methods or set()) - {"OPTIONS"}
    }
    named = {
        (method, re.sub(r"\{\w+\}|…", "{id}", path))
        for methods, path in re.findall(r"`([A-Z|]{3,}) (/[\w/{}…-]*)[`?]", document.read_text())
        for method in methods.split("|")
    }
    assert named - there == set()


def test_the_error_codes_are_those_of_the_contract():
    """tenant-api.md, Error Model: these eight and no other."""
    assert errors.STATUS_OF_CODE == {
        "invalid_request": 400,
        "unauthorized": 401,
        "forbidden": 403,
        "not_found": 404,
        "version_conflict": 409,
        "rate_limited": 429,
        "internal_error": 500,
        "dependency_down": 503,
    }


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(
            r"(?:`|^)make ([a-z-]+)(?:`| +#)", document.read_text(), re.MULTILINE
        )
    }
    assert named <= targets
    assert {"demo", "run", "run-api", "run-dispatcher", "test", "check", "bench"} <= named


def test_every_setting_that_is_named_exists():
    names = [f"HOOKJETTY_{name.upper()}" for name in load({}).__dataclass_fields__]
    known = {*names, *(f"{name}_FILE" for name in names)}
    for document in DOCUMENTS:
        named = set(re.findall(r"HOOKJETTY_[A-Z_]*[A-Z]", document.read_text()))
        assert named <= known, document.name


def test_the_shell_recipe_of_the_readme_computes_the_signature(tmp_path):
    recipe = re.search(r"\*\*Shell\*\*.*?```sh\n(.*?)```", README, re.DOTALL)
    assert recipe
    secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    body = b'{"type":"export.done","data":{"name":"\xc3\xa4"}}'
    (tmp_path / "body.json").write_bytes(body)
    ran = subprocess.run(
        ["sh", "-c", recipe[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={
            "PATH": os.environ["PATH"],
            "SECRET": secret,
            "WEBHOOK_ID": "evt_1",
            "WEBHOOK_TIMESTAMP": "1795303283",
        },
    )
    expected = sign(secret_bytes(secret), "evt_1", 1795303283, body)
    assert "v1," + ran.stdout.strip() == expected


def test_the_architecture_page_names_files_that_exist():
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`((?:app|dispatcher|hookjetty|docs|tests)/[\w./]*|schema\.sql)`", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_poll_is_as_often_as_the_architecture_page_says():
    assert "polls every second" in (ROOT / "docs/architecture.md").read_text()
    assert POLL_SECONDS == 1.0
