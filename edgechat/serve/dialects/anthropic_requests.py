"""Translation of requests of the Anthropic Messages API to chat requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgechat.serve.chat import ChatResponseBuilder
from edgechat.serve.content import read_content
from edgechat.serve.dialects.anthropic_schemas import (
    AnthropicTool,
    AnthropicToolChoice,
    Blocks,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    ThinkingConfig,
)
from edgechat.serve.errors import ApiError
from edgechat.serve.message_schemas import AssistantMessage, ChatMessage, SystemMessage, ToolMessage, UserMessage
from edgechat.serve.schemas import ChatRequest, Function, ThinkingOptions, Tool, ToolChoice

_ERROR_PREFIX = "Error: "


class MessageResponseBuilder(ChatResponseBuilder):
    """Builds the engine request of one message, with an ID in the form of Anthropic's API."""

    ID_PREFIX = "msg_"


class CountingBuilder(MessageResponseBuilder):
    """Builds the engine request of a message whose tokens are only counted."""

    ALLOWS_PREFILL = True


def make_chat_request(body: CountTokensRequest, *, thinks_by_default: bool) -> ChatRequest:
    """Translate a request to a chat request.

    `thinks_by_default` is True if the server's settings turn on reasoning for requests without `thinking`. Raises
    ApiError for content other than text, and for tools and servers that only Anthropic's service can use.
    """
    if body.mcp_servers:
        raise ApiError(400, "mcp_servers: not supported. Send the tools of the servers in tools.", param="mcp_servers")
    messages = list(_convert_system(body.system))
    for i, message in enumerate(body.messages):
        messages += _convert_message(message, f"messages[{i}]")
    output_config, choice = body.output_config, body.tool_choice
    output_format = body.output_format or (output_config.format if output_config is not None else None)
    fields: dict[str, Any] = {}
    if isinstance(body, MessagesRequest):
        names = ("max_tokens", "temperature", "top_k", "top_p", "stream")
        fields = {name: getattr(body, name) for name in names} | {"stop": body.stop_sequences}
    return ChatRequest(
        messages=messages, model=body.model,
        tools=[_convert_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())] or None,
        tool_choice=_convert_tool_choice(choice) if choice is not None else None,
        parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
        thinking=_convert_thinking(body.thinking, thinks_by_default=thinks_by_default),
        reasoning_effort=output_config.effort if output_config is not None else None,
        json_schema=output_format.schema if output_format is not None else None,
        **fields,
    )  # fmt: skip


def _convert_system(system: Blocks | None) -> Iterator[ChatMessage]:
    text = read_content(system, "system", is_reply=False).text
    if text:
        yield SystemMessage(text)


def _convert_message(message: InputMessage, path: str) -> Iterator[ChatMessage]:
    """Convert a message; each tool result in its content becomes a separate message."""
    is_reply = message.role == "assistant"
    blocks = message.content
    if isinstance(blocks, list):
        blocks = [_prepare_block(block) for block in blocks]
        blocks = _separate_texts(blocks) if not is_reply else blocks
    content = read_content(blocks, f"{path}.content", is_reply=is_reply)
    if is_reply:
        yield AssistantMessage(content.text, content.reasoning, tool_calls=content.calls or None)
    for call_id, text in content.results:
        yield ToolMessage(text, call_id)
    if message.role == "system":
        yield SystemMessage(content.text)
    elif not is_reply and (content.text or not content.results):
        yield UserMessage(content.text)


def _prepare_block(block: dict[str, Any]) -> dict[str, Any]:
    """Convert a document of plain text to a text block, and mark the result of a failed tool call as an error."""
    if block.get("type") == "tool_result" and block.get("is_error") is True:
        content = block.get("content")
        if isinstance(content, list):
            return {**block, "content": [{"type": "text", "text": _ERROR_PREFIX}, *map(_convert_document, content)]}
        if isinstance(content, str | None) and not (content or "").startswith(_ERROR_PREFIX):
            return {**block, "content": _ERROR_PREFIX + (content or "")}
    elif block.get("type") == "tool_result" and isinstance(block.get("content"), list):
        return {**block, "content": [_convert_document(part) for part in block["content"]]}
    converted: dict[str, Any] = _convert_document(block)
    return converted


def _separate_texts(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `blocks` with a newline between two texts that follow each other: each is a text of its own."""
    separated: list[dict[str, Any]] = []
    for block in blocks:
        text = block.get("text")
        follows_text = bool(separated) and separated[-1].get("type") == "text"
        if follows_text and block.get("type") == "text" and isinstance(text, str) and not text.startswith("\n"):
            block = {**block, "text": f"\n{text}"}  # noqa: PLW2901  (a changed copy)
        separated.append(block)
    return separated


def _convert_document(block: Any) -> Any:
    """Convert a document of plain text to a text block; return any other block unchanged."""
    if not isinstance(block, dict):
        return block
    source = block.get("source")
    if block.get("type") == "document" and isinstance(source, dict) and source.get("type") == "text":
        texts = [block.get("title"), block.get("context"), source.get("data")]
        return {"type": "text", "text": "\n".join(text for text in texts if isinstance(text, str) and text)}
    return block


def _convert_tool(tool: AnthropicTool, path: str) -> Tool:
    if tool.type not in {None, "custom"}:
        message = f"{path}.type: tools that Anthropic defines are not supported. Define the tool by an input_schema."
        raise ApiError(400, message, param=f"{path}.type")
    if tool.input_schema is None:
        raise ApiError(400, f"{path}.input_schema: missing.", param=f"{path}.input_schema")
    return Tool(Function(tool.name, tool.description, tool.input_schema, tool.strict))


def _convert_tool_choice(choice: AnthropicToolChoice) -> str | ToolChoice:
    if choice.type != "tool":
        return choice.type
    if choice.name is None:
        raise ApiError(400, "tool_choice.name: missing.", param="tool_choice.name")
    return ToolChoice("tool", name=choice.name)


def _convert_thinking(thinking: ThinkingConfig | None, *, thinks_by_default: bool) -> ThinkingOptions | bool:
    if thinking is None:
        return thinks_by_default
    is_enabled = thinking.type != "disabled"
    return ThinkingOptions("enabled", thinking.budget_tokens) if is_enabled else ThinkingOptions("disabled")
