"""Keyword search in one collection: FTS5 with BM25, at a bounded cost for common words."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from typing import Final

from edgechat.documents.database import CollectionDatabase

# Words with their inner full stops and hyphens, as in "3.12" and "e-mail".
_WORD: Final = re.compile(r"\w+(?:[.\-]\w+)*")
_DIGIT: Final = re.compile(r"\d")
_SEPARATOR: Final = re.compile(r"[.\-]")
# Endings of English words. Chunks with other forms of a word are found by its beginning.
_ENDING: Final = re.compile(r"(?:ies|es|s|ing|ed|ly|er|y)$")
_MIN_PREFIX_CHARS: Final = 4
_MAX_WORDS: Final = 64
# SQLite reads all words with a beginning before it returns the first match.
_MAX_PREFIXES: Final = 12
# Maximum number of matches (pairs of a word and a chunk with it) from which scores are computed, at about a microsecond
# each. Rare words decide the order; the words that most chunks contain add little to a score.
_MAX_RANKED: Final = 6000
# Number of words of which a chunk must have all if all words of a query are common.
_MAX_COMMON_WORDS: Final = 3
# Common English words, which say nothing about the topic. Words of other languages are found by their frequency.
_STOP_WORDS: Final = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "can", "did", "do", "does", "for", "from", "had", "has",
    "have", "how", "i", "if", "in", "into", "is", "it", "its", "me", "my", "no", "not", "of", "on", "or", "our",
    "should", "so", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "those",
    "to", "was", "we", "were", "what", "when", "where", "which", "who", "whom", "why", "will", "with", "would", "you",
    "your",
))  # fmt: skip


def search_keywords(database: CollectionDatabase, query: str, n_results: int) -> list[tuple[int, float]]:
    """Return the ids of the chunks with the best BM25 scores for the words of a query, best first, with their scores.

    Higher scores are better. Equal scores are in the order of the ids. Raises DocumentError.
    """
    terms = find_terms(query)
    if not terms:
        return []
    with database.read() as db:
        # Of words with too many matches, the longest are probably the rarest.
        counted = sorted((_count_matches(db, term), -len(term), i, term) for i, term in enumerate(terms))
        counted = [item for item in counted if item[0]]
        if not counted:
            return []
        chosen, n_ranked = [], 0
        for count, _, _, term in counted:
            n_ranked += count
            if n_ranked > _MAX_RANKED:
                break
            chosen.append(term)
        if chosen:
            rows = _rank(db, " OR ".join(chosen), "ORDER BY score, rowid LIMIT ?", n_results)
        else:
            rows = _rank_common(db, [term for _, _, _, term in counted])
    return [(row[0], -row[1]) for row in sorted(rows, key=lambda row: (row[1], row[0]))[:n_results]]


def find_coverage(database: CollectionDatabase, query: str, chunk_id: int) -> float:
    """Return the share of the words of a query of which a chunk has a form, from 0 to 1. Raises DocumentError."""
    words = find_words(query)
    with database.read() as db:
        n_found = sum(_has_word(db, word, chunk_id) for word in words)
    return n_found / max(1, len(words))


def find_words(query: str) -> list[str]:
    """Return the words of a query in small letters, without duplicates and, if other words remain, stop words.

    Numbers with full stops or hyphens are one word, of which the index must have the parts in this order.
    """
    found: list[str] = []
    for word in _WORD.findall(query.lower()):
        found += [word] if _DIGIT.search(word) else _SEPARATOR.split(word)
    words = list(dict.fromkeys(found))
    return ([word for word in words if word not in _STOP_WORDS] or words)[:_MAX_WORDS]


def find_terms(query: str) -> list[str]:
    """Return the terms of FTS5 for a query: its words, then the beginnings of words, which match other forms of them.

    A chunk with the same word as the query therefore has a better score than one with another form.
    """
    words = find_words(query)
    prefixes = dict.fromkeys(prefix for word in words if (prefix := _find_prefix(word)))
    return [f'"{word}"' for word in words] + [f'"{prefix}"*' for prefix in list(prefixes)[:_MAX_PREFIXES]]


def _has_word(db: sqlite3.Connection, word: str, chunk_id: int) -> bool:
    prefix = _find_prefix(word)
    terms = [f'"{word}"', f'"{prefix}"*'] if prefix else [f'"{word}"']
    statement = "SELECT 1 FROM chunk_search WHERE chunk_search MATCH ? AND rowid = ?"
    return any(db.execute(statement, (term, chunk_id)).fetchone() for term in terms)


def _find_prefix(word: str) -> str:
    """Return the beginning that a word has in common with its other forms; "" for short words and numbers."""
    if len(word) < _MIN_PREFIX_CHARS or not word.isalpha():
        return ""
    stem = _ENDING.sub("", word) if word.isascii() else word
    return stem if len(stem) >= _MIN_PREFIX_CHARS else word


def _count_matches(db: sqlite3.Connection, term: str) -> int:
    """Return the number of chunks with a word, but at most one more than `_MAX_RANKED`."""
    row = db.execute(
        "SELECT count(*) FROM (SELECT rowid FROM chunk_search WHERE chunk_search MATCH ? LIMIT ?)",
        (term, _MAX_RANKED + 1),
    ).fetchone()
    return int(row[0])


def _rank(db: sqlite3.Connection, expression: str, order: str, limit: int) -> list[tuple[int, float]]:
    return db.execute(
        f"SELECT rowid, bm25(chunk_search) AS score FROM chunk_search WHERE chunk_search MATCH ? {order}",
        (expression, limit),
    ).fetchall()


def _rank_common(db: sqlite3.Connection, terms: Sequence[str]) -> list[tuple[int, float]]:
    """Return scores of chunks if every word is common: of the first chunks with most of the words."""
    terms = [term for term in terms if not term.endswith("*")][:_MAX_COMMON_WORDS] or terms[:1]
    for n_terms in range(len(terms), 0, -1):
        rows = _rank(db, " AND ".join(terms[:n_terms]), "LIMIT ?", _MAX_RANKED // n_terms)
        if rows:
            return rows
    return []
