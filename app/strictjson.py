"""JSON from strangers: exactly what every receiver and PostgreSQL can read, or a reason why not.

Refused beyond what RFC 8259 forbids: duplicate keys, numbers that no double can hold or that
jsonb cannot store, NUL and lone surrogates (jsonb has neither), absurd nesting and a byte order
mark. What is accepted is kept as the text that came in, so that receivers get it unchanged.

Reading has three speeds. ``plain_object`` is for what is published every day: orjson reads it in a
microsecond, and PostgreSQL, which has to look at the data anyway, finds what orjson lets pass. All
else is decided by ``json``'s scanner, which is C code as well (about 10 us for a small event). Only
a text that was refused is then read token by token, to name the field and the reason; that also is
one pass, and it gives up after ``_TOKENS_EXPLAINED``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import orjson

from app import errors

MAX_DEPTH = 128
MAX_NUMBER_CHARACTERS = 1000
# jsonb keeps every zero of 1e-20000 and then refuses it; no double reaches beyond 1e308 anyway.
MAX_EXPONENT = 1000

# About 50 ms: what a refused request may cost to explain.
_TOKENS_EXPLAINED = 50_000


class Event(NamedTuple):
    """An event as it was sent: its members, and the source text of ``data`` if there is one."""

    values: dict[str, Any]
    data_text: str | None


def loads(raw: bytes) -> Any:
    """The value of a whole request body; ``errors.Error`` names the field and the reason."""
    text = _text(raw)
    try:
        value, end = _scan(text, _after_space(text, 0))
        _check_storable(text, 0, end)
        _check_end(text, end)
    except _REFUSALS:
        raise _explained(text) from None
    return value


def event_fields(raw: bytes) -> Event:
    """One event, ``{"type": …, "data": {…}}``; as ``loads``, and it must be an object."""
    text = _text(raw)
    try:
        event, end = _event(text, _after_space(text, 0), "body")
        _check_end(text, end)
    except _REFUSALS:
        raise _explained(text) from None
    return event


def batch_fields(raw: bytes, at_most: int) -> tuple[dict[str, Any], list[Event]]:
    """The other members of ``{"events": [{…}, …]}``, and its events; as ``loads``.

    There may be ``at_most`` events. Reasons name the event, as in ``events[3].data.size``.
    """
    text = _text(raw)
    others: dict[str, Any] = {}
    events: list[Event] | None = None
    try:
        at, is_closed = _open_object(text, _after_space(text, 0), "body")
        while not is_closed:
            key, at = _key(text, at)
            if key in others or (key == "events" and events is not None):
                raise _Refused
            if key == "events":
                events, end = _events(text, at, at_most)
            else:
                others[key], end = _scan(text, at)
                _check_storable(text, at, end)
            at, is_closed = _separator(text, end, "}")
        _check_end(text, at)
    except _REFUSALS:
        raise _explained(text) from None
    if events is None:
        raise errors.invalid("events", "a list of events is needed")
    return others, events


def plain_object(raw: bytes) -> dict[str, Any] | None:
    """An object that ``loads`` accepts, or refuses only for a key that an object names twice.

    None for all others, and for some that are fine: those where orjson is known to be laxer (it
    takes NUL, underflowing numbers and any length and nesting) are told by marks that may also
    occur in harmless places.
    """
    if b"\\u" in raw or _perhaps_odd_number(raw):
        return None
    try:
        value = orjson.loads(raw)
    except ValueError:
        return None
    if type(value) is not dict:
        return None
    brackets = raw.count(b"[") + raw.count(b"{")
    return value if brackets <= MAX_DEPTH or _is_shallow(value) else None


def _is_shallow(value: dict[str, Any]) -> bool:
    layer: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        layer = [
            each
            for container in layer
            for each in (container.values() if type(container) is dict else container)
            if type(each) in (dict, list)
        ]
        if not layer:
            return True
    return False


# Accepting, in C where it matters. ----------------------------------------------------------------


class _Refused(ValueError):
    """Not acceptable; ``_explained`` will find out why."""


# What the scanner raises: errors of syntax and our own, which are ValueErrors, and where nesting
# exceeds the interpreter's own limit, a RecursionError.
_REFUSALS = (ValueError, RecursionError)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Refused
    return value


def _integer(literal: str) -> int:
    if len(literal) > 300 and _number_problem(literal):
        raise _Refused
    return int(literal)


def _float(literal: str) -> float:
    if (len(literal) > 300 or "e" in literal or "E" in literal) and _number_problem(literal):
        raise _Refused
    return float(literal)


def _constant(_literal: str) -> None:
    """NaN, Infinity and -Infinity: Python's json reads them, but JSON does not have them."""
    raise _Refused


