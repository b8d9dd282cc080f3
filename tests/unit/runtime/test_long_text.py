"""Windows of long texts, with a tokeniser in Python that merges characters within words and groups digits."""

from __future__ import annotations

import random
import re

import pytest

from edgechat.runtime.long_text import iterate_windows

# A word has letters, spaces or three digits, counted from the left; merges never cross its end.
WORDS_FROM_LEFT = re.compile(r" ?[a-z]+|\d{1,3}|\s+(?!\S)|\s+|.", re.DOTALL)
# The same, with digits counted from the right.
WORDS_FROM_RIGHT = re.compile(r" ?[a-z]+|\d{1,3}(?=(?:\d{3})*(?:\D|$))|\s+(?!\S)|\s+|.", re.DOTALL)
MERGES = ["aa", "aaaa", "ab", "th", "the", "  ", "    ", "        ", "12", "99", "999", "\n\n", " a", " the"]


class MergingTokenizer:
    """Merges like byte pair encoding; counts its calls and the length of the longest text."""

    window_chars = 512

    def __init__(self, words: re.Pattern[str] = WORDS_FROM_LEFT, *, lowers: bool = False) -> None:
        self._words = words
        self._lowers = lowers
        self._texts: dict[int, str] = {}
        self.max_chars = 0
        self.n_calls = 0

    def tokenize_piece(self, text: str, *, is_continuation: bool) -> list[int]:
        self.n_calls += 1
        self.max_chars = max(self.max_chars, len(text))
        tokens = []
        for word in self._words.findall(text.lower() if self._lowers else text):
            symbols = list(word)
            while pairs := [i for i in range(len(symbols) - 1) if symbols[i] + symbols[i + 1] in MERGES]:
                i = min(pairs, key=lambda i: (MERGES.index(symbols[i] + symbols[i + 1]), i))
                symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            tokens += [hash(symbol) for symbol in symbols]
            self._texts |= {hash(symbol): symbol for symbol in symbols}
        return tokens

    def token_to_piece(self, token: int) -> bytes:
        return self._texts[token].encode()


def tokenize(tokenizer: MergingTokenizer, text: str) -> list[int]:
    return [token for part in iterate_windows(tokenizer, text) for token in part]


@pytest.mark.parametrize("words", [WORDS_FROM_LEFT, WORDS_FROM_RIGHT])
@pytest.mark.parametrize("seed", range(20))
def test_tokens_equal_those_of_the_whole_text(words: re.Pattern[str], seed: int) -> None:
    rng = random.Random(seed)
    segments = []
    for _ in range(6):
        unit = rng.choice(["a", "ab", " ", "9", "12 ", "the ", "\n", "é", " a", "1"])
        n_chars = rng.randrange(1500)
        is_random = rng.random() < 0.3
        segments.append("".join(rng.choices("ab 129\n", k=n_chars)) if is_random else unit * n_chars)
    text = "".join(segments)
    tokenizer = MergingTokenizer(words)
    assert tokenize(tokenizer, text) == MergingTokenizer(words).tokenize_piece(text, is_continuation=False)
    assert tokenizer.max_chars <= 2 * tokenizer.window_chars


def test_windows_of_ordinary_text_are_read_once() -> None:
    tokenizer, text = MergingTokenizer(), "the man that has a hat, " * 1000
    tokenize(tokenizer, text)
    assert tokenizer.n_calls <= len(text) / (tokenizer.window_chars * 0.8) + 1


def test_text_that_the_tokens_do_not_show_is_cut_between_words() -> None:
    tokenizer, text = MergingTokenizer(lowers=True), "THE Aab the 12\n" * 500
    assert tokenize(tokenizer, text) == tokenizer.tokenize_piece(text, is_continuation=False)


def test_text_that_can_be_cut_nowhere_is_read_in_bounded_windows() -> None:
    class Hashing(MergingTokenizer):
        """Every token depends on the whole text."""

        def tokenize_piece(self, text: str, *, is_continuation: bool) -> list[int]:
            super().tokenize_piece(text, is_continuation=is_continuation)
            self._texts |= {hash((text, i)): c for i, c in enumerate(text)}
            return [hash((text, i)) for i in range(len(text))]

    tokenizer = Hashing()
    assert len(tokenize(tokenizer, "x" * 200_000)) == 200_000
    assert tokenizer.max_chars <= 1 << 16
