"""Import of `logs.db`, the SQLite database of the command line tool `llm`, in the older and newer database layouts."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import re
import sqlite3
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat.chat.attachments import convert_file
from edgechat.chat.messages import Attachment, Conversation, Message, Role
from edgechat.errors import AttachmentError, ImportRefusedError
from edgechat.store.database import connect
from edgechat.store.formats.edgechat_json import (
    ConversationRecord,
    ImportedData,
    make_stable_id,
    sanitize,
)

_TABLES: Final = frozenset((
    "responses", "conversations", "prompt_attachments", "attachments", "threads", "turns", "messages", "parts",
    "fragments",
))  # fmt: skip
"""Tables of `logs.db` that an import may read."""
_Row = dict[str, Any]
_LAYOUT_ERRORS: Final = (
    KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError,
)  # fmt: skip


def read_database(path: Path) -> ImportedData:
    """Read all conversations of an llm log database. Raises ImportRefusedError for other databases."""
    try:
        with contextlib.closing(connect(path, "mode=ro")) as db:
            db.row_factory = _make_row
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            tables = _find_tables(db)
            reader = _LogsReader(db)
            if {"responses", "conversations"} <= tables:
                reader.read_all("conversations", reader.read_responses)
            if {"threads", "turns", "messages", "parts"} <= tables:
                reader.read_all("threads", reader.read_thread)
    except (sqlite3.Error, ImportRefusedError) as error:
        reason = str(error).rstrip(".")
        raise ImportRefusedError(f"{path} is not a log database of the `llm` tool: {reason}.") from error
    if reader.problems and not reader.records:
        raise ImportRefusedError(f"{path} is not a log database of the `llm` tool: {reader.problems[0]}")
    imported_data = sanitize(reader.records, reader.files, reader.problems)
    return msgspec.structs.replace(imported_data, n_left_out=reader.n_left_out)


def _make_row(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> _Row:
    """Convert a row to a dict by column name. Values become text, except counts, attachment contents and NULL."""
    names = [column[0] for column in cursor.description]
    return {name: _convert_value(name, value) for name, value in zip(names, values, strict=True)}


def _convert_value(column: str, value: Any) -> Any:
    if value is None or (column == "content" and isinstance(value, bytes)):
        return value
    if column == "output_tokens":
        return value if isinstance(value, int) else None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _find_tables(db: sqlite3.Connection) -> set[str]:
    """Return the names of all tables. Raises ImportRefusedError unless the tables to be read contain only stored data.

    Views, virtual tables and generated columns are refused, because they can produce any amount of data from a small
    file. At least one of the tables `responses` and `threads` must exist.
    """
    tables: set[str] = set()
    for row in db.execute("SELECT type, lower(name) AS name, sql FROM sqlite_master").fetchall():
        name = row["name"]
        if row["type"] == "table":
            tables.add(name)
        if name in _TABLES and (
            row["type"] != "table"
            or not re.match(r"create\s+table\b", str(row["sql"]), re.IGNORECASE)
            or any(column["hidden"] != "0" for column in db.execute(f"PRAGMA table_xinfo({name})"))
        ):
            raise ImportRefusedError(f"`{name}` is not a plain table.")
    if not tables & {"responses", "threads"}:
        raise ImportRefusedError("it has no table `responses` or `threads`.")
    return tables


class _LogsReader:
    """Converts database rows to conversations.

    `files` collects attachment bytes by SHA-256 hash; `problems` collects a message for each omission.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.records: list[ConversationRecord] = []
        self.files: dict[str, bytes] = {}
        self.problems: list[str] = []
        self.n_left_out = 0
        """Number of conversations that could not be read."""

    def read_all(self, table: str, read: Callable[[_Row], ConversationRecord | None]) -> None:
        """Convert each row of a table to a conversation with `read`; skip conversations whose rows are damaged."""
        for row in self._db.execute(f"SELECT * FROM {table} ORDER BY id").fetchall():
            try:
                record = read(row)
            except _LAYOUT_ERRORS:  # noqa: PERF203
                self.n_left_out += 1
                self.problems.append(
                    f"Conversation {row.get('id')} was left out: its rows are damaged or have an unknown layout."
                )
            else:
                self.records += [record] if record is not None else []

    def read_responses(self, row: _Row) -> ConversationRecord:
        """Read a conversation of the older layout, where a row has a prompt and its response."""
        messages: list[Message] = []
        system_prompt = ""
        turns = self._db.execute(
            "SELECT * FROM responses WHERE conversation_id = ? ORDER BY datetime_utc, id", (row["id"],)
        ).fetchall()
        for turn in turns:
            if turn["system"] and turn["system"] != system_prompt:
                system_prompt = turn["system"]
                self._append_message(messages, turn, "system", system_prompt)
            attachments = self._load_response_attachments(turn["id"])
            self._append_message(messages, turn, "user", turn["prompt"] or "", attachments)
            self._append_message(
                messages, turn, "assistant", turn["response"] or "", n_tokens=turn.get("output_tokens")
            )
        return _build_record(row["id"], row["name"], row["model"], messages)

    def _append_message(
        self, messages: list[Message], turn: _Row, role: Role, text: str,
        attachments: tuple[Attachment, ...] = (), n_tokens: int | None = None,
    ) -> None:  # fmt: skip
        is_reply = role == "assistant"
        messages.append(Message(
            id=make_stable_id("llm", str(turn["id"]), role), parent_id=messages[-1].id if messages else None, role=role,
            text=text, attachments=attachments, created_at_ms=_to_ms(turn["datetime_utc"]),
            reasoning=turn.get("reasoning") or "" if is_reply else "",
            model=turn["model"] or "" if is_reply else "", finish_reason="stop" if is_reply else "", n_tokens=n_tokens,
        ))  # fmt: skip

    def _load_response_attachments(self, response_id: str) -> tuple[Attachment, ...]:
        try:
            rows = self._db.execute(
                "SELECT a.* FROM prompt_attachments p JOIN attachments a ON a.id = p.attachment_id "
                'WHERE p.response_id = ? ORDER BY p."order"',
                (response_id,),
            ).fetchall()
        except sqlite3.OperationalError:  # the database is from a version of llm without attachments
            return ()
        return tuple(a for row in rows if (a := self._load_attachment(row)) is not None)

    def _load_attachment(self, row: _Row) -> Attachment | None:
        name = Path(row["path"] or row["url"] or row["id"]).name
        content = row["content"]
        if not isinstance(content, bytes) or not content:
            self.problems.append(f"The attachment {name} is not in the database and was left out.")
            return None
        try:
            content, media_type = convert_file(content, name)
        except AttachmentError as error:
            self.problems.append(f"{str(error).rstrip('.')}. The attachment was left out.")
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        self.files[sha256] = content
        return Attachment(sha256=sha256, name=name, media_type=media_type, size_bytes=len(content))

    def read_thread(self, thread: _Row) -> ConversationRecord | None:
        """Read a conversation of the newer layout, where a thread is a path in a message tree.

        Returns None for a thread without messages.
        """
        turns = self._db.execute("SELECT * FROM turns WHERE thread_id = ? ORDER BY id", (thread["id"],)).fetchall()
        messages_by_hash: dict[str, Message] = {}
        for turn in turns:
            for row in self._load_path(turn["tip_message_hash"], messages_by_hash):
                messages_by_hash[row["hash"]] = self._build_message(thread["id"], row, turn)
        head = messages_by_hash.get(thread["tip_message_hash"])
        if head is None:
            return None
        record = _build_record(thread["id"], thread["name"], turns[-1]["model"], list(messages_by_hash.values()))
        return msgspec.structs.replace(
            record, conversation=msgspec.structs.replace(record.conversation, head_id=head.id)
        )

    def _load_path(self, tip_hash: str | None, known_hashes: Container[str]) -> list[_Row]:
        """Return the rows of the path to message `tip_hash`, from the root or after a message in `known_hashes`."""
        path: list[_Row] = []
        visited_hashes: set[str] = set()
        while tip_hash is not None and tip_hash not in visited_hashes and tip_hash not in known_hashes:
            visited_hashes.add(tip_hash)
            row = self._db.execute("SELECT * FROM messages WHERE hash = ?", (tip_hash,)).fetchone()
            if row is None:
                break
            path.append(row)
            tip_hash = row["parent_hash"]
        return path[::-1]

    def _build_message(self, thread_id: str, row: _Row, turn: _Row) -> Message:
        texts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool": []}
        attachments: list[Attachment] = []
        parts = self._db.execute(
            "SELECT * FROM parts WHERE message_hash = ? ORDER BY position", (row["hash"],)
        ).fetchall()
        for part in parts:
            payload = msgspec.json.decode(part["payload"], type=dict[str, Any]) if part["payload"] else {}
            if part["type"] in ("text", "reasoning"):
                texts[part["type"]].append(self._read_part_text(part["text"], payload))
            elif part["type"] in ("tool_call", "tool_result"):
                content = payload.get("output") or msgspec.json.encode(payload.get("arguments", {})).decode()
                texts["tool"].append(f"{part['tool_name']}: {content}")
            elif part["type"] == "attachment":
                attachment_id = (payload.get("attachment") or {}).get("id")
                attachment_row = self._db.execute("SELECT * FROM attachments WHERE id = ?", (attachment_id,)).fetchone()
                attachment = self._load_attachment(attachment_row) if attachment_row is not None else None
                attachments += [attachment] if attachment is not None else []
        role: Role = row["role"] if row["role"] in ("system", "user", "assistant", "tool") else "tool"
        is_reply = role == "assistant"
        return Message(
            id=make_stable_id("llm", thread_id, row["hash"]), role=role,
            parent_id=make_stable_id("llm", thread_id, row["parent_hash"]) if row["parent_hash"] else None,
            text="".join(texts["text"]) or "\n".join(texts["tool"]), reasoning="".join(texts["reasoning"]),
            attachments=tuple(attachments), created_at_ms=_to_ms(turn["datetime_utc"]),
            model=turn["model"] or "" if is_reply else "", finish_reason="stop" if is_reply else "",
            n_tokens=turn["output_tokens"] if is_reply and row["hash"] == turn["tip_message_hash"] else None,
        )  # fmt: skip

    def _read_part_text(self, text: str | None, payload: Mapping[str, Any]) -> str:
        """Return the text of a message part, with the text of shared fragments in place of references to them."""
        if text is not None:
            return text
        texts: list[str] = []
        for reference in payload.get("text_ref") or []:
            if "literal" in reference:
                texts.append(reference["literal"])
                continue
            row = self._db.execute(
                "SELECT content FROM fragments WHERE id = ?", (reference.get("fragment"),)
            ).fetchone()
            texts.append(row["content"] if row is not None else "")
        return "".join(texts)


def _build_record(source: str, name: str | None, model: str | None, messages: list[Message]) -> ConversationRecord:
    times_ms = [m.created_at_ms for m in messages] or [0]
    return ConversationRecord(
        conversation=Conversation(
            id=make_stable_id("llm", str(source)), title=name or "", model=model or "", created_at_ms=min(times_ms),
            updated_at_ms=max(times_ms), head_id=messages[-1].id if messages else None,
        ),
        messages=messages,
    )  # fmt: skip


def _to_ms(timestamp: str | None) -> int:
    try:
        moment = dt.datetime.fromisoformat((timestamp or "").replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.timezone.utc)
        return max(0, int(moment.timestamp() * 1000))
    except (ValueError, OverflowError):
        return 0
