"""Lossless JSON exports of conversations with all branches, and merging of imported conversations into a store."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from edgechat import config
from edgechat.chat.messages import Conversation, Message
from edgechat.decode_errors import describe_json_error
from edgechat.errors import ImportRefusedError, StoreError
from edgechat.humanize import format_count, shorten
from edgechat.store.row_repair import ID_PATTERN, MAX_TIMESTAMP_MS
from edgechat.store.sqlite import SqliteStore

VERSION: Final = 1
MAX_CONVERSATIONS: Final = 100_000
"""Maximum number of conversations in an import."""
MAX_PROBLEM_CHARS: Final = 300
"""Maximum length, in characters, of a message about a problem in an import."""
_MAX_PROBLEMS: Final = 50
# Limits for imported titles, names and tags. Titles that edgechat writes have at most 200 characters.
_MAX_NAME_CHARS: Final = 1000
_MAX_TAGS: Final = 100
_MAX_QUOTED_CHARS: Final = 60
# Number of conversations per transaction. With one conversation per transaction, importing 20,000 took 216 s.
_BATCH_SIZE: Final = 200
_MAX_SETTINGS_BYTES: Final = 1 << 20


class ConversationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation and its messages, as read from or written to a file."""

    conversation: Conversation
    messages: list[Message]
    """Messages of all branches, parents before children."""


