"""The values of both contracts as marshmallow fields: ids, times, URLs, secrets, event types.

Types are strict: ``"7"`` is no integer and ``true`` is none either. ``described`` is what a field
accepts and gives in the words of JSON Schema, for the OpenAPI document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from marshmallow import ValidationError, fields, missing, validate

from app import errors
from app.destinations import MAX_URL_CHARACTERS
from app.models import LARGEST_ID, read_time, rfc3339
from app.publish import MAX_DATA_BYTES
from hookjetty.verify import secret_bytes

MAX_DESCRIPTION_CHARACTERS = 500
MAX_METADATA = 50
MAX_METADATA_NAME_CHARACTERS = 40
MAX_METADATA_CHARACTERS = 500
MAX_PATTERNS = 100
MAX_LIMIT = 200
MAX_TYPE_CHARACTERS = 128
# PostgreSQL's text lacks one character.
_STORABLE = r"^[^\u0000]*$"
_INTEGER = f"must be an integer from 1 to {LARGEST_ID}"
_SEGMENTS = r"[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*"
_TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z"
_is_segments = re.compile(_SEGMENTS).fullmatch


# What a thing's id is called in a path.
_NAMES_OF_IDS = {
    "ep": "endpoint_id",
    "evt": "event_id",
    "task": "task_id",
    "rpl": "replay_id",
    "blk": "bulk_retry_id",
}


def parse_id(prefix: str, text: str, field: str | None = None) -> int:
    """The number in a tenant-facing id, or ``invalid_request``.

    >>> parse_id("ep", "ep_7")
    7
    """
    number = text.removeprefix(f"{prefix}_")
    if number == text or not re.fullmatch(r"[1-9][0-9]{0,15}", number) or int(number) > LARGEST_ID:
        raise errors.invalid(field or _NAMES_OF_IDS[prefix], _id_reason(prefix))
    return int(number)


def described_id(prefix: str) -> dict[str, Any]:
    """What ``parse_id`` accepts, in the words of JSON Schema."""
    return {"pattern": f"^{prefix}_[1-9][0-9]{{0,15}}$", "examples": [f"{prefix}_7"]}


def _id_reason(prefix: str) -> str:
    return f"must be an id such as {prefix}_7"


# Reasons follow the field's name and a colon.
reworded: dict[str, Any] = {"required": "is missing", "null": "must not be null"}


class Text(fields.String):
    """A string."""

    described: Mapping[str, Any] = {}
    default_error_messages = reworded | {"invalid": "must be a string"}


class TextOrEmpty(Text):
    """A string where the admin contract has no null: none is the empty one."""

    def _serialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        return value or ""


class Id(fields.Integer):
    """An id as admins and services see it: an integer that every JSON reader keeps exact."""

    described: Mapping[str, Any] = {"minimum": 1, "maximum": LARGEST_ID, "examples": [7]}
    default_error_messages = reworded

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if type(value) is not int or not 1 <= value <= LARGEST_ID:
            raise ValidationError(_INTEGER)
        return value


class TextId(Id):
    """The same in a query string."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,15}", value):
            raise ValidationError(_INTEGER)
        return super()._deserialize(int(value), *args, **kwargs)


class Limit(fields.Integer):
    """How many items a page has at most, in a query string."""

    described: Mapping[str, Any] = {
        "minimum": 1,
        "maximum": MAX_LIMIT,
        "description": "So many items at most.",
    }
    default_error_messages = reworded

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,2}", value) or int(value) > MAX_LIMIT:
            raise ValidationError(f"must be an integer from 1 to {MAX_LIMIT}")
        return int(value)


