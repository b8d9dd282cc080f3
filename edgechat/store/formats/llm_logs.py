"""Import of `logs.db`, the SQLite database of the command line tool `llm`, in the older and newer database layouts."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgechat.chat.attachments import detect_media_type
from edgechat.chat.messages import Attachment, Conversation, Message, Role
from edgechat.errors import AttachmentError, ImportRefusedError
from edgechat.store.formats.edgechat_json import ConversationRecord, ImportedData, make_stable_id, sanitize


def read_database(path: Path) -> ImportedData:
    """Read all conversations of an llm log database. Raises ImportRefusedError for other databases."""
    reader = _LogsReader()
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            tables = {row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables & {"responses", "threads"}:
                raise ImportRefusedError(
                    f"{path} is not a log database of the `llm` tool: it has no table `responses` or `threads`."
                )
            records = [
                *(reader.read_responses(db) if {"responses", "conversations"} <= tables else ()),
                *(reader.read_threads(db) if {"threads", "turns", "messages", "parts"} <= tables else ()),
            ]
    except (sqlite3.Error, msgspec.MsgspecError, IndexError, AttributeError, TypeError) as error:
        raise ImportRefusedError(f"Cannot read {path} as a log database of the `llm` tool: {error}.") from error
    return sanitize(records, reader.files, reader.problems)


class _LogsReader:
    """Converts database rows to conversations.

    `files` collects attachment bytes by SHA-256 hash; `problems` collects a message for each omitted attachment.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.problems: list[str] = []

    def read_responses(self, db: sqlite3.Connection) -> Iterator[ConversationRecord]:
        """Yield the conversations of a database in the older layout, where a row has a prompt and its response."""
        for row in db.execute("SELECT * FROM conversations ORDER BY id").fetchall():
            messages: list[Message] = []
            system_prompt = ""
            turns = db.execute(
                "SELECT * FROM responses WHERE conversation_id = ? ORDER BY datetime_utc, id", (row["id"],)
            ).fetchall()
            for turn in turns:
                if turn["system"] and turn["system"] != system_prompt:
                    system_prompt = turn["system"]
                    self._append_message(messages, turn, "system", system_prompt)
                attachments, n_tokens = (
                    self._load_response_attachments(db, turn["id"]),
                    _get_column(turn, "output_tokens"),
                )
                self._append_message(messages, turn, "user", turn["prompt"] or "", attachments)
                self._append_message(messages, turn, "assistant", turn["response"] or "", n_tokens=n_tokens)
            yield _build_record(row["id"], row["name"], row["model"], messages)

    def _append_message(
        self, messages: list[Message], turn: sqlite3.Row, role: Role, text: str,
        attachments: tuple[Attachment, ...] = (), n_tokens: int | None = None,
    ) -> None:  # fmt: skip
        is_reply = role == "assistant"
        messages.append(Message(
            id=make_stable_id("llm", turn["id"], role), parent_id=messages[-1].id if messages else None, role=role,
            text=text, attachments=attachments, created_at_ms=_to_ms(turn["datetime_utc"]),
            reasoning=str(_get_column(turn, "reasoning") or "") if is_reply else "",
            model=turn["model"] or "" if is_reply else "", finish_reason="stop" if is_reply else "", n_tokens=n_tokens,
        ))  # fmt: skip

    def _load_response_attachments(self, db: sqlite3.Connection, response_id: str) -> tuple[Attachment, ...]:
        try:
            rows = db.execute(
                "SELECT a.* FROM prompt_attachments p JOIN attachments a ON a.id = p.attachment_id "
                'WHERE p.response_id = ? ORDER BY p."order"',
                (response_id,),
            ).fetchall()
        except sqlite3.OperationalError:  # the database is from a version of llm without attachments
            return ()
        return tuple(a for row in rows if (a := self._load_attachment(row)) is not None)

    def _load_attachment(self, row: sqlite3.Row) -> Attachment | None:
        name = Path(row["path"] or row["url"] or row["id"]).name
        content = row["content"]
        if not content:
            self.problems.append(f"The attachment {name} is not in the database and was left out.")
            return None
        try:
            media_type = detect_media_type(content, name)
        except AttachmentError as error:
            self.problems.append(f"{str(error).rstrip('.')}. The attachment was left out.")
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        self.files[sha256] = content
        return Attachment(sha256=sha256, name=name, media_type=media_type, size_bytes=len(content))

    def read_threads(self, db: sqlite3.Connection) -> Iterator[ConversationRecord]:
        """Yield the conversations of a database in the newer layout, where a thread is a path in a message tree."""
        for thread in db.execute("SELECT * FROM threads ORDER BY id").fetchall():
            turns = db.execute("SELECT * FROM turns WHERE thread_id = ? ORDER BY id", (thread["id"],)).fetchall()
            messages_by_hash: dict[str, Message] = {}
            for turn in turns:
                for row in _load_path(db, turn["tip_message_hash"]):
                    if row["hash"] not in messages_by_hash:
                        messages_by_hash[row["hash"]] = self._build_message(db, thread["id"], row, turn)
            if thread["tip_message_hash"] is None:
                continue
            model = turns[-1]["model"] if turns else ""
            record = _build_record(thread["id"], thread["name"], model, list(messages_by_hash.values()))
            head = messages_by_hash.get(thread["tip_message_hash"])
            if head is not None:
                yield msgspec.structs.replace(
                    record, conversation=msgspec.structs.replace(record.conversation, head_id=head.id)
                )

    def _build_message(self, db: sqlite3.Connection, thread_id: str, row: sqlite3.Row, turn: sqlite3.Row) -> Message:
        texts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool": []}
        attachments: list[Attachment] = []
        parts = db.execute("SELECT * FROM parts WHERE message_hash = ? ORDER BY position", (row["hash"],)).fetchall()
        for part in parts:
            payload = msgspec.json.decode(part["payload"], type=dict[str, Any]) if part["payload"] else {}
            if part["type"] in ("text", "reasoning"):
                texts[part["type"]].append(_read_part_text(db, part["text"], payload))
            elif part["type"] in ("tool_call", "tool_result"):
                content = payload.get("output") or msgspec.json.encode(payload.get("arguments", {})).decode()
                texts["tool"].append(f"{part['tool_name']}: {content}")
            elif part["type"] == "attachment":
                attachment_id = (payload.get("attachment") or {}).get("id")
                attachment_row = db.execute("SELECT * FROM attachments WHERE id = ?", (attachment_id,)).fetchone()
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


