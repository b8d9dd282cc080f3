"""Tools of a chat request: how the model is told about them, and how its calls are constrained."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from edgechat.errors import GrammarError, TemplateError
from edgechat.prompt.builder import PromptBuilder, PromptOptions
from edgechat.prompt.tool_formats import make_template_tools
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.serve import grammars
from edgechat.serve.chat_prompt import make_tool_definitions
from edgechat.serve.errors import ApiError
from edgechat.serve.output_format import FREE_TEXT, OutputFormat
from edgechat.serve.schemas import ChatRequest, NamedTool, Tool

_log: Final = logging.getLogger("edgechat.serve")

# JSON Schema keywords that llama.cpp's grammars enforce, and keywords without an effect on valid values.
_ENFORCED_KEYWORDS: Final = frozenset((
    "type", "properties", "required", "additionalProperties", "enum", "const", "items", "prefixItems", "minItems",
    "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "format",
))  # fmt: skip
_ANNOTATIONS: Final = frozenset((
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "$comment",
))  # fmt: skip
# Keywords that remain if a schema cannot be enforced as a whole.
_BASIC_KEYWORDS: Final = frozenset((
    "type", "properties", "required", "enum", "const", "items", "anyOf", "oneOf", "$ref", "$defs", "definitions"
))  # fmt: skip
_SCHEMA_MAP_KEYWORDS: Final = ("properties", "$defs", "definitions")
_SCHEMA_LIST_KEYWORDS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAX_DEPTH: Final = 64


class PreparedTools(NamedTuple):
    """How one request uses its tools."""

    options: PromptOptions
    """Options of the prompt, with the tools if the template knows tools."""
    tool_grammar: ToolGrammar | None = None
    """Grammar of the calls in the model's own format."""
    rules: str = ""
    """Grammar rules of the calls in the generic format, for templates that do not know tools."""


def prepare_tools(
    builder: PromptBuilder, body: ChatRequest, tools: list[Tool], *, must_call: bool, think: bool,
    output_format: OutputFormat = FREE_TEXT,
) -> PreparedTools:  # fmt: skip
    """Return how the request uses `tools`, which must not be empty.

    A reply without a call has the output format, if there is one. Keywords of a schema that cannot be enforced are left
    out of the grammar, and logged. Raises EngineDiedError, and ApiError if the schema of a strict tool cannot be
    enforced, or if the tool calls of this model cannot be combined with an output format.
    """
    _check_strict_tools(tools)
    may_call_several = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
    if not builder.has_native_tools:
        enforced_tools = [_weaken_until(tool, _check_generic_rules) for tool in tools]
        must_match = must_call or bool(output_format.rule)
        rules = grammars.make_tool_call_rules(enforced_tools, must_call=must_match, allow_parallel=may_call_several)
        if output_format.rule and not must_call:
            rules = f"({output_format.rule}) | {rules}"
        return PreparedTools(PromptOptions(think), rules=rules)
    options = PromptOptions(
        think, make_template_tools(make_tool_definitions(tools)),
        allow_parallel=may_call_several and builder.can_call_several_tools,
    )  # fmt: skip

    def enforce(enforced_tools: list[Tool]) -> PreparedTools:
        template_tools = make_template_tools(make_tool_definitions(enforced_tools))
        grammar_options = options._replace(enforced_tools=template_tools)
        return _choose_grammar(builder, grammar_options, output_format, must_call=must_call)

    try:
        return enforce(tools)
    except TemplateError:
        return enforce([_weaken_until(tool, lambda weaker: enforce([weaker])) for tool in tools])


def _choose_grammar(
    builder: PromptBuilder, options: PromptOptions, output_format: OutputFormat, *, must_call: bool
) -> PreparedTools:
    """Return the grammar of the calls. Raises TemplateError if a schema cannot be enforced."""
    tool_grammar = builder.find_reply_format(options).tool_grammar
    if not must_call and not output_format.rule:
        return PreparedTools(options, tool_grammar)
    if tool_grammar is not None and not any(trigger.is_pattern for trigger in tool_grammar.triggers):
        content_rule = "" if must_call else output_format.rule
        return PreparedTools(options, msgspec.structs.replace(tool_grammar, triggers=[], content_rule=content_rule))
    if not must_call:
        message = (
            f"{output_format.param}: this model's tool calls cannot be combined with an output format. "
            f'Set tool_choice to "none" or "required", or leave out {output_format.param}.'
        )
        raise ApiError(400, message, param=output_format.param)
    options = options._replace(tool_choice="required")
    return PreparedTools(options, builder.find_reply_format(options).tool_grammar)


def _check_strict_tools(tools: list[Tool]) -> None:
    for i, tool in enumerate(tools):
        if tool.function.strict:
            keyword = next(_find_other_keywords(tool.function.parameters or {}, 0), None)
            if keyword is not None:
                param = f"tools[{i}].function.parameters"
                message = (
                    f"{param}: {keyword[:80]} cannot be enforced, and the function {tool.function.name} is strict. "
                    'Remove the keyword, or "strict".'
                )
                raise ApiError(400, message, param=param, code="unsupported_schema")


def _find_other_keywords(schema: object, depth: int) -> Iterator[str]:
    """Yield the keywords in a JSON schema that grammars do not enforce."""
    if not isinstance(schema, Mapping):
        return
    if depth > _MAX_DEPTH:
        yield f"a nesting of more than {_MAX_DEPTH} levels"
        return
    yield from (keyword for keyword in schema if keyword not in _ENFORCED_KEYWORDS | _ANNOTATIONS)
    for subschema in _iterate_subschemas(schema):
        yield from _find_other_keywords(subschema, depth + 1)


def _iterate_subschemas(schema: Mapping[str, Any]) -> Iterator[object]:
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, Mapping):
            yield from value.values()
        elif keyword in _SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            yield from value
        elif keyword in ("items", "additionalProperties"):
            yield value


def _check_generic_rules(tool: Tool) -> None:
    grammars.make_tool_call_rules([tool], must_call=True, allow_parallel=False)


def _weaken_until(tool: Tool, check: Any) -> Tool:
    """Return `tool` with the strongest schema that `check` accepts: its own, one of basic keywords, or any object."""
    function = tool.function
    for parameters in (function.parameters, _keep_basic_keywords(function.parameters or {}, 0), {"type": "object"}):
        weaker = msgspec.structs.replace(tool, function=msgspec.structs.replace(function, parameters=parameters))
        try:
            check(weaker)
        except (TemplateError, GrammarError) as error:
            if function.strict:
                raise ApiError(400, f"tools: the function {function.name} is strict: {error}", param="tools") from error
            _log.warning("the arguments of the function %s are enforced only in part: %s", function.name, error)
            continue
        return weaker
    return weaker


def _keep_basic_keywords(schema: Any, depth: int) -> Any:
    """Return a JSON schema with only its basic keywords."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return {} if isinstance(schema, Mapping) else schema
    basic: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, Mapping):
            basic[keyword] = {name: _keep_basic_keywords(item, depth + 1) for name, item in value.items()}
        elif keyword in _SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            basic[keyword] = [_keep_basic_keywords(item, depth + 1) for item in value]
        elif keyword == "items":
            basic[keyword] = _keep_basic_keywords(value, depth + 1)
        elif keyword in _BASIC_KEYWORDS:
            basic[keyword] = value
    return basic
