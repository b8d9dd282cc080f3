"""Full-text search over titles and messages."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Sequence
from typing import Final

from edgechat.chat.messages import first_line
from edgechat.chat.store import SearchHit, SearchOrder, parse_query
from edgechat.store.row_repair import repair_value
from edgechat.store.schema import INDEXED_CHARS

# Minimum length, in characters, of a word that the trigram index can find.
_TRIGRAM_CHARS: Final = 3
# Number of newest matches that are ranked by score. Limits the time of a query that matches every message.
MAX_RANKED_ROWS: Final = 1000
# Number of newest messages that are scanned for words of one or two characters, which the index cannot find.
MAX_SCANNED_ROWS: Final = 20_000
MAX_WORDS: Final = 32
# An index of at most this number of 4 kB blocks (40 MB in total) is rewritten to purge deleted text.
_MAX_REWRITTEN_BLOCKS: Final = 10_000
# Number of characters at the start of each message that are used for ranking. Limits memory, because up to
# `MAX_RANKED_ROWS` messages are loaded.
_MAX_RANKED_CHARS: Final = 20_000
# Length of a snippet before and after the start of the first match, in characters.
_CHARS_BEFORE, _CHARS_AFTER = 60, 240
# Usual constants of BM25: k1 limits the weight of repeated words, b sets the strength of length normalisation.
_BM25_K1, _BM25_B = 1.2, 0.75


def search(db: sqlite3.Connection, query: str, *, order: SearchOrder, limit: int, offset: int) -> list[SearchHit]:
    """Find titles and messages that contain every word of `query`.

    `order` "newest" sorts the matches by time; "rank" sorts the newest `MAX_RANKED_ROWS` matches by their BM25 score.
    """
    words = parse_query(query)[:MAX_WORDS]
    if not words:
        return []
    # Ranking compares all matches; sorting by time needs only the rows up to the end of the requested page.
    max_rows = MAX_RANKED_ROWS if order == "rank" else limit + offset
    title_rows = _find_titles(db, words, max_rows)
    message_rows = _find_messages(db, words, max_rows, _MAX_RANKED_CHARS if order == "rank" else INDEXED_CHARS)
    rows = sorted([*title_rows, *message_rows], key=lambda row: row["key"], reverse=True)[:max_rows]
    if order == "rank":
        scores = _compute_bm25_scores([row["text"].lower() for row in rows], [w.lower() for w in words])
        ranked_indexes = sorted(range(len(rows)), key=lambda i: (-scores[i], i))[offset : offset + limit]
        return [_make_hit(rows[i], words, scores[i]) for i in ranked_indexes]
    return [_make_hit(row, words, 0.0) for row in rows[offset : offset + limit]]


def purge_index(db: sqlite3.Connection) -> None:
    """Purge deleted text from the search indexes by rewriting them.

    An index of more than 40 MB is not rewritten and keeps trigrams of deleted text until FTS5 merges its segments. (The
    secure-delete option of SQLite 3.42 purges text at once, but writes a format that earlier versions cannot read.)
    """
    for table in ("message_search", "title_search"):
        cursor = db.execute(f"SELECT count(*) FROM (SELECT 1 FROM {table}_data LIMIT ?)", (_MAX_REWRITTEN_BLOCKS + 1,))
        if cursor.fetchone()[0] <= _MAX_REWRITTEN_BLOCKS:
            db.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")


def make_match_expression(words: Sequence[str]) -> str:
    """Build an FTS5 expression that requires all words; the words are quoted, so that they contain no operators."""
    return " AND ".join('"' + w.replace('"', '""').replace("\0", " ") + '"' for w in words)


_TITLE_COLUMNS = (
    "c.key AS key, c.key AS conversation_key, c.id AS conversation_id, CAST(ifnull(c.title, '') AS TEXT) AS title, "
    "NULL AS message_id, '' AS role, c.created_at_ms, c.updated_at_ms, CAST(ifnull(c.title, '') AS TEXT) AS text"
)
_MESSAGE_COLUMNS = (
    "m.key AS key, c.key AS conversation_key, c.id AS conversation_id, CAST(ifnull(c.title, '') AS TEXT) AS title, "
    "m.id AS message_id, m.role, m.created_at_ms, c.updated_at_ms"
)


def _find_titles(db: sqlite3.Connection, words: Sequence[str], max_rows: int) -> list[sqlite3.Row]:
    long_words = [w for w in words if len(w) >= _TRIGRAM_CHARS]
    if long_words:
        rows = db.execute(
            f"SELECT {_TITLE_COLUMNS} FROM title_search s JOIN conversations c ON c.key = s.rowid "
            "WHERE title_search MATCH ? ORDER BY s.rowid DESC LIMIT ?",
            (make_match_expression(long_words), max_rows if len(long_words) == len(words) else MAX_SCANNED_ROWS),
        )
    else:
        rows = db.execute(f"SELECT {_TITLE_COLUMNS} FROM conversations c ORDER BY c.key DESC")
    return _filter_matching_rows(rows, words, max_rows)


def _find_messages(db: sqlite3.Connection, words: Sequence[str], max_rows: int, max_chars: int) -> list[sqlite3.Row]:
    long_words = [w for w in words if len(w) >= _TRIGRAM_CHARS]
    # Values in damaged columns may have another type, so they are converted.
    columns = f"{_MESSAGE_COLUMNS}, substr(CAST(ifnull(m.text, '') AS TEXT), 1, {max_chars}) AS text"
    join_clause = "JOIN conversations c ON c.key = m.conversation_key"
    if long_words:
        # The inner query reads only the index; the outer query reads the matching messages.
        rows = db.execute(
            f"SELECT {columns} FROM (SELECT rowid FROM message_search WHERE message_search MATCH ? "
            f"ORDER BY rowid DESC LIMIT ?) s JOIN messages m ON m.key = s.rowid {join_clause} ORDER BY m.key DESC",
            (make_match_expression(long_words), max_rows if len(long_words) == len(words) else MAX_SCANNED_ROWS),
        )
    else:
        rows = db.execute(
            f"SELECT {columns} FROM (SELECT * FROM messages WHERE hidden_by IS NULL ORDER BY key DESC LIMIT ?) m "
            f"{join_clause} ORDER BY m.key DESC",
            (MAX_SCANNED_ROWS,),
        )
    return _filter_matching_rows(rows, words, max_rows)


def _filter_matching_rows(rows: sqlite3.Cursor, words: Sequence[str], max_rows: int) -> list[sqlite3.Row]:
    """Return the first `max_rows` rows whose text contains all words that are too short for the index."""
    short_words = [w.lower() for w in words if len(w) < _TRIGRAM_CHARS]
    matches: list[sqlite3.Row] = []
    for row in rows:
        text = row["text"].lower() if short_words else ""
        if all(w in text for w in short_words):
            matches.append(row)
            if len(matches) == max_rows:
                break
    return matches


def _compute_bm25_scores(texts: Sequence[str], words: Sequence[str]) -> list[float]:
    """Return the BM25 score of each text (Robertson and Zaragoza 2009), with a non-negative inverse document frequency.

    Counts each word as a substring, and computes document frequencies from `texts` only.
    """
    if not texts:
        return []
    mean_chars = sum(map(len, texts)) / len(texts) or 1.0
    scores = [0.0] * len(texts)
    for word in words:
        counts = [text.count(word) for text in texts]
        n_matching = sum(1 for c in counts if c)
        idf = math.log(1 + (len(texts) - n_matching + 0.5) / (n_matching + 0.5))
        for i, count in enumerate(counts):
            length_factor = 1 - _BM25_B + _BM25_B * len(texts[i]) / mean_chars
            scores[i] += idf * count * (_BM25_K1 + 1) / (count + _BM25_K1 * length_factor)
    return scores


def _make_hit(row: sqlite3.Row, words: Sequence[str], score: float) -> SearchHit:
    snippet, marks = make_snippet(row["text"], words)
    message_id = row["message_id"]
    return SearchHit(
        conversation_id=repair_value("conversations", "id", row["conversation_id"], row["conversation_key"]),
        title=row["title"] or first_line(row["text"]),
        message_id=None if message_id is None else repair_value("messages", "id", message_id, row["key"]),
        role=repair_value("messages", "role", row["role"], row["key"]) if row["role"] else "",
        created_at_ms=repair_value("messages", "created_at_ms", row["created_at_ms"], row["key"]),
        updated_at_ms=repair_value("conversations", "updated_at_ms", row["updated_at_ms"], row["conversation_key"]),
        snippet=snippet, marks=marks, score=score,
    )  # fmt: skip


def make_snippet(text: str, words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return a one-line snippet of `text` around the first match, and the [start, end) ranges of the words in it.

    The snippet starts or ends with "…" where `text` is cut.
    """
    pattern = re.compile("|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)), re.IGNORECASE)
    first_match = pattern.search(text)
    position = first_match.start() if first_match is not None else 0
    start, end = max(0, position - _CHARS_BEFORE), min(len(text), position + _CHARS_AFTER)
    line = " ".join(text[start:end].split())
    snippet = ("…" if start else "") + line + ("…" if end < len(text) else "")
    return snippet, [match.span() for match in pattern.finditer(snippet)]
