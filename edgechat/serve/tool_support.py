"""Tools of a chat request: prompt options that describe the tools, and grammars for the tool calls."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from edgechat.errors import GrammarError, TemplateError
from edgechat.humanize import format_count
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.json_schemas import check_schema_size
from edgechat.prompt.output_rules import add_content_marks
from edgechat.prompt.reply_formats import PromptOptions, ReplyFormats
from edgechat.prompt.tool_formats import make_template_tools
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS
from edgechat.runtime.tool_grammar import ToolGrammar
from edgechat.serve import grammars
from edgechat.serve.chat_prompt import NO_PARAMETERS, make_tool_definitions
from edgechat.serve.errors import ApiError
from edgechat.serve.output_format import FREE_TEXT, OutputFormat
from edgechat.serve.schemas import ChatRequest, Tool
from edgechat.serve.tool_choice import find_tool_choice
from edgechat.serve.tool_schemas import (
    WEAKENINGS,
    check_parameters,
    check_strict,
    close_objects,
    declare_required,
    is_enforced,
    is_simple,
    remove_nulls,
)

_log: Final = logging.getLogger("edgechat.serve")

# Maximum length of a grammar for simple tools that the engine can certainly compile.
_MAX_SAFE_GRAMMAR_CHARS: Final = MAX_GRAMMAR_CHARS // 2
# Maximum number of attempts to find the tools whose schemas cannot be enforced. An attempt takes up to 0.1 s.
_MAX_ATTEMPTS: Final = 12
_MAX_LOGGED_NAMES: Final = 8
MAX_TOOLS_BYTES: Final = 1 << 20
"""Maximum bytes of JSON in the schemas of all tools; the 218 tools of 12 public MCP servers have 114,000."""


_MakeGrammar = Callable[[list[Tool]], "ToolGrammar | str | None"]


class _StrictToolError(ApiError):
    """Error for a strict tool whose schema cannot be enforced."""


def check_tools(tools: Sequence[Tool]) -> None:
    """Check the schemas of a request's tools.

    Raises GrammarError if all schemas together are too large. Raises ApiError for parameters that are not the JSON
    schema of an object, and for a keyword of a strict tool that no grammar enforces.
    """
    check_schema_size([tool.function.parameters for tool in tools], "tools", MAX_TOOLS_BYTES)
    for i, tool in enumerate(tools):
        path = f"tools[{i}].function.parameters"
        check_parameters(tool.function.parameters, path)
        if tool.function.strict:
            check_strict(remove_nulls(tool.function.parameters or {}), tool.function.name, path)


class PreparedTools(NamedTuple):
    """Prompt options and grammars for the tools of one request."""

    options: PromptOptions
    """Prompt options; they contain the tools if calls use the model's own format."""
    has_native_format: bool
    """True if the chat template describes the tools, and calls use the model's own format. False if a system message
    describes the tools, and calls use the generic format."""
    grammars: Sequence[ToolGrammar | str] = ()
    """Grammars of the output, strongest first; the engine uses the first grammar that it can compile. Empty if the
    model's own format has no grammar. A ToolGrammar is for the model's own format, rules are for the generic format."""


def prepare_tools(
    builder: PromptBuilder, body: ChatRequest, tools: list[Tool], *, must_call: bool, think: bool,
    output_format: OutputFormat = FREE_TEXT,
) -> PreparedTools:  # fmt: skip
    """Choose prompt options and grammars for `tools`, which must not be empty and must have passed `check_tools`.

    `output_format` applies to replies without a call. Schema keywords that cannot be enforced are left out of the
    grammar and logged. The schemas of strict tools are always enforced, in the generic format if the model's own format
    cannot enforce them. Raises EngineDiedError, and ApiError if the schema of a strict tool cannot be enforced, or if
    the tool calls of this model cannot be combined with an output format.
    """
    tools = [_replace_schema(tool, remove_nulls) if tool.function.parameters else tool for tool in tools]
    allow_parallel = body.parallel_tool_calls in {None, True} and find_tool_choice(body).allow_parallel
    formats, strict_functions = builder.formats, [tool.function for tool in tools if tool.function.strict]
    if formats.has_native_tools and all(
        is_enforced(function.parameters or {}, formats.call_enforcement) for function in strict_functions
    ):
        options = PromptOptions(
            think, make_template_tools(make_tool_definitions(tools)),
            allow_parallel=allow_parallel and formats.can_call_several_tools,
        )  # fmt: skip
        with contextlib.suppress(_StrictToolError):  # the generic format may be able to enforce the schema
            prepared_tools = _prepare_native_calls(formats, tools, options, output_format, must_call=must_call)
            if prepared_tools.grammars or not strict_functions:
                return prepared_tools

    def make_grammar(enforced_tools: list[Tool]) -> str:
        must_match = must_call or bool(output_format.rule)
        rules = grammars.make_tool_call_rules(enforced_tools, must_call=must_match, allow_parallel=allow_parallel)
        return f"({output_format.rule}) | {rules}" if output_format.rule and not must_call else rules

    _, output_grammars = _make_grammars(tools, make_grammar)
    return PreparedTools(PromptOptions(think), has_native_format=False, grammars=output_grammars)


def _prepare_native_calls(
    formats: ReplyFormats, tools: list[Tool], options: PromptOptions, output_format: OutputFormat, *, must_call: bool
) -> PreparedTools:
    def make_grammar(enforced_tools: list[Tool]) -> ToolGrammar | None:
        return _choose_grammar(formats, _enforce(options, enforced_tools), output_format, must_call=must_call)

    enforced_tools, output_grammars = _make_grammars(tools, make_grammar)
    if enforced_tools != tools:
        options = _enforce(options, enforced_tools)
    return PreparedTools(options, has_native_format=True, grammars=output_grammars)