_scan = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_constant,
).raw_decode


def _text(raw: bytes) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise errors.invalid("body", "starts with a byte order mark, which JSON must not have")
    try:
        return raw.decode()
    except UnicodeDecodeError as found:
        path, _ = _first_problem(raw[: found.start].decode(), 0, "")
        reason = f"is not UTF-8: byte {raw[found.start]:#04x} at position {found.start}"
        raise errors.invalid(path, reason) from None


def _event(text: str, start: int, path: str) -> tuple[Event, int]:
    """The event that starts here, and where it ends.

    Its members are read one by one, since only so is it known where ``data`` starts and ends.
    """
    values: dict[str, Any] = {}
    data_text = None
    at, is_closed = _open_object(text, start, path)
    while not is_closed:
        key, at = _key(text, at)
        if key in values:
            raise _Refused
        values[key], end = _scan(text, at)
        if key == "data":
            data_text = text[at:end]
        at, is_closed = _separator(text, end, "}")
    _check_storable(text, start, at)
    return Event(values, data_text), at


def _events(text: str, at: int, at_most: int) -> tuple[list[Event], int]:
    """The list of events that starts here, and where it ends."""
    if not text.startswith("[", at):
        raise errors.invalid("events", "a list of events is needed")
    events: list[Event] = []
    at = _after_space(text, at + 1)
    is_closed = text.startswith("]", at)
    if is_closed:
        return events, at + 1
    while not is_closed:
        path = f"events[{len(events)}]"
        if len(events) == at_most:
            raise errors.invalid(path, f"a batch holds at most {at_most:,} events")
        try:
            event, end = _event(text, at, path)
        except _REFUSALS:
            raise _explained(text, at, path) from None
        events.append(event)
        at, is_closed = _separator(text, end, "]")
    return events, at


def _open_object(text: str, at: int, path: str) -> tuple[int, bool]:
    """Where its first key is; or where the object ends, and True, if it is empty."""
    if not text.startswith("{", at):
        raise errors.invalid(path, "a JSON object is needed")
    at = _after_space(text, at + 1)
    return (at + 1, True) if text.startswith("}", at) else (at, False)


def _key(text: str, at: int) -> tuple[str, int]:
    """The key that is here, and where its value starts."""
    if not text.startswith('"', at):
        raise _Refused
    key, end = _scan(text, at)
    colon = _colon(text, end)
    if not colon:
        raise _Refused
    return key, colon.end()


def _separator(text: str, at: int, closing: str) -> tuple[int, bool]:
    """Where the next member starts; or where the container ends, and True."""
    found = _comma_or_end(text, at)
    if not found or found[1] not in ("," + closing):
        raise _Refused
    return (found.end(), False) if found[1] == "," else (found.end(1), True)


def _after_space(text: str, at: int) -> int:
    return _space.match(text, at).end()  # type: ignore[union-attr]  # no space matches too


def _check_end(text: str, at: int) -> None:
    if _after_space(text, at) != len(text):
        raise _Refused


