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
from edgechat.decode_errors import name_json_type
from edgechat.errors import ImportRefusedError
from edgechat.humanize import format_count, format_size, shorten
from edgechat.store.formats.edgechat_json import (
    MAX_CONVERSATIONS,
    ConversationRecord,
    ImportedData,
    make_stable_id,
    sanitize,
)

_FILE_NAME: Final = "conversations.json"
# Maximum unpacked size. Large exports have several hundred megabytes; a malicious ZIP file could fill the memory.
MAX_BYTES: Final = 2 << 30
# Maximum ratio of the unpacked size to the packed size; does not apply up to `_ALWAYS_UNPACKED_BYTES`. Conversations in
# JSON have a ratio of 4 to 12, and a file of identical bytes has a ratio of up to 1000.
_MAX_RATIO: Final = 100
_ALWAYS_UNPACKED_BYTES: Final = 16 << 20
# Bit of the flags of a ZIP entry that marks an encrypted entry (APPNOTE.TXT, section 4.4.4).
_ENCRYPTED_FLAG: Final = 1
# Maximum length of a title or role that a message for the user quotes.
_MAX_TITLE_CHARS: Final = 60
# Largest accepted timestamp, in seconds since 1970 (in the year 5138).
_MAX_TIMESTAMP_S: Final = 1e11
_ROLES: Final[Mapping[str, Role]] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}
_Nodes = Mapping[str, Mapping[str, Any]]


def unzip_conversations(data: bytes) -> bytes:
    """Extract `conversations.json` from a ZIP file, in which it may be in a folder. Raises ImportRefusedError."""
    max_bytes = max_unpacked_bytes(len(data))
    extract = f"Extract it, and import {_FILE_NAME}."
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.split("/")[-1] == _FILE_NAME]
            if not entries:
                raise ImportRefusedError(f"the ZIP file is not a ChatGPT export: it contains no {_FILE_NAME}.")
            entry = min(entries, key=lambda entry: entry.filename.count("/"))
            if entry.flag_bits & _ENCRYPTED_FLAG:
                raise ImportRefusedError(f"the ZIP file is protected with a password. {extract}")
            with archive.open(entry) as file:
                content = file.read(max_bytes + 1)
    except NotImplementedError as error:
        raise ImportRefusedError(
            f"the ZIP file uses a compression method that edgechat cannot read. {extract}"
        ) from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, RuntimeError, OSError, EOFError) as error:
        raise ImportRefusedError("the ZIP file cannot be read, because it is damaged. Download it again.") from error
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
    for number, item in enumerate(items, start=1):
        try:
            records.append(_convert_conversation(item, problems))
        except _UnreadableError as error:  # noqa: PERF203  (one unknown layout must not stop the import)
            problems.append(f"Conversation {number} was left out: {error}.")
    if not records:
        reason = f" that edgechat can read. {problems[0]}" if problems else "."
        raise ImportRefusedError(f"the JSON file contains no ChatGPT conversations{reason}")
    return msgspec.structs.replace(sanitize(records, {}, problems), n_left_out=len(items) - len(records))


class _UnreadableError(Exception):
    """Raised for a conversation, message or entry with an unknown layout; the message is a clause with the reason."""


def _as_object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _require_object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _UnreadableError(f"{name} is {name_json_type(value)}, not an object")
    return value


def _convert_conversation(item: object, problems: list[str]) -> ConversationRecord:
    """Convert a conversation, and append a message for the user to `problems` if messages are left out."""
    conversation = _require_object(item, "it")
    if "mapping" not in conversation:
        raise _UnreadableError('it has no object "mapping" with its messages')
    entries = _require_object(conversation["mapping"], 'its "mapping"')
    title = _as_text(conversation.get("title"))
    source_id = str(conversation.get("conversation_id") or conversation.get("id") or "") or "/".join(sorted(entries))
    ids = {node: make_stable_id("chatgpt", source_id, node) for node in entries}
    nodes: _Nodes = {node: entry for node, entry in entries.items() if isinstance(entry, dict)}
    messages: dict[str, Message] = {}
    reasons: list[str] = []
    for node, entry in entries.items():
        try:
            message = _convert_message(ids[node], _require_object(entry, "an entry").get("message"), reasons)
        except _UnreadableError as error:  # noqa: PERF203  (one unknown message must not lose the others)
            reasons.append(str(error))
        else:
            if message is not None:
                messages[node] = message
    if reasons:
        count_text = format_count(len(reasons), "message")
        if not messages:
            raise _UnreadableError(f"{count_text} could not be read: {reasons[0]}")
        name = shorten(title, _MAX_TITLE_CHARS) or "A conversation"
        problems.append(f"{name}: {count_text} could not be read completely: {reasons[0]}.")
    ordered_messages = [
        msgspec.structs.replace(message, parent_id=ids.get(_find_nearest_ancestor(node, nodes, messages) or ""))
        for node, message in _sort_messages(nodes, messages)
    ]
    current_node = _as_text(conversation.get("current_node"))
    head = current_node if current_node in messages else _find_nearest_ancestor(current_node, nodes, messages)
    return ConversationRecord(
        conversation=Conversation(
            id=make_stable_id("chatgpt", source_id), title=title, folder="",
            created_at_ms=_to_ms(conversation.get("create_time")),
            updated_at_ms=_to_ms(conversation.get("update_time")),
            head_id=ids[head] if head is not None else None,
        ),
        messages=ordered_messages,
    )  # fmt: skip


