"""Status text of the reasoning: its time and the limit that is nearer."""

from __future__ import annotations

import pytest

from edgechat.chat.events import PickProgressed, PickStarted, ReplyTextGenerated, ThinkingLimited
from edgechat.chat.thinking_progress import ThinkingProgress


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (None, "Reasoning 6 s"),
        (ThinkingLimited(max_s=20.0), "Reasoning 6 s of 20 s"),
        (ThinkingLimited(max_tokens=1000), "Reasoning 30 of 1,000 tokens"),
        (ThinkingLimited(max_tokens=20), "Reasoning 20 of 20 tokens"),
        (ThinkingLimited(max_tokens=1000, max_s=20.0), "Reasoning 6 s of 20 s"),
        (ThinkingLimited(max_tokens=40, max_s=20.0), "Reasoning 30 of 40 tokens"),
    ],
)
def test_nearer_limit_is_shown(limit: ThinkingLimited | None, text: str) -> None:
    now_s = 0.0
    progress = ThinkingProgress(lambda: now_s)
    if limit is not None:
        progress.add(limit)
    progress.add(ReplyTextGenerated(text="", reasoning="", n_tokens=1))
    assert not progress.text
    for _ in range(3):
        progress.add(ReplyTextGenerated(text="", reasoning="hm", n_tokens=10))
        now_s += 3.0
    progress.add(ReplyTextGenerated(text="x", reasoning="y", n_tokens=10, reply_index=1))
    assert progress.text == text
    progress.add(ReplyTextGenerated(text="So", reasoning="", n_tokens=1))
    assert not progress.text
    progress.add(ReplyTextGenerated(text="", reasoning="", n_tokens=1))  # the parser holds back a part of the text
    assert not progress.text


def test_finished_replies_are_shown_while_the_first_one_is_generated() -> None:
    progress = ThinkingProgress()
    progress.add(ReplyTextGenerated(text="a", reasoning="", n_tokens=1))
    assert not progress.pick_text
    progress.add(PickStarted(n_replies=5))
    assert progress.pick_text.startswith("0 of up to 5")
    progress.add(PickProgressed(n_finished=2, n_replies=5))
    progress.add(ReplyTextGenerated(text="b", reasoning="", n_tokens=1))
    assert str(progress.pick_text) == "2 of up to 5 replies finished"
