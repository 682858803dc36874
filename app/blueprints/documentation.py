"""What the API says of itself: an OpenAPI document at /openapi.json, and as a page at /docs.

flask-smorest collects what its decorators know: paths, arguments, answers. The rest is what ours
have noted on each view (``common.noted``): whose token and which scope, the limits, idempotency,
how long a body may be; and what follows from that, above all which errors there are. Nothing of it
is written down a second time, so a new route is in the document as soon as it exists.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import wraps
from typing import Any

from flask import Flask, Response, current_app, g
from werkzeug.routing import Rule

from app import errors, reference
from app.blueprints.common import (
    IF_MATCH,
    MAX_BODY_BYTES,
    Blueprint,
    Dialect,
    Service,
    View,
    noted,
    notes,
    plain_error,
)
from app.idempotency import HOURS_KEPT
from app.models import LARGEST_ID
from app.ratelimit import Rate
from app.schemas.fields import EventType, Id, PrefixedId, described_id
from app.schemas.receivers import WEBHOOKS

blp = Blueprint("documentation", __name__, description="The API, described.")

# How long others may keep the document. It changes with the version of the service only.
MAX_AGE_SECONDS = 300

# The page needs nothing but its own style: no script, no font, no picture, nobody else's server.
PAGE_POLICY = (
    f"default-src 'none'; style-src '{reference.STYLE_DIGEST}'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)

MADE = "hookjetty_documentation"


def _kept(view: View) -> View:
    """Let others keep what a view answers."""

    @wraps(view)
    def wrapper() -> Response:
        response: Response = view()
        response.cache_control.public = True
        response.cache_control.max_age = MAX_AGE_SECONDS
        return response

    noted(wrapper, kept=True)
    return wrapper


@blp.route("/openapi.json", methods=["GET"])
@_kept
@blp.response(200, {"type": "object"}, description="An OpenAPI 3.1 document.")
def openapi() -> Any:
    """The API as an OpenAPI document

    For tools that generate clients, tests and pages.
    """
    return Response(_served()[0], mimetype="application/json")


@blp.route("/docs", methods=["GET"])
@_kept
@blp.response(200, {"type": "string"}, content_type="text/html", description="A page.")
def docs() -> Any:
    """The API as a page

    It runs no script and loads nothing from anywhere.
    """
    response = Response(_served()[1], mimetype="text/html")
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _served() -> tuple[bytes, bytes]:
    """The document and the page, made when somebody first asks for one of them."""
    kept: tuple[bytes, bytes] | None = current_app.extensions.get(MADE)
    if kept is None:
        made = document(current_app)
        kept = (as_json(made).encode(), reference.page(made).encode())
        current_app.extensions[MADE] = kept
    return kept


def as_json(made: dict[str, Any]) -> str:
    """The document as it is served, and as docs/openapi.json keeps it."""
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


# ------------------------------------------------------------------------------- the document

DESCRIPTION = f"""\
Hookjetty tells your customers' servers what happened on your platform. There are two surfaces:
that of tenants and producers below `/api/v1/data-consumption/webhooks`, and that of admins below
`/api/webhooks`; and a few paths for operators.

**Tokens** are JWTs in `Authorization: Bearer <token>`. Whose token an operation takes, and which
scope it needs, is said with each. A tenant's token that names no scopes may read and write, and
not publish.

**Errors** have one of eight codes, and each code its HTTP status. Tenants, producers and operators
get `{{"error", "message", "request_id", "details"?}}`, where `details` maps fields to reasons;
admins get `{{"code", "msg", "data"}}`, where `code` is the HTTP status. A method that a path does
not have is a 405 with `Allow`. Another tenant's things are a 404, like those that do not exist.

**Requests** have a JSON body in UTF-8 and `Content-Type: application/json`. A field, a parameter
or a member that is there twice or is not known is refused, and so is `Content-Encoding`.

**`X-Request-Id`** comes back with every answer, made up if you send none, and finds the request in
our log. It also makes every write idempotent: sent again with the same body, it is answered as the
first time for {HOURS_KEPT} hours, with `Idempotent-Replayed: true`, and its work is done once.
`Idempotency-Key` is another name for it.

