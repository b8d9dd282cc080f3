"""Votes: ties, early decisions, and the order of the replies."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.agreement.answers import Answer
from edgechat.prompt.agreement.vote import Ballot, can_change, choose_most_likely, count_deciding_votes, elect

ANSWERS = [Answer("number", value) for value in "123"]
BALLOTS = st.lists(
    st.builds(Ballot, st.sampled_from([*ANSWERS, None]), st.one_of(st.none(), st.floats(-5, 0))),
    min_size=1,
    max_size=7,
)


def ballots(values: str) -> list[Ballot]:
    return [Ballot(Answer("text", value) if value != "-" else None) for value in values]


@pytest.mark.parametrize(
    ("values", "winner", "n_agreeing"),
    [("abb", 1, 2), ("aab", 0, 2), ("a", 0, 1), ("---", 0, 0), ("-b-", 1, 1), ("cabab", 1, 2)],
)
def test_first_reply_with_the_most_frequent_answer_wins(values: str, winner: int, n_agreeing: int) -> None:
    election = elect(ballots(values))
    if values != "cabab":  # a tie between a and b
        assert election.winner == winner
    assert election.n_agreeing == n_agreeing


def test_tie_goes_to_the_answer_with_the_highest_mean_logprob() -> None:
    a, b = ANSWERS[:2]
    assert elect([Ballot(a, -0.9), Ballot(b, -0.8), Ballot(b, -0.7), Ballot(a, -0.1)]).winner == 0
    assert elect([Ballot(a, -0.9), Ballot(b, -0.05), Ballot(b, -0.7), Ballot(a, -0.1)]).winner == 1
    assert elect([Ballot(a), Ballot(b, -3.0)]).winner == 1


def test_without_answers_the_most_likely_reply_wins() -> None:
    assert elect([Ballot(None, -2.0), Ballot(None, -1.0), Ballot(None, math.nan), Ballot(None)]).winner == 1
    assert choose_most_likely([None, -math.inf]) == 0
    with pytest.raises(ValueError, match="empty"):
        elect([])


@given(votes=BALLOTS, seed=st.integers())
def test_order_of_replies_does_not_matter(votes: list[Ballot], seed: int) -> None:
    shuffled = random.Random(seed).sample(votes, len(votes))
    first, second = elect(votes), elect(shuffled)
    assert first.n_agreeing == second.n_agreeing
    assert votes[first.winner].answer == shuffled[second.winner].answer


@given(counts=st.lists(st.integers(0, 3), min_size=3, max_size=3), n_left=st.integers(0, 3))
def test_decided_vote_cannot_change(counts: list[int], n_left: int) -> None:
    """Compared with all possible further votes; an answer that draws level could win by its mean logprob."""
    votes = Counter({answer: n for answer, n in zip(ANSWERS, counts, strict=True) if n})
    leaders = set()
    for further in itertools.product([*ANSWERS, Answer("number", "9"), None], repeat=n_left):
        total = votes + Counter(answer for answer in further if answer is not None)
        highest = max(total.values(), default=0)
        leaders.add(frozenset(answer for answer in total if total[answer] == highest))
    if n_left:
        assert can_change(votes, n_left) == (len(leaders) > 1 or len(next(iter(leaders))) != 1)
    else:
        assert not can_change(votes, n_left)


@given(counts=st.lists(st.integers(0, 9), min_size=3, max_size=3), n_left=st.integers(0, 20))
def test_deciding_votes_are_the_fewest_that_can_decide(counts: list[int], n_left: int) -> None:
    votes = Counter({answer: n for answer, n in zip(ANSWERS, counts, strict=True) if n})
    n = count_deciding_votes(votes, n_left)
    assert (n > 0) == can_change(votes, n_left)
    leader = max(votes, key=lambda answer: votes[answer]) if votes else ANSWERS[0]
    if n:
        assert n <= n_left
        assert not can_change(votes + Counter({leader: n}), n_left - n)
        if n > 1:
            assert can_change(votes + Counter({leader: n - 1}), n_left - n + 1)
