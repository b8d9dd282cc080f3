"""Budget of one reply for drafts: it limits how much time all drafts of the reply may lose."""

from __future__ import annotations

from typing import Final

# Share of the time of plain decoding that the drafts of a reply may lose, and the number of tokens for which it is
# available from the start. No reply of at least `_MIN_TOKENS` tokens is then slower than 1 / (1 + share) of plain
# decoding, if the costs are right.
_LOSS_SHARE: Final = 0.025
_MIN_TOKENS: Final = 100
_INITIAL_BUDGET: Final = _LOSS_SHARE * _MIN_TOKENS
# Number of tokens that a reply without gains must have before the trial of a model.
_MIN_TRIAL_TOKENS: Final = 48
# Gains that later losses may use up, in steps of one token. Without a limit, a long repetitive text would pay for
# useless drafts in thousands of following tokens.
_MAX_SAVINGS: Final = 64.0


class ReplyBudget:
    """Account of the gains and losses of the drafts in one reply, in decode steps of one token.

    A step with a draft is allowed if its loss is covered even when all its tokens are rejected. Plain steps earn the
    lost share back slowly.
    """

    def __init__(self) -> None:
        self._n_tokens = 0
        self._balance = 0.0
        """Time that the drafts have gained; negative if they have lost time."""

    @property
    def remaining(self) -> float:
        """Loss that the next draft may cause, in decode steps of one token; never negative."""
        return max(0.0, self._balance + _LOSS_SHARE * max(self._n_tokens, _MIN_TOKENS))

    @property
    def remaining_for_trial(self) -> float:
        """Loss that a trial of a model may cause, in decode steps of one token.

        A trial that uses up the budget ends the drafts from texts, too. So it may only use a few steps of what these
        have gained, or, if they have gained little in many tokens, the budget; half of a large budget is left to them.
        """
        gains = min(max(0.0, self._balance), _INITIAL_BUDGET)
        if self._n_tokens < _MIN_TRIAL_TOKENS or self._balance > _INITIAL_BUDGET:
            return gains
        return max(min(self.remaining, _INITIAL_BUDGET), self.remaining / 2)

    @property
    def gain(self) -> float:
        """Time that the drafts of the reply have gained, in decode steps of one token; negative for a loss."""
        return self._balance

    def record(self, n_tokens: int, cost: float) -> None:
        """Record a step that generated `n_tokens` and took `cost` decode steps of one token, including the draft."""
        self._n_tokens += n_tokens
        self._balance = min(self._balance + n_tokens - cost, _MAX_SAVINGS)
