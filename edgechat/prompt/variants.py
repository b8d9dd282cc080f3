"""Variants of a conversation, for chat templates that reject it or leave out a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.roles import fold_system_prompt, order_roles


def iterate_variants(messages: Sequence[PromptMessage]) -> Iterator[Sequence[PromptMessage]]:
    """Yield `messages`, and then the variants to try if the chat template rejects them, the smallest change first."""
    yield messages
    tried: list[Sequence[PromptMessage]] = [messages]
    for variant in _iterate_orders(messages):
        if variant not in tried:
            tried.append(variant)
            yield variant
    for variant in tried:
        yield [msgspec.structs.replace(message, has_text_parts=True) for message in variant]


def _iterate_orders(messages: Sequence[PromptMessage]) -> Iterator[Sequence[PromptMessage]]:
    """Yield the orders of the messages to try, some of them more than once."""
    calls = [messages, split_texts(messages)]
    orders = [*calls, *map(order_roles, calls)]
    for order in orders:
        yield order
        folded = fold_system_prompt(order)
        if folded is not None:
            yield folded


def split_texts(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """Return the messages with the text beside a tool call as a reply of its own before the call.

    Many templates render either the text or the calls of a reply.
    """
    split: list[PromptMessage] = []
    for message in messages:
        if message.extra_fields.get("tool_calls") and message.content.strip():
            split.append(msgspec.structs.replace(message, extra_fields={}))
            split.append(msgspec.structs.replace(message, content="", reasoning=""))
        else:
            split.append(message)
    return split
