"""Detection of the parts of JSON schemas that the grammar of a model's own tool calls enforces.

For some model families, llama.cpp's grammars ignore parts of an argument's schema: values that the model writes as
text, required arguments, or the whole schema. The grammars of sample tools show which parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple


class CallEnforcement(NamedTuple):
    """Parts of the arguments' JSON schemas that a grammar enforces."""

    names: bool
    """Names of the arguments."""
    required: bool
    """Presence of the required arguments."""
    string_type: bool
    """The type of arguments that must be strings."""
    strings: bool
    """All JSON Schema keywords of string arguments, such as `enum`."""
    values: bool
    """Types and other JSON Schema keywords of arguments that are numbers, booleans or null."""
    nested: bool
    """All JSON Schema keywords of array items and object properties."""


# Distinctive values, which no grammar contains by chance.
_NAME, _STRING, _INTEGER, _NESTED_STRING = "edgechat_name", "edgechat-string", 774_411, "edgechat-nested"
_PROPERTIES: Final[dict[str, Any]] = {
    _NAME: {"type": "string", "enum": [_STRING]},
    "number": {"type": "integer", "enum": [_INTEGER]},
    "object": {
        "type": "object", "properties": {"text": {"type": "string", "enum": [_NESTED_STRING]}}, "required": ["text"],
    },
}  # fmt: skip


def find_call_enforcement(make_gbnf: Callable[[Mapping[str, Any]], str]) -> CallEnforcement:
    """Find the parts of JSON schemas that the grammars of `make_gbnf` enforce.

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
