"""Variants of a conversation, for chat templates that reject it or leave out a message."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.roles import fold_system_prompt, merge_consecutive, order_roles

# Content of the reply that is inserted between a tool call, or its result, and a user message, so that roles alternate.
_INTERRUPTED: Final = "(interrupted)"


def iterate_variants(messages: Sequence[PromptMessage]) -> Iterator[Sequence[PromptMessage]]:
    """Yield `messages`, then variants to try if the chat template rejects them, those with small changes first."""
    variants: list[Sequence[PromptMessage]] = []
    for variant in iterate_orders(messages):
        variants.append(variant)
        yield variant
    for variant in variants:
        yield [msgspec.structs.replace(message, has_text_parts=True) for message in variant]


def iterate_orders(messages: Sequence[PromptMessage]) -> Iterator[Sequence[PromptMessage]]:
    """Yield `messages`, then variants with other orders of roles, without duplicates."""
    previous_variants: list[Sequence[PromptMessage]] = [messages]
    yield messages
    for order in _list_orders(messages):
        for variant in (order, fold_system_prompt(order)):
            if variant is not None and variant not in previous_variants:
                previous_variants.append(variant)
                yield variant


def _list_orders(messages: Sequence[PromptMessage]) -> list[Sequence[PromptMessage]]:
    variants: list[Sequence[PromptMessage]] = [messages]
    if any(message.role == "tool" or "tool_calls" in message.extra_fields for message in messages):
        moved_messages = move_results(messages)
        variants += [
            split_texts(messages),
            split_calls(messages),
            moved_messages,
            split_calls(split_texts(moved_messages)),
        ]
    ordered_variants = [*map(order_roles, variants)]
    return [*variants, *ordered_variants, *(alternate_roles(ordered_variants[i]) for i in (0, -1))]


def move_results(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """Move each tool result directly after its call.

    A result without a call becomes a user message. Agents send such results after they have removed the beginning of a
    long conversation.
    """
    groups: list[list[PromptMessage]] = []
    groups_by_id: dict[str, list[PromptMessage]] = {}
    for message in messages:
        last_group = groups[-1] if groups else [message]
        group = groups_by_id.get(message.extra_fields.get("tool_call_id", ""), last_group)
        calls, n_results = group[0].extra_fields.get("tool_calls", []), len(group) - 1
        if message.role == "tool" and n_results < len(calls):
            if group is last_group and message.extra_fields.get("tool_call_id", "") not in groups_by_id:
                fields = message.extra_fields | {"tool_call_id": calls[n_results].get("id", "")}
                message = msgspec.structs.replace(message, extra_fields=fields)  # noqa: PLW2901
            group.append(message)
        elif message.role == "tool":
            groups.append([PromptMessage("user", f"<tool_response>\n{message.content}\n</tool_response>")])
        else:
            groups.append([message])
            groups_by_id |= {call.get("id", ""): groups[-1] for call in message.extra_fields.get("tool_calls", [])}
    return [message for group in groups for message in group]


def split_texts(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """Split each reply with text and tool calls into a reply with the text and a reply with the calls.

    Many templates render either the text or the calls of a reply.
    """
    new_messages: list[PromptMessage] = []
    for message in messages:
        if message.extra_fields.get("tool_calls") and message.content.strip():
            new_messages.append(msgspec.structs.replace(message, extra_fields={}))
            new_messages.append(msgspec.structs.replace(message, content="", reasoning=""))
        else:
            new_messages.append(message)
    return new_messages


def split_calls(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """Split each reply with several tool calls into replies with one call, each followed by the results of its call.

    Some templates reject replies with several calls, or render only the first call.
    """
    new_messages: list[PromptMessage] = []
    results: list[list[PromptMessage]] = []
    positions: dict[str, int] = {}
    n_results = 0
    for message in messages:
        if results and message.role == "tool":
            # If IDs are missing or equal, the results are in the order of the calls.
            position = positions.get(message.extra_fields.get("tool_call_id", ""), n_results)
            results[min(position, len(results) - 1)].append(message)
            n_results += 1
            continue
        new_messages += itertools.chain.from_iterable(results)
        calls = message.extra_fields.get("tool_calls", [])
        if len(calls) < 2:  # noqa: PLR2004
            results = []
            new_messages.append(message)
            continue
        replies = [
            PromptMessage("assistant", "", extra_fields={**message.extra_fields, "tool_calls": [c]}) for c in calls
        ]
        replies[0] = msgspec.structs.replace(replies[0], content=message.content, reasoning=message.reasoning)
        results, n_results = [[reply] for reply in replies], 0
        positions = {call.get("id", ""): i for i, call in enumerate(calls)}
        positions = positions if len(positions) == len(calls) else {}
    return [*new_messages, *itertools.chain.from_iterable(results)]


def alternate_roles(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """Merge the texts around tool calls, so that each user message has one reply without tool calls.

    Templates whose roles must alternate do not count calls and their results. The merged reply is put after the last
    result if a user message follows, otherwise before the first call.
    """
    new_messages: list[PromptMessage] = []
    texts: list[PromptMessage] = []
    calls: list[PromptMessage] = []
    for message in messages:
        if message.role == "user":
            if calls and not texts:
                texts = [PromptMessage("assistant", _INTERRUPTED)]
            new_messages += [*calls, *merge_consecutive(texts), message]
            texts, calls = [], []
        elif message.role == "assistant" and not message.extra_fields:
            texts.append(message)
        elif message.role == "system":
            new_messages.append(message)
        else:
            calls.append(message)
    return [*new_messages, *merge_consecutive(texts), *calls]
