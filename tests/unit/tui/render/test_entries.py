"""Transcript entries: streaming replies and the summary of the reasoning."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.engine.generation import GenerationStats, ReplyOrigin
from edgechat.tui.render.entries import MessageEntry
from tests.unit.tui.layouts import make_entry, rendered_rows

MARKDOWN_PARTS = ["a", "words ", "\n", "\n\n", "```py\n", "```\n", "- x\n", "1. y\n", "  ", "|a|b|\n|-|-|\n"]
SPECIAL_PARTS = ["\r", "\u200d", "\U0001f469", "\u0301" * 7, "\U0001f3f4", "\U000e0067", "\U000e007f"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(MARKDOWN_PARTS + SPECIAL_PARTS), max_size=30), st.integers(10, 60))
def test_streamed_reply_has_the_same_rows_as_a_complete_one(parts: list[str], width: int) -> None:
    streamed, complete = make_entry(""), make_entry("".join(parts))
    streamed.start_streaming()
    rendered_rows(streamed, width)
    for part in parts:
        streamed.append(part, "")
        rendered_rows(streamed, width)
    streamed.finish(complete.message)
    assert rendered_rows(streamed, width) == rendered_rows(complete, width)
    assert streamed.height(width) == complete.height(width)


def test_reply_that_repeats_itself_has_a_note_below_it() -> None:
    entry = make_entry("La la la", finish_reason="length")
    assert "(The reply reached its length limit; /continue resumes it)" in rendered_rows(entry, 90)[-1]
    stats = GenerationStats(
        prompt_tokens=1, cached_tokens=0, completion_tokens=3, ttft_s=0.1, prefill_tps=1.0, decode_tps=1.0,
        repeats_itself=True,
    )  # fmt: skip
    entry = MessageEntry(msgspec.structs.replace(entry.message, stats=stats), (1, 1), entry.glyphs)
    note = "(Stopped: repeats itself; /continue resumes it with a repetition penalty)"
    assert rendered_rows(entry, 90)[-1].rstrip() == note


def test_picked_reply_shows_the_vote_above_it() -> None:
    entry = make_entry("The answer is 7.")
    stats = GenerationStats(
        prompt_tokens=1, cached_tokens=0, completion_tokens=3, ttft_s=0.1, prefill_tps=1.0, decode_tps=1.0,
        pick="4 of 5 agree",
    )  # fmt: skip
    entry = MessageEntry(msgspec.structs.replace(entry.message, stats=stats), (2, 5), entry.glyphs)
    assert rendered_rows(entry, 90)[0].rstrip().endswith("2/5\u203a 4 of 5 agree")


def test_reasoning_is_one_line_with_its_latest_words() -> None:
    def rows() -> list[str]:
        return [row.rstrip() for row in rendered_rows(entry, 60)]

    entry = make_entry("", finish_reason="streaming")
    entry.start_streaming()
    entry.append("", "First I look.\nThen I ")
    assert rows() == ["▸ Reasoning (5 words): Then I"]
    entry.append("", "think.")
    assert rows() == ["▸ Reasoning (6 words): Then I think."]
    entry.append("So it is.", "")
    assert rows() == ["▸ Reasoning (6 words)", "So it is."]
    entry.is_expanded = True
    entry.invalidate()
    assert rows()[:3] == ["▾ Reasoning (6 words)", "First I look.", "Then I think."]


@pytest.mark.parametrize(("at_ms", "day"), [(1_762_171_200_000, " of 3 November 2025"), (0, "")])
def test_copied_reply_shows_its_origin_above_it_and_no_speed(at_ms: int, day: str) -> None:
    entry = make_entry("Paris.")
    stats = GenerationStats(
        prompt_tokens=0, cached_tokens=0, completion_tokens=0, ttft_s=0.0, prefill_tps=0.0, decode_tps=0.0,
        origin=ReplyOrigin(conversation_id="c", message_id="m", created_at_ms=at_ms),
    )  # fmt: skip
    message = msgspec.structs.replace(entry.message, stats=stats, model="small\x1b[31m.gguf")
    entry = MessageEntry(message, (1, 1), entry.glyphs, show_stats=True)
    rows = [row.rstrip() for row in rendered_rows(entry, 60)]
    assert rows[0] == f"Earlier reply{day}, small\u241b[31m"
    assert [row for row in rows if row][-1] == "Paris."
