"""Vote of several replies on their final answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from edgechat.prompt.agreement.answers import Answer


class Ballot(NamedTuple):
    """Vote of one complete reply."""

    answer: Answer | None
    """None if the reply has no answer that can be compared."""
    mean_logprob: float | None = None


class Election(NamedTuple):
    """Result of a vote."""

    winner: int
    """Index of the chosen ballot."""
    n_agreeing: int
    """Number of ballots with the same answer as the winner, including it; 0 if no ballot has an answer."""


def count_votes(ballots: Sequence[Ballot]) -> Counter[Answer]:
    """Return the number of votes for each answer. Ballots without an answer do not count."""
    return Counter(ballot.answer for ballot in ballots if ballot.answer is not None)


def _compute_lead(counts: Counter[Answer]) -> int:
    (_, leader), (_, second), *_ = [*counts.most_common(2), (None, 0), (None, 0)]
    return leader - second


def can_change(counts: Counter[Answer], n_left: int) -> bool:
    """Return whether `n_left` further votes can make another answer win or draw level."""
    return n_left > 0 and _compute_lead(counts) <= n_left


def count_deciding_votes(counts: Counter[Answer], n_left: int) -> int:
    """Return how many of the `n_left` further votes suffice to decide, if all of them are for the leading answer.

    Returns 0 if the vote is decided.
    """
    return (n_left - _compute_lead(counts)) // 2 + 1 if can_change(counts, n_left) else 0


def elect(ballots: Sequence[Ballot]) -> Election:
    """Choose the first ballot with the most frequent answer.

    Of two answers with equally many votes, the one with the highest mean logprob of a ballot wins. Without any answer,
    the ballot with the highest mean logprob wins. Raises ValueError without ballots.
    """
    counts = count_votes(ballots)
    if not counts:
        return Election(choose_most_likely([ballot.mean_logprob for ballot in ballots]), 0)
    best_logprobs = {
        answer: max(rank_logprob(b.mean_logprob) for b in ballots if b.answer == answer) for answer in counts
    }
    winning_answer = max(counts, key=lambda answer: (counts[answer], best_logprobs[answer], answer))
    winner = next(index for index, ballot in enumerate(ballots) if ballot.answer == winning_answer)
    return Election(winner, counts[winning_answer])


def choose_most_likely(mean_logprobs: Sequence[float | None]) -> int:
    """Return the index of the highest mean logprob, of several the first; unknown values are lowest.

    Raises ValueError for an empty list.
    """
    return max(range(len(mean_logprobs)), key=lambda index: (rank_logprob(mean_logprobs[index]), -index))


def rank_logprob(mean_logprob: float | None) -> float:
    """Return a number for comparisons: the mean logprob, or minus infinity if it is unknown or not a number."""
    return -math.inf if mean_logprob is None or math.isnan(mean_logprob) else mean_logprob
