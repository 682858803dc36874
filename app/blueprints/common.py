"""The Flask glue of all surfaces: who calls, how much may come in, what is answered to errors.

A request goes through these steps, each a decorator of its view, in this order:

1. ``called_by``   The token; the database; the limits. From here on PostgreSQL's absence is
                   ``dependency_down``.
2. ``arguments``   The body or the query string, strictly (flask-smorest's, with ``StrictParser``).
3. ``idempotent``  For writes: once per X-Request-Id, in the transaction of the work; the header may
                   also be called Idempotency-Key. And ``audited``, a line in the log of people's
                   actions.
4. ``response``    flask-smorest's: what the view returned, as JSON.

Every failure is an ``errors.Error`` (``_as_error`` makes one of whatever else was raised), and the
surface that the path belongs to renders it in its own dialect.

Each decorator also notes on the view what it does (``noted``), and that is what the OpenAPI
document says: a route is documented by being written.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

import flask_smorest
import structlog
from flask import Flask, Response, current_app, g, jsonify, request
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from app import audit, errors, idempotency
from app.auth import Principal, Tokens, bearer_token
from app.db import (
    SchemaMismatch,
    check_schema,
    claim_secret_keys,
    db,
    dependable,
    note_cluster,
    retrying,
)
from app.endpoints import Registry
from app.ingest import RAISED
from app.models import Endpoint, IfMatch
from app.ratelimit import Limits
from app.schemas.base import Body
from app.schemas.fields import flat
from app.settings import Settings

log = logging.getLogger(__name__)

# What makes a write idempotent, and names any request in answers and logs: the contract's name for
# it, and the one that many clients know (draft-ietf-httpapi-idempotency-key-header).
KEY_HEADERS = ("X-Request-Id", "Idempotency-Key")

MAX_BODY_BYTES = 512 * 1024
# What is read on after a refusal, so that the client can finish sending and hear of it.
MOST_DISCARDED_BYTES = 16 * 1024 * 1024
DISCARDED_AT_A_TIME = 64 * 1024
# At most so many requests of a process wait for a handshake, so that slow receivers cannot occupy
# its threads.
HANDSHAKE_WAITS = 2

# Where flask-smorest's decorators, and so ours, note what they do.
NOTES = "_apidoc"

View = Callable[..., Any]
# From who calls to the tenant who does, or 0.
Owner = Callable[[Principal], int]
# From an answer, and whether it is a repeat, to the answer that is sent.
Completion = Callable[[dict[str, Any], bool], dict[str, Any]]


@dataclass
class Service:
    """What the views of one application work with."""

    settings: Settings
    tokens: Tokens
    registry: Registry
    limits: Limits
    handshake_waits: threading.Semaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(HANDSHAKE_WAITS)
    )
    is_checked: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Service:
        """``SettingsError`` when the settings lack what the API needs."""
        settings.require("database_url", "jwt_secret or jwt_jwks", "secret_keys")
        return cls(settings, Tokens(settings), Registry.from_settings(settings), Limits(settings))

    def check_database(self) -> None:
        """Raise ``SchemaMismatch`` unless the database is one that this process can work on.

        Asks once. With the database away at the start, the first request asks.
        """
        if not self.is_checked:
            check_schema()
            claim_secret_keys(self.registry.vault.fingerprints)
            note_cluster()
            self.is_checked = True


def service() -> Service:
    """The service of the application that is answering."""
    found: Service = current_app.extensions["hookjetty"]
    return found


# ------------------------------------------------------------------------------ 1. who calls


def called_by(
    owner_of: Owner,
    *limits: Callable[[Limits, int], None],
    at_most_bytes: int = MAX_BODY_BYTES,
) -> Callable[[View], View]:
    """Let those in whom ``owner_of`` accepts; the view's first argument is what it returns.

    That is the tenant who calls, or 0 for an admin or a service; it raises ``forbidden`` for
    everybody else. ``limits`` are counted for each call that gets so far, valid or not, except for
    the repeat of a write, which does no work: however many come at once, all get the answer.
    """

    def decorate(view: View) -> View:
        takes_query = any(each["in"] == "query" for each in _documented_arguments(view))
        noted(view, caller=owner_of, at_most_bytes=at_most_bytes)
        counting(*limits)(view)

        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            g.at_most_bytes = at_most_bytes
            token = bearer_token(request.headers.get("Authorization"))
            g.principal = service().tokens.verify(token)
            g.owner = owner_of(g.principal)
            with dependable():
                check_database()
                with _counted(limits):
                    if request.args and not takes_query:
                        raise errors.invalid(next(iter(request.args)), "is not a parameter of this")
                    return view(g.owner, *args, **kwargs)

        return guarded

    return decorate


def noted(view: View, **facts: Any) -> None:
    """Note on a view, for its documentation, what a decorator around it does.

    In flask-smorest's own place for that, which ``functools.wraps`` takes along.
    """
    setattr(view, NOTES, notes(view) | facts)


def notes(view: View) -> dict[str, Any]:
    """What the decorators of a view noted about it."""
    found: dict[str, Any] = getattr(view, NOTES, {})
    return found


def lets_in(**scopes: str | None) -> Callable[[Owner], Owner]:
    """Note whose tokens an ``owner_of`` accepts, by role, and the scope that each needs."""

    def note(owner_of: Owner) -> Owner:
        owner_of.lets_in = scopes  # type: ignore[attr-defined]
        return owner_of

    return note


def counting(*limits: Callable[..., None]) -> Callable[[View], View]:
    """Note that a view counts these methods of ``Limits``, for a decorator that does so."""

    def note(view: View) -> View:
        noted(view, limits=(*notes(view).get("limits", ()), *limits))
        return view

    return note


def may_answer(*codes: str) -> Callable[[View], View]:
    """Note error codes that no decorator tells of, and neither do the view's ids."""

    def note(view: View) -> View:
        noted(view, codes=codes)
        return view

    return note


