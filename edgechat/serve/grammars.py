"""Grammars for answers: JSON that a schema describes, and calls of tools, after whatever a model thinks first.

They are written in llguidance's variant of Lark, which has JSON schemas built in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from edgechat.errors import GrammarError
from edgechat.prompt.reasoning import ReasoningFormat, ReplyPhase
from edgechat.prompt.tool_formats import ToolFormat
from edgechat.serve.schemas import JsonFormat, SchemaFormat, TextFormat, Tool

# Small models that may write any white space write it for ever.
_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MAX_DEPTH: Final = 64
# Of a schema: keywords that hold schemas by name, and those that hold no schema at all.
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LARGEST: Final = 1 << 53
_DATA: Final = ("const", "enum", "default", "examples")


def response_format_rule(wanted: TextFormat | JsonFormat | SchemaFormat | None) -> str:
    """The rule of a response format; "" if anything goes. Raises GrammarError, which names what cannot be enforced."""
    if isinstance(wanted, JsonFormat):
        return _json({"type": "object"}, "response_format")
    if isinstance(wanted, SchemaFormat):
        return _json(wanted.json_schema.schema, "response_format.json_schema.schema")
    return ""


def tool_call_rules(tools: Sequence[Tool], form: ToolFormat, *, required: bool, parallel: bool) -> str:
    """The rules of calls of `tools`: `must` asks for one, else there may be text in their place.

    Raises GrammarError, which names what of their parameters cannot be enforced.
    """
    calls, rules = [], []
    for i, tool in enumerate(tools):
        opening, closing = form.call_wrapper(tool.function.name)
        parameters = {"type": "object"} | (tool.function.parameters or {})
        rules.append(f"arguments_{i}: {_json(parameters, f'tools[{i}].function.parameters')}")
        calls.append(f"{_quoted(opening)} arguments_{i} {_quoted(closing)}")
    more = f" ({_quoted(form.separator)} call)*" if parallel else ""
    closing = f" {_quoted(form.suffix)}" if form.suffix else ""
    all_calls = f"call{more}{closing}"
    rules.append("call: " + " | ".join(calls))
    if required:
        return "\n".join([f"{_quoted(form.prefix)} {all_calls}", *rules])
    if form.trigger:
        rest = form.prefix[len(form.trigger) :]
        rules += [f"head[lazy]: TEXT {_quoted(form.trigger)}", "TEXT: /(.|\\n)*/"]
        begun = f"head {_quoted(rest)} " if rest else "head "
        return "\n".join([f"TEXT | {begun}{all_calls}", *rules])
    rules.append("OTHER: /([^{](.|\\n)*)?/")
    return "\n".join([f"OTHER | {all_calls}", *rules])


def with_reasoning(rules: str, form: ReasoningFormat | None, place: ReplyPhase, *, think: bool) -> str:
    """The whole grammar; `rules` begin with what follows the thoughts."""
    if form is None or place == "content" or (place == "start" and not think):
        return f"start: {rules}\n"
    thoughts = "thoughts" if place == "reasoning" else f"({_quoted(form.start_tag)} thoughts)?"
    mark = f" {_quoted(form.content_prefix)}" if form.content_prefix else ""
    return (
        f"start: {thoughts}{mark} body\n"
        f"thoughts: closed /\\s{{0,4}}/\nclosed[lazy]: THOUGHTS {_quoted(form.end_tag)}\nTHOUGHTS: /(.|\\n)*/\n"
        f"body: {rules}\n"
    )


def _quoted(text: str) -> str:
    return json.dumps(text)


def _json(schema: Mapping[str, Any] | bool, where: str) -> str:  # noqa: FBT001  (a schema may be that)
    """A schema as an expression. Raises GrammarError."""
    whole: dict[str, Any] = {} if schema is True else {"not": {}} if schema is False else dict(schema)
    if "x-guidance" in whole:
        raise GrammarError(f"{where}: x-guidance cannot be had: how JSON is written is the server's own")
    for name, path in _unsupported_keywords(whole, where, 0):
        raise GrammarError(f"{path}: {name} cannot be enforced")
    return "%json " + json.dumps(whole | {"x-guidance": _SPACING})


def _unsupported_keywords(schema: object, where: str, depth: int) -> Iterator[tuple[str, str]]:
    """Keywords that llguidance takes without holding to them in every case, and where they are."""
    if depth > _MAX_DEPTH:
        raise GrammarError(f"{where}: schemas may be nested {_MAX_DEPTH} deep")
    if isinstance(schema, list):
        for i, each in enumerate(schema):
            yield from _unsupported_keywords(each, f"{where}[{i}]", depth + 1)
    if not isinstance(schema, dict):
        return
    for name in _unsupported_here(schema):
        yield name, where
    for name, inner in schema.items():
        if name in _MAPS and isinstance(inner, dict):  # of schemas by names that mean nothing
            for key, each in inner.items():
                yield from _unsupported_keywords(each, f"{where}.{name}.{key}", depth + 1)
        elif name not in _DATA:
            yield from _unsupported_keywords(inner, f"{where}.{name}", depth + 1)


def _unsupported_here(schema: Mapping[str, Any]) -> Iterator[str]:
    """Such keywords of one schema."""
    least, required = schema.get("minProperties"), schema.get("required")
    n_required = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(least, (int, float)) and least > max(1, n_required):
        # The names of properties that a schema does not name may come twice.
        yield "minProperties (beyond what is required)"
    for name in _NUMBERS:
        value = schema.get(name)
        if isinstance(value, (int, float)) and abs(value) > _LARGEST:
            yield f"{name} beyond {_LARGEST}"
