"""Conversations out of the `logs.db` of the command line tool `llm`, of its older layout and its newer one."""

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
from edgechat.store.formats.edgechat_json import ConversationRecord, ImportedData, sanitize, stable_id


def read_database(path: Path) -> ImportedData:
    """Every conversation in the database, which is not changed. Raises ImportRefusedError if it is none of llm's."""
    reader = _LogsReader()
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            tables = {row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables & {"responses", "threads"}:
                raise ImportRefusedError(
                    f"{path} is a database, but not one of llm: it has no responses and no threads"
                )
            records = [
                *(reader.responses(db) if {"responses", "conversations"} <= tables else ()),
                *(reader.threads(db) if {"threads", "turns", "messages", "parts"} <= tables else ()),
            ]
    except (sqlite3.Error, msgspec.MsgspecError, IndexError, AttributeError, TypeError) as error:
        raise ImportRefusedError(f"{path} cannot be read as a database of llm: {error}") from error
    return sanitize(records, reader.files, reader.problems)


class _LogsReader:
    """Collects attachments on the way."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.problems: list[str] = []

    def responses(self, db: sqlite3.Connection) -> Iterator[ConversationRecord]:
        """The older layout: a prompt and a response to a row."""
        for row in db.execute("SELECT * FROM conversations ORDER BY id").fetchall():
            messages: list[Message] = []
            system = ""
            found = db.execute(
                "SELECT * FROM responses WHERE conversation_id = ? ORDER BY datetime_utc, id", (row["id"],)
            ).fetchall()
            for turn in found:
                if turn["system"] and turn["system"] != system:
                    system = turn["system"]
                    self._add(messages, turn, "system", system)
                self._add(messages, turn, "user", turn["prompt"] or "", self._attached_to(db, turn["id"]))
                self._add(messages, turn, "assistant", turn["response"] or "", n_tokens=_get(turn, "output_tokens"))
            yield _record(row["id"], row["name"], row["model"], messages)

    def _add(
        self, messages: list[Message], turn: sqlite3.Row, role: Role, text: str,
        attachments: tuple[Attachment, ...] = (), n_tokens: int | None = None,
    ) -> None:  # fmt: skip
        answer = role == "assistant"
        messages.append(Message(
            id=stable_id("llm", turn["id"], role), parent_id=messages[-1].id if messages else None, role=role,
            text=text, attachments=attachments, created_at_ms=_ms(turn["datetime_utc"]),
            reasoning=str(_get(turn, "reasoning") or "") if answer else "",
            model=turn["model"] or "" if answer else "", finish_reason="stop" if answer else "", n_tokens=n_tokens,
        ))  # fmt: skip

    def _attached_to(self, db: sqlite3.Connection, response_id: str) -> tuple[Attachment, ...]:
        try:
            found = db.execute(
                "SELECT a.* FROM prompt_attachments p JOIN attachments a ON a.id = p.attachment_id "
                'WHERE p.response_id = ? ORDER BY p."order"',
                (response_id,),
            ).fetchall()
        except sqlite3.OperationalError:  # older than attachments
            return ()
        return tuple(a for row in found if (a := self._attachment(row)) is not None)

    def _attachment(self, row: sqlite3.Row) -> Attachment | None:
        name = Path(row["path"] or row["url"] or row["id"]).name
        content = row["content"]
        if not content:
            self.problems.append(f"the attachment {name} is not in the database; it was left out")
            return None
        try:
            kind = detect_media_type(content, name)
        except AttachmentError as error:
            self.problems.append(f"{error}; it was left out")
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        self.files[sha256] = content
        return Attachment(sha256=sha256, name=name, media_type=kind, size_bytes=len(content))

    def threads(self, db: sqlite3.Connection) -> Iterator[ConversationRecord]:
        """The newer layout: messages that know their parent, shared by the threads that go through them."""
        for thread in db.execute("SELECT * FROM threads ORDER BY id").fetchall():
            turns = db.execute("SELECT * FROM turns WHERE thread_id = ? ORDER BY id", (thread["id"],)).fetchall()
            by_hash: dict[str, Message] = {}
            for turn in turns:
                for row in _chain(db, turn["tip_message_hash"]):
                    if row["hash"] not in by_hash:
                        by_hash[row["hash"]] = self._message(db, thread["id"], row, turn)
            if thread["tip_message_hash"] is None:
                continue
            record = _record(thread["id"], thread["name"], turns[-1]["model"] if turns else "", list(by_hash.values()))
            head = by_hash.get(thread["tip_message_hash"])
            if head is not None:
                yield msgspec.structs.replace(
                    record, conversation=msgspec.structs.replace(record.conversation, head_id=head.id)
                )

    def _message(self, db: sqlite3.Connection, thread_id: str, row: sqlite3.Row, turn: sqlite3.Row) -> Message:
        texts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool": []}
        attachments: list[Attachment] = []
        parts = db.execute("SELECT * FROM parts WHERE message_hash = ? ORDER BY position", (row["hash"],)).fetchall()
        for part in parts:
            payload = msgspec.json.decode(part["payload"], type=dict[str, Any]) if part["payload"] else {}
            if part["type"] in ("text", "reasoning"):
                texts[part["type"]].append(_resolved(db, part["text"], payload))
            elif part["type"] in ("tool_call", "tool_result"):
                shown = payload.get("output") or msgspec.json.encode(payload.get("arguments", {})).decode()
                texts["tool"].append(f"{part['tool_name']}: {shown}")
            elif part["type"] == "attachment":
                wanted = (payload.get("attachment") or {}).get("id")
                found = db.execute("SELECT * FROM attachments WHERE id = ?", (wanted,)).fetchone()
                attached = self._attachment(found) if found is not None else None
                attachments += [attached] if attached is not None else []
        role: Role = row["role"] if row["role"] in ("system", "user", "assistant", "tool") else "tool"
        answer = role == "assistant"
        return Message(
            id=stable_id("llm", thread_id, row["hash"]), role=role,
            parent_id=stable_id("llm", thread_id, row["parent_hash"]) if row["parent_hash"] else None,
            text="".join(texts["text"]) or "\n".join(texts["tool"]), reasoning="".join(texts["reasoning"]),
            attachments=tuple(attachments), created_at_ms=_ms(turn["datetime_utc"]),
            model=turn["model"] or "" if answer else "", finish_reason="stop" if answer else "",
            n_tokens=turn["output_tokens"] if answer and row["hash"] == turn["tip_message_hash"] else None,
        )  # fmt: skip


def _chain(db: sqlite3.Connection, tip: str | None) -> list[sqlite3.Row]:
    """Messages from a root to `tip`."""
    chain: list[sqlite3.Row] = []
    seen: set[str] = set()
    while tip is not None and tip not in seen:
        seen.add(tip)
        row = db.execute("SELECT * FROM messages WHERE hash = ?", (tip,)).fetchone()
        if row is None:
            break
        chain.append(row)
        tip = row["parent_hash"]
    return chain[::-1]


def _resolved(db: sqlite3.Connection, text: str | None, payload: Mapping[str, Any]) -> str:
    """A part's text, with the fragments that it borrows put in."""
    if text is not None:
        return text
    pieces: list[str] = []
    for piece in payload.get("text_ref") or []:
        if "literal" in piece:
            pieces.append(piece["literal"])
            continue
        row = db.execute("SELECT content FROM fragments WHERE id = ?", (piece.get("fragment"),)).fetchone()
        pieces.append(row["content"] if row is not None else "")
    return "".join(pieces)


def _record(source: str, name: str | None, model: str | None, messages: list[Message]) -> ConversationRecord:
    times = [m.created_at_ms for m in messages] or [0]
    return ConversationRecord(
        conversation=Conversation(
            id=stable_id("llm", source), title=name or "", model=model or "", created_at_ms=min(times),
            updated_at_ms=max(times), head_id=messages[-1].id if messages else None,
        ),
        messages=messages,
    )  # fmt: skip


def _get(row: sqlite3.Row, column: str) -> Any:
    """A column that older databases do not have."""
    return row[column] if column in row.keys() else None  # noqa: SIM118  (of a Row, `in` asks the values)


def _ms(when: str | None) -> int:
    try:
        moment = dt.datetime.fromisoformat((when or "").replace("Z", "+00:00"))
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.timezone.utc)
    return max(0, int(moment.timestamp() * 1000))
