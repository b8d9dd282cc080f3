"""Conversations as JSON: everything of them, and the same again when it is read back."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from edgechat.chat.messages import Conversation, Message
from edgechat.errors import ImportRefusedError, StoreError
from edgechat.store.sqlite import SqliteStore

VERSION: Final = 1
_SOUND_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
# Times are the upper 43 bits of keys: this is in the year 2248.
_LATEST_MS: Final = (1 << 43) - (1 << 20)


class ConversationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation with all its branches."""

    conversation: Conversation
    messages: list[Message]
    """Parents before children."""


class ExportArchive(msgspec.Struct, frozen=True, kw_only=True):
    """What an export file holds."""

    format: Literal["edgechat"] = "edgechat"
    version: int = VERSION
    conversations: list[ConversationRecord]
    attachments: dict[str, bytes] = {}
    """Contents by SHA-256; base64 in JSON."""


class ImportedData(msgspec.Struct, frozen=True, kw_only=True):
    """What an import file holds, made sound."""

    records: list[ConversationRecord]
    attachments: dict[str, bytes] = {}
    problems: list[str] = []
    """What had to be mended or left out."""


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did, or would do."""

    conversations: int
    """Conversations that are new."""
    messages: int
    """Messages that are new."""
    existing: int
    """Messages that were here already."""
    problems: list[str]


def export(store: SqliteStore, ids: Iterable[str]) -> ExportArchive:
    """Conversations with all their branches and attachments."""
    records = [load_record(store, i) for i in ids]
    hashes = sorted({a.sha256 for r in records for m in r.messages for a in m.attachments})
    contents: dict[str, bytes] = {}
    for sha256 in hashes:
        with contextlib.suppress(StoreError):  # what is lost or damaged must not hold back the rest
            contents[sha256] = store.read_attachment(sha256)
    return ExportArchive(conversations=records, attachments=contents)


def load_record(store: SqliteStore, conversation_id: str) -> ConversationRecord:
    """One conversation with all its branches."""
    return ConversationRecord(
        conversation=store.conversation(conversation_id), messages=store.messages(conversation_id)
    )


def decode(data: bytes) -> ImportedData:
    """An archive from a file. Raises ImportRefusedError if it is none of ours, or of a newer version."""
    try:
        archive = msgspec.json.decode(data, type=ExportArchive)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ImportRefusedError(f"this is not an export of edgechat: {error}") from error
    if archive.version > VERSION:
        raise ImportRefusedError(
            f"this export is of version {archive.version}, this edgechat knows {VERSION}: update edgechat"
        )
    problems: list[str] = [
        f"the attachment {sha256[:12]} is not what its hash says; it was left out"
        for sha256, content in archive.attachments.items()
        if hashlib.sha256(content).hexdigest() != sha256
    ]
    files = {h: c for h, c in archive.attachments.items() if hashlib.sha256(c).hexdigest() == h}
    return sanitize(archive.conversations, files, problems)


def sanitize(records: Sequence[ConversationRecord], files: dict[str, bytes], problems: list[str]) -> ImportedData:
    """Records whose messages form trees, whatever the file said."""
    kept: list[ConversationRecord] = []
    seen: set[str] = set()
    for item in records:
        name = item.conversation.title or item.conversation.id
        messages = [_with_files(sanitize_fields(m), files, name, problems) for m in item.messages]
        ordered = _with_own_children(list(parents_first(messages, name, seen, problems)))
        if ordered:
            kept.append(ConversationRecord(conversation=sanitize_fields(item.conversation), messages=ordered))
    return ImportedData(records=kept, attachments=files, problems=problems)


def _with_own_children(messages: list[Message]) -> list[Message]:
    """The messages; none remembers a child that is not its own."""
    parents = {m.id: m.parent_id for m in messages}
    return [
        m if m.active_child_id is None or parents.get(m.active_child_id) == m.id
        else msgspec.structs.replace(m, active_child_id=None)
        for m in messages
    ]  # fmt: skip


T = TypeVar("T", Conversation, Message)


def sanitize_fields(value: T) -> T:
    """Texts and numbers that a database can hold, and ids that a terminal and a command line can."""
    changes: dict[str, Any] = {}
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if isinstance(field, str) and not _encodable(field):
            changes[name] = field = field.encode("utf-8", "replace").decode()
        if isinstance(field, str) and (name == "id" or name.endswith("_id")) and not _SOUND_ID.fullmatch(field):
            changes[name] = stable_id("import", field)
        if isinstance(field, int) and name.startswith(("n_", "created", "updated")):
            changes[name] = min(max(field, 0), _LATEST_MS)
    return msgspec.structs.replace(value, **changes)


def stable_id(*parts: str) -> str:
    """An id that the same parts get every time."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_files(message: Message, files: dict[str, bytes], name: str, problems: list[str]) -> Message:
    missing = [a for a in message.attachments if a.sha256 not in files]
    if not missing:
        return message
    problems += [f"{name}: the attachment {a.name} is not in the file; it was left out" for a in missing]
    return msgspec.structs.replace(message, attachments=tuple(a for a in message.attachments if a.sha256 in files))


def parents_first(messages: Sequence[Message], name: str, seen: set[str], problems: list[str]) -> Iterator[Message]:
    """The messages in an order in which each comes after its parent, otherwise as they were.

    Of several with one id the first counts; a missing parent, or one that is also a descendant, makes a root.
    `seen` has the ids of earlier conversations, and gets these.
    """
    by_id: dict[str, Message] = {}
    for message in messages:
        if message.id in by_id or message.id in seen:
            problems.append(f"{name}: message {message.id} is there twice; the first one was taken")
        else:
            by_id[message.id] = message
    seen.update(by_id)
    done: set[str] = set()
    for start in by_id.values():
        chain: list[Message] = []
        waiting: set[str] = set()
        at: Message | None = start
        while at is not None and at.id not in done:
            chain.append(at)
            waiting.add(at.id)
            parent_id = at.parent_id
            if parent_id is not None and (parent_id not in by_id or parent_id in waiting):
                why = "is not in the file" if parent_id not in by_id else "is also below it"
                problems.append(f"{name}: the parent of message {at.id} {why}; it now starts a branch")
                chain[-1] = msgspec.structs.replace(at, parent_id=None)
                break
            at = by_id[parent_id] if parent_id is not None else None
        for message in reversed(chain):
            done.add(message.id)
            yield message


def merge(store: SqliteStore, incoming: ImportedData, *, dry_run: bool) -> ImportResult:
    """Add what is new to the store; with `dry_run` only say what that would be."""
    new = known = added = 0
    here = set(store.conversation_ids())
    for item in incoming.records:
        hashes = {a.sha256 for m in item.messages for a in m.attachments}
        if dry_run:
            n_new = len(store.missing_ids([m.id for m in item.messages]))
        else:
            files = {h: incoming.attachments[h] for h in hashes}
            n_new = store.merge(item.conversation, item.messages, files)
        added += item.conversation.id not in here
        new += n_new
        known += len(item.messages) - n_new
    return ImportResult(conversations=added, messages=new, existing=known, problems=incoming.problems)


def copy_conversation(source: SqliteStore, target: SqliteStore, conversation_id: str) -> None:
    """One conversation with all its branches and attachments, into another store."""
    copied = export(source, [conversation_id])
    for item in copied.conversations:
        target.merge(item.conversation, item.messages, copied.attachments)
