"""Acceptance rates: buckets, decay, bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.speculation.acceptance import BUCKET_STARTS, Acceptance, find_bucket
from edgechat.speculation.drafter import FROM_CONTEXT, FROM_CORPUS


def test_match_lengths_map_to_buckets() -> None:
    assert [find_bucket(n) for n in BUCKET_STARTS] == list(range(len(BUCKET_STARTS)))
    assert find_bucket(5) == find_bucket(4)
    assert find_bucket(1000) == len(BUCKET_STARTS) - 1


def test_probability_follows_recent_outcomes_per_source() -> None:
    acceptance, bucket = Acceptance(), find_bucket(4)
    prior = acceptance.probabilities[FROM_CONTEXT][bucket]
    for _ in range(300):
        acceptance.record(FROM_CONTEXT, 4, is_accepted=True)
    high = acceptance.probabilities[FROM_CONTEXT][bucket]
    assert prior < 0.9 < high < 1
    assert acceptance.probabilities[FROM_CORPUS][bucket] == prior
    for _ in range(300):
        acceptance.record(FROM_CONTEXT, 5, is_accepted=False)
    assert acceptance.probabilities[FROM_CONTEXT][bucket] < 0.2
    assert acceptance.probability_lower_bounds[FROM_CONTEXT][bucket] < acceptance.probabilities[FROM_CONTEXT][bucket]


@given(st.lists(st.tuples(st.integers(1, 80), st.booleans())))
def test_probabilities_stay_between_0_and_1(outcomes: list[tuple[int, bool]]) -> None:
    acceptance = Acceptance()
    for length, accepted in outcomes:
        acceptance.record(FROM_CORPUS, length, is_accepted=accepted)
    for probabilities in (*acceptance.probabilities, *acceptance.probability_lower_bounds):
        assert all(-0.2 <= p <= 1 for p in probabilities)
    assert all(0 < p < 1 for probabilities in acceptance.probabilities for p in probabilities)
