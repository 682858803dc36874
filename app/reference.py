"""An OpenAPI document put into words: as Markdown for docs/http-api.md, as a page for /docs.

Both are the same blocks in the same order. There is no script and nothing to fetch, so the page can
be served with a policy that forbids both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

Document = Mapping[str, Any]

# An integer of up to this is an id, whose bounds nobody has to read each time.
LARGEST_ID = 2**53 - 1


class Heading(NamedTuple):
    """A heading; ``anchor`` is what links lead to."""

    level: int
    text: str
    anchor: str


class Prose(NamedTuple):
    """A paragraph, with `code` and **strong** words in it."""

    text: str


class Table(NamedTuple):
    """Rows of prose under a head."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Code(NamedTuple):
    """Text to be taken as it is."""

    language: str
    text: str


class Links(NamedTuple):
    """A list of what there is: the text and the anchor of each."""

    items: list[tuple[str, str]]


Block = Heading | Prose | Table | Code | Links


# ---------------------------------------------------------------------------------- in blocks


def blocks(document: Document) -> Iterator[Block]:
    """The document from its beginning to its end."""
    info = document["info"]
    yield Heading(1, f"{info['title']}: the HTTP API", "top")
    for paragraph in info["description"].strip().split("\n\n"):
        yield Prose(" ".join(paragraph.split()))
    yield from _errors(document)
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    yield Heading(2, "Operations", "operations")
    yield Links(
        [
            (f"`{method.upper()} {path}` {operation['summary']}", operation["operationId"])
            for path, method, operation in operations
        ]
    )
    for tag in document["tags"]:
        yield Heading(2, _title(tag["name"]), f"tag-{tag['name']}")
        yield Prose(tag["description"])
        for path, method, operation in operations:
            if operation["tags"] == [tag["name"]]:
                yield from _operation(document, path, method, operation)
    yield from _webhooks(document)


def _title(tag: str) -> str:
    """A tag as a heading.

    >>> _title("admin_tasks"), _title("event_types")
    ('Admin: tasks', 'Event types')
    """
    surface, _, noun = tag.partition("_")
    if surface == "admin" and noun:
        return f"Admin: {noun.replace('_', ' ')}"
    return tag.replace("_", " ").capitalize()


def _errors(document: Document) -> Iterator[Block]:
    yield Heading(2, "Errors", "errors")
    rows = []
    for name, response in document["components"]["responses"].items():
        if not name.startswith("admin_"):
            (media,) = response["content"].values()
            admins = document["components"]["responses"][f"admin_{name}"]
            (status,) = (
                each["const"]
                for each in admins["content"]["application/json"]["schema"]["properties"].values()
            )
            rows.append((str(status), f"`{media['example']['error']}`", response["description"]))
    yield Table(("HTTP", "`error`", "meaning"), rows)


def _operation(
    document: Document, path: str, method: str, operation: Mapping[str, Any]
) -> Iterator[Block]:
    yield Heading(3, operation["summary"], operation["operationId"])
    yield Prose(f"`{method.upper()} {path}`")
    if "description" in operation:
        yield Prose(operation["description"])
    yield Prose(f"**Token:** {_tokens(operation)}. **Limit:** {_limits(operation)}.")
    parameters = [_resolved(document, each) for each in operation["parameters"]]
    yield Table(
        ("parameter", "in", "value", "meaning"),
        [
            (
                f"`{each['name']}`" + (", required" if each.get("required") else ""),
                each["in"],
                _type(document, each["schema"]),
                each.get("description") or each["schema"].get("description", ""),
            )
            for each in parameters
        ],
    )
    body = operation.get("requestBody")
    if body:
        (media,) = body["content"].values()
        yield Prose(f"**Body:** {body['description']}")
        yield _fields(document, media["schema"])
    answers = {int(status): each for status, each in operation["responses"].items()}
    for status, answer in answers.items():
        if status < 400:
            yield from _answer(document, status, answer)
    refused = ", ".join(str(status) for status in answers if status >= 400)
    yield Prose(f"**Errors:** {refused}.")
    yield Code("sh", _curl(path, method, operation, parameters))


def _tokens(operation: Mapping[str, Any]) -> str:
    found = [
        f"{role.removesuffix('_token')}" + "".join(f", scope `{scope}`" for scope in scopes)
        for each in operation["security"]
        for role, scopes in each.items()
    ]
    return "; or ".join(found) or "none"


