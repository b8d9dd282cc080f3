"""Items of the OpenAI Responses API: messages, tool calls, tool results and reasoning.

The same types describe the input of a request, the output of a response, and stored responses.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Raw, Struct, structs

from edgechat.serve.content import read_content, read_result
from edgechat.serve.errors import ApiError
from edgechat.serve.message_schemas import (
    AssistantMessage,
    ChatMessage,
    DeveloperMessage,
    FunctionCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)

Status = Literal["in_progress", "completed", "incomplete"]
_ROLES: Final[Mapping[str, type[UserMessage | SystemMessage | DeveloperMessage]]] = {
    "user": UserMessage,
    "system": SystemMessage,
    "developer": DeveloperMessage,
}
NO_LOGPROBS: Final = Raw(b"[]")
CUSTOM_INPUT: Final = "input"
"""Name of the only argument of the function that stands for a custom tool."""
_ENCODED_PREFIX: Final = "edgechat:"
"""Beginning of `encrypted_content`, which distinguishes it from that of other services."""

_MAX_INDEX_DIGITS: Final = 9  # int() refuses more than 4,300 digits


class InputText(Struct, frozen=True, tag_field="type", tag="input_text"):
    """Text of a message that the user or the program wrote."""

    text: str


class OutputText(Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text that the model wrote."""

    text: str
    annotations: Sequence[Any] = ()
    logprobs: Raw = NO_LOGPROBS
    """Logprobs of the tokens in JSON, which takes less memory than objects."""


class ReasoningText(Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """Reasoning of the model."""

    text: str


class SummaryText(Struct, frozen=True, tag_field="type", tag="summary_text"):
    """Summary of the reasoning."""

    text: str


class MessageItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """Message of any role."""

    role: Literal["user", "system", "developer", "assistant"]
    content: Sequence[InputText | OutputText]
    id: str = ""
    status: Status = "completed"


class ReasoningItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """Reasoning before a message or a tool call."""

    content: Sequence[ReasoningText] = ()
    summary: Sequence[SummaryText] = ()
    encrypted_content: str | None = None
    id: str = ""
    status: Status = "completed"


class FunctionCallItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """Call of a function."""

    name: str
    arguments: str
    call_id: str
    namespace: str | None = None
    """Name of the namespace tool that contains the function."""
    id: str = ""
    status: Status = "completed"


class FunctionResultItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """Result of the call of a function."""

    output: str
    call_id: str
    id: str = ""
    status: Status = "completed"


class CustomCallItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="custom_tool_call"):
    """Call of a custom tool."""

    name: str
    input: str
    call_id: str
    id: str = ""
    status: Status = "completed"


class CustomResultItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="custom_tool_call_output"):
    """Result of the call of a custom tool."""

    output: str
    call_id: str
    id: str = ""
    status: Status = "completed"


Item = MessageItem | ReasoningItem | FunctionCallItem | FunctionResultItem | CustomCallItem | CustomResultItem
ItemFinder = Callable[[str, str], Item]
"""Function that returns the stored item with an id. Its second argument is the path of the reference in the request."""
_ID_PREFIXES: Final[Mapping[type[Struct], str]] = {
    MessageItem: "msg", ReasoningItem: "rs", FunctionCallItem: "fc", FunctionResultItem: "fco", CustomCallItem: "ctc",
    CustomResultItem: "ctco",
}  # fmt: skip


def make_item_id(item_type: type[Item], response_id: str, index: int) -> str:
    """Return the id of an item, from which `split_item_id` finds the response."""
    return f"{_ID_PREFIXES[item_type]}_{response_id.partition('_')[2]}x{index}"


def split_item_id(item_id: str) -> tuple[str, int]:
    """Return the id of the response and the index in its output for the id of an item; ("", 0) for other ids."""
    key, _, index = item_id.partition("_")[2].rpartition("x")
    is_index = index.isdecimal() and index.isascii() and len(index) <= _MAX_INDEX_DIGITS
    return (f"resp_{key}", int(index)) if key and is_index else ("", 0)


