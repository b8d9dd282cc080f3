"""Messages that a chat template leaves out of the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from edgechat.prompt.renderer import PromptMessage


def find_omitted(messages: Sequence[PromptMessage], prompt: str) -> PromptMessage | None:
    """Return the first message whose content is not in a rendered prompt; None if the prompt has all contents.

    White space around a content may be missing. Tool results are not checked, because templates reformat them.
    """
    position = 0
    for message in messages:
        content = message.content.strip()
        if message.role not in ("system", "user", "assistant") or not content:
            continue
        found_at = prompt.find(content, position)  # in linear time, because templates rarely change the order
        if found_at >= 0:
            position = found_at + len(content)
        elif content not in prompt:
            return message
    return None