class Seconds(fields.Integer):
    """A time span in whole seconds, from 0 on."""

    default_error_messages = reworded

    def __init__(self, at_most: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.at_most = at_most
        self.described: Mapping[str, Any] = {"minimum": 0, "maximum": at_most}

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> int:
        if type(value) is not int or not 0 <= value <= self.at_most:
            raise ValidationError(f"must be an integer from 0 to {self.at_most}")
        return value


class Boolean(fields.Boolean):
    """true or false."""

    default_error_messages = reworded

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> bool:
        if type(value) is not bool:
            raise ValidationError("must be true or false")
        return value


class Flag(fields.Boolean):
    """Yes or no in a query string: ``1``, ``0``, ``true``, ``false``."""

    described: Mapping[str, Any] = {
        "type": "string",
        "enum": ["1", "0", "true", "false"],
        "default": None,
    }
    default_error_messages = reworded

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> bool:
        if value not in ("1", "0", "true", "false"):
            raise ValidationError("must be 1 or 0")
        return value in ("1", "true")


class PrefixedId(Text):
    """An id as tenants see it: ``ep_7`` and the like."""

    def __init__(self, prefix: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prefix = prefix
        self.described = described_id(prefix)

    def _serialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str | None:
        return None if value is None else f"{self.prefix}_{value}"

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, *args, **kwargs)
        try:
            return parse_id(self.prefix, text)
        except errors.Error:
            raise ValidationError(_id_reason(self.prefix)) from None


class Time(fields.DateTime):
    """RFC 3339 in UTC with milliseconds."""

    described: Mapping[str, Any] = {
        "pattern": f"^{_TIME}$",
        "examples": ["2026-11-21T23:13:17.323Z"],
    }

    def _serialize(self, value: datetime | None, *_args: Any, **_kwargs: Any) -> str | None:
        return rfc3339(value)


class TimeOrEmpty(Time):
    """The same where the admin contract has no null: none is the empty string."""

    described: Mapping[str, Any] = {
        **Time.described,
        "format": None,
        "pattern": f"^({_TIME})?$",
    }

    def _serialize(self, value: datetime | None, *_args: Any, **_kwargs: Any) -> str:
        return rfc3339(value) or ""


class Moment(Text):
    """A moment that a client names, in RFC 3339."""

    described: Mapping[str, Any] = {
        "format": "date-time",
        "examples": ["2025-10-05T06:00:00Z"],
    }

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        moment = read_time(super()._deserialize(value, *args, **kwargs))
        if moment is None:
            raise ValidationError("must be a time such as 2025-10-05T06:00:00Z")
        return moment


class Url(Text):
    """A URL as text; whether it may be called is the policy's to say."""

    described: Mapping[str, Any] = {
        "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://",
        "minLength": 1,
        "maxLength": MAX_URL_CHARACTERS,
        "examples": ["https://app.example.com/hook"],
    }

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if not 1 <= len(text) <= MAX_URL_CHARACTERS:
            raise ValidationError(f"must have 1 to {MAX_URL_CHARACTERS} characters")
        return text


class Secret(Text):
    """What signs an endpoint's deliveries (Standard Webhooks 1.0, and plain text besides)."""

    described: Mapping[str, Any] = {"minLength": 16, "maxLength": 256}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if text and not text.strip("*"):
            raise ValidationError(
                "is a mask and not a secret; leave it out to keep the present one, or to get a new"
                " one with a new endpoint"
            )
        try:
            secret_bytes(text)
        except ValueError as reason:
            raise ValidationError(str(reason)) from None
        return text


class Description(Text):
    """Words of a tenant's own about something; null or an empty text for none."""

    described: Mapping[str, Any] = {
        "maxLength": MAX_DESCRIPTION_CHARACTERS,
        "pattern": _STORABLE,
        "examples": ["The billing team's importer"],
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_none=True, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if len(text) > MAX_DESCRIPTION_CHARACTERS:
            raise ValidationError(f"must have at most {MAX_DESCRIPTION_CHARACTERS} characters")
        return text or None


class Metadata(fields.Field[dict[str, str]]):
    """What a tenant's programs want to remember about something, as a flat object of strings."""

    described: Mapping[str, Any] = {
        "type": "object",
        "maxProperties": MAX_METADATA,
        "propertyNames": {
            "minLength": 1,
            "maxLength": MAX_METADATA_NAME_CHARACTERS,
            "pattern": _STORABLE,
        },
        "additionalProperties": {
            "type": "string",
            "maxLength": MAX_METADATA_CHARACTERS,
            "pattern": _STORABLE,
        },
        "examples": [{"team": "billing"}],
    }
    default_error_messages = reworded

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(type(each) is str for each in value.values()):
            raise ValidationError("must be a JSON object whose values are strings")
        if (
            len(value) > MAX_METADATA
            or any(not 1 <= len(name) <= MAX_METADATA_NAME_CHARACTERS for name in value)
            or any(len(text) > MAX_METADATA_CHARACTERS for text in value.values())
        ):
            raise ValidationError(
                f"must have at most {MAX_METADATA} members, with names of 1 to"
                f" {MAX_METADATA_NAME_CHARACTERS} characters and values of at most"
                f" {MAX_METADATA_CHARACTERS}"
            )
        return value


class Patterns(fields.List[str]):
    """Event types that are wanted: exact, everything below a prefix (``export.*``), or ``*``."""

    described: Mapping[str, Any] = {
        "items": {
            "type": "string",
            "pattern": rf"^(\*|{_SEGMENTS}(\.\*)?)$",
            "maxLength": MAX_TYPE_CHARACTERS,
        },
        "minItems": 1,
        "maxItems": MAX_PATTERNS,
        "examples": [["export.done"]],
    }
    default_error_messages = reworded | {"invalid": "must be a list of event types"}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Text(), **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        patterns: list[Any] = super()._deserialize(value, *args, **kwargs)
        if not 1 <= len(patterns) <= MAX_PATTERNS:
            raise ValidationError(f"must have 1 to {MAX_PATTERNS} event types")
        for pattern in patterns:
            if not _is_pattern(pattern):
                raise ValidationError(
                    f"{pattern[:MAX_TYPE_CHARACTERS]!r} is neither an event type such as"
                    f" export.done, nor export.*, nor *; at most {MAX_TYPE_CHARACTERS} characters"
                )
        return list(dict.fromkeys(patterns))


def _is_pattern(text: str) -> bool:
    """Whether it can match a type.

    >>> [_is_pattern(each) for each in ("*", "export.*", "export.done", "ex*", "*.done", "a..b")]
    [True, True, True, False, False, False]
    """
    return text == "*" or (
        len(text) <= MAX_TYPE_CHARACTERS
        and re.fullmatch(_SEGMENTS, text.removesuffix(".*")) is not None
    )


class Pattern(Text):
    """One of them."""

    described: Mapping[str, Any] = Patterns.described["items"]

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if not _is_pattern(text):
            raise ValidationError("must be an event type such as export.done, or export.*, or *")
        return text


class EventType(Text):
    """The type of an event."""

    described: Mapping[str, Any] = {
        "pattern": rf"^(?!hookjetty\.){_SEGMENTS}$",
        "maxLength": MAX_TYPE_CHARACTERS,
        "examples": ["export.done"],
    }

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, *args, **kwargs)
        if len(text) > MAX_TYPE_CHARACTERS or not re.fullmatch(_SEGMENTS, text):
            raise ValidationError(
                "must be segments of letters, digits and _ joined by dots, such as export.done, of"
                f" at most {MAX_TYPE_CHARACTERS} characters"
            )
        if text.startswith("hookjetty."):
            raise ValidationError("the prefix hookjetty. is reserved for operational events")
        return text


def is_event_type(text: str) -> bool:
    """Whether ``EventType`` accepts it.

    >>> [is_event_type(each) for each in ("export.done", "x", "a..b", "hookjetty.x", "")]
    [True, True, False, False, False]
    """
    return (
        len(text) <= MAX_TYPE_CHARACTERS
        and _is_segments(text) is not None
        and not text.startswith("hookjetty.")
    )


class JsonText(str):
    """The source text of a JSON object."""

    __slots__ = ()


class JsonObject(fields.Field[str]):
    """A JSON object, of which the very text is kept."""

    described: Mapping[str, Any] = {
        "type": "object",
        "description": f"At most {MAX_DATA_BYTES:,} bytes; delivered as the text that was sent.",
        "examples": [{"export": 42, "rows": 1000}],
    }
    default_error_messages = reworded

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        if not isinstance(value, JsonText):
            raise ValidationError("must be a JSON object")
        if len(value) > MAX_DATA_BYTES or len(value.encode()) > MAX_DATA_BYTES:
            raise ValidationError(f"is longer than 256 KiB ({MAX_DATA_BYTES} bytes)")
        return value


class Verbatim(fields.Field[Any]):
    """A JSON object that is added to the answer as the text it came in as; named here only."""

    described: Mapping[str, Any] = {
        "type": ["object", "null"],
        "description": "The very text that was published; null once it was erased.",
        "examples": [{"export": 42, "rows": 1000}],
    }

    def serialize(self, *_args: Any, **_kwargs: Any) -> Any:
        """Nothing: whoever dumps adds the text."""
        return missing


def one_of(words: tuple[str, ...], **kwargs: Any) -> Text:
    """One of a closed vocabulary."""
    reason = f"must be one of {', '.join(words)}"
    return Text(validate=validate.OneOf(words, error=reason), **kwargs)


def next_cursor() -> Text:
    """What every page of a list ends with."""
    return Text(
        allow_none=True,
        metadata={"description": "Asks for the next page; null on the last one."},
    )


def flat(messages: Mapping[Any, Any] | list[Any], path: str = "") -> dict[str, str]:
    """marshmallow's tree of reasons as one reason per field.

    >>> flat({"url": ["is missing"], "events": {3: {"type": ["must be a string"]}}})
    {'url': 'is missing', 'events.3.type': 'must be a string'}
    """
    if isinstance(messages, list):
        return {path or "body": "; ".join(map(str, messages))}
    found: dict[str, str] = {}
    for name, below in messages.items():
        inner = path if name == "_schema" else f"{path}.{name}" if path else str(name)
        found |= flat(below, inner)
    return found
