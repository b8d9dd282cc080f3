"""Tokenisation of long texts in windows, with the result that the whole text would have in one call.

llama.cpp's pre-tokenizers use `std::regex`, whose recursion uses stack for each character, and some of their steps take
a time that grows with the square of the length. Windows limit both, and a caller can stop between two windows.

Each window starts at a token boundary of the previous window and repeats the end of that window. Two windows are joined
only if they have the same tokens in the repeated part. Merges of byte pairs and pre-tokenizers are local: they never
look further than a word or a run of digits, so tokens that agree in both windows do not depend on the windows' ends.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

WINDOW_CHARS: Final = 8192
MAX_WINDOW_CHARS: Final = 8 * WINDOW_CHARS
"""Length to which a window grows if it cannot be joined."""
# Divisors of the window length for the margin at the end of a window. The tokens in the margin are not trusted, because
# they could depend on the text after the window. The part before the margin, of the same length, must have the same
# tokens in the next window. The longest tokens of common vocabularies are runs of 1,024 spaces.
_MARGIN_DIVISORS: Final = (64, 16, 4)
# Maximum number of token boundaries that are tried as the start of the next window.
_MAX_CUTS: Final = 4
# Number of characters before the first possible cut that are searched for a cut between two words.
_CUT_RANGE: Final = 64
_WORD_GAP: Final = re.compile(r"[^\W_] (?=[^\W_])")
_UTF8_CONTINUATION: Final = range(0x80, 0xC0)


class PieceTokenizer(Protocol):
    """Tokeniser of short texts that `iterate_windows` needs; `edgechat.runtime.tokenizer.Tokenizer` implements it."""

    window_chars: int
    """Length of a window in characters."""

    def tokenize_piece(self, text: str, *, is_continuation: bool) -> list[int]:
        """Return the tokens of a text without special tokens.

        With `is_continuation`, the text continues another text, so no space is put before it.
        """

    def token_to_piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token."""


class _Boundary(NamedTuple):
    """Boundary between two tokens of a window."""

    n_tokens: int
    """Number of tokens before the boundary."""
    n_chars: int
    """Number of characters before the boundary."""


class _Join(NamedTuple):
    """Boundary at which two windows have the same tokens, with the end and the tokens of the second window."""

    cut: _Boundary
    next_end: int
    next_tokens: list[int]


def iterate_windows(tokenizer: PieceTokenizer, text: str) -> Iterator[list[int]]:
    """Tokenise a text without special tokens; yield the tokens of one window after another."""
    windows = _Windows(tokenizer, text)
    start, size = 0, tokenizer.window_chars
    end, tokens = windows.read(start, size)
    while end < len(text):
        join = windows.find_join(start, end, tokens)
        if join is not None:
            yield tokens[: join.cut.n_tokens]
            start += join.cut.n_chars
            size, end, tokens = tokenizer.window_chars, join.next_end, join.next_tokens
        elif size < MAX_WINDOW_CHARS and windows.are_exact:
            size *= 2
            end, tokens = windows.read(start, size)
        else:
            # No next window agrees, or the tokens do not show where they end in the text, as in vocabularies that
            # normalise texts. Hardly any vocabulary has a token that includes the end of a word and white space.
            cut = _find_last_word_end(text, start, end)
            yield tokenizer.tokenize_piece(text[start:cut], is_continuation=start > 0)
            start, size = cut, tokenizer.window_chars
            end, tokens = windows.read(start, size)
    yield tokens


def iterate_words(tokenizer: PieceTokenizer, text: str) -> Iterator[list[int]]:
    """Tokenise a text with a vocabulary that tokenises each word separately, and marks its start (WPM, UGM).

    The text is cut only at a space between two letters or digits, so a text without spaces is not cut. Yields the
    tokens in parts.
    """
    start = 0
    while (gap := _WORD_GAP.search(text, start + tokenizer.window_chars)) is not None:
        yield tokenizer.tokenize_piece(text[start : gap.end() - 1], is_continuation=False)
        start = gap.end()
    yield tokenizer.tokenize_piece(text[start:], is_continuation=False)


