"""Drafters: search earlier text for the end of the current text, and propose the tokens that followed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from edgechat.draft_request import DraftRequest, TextWindow, TokenChain
from edgechat.prefix.common_prefix import common_prefix_length

# Sources of drafts. The acceptance rates are measured separately for each source.
FROM_CONTEXT: Final = 0
FROM_CORPUS: Final = 1
FROM_MODEL: Final = 2
N_TEXT_SOURCES: Final = 2
SOURCE_NAMES: Final = ("context", "corpus", "model")


class Draft(NamedTuple):
    """Draft tokens with their source, and either the length of the match before them or their probabilities."""

    tokens: list[int]
    match_length: int
    """Number of tokens at the end of the current text that also precede the draft in the searched text."""
    source: int
    model_probabilities: Sequence[float] = ()
    """Probability that the model drafter gives each token; empty for a draft from a text."""


NO_DRAFT: Final = Draft([], 0, FROM_CONTEXT)


class TokenIndex(Protocol):
    """Suffix-match index of a token sequence. `edgechat.runtime.suffix_index.SuffixIndex` implements it."""

    def __len__(self) -> int:
        """Return the number of indexed tokens."""

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens to the indexed text; matches do not extend across a negative token. Raises MemoryError."""

    def truncate(self, size: int) -> None:
        """Remove all but the first `size` tokens."""

    def draft(self, max_tokens: int, context: Sequence[int] | None = None) -> tuple[list[int], int, int]:
        """Find the longest suffix of `context` that occurs in the indexed text.

        If `context` is None, find an earlier occurrence of the longest suffix of the indexed text itself.
        Returns the tokens after the match (at most `max_tokens`; empty without a match), the length of the match, and
        the position of the returned tokens in the indexed text.
        """


class Drafter(Protocol):
    """Interface of drafters, which propose tokens that may follow the current text."""

    def start(self, tokens: Sequence[int]) -> None:
        """Set the current text to `tokens`."""

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the current text."""

    def draft(self, max_tokens: int) -> Draft:
        """Propose at most `max_tokens` tokens that may follow the current text."""

    def stop(self) -> None:
        """Free what the drafter needs only while its text grows; `start` follows before the next draft."""


class LiveDrafter:
    """Drafter that searches the current text itself: the prompt and the tokens generated so far."""

    def __init__(self, index: TokenIndex) -> None:
        self._index = index
        self._text: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        """Set the current text to `tokens`. A prefix in common with the previous text stays in the index."""
        n_shared = common_prefix_length(self._text, tokens)
        self._index.truncate(n_shared)
        del self._text[n_shared:]
        self.append(tokens[n_shared:])

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the current text and its index."""
        self._text.extend(tokens)
        self._index.append(tokens)

    def draft(self, max_tokens: int) -> Draft:
        """Propose at most `max_tokens` tokens that follow the longest earlier match of the end of the current text."""
        tokens, match_length, _ = self._index.draft(max_tokens)
        return Draft(tokens, match_length, FROM_CONTEXT)

    def stop(self) -> None:
        """Keep the index, because the next text may have a prefix in common with this one."""

    def count_shared(self, tokens: Sequence[int]) -> int:
        """Return the number of tokens that the current text has in common with `tokens` at its beginning."""
        return common_prefix_length(self._text, tokens)


class LivePool:
    """Drafters of the current texts of several replies. Their number is limited, because each has an index."""

    def __init__(self, make_index: Callable[[], TokenIndex], max_drafters: int) -> None:
        """Create a pool of at most `max_drafters` drafters, with one drafter. Raises MemoryError."""
        self._make_index = make_index
        self._max_drafters = max_drafters
        self._free = [LiveDrafter(make_index())]
        self._n_drafters = 1

    def acquire(self, tokens: Sequence[int]) -> LiveDrafter | None:
        """Take the free drafter whose text has the longest prefix in common with `tokens`; None if none is free.

        Raises MemoryError.
        """
        if not self._free and self._n_drafters < self._max_drafters:
            drafter = LiveDrafter(self._make_index())
            self._n_drafters += 1
            return drafter
        if not self._free:
            return None
        best = max(self._free, key=lambda drafter: drafter.count_shared(tokens))
        self._free.remove(best)
        return best

    def release(self, drafter: LiveDrafter) -> None:
        """Return a drafter to the pool."""
        self._free.append(drafter)


class PooledDrafter:
    """Drafter of one reply, which takes a drafter of a pool while the reply is being generated."""

    def __init__(self, pool: LivePool) -> None:
        self._pool = pool
        self._drafter: LiveDrafter | None = None

    def start(self, tokens: Sequence[int]) -> None:
        """Set the current text to `tokens`. If the pool has no free drafter, `draft` proposes nothing."""
        if self._drafter is None:
            self._drafter = self._pool.acquire(tokens)
        if self._drafter is not None:
            self._drafter.start(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the current text and its index."""
        if self._drafter is not None:
            self._drafter.append(tokens)

    def draft(self, max_tokens: int) -> Draft:
        """Propose at most `max_tokens` tokens that follow the longest earlier match of the end of the current text."""
        return self._drafter.draft(max_tokens) if self._drafter is not None else NO_DRAFT

    def stop(self) -> None:
        """Return the drafter to the pool."""
        if self._drafter is not None:
            self._pool.release(self._drafter)
            self._drafter = None


class ModelDrafter(Protocol):
    """Interface of drafters that compute tokens with a model. `edgechat.runtime.model_drafter` implements it."""

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens in a draft."""

    @property
    def is_open(self) -> bool:
        """False if the next draft must first allocate memory that was freed."""

    def find_window(self, seq: int) -> TextWindow:
        """Return how much of the text of sequence `seq` the model has computed, and how much it must compute."""

    def draft(self, requests: Mapping[int, DraftRequest]) -> Mapping[int, TokenChain]:
        """Draft for several sequences at once, by sequence.

        A sequence for which no draft is possible is missing in the result; one that the model ends at once is empty.
        """

    def sleep(self) -> None:
        """Free the memory of the drafter until the next `wake`."""

    def wake(self) -> bool:
        """Allocate the memory again; return False if that fails."""
