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

# Minimum length of a word that the trigram index can find.
_TRIGRAM_CHARS: Final = 3
# Maximum number of matches, the newest ones, that are ranked; limits the time of a query that matches every message.
MAX_RANKED: Final = 1000
# Number of newest messages that are scanned for words of one or two characters, which the index cannot find.
MAX_SCANNED: Final = 20_000
MAX_WORDS: Final = 32
# Maximum size, in blocks of 4 kB (40 MB in total), of an index that is rewritten to purge deleted text.
_MAX_REWRITTEN_BLOCKS: Final = 10_000
# Number of characters of each message that are ranked; limits memory, because up to `MAX_RANKED` messages are loaded.
_RANKED_CHARS: Final = 20_000
# Length of a snippet before and after the start of the first match, in characters.
_CHARS_BEFORE, _CHARS_AFTER = 40, 120
# Usual constants of BM25: k1 limits the weight of repeated words, b normalises by text length.
_K1, _B = 1.2, 0.75


def query_words(query: str) -> list[str]:
    """Split a query into words; a phrase in double quotes is one word, and no other character is special."""
    matches = re.findall(r'"([^"]+)"|([^\s"]+)', query)
    return [word for word in (quoted or plain for quoted, plain in matches) if word.strip()]


def search(db: sqlite3.Connection, query: str, *, order: Order, limit: int, offset: int) -> list[SearchHit]:
    """Find titles and messages that contain every word of `query`.

    `order` "newest" sorts the matches by time; "rank" sorts the newest `MAX_RANKED` matches by their BM25 score.
    """
    words = query_words(query)[:MAX_WORDS]
    if not words:
        return []
    # Ranking compares all matches; otherwise the rows up to the end of the requested page are enough.
    max_rows = MAX_RANKED if order == "rank" else limit + offset
    titles = _titles(db, words, max_rows)
    bodies = _bodies(db, words, max_rows, _RANKED_CHARS if order == "rank" else INDEXED_CHARS)
    rows = sorted([*titles, *bodies], key=lambda row: row["key"], reverse=True)[:max_rows]
    if order == "rank":
        scores = _scores([row["text"].lower() for row in rows], [w.lower() for w in words])
        ranked_indexes = sorted(range(len(rows)), key=lambda i: (-scores[i], i))[offset : offset + limit]
        return [_hit(rows[i], words, scores[i]) for i in ranked_indexes]
    return [_hit(row, words, 0.0) for row in rows[offset : offset + limit]]


def purge_index(db: sqlite3.Connection) -> None:
    """Purge deleted text from the search indexes by rewriting them.

    An index of more than 40 MB is not rewritten and keeps trigrams of deleted text until FTS5 merges its segments. (The
    secure-delete option of SQLite 3.42 purges text at once, but writes a format that earlier versions cannot read.)
    """
    for table in ("message_search", "title_search"):
        blocks = db.execute(f"SELECT count(*) FROM (SELECT 1 FROM {table}_data LIMIT ?)", (_MAX_REWRITTEN_BLOCKS + 1,))
        if blocks.fetchone()[0] <= _MAX_REWRITTEN_BLOCKS:
            db.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")


def _match(words: Sequence[str]) -> str:
    """Build an FTS5 expression that requires all words, each quoted so that no character acts as an operator."""
    return " AND ".join('"' + w.replace('"', '""').replace("\0", " ") + '"' for w in words)


_TITLE_COLUMNS = (
    "c.key AS key, c.id AS conversation_id, c.title, NULL AS message_id, '' AS role, c.created_at_ms, c.title AS text"
)
_BODY_COLUMNS = "m.key AS key, c.id AS conversation_id, c.title, m.id AS message_id, m.role, m.created_at_ms"