**`ETag`** names the state of an endpoint as people have made it. Sent back as `If-Match` with a
write, it makes sure that nobody else's change came in between: a 409 otherwise.

**Limits** are counted for each tenant, over all processes, before the work. What is beyond them is
a 429 with `Retry-After` in seconds. The limits that are said with the operations are everybody's;
an admin may give a tenant others. A registration is any request that can make us call a URL at
once: to register, resume, verify or test an endpoint, or to rotate its secret; replays, bulk
retries and recoveries are replay starts. Requests that are refused for what is in them count as
well. Admins and operators are not limited.

**Lists** are pages. `next_cursor` of one page, as `cursor`, asks for the next; so does the URL in
the header `Link` with `rel="next"`. The last page has neither.

**Times** are RFC 3339 in UTC with milliseconds. **Ids** are integers up to {LARGEST_ID}, so every
JSON reader keeps them exact; tenants see them with a prefix, such as `ep_7`.

Answers may get more members and headers with time; nothing else of them changes within `v1`.
"""

# A path's ids by their names; where admins name one it is an integer.
PREFIX_OF = {
    "endpoint_id": "ep",
    "event_id": "evt",
    "task_id": "task",
    "attempt_id": "att",
    "replay_id": "rpl",
    "bulk_retry_id": "blk",
}
OTHER_PARAMETERS: dict[str, dict[str, Any]] = {
    "tenant_id": {"type": "integer", **Id.described},
    "name": {"type": "string", **EventType.described},
}

TOKENS = {
    "tenant": "A tenant's token: `tenant_id`, and the scopes in `scope`.",
    "service": "A producer's token: `role: service`, for whichever tenant the request names.",
    "admin": "An admin's token: `role: admin`, and no `tenant_id`.",
}

_REQUEST_ID = {"type": "string", "pattern": "^[!-~]{1,255}$"}
_ONE_LINE = {"type": "string"}

PARAMETERS: dict[str, Any] = {
    "RequestId": {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Comes back with the answer, and finds the request in our log.",
        "schema": _REQUEST_ID,
    },
    "IfMatch": {
        "name": "If-Match",
        "in": "header",
        "description": (
            "The `ETag` of the state that you have seen, several of them, or `*` for any: if the"
            " endpoint is in another one, nothing is done, and it is a 409."
        ),
        "schema": {"type": "string", "pattern": IF_MATCH, "examples": ['"ep_7.3"', "*"]},
    },
    "IdempotencyKey": {
        "name": "X-Request-Id",
        "in": "header",
        "description": (
            "Makes this write idempotent: sent again with the same body, it is answered as the"
            f" first time for {HOURS_KEPT} hours; with another body it is a 409. `Idempotency-Key`"
            " is another name for this header."
        ),
        "schema": _REQUEST_ID,
    },
}

HEADERS: dict[str, Any] = {
    "RequestId": {
        "description": "What was sent as such, or made up; it finds the request in our log.",
        "required": True,
        "schema": _REQUEST_ID,
    },
    "NotKept": {
        "description": "Nothing of an answer is for a cache to keep.",
        "required": True,
        "schema": {"type": "string", "const": "no-store"},
    },
    "Kept": {
        "description": "How long the answer may be kept.",
        "required": True,
        "schema": {"type": "string", "const": f"public, max-age={MAX_AGE_SECONDS}"},
    },
    "IdempotentReplayed": {
        "description": "There if this is the answer to an earlier request of that X-Request-Id.",
        "schema": {"type": "string", "const": "true"},
    },
    "ETag": {
        "description": "Names the endpoint's state, as people have made it; for `If-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"ep_[1-9][0-9]*\\.[1-9][0-9]*"$'},
    },
    "Link": {
        "description": 'The next page: a path and query, with `rel="next"`. Not on the last one.',
        "schema": {"type": "string", "pattern": '^</.*>; rel="next"$'},
    },
    "RetryAfter": {
        "description": "Seconds to wait.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "Authenticate": {
        "description": "Which kind of token to send.",
        "required": True,
        "schema": {"type": "string", "const": "Bearer"},
    },
}

# What each error code means, and an instance of it.
ERRORS: dict[str, tuple[str, errors.Error]] = {
    "invalid_request": (
        "The request cannot be accepted as it is.",
        errors.invalid("url", "is missing"),
    ),
    "unauthorized": (
        "There is no token, or none that is accepted here.",
        errors.Error("unauthorized", "the token has expired"),
    ),
    "forbidden": (
        "The token is not one for this: of another kind, or without the scope.",
        errors.Error("forbidden", "the token lacks the scope webhooks:write"),
    ),
    "not_found": ("There is no such thing, or not of this tenant.", errors.not_found("endpoint 7")),
    "version_conflict": (
        "The present state of things forbids it, or the X-Request-Id was used for another body.",
        errors.conflict("another replay of this endpoint is running"),
    ),
    "rate_limited": (
        "The tenant has reached a limit; see the operation's limits.",
        errors.Error("rate_limited", "more than 10 requests per second of this tenant"),
    ),
    "internal_error": (
        "Our fault. Our log has it by its X-Request-Id.",
        errors.Error("internal_error", "this is our fault; our log has it by X-Request-Id"),
    ),
    "dependency_down": (
        "The database is away or not set up. Nothing was done, or its outcome is unknown.",
        errors.dependency_down(),
    ),
}


def document(app: Flask) -> dict[str, Any]:
    """The OpenAPI document of all routes of an application."""
    service: Service = app.extensions["hookjetty"]
    dialects: tuple[Dialect, ...] = app.extensions["hookjetty_dialects"]
    (registered,) = app.extensions["flask-smorest"]["apis"].values()
    found = copy.deepcopy(registered["ext_obj"].spec.to_dict())
    found["components"].pop("responses", None)
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for method, operation in found["paths"][path].items():
            if method != "parameters" and method.upper() in (rule.methods or ()):
                view = app.view_functions[rule.endpoint]
                _complete(operation, rule, view, _speaking(dialects, rule), service)
        found["paths"][path].pop("parameters", None)
    made = {
        "openapi": found["openapi"],
        "info": {
            "title": found["info"]["title"],
            "version": found["info"]["version"],
            "summary": "Webhook delivery: signed, retried, fair to every tenant.",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "Where this document is from."}],
        "tags": sorted(found["tags"], key=lambda tag: _place(tag["name"])),
        "paths": dict(sorted(found["paths"].items(), key=_place_of_path)),
        "webhooks": WEBHOOKS,
        "components": {
            "schemas": dict(sorted(found["components"]["schemas"].items())) | ERROR_SCHEMAS,
            "responses": dict(_error_responses(app, dialects)),
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "securitySchemes": {
                f"{role}_token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": description,
                }
                for role, description in TOKENS.items()
            },
        },
    }
    for operations in made["paths"].values():
        for operation in operations.values():
            _give_examples(operation, made["components"]["schemas"])
    _link(made)
    _tidy(made)
    return made


def _speaking(dialects: tuple[Dialect, ...], rule: Rule) -> Dialect:
    """The dialect of a route's errors."""
    plain = Dialect("", "", plain_error)
    return next((each for each in dialects if each.speaks_for(rule.rule)), plain)


