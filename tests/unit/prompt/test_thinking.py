"""Meaning of the setting `thinking`, and the tags with which the engine ends reasoning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.config import Settings, check, with_overrides
from edgechat.prompt.reasoning import REASONING_FORMATS, ReasoningFormat
from edgechat.prompt.reply_format import ReplyFormat
from edgechat.prompt.thinking import (
    ReplySpace,
    ThinkingBudget,
    choose_budget,
    is_thinking_on,
    make_thinking_limit,
)

SPACE = ReplySpace(n_ctx=16_000, n_prompt=0, decode_tps=30.0)


@pytest.mark.parametrize(
    ("thinking", "budget"),
    [
        (None, None),
        ("on", None),
        ("off", ThinkingBudget(0)),
        ("low", ThinkingBudget(1000, 15.0)),
        ("medium", ThinkingBudget(2000, 60.0)),
        ("high", ThinkingBudget(4000, 240.0)),
        ("auto", ThinkingBudget(600)),
        ("500", ThinkingBudget(500)),
        (500, ThinkingBudget(500)),
        ("30s", ThinkingBudget(12_000, 30.0)),
    ],
)
def test_each_value_has_a_budget(thinking: str | int | None, budget: ThinkingBudget | None) -> None:
    assert choose_budget(thinking, SPACE) == budget


def test_auto_counts_seconds_until_the_speed_is_measured() -> None:
    assert choose_budget("auto", SPACE._replace(decode_tps=None)) == ThinkingBudget(12_000, 20.0)


@pytest.mark.parametrize("thinking", ["low", "medium", "high", "auto"])
def test_no_measured_time_decides_in_strict_mode(thinking: str) -> None:
    strict_space = SPACE._replace(is_strict=True)
    budget = choose_budget(thinking, strict_space)
    assert budget == choose_budget(thinking, strict_space._replace(decode_tps=7.0))
    assert budget is not None
    assert budget.max_s is None


@given(
    st.sampled_from(["off", "low", "medium", "high", "auto", "30s", "5000"]), st.integers(1, 1 << 20),
    st.integers(0, 1 << 20), st.one_of(st.none(), st.integers(1, 5000)),
)  # fmt: skip
def test_a_quarter_of_the_reply_remains_for_its_text(
    thinking: str, n_ctx: int, n_prompt: int, max_tokens: int | None
) -> None:
    budget = choose_budget(thinking, ReplySpace(n_ctx, n_prompt, max_tokens, 40.0))
    assert budget is not None
    assert budget.max_tokens is not None
    n_free = max(0, n_ctx - n_prompt)
    assert 0 <= budget.max_tokens <= 0.75 * min(n_free, n_free if max_tokens is None else max_tokens)


@pytest.mark.parametrize(
    ("reasoning", "thinking", "is_on"),
    [
        (None, None, None),
        (True, None, True),
        (False, "high", False),
        (True, "off", True),
        (None, "off", False),
        (None, "0", False),
        (None, "low", True),
        (None, 500, True),
        (None, "auto", True),
    ],
)
def test_reasoning_takes_precedence(reasoning: bool | None, thinking: str | int | None, is_on: bool | None) -> None:
    assert is_thinking_on(reasoning=reasoning, thinking=thinking, decode_tps=30.0) == is_on


def test_auto_is_off_on_a_machine_that_decodes_a_few_tokens_in_20_seconds() -> None:
    assert not is_thinking_on(reasoning=None, thinking="auto", decode_tps=2.0)
    assert is_thinking_on(reasoning=None, thinking="auto", decode_tps=None)


def test_later_limit_overrides_an_earlier_switch() -> None:
    settings = Settings(reasoning=False)
    assert with_overrides(settings, {"thinking": "low"}).reasoning is None
    assert with_overrides(settings, {"thinking": None}).reasoning is False
    assert with_overrides(settings, {"thinking": "low"}, {"reasoning": False}).reasoning is False
    assert with_overrides(settings, {"thinking": "low", "reasoning": False}).reasoning is False


@pytest.mark.parametrize("value", ["on", "off", "low", "medium", "high", "auto", "0", "500", "30s", 500, None])
def test_valid_limits_are_accepted(value: object) -> None:
    assert not check("thinking", value)


@pytest.mark.parametrize("value", ["", "max", "-1", "5 s", "1.5s", "12345678", True, 1.5, -3])
def test_error_for_an_invalid_limit_names_the_valid_ones(value: object) -> None:
    assert check("thinking", value).startswith(
        "must be on, off, low, medium, high, auto, a number of tokens up to 9,999,999 such as 500"
    )


@pytest.mark.parametrize("reasoning_format", REASONING_FORMATS)
def test_engine_ends_reasoning_as_the_model_does(reasoning_format: ReasoningFormat) -> None:
    limit = make_thinking_limit(reasoning_format, ReplyFormat(), "reasoning", ThinkingBudget(5, 2.0))
    assert limit is not None
    assert (limit.is_open, limit.max_tokens, limit.max_s) == (True, 5, 2.0)
    assert limit.text_before_end == reasoning_format.padding
    closing = limit.end_tags[0] + limit.text_after_end
    assert closing == reasoning_format.end_tag + reasoning_format.content_prefix + reasoning_format.separator


def test_format_that_the_chat_library_found_has_priority() -> None:
    reply_format = ReplyFormat(thinking_start="<|open|>think<|sep|>", thinking_ends=("<|close|>think<|sep|>", "<call>"))
    limit = make_thinking_limit(REASONING_FORMATS[-1], reply_format, "start", sentence="Time is up.")
    assert limit is not None
    assert limit.start_tags == ("<|open|>think<|sep|>",)
    assert limit.end_tags == ("<|close|>think<|sep|>", "<call>")
    assert limit.text_before_end == "\n\nTime is up.\n"
    assert make_thinking_limit(None, ReplyFormat(), "start") is None