def join_name(namespace: str | None, name: str) -> str:
    """Return the name by which the model calls a function of a namespace."""
    return f"{namespace}.{name}" if namespace else name


def with_item_id(item: Item, response_id: str, index: int) -> Item:
    """Return an input item with an id: its own, or one that is made of `response_id` and its `index`."""
    return item if item.id else structs.replace(item, id=make_item_id(type(item), f"{response_id}i", index))


# Input items of a request


def read_items(value: str | Sequence[Mapping[str, Any]] | None, find_item: ItemFinder) -> list[Item]:
    """Read the `input` of a request, which may be a text.

    `find_item` resolves references to stored items. Raises ApiError for items of unsupported types and for content
    other than text.
    """
    if isinstance(value, str):
        return [MessageItem(role="user", content=[InputText(value)])]
    return [_read_item(item, f"input[{i}]", find_item) for i, item in enumerate(value or ())]


def _read_item(item: Mapping[str, Any], path: str, find_item: ItemFinder) -> Item:
    item_type = item.get("type")
    if item_type is None:
        item_type = "message" if "role" in item else "item_reference" if "id" in item else None
    if item_type == "item_reference":
        return find_item(_get_string(item, "id", path), f"{path}.id")
    read = _READERS.get(item_type) if isinstance(item_type, str) else None
    if read is None:
        message = f"{path}.type: items of type {str(item_type)[:60]!r} are not supported."
        raise ApiError(400, message, param=f"{path}.type", code="unsupported_item")
    return read(item, path)


def _read_message(item: Mapping[str, Any], path: str) -> Item:
    role = item.get("role")
    if role not in (*_ROLES, "assistant"):  # no set, because the role may be any JSON value
        roles = ", ".join((*_ROLES, "assistant"))
        raise ApiError(400, f"{path}.role: must be one of {roles}.", param=f"{path}.role", code="invalid_value")
    is_reply = role == "assistant"
    content = read_content(item.get("content"), f"{path}.content", is_reply=is_reply)
    if content.calls or content.results:
        message = f"{path}.content: tool calls and their results must be items of their own."
        raise ApiError(400, message, param=f"{path}.content", code="unsupported_content")
    part: InputText | OutputText = OutputText(content.text) if is_reply else InputText(content.text)
    return MessageItem(role=role, content=[part], id=_get_id(item))


def _read_reasoning(item: Mapping[str, Any], path: str) -> Item:
    encoded = item.get("encrypted_content")
    text, summary = (
        read_content(item.get(name) or [], f"{path}.{name}", is_reply=True) for name in ("content", "summary")
    )
    return ReasoningItem(
        content=[ReasoningText(text.reasoning + text.text)] if text.reasoning or text.text else [],
        summary=[SummaryText(summary.reasoning + summary.text)] if summary.reasoning or summary.text else [],
        encrypted_content=encoded if isinstance(encoded, str) and encoded.startswith(_ENCODED_PREFIX) else None,
        id=_get_id(item),
    )  # fmt: skip


def _read_function_call(item: Mapping[str, Any], path: str) -> Item:
    arguments = item.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False) if arguments is not None else ""
    return FunctionCallItem(
        name=_get_string(item, "name", path), arguments=arguments, call_id=_get_call_id(item), id=_get_id(item),
        status=_get_status(item), namespace=_get_optional_string(item, "namespace"),
    )  # fmt: skip


def _read_function_result(item: Mapping[str, Any], path: str) -> Item:
    output = read_result(item.get("output"), f"{path}.output")
    return FunctionResultItem(output=output, call_id=_get_call_id(item), id=_get_id(item))


def _read_custom_call(item: Mapping[str, Any], path: str) -> Item:
    return CustomCallItem(
        name=_get_string(item, "name", path), input=_get_string(item, "input", path), call_id=_get_call_id(item),
        id=_get_id(item), status=_get_status(item),
    )  # fmt: skip


