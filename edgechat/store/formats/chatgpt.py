"""Import of ChatGPT data exports: the file `conversations.json`, or the ZIP file that contains it."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgechat.chat.messages import Conversation, Message, Role
from edgechat.errors import ImportRefusedError
from edgechat.humanize import format_size, shorten
from edgechat.store.formats.edgechat_json import (
    MAX_CONVERSATIONS,
    MAX_PROBLEM_CHARS,
    ConversationRecord,
    ImportedData,
    make_stable_id,
    sanitize,
)

_FILE_NAME: Final = "conversations.json"
# Maximum unpacked size. Large exports have several hundred megabytes; a malicious ZIP file could fill the memory.
MAX_BYTES: Final = 2 << 30
# Maximum ratio of the unpacked and the packed size, above a size that is always accepted. JSON of conversations has a
# ratio of 4 to 12; a file of equal bytes has up to 1000.
_MAX_RATIO: Final = 100
_ALWAYS_UNPACKED_BYTES: Final = 16 << 20
_LAYOUT_ERRORS: Final = (KeyError, TypeError, AttributeError, ValueError, OverflowError, msgspec.ValidationError)
# Largest accepted timestamp, in seconds since 1970 (in the year 5138).
_MAX_TIMESTAMP_S: Final = 1e11
_ROLES: Final[Mapping[str, Role]] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}
_Nodes = Mapping[str, Mapping[str, Any]]


def unzip_conversations(data: bytes) -> bytes:
    """Extract `conversations.json` from a ZIP file. Raises ImportRefusedError if it is missing or too large."""
    max_bytes = max_unpacked_bytes(len(data))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(_FILE_NAME) as file:
            content = file.read(max_bytes + 1)
    except KeyError:
        raise ImportRefusedError(f"the ZIP file is not a ChatGPT export: it contains no {_FILE_NAME}.") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, RuntimeError, OSError, EOFError) as error:
        raise ImportRefusedError(f"the ZIP file cannot be read ({error}).") from error
    if len(content) > max_bytes:
        raise ImportRefusedError(
            f"{_FILE_NAME} in the ZIP file is larger than {format_size(max_bytes)}, the limit for a ZIP file of "
            f"{format_size(len(data))}."
        )
    return content


def max_unpacked_bytes(zip_bytes: int) -> int:
    """Return the maximum unpacked size of `conversations.json` for a ZIP file of `zip_bytes`."""
    return min(max(_ALWAYS_UNPACKED_BYTES, _MAX_RATIO * zip_bytes), MAX_BYTES)


def parse(items: list[Any]) -> ImportedData:
    """Convert the decoded JSON list of an export. Raises ImportRefusedError if no conversation can be converted."""
    if len(items) > MAX_CONVERSATIONS:
        raise ImportRefusedError(f"the file has {len(items)} conversations; the limit is {MAX_CONVERSATIONS}.")
    problems: list[str] = []
    records: list[ConversationRecord] = []
    for number, item in enumerate(items):
        try:
            records.append(_convert_conversation(item))
        except _LAYOUT_ERRORS as error:  # noqa: PERF203  (one unknown layout must not stop the import)
            reason = shorten(f"{error!r}", MAX_PROBLEM_CHARS)
            problems.append(f"Conversation {number + 1} has an unknown layout and was left out: {reason}.")
    if not records:
        raise ImportRefusedError("the JSON file contains no ChatGPT conversations.")
    return sanitize(records, {}, problems)


def _convert_conversation(item: Mapping[str, Any]) -> ConversationRecord:
    nodes: _Nodes = item["mapping"]
    source_id = str(item.get("conversation_id") or item.get("id") or "") or "/".join(sorted(nodes))
    ids = {node: make_stable_id("chatgpt", source_id, node) for node in nodes}
    messages: dict[str, Message] = {}
    for node, content in nodes.items():
        message = _convert_message(ids[node], content.get("message"))
        if message is not None:
            messages[node] = message
    ordered_messages = [
        msgspec.structs.replace(message, parent_id=ids.get(_find_nearest_ancestor(node, nodes, messages) or ""))
        for node, message in _sort_messages(nodes, messages)
    ]
    current_node = item.get("current_node")
    head = current_node if current_node in messages else _find_nearest_ancestor(str(current_node), nodes, messages)
    return ConversationRecord(
        conversation=Conversation(
            id=make_stable_id("chatgpt", source_id), title=str(item.get("title") or ""), folder="",
            created_at_ms=_to_ms(item.get("create_time")), updated_at_ms=_to_ms(item.get("update_time")),
            head_id=ids[head] if head is not None else None,
        ),
        messages=ordered_messages,
    )  # fmt: skip


def _sort_messages(nodes: _Nodes, messages: Mapping[str, Message]) -> list[tuple[str, Message]]:
    """Return (node ID, message) pairs, sorted by their position among the children of their parent, then by time."""
    positions: dict[str, int] = {}
    for content in nodes.values():
        for position, child in enumerate(content.get("children") or []):
            positions.setdefault(str(child), position)
    return sorted(messages.items(), key=lambda item: (positions.get(item[0], 0), item[1].created_at_ms))


def _find_nearest_ancestor(node: str, nodes: _Nodes, messages: Mapping[str, Message]) -> str | None:
    """Return the ID of the nearest ancestor node with a message, or None. Root and hidden nodes have no message."""
    visited_nodes = {node}
    ancestor = nodes.get(node, {}).get("parent")
    while ancestor is not None and ancestor in nodes and ancestor not in visited_nodes and ancestor not in messages:
        visited_nodes.add(ancestor)
        ancestor = nodes[ancestor].get("parent")
    return ancestor if ancestor in messages else None


def _convert_message(message_id: str, content: Mapping[str, Any] | None) -> Message | None:
    """Convert the message of a node; return None if the message is hidden or empty."""
    if not content:
        return None
    metadata = content.get("metadata") or {}
    if metadata.get("is_visually_hidden_from_conversation"):
        return None
    body = content.get("content") or {}
    reasoning = "\n\n".join(
        "\n".join(str(t[k]) for k in ("summary", "content") if t.get(k)) for t in body.get("thoughts") or []
    )
    text = _content_text(body)
    if not text and not reasoning:
        return None
    return Message(
        id=message_id, role=_ROLES[content["author"]["role"]], text=text, reasoning=reasoning,
        created_at_ms=_to_ms(content.get("create_time")), model=str(metadata.get("model_slug") or ""),
    )  # fmt: skip


def _content_text(body: Mapping[str, Any]) -> str:
    parts = body.get("parts")
    if parts is None:
        text = str(body.get("text") or body.get("result") or "")
        return f"```\n{text}\n```" if text and body.get("content_type") in ("code", "execution_output") else text
    texts = [part if isinstance(part, str) else _make_placeholder(part) for part in parts]
    return "\n\n".join(text for text in texts if text)


def _make_placeholder(part: Mapping[str, Any]) -> str:
    if part.get("text"):  # transcript of an audio part
        return str(part["text"])
    return f"[{str(part.get('content_type') or 'attachment').replace('_', ' ')}, not in the export]"


def _to_ms(seconds: object) -> int:
    return int(seconds * 1000) if isinstance(seconds, (int, float)) and 0 < seconds < _MAX_TIMESTAMP_S else 0
