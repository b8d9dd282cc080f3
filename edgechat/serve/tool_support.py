"""Tools of a chat request: the options of the prompt that describes them, and the grammars of the calls."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from edgechat.errors import GrammarError, TemplateError
from edgechat.prompt.builder import PromptBuilder, PromptOptions
from edgechat.prompt.tool_formats import make_template_tools
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.serve import grammars
from edgechat.serve.chat_prompt import make_tool_definitions
from edgechat.serve.errors import ApiError
from edgechat.serve.output_format import FREE_TEXT, OutputFormat
from edgechat.serve.schemas import ChatRequest, Tool, ToolChoice

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
_KNOWN_KEYWORDS: Final = _ENFORCED_KEYWORDS | _ANNOTATIONS
# Keywords that remain if a schema cannot be enforced as a whole.
_BASIC_KEYWORDS: Final = frozenset((
    "type", "properties", "required", "enum", "const", "items", "anyOf", "oneOf", "$ref", "$defs", "definitions"
))  # fmt: skip
_NUMERIC_LIMITS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# STRING_FORMAT_RULES and "uuid" in llama.cpp's json-schema-to-grammar.cpp.
_ENFORCED_FORMATS: Final = re.compile("date|time|date-time|uuid")
# Keywords that every grammar can enforce.
_SIMPLE_KEYWORDS: Final = frozenset(
    ("type", "properties", "required", "additionalProperties", "enum", "const", "items")
)
_TYPES: Final = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
_SIMPLE_TYPES: Final = frozenset(("string", "number", "integer", "boolean"))
_SCHEMA_MAP_KEYWORDS: Final = ("properties", "$defs", "definitions")
_SCHEMA_LIST_KEYWORDS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAX_DEPTH: Final = 64
# Characters in the grammar of simple tools that the engine can certainly compile.
_MAX_SAFE_GRAMMAR_CHARS: Final = MAX_GRAMMAR_CHARS // 2
# Maximum number of attempts to find the tools whose schemas cannot be enforced. An attempt takes up to 0.1 s.
_MAX_ATTEMPTS: Final = 12
_MAX_LOGGED_NAMES: Final = 8
MAX_TOOLS_BYTES: Final = 1 << 20
"""Maximum bytes of JSON in the schemas of all tools; the 218 tools of 12 public MCP servers have 114,000."""


class SelectedChoice(NamedTuple):
    """Tool choice of a request."""

    mode: str
    """`auto`, `none` or `required`."""
    name: str | None = None
    """Name of the function that must be called."""


def find_tool_choice(body: ChatRequest) -> SelectedChoice:
    """Return the tool choice of a request. Raises ApiError if it has an unknown form."""
    choice = body.tool_choice
    if isinstance(choice, ToolChoice):
        name = choice.name if choice.function is None else choice.function.name
        if name is not None and choice.type in {None, "function", "tool"}:
            return SelectedChoice("required", name)
        choice = choice.type or "an object without a type"
    modes = {"": "auto", "auto": "auto", "none": "none", "required": "required", "any": "required"}
    if (choice or "") not in modes:
        message = f'tool_choice: must be "auto", "none", "required" or the name of a function, got {choice!r}.'
        raise ApiError(400, message, param="tool_choice")
    return SelectedChoice(modes[choice or ""])


def select_tools(body: ChatRequest) -> tuple[list[Tool], bool]:
    """Return the tools that the model can call, and whether it must call one of them. Raises ApiError."""
    tools, (mode, name) = body.tools or [], find_tool_choice(body)
    names = Counter(tool.function.name for tool in tools)
    duplicate = next((name for name, count in names.items() if count > 1), None)
    if duplicate is not None:
        raise ApiError(400, f"tools: several functions have the name {duplicate!r}.", param="tools")
    if name is not None:
        if name not in names:
            raise ApiError(400, f"tool_choice: tools has no function with the name {name!r}.", param="tool_choice")
        return [tool for tool in tools if tool.function.name == name], True
    if mode == "required" and not tools:
        raise ApiError(400, 'tool_choice: "required" needs at least one tool.', param="tool_choice")
    return ([] if mode == "none" else tools), mode == "required"


class PreparedTools(NamedTuple):
    """How one request uses its tools."""

    options: PromptOptions
    """Options of the prompt, with the tools if the template knows tools."""
    grammars: Sequence[ToolGrammar | str] = ()
    """Grammars of the output, of which the first one that can be compiled applies; empty if the format of the model has
    none. A grammar is a ToolGrammar in the model's own format of calls, or the rules of the generic format."""