def _place(tag: str) -> tuple[int, str]:
    """Tenants' things first, then the admins', then the operators'."""
    surfaces = {"admin": 1, "ops": 2, "documentation": 3}
    return surfaces.get(tag.partition("_")[0], 0), tag


def _place_of_path(item: tuple[str, dict[str, Any]]) -> tuple[Any, ...]:
    path, operations = item
    return (*_place(next(iter(operations.values()))["tags"][0]), path)


def _complete(
    operation: dict[str, Any],
    rule: Rule,
    view: Any,
    dialect: Dialect,
    service: Service,
) -> None:
    """Say of an operation what its decorators noted, and what follows from that."""
    told = notes(view)
    is_admins = dialect.name == "admin"
    operation["operationId"] = f"admin_{view.__name__}" if is_admins else view.__name__
    if "description" in operation:
        operation["description"] = " ".join(operation["description"].split())
    operation["security"] = [
        {f"{role}_token": [scope] if scope else []}
        for role, scope in getattr(told.get("caller"), "lets_in", {}).items()
    ]
    rates: list[Rate] = [service.limits.rates[each.__name__] for each in told.get("limits", ())]
    if rates:
        operation["x-rate-limit"] = [rate._asdict() | {"of": "a tenant"} for rate in rates]
    is_idempotent = told.get("idempotent", False)
    operation["parameters"] = [
        *(_path_parameter(name, is_admins) for name in _names_in(rule)),
        *(each for each in operation.get("parameters", []) if each.get("in") != "path"),
        *([_ref("parameters", "IfMatch")] if told.get("if_matching") else []),
        _ref("parameters", "IdempotencyKey" if is_idempotent else "RequestId"),
    ]
    if "requestBody" in operation:
        at_most = told.get("at_most_bytes", MAX_BODY_BYTES)
        operation["requestBody"] |= {
            "description": f"At most {at_most:,} bytes.",
            "required": not _may_lack_body(told),
            "x-max-bytes": at_most,
        }
    codes = {
        "invalid_request": True,
        "unauthorized": "caller" in told,
        "forbidden": "caller" in told,
        "not_found": bool(rule.arguments) or _names_a_thing(told),
        "version_conflict": is_idempotent,
        "rate_limited": bool(rates),
        "internal_error": True,
        "dependency_down": "caller" in told,
    } | dict.fromkeys(told.get("codes", ()), True)
    headers = _headers_of_answers(told, is_idempotent)
    answers = {
        status: answer | {"headers": answer.get("headers", {}) | headers}
        for status, answer in operation["responses"].items()
        if int(status) < 400
    }
    failures = {
        str(errors.STATUS_OF_CODE[code]): _ref("responses", f"{'admin_' * is_admins}{code}")
        for code, is_possible in codes.items()
        if is_possible
    }
    operation["responses"] = dict(sorted((answers | failures).items()))


