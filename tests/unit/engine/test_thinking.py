"""Tracking of reasoning: tags, tokens and time, and the text that ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.engine.generation import ThinkingLimit
from edgechat.engine.thinking import ThoughtTracker

QWEN = ThinkingLimit(
    start_tags=("<think>",), end_tags=("</think>", "<tool_call>"), text_before_end="\n", text_after_end="\n\n"
)


def make_tracker(limit: ThinkingLimit = QWEN, *texts: str | bytes) -> ThoughtTracker:
    tracker = ThoughtTracker(limit)
    for i, text in enumerate(texts):
        tracker.feed(text.encode() if isinstance(text, str) else text, float(i))
    return tracker


def limit(**options: object) -> ThinkingLimit:
    fields = {name: getattr(QWEN, name) for name in QWEN.__struct_fields__}
    return ThinkingLimit(**(fields | options))


@pytest.mark.parametrize("end", ["</think>", "<tool_call>"])
def test_tokens_between_the_tags_are_counted(end: str) -> None:
    tracker = make_tracker(QWEN, "<think>", "a", "b", end, "c", "d")
    assert not tracker.is_thinking
    assert tracker.n_tokens == 3
    assert tracker.elapsed_s == 3.0


def test_reasoning_that_the_prompt_starts_is_counted_from_the_first_token() -> None:
    tracker = make_tracker(limit(is_open=True, max_tokens=2), "a")
    assert (tracker.is_thinking, tracker.must_end) == (True, False)
    tracker.feed(b"b", 1.0)
    assert tracker.must_end
    assert make_tracker(limit(is_open=True, max_tokens=0)).must_end


def test_limit_applies_to_all_reasoning_of_a_reply_together() -> None:
    tracker = make_tracker(limit(max_tokens=4), "<think>", "a", "b", "</think>", "c", "d", "e", "f")
    assert not tracker.must_end
    tracker.feed(b"<think>", 8.0)
    assert not tracker.must_end
    tracker.feed(b"g", 9.0)
    assert tracker.must_end


def test_time_and_closing_text_go_on_in_another_process() -> None:
    tracker = make_tracker(limit(is_open=True, max_s=3.0, text_before_end="\n\nTime is up.\n"), "a", "\n\nTime i")
    tracker.resume(2.5)
    tracker.feed(b"s", 100.0)  # after a load and a prefill
    assert (tracker.elapsed_s, tracker.must_end) == (2.5, False)
    tracker.feed(b" ", 100.5)
    assert tracker.must_end
    assert next(iter(tracker.closing_texts())) == "up.\n</think>\n\n"
    tracker.feed(b"up.\n<", 100.6)
    assert next(iter(tracker.closing_texts())) == "/think>\n\n"


def test_time_outside_reasoning_does_not_count() -> None:
    tracker = make_tracker(limit(max_s=3.0), "a", "b", "c", "d", "<think>", "e", "f")
    assert not tracker.must_end
    tracker.feed(b"g", 7.0)
    assert tracker.must_end


def test_reasoning_ends_on_request_now_or_when_it_starts() -> None:
    tracker = make_tracker(QWEN, "a")
    tracker.end()
    assert not tracker.must_end
    tracker.feed(b"<think>", 1.0)
    assert tracker.must_end


def test_reasoning_does_not_end_within_a_character() -> None:
    tracker = make_tracker(limit(max_tokens=1, is_open=True), "€".encode()[:1])
    assert not tracker.must_end
    tracker.feed("€".encode()[1:2], 1.0)
    assert not tracker.must_end
    tracker.feed("€".encode()[2:], 2.0)
    assert tracker.must_end


@given(st.binary(max_size=12))
def test_any_bytes_delay_the_end_by_less_than_a_character(piece: bytes) -> None:
    tracker = make_tracker(limit(max_tokens=1, is_open=True), piece)
    n_more = 0
    while not tracker.must_end:
        tracker.feed(b"\xbf", 1.0)
        n_more += 1
    assert n_more <= 3


@pytest.mark.parametrize("first_byte", [b"\xc3", b"\xe2", b"\xf0"])
def test_first_bytes_of_characters_without_end_delay_the_end_by_four_tokens(first_byte: bytes) -> None:
    tracker = ThoughtTracker(limit(max_tokens=3, is_open=True))
    n_tokens = 0
    while not tracker.must_end:
        tracker.feed(first_byte, 0.0)
        n_tokens += 1
        assert n_tokens < 10
    assert n_tokens == 6


@pytest.mark.parametrize("text", ["Write `<think>` here", "```\n<think>\n"])
def test_start_tags_in_code_are_text(text: str) -> None:
    assert not make_tracker(QWEN, text).is_thinking


def test_start_tag_after_a_code_block_counts() -> None:
    assert make_tracker(QWEN, "```\n<think>\n```\n<think>").is_thinking


@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think>", "`", "a"]), max_size=20), st.randoms())
def test_division_of_the_text_into_tokens_does_not_matter(parts: list[str], random: object) -> None:
    text = "".join(parts).encode()
    whole, single = make_tracker(QWEN, text), make_tracker(QWEN, *(bytes([byte]) for byte in text))
    assert whole.is_thinking == single.is_thinking
    assert list(whole.closing_texts()) == list(single.closing_texts())


@pytest.mark.parametrize(
    ("thought", "closing"),
    [
        ("abc", "\n</think>\n\n"),
        ("abc\n", "</think>\n\n"),
        ("abc <", "\n</think>\n\n"),
        ("abc </th", "ink>\n\n"),
        ("", "\n</think>\n\n"),
    ],
)
def test_closing_text_continues_the_thought(thought: str, closing: str) -> None:
    assert next(iter(make_tracker(limit(is_open=True), thought).closing_texts())) == closing


def test_sentence_before_the_end_is_left_out_if_a_grammar_forbids_it() -> None:
    tracker = make_tracker(limit(is_open=True, text_before_end="\n\nTime is up.\n"), "abc\n")
    assert list(tracker.closing_texts()) == ["\nTime is up.\n</think>\n\n", "</think>\n\n", "</think>"]


def test_reasoning_that_a_grammar_does_not_let_end_continues() -> None:
    tracker = make_tracker(limit(max_tokens=0), "<think>", "a")
    assert tracker.must_end
    tracker.give_up()
    assert not tracker.must_end
    tracker.feed(b"</think><think>", 2.0)
    assert tracker.must_end
