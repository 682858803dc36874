"""Strict JSON: what is accepted is kept to the byte, what is refused gets its field and reason."""

from __future__ import annotations

import json
import math
import os
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from app import errors, strictjson

# No deadline for one example: the machine may be busy with something else.
unhurried = settings(deadline=None)

NOT_EXPLAINED = "this, or something after it, is not acceptable JSON"


def refusal(read, raw: bytes, *more: object) -> dict[str, str]:
    """The field and the reason with which the text is refused, as ``details`` has them."""
    with pytest.raises(errors.Error) as caught:
        read(raw, *more)
    assert caught.value.code == "invalid_request"
    ((field, reason),) = caught.value.details.items()
    assert caught.value.message == f"{field}: {reason}"
    return caught.value.details


def outcome(read, raw: bytes, *more: object) -> tuple[object, errors.Error | None]:
    """What is read, or the refusal; anything else that is raised fails the test."""
    try:
        return read(raw, *more), None
    except errors.Error as refused:
        return None, refused


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        (b"", "body", "the text ends where a value is expected"),
        (b"  \n", "body", "the text ends where a value is expected"),
        (b"{", "body", "the text ends where a key in double quotes or } is expected"),
        (b'{"a"', "a", "the text ends where a colon is expected"),
        (b'{"a":[1', "a[0]", "the text ends where a comma or ] is expected"),
        (b'{"a":1,}', "body", "a key in double quotes is expected at character 8, not '}'"),
        (b"{'a':1}", "body", 'a key in double quotes or } is expected at character 2, not "\'"'),
        (b'{"a":[1,2,]}', "a[2]", "a value is expected at character 11, not ']'"),
        (b'{"a" 1}', "a", "a colon is expected at character 6, not '1'"),
        (b'{"a":1 "b":2}', "a", "a comma or } is expected at character 8, not '\"'"),
        (b'{"a":01}', "a", "a comma or } is expected at character 7, not '1'"),
        (b'{"a":1.}', "a", "a comma or } is expected at character 7, not '.'"),
        (b'{"a":+1}', "a", "a value is expected at character 6, not '+'"),
        (b'{"a":True}', "a", "a value is expected at character 6, not 'T'"),
        (b"{} {}", "body", "the end is expected at character 4, not '{'"),
        (b"{}\x00", "body", "the end is expected at character 3, not '\\x00'"),
        (b'{"a":NaN}', "a", "NaN is not a JSON number"),
        (b'{"a":[0,Infinity]}', "a[1]", "Infinity is not a JSON number"),
        (b'{"a":{"b":-Infinity}}', "a.b", "-Infinity is not a JSON number"),
        (b'{"a":"x', "a", "holds a string that does not end"),
        (b'{"a":"x\\', "a", "holds an escape that JSON does not know, at character 8"),
        (b'{"a":"\\x"}', "a", "holds an escape that JSON does not know, at character 7"),
        (b'{"a":"\\u12G4"}', "a", "holds an escape that JSON does not know, at character 7"),
        (b'{"a":"x\ny"}', "a", "holds a raw control character, 0x0a, at character 8"),
        (b'{"a":"\x00"}', "a", "holds a raw control character, 0x00, at character 7"),
        (b'{"a":"x\\u0000"}', "a", "holds NUL (\\u0000), which cannot be stored"),
        (b'{"a":{"\\u0000":1}}', "a", "holds NUL (\\u0000), which cannot be stored"),
        (b'{"a":"\\ud800"}', "a", "holds half of a surrogate pair, which is no character"),
        (b'{"a":"\\uDE00\\uD83D"}', "a", "holds half of a surrogate pair, which is no character"),
        (b'{"a":"\\ud83d\\\\ude00"}', "a", "holds half of a surrogate pair, which is no character"),
        (b'{"a":1,"a":1}', "a", "is there twice"),
        (b'{"x":{"a":1,"b":2,"\\u0061":3}}', "x.a", "is there twice"),
        (b'{"a":1e200000}', "a", "is too large or too small for a double-precision number"),
        (b'{"a":-1E309}', "a", "is too large or too small for a double-precision number"),
        (b'{"a":1e-20000}', "a", "is too large or too small for a double-precision number"),
        (b'{"a":0e99999}', "a", "is too large or too small for a double-precision number"),
        (b'{"a":1' + b"0" * 309 + b"}", "a", "is too large or too small"),
        (b'{"a":' + b"9" * 5000 + b"}", "a", "is a number of more than 1,000 characters"),
        (b'{"a":0.' + b"1" * 1000 + b"}", "a", "is a number of more than 1,000 characters"),
        (b'{"a":1e' + b"1" * 5000 + b"}", "a", "is a number of more than 1,000 characters"),
        (b'{"a":"\xff"}', "a", "is not UTF-8: byte 0xff at position 6"),
        (b'{"a":"\xed\xa0\x80"}', "a", "is not UTF-8: byte 0xed at position 6"),
        (b'{"a":"\xc0\xaf"}', "a", "is not UTF-8: byte 0xc0 at position 6"),
        (b"\xef\xbb\xbf{}", "body", "starts with a byte order mark"),
        ('{"a":1}'.encode("utf-16"), "body", "is not UTF-8: byte 0xff at position 0"),
        (b'{"a b":{"":NaN}}', '["a b"][""]', "NaN"),
        (b'{"\\ud83d\\ude00":NaN}', '["\\ud83d\\ude00"]', "NaN"),
    ],
)
def test_a_text_that_is_refused_is_refused_with_the_field_and_the_reason(raw, field, reason):
    details = refusal(strictjson.loads, raw)
    assert list(details) == [field]
    assert reason in details[field]


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_is_accepted_down_to_128_levels_and_refused_beyond(opening):
    closing = b"]" if opening == b"[" else b"}"
    assert strictjson.loads(opening * 127 + b"[]" + closing * 127)
    for levels in (129, 900, 100_000):
        for raw in (opening * levels, opening * (levels - 1) + b"[]" + closing * (levels - 1)):
            ((field, reason),) = refusal(strictjson.loads, raw).items()
            assert reason == "is nested deeper than 128 levels"
            assert len(field) <= 200