def _load_path(db: sqlite3.Connection, tip_hash: str | None) -> list[sqlite3.Row]:
    """Return the message rows from the root to the message with the hash `tip_hash`."""
    path: list[sqlite3.Row] = []
    visited_hashes: set[str] = set()
    while tip_hash is not None and tip_hash not in visited_hashes:
        visited_hashes.add(tip_hash)
        row = db.execute("SELECT * FROM messages WHERE hash = ?", (tip_hash,)).fetchone()
        if row is None:
            break
        path.append(row)
        tip_hash = row["parent_hash"]
    return path[::-1]


def _read_part_text(db: sqlite3.Connection, text: str | None, payload: Mapping[str, Any]) -> str:
    """Return the text of a message part, with the text of shared fragments in place of references to them."""
    if text is not None:
        return text
    texts: list[str] = []
    for reference in payload.get("text_ref") or []:
        if "literal" in reference:
            texts.append(reference["literal"])
            continue
        row = db.execute("SELECT content FROM fragments WHERE id = ?", (reference.get("fragment"),)).fetchone()
        texts.append(row["content"] if row is not None else "")
    return "".join(texts)


def _build_record(source: str, name: str | None, model: str | None, messages: list[Message]) -> ConversationRecord:
    times_ms = [m.created_at_ms for m in messages] or [0]
    return ConversationRecord(
        conversation=Conversation(
            id=make_stable_id("llm", source), title=name or "", model=model or "", created_at_ms=min(times_ms),
            updated_at_ms=max(times_ms), head_id=messages[-1].id if messages else None,
        ),
        messages=messages,
    )  # fmt: skip


def _get_column(row: sqlite3.Row, column: str) -> Any:
    """Return the value of a column, or None if this version of the database has no such column."""
    return row[column] if column in row.keys() else None  # noqa: SIM118  (`in` on a Row tests values, not names)


def _to_ms(timestamp: str | None) -> int:
    try:
        moment = dt.datetime.fromisoformat((timestamp or "").replace("Z", "+00:00"))
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.timezone.utc)
    return max(0, int(moment.timestamp() * 1000))
