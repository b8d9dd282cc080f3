"""Conversion of requests of the Ollama API to the requests of the OpenAI API, which the server executes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, Final

from edgechat.serve.dialects.ollama_schemas import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaGenerationParams,
    OllamaMessage,
    OllamaOptions,
)
from edgechat.serve.errors import ApiError, decode_json_text
from edgechat.serve.message_schemas import (
    AssistantMessage,
    ChatMessage,
    FunctionCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from edgechat.serve.schemas import MAX_INT, ChatRequest, CompletionRequest

# Options that have the same name and meaning in the OpenAI API or its extensions.
_SAME_OPTIONS: Final = (
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
    "mirostat", "mirostat_tau", "mirostat_eta", "seed", "stop",
)  # fmt: skip
_NO_PENALTIES: Final = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_ZERO_DURATION: Final = re.compile(r"0+(\.0*)?(ns|us|µs|ms|s|m|h)?")


def is_load_request(body: OllamaChatRequest | OllamaGenerateRequest) -> bool:
    """Return whether a request has no prompt: it only asks to load or to unload the model."""
    if isinstance(body, OllamaChatRequest):
        return not body.messages
    return not body.prompt


def is_unload_request(body: OllamaChatRequest | OllamaGenerateRequest) -> bool:
    """Return whether a request without a prompt asks to unload the model, by a `keep_alive` of 0."""
    keep_alive = body.keep_alive
    is_zero = _ZERO_DURATION.fullmatch(keep_alive) is not None if isinstance(keep_alive, str) else keep_alive == 0
    return is_load_request(body) and is_zero


def make_chat_request(body: OllamaChatRequest) -> ChatRequest:
    """Convert a chat. Raises ApiError for images, unknown roles and an invalid format."""
    fields = _make_params(body) | _make_thinking_fields(body)
    if body.logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    if body.tools:
        fields |= {"tools": body.tools, "tool_choice": body.tool_choice}
    return ChatRequest(messages=make_messages(body.messages or []), **fields)


def make_generate_request(body: OllamaGenerateRequest) -> ChatRequest | CompletionRequest:
    """Convert a completion: to a chat with one user message, or with `raw` or `suffix` to a text completion.

    Raises ApiError for images, a template and an invalid format.
    """
    if body.images:
        raise _make_image_error("images")
    if body.template:
        raise ApiError(400, "template: not supported. Render the prompt in the client, and set raw.")
    params, prompt = _make_params(body), body.prompt or ""
    if body.raw or body.suffix:
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        return CompletionRequest(prompt=prompt, suffix=body.suffix, logprobs=logprobs, **params)
    messages: list[ChatMessage] = [SystemMessage(body.system)] if body.system else []
    fields = params | _make_thinking_fields(body)
    if body.logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return ChatRequest(messages=[*messages, UserMessage(prompt)], **fields)


def _make_params(body: OllamaGenerationParams) -> dict[str, Any]:
    fields = make_sampling_fields(body.options or OllamaOptions())
    output_schema = body.format
    if isinstance(output_schema, str) and output_schema not in ("", "json"):
        output_schema = decode_json_text(output_schema, "format")
        if not isinstance(output_schema, dict):
            raise ApiError(400, 'format: must be "json" or a JSON schema.', param="format")
    if output_schema == "json":
        output_schema = {"type": "object"}
    if isinstance(output_schema, dict):
        fields["json_schema"] = output_schema
    return fields | {"model": body.model, "stream": body.stream is None or bool(body.stream)}


def make_sampling_fields(options: OllamaOptions) -> dict[str, Any]:
    """Convert sampling options to fields of `GenerationParams`."""
    fields: dict[str, Any] = {}
    if options.repeat_last_n == 0:
        fields |= _NO_PENALTIES
        options_to_copy = tuple(name for name in _SAME_OPTIONS if name not in _NO_PENALTIES)
    else:
        options_to_copy = _SAME_OPTIONS
    for name in options_to_copy:
        value = getattr(options, name)
        if value is not None:
            fields[name] = value
    if options.top_k is not None:
        fields["top_k"] = max(-1, min(int(options.top_k), MAX_INT))
    if options.num_predict is not None:
        n_tokens = int(options.num_predict)
        fields["max_tokens"] = min(n_tokens, MAX_INT) if n_tokens > 0 else -1
    return fields


def _make_thinking_fields(body: OllamaGenerationParams) -> dict[str, Any]:
    if body.think is None:
        return {}
    if isinstance(body.think, bool):
        return {"enable_thinking": body.think}
    return {"enable_thinking": True, "reasoning_effort": body.think}


def make_messages(messages: Sequence[OllamaMessage]) -> list[ChatMessage]:
    """Convert messages. Tool calls and their results get IDs, which Ollama's clients need not send.

    A result belongs to the first open call of the tool that it names, or else to the first open call. Raises ApiError
    for images and unknown roles.
    """
    converted_messages: list[ChatMessage] = []
    open_calls: list[tuple[str, str]] = []  # ID and tool name of the calls without a result
    n_calls = 0
    for i, message in enumerate(messages):
        if message.images:
            raise _make_image_error(f"messages[{i}].images")
        role = message.role.lower()
        if role == "assistant":
            calls = []
            for call in message.tool_calls or ():
                call_id, n_calls = call.id or _choose_call_id(n_calls, open_calls), n_calls + 1
                calls.append(ToolCall(FunctionCall(call.function.name, call.function.arguments), call_id, "function"))
                open_calls.append((call_id, call.function.name))
            reply = AssistantMessage(message.content, message.thinking or None, tool_calls=calls or None)
            converted_messages.append(reply)
        elif role == "tool":
            call_id = message.tool_call_id or _choose_call(open_calls, message.tool_name or message.name)
            open_calls = [open_call for open_call in open_calls if open_call[0] != call_id]
            converted_messages.append(ToolMessage(message.content, call_id))
        elif role == "user":
            converted_messages.append(UserMessage(message.content))
        elif role in ("system", "developer"):
            converted_messages.append(SystemMessage(message.content))
        else:
            problem = f"must be system, user, assistant or tool, got {message.role[:40]!r}"
            raise ApiError(400, f"messages[{i}].role: {problem}.", param="messages")
    return converted_messages


def _choose_call_id(number: int, open_calls: list[tuple[str, str]]) -> str:
    """Return an id for a call without one, which no open call has."""
    used_ids = {call_id for call_id, _ in open_calls}
    return next(call_id for i in itertools.count(number) if (call_id := f"call_{i}") not in used_ids)


def _choose_call(open_calls: Sequence[tuple[str, str]], tool_name: str | None) -> str:
    call_ids = [call_id for call_id, name in open_calls if name == tool_name] or [i for i, _ in open_calls]
    return call_ids[0] if call_ids else ""


def _make_image_error(path: str) -> ApiError:
    return ApiError(400, f"{path}: images are not supported. Send text only.", param=path, code="unsupported_content")
