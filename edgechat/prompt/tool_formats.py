"""Generic format of tool calls, which a system prompt explains to models whose chat template has no tools."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from edgechat.engine.stop_strings import find_partial_match_length


class ToolDefinition(msgspec.Struct, frozen=True):
    """Function that the model can call."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments."""


# Call format of Hermes, which many models know.
CALL_START: Final = "<tool_call>"
CALL_PREFIX: Final = "<tool_call>\n"
CALL_SUFFIX: Final = "\n</tool_call>"
CALL_SEPARATOR: Final = f"{CALL_SUFFIX}\n{CALL_PREFIX}"


def make_call_wrapper(name: str) -> tuple[str, str]:
    """Return the text before and after the arguments in a call of the function `name`."""
    return f'{{"name": {json.dumps(name)}, "arguments": ', "}"


def format_calls(calls: Sequence[tuple[str, str]]) -> str:
    """Format tool calls, given as pairs of function name and JSON arguments, as the model generates them."""
    texts = (arguments.join(make_call_wrapper(name)) for name, arguments in calls)
    return f"{CALL_PREFIX}{CALL_SEPARATOR.join(texts)}{CALL_SUFFIX}"


def format_tool_instructions(tools: Sequence[ToolDefinition]) -> str:
    """Return a system prompt that describes `tools` and the format of the calls."""
    schemas = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in make_template_tools(tools))
    example = f'{CALL_PREFIX}{{"name": <name>, "arguments": <object>}}{CALL_SUFFIX}'
    return (
        "You can call functions. Here they are, with JSON schemas of their arguments:\n"
        f"{schemas}\nTo call one, answer with its name and arguments in JSON between these marks:\n{example}"
    )


def make_template_tools(tools: Sequence[ToolDefinition]) -> list[dict[str, Any]]:
    """Convert tools to the format of the OpenAI API, which chat templates expect."""
    return [{"type": "function", "function": msgspec.structs.asdict(tool)} for tool in tools]


def split_calls(content: str, *, is_final: bool) -> tuple[str, list[tuple[str, str]]]:
    """Split the content of a reply into text and calls, as pairs of function name and JSON arguments.

    Unless `is_final`, text at the end that may become a call is left out. The last call may be incomplete: if it has a
    complete name, it is returned with the arguments so far, otherwise it is discarded.
    """
    start = content.find(CALL_START)
    if start < 0:
        n_pending = 0 if is_final else find_partial_match_length(content, CALL_START)
        return content[: len(content) - n_pending], []
    calls = []
    position = start
    while (position := content.find("{", position)) >= 0:
        try:
            call, end = _decoder.raw_decode(content, position)
        except (ValueError, RecursionError):
            calls += _read_started_call(content, position)
            break
        header = _CALL_HEADER.match(content, position)
        if header is not None:
            _, arguments_end = _decoder.raw_decode(content, header.end())
            arguments = content[header.end() : arguments_end]
        else:
            arguments = json.dumps(call.get("arguments", {}), ensure_ascii=False)
        calls.append((str(call.get("name")), arguments))
        position = end
    return content[:start].rstrip("\n") if calls else content[:start], calls


def _read_started_call(content: str, position: int) -> list[tuple[str, str]]:
    """Return a list with the incomplete or invalid call at `position`; empty if its arguments have not begun."""
    header = _CALL_HEADER.match(content, position)
    if header is None:
        return []
    try:
        _, end = _decoder.raw_decode(content, header.end())  # only the end of the call is missing
    except (ValueError, RecursionError):
        arguments = content[header.end() :].partition(CALL_SUFFIX)[0]
        end = header.end() + len(arguments) - find_partial_match_length(arguments, CALL_SUFFIX)
    return [(json.loads(header[1]), content[header.end() : end])]


# The beginning of a call, up to its arguments; the group is the name as a JSON string.
_CALL_HEADER: Final = re.compile(
    r'\{\s*"name"\s*:\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*")\s*,\s*"arguments"\s*:\s*(?=\{|$)'
)
_decoder = json.JSONDecoder()