class ExportArchive(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a JSON export: conversations and their attachments."""

    format: Literal["edgechat"] = "edgechat"
    version: int = VERSION
    conversations: list[ConversationRecord]
    attachments: dict[str, bytes] = {}
    """Attachment bytes by SHA-256 hash; msgspec encodes the bytes as base64."""


class ImportedData(msgspec.Struct, frozen=True, kw_only=True):
    """The sanitised conversations of an import file."""

    records: list[ConversationRecord]
    attachments: dict[str, bytes] = {}
    """Attachment bytes by SHA-256 hash."""
    problems: list[str] = []
    """Messages for the user about repaired and omitted data."""
    n_left_out: int = 0
    """Number of conversations that could not be read."""


class ImportResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an import, or the expected result in a dry run."""

    n_conversations: int = msgspec.field(name="conversations")
    """Number of new conversations."""
    n_messages: int = msgspec.field(name="messages")
    """Number of new messages."""
    n_existing: int = msgspec.field(name="known")
    """Number of messages that were already in the store."""
    n_left_out: int = msgspec.field(name="left_out")
    """Number of conversations that could not be read."""
    problems: list[str]


def export(store: SqliteStore, ids: Iterable[str]) -> ExportArchive:
    """Export conversations with all branches and attachments; leave out missing and damaged data.

    Adds a notice to the store about conversations that are left out. Raises StoreError if no conversation can be read.
    """
    records: list[ConversationRecord] = []
    errors: list[StoreError] = []
    for conversation_id in ids:
        try:
            records.append(load_record(store, conversation_id))
        except StoreError as error:  # noqa: PERF203  (one damaged conversation must not stop the export)
            errors.append(error)
    if errors and not records:
        raise errors[0]
    if errors:
        store.notices.append(f"{format_count(len(errors), 'conversation')} could not be exported. {errors[0]}")
    hashes = sorted({a.sha256 for r in records for m in r.messages for a in m.attachments})
    contents: dict[str, bytes] = {}
    for sha256 in hashes:
        with contextlib.suppress(StoreError):
            contents[sha256] = store.read_attachment(sha256)
    return ExportArchive(conversations=records, attachments=contents)


def load_record(store: SqliteStore, conversation_id: str) -> ConversationRecord:
    """Load a conversation with the messages of all branches from the store."""
    return ConversationRecord(
        conversation=store.conversation(conversation_id), messages=store.messages(conversation_id)
    )


def decode(data: bytes) -> ImportedData:
    """Decode a JSON export. Raises ImportRefusedError if the data has another format or a newer version."""
    try:
        archive = msgspec.json.decode(data, type=ExportArchive)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem, path = describe_json_error(error, {})
        raise ImportRefusedError(f"the file is not an edgechat export: {path or 'it'} {problem}.") from error
    if archive.version > VERSION:
        raise ImportRefusedError(
            f"the export uses format version {archive.version}, but this version of edgechat supports only "
            f"versions up to {VERSION}. Update edgechat."
        )
    files: dict[str, bytes] = {}
    problems: list[str] = []
    for sha256, content in archive.attachments.items():
        if hashlib.sha256(content).hexdigest() == sha256:
            files[sha256] = content
        else:
            problems.append(f"The attachment {sha256[:12]} does not match its hash and was left out.")
    return sanitize(archive.conversations, files, problems)


def sanitize(records: Sequence[ConversationRecord], files: dict[str, bytes], problems: list[str]) -> ImportedData:
    """Repair invalid IDs and texts, inconsistent trees, and references to missing attachments in imported records.

    `files` maps SHA-256 hashes to attachment bytes. Appends a message for the user to `problems` for each repaired tree
    and for each omitted message or attachment.
    """
    if len(records) > MAX_CONVERSATIONS:
        raise ImportRefusedError(f"the file has {len(records)} conversations; the limit is {MAX_CONVERSATIONS}.")
    sanitized_records: list[ConversationRecord] = []
    seen_ids: set[str] = set()
    for record in records:
        title = shorten(record.conversation.title or record.conversation.id, _MAX_QUOTED_CHARS)
        messages = [_without_missing_attachments(sanitize_fields(m), files, title, problems) for m in record.messages]
        ordered_messages = _with_valid_active_children(list(sort_parents_first(messages, title, seen_ids, problems)))
        if ordered_messages:
            conversation = sanitize_fields(record.conversation)
            sanitized_records.append(ConversationRecord(conversation=conversation, messages=ordered_messages))
    n_omitted = len(problems) - _MAX_PROBLEMS
    shown_problems = [shorten(problem, MAX_PROBLEM_CHARS) for problem in problems[:_MAX_PROBLEMS]]
    if n_omitted > 0:
        shown_problems.append(f"There are {format_count(n_omitted, 'more problem')}.")
    return ImportedData(records=sanitized_records, attachments=files, problems=shown_problems)


def _with_valid_active_children(messages: list[Message]) -> list[Message]:
    """Return the messages, with each `active_child_id` set to None if it is not the ID of a child."""
    parents = {m.id: m.parent_id for m in messages}
    return [
        m if m.active_child_id is None or parents.get(m.active_child_id) == m.id
        else msgspec.structs.replace(m, active_child_id=None)
        for m in messages
    ]  # fmt: skip


T = TypeVar("T", Conversation, Message)


def sanitize_fields(value: T) -> T:
    """Return a copy with lone surrogates in texts replaced, invalid IDs hashed, and numbers in the database's range."""
    changes: dict[str, Any] = {}
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if isinstance(field, str) and not _is_encodable(field):
            changes[name] = field = field.encode("utf-8", "replace").decode()
        if isinstance(field, str) and (name == "id" or name.endswith("_id")) and not ID_PATTERN.fullmatch(field):
            changes[name] = make_stable_id("import", field)
        if isinstance(field, int) and name.startswith(("n_", "created", "updated")):
            changes[name] = min(max(field, 0), MAX_TIMESTAMP_MS)
        if isinstance(field, str) and name not in ("text", "reasoning") and len(field) > _MAX_NAME_CHARS:
            changes[name] = shorten(field, _MAX_NAME_CHARS)
    if isinstance(value, Conversation):
        changes["tags"] = tuple(_sanitize_text(tag) for tag in value.tags[:_MAX_TAGS])
        changes["settings"] = _sanitize_settings(value.settings)
    elif value.attachments:
        changes["attachments"] = tuple(
            msgspec.structs.replace(a, name=_sanitize_text(a.name), media_type=_sanitize_text(a.media_type))
            for a in value.attachments
        )
    return msgspec.structs.replace(value, **changes)


def _sanitize_text(text: str) -> str:
    return shorten(text.encode("utf-8", "replace").decode(), _MAX_NAME_CHARS)


def _sanitize_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a conversation's valid settings without the invalid ones; return {} if the valid ones are too long."""
    valid_settings = {name: value for name, value in settings.items() if not config.check(name, value)}
    is_too_long = len(msgspec.json.encode(valid_settings)) > _MAX_SETTINGS_BYTES
    return {} if is_too_long else valid_settings


def make_stable_id(*parts: str) -> str:
    """Return an ID computed from a hash of `parts`, so that two imports of a file yield the same IDs."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_missing_attachments(message: Message, files: dict[str, bytes], title: str, problems: list[str]) -> Message:
    missing_attachments = [a for a in message.attachments if a.sha256 not in files]
    if not missing_attachments:
        return message
    problems += [f"{title}: the attachment {a.name} is not in the file and was left out." for a in missing_attachments]
    return msgspec.structs.replace(message, attachments=tuple(a for a in message.attachments if a.sha256 in files))


def sort_parents_first(
    messages: Sequence[Message], title: str, seen_ids: set[str], problems: list[str]
) -> Iterator[Message]:  # fmt: skip
    """Yield the messages of one conversation with every parent before its children, otherwise in the given order.

    If several messages have the same ID, only the first one is yielded. A message becomes a root if its parent is
    missing or is also its descendant. `seen_ids` contains the message IDs of earlier conversations, and the IDs of
    `messages` are added to it. Appends a message for the user, which starts with the conversation's `title`, to
    `problems` for each omitted or changed message.
    """
    by_id: dict[str, Message] = {}
    for message in messages:
        if message.id in by_id or message.id in seen_ids:
            problems.append(f"{title}: message {message.id} appears twice; only the first copy was imported.")
        else:
            by_id[message.id] = message
    seen_ids.update(by_id)
    yielded_ids: set[str] = set()
    for first_message in by_id.values():
        chain: list[Message] = []
        chain_ids: set[str] = set()
        next_message: Message | None = first_message
        while next_message is not None and next_message.id not in yielded_ids:
            message = next_message
            chain.append(message)
            chain_ids.add(message.id)
            parent_id = message.parent_id
            if parent_id is not None and (parent_id not in by_id or parent_id in chain_ids):
                reason = "is not in the file" if parent_id not in by_id else "is also its descendant"
                problems.append(f"{title}: the parent of message {message.id} {reason}. The message starts a branch.")
                chain[-1] = msgspec.structs.replace(message, parent_id=None)
                break
            next_message = by_id[parent_id] if parent_id is not None else None
        for message in reversed(chain):
            yielded_ids.add(message.id)
            yield message


def merge(
    store: SqliteStore, import_data: ImportedData, *, dry_run: bool,
    on_progress: Callable[[int, int], None] = lambda n_merged, n_total: None,
) -> ImportResult:  # fmt: skip
    """Add the conversations and messages that are not yet in the store; with `dry_run`, only count them.

    Calls `on_progress` before each transaction, with the number of merged conversations and the total number.
    """
    records = import_data.records
    stored_ids = set(store.conversation_ids())
    n_new = 0
    for start in range(0, len(records), _BATCH_SIZE):
        on_progress(start, len(records))
        batch = records[start : start + _BATCH_SIZE]
        if dry_run:
            n_new += len(store.missing_ids([m.id for record in batch for m in record.messages]))
        else:
            n_new += store.merge([(r.conversation, r.messages) for r in batch], import_data.attachments)
    return ImportResult(
        n_conversations=sum(record.conversation.id not in stored_ids for record in records), n_messages=n_new,
        n_existing=sum(len(record.messages) for record in records) - n_new, n_left_out=import_data.n_left_out,
        problems=import_data.problems,
    )  # fmt: skip


def copy_conversation(source: SqliteStore, target: SqliteStore, conversation_id: str) -> None:
    """Copy a conversation with all branches and attachments into another store."""
    archive = export(source, [conversation_id])
    for record in archive.conversations:
        target.merge([(record.conversation, record.messages)], archive.attachments)
