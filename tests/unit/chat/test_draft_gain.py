"""Figures of a reply: the gain from its drafts, and what a model drafter brought."""

from __future__ import annotations

import pytest

from edgechat.chat.messages import format_draft_gain, format_speed
from edgechat.engine.generation import DraftCounts, GenerationStats


def stats(n_drafted: int, n_tokens: int = 50, **sources: tuple[int, int]) -> GenerationStats:
    return GenerationStats(
        prompt_tokens=10, cached_tokens=0, completion_tokens=n_tokens, ttft_s=0.1, prefill_tps=100.0, decode_tps=42.4,
        n_drafted=n_drafted, n_accepted=n_drafted // 2, speculation_gain=1.46,
        drafts_by_source={name: DraftCounts(*counts) for name, counts in sources.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "gain", "speed"),
    [
        (stats(0), "", "42 tokens/s"),
        (stats(20, context=(20, 10)), "1.5x speed", "42 tokens/s"),
        (stats(20, context=(20, 10), model=(0, 0)), "1.5x speed", "42 tokens/s"),
        (stats(4, 300, context=(4, 2)), "", "42 tokens/s"),
        (
            stats(20, 300, model=(20, 10)),
            "10 of 20 by the drafter",
            "42 tokens/s (10 of 20 by the drafter)",
        ),
        (
            stats(72, context=(20, 10), model=(52, 40)),
            "1.5x speed, 40 of 52 by the drafter",
            "42 tokens/s (1.5x speed, 40 of 52 by the drafter)",
        ),
    ],
)
def test_gain_names_the_model_drafter_if_it_drafted(reply: GenerationStats, gain: str, speed: str) -> None:
    assert format_draft_gain(reply) == gain
    assert format_speed(reply) == speed
