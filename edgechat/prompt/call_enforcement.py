"""What the grammar of a model's own tool calls enforces of the arguments' JSON schemas.

llama.cpp's grammars of some families leave parts of the schema out: values that are written as text, required
arguments, or all of it. Sample tools show which parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple


class CallEnforcement(NamedTuple):
    """Parts of the arguments' schemas that a grammar enforces."""

    names: bool
    """Names of the arguments."""
    required: bool
    """Which arguments must be present."""
    string_type: bool
    """Whether an argument is a string."""
    strings: bool
    """All keywords of arguments that are strings, such as `enum`."""
    values: bool
    """Types and other keywords of arguments that are numbers, booleans or null."""
    nested: bool
    """All keywords of the items of arrays and the properties of objects."""


# Values that occur in no grammar by chance.
_NAME, _STRING, _INTEGER, _NESTED_STRING = "edgechat_name", "edgechat-string", 774_411, "edgechat-nested"
_PROPERTIES: Final[dict[str, Any]] = {
    _NAME: {"type": "string", "enum": [_STRING]},
    "number": {"type": "integer", "enum": [_INTEGER]},
    "object": {
        "type": "object", "properties": {"text": {"type": "string", "enum": [_NESTED_STRING]}}, "required": ["text"],
    },
}  # fmt: skip


def find_call_enforcement(make_gbnf: Callable[[Mapping[str, Any]], str]) -> CallEnforcement:
    """Return which parts of schemas the grammars of `make_gbnf` enforce.

    `make_gbnf` returns the grammar of a tool's calls for the schema of its parameters. Its exceptions are not caught.
    """

    def make(properties: Mapping[str, Any], required: list[str]) -> str:
        return make_gbnf({"type": "object", "properties": properties, "required": required})

    required_gbnf, optional_gbnf = make(_PROPERTIES, list(_PROPERTIES)), make(_PROPERTIES, [])
    text_gbnf, any_gbnf = make({"text": {"type": "string"}}, ["text"]), make({"text": {}}, ["text"])
    return CallEnforcement(
        names=_NAME in required_gbnf, required=required_gbnf != optional_gbnf, string_type=text_gbnf != any_gbnf,
        strings=_STRING in required_gbnf, values=str(_INTEGER) in required_gbnf, nested=_NESTED_STRING in required_gbnf,
    )  # fmt: skip
