"""Where guesses come from: text that stood in the context, or in other conversations, before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from edgechat.prefix.common_prefix import common_prefix_length

# Sources of drafts; how often each is right is counted apart.
FROM_CONTEXT: Final = 0
FROM_CORPUS: Final = 1
N_SOURCES: Final = 2


class Draft(NamedTuple):
    """A guess at the next tokens."""

    tokens: list[int]
    match_length: int
    """Tokens before them that were the same where they were found."""
    source: int


NO_DRAFT: Final = Draft([], 0, FROM_CONTEXT)


class TokenIndex(Protocol):
    """A text in which the end of a text is looked up. `edgechat.runtime.suffix_index.SuffixIndex` is one."""

    def __len__(self) -> int:
        """Tokens of the text."""

    def append(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end; a negative one separates texts. Raises MemoryError."""

    def truncate(self, size: int) -> None:
        """Forget all but the first `size` tokens."""

    def draft(self, max_tokens: int, context: Sequence[int] | None = None) -> tuple[list[int], int, int]:
        """What followed the longest match of the end of `context`, or of the text itself; its length, and where."""


class Drafter(Protocol):
    """Guesses what comes next in a text, and is told what came."""

    def start(self, tokens: Sequence[int]) -> None:
        """This is the text from its start."""

    def append(self, tokens: Sequence[int]) -> None:
        """So it goes on."""

    def draft(self, max_tokens: int) -> Draft:
        """What may come next."""


class LiveDrafter:
    """Finds drafts in the very text that is being written."""

    def __init__(self, index: TokenIndex) -> None:
        self._index = index
        self._text: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        """What the last text and this one share is not indexed again."""
        shared = common_prefix_length(self._text, tokens)
        self._index.truncate(shared)
        del self._text[shared:]
        self.append(tokens[shared:])

    def append(self, tokens: Sequence[int]) -> None:
        """So it goes on."""
        self._text.extend(tokens)
        self._index.append(tokens)

    def draft(self, max_tokens: int) -> Draft:
        """What followed the longest match of the text's end; of equally long ones, the newest."""
        tokens, match_length, _ = self._index.draft(max_tokens)
        return Draft(tokens, match_length, FROM_CONTEXT)