def _enforce(options: PromptOptions, tools: list[Tool]) -> PromptOptions:
    return options._replace(enforced_tools=make_template_tools(make_tool_definitions(tools)))


def _make_grammars(tools: list[Tool], make_grammar: _MakeGrammar) -> tuple[list[Tool], list[ToolGrammar | str]]:
    """Return `tools` with the strongest schemas that a grammar can enforce, and their grammars, strongest first.

    If no grammar can enforce all schemas, up to `_MAX_ATTEMPTS` splits of the tools isolate those that need weaker
    schemas; after that, whole groups get weaker schemas. Raises _StrictToolError if such a group has a strict tool.
    """
    n_splits = itertools.count()
    tried_grammars: list[ToolGrammar | str | None] = []

    def enforce(group: list[Tool], level: int) -> list[Tool]:
        weaker = group
        for weaken in WEAKENINGS[level:]:
            weaker = [t if weaken is None or t.function.strict else _replace_schema(t, weaken) for t in group]
            try:
                tried_grammars.append(make_grammar(weaker))
            except (TemplateError, GrammarError) as error:
                if len(group) > 1 and next(n_splits) < _MAX_ATTEMPTS:
                    level, middle = WEAKENINGS.index(weaken), len(group) // 2
                    return enforce(group[:middle], level) + enforce(group[middle:], level)
                _report_weaker_schema(group, error)
            else:
                return weaker
        return weaker

    enforced_tools = enforce([_complete_schema(tool) for tool in tools], 0)
    is_whole = bool(tried_grammars) and next(n_splits) == 0
    grammar = tried_grammars[0] if is_whole else make_grammar(enforced_tools)
    if grammar is None:
        return enforced_tools, []
    return enforced_tools, [grammar, *_iterate_weaker(enforced_tools, grammar, make_grammar)]


def _report_weaker_schema(tools: list[Tool], error: Exception) -> None:
    """Log that the schemas of `tools` cannot be enforced in full. Raises _StrictToolError if a tool is strict."""
    strict_name = next((tool.function.name for tool in tools if tool.function.strict), None)
    if strict_name is not None:
        raise _StrictToolError(400, f"tools: the function {strict_name} is strict: {error}", param="tools") from error
    names = ", ".join(tool.function.name for tool in tools[:_MAX_LOGGED_NAMES])
    _log.warning(
        "the arguments of %s (%s) are enforced only in part: %s", format_count(len(tools), "function"), names, error
    )


def _iterate_weaker(
    tools: list[Tool], grammar: ToolGrammar | str, make_grammar: _MakeGrammar
) -> Iterator[ToolGrammar | str]:
    """Yield progressively looser alternatives to `grammar`, if the engine may be unable to compile it."""
    n_chars = len(grammar.gbnf if isinstance(grammar, ToolGrammar) else grammar)
    is_large = n_chars > _MAX_SAFE_GRAMMAR_CHARS
    for weaken in filter(None, WEAKENINGS):
        weaker_tools = [t if _is_schema_fixed(t, is_large=is_large) else _replace_schema(t, weaken) for t in tools]
        with contextlib.suppress(TemplateError, GrammarError):
            weaker = make_grammar(weaker_tools) if weaker_tools != tools else None
            if weaker is not None:
                yield weaker


def _is_schema_fixed(tool: Tool, *, is_large: bool) -> bool:
    """Return whether a tool keeps its schema in weaker grammars: it is strict, or its schema is certain to compile."""
    return bool(tool.function.strict) or (not is_large and is_simple(tool.function.parameters or {}))


def _complete_schema(tool: Tool) -> Tool:
    if not tool.function.parameters:
        tool = _replace_schema(tool, lambda _: NO_PARAMETERS)
    return _replace_schema(tool, lambda schema: close_objects(declare_required(schema)))


def _replace_schema(tool: Tool, weaken: Callable[[Any], Any]) -> Tool:
    parameters = weaken(tool.function.parameters or {})
    return msgspec.structs.replace(tool, function=msgspec.structs.replace(tool.function, parameters=parameters))


def _choose_grammar(
    formats: ReplyFormats, options: PromptOptions, output_format: OutputFormat, *, must_call: bool
) -> ToolGrammar | None:
    """Return the grammar for tool calls and the output format; None if the model's format has no grammar.

    Raises TemplateError if a schema cannot be enforced, and ApiError if tool calls cannot be combined with the output
    format.
    """
    grammar = formats.find(options).tool_grammar
    if not must_call and not output_format.rule:
        return grammar
    if grammar is not None and not any(trigger.is_pattern for trigger in grammar.triggers):
        marks = formats.find_content_marks(options)
        content_rule = add_content_marks(output_format.rule, marks) if output_format.rule else ""
        return msgspec.structs.replace(
            grammar, triggers=[], call_starts=[trigger.value for trigger in grammar.triggers],
            content_rule="" if must_call else content_rule,
        )  # fmt: skip
    if not must_call:
        message = (
            f"{output_format.param}: this model's tool calls cannot be combined with an output format. "
            f'Set tool_choice to "none" or "required", or leave out {output_format.param}.'
        )
        raise ApiError(400, message, param=output_format.param)
    return formats.find(options._replace(tool_choice="required")).tool_grammar