def test_brackets_in_strings_and_side_by_side_are_not_nesting():
    for value in (["[" * 500 + '"{' * 500], [[] for _ in range(500)], {"\\": "[" * 500 + "\\"}):
        assert strictjson.loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        True,
        "",
        "\x7f\u2028\ufeff\U0001f600",
        "\\u0000 \\ud800 spelled out",
        [0, -0.0, 1e-400, 1.7976931348623157e308, 2**53 + 1, -(10**300)],
        {"": {"a": 1, "A": 1}},
    ],
)
def test_what_is_unusual_but_valid_is_accepted(value):
    for ascii_only in (True, False):
        raw = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert strictjson.loads(b" \t\r\n" + raw + b"\n") == value


def values(max_leaves: int = 20) -> some.SearchStrategy:
    # No surrogates and no NUL: those have tests of their own.
    text = some.text(some.characters(exclude_characters="\x00", codec="utf-8"), max_size=10)
    leaves = (
        some.none()
        | some.booleans()
        | some.integers()
        | some.floats(allow_nan=False, allow_infinity=False)
        | text
    )
    return some.recursive(
        leaves,
        lambda inner: some.lists(inner) | some.dictionaries(text, inner),
        max_leaves=max_leaves,
    )


@unhurried
@given(value=values(), indent=some.none() | some.integers(0, 2), ascii_only=some.booleans())
def test_every_value_that_json_can_express_is_read_back(value, indent, ascii_only):
    raw = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert strictjson.loads(raw) == value


fragments = some.sampled_from(
    [
        *'"\\{}[]:,1-.e0 \n\x00éx',
        "\\u",
        "\\u0000",
        "\\ud83d",
        "\\ude00",
        "NaN",
        "Infinity",
        "null",
        '"a"',
        '"a":1',
        "1e999",
    ]
)