def prepare_tools(
    builder: PromptBuilder, body: ChatRequest, tools: list[Tool], *, must_call: bool, think: bool,
    output_format: OutputFormat = FREE_TEXT,
) -> PreparedTools:  # fmt: skip
    """Return how the request uses `tools`, which must not be empty.

    A reply without a call has the output format, if there is one. Keywords of a schema that cannot be enforced are left
    out of the grammar, and logged. Raises EngineDiedError, and ApiError if the schema of a strict tool cannot be
    enforced, or if the tool calls of this model cannot be combined with an output format.
    """
    _check_strict_tools(tools, has_native_tools=builder.has_native_tools)
    may_call_several = body.parallel_tool_calls in {None, True} and find_tool_choice(body).name is None
    if not builder.has_native_tools:
        options = PromptOptions(think)

        def make_grammar(enforced_tools: list[Tool]) -> ToolGrammar | str | None:
            must_match = must_call or bool(output_format.rule)
            rules = grammars.make_tool_call_rules(enforced_tools, must_call=must_match, allow_parallel=may_call_several)
            return f"({output_format.rule}) | {rules}" if output_format.rule and not must_call else rules
    else:
        options = PromptOptions(
            think, make_template_tools(make_tool_definitions(tools)),
            allow_parallel=may_call_several and builder.can_call_several_tools,
        )  # fmt: skip

        def make_grammar(enforced_tools: list[Tool]) -> ToolGrammar | str | None:
            enforced_options = _enforce(options, enforced_tools)
            return _choose_grammar(builder, enforced_options, output_format, must_call=must_call)

    enforced_tools = _find_enforced_tools(tools, make_grammar)
    if builder.has_native_tools and enforced_tools != tools:
        options = _enforce(options, enforced_tools)
    return PreparedTools(options, list(_iterate_grammars(enforced_tools, make_grammar)))


def _enforce(options: PromptOptions, tools: list[Tool]) -> PromptOptions:
    return options._replace(enforced_tools=make_template_tools(make_tool_definitions(tools)))


_MakeGrammar = Callable[[list[Tool]], "ToolGrammar | str | None"]


def _find_enforced_tools(tools: list[Tool], make_grammar: _MakeGrammar) -> list[Tool]:
    """Return `tools` with the strongest schemas for which a grammar can be made.

    The first attempts find the tools whose schemas are the cause; later ones weaken the schemas of several tools.
    Raises ApiError if one of these tools is strict.
    """
    attempts = itertools.count()

    def enforce(group: list[Tool], level: int) -> list[Tool]:
        weaker = group
        for weaken in _WEAKENINGS[level:]:
            weaker = [t if weaken is None or t.function.strict else _replace_schema(t, weaken) for t in group]
            try:
                make_grammar(weaker)
            except (TemplateError, GrammarError) as error:
                if len(group) > 1 and next(attempts) < _MAX_ATTEMPTS:
                    level, middle = _WEAKENINGS.index(weaken), len(group) // 2
                    return enforce(group[:middle], level) + enforce(group[middle:], level)
                _report_weaker_schema(group, error)
            else:
                return weaker
        return weaker

    return enforce(tools, 0)


def _report_weaker_schema(tools: list[Tool], error: Exception) -> None:
    """Log that schemas cannot be enforced as they are. Raises ApiError if a tool is strict."""
    strict_name = next((tool.function.name for tool in tools if tool.function.strict), None)
    if strict_name is not None:
        raise ApiError(400, f"tools: the function {strict_name} is strict: {error}", param="tools") from error
    names = ", ".join(tool.function.name for tool in tools[:_MAX_LOGGED_NAMES])
    _log.warning("the arguments of %d functions (%s) are enforced only in part: %s", len(tools), names, error)


def _iterate_grammars(tools: list[Tool], make_grammar: _MakeGrammar) -> Iterator[ToolGrammar | str]:
    """Yield the grammar of the tools, and weaker ones if the engine may be unable to compile it."""
    grammar = make_grammar(tools)
    if grammar is None:
        return
    yield grammar
    n_chars = len(grammar.gbnf if isinstance(grammar, ToolGrammar) else grammar)
    is_large = n_chars > _MAX_SAFE_GRAMMAR_CHARS
    for weaken in filter(None, _WEAKENINGS):
        weaker_tools = [tool if _is_safe(tool, is_large=is_large) else _replace_schema(tool, weaken) for tool in tools]
        with contextlib.suppress(TemplateError, GrammarError):
            weaker = make_grammar(weaker_tools) if weaker_tools != tools else None
            if weaker is not None:
                yield weaker


def _is_safe(tool: Tool, *, is_large: bool) -> bool:
    """Return whether a weaker schema may not take the place of the tool's, or need not because it is simple."""
    return bool(tool.function.strict) or (not is_large and _is_simple(tool.function.parameters or {}, 0))


def _is_simple(schema: object, depth: int) -> bool:
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    types = schema.get("type", "object")
    return (
        depth <= _MAX_DEPTH
        and schema.keys() <= _SIMPLE_KEYWORDS | _ANNOTATIONS
        and schema.get("enum") != []
        and all(isinstance(t, str) and t in _TYPES for t in (types if isinstance(types, list) else [types]))
        and all(_is_simple(subschema, depth + 1) for subschema in _iterate_subschemas(schema))
    )