def _limits(operation: Mapping[str, Any]) -> str:
    found = [
        f"{rate['at_most']:,} {rate['what']} per "
        + ("second" if rate["seconds"] == 1 else f"{rate['seconds']} seconds")
        for rate in operation.get("x-rate-limit", ())
    ]
    return f"{' and '.join(found)} and tenant" if found else "none"


def _answer(document: Document, status: int, answer: Mapping[str, Any]) -> Iterator[Block]:
    yield Prose(f"**{status}:** {answer['description']}.".replace("..", "."))
    for kind, media in answer.get("content", {}).items():
        if kind != "application/json":
            yield Prose(f"As `{kind}`.")
        elif _properties(document, media["schema"]):
            yield Code("json", json.dumps(media["example"], ensure_ascii=False))
            yield _fields(document, media["schema"])


def _fields(document: Document, schema: Mapping[str, Any]) -> Table:
    return Table(("field", "value", "meaning"), list(_rows(document, schema, "")))


def _rows(
    document: Document, schema: Mapping[str, Any], within: str
) -> Iterator[tuple[str, str, str]]:
    """A row for each member of an object, and of the objects and lists of objects in it."""
    required = _resolved(document, schema).get("required", ())
    for name, each in _properties(document, schema).items():
        known = _resolved(document, each)
        path = f"{within}{name}"
        mark = "" if name in required else ", optional"
        yield f"`{path}`{mark}", _type(document, each), known.get("description", "")
        for inner, suffix in ((each, "."), (known.get("items", {}), "[].")):
            yield from _rows(document, inner, path + suffix)


