"""Checks a JSON Schema (2020-12) and an example of it, and fetches nothing.

``objection`` does so in a process of its own: a pattern can take for ever, a reference can go round
in circles, and Python's ``re`` lets no other thread run meanwhile. The process may use so much time
and memory, and then it is gone.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REFERENCES = ("$ref", "$dynamicRef")

CPU_SECONDS = 1
MEMORY_BYTES = 1024 * 1024 * 1024
# By the clock, on a machine that is busy otherwise.
PATIENCE_SECONDS = 20.0

MOST_CHARACTERS_QUOTED = 300


def objection(schema: Any, example: Any) -> str | None:
    """Why a schema, or an example (None: there is none) of it, is not good; None: both are.

    The answer is ``schema: …`` or ``example: …``.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "app.jsonschemas"],
            input=json.dumps([schema, example]),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode != 0:
        return "schema: takes too much time or memory to check; simplify its patterns or references"
    answer: str | None = json.loads(done.stdout)
    return answer


def main() -> None:
    """The process: schema and example on stdin, the objection to stdout, as JSON."""
    given = json.load(sys.stdin)
    until = math.ceil(time.process_time() + CPU_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (until, until))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(_objection(*given), sys.stdout)


def _objection(schema: Any, example: Any) -> str | None:
    if not isinstance(schema, dict):
        return "schema: must be a JSON object"
    if schema.get("$schema", DIALECT) not in (DIALECT, f"{DIALECT}#"):
        return f"schema: $schema must be {DIALECT}, or absent"
    try:
        Draft202012Validator.check_schema(schema)
        unresolved = _unresolved(schema)
        if unresolved is not None:
            return f"schema: refers to {unresolved!r:.{MOST_CHARACTERS_QUOTED}}, which is not in it"
        if example is None:
            return None
        # With a registry of its own: the validator's default one would fetch.
        validator = Draft202012Validator(schema, registry=Registry())
        error = best_match(validator.iter_errors(example))
    except SchemaError as wrong:
        return f"schema: {_worded(wrong)}"
    except RecursionError:
        return "schema: its references go round in circles"
    except Exception as wrong:  # noqa: BLE001 - jsonschema has no bound on what it raises
        return f"schema: cannot be evaluated ({type(wrong).__name__})"
    return None if error is None else f"example: {_worded(error)}"


def _unresolved(schema: dict[str, Any]) -> str | None:
    """A reference to something that is not in the schema itself."""
    root = DRAFT202012.create_resource(schema)
    registry: Registry[Any] = Registry().with_resource("", root).crawl()
    to_look_at: list[tuple[Resource[Any], Any]] = [(root, registry.resolver_with_root(root))]
    while to_look_at:
        here, resolver = to_look_at.pop()
        if isinstance(here.contents, dict):
            for keyword in REFERENCES:
                reference = here.contents.get(keyword)
                if reference is None:
                    continue
                try:
                    resolver.lookup(reference)
                except Unresolvable:
                    return str(reference)
        to_look_at += [(each, resolver.in_subresource(each)) for each in here.subresources()]
    return None


def _worded(error: Any) -> str:
    place = "".join(f".{part}" for part in error.absolute_path).removeprefix(".")
    message = error.message
    if len(message) > MOST_CHARACTERS_QUOTED:
        message = message[:MOST_CHARACTERS_QUOTED] + " …"
    return f"{place}: {message}" if place else message


if __name__ == "__main__":
    main()
