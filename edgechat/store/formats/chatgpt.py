"""Conversations out of a ChatGPT data export: `conversations.json`, alone or in its ZIP file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgechat.chat.messages import Conversation, Message, Role
from edgechat.errors import ImportRefusedError
from edgechat.store.formats.edgechat_json import ConversationRecord, ImportedData, sanitize, stable_id

_NAME: Final = "conversations.json"
# A ZIP file can claim to hold anything; the largest real exports are some hundred megabytes.
MAX_BYTES: Final = 2 << 30
_LAYOUT_ERRORS: Final = (KeyError, TypeError, AttributeError, ValueError, OverflowError, msgspec.ValidationError)
_ROLES: Final[Mapping[str, Role]] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}


def unzip_conversations(data: bytes) -> bytes:
    """`conversations.json` out of a ZIP file. Raises ImportRefusedError if it has none, or one that is too large."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_NAME) as file:
            content = file.read(MAX_BYTES + 1)
    except KeyError:
        raise ImportRefusedError(f"this ZIP file holds no {_NAME}: it is no ChatGPT export") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise ImportRefusedError(f"this ZIP file cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise ImportRefusedError(f"{_NAME} in this ZIP file has more than {MAX_BYTES} bytes")
    return content


def parse(items: list[Any]) -> ImportedData:
    """The conversations of a decoded export. Raises ImportRefusedError if it holds none."""
    problems: list[str] = []
    records: list[ConversationRecord] = []
    for number, item in enumerate(items):
        try:
            records.append(_record(item))
        except _LAYOUT_ERRORS as error:  # noqa: PERF203  (one that is odd must not cost the others)
            problems.append(f"conversation {number + 1} has an unknown layout and was left out: {error!r}")
    if not records:
        raise ImportRefusedError("this is JSON, but there are no conversations of ChatGPT in it")
    return sanitize(records, {}, problems)


def _record(item: Mapping[str, Any]) -> ConversationRecord:
    nodes: Mapping[str, Mapping[str, Any]] = item["mapping"]
    source = str(item.get("conversation_id") or item.get("id") or "") or "/".join(sorted(nodes))
    ids = {node: stable_id("chatgpt", source, node) for node in nodes}
    said: dict[str, Message] = {}
    for node, content in nodes.items():
        message = _message(ids[node], content.get("message"))
        if message is not None:
            said[node] = message
    ordered = [
        msgspec.structs.replace(message, parent_id=ids.get(_said_above(node, nodes, said) or ""))
        for node, message in _in_order(nodes, said)
    ]
    current = item.get("current_node")
    head = current if current in said else _said_above(str(current), nodes, said)
    return ConversationRecord(
        conversation=Conversation(
            id=stable_id("chatgpt", source), title=str(item.get("title") or ""), folder="",
            created_at_ms=_ms(item.get("create_time")), updated_at_ms=_ms(item.get("update_time")),
            head_id=ids[head] if head is not None else None,
        ),
        messages=ordered,
    )  # fmt: skip


def _in_order(nodes: Mapping[str, Mapping[str, Any]], said: Mapping[str, Message]) -> list[tuple[str, Message]]:
    """By the time they were written, where it is known; alternatives keep the order of their parent's list."""
    places: dict[str, int] = {}
    for content in nodes.values():
        for place, child in enumerate(content.get("children") or []):
            places.setdefault(str(child), place)
    return sorted(said.items(), key=lambda item: (places.get(item[0], 0), item[1].created_at_ms))


def _said_above(node: str, nodes: Mapping[str, Mapping[str, Any]], said: Mapping[str, Message]) -> str | None:
    """The nearest ancestor that says something; exports have roots and hidden nodes that do not."""
    seen = {node}
    at = nodes.get(node, {}).get("parent")
    while at is not None and at in nodes and at not in seen and at not in said:
        seen.add(at)
        at = nodes[at].get("parent")
    return at if at in said else None


def _message(message_id: str, content: Mapping[str, Any] | None) -> Message | None:
    """A node's message; None if it says nothing that a person saw."""
    if not content:
        return None
    metadata = content.get("metadata") or {}
    if metadata.get("is_visually_hidden_from_conversation"):
        return None
    body = content.get("content") or {}
    thoughts = "\n\n".join(
        "\n".join(str(t[k]) for k in ("summary", "content") if t.get(k)) for t in body.get("thoughts") or []
    )
    text = _text(body)
    if not text and not thoughts:
        return None
    return Message(
        id=message_id, role=_ROLES[content["author"]["role"]], text=text, reasoning=thoughts,
        created_at_ms=_ms(content.get("create_time")), model=str(metadata.get("model_slug") or ""),
    )  # fmt: skip


def _text(body: Mapping[str, Any]) -> str:
    parts = body.get("parts")
    if parts is None:
        text = str(body.get("text") or body.get("result") or "")
        return f"```\n{text}\n```" if text and body.get("content_type") in ("code", "execution_output") else text
    shown = [part if isinstance(part, str) else _placeholder(part) for part in parts]
    return "\n\n".join(part for part in shown if part)


def _placeholder(part: Mapping[str, Any]) -> str:
    if part.get("text"):  # a transcript of what was spoken
        return str(part["text"])
    return f"[{str(part.get('content_type') or 'attachment').replace('_', ' ')}, not in the export]"


def _ms(seconds: object) -> int:
    return int(float(seconds) * 1000) if isinstance(seconds, (int, float)) and 0 < seconds < 1e11 else 0  # noqa: PLR2004