@unhurried
@given(value=values(5), data=some.data())
def test_a_damaged_text_is_either_accepted_and_right_or_refused_and_explained(value, data):
    """The C scanner decides and the tokenizer explains: they must never disagree."""
    text = json.dumps(value, ensure_ascii=data.draw(some.booleans()))
    for _ in range(data.draw(some.integers(1, 3))):
        at = data.draw(some.integers(0, len(text)))
        cut = data.draw(some.integers(0, 2))
        text = text[:at] + data.draw(fragments) + text[at + cut :]
    accepted, refused = outcome(strictjson.loads, text.encode())
    if refused:
        assert NOT_EXPLAINED not in refused.message
    else:
        assert accepted == json.loads(text)
        assert NOT_EXPLAINED in strictjson._first_problem(text, 0, "")[1]
        assert json.dumps(accepted, ensure_ascii=False, allow_nan=False).encode()


@unhurried
@given(raw=some.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_nothing_else_happens(raw):
    for read, *more in (
        (strictjson.loads,),
        (strictjson.event_fields,),
        (strictjson.batch_fields, 9),
    ):
        refused = outcome(read, raw, *more)[1]
        assert refused is None or refused.code == "invalid_request"


# Parsers must accept every y_ file. These we refuse, and say why.
REFUSED_ON_PURPOSE = {
    "y_object_duplicated_key.json": "is there twice",
    "y_object_duplicated_key_and_value.json": "is there twice",
    "y_object_escaped_null_in_key.json": "holds NUL",
    "y_string_null_escape.json": "holds NUL",
}


def test_the_json_test_suite_is_passed():
    folder = os.environ.get("HOOKJETTY_CORPORA")
    if not folder:
        pytest.skip("HOOKJETTY_CORPORA names no folder of inputs from other projects")
    seen = 0
    with tarfile.open(Path(folder) / "JSONTestSuite.tar.gz") as suite:
        for member in suite:
            name, content = Path(member.name).name, suite.extractfile(member)
            if content is None:
                continue
            raw = content.read()
            value, refused = outcome(strictjson.loads, raw)
            if refused is None:
                assert not name.startswith("n_"), name
                assert name not in REFUSED_ON_PURPOSE, name
                assert value == json.loads(raw), name
            elif name.startswith("y_"):
                assert REFUSED_ON_PURPOSE[name] in refused.message, name
            seen += 1
    assert seen == 340


@pytest.mark.parametrize(
    "raw",
    [
        b'["' + b'\\"' * 2_000_000 + b"\\",
        b'["' + b"\\u4e2d" * 600_000 + b'\\ud800"]',
        b"[" + b"[]," * 1_000_000 + b"x]",
        b"[" + b"1," * 2_000_000 + b"]",
        b"[" + b'"a\\"b",' * 500_000 + b"]",
        b"{" + b'"a":1,' * 600_000 + b"}",
        b"[" * 4_000_000,
        b" " * 4_000_000,
        b'"' + b"\xc3\xa9" * 2_000_000,
        b'{"a":"' + b"x" * 4_000_000 + b"\x00",
    ],
    ids=lambda raw: f"{raw[:12]!r}",
)
def test_the_largest_request_is_refused_in_a_moment_whatever_is_in_it(raw):
    """4 MiB take less than a second; anything quadratic would take minutes."""
    started = time.process_time()
    refusal(strictjson.loads, raw)
    assert time.process_time() - started < 5  # machines and their neighbours differ


def test_what_is_too_long_to_explain_says_up_to_where_it_was_read():
    ((field, reason),) = refusal(strictjson.loads, b"[" + b"1," * 200_000 + b"]").items()
    assert (field, reason) == ("[24999]", NOT_EXPLAINED)


EVENT = b'{"type":"export.done", "data" : {"b": 1.10, "a":[1E2,\n"\\u00e9\\/"] } ,"key":null}'


def test_an_event_is_returned_with_its_data_as_it_was_sent():
    event = strictjson.event_fields(b" " + EVENT + b"\n")
    assert event.values == json.loads(EVENT)
    assert event.data_text == '{"b": 1.10, "a":[1E2,\n"\\u00e9\\/"] }'


def test_an_event_without_data_has_no_text_for_it():
    assert strictjson.event_fields(b"{ }") == ({}, None)
    assert strictjson.event_fields(b'{"type":"a"}') == ({"type": "a"}, None)


def test_data_that_is_no_object_is_returned_for_the_schema_to_refuse():
    assert strictjson.event_fields(b'{"data": null}') == ({"data": None}, "null")


@unhurried
@given(
    data=some.dictionaries(
        some.sampled_from(["", "b", "é", '"data"', "\\"]), values(5), max_size=3
    ),
    indent=some.none() | some.integers(0, 3),
    ascii_only=some.booleans(),
    before=some.dictionaries(some.sampled_from("abc"), values(2), max_size=2),
)
def test_the_text_of_data_is_the_bytes_that_came_in(data, indent, ascii_only, before):
    data_text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    others = "".join(f"{json.dumps(key)}: {json.dumps(before[key])},\n" for key in before)
    raw = f'{{{others} "\\u0064ata"\t:{data_text} }}'.encode()
    event = strictjson.event_fields(raw)
    assert event.data_text == data_text
    assert event.values == {**before, "data": data}
    others, (first, second) = strictjson.batch_fields(b'{"events": [%b , %b]}' % (raw, raw), 2)
    assert first == second == event


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        (b"[]", "body", "a JSON object is needed"),
        (b"null", "body", "a JSON object is needed"),
        (b"", "body", "a JSON object is needed"),
        (b'{"data":{},"data":{}}', "data", "is there twice"),
        (b'{"data":{"rows":[{"size":NaN}]}}', "data.rows[0].size", "NaN"),
        (b'{"data":{"a":"\\u0000"}}', "data.a", "NUL"),
        (b'{"data":{}} x', "body", "the end is expected"),
        (b'{"data":{}', "data", "the text ends"),
        (b'{"data":{}]', "data", "a comma or } is expected"),
        (b'{"data":%b}' % (b"[" * 128 + b"]" * 128), "data", "nested deeper"),
    ],
)
def test_an_event_that_is_refused_says_where_and_why(raw, field, reason):
    ((found, why),) = refusal(strictjson.event_fields, raw).items()
    assert found == field or found.startswith(f"{field}[0][0]")
    assert reason in why