@contextmanager
def _counted(limits: Sequence[Callable[[Limits, int], None]]) -> Iterator[None]:
    """Count a call before its work; or, if it may be a repeat, once that is known.

    Then ``idempotent`` counts it in the transaction of the work, or, when that never comes to
    counting or is rolled back, it is counted here.
    """

    def count() -> None:
        for each in limits:
            each(service().limits, g.owner)

    g.count = count
    if not _may_be_repeat():
        count()
        g.count = lambda: None
    try:
        yield
    except errors.Error as error:
        if error.code != "rate_limited":
            g.count()
        raise


def _may_be_repeat() -> bool:
    return request.method not in ("GET", "HEAD") and g.key is not None


def _documented_arguments(view: View) -> list[dict[str, Any]]:
    """What the ``arguments`` decorators below said about themselves."""
    found: list[dict[str, Any]] = notes(view).get("arguments", {}).get("parameters", [])
    return found


def check_database() -> None:
    """Answer nothing on a database of another version; an operator reads why in the log."""
    try:
        service().check_database()
    except SchemaMismatch as error:
        log.error("the database cannot be used: %s", error)
        raise errors.dependency_down("the service is being set up; try again shortly") from error


# ------------------------------------------------------------------------------ 2. arguments


class StrictParser(FlaskParser):
    """Reads what came in with ``strictjson`` and the schemas, and refuses it with ``errors``.

    What to do about unknown names is for the schema to say, wherever they come from.
    """

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = dict.fromkeys(FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION)

    def load_json(self, req: Any, schema: Schema) -> Any:
        """The body, whatever its method; its Content-Type must say that it is JSON."""
        assert isinstance(schema, Body)
        raw = body()
        if not raw:
            if schema.may_be_absent:
                return {}
            raise errors.invalid("body", "is missing; send a JSON object")
        if not (req.mimetype == "application/json" or req.mimetype.endswith("+json")):
            raise errors.invalid("Content-Type", "must be application/json")
        return schema.read(raw)

    def load_querystring(self, req: Any, _schema: Schema) -> Any:
        """The query string; a parameter may be there once."""
        for name, values in req.args.lists():
            if len(values) > 1:
                raise errors.invalid(name, "is there more than once")
        return req.args.to_dict()

    def handle_error(self, error: ValidationError, *_args: Any, **_kwargs: Any) -> Any:
        """Every field that was refused, and the first of them in the message."""
        details = flat(next(iter(error.messages_dict.values())))
        first, reason = next(iter(details.items()))
        raise errors.Error("invalid_request", f"{first}: {reason}", details)


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # it has no types
    """flask-smorest's blueprint with our way to read requests."""

    ARGUMENTS_PARSER = StrictParser()

    if TYPE_CHECKING:

        def route(self, rule: str, **options: Any) -> Callable[[View], View]: ...
        def arguments(self, schema: Schema, **options: Any) -> Callable[[View], View]: ...
        def response(
            self, status_code: int, schema: Schema | dict[str, Any] | None = None, **options: Any
        ) -> Callable[[View], View]: ...
        def alt_response(self, status_code: int, **options: Any) -> Callable[[View], View]: ...


