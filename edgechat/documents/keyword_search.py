"""Keyword search in one collection: FTS5 with BM25, at a bounded cost for common words."""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Sequence
from typing import Final

from edgechat.documents.bigrams import is_single_letter, separate_query
from edgechat.documents.database import CollectionDatabase

# Words with their inner full stops and hyphens, as in "3.12" and "e-mail".
_WORD: Final = re.compile(r"\w+(?:[.\-]\w+)*")
_DIGIT: Final = re.compile(r"\d")
_SEPARATOR: Final = re.compile(r"[.\-]")
# Endings of English words. Chunks with other forms of a word are found by its beginning.
_ENDING: Final = re.compile(r"(?:ies|es|s|ing|ed|ly|er|y)$")
_TOKEN: Final = re.compile(r"[^\W_]+")
_MIN_PREFIX_CHARS: Final = 4
_MAX_WORDS: Final = 64
# SQLite reads the matches of all words with a beginning before it returns the first one. So the search uses the
# beginnings of few words, and only of words that are rare themselves.
_MAX_PREFIXES: Final = 8
_MAX_PREFIX_WORD_MATCHES: Final = 1500
# Maximum number of words and beginnings in a search, the rarest.
_MAX_TERMS: Final = 24
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
    words = find_words(query)
    if not words:
        return []
    with database.read() as db:
        counted = _count_terms(db, words)
        if not counted:
            return []
        chosen, n_ranked = [], 0
        for count, term in counted[:_MAX_TERMS]:
            n_ranked += count
            if n_ranked > _MAX_RANKED:
                break
            chosen.append(term)
        if chosen:
            rows = _rank(db, " OR ".join(chosen), "ORDER BY score, rowid LIMIT ?", n_results)
        else:
            rows = _rank_common(db, [term for _, term in counted])
    return [(row[0], -row[1]) for row in sorted(rows, key=lambda row: (row[1], row[0]))[:n_results]]


def _count_terms(db: sqlite3.Connection, words: Sequence[str]) -> list[tuple[int, str]]:
    """Return the FTS5 terms for words, rarest first, with the numbers of matches: words, and beginnings of rare words.

    A chunk with the same word as the query therefore has a better score than one with another form of it.
    """
    # A letter of a script without spaces begins bigrams, but not at a bounded cost: in a query of nothing else only.
    if all(map(is_single_letter, words)):
        words, mark = words[:_MAX_PREFIXES], "*"
    else:
        mark = ""
    # Of words with too many matches, the longest are probably the rarest.
    counted = sorted((_count_matches(db, f'"{word}"{mark}'), -len(word), i, word) for i, word in enumerate(words))
    prefixes = dict.fromkeys(
        prefix for count, _, _, word in counted if count <= _MAX_PREFIX_WORD_MATCHES and (prefix := find_prefix(word))
    )
    terms = [(count, i, f'"{word}"{mark}') for i, (count, _, _, word) in enumerate(counted)]
    for prefix in list(prefixes)[:_MAX_PREFIXES]:
        term = f'"{prefix}"*'
        terms.append((_count_matches(db, term), len(terms), term))
    return [(count, term) for count, _, term in sorted(terms) if count]


def find_coverage(database: CollectionDatabase, query: str, chunk_id: int) -> float:
    """Return the share of the words of a query of which a chunk has a form, from 0 to 1. Raises DocumentError."""
    words = find_words(query)
    with database.read() as db:
        row = db.execute("SELECT name, heading, text FROM chunk_texts WHERE id = ?", (chunk_id,)).fetchone()
    tokens = set(_split_tokens("\n".join(row or ())))
    n_found = sum(_has_word(tokens, word) for word in words)
    return n_found / max(1, len(words))


def find_words(query: str) -> list[str]:
    """Return the words of a query in small letters, without duplicates and, if other words remain, stop words.

    Numbers with full stops or hyphens are one word, of which the index must have the parts in this order. The words of
    text in scripts without spaces are its bigrams.
    """
    found: list[str] = []
    for word in _WORD.findall(separate_query(query.lower())):
        found += [word] if _DIGIT.search(word) else _SEPARATOR.split(word)
    words = list(dict.fromkeys(found))
    return ([word for word in words if word not in _STOP_WORDS] or words)[:_MAX_WORDS]


def _has_word(tokens: set[str], word: str) -> bool:
    """Return whether all parts of a word, or another word with the same beginning, are among the tokens of a chunk."""
    if all(part in tokens for part in _split_tokens(word)):
        return True
    prefix = "".join(_split_tokens(word if is_single_letter(word) else find_prefix(word)))
    return bool(prefix) and any(token.startswith(prefix) for token in tokens)


def _split_tokens(text: str) -> list[str]:
    """Return the tokens of a text as the tokeniser of the index does: letters and digits without diacritics."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return _TOKEN.findall("".join(char for char in decomposed if not unicodedata.combining(char)))


def find_prefix(word: str) -> str:
    """Return the beginning that a word has in common with its other forms; "" for short words and numbers."""
    if len(word) < _MIN_PREFIX_CHARS or not word.isalpha():
        return ""
    stem = _ENDING.sub("", word)
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
