"""Errors of decoded data in the words of users."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from edgechat.decode_errors import describe_decode_error, describe_json_error, describe_syntax_error, replace_type_names


class _Inner(msgspec.Struct, forbid_unknown_fields=True):
    n: int


@pytest.mark.parametrize(
    ("content_type", "data", "text"),
    [
        (int, b'"a"', "must be a whole number, not text"),
        (int, b"1.5", "must be a whole number, not a decimal number"),
        (float | None, b'"a"', "must be a number, not text"),
        (bool | None, b"[]", "must be true or false, not a list"),
        (str, b"null", "must be text, not empty"),
        (dict[str, int], b'{"a": {}}', "must be a whole number, not a table"),
        (list[int], b'[1, "x"]', "must be a whole number, not text (at [1])"),
        (list[int], b"7", "must be a list, not a whole number"),
        (Annotated[int, Meta(ge=3)], b"2", "must be at least 3"),
        (_Inner, b"{}", "lacks the field n"),
        (_Inner, b'{"n": 1, "m": 2}', "has the unknown field m"),
    ],
)
def test_decoder_errors_name_types_in_plain_words(content_type: type[object], data: bytes, text: str) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(data, type=content_type)
    assert describe_decode_error(error.value) == text


@pytest.mark.parametrize(
    ("content_type", "data", "text", "path"),
    [
        (dict[str, str], b"[]", "must be an object, not an array", ""),
        (int | float | None, b'"a"', "must be a number or null, not a string", ""),
        (Annotated[float, Meta(multiple_of=1)], b"1.5", "must be an integer", ""),
        (bool | int | None, b"[]", "must be a boolean or null, not an array", ""),
        (str | list[str] | None, b"true", "must be a string, an array or null, not a boolean", ""),
        (dict[str, list[int]], b'{"a": [null]}', "must be an integer, not null", "[...][0]"),
        (Annotated[float, Meta(le=2.0)], b"5", "must be at most 2", ""),
        (Annotated[list[int], Meta(min_length=1)], b"[]", "must have at least 1 item", ""),
        (Annotated[str, Meta(max_length=3)], b'"abcd"', "must have at most 3 characters", ""),
        (Annotated[str, Meta(pattern="^\\d+$")], b'"x"', "must have digits", ""),
        (Annotated[str, Meta(pattern="^y$")], b'"x"', "has a form that is not allowed", ""),
        (Literal["a", "b"], b'"x"', "x is not a valid value", ""),
        (_Inner, b"{}", "lacks the field n", ""),
    ],
)
def test_json_errors_name_types_in_the_words_of_json(
    content_type: type[object], data: bytes, text: str, path: str
) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(data, type=content_type)
    assert describe_json_error(error.value, {"^\\d+$": "must have digits"}) == (text, path)


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ('can only concatenate str (not "NoneType") to str', "can only concatenate string (not null) to string"),
        ("'dict object' has no attribute 'x'", "object has no attribute 'x'"),
        ("'NoneType' object is not iterable", "null is not iterable"),
        ("unsupported operand type(s) for +: 'dict' and 'list'", "unsupported operand type(s) for +: object and array"),
        ("'None' has no attribute 'strip'", "null has no attribute 'strip'"),
        ("The list of strings is no interval", "The list of strings is no interval"),
    ],
)
def test_names_of_python_types_become_those_of_json(text: str, replaced: str) -> None:
    assert replace_type_names(text) == replaced


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"a": "\xe9"}', "its byte 7 of 10 is 0xe9, which is not UTF-8"),
        (b'{"a": 1, "\xe9": 2}', "its byte 10 of 16 is 0xe9, which is not UTF-8"),
        (b'{"a": "\xe9', "its byte 7 of 8 is 0xe9, which is not UTF-8"),
        (b'{"a": "x', "it ends too early, after 8 bytes"),
        (b"{", "it ends too early, after 1 byte"),
        (b"", "it is empty"),
        (rb'["\ud800"]', r"it contains half of a surrogate pair (\ud800 to \udfff), which is not a character"),
        (
            rb'["\ud800 and more text"]',
            r"it contains half of a surrogate pair (\ud800 to \udfff), which is not a character",
        ),
        (
            rb'["\udc00 and more text"]',
            r"it contains half of a surrogate pair (\ud800 to \udfff), which is not a character",
        ),
        (b"[" * 100_000, "its arrays and objects are nested too deeply"),
        (b'{"a": 1,}', "at byte 8 of 9: trailing comma in object"),
    ],
)
def test_syntax_errors_of_json_are_plain_sentences(data: bytes, text: str) -> None:
    with pytest.raises((msgspec.DecodeError, RecursionError, UnicodeDecodeError)) as error:
        msgspec.json.decode(data)
    assert describe_syntax_error(error.value, data) == text
