"""Time of a typical turn."""

from __future__ import annotations

import pytest

from edgechat.planner.throughput import PredictedSpeed
from edgechat.planner.turn import MIN_THINKING_TPS, predict_default_turn, predict_shortest_turn

SLOW = PredictedSpeed(decode_tps=10, prefill_tps=60)
FAST = PredictedSpeed(decode_tps=MIN_THINKING_TPS, prefill_tps=MIN_THINKING_TPS)


def test_turn_is_the_sum_of_prompt_reasoning_and_reply() -> None:
    turn = predict_default_turn(SLOW, "always", think=None)
    assert (turn.prompt_s, turn.thinking_s, turn.reply_s) == (10, 80, 30)
    assert turn.total_s == 120
    assert predict_default_turn(SLOW, "no", think=True).total_s == 40


def test_reasoning_is_on_by_default_only_where_a_turn_with_it_is_short() -> None:
    assert predict_default_turn(SLOW, "toggle", think=None).thinking_s == 0
    assert predict_default_turn(FAST, "toggle", think=None).thinking_s > 0
    assert predict_default_turn(FAST, "toggle", think=None).total_s < 30
    assert predict_default_turn(FAST, "toggle", think=False).thinking_s == 0
    assert predict_default_turn(SLOW, "toggle", think=True).thinking_s == 80


@pytest.mark.parametrize("think", [None, True, False])
@pytest.mark.parametrize("thinking", ["no", "toggle", "always"])
def test_more_speed_never_makes_the_ranking_time_longer(thinking: str, think: bool | None) -> None:
    times = [
        predict_shortest_turn(
            PredictedSpeed(decode_tps=tps, prefill_tps=4 * tps), thinking, think=think  # type: ignore[arg-type]
        ).total_s
        for tps in range(1, 200)
    ]  # fmt: skip
    assert times == sorted(times, reverse=True)
