"""A conversation as Markdown to read, with remarks in it by which it can be read back."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from typing import Any, Final

import msgspec

from edgechat.chat.messages import Conversation, Message
from edgechat.errors import ImportRefusedError
from edgechat.store.formats.edgechat_json import ConversationRecord

_START: Final = "<!-- edgechat "
_REASONING: Final = "<!-- edgechat-reasoning -->"
_ATTACHED: Final = "*Attached: "
_TEXT: Final = "<!-- edgechat-text -->"
# Lines of a message that look like our remarks get a backslash in front, and lose it again.
_LOOKS_LIKE: Final = re.compile(r"^(\\*<!-- edgechat)", re.MULTILINE)
_ESCAPED: Final = re.compile(r"^\\(\\*<!-- edgechat)", re.MULTILINE)
ROLE_LABELS: Final = {"user": "You", "assistant": "Model", "system": "System", "tool": "Tool"}


def render(record: ConversationRecord) -> str:
    """The conversation as it stands; other branches are left out."""
    conversation = record.conversation
    title = " ".join(conversation.title.split()) or "Conversation"
    parts = [_remark(_about(conversation)), f"# {title}", ""]
    for message in active_path(record):
        parts += [_remark(_said(message)), f"## {_heading(message)}", ""]
        parts += [
            f"{_ATTACHED}{' '.join(file.name.split())} ({file.size_bytes} bytes)*\n" for file in message.attachments
        ]
        if message.reasoning:
            parts += ["<details><summary>Reasoning</summary>", _REASONING, _escape(message.reasoning), "</details>"]
        parts += [_TEXT, _escape(message.text), ""]
    return "\n".join([*parts, ""])


def active_path(record: ConversationRecord) -> list[Message]:
    """The messages from a root to the head."""
    by_id = {m.id: m for m in record.messages}
    at = by_id.get(record.conversation.head_id or "")
    said: list[Message] = []
    while at is not None:
        said.append(at)
        at = by_id.get(at.parent_id or "")
    return said[::-1]


def format_time(milliseconds: int) -> str:
    """A time in this machine's zone; "" for none, or one that no calendar has."""
    try:
        return (
            dt.datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
            if milliseconds
            else ""
        )
    except (OverflowError, ValueError, OSError):
        return ""


def _heading(message: Message) -> str:
    details = [
        format_time(message.created_at_ms),
        " ".join(message.model.split()),
        "interrupted" if message.is_interrupted else "",
    ]
    return " · ".join([ROLE_LABELS[message.role], *(d for d in details if d)])


def _remark(fields: dict[str, Any]) -> str:
    # ">" is written as JSON allows, so that nothing inside ends the remark.
    return _START + msgspec.json.encode(fields).decode().replace(">", "\\u003e") + " -->"


def _about(conversation: Conversation) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(conversation)
    return {"format": 1} | {k: v for k, v in fields.items() if k != "head_id"}


def _said(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {k: v for k, v in fields.items() if k not in ("text", "reasoning", "active_child_id", "attachments")}


def _escape(text: str) -> str:
    return _LOOKS_LIKE.sub(r"\\\1", text)


def parse(text: str) -> tuple[ConversationRecord, list[str]]:
    """The conversation of a file that `write` made, and what of it is not there. Raises ImportRefusedError if none."""
    if " -->\r\n" in text[: text.find("\n") + 1]:  # an editor changed the ends of all lines
        text = text.replace("\r\n", "\n")
    pieces = re.split(rf"^{_START}(.*) -->\n", text, flags=re.MULTILINE)
    try:
        about = msgspec.json.decode(pieces[1])
        conversation = msgspec.convert({k: v for k, v in about.items() if k != "format"}, Conversation)
        messages = [_message(fields, body) for fields, body in zip(pieces[3::2], pieces[4::2], strict=True)]
    except (msgspec.MsgspecError, ValueError, IndexError, AttributeError) as error:
        why = "it has no remark of ours" if len(pieces) == 1 else str(error)
        raise ImportRefusedError(f"this is not a conversation that edgechat wrote as Markdown: {why}") from error
    head_id = messages[-1].id if messages else None
    messages = [
        msgspec.structs.replace(m, active_child_id=after.id) for m, after in itertools.pairwise(messages)
    ] + messages[-1:]
    lost = [
        f"the attachment {line.rsplit(' (', 1)[0]} is not in a Markdown file; it was left out"
        for body in pieces[4::2]
        for line in _parted(_TEXT, body)[0].split(_ATTACHED)[1:]
    ]
    return ConversationRecord(
        conversation=msgspec.structs.replace(conversation, head_id=head_id), messages=messages
    ), lost


def _message(fields: str, body: str) -> Message:
    front, _, text = _parted(_TEXT, body)
    _, _, reasoning = _parted(_REASONING, front)
    text = text.removesuffix("\n").removesuffix("\n")
    said = {"text": _unescape(text), "reasoning": _unescape(reasoning.removesuffix("\n</details>\n"))}
    return msgspec.convert(msgspec.json.decode(fields) | said, Message)


def _parted(remark: str, body: str) -> tuple[str, str, str]:
    """`body` before, and after, the first line that is this remark."""
    found = re.search(rf"^{remark}\n", body, re.MULTILINE)
    return (body[: found.start()], found[0], body[found.end() :]) if found is not None else (body, "", "")


def _unescape(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)