def _check_storable(text: str, start: int, end: int) -> None:
    """What the scanner lets pass in a value that it read: nesting, NUL and lone surrogates."""
    if text.find("\\u", start, end) >= 0 and _storable(text, start, end) != end:
        raise _Refused
    brackets = text.count("[", start, end) + text.count("{", start, end)
    if brackets > MAX_DEPTH and _depth(text[start:end]) > MAX_DEPTH:
        raise _Refused


def _storable(text: str, start: int, end: int) -> int:
    """Where the first escape is that jsonb cannot store, or ``end``."""
    for escape in _escapes.finditer(text, start, end):
        if escape["lone"]:
            return escape.start()
    return end


def _depth(text: str) -> int:
    """How deep the brackets outside of strings are nested; in C, some 20 us per KB."""
    without_strings = _string.sub(b"", _escaped.sub(b"", text.encode()))
    brackets = without_strings.translate(_STEP, delete=_NO_BRACKETS)
    return max(accumulate(memoryview(brackets).cast("b")), default=0)


# An exponent of four digits, or so many characters of a number that it may be too long.
_perhaps_odd_number = re.compile(rb"[0-9][eE][+-]?[0-9]{4}|[0-9.eE+-]{301}").search

_space = re.compile(r"[ \t\n\r]*")
_colon = re.compile(r"[ \t\n\r]*:[ \t\n\r]*").match
_comma_or_end = re.compile(r"[ \t\n\r]*([,}\]])[ \t\n\r]*").match

# No expression here repeats a group without bound: greedily, that takes memory for every
# repetition, and possessively, CPython before 3.11.5 gets it wrong (gh-106052).
_escaped = re.compile(rb"\\.", re.DOTALL)
_string = re.compile(rb'"[^"]*"')  # once what is escaped has gone
_STEP = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))

# The escapes of a text, and among them those that jsonb cannot store: a surrogate comes in pairs,
# and there is no NUL. Outside of strings JSON has no backslash.
_escapes = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<lone>\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2}))"
    r"|\\.",
    re.DOTALL,
)


# Explaining. --------------------------------------------------------------------------------------


def _explained(text: str, at: int = 0, path: str = "") -> errors.Error:
    """Why the text, or the value that starts ``at`` and is called ``path``, is refused."""
    where, reason = _first_problem(text, at, path)
    return errors.invalid(where, reason)


def _first_problem(text: str, at: int, path: str) -> tuple[str, str]:
    """The field and the reason: the first thing, in the order of the text, that is refused."""
    containers: list[_Open] = []
    expected = "a value"
    for _ in range(_TOKENS_EXPLAINED):
        kind, literal, end = _token(text, at)
        if kind not in _EXPECTED[expected]:
            return _path(path, containers), _syntax_problem(text, at, expected)
        at = end
        problem = None
        if kind == "end":
            break
        if kind == ":":
            expected = "a value"
        elif kind == ",":
            expected = containers[-1].turn_to_next()
        elif kind == "string" and expected.startswith("a key"):
            problem = _string_problem(literal) or containers[-1].turn_to(literal)
            expected = "a colon"
        elif kind in {"[", "{"}:
            containers.append(_Open(is_object=kind == "{"))
            if len(containers) > MAX_DEPTH:
                problem = f"is nested deeper than {MAX_DEPTH} levels"
            expected = "a key in double quotes or }" if kind == "{" else "a value or ]"
        else:
            if kind in {"]", "}"}:
                containers.pop()
            elif kind == "string":
                problem = _string_problem(literal)
            elif kind == "number":
                problem = _number_problem(literal)
            expected = containers[-1].after_member() if containers else "the end"
        if problem:
            return _path(path, containers), problem
    return _path(path, containers), "this, or something after it, is not acceptable JSON"


@dataclass
class _Open:
    """A container that is being read, and the key or index of its present member."""

    is_object: bool
    member: str | int | None = None
    keys: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.member = None if self.is_object else 0

    def turn_to(self, literal: str) -> str | None:
        """Takes the next key; what is wrong with it."""
        key = json.loads(literal)
        self.member = key
        if key in self.keys:
            return "is there twice"
        self.keys.add(key)
        return None

    def turn_to_next(self) -> str:
        """Leaves the present member behind; what is expected then."""
        if isinstance(self.member, int):
            self.member += 1
            return "a value"
        self.member = None
        return "a key in double quotes"

    def after_member(self) -> str:
        """What is expected when the present member is complete."""
        return "a comma or }" if self.is_object else "a comma or ]"


