"""Adaptation of messages to chat templates that reject some orders of roles, or system prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import msgspec

from edgechat.prompt.renderer import PromptMessage

# Content of the user message that is inserted before a conversation that begins with a reply.
_START: Final = "(start)"


def merge_consecutive(
    messages: Iterable[PromptMessage], roles: Collection[str] = ("system", "user", "assistant")
) -> list[PromptMessage]:
    """Merge consecutive messages with the same role, for each of `roles`, with a blank line between their contents.

    The merged message has the reasoning and the extra fields of the last message.
    """
    return _merge_groups(messages, can_merge=lambda m: m.role in roles)


def _merge_groups(messages: Iterable[PromptMessage], can_merge: Callable[[PromptMessage], bool]) -> list[PromptMessage]:
    groups: list[list[PromptMessage]] = []
    for message in messages:
        if groups and groups[-1][-1].role == message.role and can_merge(groups[-1][-1]) and can_merge(message):
            groups[-1].append(message)
        else:
            groups.append([message])
    return [
        msgspec.structs.replace(group[-1], content="\n\n".join(filter(None, (m.content for m in group))))
        for group in groups
    ]


def fold_system_prompt(messages: Sequence[PromptMessage]) -> list[PromptMessage] | None:
    """Move the system prompt to the beginning of the first user message, in a copy of `messages`.

    Return None unless `messages` begins with a system message and a user message.
    """
    match messages:
        case [PromptMessage(role="system") as system, PromptMessage(role="user") as user, *others]:
            return [PromptMessage("user", f"{system.content}\n\n{user.content}"), *others]
    return None


def order_roles(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """Rearrange messages so that all chat templates accept them: a system prompt, then alternating users and replies.

    A later system message becomes part of the next user message, or becomes a user message itself. If the conversation
    begins with a reply, a user message is inserted before it. Consecutive messages with the same role are merged,
    except replies with tool calls.
    """
    ordered_messages = _move_system_messages(messages)
    n_system = 1 if ordered_messages and ordered_messages[0].role == "system" else 0
    if len(ordered_messages) == n_system or ordered_messages[n_system].role == "assistant":
        # Without other messages, the system prompt becomes a user message.
        if len(ordered_messages) == n_system == 1:
            return [PromptMessage("user", ordered_messages[0].content)]
        ordered_messages.insert(n_system, PromptMessage("user", _START))
    return _merge_groups(ordered_messages, can_merge=lambda m: m.role in ("user", "assistant") and not m.extra_fields)


def _move_system_messages(messages: Sequence[PromptMessage]) -> list[PromptMessage]:
    """Move each later system message into the next user message, or convert it to a user message.

    Tool results stay directly after their calls.
    """
    new_messages: list[PromptMessage] = []
    instructions: list[str] = []
    for message in messages:
        if message.role == "system" and new_messages:
            instructions.append(message.content)
        elif instructions and message.role == "user":
            new_messages.append(msgspec.structs.replace(message, content="\n\n".join((*instructions, message.content))))
            instructions = []
        elif message.role == "tool":
            new_messages.append(message)
        else:
            new_messages += [PromptMessage("user", "\n\n".join(instructions))] if instructions else []
            instructions = []
            new_messages.append(message)
    return [*new_messages, PromptMessage("user", "\n\n".join(instructions))] if instructions else new_messages
