"""Correction of predicted speeds by the speeds of real replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.planner.observed_speed import ObservedSpeed, correct_speed
from edgechat.planner.throughput import PredictedSpeed

PREDICTED = PredictedSpeed(decode_tps=10.0, prefill_tps=40.0)


def decode_tps(*observed: float, predicted: PredictedSpeed = PREDICTED) -> float:
    return correct_speed(predicted, ObservedSpeed(decode_tps=observed)).speed.decode_tps


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ((), 10.0),
        ((5.0, 5.0), 10.0),  # too few replies
        ((5.0, 5.0, 5.0), 5.0),
        ((6.0, 6.1, 6.2), 6.1),
        ((7.0, 7.0, 7.0), 10.0),  # a factor of 1.43
        ((16.0, 15.5, 90.0), 16.0),
        ((14.0, 14.5, 90.0), 10.0),
        ((1.0, 10.0, 10.0), 10.0),  # one slow reply
        ((1.0, 1.0, 1.0, 10.0, 10.0, 10.0), 10.0),  # the machine is as fast as predicted again
    ],
)
def test_speed_of_replies_counts_from_a_factor_of_one_and_a_half(observed: tuple[float, ...], expected: float) -> None:
    assert decode_tps(*observed) == expected


def test_correction_near_the_limit_stays_until_replies_agree_with_the_prediction() -> None:
    near_limit = [7.1, 6.9, 6.4, 7.0, 6.8, 6.6, 7.1]  # medians of 6.8 to 6.95, factors of up to 1.47
    assert decode_tps(*near_limit) == 10.0
    slow = [5.0] * 3
    assert [decode_tps(*slow, *near_limit[:end]) for end in range(5, 8)] == [6.9, 6.8, 6.8]
    assert decode_tps(*slow, *[8.5] * 3) == 10.0


def test_speed_without_observations_is_adapted_to_the_other_one() -> None:
    fast = correct_speed(PREDICTED, ObservedSpeed(decode_tps=(60.0,) * 3))
    assert (fast.speed.decode_tps, fast.speed.prefill_tps) == (60.0, 60.0)
    slow = correct_speed(PREDICTED, ObservedSpeed(prefill_tps=(4.0,) * 3))
    assert (slow.speed.decode_tps, slow.speed.prefill_tps) == (4.0, 4.0)
    assert slow.reasons == {
        "prefill_tps": "prefill at 4.0 tokens/s, the median of recent replies, instead of the predicted 40.0 tokens/s"
    }
    both = correct_speed(PREDICTED, ObservedSpeed(decode_tps=(5.0,) * 3, prefill_tps=(80.0,) * 3))
    assert (both.speed.decode_tps, both.speed.prefill_tps) == (5.0, 80.0)
    assert set(both.reasons) == {"decode_tps", "prefill_tps"}


@given(st.floats(1e-3, 1e5), st.lists(st.floats(1e-3, 1e5), max_size=20))
def test_corrected_speed_is_the_prediction_or_within_the_observations(predicted: float, observed: list[float]) -> None:
    tps = decode_tps(*observed, predicted=PredictedSpeed(decode_tps=predicted, prefill_tps=1e6))
    assert tps == predicted or min(observed) <= tps <= max(observed)