def _titles(db: sqlite3.Connection, words: Sequence[str], max_rows: int) -> list[sqlite3.Row]:
    long = [w for w in words if len(w) >= _TRIGRAM_CHARS]
    if long:
        rows = db.execute(
            f"SELECT {_TITLE_COLUMNS} FROM title_search s JOIN conversations c ON c.key = s.rowid "
            "WHERE title_search MATCH ? ORDER BY s.rowid DESC LIMIT ?",
            (_match(long), max_rows if len(long) == len(words) else MAX_SCANNED),
        )
    else:
        rows = db.execute(f"SELECT {_TITLE_COLUMNS} FROM conversations c ORDER BY c.key DESC")
    return _matching_rows(rows, words, max_rows)


def _bodies(db: sqlite3.Connection, words: Sequence[str], max_rows: int, n_chars: int) -> list[sqlite3.Row]:
    long = [w for w in words if len(w) >= _TRIGRAM_CHARS]
    columns = f"{_BODY_COLUMNS}, substr(m.text, 1, {n_chars}) AS text"
    join_clause = "JOIN conversations c ON c.key = m.conversation_key"
    if long:
        # The inner query reads only the index; the outer one reads the rows of the matches.
        rows = db.execute(
            f"SELECT {columns} FROM (SELECT rowid FROM message_search WHERE message_search MATCH ? "
            f"ORDER BY rowid DESC LIMIT ?) s JOIN messages m ON m.key = s.rowid {join_clause} ORDER BY m.key DESC",
            (_match(long), max_rows if len(long) == len(words) else MAX_SCANNED),
        )
    else:
        rows = db.execute(
            f"SELECT {columns} FROM (SELECT * FROM messages WHERE hidden_by IS NULL ORDER BY key DESC LIMIT ?) m "
            f"{join_clause} ORDER BY m.key DESC",
            (MAX_SCANNED,),
        )
    return _matching_rows(rows, words, max_rows)


def _matching_rows(rows: sqlite3.Cursor, words: Sequence[str], max_rows: int) -> list[sqlite3.Row]:
    """Return up to `max_rows` rows whose text contains those of `words` that are too short for the index."""
    short = [w.lower() for w in words if len(w) < _TRIGRAM_CHARS]
    matches: list[sqlite3.Row] = []
    for row in rows:
        text = row["text"].lower() if short else ""
        if all(w in text for w in short):
            matches.append(row)
            if len(matches) == max_rows:
                break
    return matches


def _scores(texts: Sequence[str], words: Sequence[str]) -> list[float]:
    """Return the BM25 score of each text (Robertson and Zaragoza 2009), with a non-negative document frequency term."""
    if not texts:
        return []
    mean_chars = sum(map(len, texts)) / len(texts) or 1.0
    scores = [0.0] * len(texts)
    for word in words:
        counts = [text.count(word) for text in texts]
        n_matching = sum(1 for c in counts if c)
        idf = math.log(1 + (len(texts) - n_matching + 0.5) / (n_matching + 0.5))
        for i, count in enumerate(counts):
            scores[i] += idf * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * len(texts[i]) / mean_chars))
    return scores


def _hit(row: sqlite3.Row, words: Sequence[str], score: float) -> SearchHit:
    snippet, marks = make_snippet(row["text"], words)
    return SearchHit(
        conversation_id=row["conversation_id"], title=row["title"] or first_line(row["text"]),
        message_id=row["message_id"], role=row["role"], created_at_ms=row["created_at_ms"],
        snippet=snippet, marks=marks, score=score,
    )  # fmt: skip


def make_snippet(text: str, words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return a snippet of `text` in one line around the first match, and the [start, end) ranges of `words` in it."""
    pattern = re.compile("|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)), re.IGNORECASE)
    first = pattern.search(text)
    position = first.start() if first is not None else 0
    start, end = max(0, position - _CHARS_BEFORE), min(len(text), position + _CHARS_AFTER)
    line = " ".join(text[start:end].split())
    snippet = ("…" if start else "") + line + ("…" if end < len(text) else "")
    return snippet, [match.span() for match in pattern.finditer(snippet)]