def _replace_schema(tool: Tool, weaken: Callable[[Any], Any]) -> Tool:
    parameters = weaken(tool.function.parameters or {})
    return msgspec.structs.replace(tool, function=msgspec.structs.replace(tool.function, parameters=parameters))


def _choose_grammar(
    builder: PromptBuilder, options: PromptOptions, output_format: OutputFormat, *, must_call: bool
) -> ToolGrammar | None:
    """Return the grammar of the calls. Raises TemplateError if a schema cannot be enforced, and ApiError."""
    grammar = builder.find_reply_format(options).tool_grammar
    if not must_call and not output_format.rule:
        return grammar
    if grammar is not None and not any(trigger.is_pattern for trigger in grammar.triggers):
        return msgspec.structs.replace(
            grammar, triggers=[], call_starts=[trigger.value for trigger in grammar.triggers],
            content_rule="" if must_call else output_format.rule,
        )  # fmt: skip
    if not must_call:
        message = (
            f"{output_format.param}: this model's tool calls cannot be combined with an output format. "
            f'Set tool_choice to "none" or "required", or leave out {output_format.param}.'
        )
        raise ApiError(400, message, param=output_format.param)
    return builder.find_reply_format(options._replace(tool_choice="required")).tool_grammar


def check_tools_size(tools: Sequence[Tool]) -> None:
    """Raise GrammarError if the schemas of all tools together are too large to be walked through."""
    grammars.check_schema_size([tool.function.parameters for tool in tools], "tools", MAX_TOOLS_BYTES)


def _check_strict_tools(tools: list[Tool], *, has_native_tools: bool) -> None:
    for i, tool in enumerate(tools):
        if tool.function.strict:
            parameters = tool.function.parameters or {}
            keyword = next(_find_other_keywords(parameters, 0, has_native_tools=has_native_tools), None)
            if keyword is not None:
                param = f"tools[{i}].function.parameters"
                message = (
                    f"{param}: {keyword[:80]} cannot be enforced, and the function {tool.function.name} is strict. "
                    'Remove the keyword, or "strict".'
                )
                raise ApiError(400, message, param=param, code="unsupported_schema")


def _find_other_keywords(schema: object, depth: int, *, has_native_tools: bool) -> Iterator[str]:
    """Yield the keywords in a JSON schema that grammars do not enforce."""
    if not isinstance(schema, Mapping):
        return
    if depth > _MAX_DEPTH:
        yield f"a nesting of more than {_MAX_DEPTH} levels"
        return
    yield from (keyword for keyword in schema if keyword not in _KNOWN_KEYWORDS)
    if has_native_tools:
        yield from _find_ignored_keywords(schema)
    for subschema in _iterate_subschemas(schema):
        yield from _find_other_keywords(subschema, depth + 1, has_native_tools=has_native_tools)


def _find_ignored_keywords(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keywords of a JSON schema itself that only llguidance enforces, not llama.cpp."""
    types = schema.get("type")
    allowed_types = types if isinstance(types, list) else [types]
    if "integer" not in allowed_types or "number" in allowed_types:
        yield from (keyword for keyword in _NUMERIC_LIMITS if keyword in schema)
    if "oneOf" in schema:
        yield "oneOf"
    if "format" in schema and not _ENFORCED_FORMATS.fullmatch(str(schema["format"])):
        yield f"format {schema['format']}"


def _iterate_subschemas(schema: Mapping[str, Any]) -> Iterator[object]:
    for keyword, value in schema.items():
        if keyword in _SCHEMA_MAP_KEYWORDS and isinstance(value, Mapping):
            yield from value.values()
        elif keyword in _SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            yield from value
        elif keyword in ("items", "additionalProperties"):
            yield value


def _allow_any_object(_schema: Any) -> dict[str, Any]:
    return {"type": "object"}


def _keep_simple_types(schema: Any) -> dict[str, Any]:
    """Return a JSON schema of an object with the same properties, which have a simple type or any value."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return _allow_any_object(schema)
    types = {name: item.get("type") if isinstance(item, Mapping) else None for name, item in properties.items()}
    required = schema.get("required")
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return {
        "type": "object",
        "properties": {
            name: {"type": t} if isinstance(t, str) and t in _SIMPLE_TYPES else {} for name, t in types.items()
        },
        "required": sorted(names & types.keys()),
    }


def _keep_basic_keywords(schema: Any, depth: int = 0) -> Any:
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


# Ways to weaken a schema, from its own to any object.
_WEAKENINGS: Final[Sequence[Callable[[Any], Any] | None]] = (
    None, _keep_basic_keywords, _keep_simple_types, _allow_any_object
)  # fmt: skip
