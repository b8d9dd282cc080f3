"""Adaptation of messages to chat templates that reject consecutive messages of one role, or system prompts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from edgechat.prompt.renderer import PromptMessage


def merge_consecutive(
    messages: Iterable[PromptMessage], roles: Collection[str] = ("system", "user", "assistant")
) -> list[PromptMessage]:
    """Merge consecutive messages with the same role, for each of `roles`, with a blank line between their contents.

    The merged message has the reasoning and the extra fields of the last message.
    """
    merged_messages: list[PromptMessage] = []
    for message in messages:
        if merged_messages and merged_messages[-1].role == message.role and message.role in roles:
            content = "\n\n".join(filter(None, (merged_messages.pop().content, message.content)))
            merged_messages.append(msgspec.structs.replace(message, content=content))
        else:
            merged_messages.append(message)
    return merged_messages


def fold_system_prompt(messages: Sequence[PromptMessage]) -> list[PromptMessage] | None:
    """Return a copy of `messages` with the system prompt at the beginning of the first user message.

    Return None unless `messages` begins with a system message and a user message.
    """
    match messages:
        case [PromptMessage(role="system") as system, PromptMessage(role="user") as user, *others]:
            return [PromptMessage("user", f"{system.content}\n\n{user.content}"), *others]
    return None