def _path(path: str, containers: list[_Open]) -> str:
    """``events[3].data.size``; of a path that is absurdly long, the start and the end."""
    for container in containers:
        if isinstance(container.member, int):
            path += f"[{container.member}]"
        elif container.member is not None and re.fullmatch(
            r"[A-Za-z0-9_-]{1,64}", container.member
        ):
            path += f".{container.member}"
        elif container.member is not None:
            path += f"[{json.dumps(container.member[:64])}]"
    path = path.removeprefix(".") or "body"
    return path if len(path) <= 200 else f"{path[:120]}…{path[-60:]}"


def _syntax_problem(text: str, at: int, expected: str) -> str:
    at = _after_space(text, at)
    if at == len(text):
        return f"the text ends where {expected} is expected"
    constant = _constant_word(text, at)
    if constant:
        return f"{constant[0]} is not a JSON number"
    if text[at] == '"' and "string" in _EXPECTED[expected]:
        at = _after_good_string(text, at)
        if at == len(text):
            return "holds a string that does not end"
        if text[at] == "\\":
            return f"holds an escape that JSON does not know, at character {at + 1}"
        return f"holds a raw control character, {ord(text[at]):#04x}, at character {at + 1}"
    return f"{expected} is expected at character {at + 1}, not {text[at]!a}"


def _token(text: str, at: int) -> tuple[str, str, int]:
    """The next token's kind (a mark is its own), its text, and where it ends."""
    token = _token_start(text, at)
    if not token:
        return "", "", at
    kind = token["mark"] or token.lastgroup or ""
    if kind != "string":
        return kind, token[token.lastgroup or 0], token.end()
    start = token.start("string")
    end = _after_good_string(text, start)
    return (kind, text[start : end + 1], end + 1) if text.startswith('"', end) else ("", "", at)


def _after_good_string(text: str, at: int) -> int:
    """Where the string that starts here ends, before its last quote, or goes wrong."""
    at += 1
    while found := _good_piece(text, at):
        at = found.end()
    return at


def _string_problem(literal: str) -> str | None:
    at = _storable(literal, 0, len(literal))
    if at == len(literal):
        return None
    if literal.startswith("\\u0000", at):
        return "holds NUL (\\u0000), which cannot be stored"
    return "holds half of a surrogate pair, which is no character"


def _number_problem(literal: str) -> str | None:
    if len(literal) > MAX_NUMBER_CHARACTERS:
        return f"is a number of more than {MAX_NUMBER_CHARACTERS:,} characters"
    exponent = literal.lower().partition("e")[2]
    if abs(int(exponent or 0)) > MAX_EXPONENT or math.isinf(float(literal)):
        return "is too large or too small for a double-precision number"
    return None


_token_start = re.compile(
    r"""[ \t\n\r]*(?:
      (?P<string>")
    | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    | (?P<word>true|false|null)
    | (?P<mark>[\[\]{},:])
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
).match
_good_piece = re.compile(r'(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})){1,1000}').match
_constant_word = re.compile(r"NaN|-?Infinity").match

# What may come next, in the words of the message, and the tokens that are allowed there.
_VALUE = frozenset({"string", "number", "word", "[", "{"})
_EXPECTED = {
    "a value": _VALUE,
    "a value or ]": _VALUE | {"]"},
    "a key in double quotes": frozenset({"string"}),
    "a key in double quotes or }": frozenset({"string", "}"}),
    "a colon": frozenset({":"}),
    "a comma or ]": frozenset({",", "]"}),
    "a comma or }": frozenset({",", "}"}),
    "the end": frozenset({"end"}),
}
