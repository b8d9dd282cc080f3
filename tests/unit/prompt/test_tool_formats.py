"""The generic format of tool calls: written and read back, whole and in pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.tool_formats import CALL_START, format_calls, split_calls


@given(text=st.sampled_from(["", "Let me see. ", "a < b [x"]), n_calls=st.integers(0, 3), cut=st.integers(0, 300))
def test_text_and_calls_are_split(text: str, n_calls: int, cut: int) -> None:
    calls = [("get_weather", f'{{"city": "P}}{i}", "n": [{{}}]}}') for i in range(n_calls)]
    output = text + (format_calls(calls) if calls else "")
    assert split_calls(output, is_final=True) == (text, calls)
    visible_text, calls_so_far = split_calls(output[:cut], is_final=False)
    assert text.startswith(visible_text)
    assert calls[: len(calls_so_far)] == calls_so_far


def test_incomplete_call_is_discarded_and_incomplete_marker_is_text() -> None:
    assert split_calls('Well. <tool_call>\n{"name": "get_we', is_final=True) == ("Well. ", [])
    assert split_calls("Well. <tool", is_final=False) == ("Well. ", [])
    assert split_calls("Well. <tool", is_final=True) == ("Well. <tool", [])


def test_call_in_other_spacing_is_read() -> None:
    output = CALL_START + '{"arguments":{"a":1},"name":"f"}</tool_call>'
    assert split_calls(output, is_final=True) == ("", [("f", '{"a": 1}')])
