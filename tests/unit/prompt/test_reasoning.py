"""Reasoning formats: splitting of streamed output, formatting of earlier replies, detection from templates."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.reasoning import (
    REASONING_FORMATS,
    ReasoningFormat,
    ReasoningSplitter,
    can_switch_reasoning,
    detect_reasoning_format,
    find_phase_after_prompt,
    format_reply,
)

TEXT = st.text("ab <|/>th\nink", max_size=20)


def split(reasoning_format: ReasoningFormat | None, chunks: list[str], prompt: str = "") -> tuple[str, str]:
    """Return the reasoning and the content of output that arrives in `chunks`."""
    splitter = ReasoningSplitter(reasoning_format, find_phase_after_prompt(reasoning_format, prompt))
    parts = [splitter.feed(chunk) for chunk in chunks] + [splitter.finish()]
    return "".join(p[0] for p in parts), "".join(p[1] for p in parts)


def chunked(text: str, cuts: list[int]) -> list[str]:
    """Cut `text` at positions derived from arbitrary integers."""
    edges = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(st.sampled_from(REASONING_FORMATS), TEXT, TEXT, st.booleans(), st.lists(st.integers(0, 200)))
def test_formatted_reply_splits_into_its_parts_for_any_chunking(
    reasoning_format: ReasoningFormat, reasoning: str, content: str, prompt_opens_reasoning: bool, cuts: list[int]
) -> None:
    reasoning, content = reasoning.strip("\n"), content.lstrip("\n")
    tags = (reasoning_format.start_tag, reasoning_format.end_tag)
    if not reasoning or not content or any(tag in reasoning for tag in tags):
        return
    prompt = "user: hi\nassistant: " + (reasoning_format.start_tag + "\n" if prompt_opens_reasoning else "")
    output = format_reply(reasoning_format, reasoning, content, prompt)
    split_reasoning, split_content = split(reasoning_format, chunked(output, cuts), prompt)
    assert (split_reasoning.rstrip("\n"), split_content) == (reasoning, content)


@given(st.sampled_from([None, *REASONING_FORMATS]), TEXT, st.lists(st.integers(0, 200)))
def test_chunking_does_not_change_the_split(
    reasoning_format: ReasoningFormat | None, text: str, cuts: list[int]
) -> None:
    assert split(reasoning_format, chunked(text, cuts)) == split(reasoning_format, [text] if text else [])
    if reasoning_format is None:
        assert split(reasoning_format, chunked(text, cuts)) == ("", text)


@pytest.mark.parametrize("reasoning_format", REASONING_FORMATS)
def test_reply_without_reasoning_is_all_content(reasoning_format: ReasoningFormat) -> None:
    content = f"Hello there, a {reasoning_format.start_tag} in the middle stays"
    assert split(reasoning_format, [content[:6], content[6:13], content[13:]]) == ("", content)


def test_interrupted_reasoning_is_kept_and_can_be_continued() -> None:
    reasoning_format = detect_reasoning_format("{{ '<think>' }} {{ '</think>' }}")
    assert reasoning_format is not None
    assert split(reasoning_format, ["<think>\nHmm, let", " me see </thi"]) == ("Hmm, let me see </thi", "")
    assert format_reply(reasoning_format, "Hmm", "", "assistant: ") == "<think>\nHmm"
    assert format_reply(reasoning_format, "Hmm", "", "assistant: <think>\n") == "Hmm"
    # A template that closed the reasoning itself leaves no place for it.
    assert format_reply(reasoning_format, "Hmm", "So", "assistant: <think>\n\n</think>\n\n") == "So"


def test_gpt_oss_channels_are_split() -> None:
    harmony = REASONING_FORMATS[0]
    output = "<|channel|>analysis<|message|>Simple.<|end|><|start|>assistant<|channel|>final<|message|>Hi."
    assert split(harmony, chunked(output, [5, 30, 60, 80])) == ("Simple.", "Hi.")
    assert split(harmony, ["<|channel|>final", "<|message|>Hi."]) == ("", "Hi.")
    assert set(harmony.control_tokens) == {"<|channel|>", "<|message|>", "<|end|>", "<|start|>"}
    assert detect_reasoning_format("... '<|channel|>analysis<|message|>' ...") == harmony


def test_template_with_a_reasoning_variable_can_switch_reasoning() -> None:
    assert detect_reasoning_format("{{ messages }}") is None
    assert not can_switch_reasoning("{{ messages }}")
    assert not can_switch_reasoning("{{ '</think>' }}")
    assert can_switch_reasoning("{% if enable_thinking %}<think>{% endif %}</think>")