def body() -> bytes:
    """The raw body, as long as the view allows; chunked or not."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise errors.invalid("Content-Encoding", "is not supported; send the body as it is")
    # One more than allowed: of a chunked body Werkzeug silently leaves out what is beyond.
    request.max_content_length = g.at_most_bytes + 1
    try:
        raw = request.get_data()
    except RequestEntityTooLarge:
        raw = None
    except Exception as error:  # each server has its own, for a broken chunk and the like
        raise errors.invalid("body", "cannot be read to its end") from error
    if raw is None or len(raw) > g.at_most_bytes:
        raise errors.invalid("body", f"is longer than {g.at_most_bytes} bytes")
    if len(raw) < (request.content_length or 0):
        raise errors.invalid("body", "is shorter than its Content-Length")
    return raw


# ---------------------------------------------------------------------------- 3. idempotency


def idempotent(
    *,
    answers_secret: bool = False,
    then: Completion | None = None,
    is_action: bool = True,
) -> Callable[[View], View]:
    """Make a write idempotent by its X-Request-Id; without one it is simply done.

    ``answers_secret`` encrypts the stored answer. ``then`` completes the answer once everything is
    committed, from what was stored and whether it is a repeat. The first one is an action that goes
    into the log of those, unless ``is_action`` says otherwise: publishing is no person's.
    """

    def decorate(view: View) -> View:
        if is_action:
            view = audited(view)

        @wraps(view)
        def once(*args: Any, **kwargs: Any) -> Response:
            def work() -> Response:
                response: Response = view(*args, **kwargs)
                return response

            if notes(view).get("if_matching"):
                _if_match()  # what is malformed is no repeat either
            if g.key is None:
                return _completed(retrying(work), then, is_repeat=False)
            call = idempotency.Call(g.owner, request.method, request.path, g.key, body())
            answer = retrying(lambda: _once(call, work, answers_secret))
            response = Response(answer.body, answer.status_code, mimetype="application/json")
            if answer.etag is not None:
                response.headers["ETag"] = answer.etag
            if answer.is_repeat:
                response.headers["Idempotent-Replayed"] = "true"
            return _completed(response, then, is_repeat=answer.is_repeat)

        noted(once, idempotent=True)
        return once

    return decorate


def or_dry_run(answer: Callable[[int, Any], Any]) -> Callable[[View], View]:
    """Answer a dry run in place of the view, and before anything is stored about the request.

    An X-Request-Id is for what is done: it would answer the write after a dry run, too. So each is
    counted here: with an X-Request-Id, ``called_by`` leaves that to what makes the write.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapper(tenant_id: int, wanted: Any, how: Mapping[str, Any]) -> Any:
            if how["dry_run"]:
                g.count()
                return jsonify(answer(tenant_id, wanted))
            return view(tenant_id, wanted)

        return wrapper

    return decorate


def audited(view: View) -> View:
    """Note what a view does in the log of people's actions, in the transaction that does it.

    ``idempotent`` does so for every write; by itself it is for a read that is an action, such as
    that of a secret.
    """

    @wraps(view)
    def logged(*args: Any, **kwargs: Any) -> Response:
        with db.atomic():
            response: Response = view(*args, **kwargs)
            answer = response.get_json(silent=True)
            if isinstance(answer, dict) and {"code", "msg", "data"} <= answer.keys():
                answer = answer["data"]
            wanted = args[-1] if len(args) > 1 else None
            audit.note(
                audit.Action(
                    principal=g.principal,
                    name=view.__name__,
                    path=kwargs,
                    wanted=wanted if isinstance(wanted, dict) else {},
                    answer=answer if isinstance(answer, dict) else {},
                    address=request.remote_addr,
                    request_id=g.request_id,
                    status_code=response.status_code,
                )
            )
        return response

    logged.is_audited = True  # type: ignore[attr-defined]  # for the test that looks for others
    return logged


