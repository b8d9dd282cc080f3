"""Requests for drafts of a model, their results, and how much of a text a model drafter has computed."""

from __future__ import annotations

from typing import Final, NamedTuple


class DraftRequest(NamedTuple):
    """Request for a draft of one sequence."""

    next_token: int | None
    """The last sampled token, which the sequence does not contain yet; the draft follows it. None for a draft that
    follows the last token of the sequence."""
    max_tokens: int
    min_probability: float = 0.0
    """The draft ends before the first token to which the model gives a lower probability."""
    max_pending: int | None = None
    """Maximum number of tokens that the model may compute before it drafts. If more tokens are pending, the model
    computes only the last ones, as if the text began there. None for no limit."""
    must_restart: bool = False
    """True if the model first discards what it has computed of the text."""
    ends_at_eog: bool = True
    """True if the draft ends before an end-of-generation token."""


class TokenChain(NamedTuple):
    """Draft tokens of a model, each with the probability that the model gives it."""

    tokens: list[int]
    probabilities: list[float]


class TextWindow(NamedTuple):
    """The part of a text that a model drafter reads, in tokens."""

    n_pending: int
    """Tokens that it must compute before a draft, with the next one; 0 if it cannot draft."""
    n_computed: int
    """Tokens before them that it has computed."""
    n_restart: int
    """Tokens that it would compute after a restart: the last ones of the text; 0 if it needs no tokens."""

    @property
    def size(self) -> int:
        """Tokens that the model knows when it drafts next, unless it restarts."""
        return self.n_pending + self.n_computed


NO_WINDOW: Final = TextWindow(0, 0, 0)