def _names_in(rule: Rule) -> list[str]:
    """A path's parameters, in their order."""
    return re.findall(r"<(?:\w+:)?(\w+)>", rule.rule)


def _names_a_thing(told: dict[str, Any]) -> bool:
    """Whether the body names something by its id that may not be there."""
    for each in told.get("arguments", {}).get("parameters", []):
        if each["in"] == "json":
            for name, field in each["schema"].fields.items():
                if isinstance(field, PrefixedId) or name == "id":
                    return True
    return False


def _may_lack_body(told: dict[str, Any]) -> bool:
    return any(
        each["in"] == "json" and each["schema"].may_be_absent
        for each in told.get("arguments", {}).get("parameters", [])
    )


def _path_parameter(name: str, is_admins: bool) -> dict[str, Any]:
    if name in OTHER_PARAMETERS:
        schema = OTHER_PARAMETERS[name]
    elif is_admins:
        schema = {"type": "integer", **Id.described}
    else:
        schema = {"type": "string", **described_id(PREFIX_OF[name])}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _headers_of_answers(told: dict[str, Any], is_idempotent: bool) -> dict[str, Any]:
    queries = [
        each["schema"].fields
        for each in told.get("arguments", {}).get("parameters", [])
        if each["in"] == "query"
    ]
    names = {
        "X-Request-Id": "RequestId",
        "Cache-Control": "Kept" if told.get("kept") else "NotKept",
    }
    if is_idempotent:
        names["Idempotent-Replayed"] = "IdempotentReplayed"
    if told.get("names_state"):
        names["ETag"] = "ETag"
    if any("cursor" in fields for fields in queries):
        names["Link"] = "Link"
    return {header: _ref("headers", name) for header, name in names.items()}


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


# ------------------------------------------------------------------------------------- errors

