"""Translation of requests of the OpenAI Responses API to chat requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import structs

from edgechat.engine import protocol
from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.choices import Choice
from edgechat.serve.dialects.openai_responses_items import CUSTOM_INPUT, Item, join_name, make_messages
from edgechat.serve.dialects.openai_responses_schemas import (
    NamedSchemaFormat,
    ResponsesFunction,
    ResponsesRequest,
    ResponsesTool,
    TextOptions,
)
from edgechat.serve.errors import ApiError
from edgechat.serve.message_schemas import SystemMessage
from edgechat.serve.schemas import ChatRequest, Function, JsonSchema, SchemaFormat, TextFormat, Tool, ToolChoice

ENCODED_REASONING: Final = "reasoning.encrypted_content"
_LOGPROBS: Final = "message.output_text.logprobs"
_UNSUPPORTED_FIELDS: Final = {
    "background": "Responses are generated while the client waits.",
    "conversation": "Use previous_response_id, or send the whole conversation as input.",
    "prompt": "Send its text as instructions and input.",
}
"""Fields of the API that request unsupported features, with hints for the error messages."""
_MOVED_FIELDS: Final = {
    "messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format", "reasoning_effort": "reasoning.effort", "functions": "tools",
    "grammar": "text.format", "json_schema": "text.format", "structured_outputs": "text.format",
    "guided_json": "text.format", "guided_regex": "text.format", "guided_choice": "text.format",
    "guided_grammar": "text.format", "regex": "text.format",
}  # fmt: skip
"""Fields of other APIs, and the fields of this API that have their purpose."""
_CHAT_FIELDS: Final = (
    (re.compile(r"response_format(\.json_schema|$)?"), "text.format"),
    (re.compile(r"messages\[\d+\]\.tool_calls\[\d+\]\.function\.arguments"), "input"),
    (re.compile(r"messages(\[\d+\])?"), "input"), (re.compile(r"(tools\[\d+\])\.function"), r"\1"),
    (re.compile(r"max_tokens"), "max_output_tokens"),
)  # fmt: skip
"""Beginnings of names of fields of chat requests, and their names in this API."""


class ResponsesBuilder(ChatResponseBuilder):
    """Builds the engine request of one response. Errors name the fields of the Responses API."""

    ID_PREFIX = "resp_"

    async def build_requests(self) -> tuple[list[protocol.Generate], list[Choice]]:
        try:
            return await super().build_requests()
        except ApiError as error:
            raise _rename_param(error) from error

    @property
    def grammar_param(self) -> str | None:
        return "text.format" if super().grammar_param == "response_format" else super().grammar_param


class InputCountingBuilder(ResponsesBuilder):
    """Builds the engine request of a response whose input tokens are only counted."""

    ALLOWS_PREFILL = True


def check_supported_fields(body: ResponsesRequest) -> None:
    """Raise ApiError if the request asks for a feature that edgechat does not support."""
    for name, hint in _UNSUPPORTED_FIELDS.items():
        if getattr(body, name):
            raise ApiError(400, f"{name}: not supported. {hint}", param=name, code="unsupported_parameter")
    for name, new_name in _MOVED_FIELDS.items():
        if getattr(body, name) is not None:
            message = f"{name}: not a parameter of the Responses API. Use {new_name}."
            raise ApiError(400, message, param=name, code="unsupported_parameter")


def make_chat_request(body: ResponsesRequest, items: Sequence[Item]) -> ChatRequest:
    """Translate a request to a chat request; `items` are the whole conversation.

    Raises ApiError for an empty conversation, and for tools that only OpenAI's service can use.
    """
    messages = make_messages(items)
    if body.instructions:
        messages.insert(0, SystemMessage(body.instructions))
    if not messages:
        raise ApiError(400, "input: missing.", param="input", code="missing_required_parameter")
    text_format = body.text.format if body.text is not None else None
    if isinstance(text_format, NamedSchemaFormat):
        schema = JsonSchema(text_format.schema, text_format.name, text_format.description, text_format.strict)
        response_format: Any = SchemaFormat(schema)
    else:
        response_format = text_format
    return ChatRequest(
        messages=messages, model=body.model, max_tokens=body.max_output_tokens, temperature=body.temperature,
        top_p=body.top_p, top_k=body.top_k, min_p=body.min_p, seed=body.seed, stream=body.stream,
        tools=list(_convert_tools(body)) or None,
        tool_choice=_convert_tool_choice(body.tool_choice), parallel_tool_calls=body.parallel_tool_calls,
        response_format=response_format, reasoning=body.reasoning,
        logprobs=bool(body.top_logprobs) or _LOGPROBS in (body.include or ()), top_logprobs=body.top_logprobs,
    )  # fmt: skip


def find_custom_tools(body: ResponsesRequest) -> frozenset[str]:
    """Return the names of the custom tools of a request."""
    return frozenset(tool.name for tool in body.tools or () if tool.type == "custom" and tool.name is not None)


def find_namespaces(body: ResponsesRequest) -> dict[str, tuple[str, str]]:
    """Return the namespace and the name of each function in a namespace, by the name that the model uses."""
    return {
        join_name(tool.name, function.name): (tool.name, function.name)
        for tool in body.tools or () if tool.type == "namespace" and tool.name
        for function in tool.tools or () if function.name
    }  # fmt: skip


def make_echo_fields(body: ResponsesRequest) -> dict[str, msgspec.Raw]:
    """Return the fields of a request that are repeated in its response, encoded, which takes the least memory."""
    reasoning = body.reasoning
    choice = body.tool_choice
    fields: dict[str, Any] = {
        "instructions": body.instructions, "max_output_tokens": _to_int(body.max_output_tokens),
        "max_tool_calls": _to_int(body.max_tool_calls), "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is None or bool(body.parallel_tool_calls),
        "previous_response_id": body.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None, "summary": find_summary_option(body),
        },
        "store": stores_response(body), "temperature": body.temperature, "top_p": body.top_p,
        "text": _make_text_echo(body.text),
        "tool_choice": _make_choice_echo(choice) if isinstance(choice, ToolChoice) else choice or "auto",
        "tools": [_make_tool_echo(tool) for tool in body.tools or () if not _is_offline_search(tool)],
        "top_logprobs": _to_int(body.top_logprobs) or 0, "truncation": "disabled",
    }  # fmt: skip
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()}


def stores_response(body: ResponsesRequest) -> bool:
    """Return whether the response is stored, so that later requests can continue it."""
    return body.store is None or bool(body.store)


def find_summary_option(body: ResponsesRequest) -> str | None:
    """Return the kind of summary that the request asks for; None if the reasoning needs no summary."""
    reasoning = body.reasoning
    return (reasoning.summary or reasoning.generate_summary) if reasoning is not None else None


def _convert_tools(body: ResponsesRequest) -> Iterator[Tool]:
    for i, tool in enumerate(body.tools or ()):
        path = f"tools[{i}]"
        if tool.type == "namespace":
            for j, function in enumerate(tool.tools or ()):
                if function.type != "function":
                    message = f"{path}.tools[{j}].type: the tools of a namespace must be of type function."
                    raise ApiError(400, message, param=f"{path}.tools[{j}].type", code="unsupported_tool")
                converted = _convert_tool(function, f"{path}.tools[{j}]").function
                yield Tool(structs.replace(converted, name=join_name(tool.name, converted.name)))
        elif not _is_offline_search(tool):
            yield _convert_tool(tool, path)


def _is_offline_search(tool: ResponsesTool) -> bool:
    is_search = tool.type.startswith("web_search")
    return is_search and tool.external_web_access is not None and not tool.external_web_access


def _convert_tool(tool: ResponsesFunction, path: str) -> Tool:
    if tool.type not in {"function", "custom"}:
        message = f"{path}.type: tools of type {tool.type[:60]!r} are not supported. Use the types function or custom."
        raise ApiError(400, message, param=f"{path}.type", code="unsupported_tool")
    if tool.name is None:
        raise ApiError(400, f"{path}.name: missing.", param=f"{path}.name", code="missing_required_parameter")
    if tool.type == "function":
        return Tool(Function(tool.name, tool.description, tool.parameters, tool.strict))
    if isinstance(tool.format, dict) and tool.format.get("type") not in {"text", None}:
        message = f"{path}.format: only free text is supported. Leave out format, or use a tool of type function."
        raise ApiError(400, message, param=f"{path}.format", code="unsupported_format")
    properties = {CUSTOM_INPUT: {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": [CUSTOM_INPUT], "additionalProperties": False}
    return Tool(Function(tool.name, tool.description, parameters))


def _convert_tool_choice(choice: str | ToolChoice | None) -> str | ToolChoice | None:
    if isinstance(choice, ToolChoice) and choice.type == "custom":
        return structs.replace(choice, type="function")
    return choice


def _make_text_echo(text: TextOptions | None) -> dict[str, Any]:
    text = text or TextOptions()
    return {"format": text.format or TextFormat(), "verbosity": text.verbosity or "medium"}


def _make_tool_echo(tool: ResponsesFunction) -> dict[str, Any]:
    common_fields = {"type": tool.type, "name": tool.name, "description": tool.description}
    if isinstance(tool, ResponsesTool) and tool.type == "namespace":
        return common_fields | {"tools": [_make_tool_echo(function) for function in tool.tools or ()]}
    if tool.type == "custom":
        return common_fields | {"format": {"type": "text"}}
    return common_fields | {
        "parameters": tool.parameters, "strict": None if tool.strict is None else bool(tool.strict)
    }  # fmt: skip


def _make_choice_echo(choice: ToolChoice) -> dict[str, Any]:
    if choice.type == "allowed_tools":
        names = [tool.name or (tool.function and tool.function.name) for tool in choice.tools or ()]
        return {
            "type": "allowed_tools", "mode": choice.mode or "auto",
            "tools": [{"type": "function", "name": name} for name in names],
        }  # fmt: skip
    name = choice.name or (choice.function and choice.function.name)
    return {"type": choice.type or "function", "name": name}


def _to_int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _rename_param(error: ApiError) -> ApiError:
    """Return an error that names the field of this API instead of the field of the chat request."""
    param = error.param
    for pattern, name in _CHAT_FIELDS:
        if param is not None and pattern.match(param):
            new_param = pattern.sub(name, param, count=1)
            message = str(error).replace(param, new_param, 1)
            return ApiError(error.status, message, param=new_param, code=error.code)
    return error