def _sort_messages(nodes: _Nodes, messages: Mapping[str, Message]) -> list[tuple[str, Message]]:
    """Return (node ID, message) pairs, sorted by their position among the children of their parent, then by time."""
    positions: dict[str, int] = {}
    for entry in nodes.values():
        for position, child in enumerate(_as_list(entry.get("children"))):
            positions.setdefault(str(child), position)
    return sorted(messages.items(), key=lambda item: (positions.get(item[0], 0), item[1].created_at_ms))


def _find_nearest_ancestor(node: str, nodes: _Nodes, messages: Mapping[str, Message]) -> str | None:
    """Return the ID of the nearest ancestor node with a message, or None. Root and hidden nodes have no message."""
    visited_nodes = {node}
    ancestor = _find_parent(node, nodes)
    while ancestor in nodes and ancestor not in visited_nodes and ancestor not in messages:
        visited_nodes.add(ancestor)
        ancestor = _find_parent(ancestor, nodes)
    return ancestor if ancestor in messages else None


def _find_parent(node: str, nodes: _Nodes) -> str:
    return _as_text(_as_object(nodes.get(node)).get("parent"))


def _convert_message(message_id: str, value: object, reasons: list[str]) -> Message | None:
    """Convert the message of a node; return None if the message is hidden or empty.

    Appends a reason to `reasons` if a part of the message is left out.
    """
    if not value:
        return None
    content = _require_object(value, "a message")
    metadata = _as_object(content.get("metadata"))
    if metadata.get("is_visually_hidden_from_conversation"):
        return None
    body = content.get("content")
    part_reasons: list[str] = []
    text = _content_text(body, part_reasons)
    reasoning = "\n\n".join(filter(None, map(_format_thought, _as_list(_as_object(body).get("thoughts")))))
    if not text and not reasoning:
        if part_reasons:
            raise _UnreadableError(part_reasons[0])
        return None
    role = _find_role(content.get("author"))
    reasons += part_reasons[:1]
    return Message(
        id=message_id, role=role, text=text, reasoning=reasoning,
        created_at_ms=_to_ms(content.get("create_time")), model=_as_text(metadata.get("model_slug")),
    )  # fmt: skip


def _find_role(author: object) -> Role:
    """Return the role of an author: an object or, in some exports, the role itself. Raises _UnreadableError."""
    name = author.get("role") if isinstance(author, dict) else author
    role = _ROLES.get(_as_text(name))
    if role is None:
        quoted = f'"{shorten(name, _MAX_TITLE_CHARS)}"' if isinstance(name, str) else name_json_type(name)
        raise _UnreadableError(f"the author of a message is {quoted}, not one of {', '.join(_ROLES)}")
    return role


def _format_thought(thought: object) -> str:
    if isinstance(thought, str):
        return thought
    return "\n".join(filter(None, (_as_text(_as_object(thought).get(name)) for name in ("summary", "content"))))


def _content_text(body: object, reasons: list[str]) -> str:
    """Return the text of a message's content; append a reason to `reasons` for each part that is left out."""
    if isinstance(body, (str, list)):
        return _join_parts(body, reasons)
    if body is None:
        return ""
    fields = _require_object(body, "the content of a message")
    if fields.get("parts") is not None:
        return _join_parts(fields["parts"], reasons)
    text = _as_text(fields.get("text")) or _as_text(fields.get("result"))
    return f"```\n{text}\n```" if text and fields.get("content_type") in ("code", "execution_output") else text


def _join_parts(parts: object, reasons: list[str]) -> str:
    texts = []
    for part in parts if isinstance(parts, list) else [parts]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            texts.append(_as_text(part.get("text")) or _make_placeholder(part))  # "text": transcript of an audio part
        elif part is not None:
            reasons.append(f"a part of a message is {name_json_type(part)}, not a string")
    return "\n\n".join(text for text in texts if text)


def _make_placeholder(part: Mapping[str, Any]) -> str:
    kind = _as_text(part.get("content_type")) or "attachment"
    return f"[{kind.replace('_', ' ')}, not in the export]"


def _to_ms(seconds: object) -> int:
    return int(seconds * 1000) if isinstance(seconds, (int, float)) and 0 < seconds < _MAX_TIMESTAMP_S else 0
