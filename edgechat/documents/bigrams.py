"""Bigrams: pairs of adjacent letters, as the words of text in scripts without spaces between words.

The keyword index takes a run of Chinese characters as one word, so that a search would only find the whole run. Bigrams
are the usual units of search for such text, without a dictionary: "公司收入" is indexed as "公司 司收 收入 入". The
last letter is a word of its own, so that every letter begins a word of the index. Hangul is included, because Korean
particles follow their noun without a space.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Letters and combining marks, without digits and punctuation.
_RANGES: Final = (
    (0x0E01, 0x0E3A), (0x0E40, 0x0E4E),  # Thai
    (0x0E81, 0x0ECE),  # Lao
    (0x1000, 0x103F),  # Myanmar
    (0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3),  # Hangul
    (0x1780, 0x17D3),  # Khmer
    (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),  # Han
    (0x3041, 0x309A), (0x309D, 0x309F),  # Hiragana
    (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F),  # Katakana
)  # fmt: skip
_RUN: Final = re.compile(f"[{''.join(f'{chr(first)}-{chr(last)}' for first, last in _RANGES)}]+")


def separate_text(text: str) -> str:
    """Return the text for the keyword index: with spaces around the bigrams of each run of letters.

    Text in other scripts is unchanged.
    """
    return text if text.isascii() else _RUN.sub(_separate_run, text)


def separate_query(query: str) -> str:
    """Return a query with the bigrams of each run of letters; a single letter remains one."""
    return query if query.isascii() else _RUN.sub(lambda run: _separate_run(run, is_query=True), query)


def is_single_letter(word: str) -> bool:
    """Return whether a word of a query is a single letter of these scripts, which begins longer words of the index."""
    return len(word) == 1 and _RUN.fullmatch(word) is not None


def _separate_run(run: re.Match[str], *, is_query: bool = False) -> str:
    # The index, like isalnum, takes the marks of Thai and other scripts as the ends of words. They are left out.
    letters = "".join(filter(str.isalnum, unicodedata.normalize("NFC", run[0])))
    n_words = len(letters) - (is_query and len(letters) > 1)
    return f" {' '.join(letters[i : i + 2] for i in range(n_words))} "
