"""Parser of growing replies: splits the output of a model into reasoning, content and tool calls."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

import msgspec

from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt.bare_calls import find_bare_calls, may_become_bare_call
from edgechat.prompt.content_marks import remove_constraint
from edgechat.prompt.reply_format import ReplyFormat
from edgechat.prompt.thoughts import ThoughtFinder
from edgechat.prompt.tool_formats import split_calls

# Each parse reads the whole output again. With these limits, parsing takes at most 5 % of the time, and new text
# appears within 0.1 s if a parse takes less than 5 ms.
_MIN_INTERVAL_S: Final = 0.03
_INTERVAL_PER_PARSE_S: Final = 20.0
# Noncharacter that is appended to a finished output. It is not part of any delimiter, so the parser returns all text
# before it.
_END: Final = "\ufddf"


class ParsedToolCall(msgspec.Struct, frozen=True):
    """Tool call in a reply of the model."""

    name: str
    arguments: str
    """Arguments in JSON; incomplete while the reply is growing."""
    id: str


class ToolCallDelta(NamedTuple):
    """New part of a tool call."""

    call_index: int
    name: str
    """Name of the tool in the first delta of a call; "" in later deltas."""
    id: str
    arguments: str
    """New text of the arguments."""


class ReplyDelta(NamedTuple):
    """New output since the last delta."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ParsedReply(NamedTuple):
    """Parsed output of a model: a complete reply, or the beginning of a reply."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[ParsedToolCall, ...] = ()


class ReplyParser:
    """Parses one growing reply. `reply` is the reply so far; it is complete after `finish`."""

    def __init__(
        self, call_chat_library: Callable[..., Any], reply_format: ReplyFormat, thoughts: ThoughtFinder, *,
        generation_prompt: str | None = None, tool_names: Collection[str] = (),
        use_generic_calls: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Start parsing a reply.

        `generation_prompt` is the end of the prompt that belongs to the reply, by default that of `reply_format`. If it
        contains the beginning of a continued reply, the parser returns only the new text. `tool_names` are the tools
        that the model can call; a reply that consists only of a call in plain JSON, or in a code block, counts as a
        call. With `use_generic_calls`, calls have the generic format of `edgechat.prompt.tool_formats`.
        """
        self.reply = ParsedReply()
        self._call_chat_library = call_chat_library
        self._format = reply_format
        self._thoughts = thoughts
        self._generation_prompt = reply_format.generation_prompt if generation_prompt is None else generation_prompt
        self._tool_names = tool_names
        self._use_generic_calls = use_generic_calls
        self._clock = clock
        self._text = ""
        self._is_verbatim = not reply_format.parser and not tool_names and not thoughts.can_begin_anywhere
        self._next_parse_at = 0.0
        self._call_ids: list[str] = []
        self._base = ParsedReply()
        self._last_parse, self._n_parsed_chars = ParsedReply(), 0
        if self._generation_prompt and reply_format.parser:
            self._base = self._parse(is_final=True)
            self._last_parse, self._n_parsed_chars = ParsedReply(), 0

    def feed(self, text: str) -> ReplyDelta:
        """Append generated text; return the new output, without text that cannot be classified yet."""
        self._text += text
        if self._is_verbatim and not self._thoughts.may_start_with_tag(self._text):
            return self._advance(ParsedReply("", self._text))
        started_at = self._clock()
        if started_at < self._next_parse_at:
            return ReplyDelta()
        parsed_reply = self._parse(is_final=False)
        if self._tool_names and not parsed_reply.calls and may_become_bare_call(parsed_reply.content):
            parsed_reply = parsed_reply._replace(content=self._base.content)
        delta = self._advance(parsed_reply)
        duration_s = self._clock() - started_at
        self._next_parse_at = started_at + max(_MIN_INTERVAL_S, _INTERVAL_PER_PARSE_S * duration_s)
        return delta

    def finish(self) -> ReplyDelta:
        """Finish the reply; return the output that `feed` held back.

        If the output ends reasoning without having started it, the content before the end tag becomes reasoning in
        `reply`, but not in the deltas, which were returned as content.
        """
        parsed_reply = self._find_bare_call(self._find_call_in_reasoning(self._parse(is_final=True)))
        if not (parsed_reply.content or parsed_reply.calls):
            reasoning = self._thoughts.strip_partial_end(parsed_reply.reasoning, self._format.thinking_ends[:1])
            parsed_reply = parsed_reply._replace(reasoning=reasoning)
        delta = self._advance(parsed_reply, is_final=True)
        reply = _subtract(parsed_reply, self._base)
        if not reply.reasoning and self._base == ParsedReply():
            reasoning, content = self._thoughts.split_unopened(reply.content)
            reply = reply._replace(reasoning=reasoning, content=content)
        self.reply = reply
        return delta

    def _parse(self, *, is_final: bool) -> ParsedReply:
        """Parse all output received so far.

        If the chat library fails, return the last result; if `is_final`, also add the text since then as content.
        """
        reasoning, content = "", self._text
        calls: list[dict[str, str]] = []
        if self._format.parser:
            try:
                result = self._call_parser(self._text, is_final=is_final)
            except (TemplateError, EngineDiedError):
                if not is_final:
                    return self._last_parse
                if self._n_parsed_chars:
                    rest = self._text[self._n_parsed_chars :]
                    return self._last_parse._replace(content=self._last_parse.content + rest)
                result = {"reasoning": "", "content": self._text, "tool_calls": [], "unparsed": ""}
            reasoning, content = result["reasoning"], result["content"] + result["unparsed"]
            calls = result["tool_calls"]
        if self._use_generic_calls:
            content, generic_calls = split_calls(content, is_final=is_final)
            calls = [{"name": name, "arguments": arguments, "id": ""} for name, arguments in generic_calls]
        inner_reasoning, content = self._thoughts.split(
            content, is_final=is_final, follows_reasoning=bool(reasoning.strip())
        )
        reasoning = "\n\n".join(filter(None, (reasoning.strip("\n"), inner_reasoning)))
        content = content.lstrip("\n") if reasoning else content
        self._last_parse = ParsedReply(reasoning, content, self._make_calls(calls))
        self._n_parsed_chars = len(self._text)
        return self._last_parse

    def _make_calls(self, calls: list[dict[str, str]]) -> tuple[ParsedToolCall, ...]:
        return tuple(ParsedToolCall(c["name"], c["arguments"], self._call_id(i, c["id"])) for i, c in enumerate(calls))

    def _call_id(self, index: int, id_in_output: str) -> str:
        if index == len(self._call_ids):
            self._call_ids.append("")
        if not self._call_ids[index]:
            self._call_ids[index] = id_in_output or f"call_{secrets.token_hex(12)}"
        return self._call_ids[index]

    def _call_parser(self, text: str, *, is_final: bool) -> dict[str, Any]:
        """Parse `text` with the chat library. Raises TemplateError and EngineDiedError."""

        def parse(text: str) -> dict[str, Any]:
            result: dict[str, Any] = self._call_chat_library(
                op="parse", parser=self._format.parser, format=self._format.parser_format, is_partial=not is_final,
                generation_prompt=self._generation_prompt, text=remove_constraint(text),
            )  # fmt: skip
            return result

        result = parse(text)
        if not is_final:
            return result
        ended_result = parse(text + _END)
        for name in ("reasoning", "content", "unparsed"):
            ended_result[name] = ended_result[name].replace(_END, "")
        # In a call that was cut by a length limit, `_END` is a syntax error, and the parser treats the call as text.
        has_same_calls = _names_and_arguments(ended_result) == _names_and_arguments(result)
        return ended_result if has_same_calls else result

    def _find_call_in_reasoning(self, parsed_reply: ParsedReply) -> ParsedReply:
        """Extract tool calls from the end of reasoning that has no end tag; return other replies unchanged.

        Some models forget to end their reasoning before they call a tool.
        """
        grammar, ends = self._format.tool_grammar, self._format.thinking_ends
        if grammar is None or not ends or not self._tool_names or parsed_reply.calls or parsed_reply.content.strip():
            return parsed_reply
        starts = [self._text.find(t.value) for t in grammar.triggers if not t.is_pattern and t.value in self._text]
        if not starts:
            return parsed_reply
        text = f"{self._text[: min(starts)]}{ends[0]}{self._text[min(starts) :]}"
        try:
            result = self._call_parser(text, is_final=True)
        except (TemplateError, EngineDiedError):
            return parsed_reply
        calls = self._make_calls(result["tool_calls"])
        if not calls or (result["content"] + result["unparsed"]).strip():
            return parsed_reply
        return ParsedReply(result["reasoning"].strip("\n"), parsed_reply.content, calls)

    def _find_bare_call(self, parsed_reply: ParsedReply) -> ParsedReply:
        """Convert content that consists of calls in plain JSON to tool calls; return other replies unchanged."""
        if not self._tool_names or parsed_reply.calls:
            return parsed_reply
        calls = tuple(
            ParsedToolCall(name, arguments, self._call_id(i, ""))
            for i, (name, arguments) in enumerate(find_bare_calls(parsed_reply.content, self._tool_names))
        )
        return ParsedReply(parsed_reply.reasoning, "", calls) if calls else parsed_reply

    def _advance(self, parsed_reply: ParsedReply, *, is_final: bool = False) -> ReplyDelta:
        """Update the reply so far to `parsed_reply`, and return the new output.

        Text that was already returned never changes: while `parsed_reply` does not begin with that text, nothing is
        returned.
        """
        old, new = self.reply, _subtract(parsed_reply, self._base)
        reasoning, content = _new_part(old.reasoning, new.reasoning), _new_part(old.content, new.content)
        calls: list[ParsedToolCall] = list(old.calls)
        deltas: list[ToolCallDelta] = []
        for i, call in enumerate(new.calls):
            is_growing = i == len(new.calls) - 1 and not is_final
            if i < len(calls):
                arguments, name = _new_part(calls[i].arguments, call.arguments), ""
                calls[i] = call if arguments else calls[i]
            elif is_growing and not (call.name and call.arguments):  # the name can still grow
                break
            else:
                arguments, name = call.arguments, call.name
                calls.append(call)
            if arguments or name:
                deltas.append(ToolCallDelta(i, name, call.id, arguments))
        self.reply = ParsedReply(old.reasoning + reasoning, old.content + content, tuple(calls))
        return ReplyDelta(reasoning, content, tuple(deltas))


def _names_and_arguments(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["name"], call["arguments"]) for call in result["tool_calls"]]


def _new_part(old: str, new: str) -> str:
    return new[len(old) :] if new.startswith(old) else ""


def _subtract(parsed_reply: ParsedReply, base: ParsedReply) -> ParsedReply:
    """Return a reply without `base`, the beginning of the reply that is part of the prompt."""
    reasoning = _skip_common(base.reasoning, parsed_reply.reasoning)
    return ParsedReply(reasoning, _skip_common(base.content, parsed_reply.content), parsed_reply.calls)


def _skip_common(old: str, new: str) -> str:
    """Return `new` without the prefix that it has in common with `old`."""
    n_common = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), min(len(old), len(new)))
    return new[n_common:]
