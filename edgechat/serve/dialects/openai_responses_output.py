"""Output items of the OpenAI Responses API, assembled from the output of the model, and their events in a stream."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import structs

from edgechat.prompt.reply_parser import ToolCallDelta
from edgechat.serve.choices import ChoiceDelta, make_chat_logprobs
from edgechat.serve.dialects.openai_responses_items import (
    CUSTOM_INPUT,
    CustomCallItem,
    FunctionCallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    SummaryText,
    encode_reasoning,
    make_item_id,
)

Event = tuple[str, dict[str, Any]]
"""Type of an event without the prefix `response.`, and its fields without the sequence number."""
_CALL_TYPES: Final = (FunctionCallItem, CustomCallItem)


class OutputWriter:
    """Writes the output items of one response one after another, and yields the events of a stream for them."""

    def __init__(
        self, response_id: str, custom_tools: Collection[str] = (),
        namespaces: Mapping[str, tuple[str, str]] | None = None, *, with_summary: bool = False,
        with_encoded_reasoning: bool = False,
    ) -> None:  # fmt: skip
        """Create a writer without output.

        `custom_tools` are the names of the tools whose calls have a text as input. `namespaces` has the namespace and
        the name of each function whose name for the model is made of both. The summary of the reasoning, and
        the encoded reasoning, repeat the reasoning for clients that read nothing else.
        """
        self.items: list[Item] = []
        """Complete items, and the open item as it was when it was opened."""
        self._response_id = response_id
        self._custom_tools = custom_tools
        self._namespaces = namespaces or {}
        self._with_summary = with_summary
        self._with_encoded_reasoning = with_encoded_reasoning
        self._is_open = False
        self._texts: list[str] = []
        """Text of the open item: its content, or the arguments of its call."""
        self._logprobs: list[dict[str, Any]] = []
        """Logprobs of the open message, and of output before it that has no item with logprobs."""
        self._n_sent_logprobs = 0
        self._call_index = -1
        """Index of the call whose item was opened last."""
        self._held_delta = ChoiceDelta(0)
        """Text that the model wrote after the open call, which later output may still extend."""

    def write(self, delta: ChoiceDelta) -> Iterator[Event]:
        """Append new output to the items."""
        self._logprobs += make_chat_logprobs(delta.logprobs)
        if self._is_open and isinstance(self.items[-1], _CALL_TYPES):
            # The text is held, because the arguments of the open call may not be complete.
            held = self._held_delta
            self._held_delta = ChoiceDelta(0, held.content + delta.content, held.reasoning + delta.reasoning)
        else:
            yield from self._write_text(delta)
        for call in delta.calls:
            yield from self._write_call(call)

    def finish(self, *, is_incomplete: bool) -> Iterator[Event]:
        """Close the last item. If the reply is complete but empty, add an empty message."""
        yield from self._write_held_text()
        has_reply = any(isinstance(item, (MessageItem, *_CALL_TYPES)) for item in self.items)
        if not has_reply and not (self.items and is_incomplete):
            yield from self._open(MessageItem)
        yield from self._close("incomplete" if is_incomplete else "completed")

    def _write_held_text(self) -> Iterator[Event]:
        held_delta, self._held_delta = self._held_delta, ChoiceDelta(0)
        if held_delta.content.strip() or held_delta.reasoning.strip():  # line breaks between calls are no message
            yield from self._write_text(held_delta)

    def _write_text(self, delta: ChoiceDelta) -> Iterator[Event]:
        if delta.reasoning:
            yield from self._open(ReasoningItem)
            self._texts.append(delta.reasoning)
            yield self._make_part_event("reasoning_text.delta", delta=delta.reasoning)
            if self._with_summary:
                yield self._make_summary_event("reasoning_summary_text.delta", delta=delta.reasoning)
        if delta.content:
            yield from self._open(MessageItem)
            self._texts.append(delta.content)
            logprobs = self._logprobs[self._n_sent_logprobs :]
            self._n_sent_logprobs = len(self._logprobs)
            yield self._make_part_event("output_text.delta", delta=delta.content, logprobs=logprobs)

    def _write_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.call_index > self._call_index:
            self._call_index = call.call_index
            yield from self._write_held_text()
            yield from self._close()
            if call.name in self._custom_tools:
                yield from self._open_item(CustomCallItem(
                    id=self._make_id(CustomCallItem), call_id=call.id, name=call.name, input="", status="in_progress"
                ))  # fmt: skip
            else:
                namespace, name = self._namespaces.get(call.name, (None, call.name))
                yield from self._open_item(FunctionCallItem(
                    id=self._make_id(FunctionCallItem), call_id=call.id, name=name, namespace=namespace, arguments="",
                    status="in_progress",
                ))  # fmt: skip
        if call.arguments and call.call_index == self._call_index:  # the parser extends no earlier call
            self._texts.append(call.arguments)
            if isinstance(self.items[-1], FunctionCallItem):
                yield self._make_event("function_call_arguments.delta", delta=call.arguments)

    def _open(self, item_type: type[MessageItem | ReasoningItem]) -> Iterator[Event]:
        """Open a message or reasoning, and close the open item; do nothing if an item of this type is open."""
        if self._is_open and isinstance(self.items[-1], item_type):
            return
        yield from self._close()
        item_id = self._make_id(item_type)
        if item_type is MessageItem:
            yield from self._open_item(MessageItem(id=item_id, role="assistant", content=(), status="in_progress"))
            yield self._make_part_event("content_part.added", part=OutputText(""))
            return
        yield from self._open_item(ReasoningItem(id=item_id, status="in_progress"))
        yield self._make_part_event("content_part.added", part=ReasoningText(""))
        if self._with_summary:
            yield self._make_summary_event("reasoning_summary_part.added", part=SummaryText(""))

    def _open_item(self, item: Item) -> Iterator[Event]:
        self.items.append(item)
        self._is_open = True
        yield "output_item.added", {"output_index": len(self.items) - 1, "item": item}

    def _close(self, status: Status = "completed") -> Iterator[Event]:
        """Close the open item; do nothing if no item is open."""
        if not self._is_open:
            return
        item, text = self.items[-1], "".join(self._texts)
        if isinstance(item, MessageItem):
            part = OutputText(text, logprobs=msgspec.Raw(msgspec.json.encode(self._logprobs)))
            yield self._make_part_event("output_text.done", text=text, logprobs=self._logprobs)
            yield self._make_part_event("content_part.done", part=part)
            self._logprobs, self._n_sent_logprobs = [], 0
            item = structs.replace(item, content=[part], status=status)
        elif isinstance(item, ReasoningItem):
            yield from self._close_reasoning(text)
            item = structs.replace(
                item, content=[ReasoningText(text)], summary=[SummaryText(text)] if self._with_summary else (),
                encrypted_content=encode_reasoning(text) if self._with_encoded_reasoning else None, status=status,
            )  # fmt: skip
        elif isinstance(item, CustomCallItem):
            text = _find_custom_input(text)
            yield self._make_event("custom_tool_call_input.delta", delta=text)
            yield self._make_event("custom_tool_call_input.done", input=text)
            item = structs.replace(item, input=text, status=status)
        elif isinstance(item, FunctionCallItem):
            yield self._make_event("function_call_arguments.done", arguments=text, name=item.name)
            item = structs.replace(item, arguments=text, status=status)
        self.items[-1] = item
        self._texts.clear()
        self._is_open = False
        yield "output_item.done", {"output_index": len(self.items) - 1, "item": item}

    def _close_reasoning(self, text: str) -> Iterator[Event]:
        yield self._make_part_event("reasoning_text.done", text=text)
        yield self._make_part_event("content_part.done", part=ReasoningText(text))
        if self._with_summary:
            yield self._make_summary_event("reasoning_summary_text.done", text=text)
            yield self._make_summary_event("reasoning_summary_part.done", part=SummaryText(text))

    def _make_id(self, item_type: type[Item]) -> str:
        return make_item_id(item_type, self._response_id, len(self.items))

    def _make_event(self, event_type: str, **fields: Any) -> Event:
        return event_type, {"output_index": len(self.items) - 1, "item_id": self.items[-1].id, **fields}

    def _make_part_event(self, event_type: str, **fields: Any) -> Event:
        return self._make_event(event_type, content_index=0, **fields)

    def _make_summary_event(self, event_type: str, **fields: Any) -> Event:
        return self._make_event(event_type, summary_index=0, **fields)


def make_output(writer: OutputWriter, delta: ChoiceDelta, *, is_incomplete: bool) -> Sequence[Item]:
    """Return the output items of a complete reply, which `delta` contains."""
    for _ in (*writer.write(delta), *writer.finish(is_incomplete=is_incomplete)):
        pass  # a complete response has no events
    return writer.items


def _find_custom_input(arguments: str) -> str:
    """Return the input of a call of a custom tool. If the arguments were cut, they are returned as they are."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return arguments
    text = value.get(CUSTOM_INPUT, "") if isinstance(value, dict) else arguments
    return text if isinstance(text, str) else arguments