@pytest.mark.parametrize(
    ("raw", "field", "reason"),
    [
        (b"[]", "body", "a JSON object is needed"),
        (b"{}", "events", "a list of events is needed"),
        (b'{"events":{}}', "events", "a list of events is needed"),
        (b'{"events":[{},7]}', "events[1]", "a JSON object is needed"),
        (b'{"events":[{},{},{},{}]}', "events[3]", "a batch holds at most 3 events"),
        (b'{"events":[{},{"data":{"a":[NaN]}}]}', "events[1].data.a[0]", "NaN"),
        (b'{"events":[{},{"data":"\\ud800"}]}', "events[1].data", "half of a surrogate pair"),
        (b'{"events":[{},{"a":1,"a":2}]}', "events[1].a", "is there twice"),
        (b'{"events":[{},{"a":1]}', "events[1].a", "a comma or } is expected"),
        (b'{"events":[{} {}]}', "events[0]", "a comma or ] is expected"),
        (b'{"events":[{},]}', "events[1]", "a JSON object is needed"),
        (b'{"events":[{}', "events[0]", "the text ends"),
        (b'{"events":[],"events":[]}', "events", "is there twice"),
        (b'{"dry":1,"dry":2,"events":[]}', "dry", "is there twice"),
        (b'{"events":[],"dry":"\\u0000"}', "dry", "NUL"),
        (b'{"events":[]} {}', "body", "the end is expected"),
    ],
)
def test_a_batch_that_is_refused_names_the_event(raw, field, reason):
    ((found, why),) = refusal(strictjson.batch_fields, raw, 3).items()
    assert found == field
    assert reason in why


def test_a_batch_returns_its_events_and_its_other_members():
    others, events = strictjson.batch_fields(b'{"tenant_id":7,"events":[%b,{}]}' % EVENT, 2)
    assert others == {"tenant_id": 7}
    assert events == [strictjson.event_fields(EVENT), ({}, None)]
    assert strictjson.batch_fields(b'{"events":[]}', 2) == ({}, [])


def test_numbers_keep_every_digit_in_the_text():
    literal = "3." + "14159" * 100
    event = strictjson.event_fields(b'{"data":{"pi":%b}}' % literal.encode())
    assert event.data_text == f'{{"pi":{literal}}}'
    assert math.isclose(event.values["data"]["pi"], 3.14159, rel_tol=1e-5)
