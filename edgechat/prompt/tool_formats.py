"""Tool call formats of model families: detects a chat template's format, and parses calls from streamed replies."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from edgechat.engine.stop_strings import find_partial_match_length
from edgechat.prompt.reasoning import find_control_tokens


class ToolDefinition(msgspec.Struct, frozen=True):
    """Function that the model can call."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments."""


class ToolFormat(msgspec.Struct, frozen=True):
    """Tool call format of a model family: JSON objects with a name and arguments, between markers."""

    prefix: str
    """Text before the first tool call."""
    separator: str
    """Text between two tool calls."""
    suffix: str
    """Text after the last tool call."""
    trigger: str
    """Part of `prefix` that marks the beginning of tool calls; "" if tool calls begin with a brace."""
    name_key: str = "name"
    arguments_key: str = "arguments"
    template_supports_tools: bool = True
    """False if the chat template ignores tools, so that the system prompt must describe them."""

    def make_call_wrapper(self, name: str) -> tuple[str, str]:
        """Return the text before and after the arguments in a call of the function `name`."""
        return f'{{"{self.name_key}": {json.dumps(name)}, "{self.arguments_key}": ', "}"

    @property
    def control_tokens(self) -> list[str]:
        """Control tokens in prefix, separator and suffix, which the engine must not remove from its output."""
        return find_control_tokens(self.prefix + self.separator + self.suffix)

    def format_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        """Format tool calls, given as pairs of function name and JSON arguments, as the model generates them."""
        texts = (arguments.join(self.make_call_wrapper(name)) for name, arguments in calls)
        return f"{self.prefix}{self.separator.join(texts)}{self.suffix}"


_HERMES: Final = ToolFormat("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "<tool_call>")
_LLAMA: Final = ToolFormat("", "; ", "", "", "name", "parameters")

# Markers from the chat templates of the model families. More specific formats come first.
TOOL_FORMATS: Final = (
    ToolFormat("[TOOL_CALLS][", ", ", "]", "[TOOL_CALLS]"),  # Mistral
    ToolFormat("<|tool_call|>[", ", ", "]", "<|tool_call|>"),  # Granite
    ToolFormat("<|START_ACTION|>[", ", ", "]<|END_ACTION|>", "<|START_ACTION|>", "tool_name", "parameters"),  # Command
    _HERMES,  # Qwen, Hermes, SmolLM3
    _LLAMA,  # Llama 3
)
# Markers of tool call formats that are not JSON. Models with these formats use the generic format.
_NON_JSON_MARKERS: Final = ("<function=", "<arg_key>", "<|channel|>commentary", "[ARGS]")
GENERIC_TOOL_FORMAT: Final = msgspec.structs.replace(_HERMES, template_supports_tools=False)


def detect_tool_format(template: str) -> ToolFormat:
    """Return the tool format whose markers occur in a chat template; `GENERIC_TOOL_FORMAT` if none occurs."""
    if "tools" not in template or any(marker in template for marker in _NON_JSON_MARKERS):
        return GENERIC_TOOL_FORMAT
    for tool_format in TOOL_FORMATS:
        if tool_format.trigger and tool_format.trigger in template:
            return tool_format
    if '"parameters": ' in template and "<|start_header_id|>" in template:
        return _LLAMA
    return GENERIC_TOOL_FORMAT


def format_tool_instructions(tools: Sequence[ToolDefinition]) -> str:
    """Return a system prompt that describes `tools` and the generic call format."""
    schemas = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in make_template_tools(tools))
    example = f'{GENERIC_TOOL_FORMAT.prefix}{{"name": <name>, "arguments": <object>}}{GENERIC_TOOL_FORMAT.suffix}'
    return (
        "You can call functions. Here they are, with JSON schemas of their arguments:\n"
        f"{schemas}\nTo call one, answer with its name and arguments in JSON between these marks:\n{example}"
    )


def make_template_tools(tools: Sequence[ToolDefinition]) -> list[dict[str, Any]]:
    """Convert tools to the format of the OpenAI API, which chat templates expect."""
    return [{"type": "function", "function": msgspec.structs.asdict(tool)} for tool in tools]


class ParsedToolCall(msgspec.Struct, frozen=True):
    """Tool call in a reply of the model."""

    name: str
    arguments: str
    """Arguments in JSON, exactly as the model generated them."""
    id: str


class ToolCallParser:
    """Splits a streamed reply into text and tool calls. Holds back text that may be the beginning of a marker."""

    def __init__(self, tool_format: ToolFormat | None, *, must_call: bool = False) -> None:
        """If `tool_format` is None, the reply is only text. If `must_call` is True, the reply is only tool calls."""
        self._format = tool_format
        self._pending_text = ""
        self._in_calls = must_call and tool_format is not None
        self._has_started = self._in_calls

    def feed(self, text: str) -> tuple[str, list[ParsedToolCall]]:
        """Append generated text; return the new text outside tool calls, and the tool calls that are now complete."""
        tool_format = self._format
        if tool_format is None:
            return text, []
        self._pending_text += text
        visible_text = ""
        if not self._in_calls:
            if tool_format.trigger:
                start = self._pending_text.find(tool_format.trigger)
                end = (
                    len(self._pending_text) - find_partial_match_length(self._pending_text, tool_format.trigger)
                    if start < 0
                    else start
                )
                visible_text, self._pending_text = self._pending_text[:end], self._pending_text[end:]
                self._in_calls = start >= 0
            elif self._has_started or not self._pending_text.startswith("{"):
                visible_text, self._pending_text = self._pending_text, ""
            else:
                self._in_calls = True
            self._has_started = self._has_started or bool(visible_text)
        return visible_text, self._take_calls(tool_format) if self._in_calls else []

    def finish(self) -> str:
        """Finish the reply; return the text that was held back. Discards an incomplete tool call."""
        pending_text, self._pending_text = self._pending_text, ""
        return "" if self._in_calls else pending_text

    def _take_calls(self, tool_format: ToolFormat) -> list[ParsedToolCall]:
        calls = []
        while (start := self._pending_text.find("{")) >= 0:
            try:
                call, length = _decoder.raw_decode(self._pending_text[start:])
            except (ValueError, RecursionError):
                break  # the call is incomplete or not valid JSON
            name, call_text = str(call.get(tool_format.name_key)), self._pending_text[start : start + length]
            text_before, text_after = tool_format.make_call_wrapper(name)
            arguments = call_text[len(text_before) : -len(text_after)]
            calls.append(ParsedToolCall(name, arguments, f"call_{secrets.token_hex(12)}"))
            self._pending_text = self._pending_text[start + length :]
        return calls


_decoder = json.JSONDecoder()
