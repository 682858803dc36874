"""``make openapi``: what is made from the routes that there are.

docs/openapi.json, docs/http-api.md, and the types of the answers in hookjetty/answers.py. A test
compares the files with what this would write.
"""

from __future__ import annotations

from pathlib import Path

from app import reference
from app.blueprints.documentation import as_json, document
from app.settings import load
from app.wsgi import assemble
from docs import answers

DOCS = Path(__file__).resolve().parent

# What the service needs in order to be put together; nothing is connected, signed or encrypted.
NEEDED = {
    "HOOKJETTY_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    "HOOKJETTY_JWT_SECRET": "no secret at all, and longer than 32 bytes",
    "HOOKJETTY_SECRET_KEYS": "bm8gc2VjcmV0IGF0IGFsbCwgYW5kIDMyIGJ5dGVzLS0=",
}


def files() -> dict[Path, str]:
    """Each file, and what it has to contain: the API with the settings' defaults."""
    made = document(assemble(load(NEEDED)))
    return {
        DOCS / "openapi.json": as_json(made),
        DOCS / "http-api.md": reference.markdown(made),
        DOCS.parent / "hookjetty/answers.py": answers.module(made),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