def _once(
    call: idempotency.Call, work: Callable[[], Response], answers_secret: bool
) -> idempotency.Answer:
    def answer() -> idempotency.Answer:
        g.count()
        response = work()
        text = response.get_data(as_text=True)
        return idempotency.Answer(response.status_code, text, response.headers.get("ETag"))

    return idempotency.once(call, answer, service().registry.vault, seal=answers_secret)


def _completed(response: Response, then: Completion | None, *, is_repeat: bool) -> Response:
    if then is not None:
        response.set_data(_json(then(json.loads(response.get_data()), is_repeat)))
    return response


# ------------------------------------------------------------------------ optimistic concurrency

_ETAG = r'(?:W/)?"[!#-~]*"'
_ETAGS = rf"{_ETAG}(?:[ \t]*,[ \t]*{_ETAG})*"
IF_MATCH = rf"^(?:\*|{_ETAGS})$"


def if_matching(view: View) -> View:
    """Have a write depend on the state of its endpoint: the view gets ``if_match``.

    That is what came in ``If-Match`` (RFC 9110, section 13.1.1). A weak tag never matches. What
    does not match is a 409, since the contract has no 412.
    """

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs, if_match=_if_match())

    noted(wrapper, if_matching=True)
    return wrapper


def _if_match() -> IfMatch:
    given = request.headers.get("If-Match")
    if given is None:
        return None
    given = given.strip(" \t")
    if given == "*":
        return frozenset("*")
    if not re.fullmatch(_ETAGS, given):
        raise errors.invalid("If-Match", 'must be an ETag such as "ep_7.3", several, or *')
    tags = re.findall(_ETAG, given)
    return frozenset(tag[1:-1] for tag in tags if tag.startswith('"') and tag != '"*"')


def naming_state(view: View) -> View:
    """Name in the answer the state of the endpoint that it is about.

    The view returns an endpoint or what has one, and may add a status.
    """

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        answer = view(*args, **kwargs)
        data, status = answer if type(answer) is tuple else (answer, None)
        endpoint = cast("Endpoint", getattr(data, "endpoint", data))
        headers = {"ETag": f'"{endpoint.etag}"'}
        return (data, headers) if status is None else (data, status, headers)

    noted(wrapper, names_state=True)
    return wrapper


# ------------------------------------------------------------------------------- 4. answers


def link_to_next(next_cursor: str | None) -> dict[str, str]:
    """The header that names the next page (RFC 8288); none on the last one."""
    if next_cursor is None:
        return {}
    query = urlencode(request.args.to_dict() | {"cursor": next_cursor})
    return {"Link": f'<{request.path}?{query}>; rel="next"'}


def with_text(answer: Mapping[str, Any], name: str, text: str) -> Response:
    """An answer with one more member, whose value is JSON text that must stay as it is."""
    return Response(text_with(answer, name, text) + "\n", mimetype="application/json")


def text_with(answer: Mapping[str, Any], name: str, text: str) -> str:
    """The same as text."""
    head = _json(answer).removesuffix("}\n")
    return f'{head}{"," if answer else ""}"{name}":{text}}}'


def _json(value: Any) -> str:
    """As flask-smorest's answers are: without spaces, and with a line's end for those who curl."""
    return json.dumps(value, separators=(",", ":")) + "\n"


# --------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Dialect:
    """How the surface below a prefix words its errors: the body for an error and a status."""

    name: str
    prefix: str
    render: Callable[[errors.Error, int], dict[str, Any]]

    def speaks_for(self, path: str) -> bool:
        """Whether the path belongs to the surface, be there anything or not."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")


class Api(flask_smorest.Api):  # type: ignore[misc]  # it has no types
    """flask-smorest's registry, without its own error handler, which is for the whole app."""

    DEFAULT_ERROR_RESPONSE_NAME = None  # no error goes without saying: documentation.py

    def init_app(self, app: Flask, **options: Any) -> None:
        """Let the fields say in the document what they accept and give."""
        super().init_app(app, **options)
        self.ma_plugin.converter.add_attribute_function(_described)

    def handle_http_exception(self, error: HTTPException) -> Response:
        """An error that Flask itself found, such as an unknown path."""
        return _answer_error(error)


