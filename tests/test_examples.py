"""The examples do what they say, run as a stranger runs them: curl scripts and the demo."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hookjetty.client import Client
from tests.acceptance.receiver import RecordingReceiver
from tests.conftest import new_database
from tests.live import LiveService, reserve_port, wait_until

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(path.name for path in (EXAMPLES / "curl").glob("*-*.sh"))
# Each with arguments that it takes, in the order of its README.
CALLED_RIGHT: dict[str, list[Any]] = {
    "create-endpoint.sh": [7, "https://example.com/"],
    "list-endpoints.sh": [7],
    "delete-endpoint.sh": [7],
    "list-tasks.sh": [7],
    "retry-task.sh": [7],
    "list-tenants.sh": [],
    "limit-tenant.sh": [7, "endpoints=5"],
    "create-portal-token.sh": [7],
    "erase-tenant.sh": [7],
    "list-erasures.sh": [],
    "list-actions.sh": [],
    "create-operator-endpoint.sh": ["https://example.com/"],
    "list-operator-endpoints.sh": [],
    "list-operator-tasks.sh": [],
    "save-event-type.sh": ["export.done"],
    "list-event-types.sh": [],
    "delete-event-type.sh": ["export.done"],
    "publish-event.sh": ["export.done"],
}


@pytest.fixture(scope="module")
def live(server_url: str, template: str) -> Iterator[LiveService]:
    with new_database(server_url, template) as url, LiveService(url) as live:
        yield live


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[RecordingReceiver]:
    with RecordingReceiver(tmp_path / "seen") as running:
        yield running


@pytest.fixture
def environ(live: LiveService) -> dict[str, str]:
    """Of an admin who has a token and knows where the API is."""
    return plain_environ() | {"HOOKJETTY_URL": live.url, "HOOKJETTY_TOKEN": live.admin_token}


def plain_environ() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("HOOKJETTY_")}


def script(environ: dict[str, str], name: str, *arguments: object, stdin: str = "") -> Any:
    return subprocess.run(
        [EXAMPLES / "curl" / name, *map(str, arguments)],
        env=environ,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def succeed(environ: dict[str, str], name: str, *arguments: object, stdin: str = "") -> Any:
    """The answer that a script prints."""
    done = script(environ, name, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


# ---------------------------------------------------------------------------------- curl


def test_there_is_a_script_for_every_admin_operation_and_for_publishing():
    assert set(SCRIPTS) == CALLED_RIGHT.keys()
    served = json.loads((EXAMPLES.parent / "docs" / "openapi.json").read_text())["paths"]
    paths = [path for path in served if path.startswith("/api/webhooks")]
    scripts = "".join((EXAMPLES / "curl" / name).read_text() for name in SCRIPTS)
    assert [path for path in paths if path.partition("{")[0].rstrip("/") not in scripts] == []


def test_every_script_is_in_the_readme():
    readme = (EXAMPLES / "curl" / "README.md").read_text()
    assert re.findall(r"^\| `(\S+\.sh)", readme, re.MULTILINE) == list(CALLED_RIGHT)


def test_the_scripts_do_an_admins_work(live, environ, receiver):
    made = succeed(environ, "create-endpoint.sh", 7, receiver.url("/work", status=500, times=1))
    assert made["code"] == 0
    endpoint_id = made["data"]["id"]
    assert made["data"]["secret"].startswith("whsec_")
    listed = succeed(environ, "list-endpoints.sh", 7)["data"]
    assert [(each["id"], each["status"]) for each in listed] == [(endpoint_id, "active")]

    service = environ | {"HOOKJETTY_TOKEN": live.service_token}
    published = succeed(service, "publish-event.sh", "-t", 7, "export.done", '{"rows": 1.50}')
    assert published["tasks"] == 1

    def task_with(status: str) -> Any:
        tasks = succeed(environ, "list-tasks.sh", "-s", status, "-e", endpoint_id, 7)["data"]
        return next(iter(tasks), None)

    wait_until(lambda: task_with("retry"))
    task = task_with("retry")
    assert succeed(environ, "retry-task.sh", task["id"])["data"] == {"id": task["id"]}
    wait_until(lambda: task_with("delivered"))
    assert [seen.event for seen in receiver.at("/work")] == [published["event_id"]] * 2
    assert b'"data":{"rows": 1.50}}' in receiver.at("/work")[0].body

    assert succeed(environ, "delete-endpoint.sh", endpoint_id)["data"] == {"id": endpoint_id}
    assert succeed(environ, "list-endpoints.sh", 7)["data"] == []


def test_the_scripts_look_after_tenants(environ):
    succeed(environ, "create-endpoint.sh", 21, "https://example.com/")
    limited = succeed(environ, "limit-tenant.sh", 21, "endpoints=5", "replays_per_minute=9")["data"]
    assert limited["own_limits"] == {"endpoints": 5, "replays_per_minute": 9}
    succeed(environ, "limit-tenant.sh", 21, "endpoints=null")
    shown = succeed(environ, "list-tenants.sh", 21)["data"]
    assert shown["own_limits"] == {"replays_per_minute": 9}
    assert shown in succeed(environ, "list-tenants.sh")["data"]

    token = succeed(environ, "create-portal-token.sh", "-s", "webhooks:read", "-d", 60, 21)["data"]
    assert (token["tenant_id"], token["scope"]) == (21, "webhooks:read")

    actions = succeed(environ, "list-actions.sh", "-t", 21)["data"]
    assert [each["action"] for each in actions] == [
        "create_portal_token", "limit_tenant", "limit_tenant", "create_endpoint",
    ]  # fmt: skip
    long_ago = ["-t", 21, "-o", "limit_tenant", "-f", "2020-01-01T00:00:00Z"]
    assert len(succeed(environ, "list-actions.sh", *long_ago)["data"]) == 2
    long_ago = [*long_ago, "-u", "2020-01-02T00:00:00Z", "-a", "nobody & nothing"]
    assert succeed(environ, "list-actions.sh", *long_ago)["data"] == []

    erasure = succeed(environ, "erase-tenant.sh", 21)["data"]
    assert [each["id"] for each in succeed(environ, "list-erasures.sh", 21)["data"]] == [
        erasure["id"]
    ]


def test_the_scripts_look_after_the_operators_endpoints(environ):
    wanted = ["-t", "hookjetty.task.*", "-t", "hookjetty.endpoint.disabled"]
    made = succeed(environ, "create-operator-endpoint.sh", *wanted, "https://example.com/")
    assert made["data"]["secret"].startswith("whsec_")
    (listed,) = succeed(environ, "list-operator-endpoints.sh")["data"]
    assert listed["id"] == made["data"]["id"]
    assert succeed(environ, "list-operator-tasks.sh", "-e", listed["id"])["data"] == []
    succeed(environ, "delete-endpoint.sh", listed["id"])
    assert succeed(environ, "list-operator-endpoints.sh")["data"] == []


def test_the_scripts_keep_the_catalogue(environ, tmp_path):
    (tmp_path / "schema").write_text('{"required": ["rows"]}')
    (tmp_path / "example").write_text('{"rows": 3}')
    files = ["-s", tmp_path / "schema", "-x", tmp_path / "example"]
    succeed(environ, "save-event-type.sh", "-d", 'it is "done"', *files, "export.done")
    shown = succeed(environ, "list-event-types.sh", "export.done")["data"]
    assert (shown["description"], shown["example"]) == ('it is "done"', {"rows": 3})
    listed = succeed(environ, "list-event-types.sh")["data"]
    assert [each["name"] for each in listed] == ["export.done"]
    succeed(environ, "delete-event-type.sh", "export.done")
    assert succeed(environ, "list-event-types.sh")["data"] == []


def test_the_pages_of_a_long_list_are_asked_for_by_cursor(live, environ):
    succeed(environ, "create-endpoint.sh", 11, "https://example.com/")
    with Client(live.url, live.service_token) as producer:
        producer.publish_batch([{"type": "a", "data": {}}] * 101, tenant_id=11)
    first = succeed(environ, "list-tasks.sh", 11)
    second = succeed(environ, "list-tasks.sh", "-c", first["next_cursor"], 11)
    assert (len(first["data"]), len(second["data"]), second["next_cursor"]) == (100, 1, None)


def test_data_comes_from_the_command_line_from_a_file_or_from_stdin(live, environ, tmp_path):
    tenant = environ | {"HOOKJETTY_TOKEN": live.tenant_token(12)}
    large = '{"text": "%s"}' % ("x" * 200_000)  # more than a command line's argument can be
    (tmp_path / "event.json").write_text(large)
    published = [
        succeed(tenant, "publish-event.sh", "a"),
        succeed(tenant, "publish-event.sh", "a", '{"n": 1}'),
        succeed(tenant, "publish-event.sh", "a", f"@{tmp_path}/event.json"),
        succeed(tenant, "publish-event.sh", "a", "-", stdin='{"n": 2}'),
        succeed(tenant, "publish-event.sh", "-k", 'a "key" \\ of é', "a"),
    ]
    assert len({each["event_id"] for each in published}) == 5
    again = succeed(tenant, "publish-event.sh", "-k", 'a "key" \\ of é', "a")
    assert again == published[-1]


def test_a_chosen_secret_is_taken_from_the_environment(environ):
    chosen = environ | {"ENDPOINT_SECRET": 'quotes " and \\ slashes'}
    made = succeed(chosen, "create-endpoint.sh", 13, "https://example.com/")
    assert "secret" not in made["data"]


def test_the_same_request_id_does_it_once(environ):
    once = environ | {"REQUEST_ID": "once-and-for-all"}
    first = succeed(once, "create-endpoint.sh", 14, "https://example.com/")
    assert succeed(once, "create-endpoint.sh", 14, "https://example.com/") == first
    assert len(succeed(environ, "list-endpoints.sh", 14)["data"]) == 1


def test_jq_is_not_needed(environ, tmp_path):
    for command in ("sh", "curl", "od", "tr", "sed", "dirname", "cat"):
        (tmp_path / command).symlink_to(shutil.which(command))
    assert succeed(environ | {"PATH": str(tmp_path)}, "list-endpoints.sh", 15)["data"] == []


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("create-endpoint.sh", [7, "ftp://example.com/"], '"code":400'),
        ("delete-endpoint.sh", [999], "endpoint 999 does not exist"),
        ("retry-task.sh", [999], "task 999 does not exist"),
        ("list-tasks.sh", ["-s", "lost & found", 7], "status: must be one of"),
        ("list-endpoints.sh", [0], "tenant_id: must be an integer"),
        ("limit-tenant.sh", [7, "replays=5"], "replays: is not a field of this"),
        ("create-operator-endpoint.sh", ["-t", "a", "https://b/"], "matches no operational event"),
        ("publish-event.sh", ["a"], "this takes a tenant's or a service's token"),
    ],
)
def test_a_refusal_is_told_with_the_requests_id(environ, name, arguments, words):
    done = script(environ, name, *arguments)
    assert (done.returncode, done.stdout) == (22, "")
    assert words in done.stderr
    assert re.search(r"^failed, request id: curl-[0-9a-f]{24}$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_called_wrongly_tells_its_usage(environ, name):
    wrong = {"publish-event.sh": [["-x"], ["-t", "seven", "a"]]}.get(name, [["seven", "x"], ["-x"]])
    for arguments in ([] if CALLED_RIGHT[name] else ["-x"], ["1"] * 4, *wrong):
        done = script(environ, name, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"usage: {name}" in done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_a_token_a_script_says_how_to_get_one(environ, name):
    del environ["HOOKJETTY_TOKEN"]
    done = script(environ, name, *CALLED_RIGHT[name])
    assert (done.returncode, done.stdout) == (2, "")
    assert "hookjetty token --role admin" in done.stderr


def test_with_nobody_there_a_script_fails_as_curl_does(environ):
    reserved, port = reserve_port()
    with reserved:
        done = script(environ | {"HOOKJETTY_URL": f"http://127.0.0.1:{port}"}, "list-tasks.sh", 7)
    assert (done.returncode, done.stdout) == (7, "")
    assert "curl: (7)" in done.stderr
    assert "failed, request id: " in done.stderr


def test_no_script_shows_its_token_to_other_users(environ, tmp_path):
    """What a process is called with, everybody may read."""
    spy = tmp_path / "curl"
    spy.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >&2\nexit 1\n')
    spy.chmod(0o755)
    done = script(environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, "list-endpoints.sh", 7)
    assert "/api/webhooks?tenant_id=7" in done.stderr
    assert environ["HOOKJETTY_TOKEN"] not in done.stderr


# ---------------------------------------------------------------------------------- demo


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo makes its temporary folder; short, since a socket will be in it."""
    folder = Path(tempfile.mkdtemp(prefix="hj-"))
    yield folder
    folder.rmdir()  # it left nothing behind, or this fails


