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
    groups: list[list[PromptMessage]] = []
    for message in messages:
        if groups and groups[-1][-1].role == message.role and message.role in roles:
            groups[-1].append(message)
        else:
            groups.append([message])
    return [
        msgspec.structs.replace(group[-1], content="\n\n".join(filter(None, (m.content for m in group))))
        for group in groups
    ]


def fold_system_prompt(messages: Sequence[PromptMessage]) -> list[PromptMessage] | None:
    """Return a copy of `messages` with the system prompt at the beginning of the first user message.

    Return None unless `messages` begins with a system message and a user message.
    """
    match messages:
        case [PromptMessage(role="system") as system, PromptMessage(role="user") as user, *others]:
            return [PromptMessage("user", f"{system.content}\n\n{user.content}"), *others]
    return None
