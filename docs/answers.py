"""The answers of the API as Python types, for hookjetty/answers.py.

Words from a closed vocabulary are ``str``: it may get more of them with time.
"""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

HEAD = '''\
"""What the API answers, as types. Made from docs/openapi.json by `make openapi`: do not edit."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict
'''

PLAIN = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def module(document: Mapping[str, Any]) -> str:
    """A TypedDict for each object that a tenant or an admin may be answered with."""
    schemas = document["components"]["schemas"]
    parts = [_typed_dict(name, schemas[name]) for name in sorted(_answered(document))]
    return "\n\n".join([HEAD, *parts])


def _answered(document: Mapping[str, Any]) -> set[str]:
    """The schemas of successful answers, and those that they refer to."""
    found: set[str] = set()
    waiting = [
        media["schema"]
        for path, methods in document["paths"].items()
        if path.startswith("/api/")
        for operation in methods.values()
        for status, answer in operation["responses"].items()
        if int(status) < 400
        for media in answer.get("content", {}).values()
    ]
    while waiting:
        for name in _references(waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(document["components"]["schemas"][name])
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for each in schema.values():
            yield from _references(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from _references(each)


def _typed_dict(name: str, schema: Mapping[str, Any]) -> str:
    members = {member: _type(each) for member, each in schema.get("properties", {}).items()}
    for member in members.keys() - set(schema.get("required", ())):
        members[member] = f"NotRequired[{members[member]}]"
    if any(keyword.iskeyword(member) for member in members):
        lines = ",\n".join(f'        "{member}": "{type_}"' for member, type_ in members.items())
        return f'{name} = TypedDict(\n    "{name}",\n    {{\n{lines},\n    }},\n)\n'
    lines = "\n".join(f"{member}: {type_}" for member, type_ in members.items())
    return f"class {name}(TypedDict):\n{textwrap.indent(lines or 'pass', '    ')}\n"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " | ".join(_type(each) for each in schema[word])
    types = schema.get("type", "object")
    types = [types] if isinstance(types, str) else types
    return " | ".join(_plain(each, schema) for each in types)


def _plain(type_: str, schema: Mapping[str, Any]) -> str:
    if type_ == "array":
        return f"list[{_type(schema['items'])}]"
    if type_ == "object":
        inner = schema.get("additionalProperties")
        return f"dict[str, {_type(inner) if isinstance(inner, dict) else 'Any'}]"
    return PLAIN[type_]