def demo(folder: Path, *options: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *options, str(EXAMPLES / "demo.py")],
        # Settings of whoever runs it must not reach the demo's own instance.
        env=plain_environ()
        | {"TMPDIR": str(folder), "PYTHONPATH": str(EXAMPLES.parent), "HOOKJETTY_BIND": "nowhere"}
        | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children_of(folder: Path) -> list[str]:
    """Processes whose environment names the folder (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"={folder}".encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            pass  # it has ended, or is not ours
    return found


def test_the_demo_tells_its_story_and_leaves_nothing_behind(folder):
    began = time.monotonic()
    story, complaints = demo(folder).communicate(timeout=100)
    assert complaints == ""
    for chapter in (
        r"-> ep_1, active",
        r"arrived and verified after \d+ ms: .*\"data\":{\"order\": 1, \"total\": 12.50}}",
        r"ROLLBACK -> neither exists",
        r"COMMIT   -> arrived and verified",
        r"try 1 at .*: 503\n  try 2 at .*: 503\n  try 3 at .*: 200\n  task_\d+ is delivered",
        r"a POST without a valid signature -> 400",
        r"(  evt_\d+ arrived again and was verified\n){2}",
        r"7 deliveries, all of them verified, none missing, none twice",
    ):
        assert re.search(chapter, story), f"{chapter} is not in:\n{story}"
    assert time.monotonic() - began < 60
    assert children_of(folder) == []


def test_a_demo_that_goes_wrong_says_so(folder, tmp_path):
    """Here the receiver trusts nobody, so nobody gets its consent."""
    (tmp_path / "sitecustomize.py").write_text(
        "import hookjetty.verify as module\n"
        "def verify(*_): raise module.VerificationError('I trust nobody')\n"
        "module.verify = verify\n"
    )
    process = demo(folder, PYTHONPATH=f"{tmp_path}:{EXAMPLES.parent}")
    story, complaints = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "NOT as promised: the endpoint should be active, but: " in complaints
    assert "All of it as promised" not in story
    assert children_of(folder) == []


@pytest.mark.parametrize(
    ("number", "chapter"),
    [(signal.SIGINT, "Hookjetty starts"), (signal.SIGTERM, "A receiver has a bad day")],
)
def test_an_interrupted_demo_cleans_up(folder, number, chapter):
    process = demo(folder)
    while not (line := process.stdout.readline()).startswith(chapter):
        assert line, process.communicate()
    wait_until(lambda: list(folder.glob("*/postgres")))
    data = next(folder.glob("*/postgres")).resolve(strict=True)
    process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (130, "\ninterrupted\n")
    assert children_of(folder) == []
    assert not data.exists()


def test_a_demo_that_stays_can_be_used_until_it_is_interrupted(folder):
    process = demo(folder, DEMO_STAY="1")
    story = ""
    while "list-tasks.sh" not in story:
        line = process.stdout.readline()
        assert line, story
        story += line
    settings = dict(re.findall(r"(HOOKJETTY_(?:VAR|URL))=(\S+)", story))
    hookjetty = [sys.executable, "-m", "app.cli"]
    environ = plain_environ() | settings | {"PYTHONPATH": str(EXAMPLES.parent)}
    published = subprocess.run(
        [*hookjetty, "publish", "order.paid", '{"order": 5}', "--tenant", "7"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert published.stdout.endswith(", tasks: 1\n")
    data = (Path(settings["HOOKJETTY_VAR"]) / "postgres").resolve(strict=True)
    assert len(children_of(folder)) > 5
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    assert children_of(folder) == []
    assert not data.exists()