def _read_custom_result(item: Mapping[str, Any], path: str) -> Item:
    output = read_result(item.get("output"), f"{path}.output")
    return CustomResultItem(output=output, call_id=_get_call_id(item), id=_get_id(item))


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Item]]] = {
    "message": _read_message, "reasoning": _read_reasoning, "function_call": _read_function_call,
    "function_call_output": _read_function_result, "custom_tool_call": _read_custom_call,
    "custom_tool_call_output": _read_custom_result,
}  # fmt: skip


def _get_string(item: Mapping[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        problem = "missing" if value is None else "must be a string"
        raise ApiError(400, f"{path}.{name}: {problem}.", param=f"{path}.{name}", code="invalid_value")
    return value


def _get_call_id(item: Mapping[str, Any]) -> str:
    return _get_optional_string(item, "call_id") or _get_id(item)


def _get_id(item: Mapping[str, Any]) -> str:
    return _get_optional_string(item, "id") or ""


def _get_optional_string(item: Mapping[str, Any], name: str) -> str | None:
    value = item.get(name)
    return value if isinstance(value, str) else None


def _get_status(item: Mapping[str, Any]) -> Status:
    return "incomplete" if item.get("status") == "incomplete" else "completed"


# Messages of the chat request


def make_messages(items: Sequence[Item]) -> list[ChatMessage]:
    """Convert items to messages. The reasoning, the text and the calls of one reply become one message."""
    return list(_iterate_messages(items))


class _Reply:
    """Reply that is being assembled from its items."""

    def __init__(self) -> None:
        self.reasoning = ""
        self.text: str | None = None
        self.calls: list[ToolCall] = []

    def end(self) -> Iterator[ChatMessage]:
        """Yield the message of the reply, if it has items, and begin the next reply."""
        if self.reasoning or self.text is not None or self.calls:
            yield AssistantMessage(self.text, self.reasoning or None, tool_calls=self.calls or None)
        self.reasoning, self.text, self.calls = "", None, []


def _iterate_messages(items: Sequence[Item]) -> Iterator[ChatMessage]:
    reply = _Reply()
    for item in items:
        if isinstance(item, (FunctionCallItem, CustomCallItem)):
            name = join_name(item.namespace, item.name) if isinstance(item, FunctionCallItem) else item.name
            reply.calls.append(ToolCall(FunctionCall(name, _make_arguments(item)), item.call_id))
            continue
        is_reasoning = isinstance(item, ReasoningItem)
        is_text = isinstance(item, MessageItem) and item.role == "assistant"
        if not (is_reasoning or is_text) or reply.text is not None or reply.calls:
            yield from reply.end()
        if isinstance(item, ReasoningItem):
            reply.reasoning += find_reasoning(item)
        elif isinstance(item, (FunctionResultItem, CustomResultItem)):
            yield ToolMessage(item.output, item.call_id)
        elif is_text:
            reply.text = _join_texts(item)
        else:
            yield _ROLES[item.role](_join_texts(item))
    yield from reply.end()


def _join_texts(item: MessageItem) -> str:
    return "".join(part.text for part in item.content)


def _make_arguments(item: FunctionCallItem | CustomCallItem) -> str | dict[str, Any]:
    """Return the arguments of a call. Those of a call that was cut may be no JSON, and become a text argument."""
    if isinstance(item, CustomCallItem):
        return {CUSTOM_INPUT: item.input}
    return item.arguments if item.status != "incomplete" else {"arguments": item.arguments}


def find_reasoning(item: ReasoningItem) -> str:
    """Return the text of a reasoning item: its content, or what `encode_reasoning` made of it, or its summary."""
    text = "".join(part.text for part in item.content)
    if not text and item.encrypted_content is not None:
        try:
            text = base64.b64decode(item.encrypted_content.removeprefix(_ENCODED_PREFIX), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            text = ""
    return text or "".join(part.text for part in item.summary)


def encode_reasoning(text: str) -> str:
    """Encode reasoning as `encrypted_content`, for clients that send back nothing else of it. It is not encrypted."""
    return _ENCODED_PREFIX + base64.b64encode(text.encode("utf-8", "replace")).decode()
