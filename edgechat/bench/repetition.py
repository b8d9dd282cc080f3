"""Cost of the loop detector, and its alarms on replies that are not loops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.engine.repetition import MAX_PERIOD, RepetitionDetector

# The fastest of several rounds is the least disturbed one.
_N_ROUNDS: Final = 5
# Periods of the loops that the detector watches until it reports them.
_LOOP_PERIODS: Final = (1, 7, 60, 350)


class RepetitionCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Alarms and cost of the loop detector. Costs are the fastest of five rounds, in microseconds per token."""

    n_replies: int
    n_alarms: int
    """Number of replies in which the detector reports a loop."""
    reply_cost_us: float
    loop_cost_us: float
    """Mean cost in loops of several periods, until the detector reports them."""


def check_replies(replies: Sequence[Sequence[int]]) -> RepetitionCheck:
    """Run the detector on the tokens of `replies`, and on loops of their tokens."""
    tokens = [token for reply in replies for token in reply][:MAX_PERIOD]
    loops = [(tokens[:period] * (8 * MAX_PERIOD))[: 8 * MAX_PERIOD] for period in _LOOP_PERIODS]
    return RepetitionCheck(
        n_replies=len(replies), n_alarms=sum(_watch(reply) < len(reply) for reply in replies),
        reply_cost_us=_measure_cost_us(replies), loop_cost_us=_measure_cost_us(loops),
    )  # fmt: skip


def _measure_cost_us(outputs: Sequence[Sequence[int]]) -> float:
    durations_s = []
    n_tokens = 0
    for _ in range(_N_ROUNDS):
        started_at = time.perf_counter()
        n_tokens = sum(map(_watch, outputs))
        durations_s.append(time.perf_counter() - started_at)
    return 1e6 * min(durations_s) / max(1, n_tokens)


def _watch(tokens: Sequence[int]) -> int:
    """Feed `tokens` to a detector one by one; return the number of tokens before the one at which it reports a loop."""
    output: list[int] = []
    detector = RepetitionDetector(output)
    for n_before, token in enumerate(tokens):
        output.append(token)
        if detector.check():
            return n_before
    return len(tokens)