class _Windows:
    """Windows of a text and their tokens."""

    def __init__(self, tokenizer: PieceTokenizer, text: str) -> None:
        self.are_exact = True
        """False if the bytes of the tokens at the end of the last window differ from the text."""
        self._tokenizer = tokenizer
        self._text = text
        self._run_end = 0
        """End of the last run of digits that was measured."""

    def read(self, start: int, size: int) -> tuple[int, list[int]]:
        """Return the end of the window at `start` with about `size` characters, and its tokens."""
        end = self._align_end(start + size)
        return end, self._tokenizer.tokenize_piece(self._text[start:end], is_continuation=start > 0)

    def _align_end(self, end: int) -> int:
        """Return the last possible window end up to `end`. If it cuts a run of digits, a multiple of three must follow.

        Some pre-tokenizers group digits from the end of a run, and the groups in the window must be those of the run.
        """
        text = self._text
        if end >= len(text):
            return len(text)
        if not _is_digit(text[end - 1]) or not _is_digit(text[end]):
            return end
        if end >= self._run_end:
            self._run_end = next((i for i in range(end, len(text)) if not _is_digit(text[i])), len(text))
        return end - (end - self._run_end) % 3

    def find_join(self, start: int, end: int, tokens: list[int]) -> _Join | None:
        """Find a boundary of the window from `start` to `end` at which the next window has the same tokens."""
        window, size = self._text[start:end], self._tokenizer.window_chars
        for margin in (size // divisor for divisor in _MARGIN_DIVISORS):
            boundaries = self._list_boundaries(window, tokens, 2 * margin + _CUT_RANGE)
            trusted = next((b for b in boundaries if b.n_chars <= len(window) - margin), None)
            cuts = [b for b in boundaries if b.n_chars <= len(window) - 2 * margin]
            cuts = [b for b in cuts if _is_between_digit_groups(window, b.n_chars)] or cuts
            if trusted is None or not cuts:
                continue
            word = next((b for b in cuts if _is_word_end(window, b.n_chars)), cuts[0])
            for cut in [word, *cuts[:_MAX_CUTS]]:
                next_end, next_tokens = self.read(start + cut.n_chars, size)
                expected_tokens = tokens[cut.n_tokens : trusted.n_tokens]
                if expected_tokens and next_tokens[: len(expected_tokens)] == expected_tokens:
                    return _Join(cut, next_end, next_tokens)
        return None

    def _list_boundaries(self, window: str, tokens: list[int], max_chars: int) -> list[_Boundary]:
        """Return the token boundaries that are character boundaries in the last `max_chars` of a window, last first.

        Also includes the closest such boundary before these characters.
        """
        data = window.encode()
        n_bytes, n_chars, boundaries = len(data), len(window), []
        for index in range(len(tokens) - 1, 0, -1):
            piece = self._tokenizer.token_to_piece(tokens[index])
            self.are_exact = bool(piece) and data[max(n_bytes - len(piece), 0) : n_bytes] == piece
            if not self.are_exact:
                break
            n_bytes -= len(piece)
            n_chars -= sum(byte not in _UTF8_CONTINUATION for byte in piece)
            if data[n_bytes] not in _UTF8_CONTINUATION:
                boundaries.append(_Boundary(index, n_chars))
                if n_chars < len(window) - max_chars:
                    break
        return boundaries


def _is_word_end(text: str, position: int) -> bool:
    return text[position - 1].isalpha() and text[position].isspace()


def _is_between_digit_groups(window: str, position: int) -> bool:
    """Return whether a cut preserves the groups of three digits into which many pre-tokenizers divide a number."""
    if not _is_digit(window[position]):
        return True
    start = next((i for i in range(position, 0, -1) if not _is_digit(window[i - 1])), 0)
    return (position - start) % 3 == 0


def _find_last_word_end(text: str, start: int, end: int) -> int:
    """Return the last end of a word in `text[start:end]`; `end` if there is none."""
    return next((i for i in range(end - 1, start, -1) if _is_word_end(text, i)), end)


def _is_digit(character: str) -> bool:
    return unicodedata.category(character).startswith("N")
