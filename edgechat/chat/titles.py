"""Conversation titles that the model generates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from edgechat.chat.conversation_prompt import ConversationPromptBuilder
from edgechat.chat.messages import Conversation, Message, first_line
from edgechat.config import Settings
from edgechat.engine import protocol

REQUEST: Final = "Name this conversation in at most six words, without quotation marks. Write only the name."
MAX_TOKENS: Final = 24
_MAX_CHARS: Final = 60
_QUOTES: Final = "\"'`*#«»“”„ \t"


def needs_title(conversation: Conversation, path: Sequence[Message]) -> bool:
    """Return whether the conversation consists of one message and its complete reply, under a provisional title."""
    return (
        len(path) == 2  # noqa: PLR2004  (a message and its reply)
        and path[1].finish_reason == "stop"
        and conversation.title == first_line(path[0].text)
    )


def make_request(
    request_id: int, builder: ConversationPromptBuilder, path: Sequence[Message], settings: Settings
) -> protocol.Generate:
    """Return the request that lets the model write a title for the conversation `path`. Raises EdgechatError."""
    prompt = builder.build([*path, Message(id="", role="user", text=REQUEST)])
    return protocol.Generate(
        id=request_id, tokens=prompt.prompt.tokens, max_tokens=MAX_TOKENS, ephemeral=True,
        sampling=msgspec.structs.replace(settings.sampling, temperature=0.0),
    )  # fmt: skip


def parse_title(events: Iterable[protocol.AnyEvent]) -> str:
    """Return the generated title; "" if the model's output is incomplete, has several lines, or is too long."""
    text, finish_reason = "", ""
    for event in events:
        if isinstance(event, protocol.TokensGenerated):
            text += event.text
        elif isinstance(event, protocol.RequestFinished):
            finish_reason = event.finish_reason
    title = " ".join(text.split()).removeprefix("Title:").strip(_QUOTES).rstrip(".")
    return title if finish_reason == "stop" and "\n" not in text.strip() and 0 < len(title) <= _MAX_CHARS else ""
