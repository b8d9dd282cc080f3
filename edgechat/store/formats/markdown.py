"""Markdown exports: readable text, with metadata in HTML comments from which an import restores the messages.

An import restores the active path without attachments. Each comment starts with `<!-- edgechat` at the start of a line.
In messages, lines that start with the same text are escaped with a backslash.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from edgechat.chat.messages import Conversation, Message
from edgechat.engine.generation import ReplyOrigin
from edgechat.errors import ImportRefusedError
from edgechat.store.formats.cited_places import PassageLines, describe_passages
from edgechat.store.formats.edgechat_json import ConversationRecord

_COMMENT_START: Final = "<!-- edgechat "
_REASONING_COMMENT: Final = "<!-- edgechat-reasoning -->"
_ATTACHMENT_PREFIX: Final = "*Attached: "
_TEXT_COMMENT: Final = "<!-- edgechat-text -->"
_UNESCAPED_COMMENT: Final = re.compile(r"^(\\*<!-- edgechat)", re.MULTILINE)
_ESCAPED_COMMENT: Final = re.compile(r"^\\(\\*<!-- edgechat)", re.MULTILINE)
ROLE_LABELS: Final = {"user": "You", "assistant": "Model", "system": "System", "tool": "Tool"}


def render(record: ConversationRecord, read_attachment: Callable[[str], bytes] | None = None) -> str:
    """Render the active path of a conversation, without other branches, as Markdown.

    `read_attachment` returns the bytes of an attachment by SHA-256 hash, or raises StoreError; without it, the places
    in documents that replies cite are left out.
    """
    conversation = record.conversation
    title = " ".join(conversation.title.split()) or "Conversation"
    parts = [_format_metadata_comment(_make_conversation_fields(conversation)), f"# {title}", ""]
    path = active_path(record)
    passage_lines = describe_passages(path, read_attachment) if read_attachment is not None else {}
    for message in path:
        parts += [_format_metadata_comment(_make_message_fields(message)), f"## {make_heading(message)}", ""]
        parts += [
            f"{_ATTACHMENT_PREFIX}{' '.join(file.name.split())} ({file.size_bytes} bytes)*\n"
            for file in message.attachments
            if not file.is_passages
        ]
        lines = passage_lines.get(message.id, PassageLines())
        parts += [f"*{' '.join(line.split())}*\n" for line in (lines.description,) if line]
        cited_lines = [f"- Cited: {place}" for place in lines.cited_places]
        cited_lines += [f"- To check: {problem}" for problem in lines.problems]
        parts += [" ".join(line.split()) for line in cited_lines] + [""] * bool(cited_lines)
        if message.reasoning:
            parts += [
                "<details><summary>Reasoning</summary>",
                _REASONING_COMMENT,
                _escape(message.reasoning),
                "</details>",
            ]
        parts += [_TEXT_COMMENT, _escape(message.text), ""]
    return "\n".join([*parts, ""])


def active_path(record: ConversationRecord) -> list[Message]:
    """Return the messages on the path from the root to the head of a conversation."""
    by_id = {m.id: m for m in record.messages}
    message = by_id.get(record.conversation.head_id or "")
    path: list[Message] = []
    while message is not None:
        path.append(message)
        message = by_id.get(message.parent_id or "")
    return path[::-1]


def format_time(milliseconds: int) -> str:
    """Format milliseconds since 1970 in the local time zone; "" for 0 or a time that the calendar cannot represent."""
    if not milliseconds:
        return ""
    try:
        return dt.datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return ""


def make_heading(message: Message) -> str:
    """Return the heading of a message: role, time, model, and whether it was interrupted or is an earlier reply."""
    stats = message.stats
    details = [
        format_time(message.created_at_ms),
        " ".join(message.model.split()),
        "interrupted" if message.is_interrupted else "",
    ]
    if stats is not None and isinstance(stats.origin, ReplyOrigin):
        details.append(f"earlier reply of {format_time(stats.origin.created_at_ms) or 'an unknown date'}")
    return " · ".join([ROLE_LABELS[message.role], *(d for d in details if d)])


def _format_metadata_comment(fields: dict[str, Any]) -> str:
    # A JSON escape replaces ">", because "-->" in a value would end the comment.
    return _COMMENT_START + msgspec.json.encode(fields).decode().replace(">", "\\u003e") + " -->"


def _make_conversation_fields(conversation: Conversation) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(conversation)
    return {"format": 1} | {k: v for k, v in fields.items() if k != "head_id"}


def _make_message_fields(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {k: v for k, v in fields.items() if k not in ("text", "reasoning", "active_child_id", "attachments")}


def parse(text: str) -> tuple[ConversationRecord, list[str]]:
    """Parse a Markdown export; return the conversation, and a note for the user about each omitted attachment.

    Raises ImportRefusedError if the text is not a Markdown export of edgechat.
    """
    if " -->\r\n" in text[: text.find("\n") + 1]:  # an editor converted the line endings
        text = text.replace("\r\n", "\n")
    sections = re.split(rf"^{_COMMENT_START}(.*) -->\n", text, flags=re.MULTILINE)
    try:
        fields = msgspec.json.decode(sections[1])
        conversation = msgspec.convert({k: v for k, v in fields.items() if k != "format"}, Conversation)
        messages = [_parse_message(fields, body) for fields, body in zip(sections[3::2], sections[4::2], strict=True)]
    except (msgspec.MsgspecError, ValueError, IndexError, AttributeError) as error:
        reason = "it has no edgechat comments" if len(sections) == 1 else "its comments are damaged"
        raise ImportRefusedError(f"the file is not a Markdown file exported by edgechat ({reason}).") from error
    head_id = messages[-1].id if messages else None
    messages = [
        msgspec.structs.replace(m, active_child_id=child.id) for m, child in itertools.pairwise(messages)
    ] + messages[-1:]
    problems = [
        f"The attachment {line.rsplit(' (', 1)[0]} is not in the Markdown file and was left out."
        for body in sections[4::2]
        for line in _split_at_comment(_TEXT_COMMENT, body)[0].split(_ATTACHMENT_PREFIX)[1:]
    ]
    conversation = msgspec.structs.replace(conversation, head_id=head_id)
    return ConversationRecord(conversation=conversation, messages=messages), problems


def _parse_message(fields: str, body: str) -> Message:
    before_text, text = _split_at_comment(_TEXT_COMMENT, body)
    _, reasoning = _split_at_comment(_REASONING_COMMENT, before_text)
    text = text.removesuffix("\n").removesuffix("\n")
    texts = {"text": _unescape(text), "reasoning": _unescape(reasoning.removesuffix("\n</details>\n"))}
    return msgspec.convert(msgspec.json.decode(fields) | texts, Message)


def _split_at_comment(comment: str, body: str) -> tuple[str, str]:
    """Return the parts of `body` before and after the line `comment`; if there is no such line, return (`body`, "")."""
    match = re.search(rf"^{comment}\n", body, re.MULTILINE)
    return (body[: match.start()], body[match.end() :]) if match is not None else (body, "")


def _escape(text: str) -> str:
    return _UNESCAPED_COMMENT.sub(r"\\\1", text)


def _unescape(text: str) -> str:
    return _ESCAPED_COMMENT.sub(r"\1", text)
