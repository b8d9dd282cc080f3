"""Alarms and cost of the loop detector."""

from __future__ import annotations

from edgechat.bench.repetition import check_replies


def test_only_replies_that_repeat_themselves_raise_an_alarm() -> None:
    replies = [list(range(500)), list(range(80)) * 3, list(range(80)) * 5]
    check = check_replies(replies)
    assert (check.n_replies, check.n_alarms) == (3, 1)
    assert check.reply_cost_us > 0
    assert check.loop_cost_us > 0
