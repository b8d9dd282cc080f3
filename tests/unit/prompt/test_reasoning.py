"""Reasoning formats: splitting of streamed output, formatting of earlier replies, detection from templates."""

from __future__ import annotations

import pytest

from edgechat.prompt.reasoning import (
    REASONING_FORMATS,
    ReasoningFormat,
    can_switch_reasoning,
    detect_reasoning_format,
    find_phase_after_prompt,
    format_reply,
    make_reasoning_variables,
)


def test_reasoning_is_written_between_its_tags() -> None:
    reasoning_format = detect_reasoning_format("{{ '<think>' }} {{ '</think>' }}")
    assert reasoning_format is not None
    assert format_reply(reasoning_format, "Hmm", "So") == "<think>\nHmm\n</think>\n\nSo"
    assert format_reply(reasoning_format, "", "So") == "So"
    # Reasoning without content can be continued.
    assert format_reply(reasoning_format, "Hmm", "", "assistant: ") == "<think>\nHmm"
    assert format_reply(reasoning_format, "Hmm", "", "assistant: <think>\n") == "Hmm"
    # In the history, the reasoning of a reply that has only tool calls is closed.
    assert format_reply(reasoning_format, "Hmm", "", is_finished=True) == "<think>\nHmm\n</think>\n\n"
    # Content that a client begins is not put into the reasoning that the template opens.
    assert format_reply(reasoning_format, "", "So", "assistant: <think>\n") == "\n</think>\n\nSo"
    assert format_reply(reasoning_format, "", "So", "assistant: <think>") == "\n\n</think>\n\nSo"
    # A template that closed the reasoning itself leaves no place for it.
    assert format_reply(reasoning_format, "Hmm", "So", "assistant: <think>\n\n</think>\n\n") == "So"


@pytest.mark.parametrize("reasoning_format", REASONING_FORMATS)
def test_open_start_tag_at_the_end_of_a_prompt_is_found(reasoning_format: ReasoningFormat) -> None:
    start_tag, end_tag = reasoning_format.start_tag, reasoning_format.end_tag
    assert find_phase_after_prompt(reasoning_format, f"user: hi {start_tag}\n") == "reasoning"
    assert find_phase_after_prompt(reasoning_format, f"user: {start_tag}{end_tag} assistant:") == "start"
    assert find_phase_after_prompt(None, "assistant:") == "content"


def test_template_with_a_reasoning_variable_can_switch_reasoning() -> None:
    assert detect_reasoning_format("{{ messages }}") is None
    assert not can_switch_reasoning("{{ messages }}")
    assert not can_switch_reasoning("{{ '</think>' }}")
    assert can_switch_reasoning("{% if enable_thinking %}<think>{% endif %}</think>")


def test_effort_has_both_names_that_templates_read() -> None:
    variables = make_reasoning_variables("{{ reasoning_strength }} high low", on=False)
    assert variables["reasoning_effort"] == variables["reasoning_strength"] == "low"
    assert can_switch_reasoning("</think>{{ reasoning_strength }}")