ERROR_SCHEMAS: dict[str, Any] = {
    "Error": {
        "description": "An error, for tenants, producers and operators.",
        "type": "object",
        "required": ["error", "message", "request_id"],
        "properties": {
            "error": {"type": "string", "enum": list(errors.STATUS_OF_CODE)},
            "message": {"type": "string", "description": "For the person who has to act on it."},
            "request_id": _REQUEST_ID,
            "details": {
                "description": "The fields that were refused, and why.",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
        },
    },
    "AdminError": {
        "description": "An error, for admins.",
        "type": "object",
        "required": ["code", "msg", "data"],
        "properties": {
            "code": {"type": "integer", "description": "The HTTP status."},
            "msg": {"type": "string", "description": "For the person who has to act on it."},
            "data": {"type": "null"},
        },
    },
}


def _error_responses(
    app: Flask, dialects: tuple[Dialect, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each error in each dialect, with what that surface really answers for an example."""
    admins = next(each for each in dialects if each.name == "admin")
    with app.app_context():
        g.request_id = "5f0c7a1d0c4b4a53a2a5ee0c1d9e8f70"
        for code, (description, error) in ERRORS.items():
            status = errors.STATUS_OF_CODE[code]
            headers = {
                "X-Request-Id": _ref("headers", "RequestId"),
                "Cache-Control": _ref("headers", "NotKept"),
            }
            if code in ("rate_limited", "dependency_down"):
                headers["Retry-After"] = _ref("headers", "RetryAfter")
            if code == "unauthorized":
                headers["WWW-Authenticate"] = _ref("headers", "Authenticate")
            for prefix, schema, member, render in (
                ("", "Error", {"error": {"const": code}}, plain_error),
                ("admin_", "AdminError", {"code": {"const": status}}, admins.render),
            ):
                yield (
                    prefix + code,
                    {
                        "description": description,
                        "headers": headers,
                        "content": {
                            "application/json": {
                                "schema": _ref("schemas", schema) | {"properties": member},
                                "example": render(error, status),
                            }
                        },
                    },
                )


# ----------------------------------------------------------------------------------- examples


def _give_examples(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Give the body and the answers of an operation an example each, made of their fields'."""
    contents = [operation.get("requestBody", {}).get("content", {})]
    contents += [answer.get("content", {}) for answer in operation["responses"].values()]
    for content in contents:
        media = content.get("application/json")
        if media is not None and "example" not in media:
            media["example"] = _example(media["schema"], schemas)


def _example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for word in ("example", "const", "default"):
        if word in schema:
            return schema[word]
    for word in ("examples", "enum"):
        if word in schema:
            return schema[word][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return _example(schema[word][0], schemas)
    types = schema.get("type", "object")
    if isinstance(types, list):
        return None if "null" in types else _example(schema | {"type": types[0]}, schemas)
    if types == "object":
        return {
            name: _example(each, schemas)
            for name, each in schema.get("properties", {}).items()
            if name in schema.get("required", ()) or "example" in each
        }
    if types == "array":
        return [_example(schema["items"], schemas)]
    return {"string": "…", "integer": schema.get("minimum", 0), "number": 0.5, "boolean": False}[
        types
    ]


# -------------------------------------------------------------------------------------- links


def _link(made: dict[str, Any]) -> None:
    """Say of answers that name new things, and of pages, where to go with what they name."""
    operations = [each for methods in made["paths"].values() for each in methods.values()]
    for operation in operations:
        takes = {each.get("name") for each in operation["parameters"]}
        for status, answer in operation["responses"].items():
            if status in ("201", "202"):
                names = _properties(answer, made["components"]["schemas"])
                links = _links_by(names, operations)
            elif status == "200" and "cursor" in takes:
                links = {
                    "next_page": {
                        "operationId": operation["operationId"],
                        "parameters": {"cursor": "$response.body#/next_cursor"},
                    }
                }
            else:
                continue
            if links:
                answer["links"] = links


def _properties(answer: dict[str, Any], schemas: dict[str, Any]) -> set[str]:
    schema = answer["content"]["application/json"]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    return set(schemas.get(name, schema).get("properties", ()))


def _links_by(names: set[str], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """To each operation whose path takes one thing, which is among these names."""
    found = {}
    for operation in operations:
        in_path = [each["name"] for each in operation["parameters"] if each.get("in") == "path"]
        if len(in_path) == 1 and in_path[0] in names:
            found[operation["operationId"]] = {
                "operationId": operation["operationId"],
                "parameters": {in_path[0]: f"$response.body#/{in_path[0]}"},
            }
    return found


def _tidy(made: dict[str, Any]) -> None:
    """Leave out what nothing refers to, and write examples as JSON Schema has them since 3.1."""
    schemas = made["components"]["schemas"]
    text = json.dumps(made)
    for name in [name for name in schemas if f'"#/components/schemas/{name}"' not in text]:
        del schemas[name]
    for schema in schemas.values():
        for each in schema.get("properties", {}).values():
            if "example" in each:
                each["examples"] = [each.pop("example")]
