"""Anthropic Messages API: complete messages, streams of named events, and the list of models."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from edgechat.prompt.reply_parser import ToolCallDelta
from edgechat.serve.choices import Choice, ChoiceDelta, Delta, PromptProgress, UsageTotals
from edgechat.serve.dialects.dialect import Dialect, encode_named_event
from edgechat.serve.errors import ApiError
from edgechat.serve.response_builder import ResponseBuilder

SIGNATURE: Final = "ZWRnZWNoYXQ="
"""Signature of thinking blocks. Clients send it back with the block; edgechat does not check it."""
_STOP_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_ERROR_TYPES: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
_NO_ID_CHARACTER: Final = re.compile(r"[^a-zA-Z0-9_-]")


class AnthropicDialect(Dialect):
    """Writes one message: a sequence of thinking, text and tool_use blocks, of which a stream opens one at a time."""

    def __init__(self, builder: ResponseBuilder, stop_sequences: Sequence[str]) -> None:
        """Create the dialect of a response; `stop_sequences` are those of the request."""
        super().__init__(builder)
        self._stop_sequences = frozenset(stop_sequences)
        self._is_started = False
        self._n_prompt = self._n_cached = 0
        self._block_type = ""
        """Type of the open block; "" if no block is open."""
        self._n_blocks = 0
        """Number of blocks opened so far."""
        self._call_index = -1
        """Index of the call whose block was opened last."""
        self._held_delta = ChoiceDelta(0)
        """Text that the model wrote after the open tool_use block, which later output may still extend."""
        self._stop_fields: dict[str, str | None] = {"stop_reason": "end_turn", "stop_sequence": None}

    # Complete messages

    def make_body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        choice = choices[0]
        content: list[dict[str, Any]] = []
        if choice.reasoning:
            content.append({"type": "thinking", "thinking": choice.reasoning, "signature": SIGNATURE})
        if choice.content:
            content.append({"type": "text", "text": choice.content})
        content += [_make_tool_use_block(call.id, call.name, _parse_input(call.arguments)) for call in choice.calls]
        message = self._make_message(content, _make_usage_from(totals))
        return message | self._make_stop_fields(choice.finish_reason or "length", choice.stop_string)

    def _make_message(self, content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.builder.id, "type": "message", "role": "assistant", "model": self.builder.model_name,
            "content": content, "stop_reason": None, "stop_sequence": None, "usage": usage,
        }  # fmt: skip

    def _make_stop_fields(self, finish_reason: str, stop_string: str) -> dict[str, str | None]:
        if stop_string and stop_string in self._stop_sequences and finish_reason != "tool_calls":
            return {"stop_reason": "stop_sequence", "stop_sequence": stop_string}
        return {"stop_reason": _STOP_REASONS[finish_reason], "stop_sequence": None}

    # Streams

    def encode_delta(self, delta: Delta) -> Sequence[bytes]:
        if isinstance(delta, PromptProgress):
            self._n_prompt, self._n_cached = delta.n_total, delta.n_cached
            return list(self._start())
        return [*self._start(), *self._write(delta)] if isinstance(delta, ChoiceDelta) else []

    def encode_ping(self) -> Sequence[bytes]:
        return [*self._start(), _encode_event("ping")]  # some clients expect that message_start comes first

    def encode_error(self, error: ApiError) -> Sequence[bytes]:
        return [_encode_event(**make_error_body(error))]

    def encode_end(self, totals: UsageTotals) -> Sequence[bytes]:
        usage = _make_usage_from(totals)
        message_delta = _encode_event("message_delta", delta=self._stop_fields, usage=usage)
        return [
            *self._start(), *self._write_held_text(), *self._close_block(), message_delta, _encode_event("message_stop")
        ]  # fmt: skip

    def _start(self) -> Iterator[bytes]:
        if not self._is_started:
            self._is_started = True
            message = self._make_message([], _make_usage(self._n_prompt, self._n_cached, 0))
            yield _encode_event("message_start", message=message)

    def _write(self, delta: ChoiceDelta) -> Iterator[bytes]:
        if delta.finish_reason is not None:
            self._stop_fields = self._make_stop_fields(delta.finish_reason, delta.stop_string)
        if self._block_type == "tool_use":
            # The text is held, because the arguments of the open call may not be complete.
            held = self._held_delta
            self._held_delta = ChoiceDelta(0, held.content + delta.content, held.reasoning + delta.reasoning)
        else:
            yield from self._write_text(delta)
        for call in delta.calls:
            yield from self._write_call(call)

    def _write_held_text(self) -> Iterator[bytes]:
        held_delta, self._held_delta = self._held_delta, ChoiceDelta(0)
        yield from self._write_text(held_delta)

    def _write_text(self, delta: ChoiceDelta) -> Iterator[bytes]:
        if delta.reasoning:
            yield from self._open_block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._encode_block_delta("thinking_delta", "thinking", delta.reasoning)
        if delta.content:
            yield from self._open_block("text", {"type": "text", "text": ""})
            yield self._encode_block_delta("text_delta", "text", delta.content)

    def _write_call(self, call: ToolCallDelta) -> Iterator[bytes]:
        if call.call_index > self._call_index:
            self._call_index = call.call_index
            yield from self._write_held_text()
            yield from self._close_block()
            yield from self._open_block("tool_use", _make_tool_use_block(call.id, call.name, {}))
        if call.arguments and call.call_index == self._call_index:  # the parser extends no earlier call
            yield self._encode_block_delta("input_json_delta", "partial_json", call.arguments)

    def _open_block(self, block_type: str, block: dict[str, Any]) -> Iterator[bytes]:
        """Open a block, and close the open one; do nothing if a block of this type is open."""
        if block_type != self._block_type:
            yield from self._close_block()
            self._block_type = block_type
            self._n_blocks += 1
            yield _encode_event("content_block_start", index=self._n_blocks - 1, content_block=block)

    def _close_block(self) -> Iterator[bytes]:
        if self._block_type == "thinking":
            yield self._encode_block_delta("signature_delta", "signature", SIGNATURE)
        if self._block_type:
            self._block_type = ""
            yield _encode_event("content_block_stop", index=self._n_blocks - 1)

    def _encode_block_delta(self, delta_type: str, name: str, text: str) -> bytes:
        delta = {"type": delta_type, name: text}
        return _encode_event("content_block_delta", index=self._n_blocks - 1, delta=delta)


def make_error_body(error: ApiError) -> dict[str, Any]:
    """Build the JSON body of an error response."""
    default_type = "invalid_request_error" if error.status < 500 else "api_error"  # noqa: PLR2004
    # Agents shorten the conversation if an error begins with these words.
    prefix = "prompt is too long: " if error.code == "context_length_exceeded" else ""
    details = {"type": _ERROR_TYPES.get(error.status, default_type), "message": f"{prefix}{error}"}
    return {"type": "error", "error": details}


def make_model_list(names: Sequence[str], started_at: int) -> dict[str, Any]:
    """Build the list of models in the form of Anthropic's API; `started_at` is in seconds since 1970."""
    created_at = dt.datetime.fromtimestamp(started_at, dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    models = [{"type": "model", "id": name, "display_name": name, "created_at": created_at} for name in names]
    return {"data": models, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _make_usage_from(totals: UsageTotals) -> dict[str, Any]:
    usage = totals.usage()
    n_cached = usage["prompt_tokens_details"]["cached_tokens"]
    return _make_usage(usage["prompt_tokens"], n_cached, usage["completion_tokens"]) | totals.cache_miss_fields()


def _make_usage(n_prompt: int, n_cached: int, n_output: int) -> dict[str, int]:
    """Build the `usage` object. Its input tokens exclude those from the prompt cache."""
    return {
        "input_tokens": n_prompt - n_cached, "cache_creation_input_tokens": 0, "cache_read_input_tokens": n_cached,
        "output_tokens": n_output,
    }  # fmt: skip


def _make_tool_use_block(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    tool_use_id = "toolu_" + _NO_ID_CHARACTER.sub("_", call_id.removeprefix("call_"))
    return {"type": "tool_use", "id": tool_use_id, "name": name, "input": arguments}


def _parse_input(arguments: str) -> dict[str, Any]:
    """Decode the arguments of a call; arguments that are no JSON object, such as cut ones, get the key `arguments`."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


def _encode_event(type: str, **fields: Any) -> bytes:  # noqa: A002  (the name of the field)
    return encode_named_event(type, fields)