def _described(_converter: Any, field: Any, ret: dict[str, Any]) -> dict[str, Any]:
    """What a field of ours says of itself, beside and instead of what apispec says of its class."""
    described = {**getattr(field, "described", {}), **field.metadata}
    for name, value in described.items():
        if value is None:
            ret.pop(name, None)
    return {name: value for name, value in described.items() if value is not None}


def install(app: Flask, dialects: Iterable[Dialect]) -> None:
    """Give every request its id, and every error the dialect of its path."""
    app.extensions["hookjetty_dialects"] = tuple(dialects)
    app.before_request(_take_request_id)
    app.after_request(_finish)
    app.register_error_handler(Exception, _answer_error)


def plain_error(error: errors.Error, _status: int) -> dict[str, Any]:
    """The dialect of the tenant contract, which also serves paths that belong to no surface."""
    answer: dict[str, Any] = {
        "error": error.code,
        "message": error.message,
        "request_id": g.request_id,
    }
    return answer | ({"details": error.details} if error.details else {})


def _take_request_id() -> None:
    g.request_id = uuid.uuid4().hex
    g.key = None
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)
    if RAISED in request.environ:
        raise request.environ[RAISED]
    given = {name: request.headers[name] for name in KEY_HEADERS if name in request.headers}
    for name, key in given.items():
        if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
            raise errors.invalid(name, "must have 1 to 255 visible ASCII characters")
    if len(set(given.values())) > 1:
        raise errors.invalid("Idempotency-Key", "is another one than X-Request-Id; send either")
    for key in given.values():
        g.key = g.request_id = key
        structlog.contextvars.bind_contextvars(request_id=key)


def _finish(response: Response) -> Response:
    _discard_rest_of_body()
    response.headers["X-Request-Id"] = g.request_id
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _discard_rest_of_body() -> None:
    """Read what is left of a body that nobody wanted, within bounds.

    Otherwise the server closes the connection on a client that is still sending, which then sees a
    reset instead of the answer. Gunicorn reads on for 64 KiB by itself.
    """
    if not request.environ.get("wsgi.input_terminated"):
        return  # a server that does not tell where the body ends
    rest = request.environ["wsgi.input"]
    for _ in range(MOST_DISCARDED_BYTES // DISCARDED_AT_A_TIME):
        try:
            if not rest.read(DISCARDED_AT_A_TIME):
                return
        except Exception:  # noqa: BLE001 - as in body()
            return


def _answer_error(raised: Exception) -> Response:
    error, status = _as_error(raised)
    dialects: tuple[Dialect, ...] = current_app.extensions["hookjetty_dialects"]
    spoken = (each.render for each in dialects if each.speaks_for(request.path))
    render = next(spoken, plain_error)
    response = Response(_json(render(error, status)), status, mimetype="application/json")
    if isinstance(raised, HTTPException) and status == 405:
        response.headers["Allow"] = dict(raised.get_headers()).get("Allow", "")
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return response


def _as_error(raised: Exception) -> tuple[errors.Error, int]:
    """What was raised as one of the eight codes, and the status: its own, or a 405."""
    if isinstance(raised, errors.Error):
        return raised, raised.status
    status = raised.code if isinstance(raised, HTTPException) else None
    if status == 404:
        error = errors.not_found(request.path)
    elif status == 405:
        assert isinstance(raised, MethodNotAllowed)
        taken = " and ".join(sorted({*(raised.valid_methods or ())} - {"HEAD", "OPTIONS"}))
        refused = f"{request.method} is not for this path; it takes {taken}"
        return errors.Error("invalid_request", refused), 405
    elif status is not None and 400 <= status < 500:
        assert isinstance(raised, HTTPException)
        error = errors.Error("invalid_request", raised.description or raised.name)
    else:
        log.error("internal error", exc_info=raised)
        error = errors.Error("internal_error", "this is our fault; our log has it by X-Request-Id")
    return error, error.status
