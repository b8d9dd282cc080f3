"""Drafters, which propose tokens that followed the same text earlier, in the context or in other conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from edgechat.prefix.common_prefix import common_prefix_length

# Sources of drafts; acceptance is counted separately for each source.
FROM_CONTEXT: Final = 0
FROM_CORPUS: Final = 1
N_SOURCES: Final = 2


class Draft(NamedTuple):
    """Draft tokens with their source and the length of the match before them."""

    tokens: list[int]
    match_length: int
    """Number of tokens before the draft in the indexed text that equal the end of the current text."""
    source: int


NO_DRAFT: Final = Draft([], 0, FROM_CONTEXT)


class TokenIndex(Protocol):
    """Index over a token text for suffix matches, such as `edgechat.runtime.suffix_index.SuffixIndex`."""

    def __len__(self) -> int:
        """Return the number of tokens in the text."""

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text; a negative token separates two texts. Raises MemoryError."""

    def truncate(self, size: int) -> None:
        """Remove all but the first `size` tokens."""

    def draft(self, max_tokens: int, context: Sequence[int] | None = None) -> tuple[list[int], int, int]:
        """Return the tokens after the longest match of the end of `context`, the match length, and their position.

        Without `context`, the end of the indexed text is matched. Without a match, the list is empty.
        """


class Drafter(Protocol):
    """Source of drafts that follows one text, token by token."""

    def start(self, tokens: Sequence[int]) -> None:
        """Set the current text to `tokens`."""

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the current text."""

    def draft(self, max_tokens: int) -> Draft:
        """Propose at most `max_tokens` tokens that may follow the current text."""


class LiveDrafter:
    """Drafter that searches the current text itself: the prompt and the tokens generated so far."""

    def __init__(self, index: TokenIndex) -> None:
        self._index = index
        self._text: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        """Set the current text to `tokens`. The prefix shared with the previous text stays in the index."""
        n_shared = common_prefix_length(self._text, tokens)
        self._index.truncate(n_shared)
        del self._text[n_shared:]
        self.append(tokens[n_shared:])

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the indexed text."""
        self._text.extend(tokens)
        self._index.append(tokens)

    def draft(self, max_tokens: int) -> Draft:
        """Propose tokens that follow the longest earlier match of the end of the text; of equal matches, the newest."""
        tokens, match_length, _ = self._index.draft(max_tokens)
        return Draft(tokens, match_length, FROM_CONTEXT)