def _properties(document: Document, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _resolved(document, schema).get("properties", {})
    return found


def _resolved(document: Document, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference refers to; of alternatives with null, the other one."""
    for word in ("anyOf", "allOf"):
        for each in schema.get(word, ()):
            if each.get("type") != "null":
                beside = {name: value for name, value in schema.items() if name != word}
                return {**_resolved(document, each), **beside}
    if "$ref" not in schema:
        return schema
    found: Any = document
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    beside = {name: value for name, value in schema.items() if name not in ("$ref", "properties")}
    return {**_resolved(document, found), **beside}


def _type(document: Document, schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    known = _resolved(document, schema)
    types = known.get("type", "any")
    words = [types] if isinstance(types, str) else list(types)
    if {"type": "null"} in schema.get("anyOf", ()):
        words.append("null")
    text = " or ".join(words)
    if "enum" in known:
        text = ", ".join("null" if each is None else f"`{each}`" for each in known["enum"])
    if "const" in known:
        text = f"`{known['const']}`"
    if "items" in known:
        text += f" of {_type(document, known['items'])}"
    bounds = [
        phrase.format(known[word])
        for word, phrase in (
            ("minimum", "from {:,}"),
            ("maximum", "to {:,}"),
            ("minLength", "from {:,} characters"),
            ("maxLength", "to {:,} characters"),
            ("minItems", "from {:,} items"),
            ("maxItems", "to {:,} items"),
        )
        if word in known and known.get("maximum") != LARGEST_ID
    ]
    if known.get("format") == "date-time":
        text = text.replace("string", "time")
    elif "examples" in known:
        bounds.append(f"such as `{_as_text(known['examples'][0])}`")
    elif "pattern" in known:
        bounds.append(f"`{known['pattern']}`")
    if "default" in known:
        bounds.append(f"default {known['default']}")
    return ", ".join([text, *bounds])


def _as_text(example: Any) -> str:
    return example if isinstance(example, str) else json.dumps(example, ensure_ascii=False)


def _curl(
    path: str, method: str, operation: Mapping[str, Any], parameters: list[Mapping[str, Any]]
) -> str:
    """The operation as a command; $API is where the service is."""
    query = []
    for each in parameters:
        example = _an_example(each)
        if each["in"] == "path":
            path = path.replace(f"{{{each['name']}}}", str(example))
        elif each["in"] == "query" and each.get("required"):
            query.append(f"{each['name']}={example}")
    url = f'"$API{path}{"?" if query else ""}{"&".join(query)}"'
    parts = ["curl -sS", *([] if method == "get" else [f"-X {method.upper()}"]), url]
    if operation["security"]:
        parts.append('-H "Authorization: Bearer $TOKEN"')
    if "requestBody" in operation:
        example = operation["requestBody"]["content"]["application/json"]["example"]
        parts.append("-H 'Content-Type: application/json'")
        parts.append(f"-d {shlex.quote(json.dumps(example, ensure_ascii=False))}")
    return " ".join(parts)


def _an_example(parameter: Mapping[str, Any]) -> Any:
    schema = parameter["schema"]
    return (schema.get("examples") or schema.get("enum") or ["…"])[0]


def _webhooks(document: Document) -> Iterator[Block]:
    yield Heading(2, "What receivers get", "webhooks")
    first = True
    for name, methods in document["webhooks"].items():
        operation = methods["post"]
        yield Heading(3, operation["summary"], f"webhook-{name}")
        yield Prose(f"`{name}`: {operation['description']}")
        if first:
            first = False
            yield Prose("Everything that is sent has these headers:")
            yield Table(
                ("header", "value", "meaning"),
                [
                    (
                        f"`{each['name']}`" + ("" if each["required"] else ", optional"),
                        _type(document, each["schema"]),
                        each["description"],
                    )
                    for each in operation["parameters"]
                ],
            )
        media = operation["requestBody"]["content"]["application/json"]
        yield Code("json", json.dumps(media["example"], ensure_ascii=False))
        yield _fields(document, media["schema"])
        yield Table(
            ("answer", "what follows"),
            [(status, each["description"]) for status, each in operation["responses"].items()],
        )


# -------------------------------------------------------------------------------- as Markdown


def markdown(document: Document) -> str:
    """The document for docs/http-api.md."""
    parts = [
        "<!-- Made from docs/openapi.json by `make openapi`; changes here are overwritten. -->",
        *filter(None, map(_as_markdown, blocks(document))),
    ]
    return "\n\n".join(parts) + "\n"


def _as_markdown(block: Block) -> str:
    match block:
        case Heading(level, text, anchor):
            mark = f'<a id="{anchor}"></a>\n\n' if level > 1 else ""
            return f"{mark}{'#' * level} {text}"
        case Prose(text):
            return text
        case Table(head, rows):
            if not rows:
                return ""
            lines = [head, ("---",) * len(head), *rows]
            return "\n".join(f"| {' | '.join(map(_in_cell, line))} |" for line in lines)
        case Code(language, text):
            return f"```{language}\n{text}\n```"
        case Links(items):
            return "\n".join(f"* [{text}](#{anchor})" for text, anchor in items)


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


# ------------------------------------------------------------------------------------ as a page

STYLE = """\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
:root{color-scheme:light dark}
h2{margin-top:3rem;border-bottom:1px solid #8886}h3{margin-top:2.5rem}
code,pre{font:14px/1.45 ui-monospace,monospace;background:#8882;border-radius:4px}
code{padding:.1em .3em;overflow-wrap:anywhere}pre{padding:.8rem;overflow:auto}
pre code{background:none;padding:0}
table{border-collapse:collapse;width:100%;margin:1rem 0;font-size:15px}
th,td{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #8884}
ul{list-style:none;padding:0}
"""
STYLE_DIGEST = "sha256-" + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()


def page(document: Document) -> str:
    """The document for /docs."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    body = "\n".join(filter(None, map(_as_html, blocks(document))))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<p><a href="/openapi.json">The same as an OpenAPI document</a></p>\n'
        f"{body}\n</body>\n</html>\n"
    )


def _as_html(block: Block) -> str:
    match block:
        case Heading(level, text, anchor):
            return f'<h{level} id="{escape(anchor)}">{_inline(text)}</h{level}>'
        case Prose(text):
            return f"<p>{_inline(text)}</p>"
        case Table(head, rows):
            if not rows:
                return ""
            return f"<table>\n{_row('th', head)}\n{_lines(_row('td', row) for row in rows)}</table>"
        case Code(_, text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Links(items):
            lines = (f'<li><a href="#{escape(to)}">{_inline(text)}</a></li>' for text, to in items)
            return f"<ul>\n{_lines(lines)}</ul>"


def _row(cell: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{cell}>{_inline(text)}</{cell}>' for text in texts)}</tr>"


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _inline(text: str) -> str:
    """Prose as HTML.

    >>> _inline("**Mind** `a<b>` & *this*")
    '<strong>Mind</strong> <code>a&lt;b&gt;</code> &amp; *this*'
    """
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", html)
