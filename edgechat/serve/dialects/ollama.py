"""Ollama API: complete responses, and streams of one JSON object per line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec

from edgechat.prompt.reply_parser import ToolCallDelta
from edgechat.serve.choices import Choice, ChoiceDelta, Delta, UsageTotals, make_chat_logprobs
from edgechat.serve.dialects.dialect import Dialect
from edgechat.serve.errors import ApiError
from edgechat.serve.response_builder import ResponseBuilder

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000
# Names of the fields of the Ollama API, by the names of the fields to which `ollama_requests` converts them.
_FIELD_NAMES: Final = {
    "json_schema": "format", "reasoning_effort": "think", "max_tokens": "options.num_predict",
    "stop": "options.stop",
}  # fmt: skip


class OllamaDialect(Dialect):
    """Writes the response to a chat (`is_chat`) or to a completion in the form of the Ollama API.

    A tool call is one object of a stream, which is sent when the call is complete.
    """

    STREAM_MEDIA_TYPE: ClassVar[str] = "application/x-ndjson"

    def __init__(self, builder: ResponseBuilder, model_name: str, *, is_chat: bool) -> None:
        super().__init__(builder)
        self._model_name = model_name
        self._is_chat = is_chat
        self._started_at = time.monotonic()
        self._call: ToolCallDelta | None = None
        """Tool call that is being received."""
        self._finish_reason = "stop"

    def make_body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        choice = choices[0]
        calls = [make_call_object(i, call.name, call.arguments, call.id) for i, call in enumerate(choice.calls)]
        call_objects = [call for call in calls if call is not None]
        output = self._make_output(choice.content, choice.reasoning, call_objects)
        logprobs = {"logprobs": make_chat_logprobs(choice.logprobs)} if choice.logprobs else {}
        end = self._make_end_fields(choice.finish_reason or "stop", totals)
        return make_object(self._model_name, output | logprobs | end)

    def encode_delta(self, delta: Delta) -> Sequence[bytes]:
        if not isinstance(delta, ChoiceDelta):
            return []
        outputs = []
        logprobs = {"logprobs": make_chat_logprobs(delta.logprobs)} if delta.logprobs else {}
        if delta.reasoning or delta.content or logprobs:
            outputs.append(self._make_output(delta.content, delta.reasoning, []) | logprobs)
        call_objects = self._add_calls(delta.calls)
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
            call_objects += self._end_call()
        outputs += [self._make_output("", "", [call_object]) for call_object in call_objects]
        return [self._encode_line(output | {"done": False}) for output in outputs]

    def encode_ping(self) -> Sequence[bytes]:
        # Clients decode each line as JSON, so that an empty line would be an error.
        return [self._encode_line(self._make_output("", "", []) | {"done": False})]

    def encode_error(self, error: ApiError) -> Sequence[bytes]:
        return [msgspec.json.encode(make_error_body(error)) + b"\n"]

    def encode_end(self, totals: UsageTotals) -> Sequence[bytes]:
        return [self._encode_line(self._make_output("", "", []) | self._make_end_fields(self._finish_reason, totals))]

    def _make_output(self, content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        thinking = {"thinking": reasoning} if reasoning else {}
        call_fields = {"tool_calls": calls} if calls else {}
        if self._is_chat:
            return {"message": {"role": "assistant", "content": content, **thinking, **call_fields}}
        return {"response": content, **thinking, **call_fields}

    def _add_calls(self, deltas: Sequence[ToolCallDelta]) -> list[dict[str, Any]]:
        """Append new parts of tool calls; return the objects of the calls that are complete."""
        call_objects = []
        for delta in deltas:
            if self._call is not None and delta.call_index == self._call.call_index:
                self._call = self._call._replace(arguments=self._call.arguments + delta.arguments)
            else:
                call_objects += self._end_call()
                self._call = delta
        return call_objects

    def _end_call(self) -> list[dict[str, Any]]:
        call, self._call = self._call, None
        if call is None:
            return []
        call_object = make_call_object(call.call_index, call.name, call.arguments, call.id)
        return [] if call_object is None else [call_object]

    def _make_end_fields(self, finish_reason: str, totals: UsageTotals) -> dict[str, Any]:
        return {
            "done": True, "done_reason": "length" if finish_reason == "length" else "stop",
            **make_durations(totals, time.monotonic() - self._started_at),
        }  # fmt: skip

    def _encode_line(self, fields: dict[str, Any]) -> bytes:
        return msgspec.json.encode(make_object(self._model_name, fields)) + b"\n"


def make_object(model_name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Build a response object with the name of the model and the current time."""
    return {"model": model_name, "created_at": format_time(time.time_ns()), **fields}


def make_load_object(model_name: str, *, is_chat: bool, is_unload: bool) -> dict[str, Any]:
    """Build the response to a request without a prompt, which asks to load or to unload the model."""
    output = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    return make_object(model_name, output | {"done": True, "done_reason": "unload" if is_unload else "load"})


def make_call_object(index: int, name: str, arguments: str, call_id: str) -> dict[str, Any] | None:
    """Build the object of a tool call. Return None for a call whose arguments were cut off by the length limit."""
    try:
        decoded_arguments = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return None
    if not isinstance(decoded_arguments, dict):
        decoded_arguments = {"arguments": decoded_arguments}
    return {"id": call_id, "function": {"index": index, "name": name, "arguments": decoded_arguments}}


def make_durations(totals: UsageTotals, total_s: float) -> dict[str, int]:
    """Return the token counts and times of a response, in nanoseconds. Cached tokens count as prompt tokens."""
    usage, timings = totals.usage(), totals.timings()
    total_ns, prompt_ns = round(total_s * _NS_PER_S), round(timings["prompt_ms"] * _NS_PER_MS)
    # The engine measures no decode speed for a reply of one token. Clients divide by the duration.
    reply_ns = round(timings["predicted_ms"] * _NS_PER_MS) or max(1, total_ns - prompt_ns)
    return {
        "total_duration": total_ns, "load_duration": 0, "prompt_eval_count": usage["prompt_tokens"],
        "prompt_eval_duration": prompt_ns, "eval_count": usage["completion_tokens"], "eval_duration": reply_ns,
    }  # fmt: skip


def format_time(time_ns: int) -> str:
    """Format a Unix time in nanoseconds as in RFC 3339, in UTC."""
    seconds, fraction_ns = divmod(time_ns, _NS_PER_S)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction_ns:09d}Z"


def make_error_body(error: ApiError) -> dict[str, Any]:
    """Build the JSON body of an error response. Its message names the fields of the Ollama API."""
    message = str(error)
    name, separator, rest = message.partition(":")
    return {"error": f"{_FIELD_NAMES.get(name, name)}{separator}{rest}"}
