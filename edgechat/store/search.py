"""Full-text search over titles and messages."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Sequence
from typing import Final

from edgechat.chat.messages import first_line
from edgechat.chat.store import Order, SearchHit
from edgechat.store.schema import INDEXED_CHARS

# The trigram index knows nothing shorter.
_INDEXED_CHARS: Final = 3
# Rank is computed among the newest matches: a query that matches everything costs no more than one that does not.
MAX_RANKED: Final = 1000
# Queries of one or two characters look at so many of the newest messages themselves.
MAX_SCANNED: Final = 20_000
MAX_WORDS: Final = 32
# Blocks of 4 kB that are rewritten to forget what was deleted: 40 MB.
_REWRITTEN_BLOCKS: Final = 10_000
# Of a text that is ranked among a thousand: all of them are held at once.
_RANKED_CHARS: Final = 20_000
# Text around the first match.
_BEFORE, _AFTER = 40, 120
# BM25's usual constants: how soon repetition stops to count, and how much a long text is held against it.
_K1, _B = 1.2, 0.75


def query_words(query: str) -> list[str]:
    """The words of a query; "quoted words" are one. No character has a meaning besides."""
    return [w for w in (quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|([^\s"]+)', query)) if w.strip()]


def search(db: sqlite3.Connection, query: str, *, order: Order, limit: int, offset: int) -> list[SearchHit]:
    """Titles and messages that hold every word of `query`, newest first or by rank among the newest `RANKED`."""
    words = query_words(query)[:MAX_WORDS]
    if not words:
        return []
    # Enough for the page that is asked for; among the newest, rank needs to see all it ranks.
    wanted = MAX_RANKED if order == "rank" else limit + offset
    titles = _titles(db, words, wanted)
    bodies = _bodies(db, words, wanted, _RANKED_CHARS if order == "rank" else INDEXED_CHARS)
    found = sorted([*titles, *bodies], key=lambda row: row["key"], reverse=True)[:wanted]
    if order == "rank":
        scores = _scores([row["text"].lower() for row in found], [w.lower() for w in words])
        ranked = sorted(range(len(found)), key=lambda i: (-scores[i], i))[offset : offset + limit]
        return [_hit(found[i], words, scores[i]) for i in ranked]
    return [_hit(row, words, 0.0) for row in found[offset : offset + limit]]


def purge_index(db: sqlite3.Connection) -> None:
    """Take what was deleted out of the index too, by writing it anew.

    One that is too large for that keeps trigrams of what was deleted until it next merges. (SQLite from 3.42 on could
    forget at once, in a format that earlier ones cannot read.)
    """
    for table in ("message_search", "title_search"):
        blocks = db.execute(f"SELECT count(*) FROM (SELECT 1 FROM {table}_data LIMIT ?)", (_REWRITTEN_BLOCKS + 1,))
        if blocks.fetchone()[0] <= _REWRITTEN_BLOCKS:
            db.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")


def _match(words: Sequence[str]) -> str:
    """An FTS5 expression that is data from end to end: every word a string, all of them wanted."""
    return " AND ".join('"' + w.replace('"', '""').replace("\0", " ") + '"' for w in words)


_TITLE_COLUMNS = (
    "c.key AS key, c.id AS conversation_id, c.title, NULL AS message_id, '' AS role, c.created_at_ms, c.title AS text"
)
_BODY_COLUMNS = "m.key AS key, c.id AS conversation_id, c.title, m.id AS message_id, m.role, m.created_at_ms"


def _titles(db: sqlite3.Connection, words: Sequence[str], wanted: int) -> list[sqlite3.Row]:
    long = [w for w in words if len(w) >= _INDEXED_CHARS]
    if long:
        rows = db.execute(
            f"SELECT {_TITLE_COLUMNS} FROM title_search s JOIN conversations c ON c.key = s.rowid "
            "WHERE title_search MATCH ? ORDER BY s.rowid DESC LIMIT ?",
            (_match(long), wanted if len(long) == len(words) else MAX_SCANNED),
        )
    else:
        rows = db.execute(f"SELECT {_TITLE_COLUMNS} FROM conversations c ORDER BY c.key DESC")
    return _matching_rows(rows, words, wanted)


def _bodies(db: sqlite3.Connection, words: Sequence[str], wanted: int, n_chars: int) -> list[sqlite3.Row]:
    long = [w for w in words if len(w) >= _INDEXED_CHARS]
    columns = f"{_BODY_COLUMNS}, substr(m.text, 1, {n_chars}) AS text"
    joined = "JOIN conversations c ON c.key = m.conversation_key"
    if long:
        # The index decides; only then are rows fetched.
        rows = db.execute(
            f"SELECT {columns} FROM (SELECT rowid FROM message_search WHERE message_search MATCH ? "
            f"ORDER BY rowid DESC LIMIT ?) s JOIN messages m ON m.key = s.rowid {joined} ORDER BY m.key DESC",
            (_match(long), wanted if len(long) == len(words) else MAX_SCANNED),
        )
    else:
        rows = db.execute(
            f"SELECT {columns} FROM (SELECT * FROM messages WHERE hidden_by IS NULL ORDER BY key DESC LIMIT ?) m "
            f"{joined} ORDER BY m.key DESC",
            (MAX_SCANNED,),
        )
    return _matching_rows(rows, words, wanted)


def _matching_rows(rows: sqlite3.Cursor, words: Sequence[str], wanted: int) -> list[sqlite3.Row]:
    """The first rows whose text holds the words that the index does not know."""
    short = [w.lower() for w in words if len(w) < _INDEXED_CHARS]
    found: list[sqlite3.Row] = []
    for row in rows:
        text = row["text"].lower() if short else ""
        if all(w in text for w in short):
            found.append(row)
            if len(found) == wanted:
                break
    return found


def _scores(texts: Sequence[str], words: Sequence[str]) -> list[float]:
    """BM25 (Robertson and Zaragoza 2009, with the idf that is never negative) of each text among these."""
    if not texts:
        return []
    mean = sum(map(len, texts)) / len(texts) or 1.0
    scores = [0.0] * len(texts)
    for word in words:
        counts = [text.count(word) for text in texts]
        holding = sum(1 for c in counts if c)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for i, count in enumerate(counts):
            scores[i] += idf * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * len(texts[i]) / mean))
    return scores


def _hit(row: sqlite3.Row, words: Sequence[str], score: float) -> SearchHit:
    snippet, marks = make_snippet(row["text"], words)
    return SearchHit(
        conversation_id=row["conversation_id"], title=row["title"] or first_line(row["text"]),
        message_id=row["message_id"], role=row["role"], created_at_ms=row["created_at_ms"],
        snippet=snippet, marks=marks, score=score,
    )  # fmt: skip


def make_snippet(text: str, words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """A line of text around the first match, and where the words are in it."""
    pattern = re.compile("|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)), re.IGNORECASE)
    first = pattern.search(text)
    at = first.start() if first is not None else 0
    start, end = max(0, at - _BEFORE), min(len(text), at + _AFTER)
    line = " ".join(text[start:end].split())
    snippet = ("…" if start else "") + line + ("…" if end < len(text) else "")
    return snippet, [match.span() for match in pattern.finditer(snippet)]
