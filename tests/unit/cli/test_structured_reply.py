"""Replies as JSON for commands: shorter texts after an overflow, and replies without the requested fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

from edgechat.chat.messages import Message
from edgechat.cli.structured_reply import _send_first, fill_defaults, parse_fields
from edgechat.errors import ContextOverflowError, EngineError

SCHEMA = {"required": ["command", "explanation"]}


class ShortContext:
    """Session whose context holds ten characters."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def send(self, text: str, output_rule: str, output_schema: object) -> Iterator[Any]:
        self.texts.append(text)
        if len(text) > 10:
            raise ContextOverflowError(f"{len(text)} characters")
        yield MagicMock(spec=[])
        yield MagicMock(reply=Message(id="a", role="assistant", text=output_rule))


def test_first_text_that_fits_is_sent() -> None:
    session = ShortContext()
    reply = _send_first(session, iter(["x" * 30, "x" * 20, "x" * 9, "x"]), (True, "rule"), str)  # type: ignore[arg-type]
    assert reply is not None
    assert reply.text == "rule"
    assert [len(text) for text in session.texts] == [30, 20, 9]


def test_last_overflow_is_raised_if_no_text_fits() -> None:
    with pytest.raises(ContextOverflowError, match="20 characters"):
        _send_first(ShortContext(), ["x" * 30, "x" * 20], (True, "rule"), str)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"command": "ls"}', '{"command": 1, "explanation": ""}', "x", "\ud800"]
)
def test_reply_without_the_fields_is_one_error(text: str) -> None:
    with pytest.raises(EngineError, match="does not have the requested format"):
        parse_fields(text, SCHEMA)


def test_fields_are_parsed() -> None:
    fields = {"command": "ls", "explanation": "Lists."}
    assert parse_fields('\n{"command": "ls", "explanation": "Lists."}\n', SCHEMA) == fields


def test_defaults_do_not_replace_options() -> None:
    assert fill_defaults({"a": None, "b": 0}, a=1, b=2, c=3) == {"a": 1, "b": 0, "c": 3}
