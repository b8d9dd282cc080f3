"""Tagged reasoning in the content of earlier replies, and the tags at which chat templates cut content."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.prompt.reasoning import ReasoningFormat
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.thoughts import KNOWN_TAGS

# Expressions of templates that look for a tag: `content.split('</think>')`, `'</think>' in content`.
_TAG: Final = r"""(['"])([<\[][^'"\s][^'"]{0,60}[>\]])"""
_TAG_SEARCHES: Final = (re.compile(rf"split\(\s*{_TAG}\1"), re.compile(rf"{_TAG}\1\s+(?:not\s+)?in\b"))

_KNOWN_TAGS: Final = tuple((start, end, "") for start, end in KNOWN_TAGS)
_TEXT: Final = re.compile(r"\S")
_PLACEHOLDER: Final = "x"


def find_searched_tags(template: str) -> list[str]:
    """Return the tags at which a template may cut the content of a message, such as the end tag of the reasoning.

    These tags must be guarded in messages, like control tokens; otherwise the template drops the text before or after
    a tag.
    """
    return sorted({match[2] for pattern in _TAG_SEARCHES for match in pattern.finditer(template)})


def split_reasoning(messages: Sequence[PromptMessage], reasoning_format: ReasoningFormat | None) -> list[PromptMessage]:
    """Move tagged reasoning from the beginning of each reply's content to the `reasoning` field of the reply.

    Many clients send replies back as the model wrote them. If the template has no reasoning format, replies stay as
    they are.
    """
    return [
        _split_message(message, reasoning_format) if message.role == "assistant" else message for message in messages
    ]


def split_reply_start(reply: PromptMessage, reasoning_format: ReasoningFormat | None) -> tuple[PromptMessage, str]:
    """Move tagged reasoning of a reply that will be continued to its `reasoning` field; also return a placeholder.

    Reasoning without an end tag will be continued. If no text follows the last tag, as in the reply `<think>`, a
    placeholder takes the place of that text, and the caller must remove it from the end of the rendered prompt.
    Otherwise, the placeholder is "".
    """
    message = _split_message(reply, reasoning_format)
    text = message.content.lstrip()
    start_tag = next((tag[0] for tag in _list_tags(reasoning_format) if text.startswith(tag[0])), "")
    if start_tag:
        thought = text[len(start_tag) :].lstrip("\n")
        placeholder = "" if thought.strip() else _PLACEHOLDER
        reasoning = "\n\n".join(filter(None, (message.reasoning, placeholder or thought)))
        return msgspec.structs.replace(message, content="", reasoning=reasoning), placeholder
    if text or message.content == reply.content:
        return message, ""
    return msgspec.structs.replace(message, content=_PLACEHOLDER), _PLACEHOLDER


def _list_tags(reasoning_format: ReasoningFormat | None) -> tuple[tuple[str, str, str], ...]:
    """Return start tag, end tag and text before the content for each known format; empty if there is no format."""
    return (
        ()
        if reasoning_format is None
        else ((reasoning_format.start_tag, reasoning_format.end_tag, reasoning_format.content_prefix), *_KNOWN_TAGS)
    )


def _split_message(message: PromptMessage, reasoning_format: ReasoningFormat | None) -> PromptMessage:
    """Move the complete thoughts at the beginning of a reply's content to its `reasoning` field."""
    tags = _list_tags(reasoning_format)
    content, position = message.content, 0
    thoughts = [message.reasoning]
    while text_start := _TEXT.search(content, position):
        start = text_start.start()
        start_tag, end_tag, content_prefix = next((t for t in tags if content.startswith(t[0], start)), ("", "", ""))
        end = content.find(end_tag, start + len(start_tag)) if start_tag else -1
        if end < 0:
            break
        thoughts.append(content[start + len(start_tag) : end].strip())
        position = end + len(end_tag)
        position += len(content_prefix) if content.startswith(content_prefix, position) else 0
    if not position:
        return message
    reasoning = "\n\n".join(filter(None, thoughts))
    return msgspec.structs.replace(message, reasoning=reasoning, content=content[position:].lstrip("\n"))
