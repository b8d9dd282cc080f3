"""Reasoning: parted from the answer however the stream is cut, and put back as it was."""

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
    format_reply,
    phase_after_prompt,
)

WORDS = st.text("ab <|/>th\nink", max_size=20)


def split(form: ReasoningFormat | None, pieces: list[str], prompt: str = "") -> tuple[str, str]:
    splitter = ReasoningSplitter(form, phase_after_prompt(form, prompt))
    parts = [splitter.feed(p) for p in pieces] + [splitter.finish()]
    return "".join(p[0] for p in parts), "".join(p[1] for p in parts)


def cut(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(st.sampled_from(REASONING_FORMATS), WORDS, WORDS, st.booleans(), st.lists(st.integers(0, 200)))
def test_what_is_joined_comes_apart_again_however_it_is_cut(
    form: ReasoningFormat, thought: str, answer: str, opened: bool, cuts: list[int]
) -> None:
    thought, answer = thought.strip("\n"), answer.lstrip("\n")
    if not thought or not answer or any(m in thought for m in (form.start_tag, form.end_tag)):
        return
    prompt = "user: hi\nassistant: " + (form.start_tag + "\n" if opened else "")
    found_thought, found = split(form, cut(format_reply(form, thought, answer, prompt), cuts), prompt)
    assert (found_thought.rstrip("\n"), found) == (thought, answer)


@given(st.sampled_from([None, *REASONING_FORMATS]), WORDS, st.lists(st.integers(0, 200)))
def test_no_word_is_lost_or_changed_by_cutting(form: ReasoningFormat | None, text: str, cuts: list[int]) -> None:
    assert split(form, cut(text, cuts)) == split(form, [text] if text else [])
    if form is None:
        assert split(form, cut(text, cuts)) == ("", text)


@pytest.mark.parametrize("form", REASONING_FORMATS)
def test_an_answer_without_reasoning_is_all_answer(form: ReasoningFormat) -> None:
    assert split(form, ["Hello ", "there, ", f"a {form.start_tag} in the middle stays"]) == (
        "", f"Hello there, a {form.start_tag} in the middle stays",
    )  # fmt: skip


def test_a_thought_that_is_cut_off_is_kept() -> None:
    form = detect_reasoning_format("{{ '<think>' }} {{ '</think>' }}")
    assert form is not None
    assert split(form, ["<think>\nHmm, let", " me see </thi"]) == ("Hmm, let me see </thi", "")
    # It goes on inside the thought.
    assert format_reply(form, "Hmm", "", "assistant: ") == "<think>\nHmm"
    assert format_reply(form, "Hmm", "", "assistant: <think>\n") == "Hmm"
    # A template that closed the thought itself leaves no place for one.
    assert format_reply(form, "Hmm", "So", "assistant: <think>\n\n</think>\n\n") == "So"


def test_harmony_channels() -> None:
    form = REASONING_FORMATS[0]
    said = "<|channel|>analysis<|message|>Simple.<|end|><|start|>assistant<|channel|>final<|message|>Hi."
    assert split(form, cut(said, [5, 30, 60, 80])) == ("Simple.", "Hi.")
    assert split(form, ["<|channel|>final", "<|message|>Hi."]) == ("", "Hi.")
    assert set(form.control_tokens) == {"<|channel|>", "<|message|>", "<|end|>", "<|start|>"}
    assert detect_reasoning_format("... '<|channel|>analysis<|message|>' ...") == form


def test_templates_say_whether_they_can_be_switched() -> None:
    assert detect_reasoning_format("{{ messages }}") is None
    assert not can_switch_reasoning("{{ messages }}")
    assert not can_switch_reasoning("{{ '</think>' }}")
    assert can_switch_reasoning("{% if enable_thinking %}<think>{% endif %}</think>")
