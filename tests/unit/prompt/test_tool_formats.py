"""Tool call formats: detection from chat templates, and parsing of calls from streamed output."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.tool_formats import (
    GENERIC_TOOL_FORMAT,
    TOOL_FORMATS,
    ToolCallParser,
    ToolFormat,
    detect_tool_format,
)


@pytest.mark.parametrize("tool_format", [*TOOL_FORMATS, GENERIC_TOOL_FORMAT], ids=lambda f: f.trigger or "bare")
@given(
    cuts=st.lists(st.integers(0, 200)),
    text=st.sampled_from(["", "Let me see. ", "a < b [x"]),
    n_calls=st.integers(0, 3),
)
def test_text_and_calls_are_parsed_for_any_chunking(
    tool_format: ToolFormat, cuts: list[int], text: str, n_calls: int
) -> None:
    text = text if tool_format.trigger else ("" if n_calls else text)
    calls = [("get_weather", f'{{"city": "P}}{i}", "n": [{{}}]}}') for i in range(n_calls)]
    output = text + (tool_format.format_calls(calls) if calls else "")
    parser, parsed_text, parsed_calls = ToolCallParser(tool_format), "", []
    edges = sorted({min(c, len(output)) for c in cuts} | {0, len(output)})
    for start, end in itertools.pairwise(edges):
        new_text, new_calls = parser.feed(output[start:end])
        parsed_text += new_text
        parsed_calls += new_calls
    parsed_text += parser.finish()
    assert parsed_text == text
    assert [(c.name, c.arguments) for c in parsed_calls] == calls
    assert len({c.id for c in parsed_calls}) == len(parsed_calls)


def test_incomplete_call_is_discarded_and_incomplete_marker_is_text() -> None:
    parser = ToolCallParser(GENERIC_TOOL_FORMAT)
    assert parser.feed('Well. <tool_call>\n{"name": "get_we') == ("Well. ", [])
    assert parser.finish() == ""
    parser = ToolCallParser(GENERIC_TOOL_FORMAT)
    assert parser.feed("Well. <tool") == ("Well. ", [])
    assert parser.finish() == "<tool"


@pytest.mark.parametrize(
    ("template", "trigger", "template_supports_tools"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "<tool_call>", True),
        ("{% if tools %}[TOOL_CALLS] [{% endif %}", "[TOOL_CALLS]", True),
        ("{% if tools %}<|tool_call|>{% endif %}", "<|tool_call|>", True),
        ('{% if tools %}<|start_header_id|>{"name": x, "parameters": y}{% endif %}', "", True),
        ("{{ messages }}", "<tool_call>", False),
        ("{% if tools %}<tool_call><function=x>{% endif %}", "<tool_call>", False),
        ("{% if tools %}[TOOL_CALLS]x[ARGS]{% endif %}", "<tool_call>", False),
    ],
)
def test_tool_format_is_detected_from_the_template(
    template: str, trigger: str, *, template_supports_tools: bool
) -> None:
    tool_format = detect_tool_format(template)
    assert tool_format.trigger == trigger
    assert tool_format.template_supports_tools == template_supports_tools
