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
    assert [name for name, _ in calls][: len(calls_so_far)] == [name for name, _ in calls_so_far]
    assert calls[: len(calls_so_far)][:-1] == calls_so_far[:-1]
    for (_, whole), (_, so_far) in zip(calls, calls_so_far, strict=False):
        assert whole.startswith(so_far)
    assert split_calls(output[:cut], is_final=True)[1] == calls_so_far  # a cut call stays a call


def test_call_that_is_no_json_ends_at_its_mark() -> None:
    output = format_calls([("f", "{'a': 1}")])
    for cut in range(output.index("{'a"), len(output) + 1):
        assert split_calls(output[:cut], is_final=cut % 2 == 0)[1][0][1] in "{'a': 1}}"


def test_call_without_its_name_is_discarded_and_incomplete_marker_is_text() -> None:
    assert split_calls('Well. <tool_call>\n{"name": "get_we', is_final=True) == ("Well. ", [])
    assert split_calls("Well. <tool", is_final=False) == ("Well. ", [])
    assert split_calls("Well. <tool", is_final=True) == ("Well. <tool", [])


def test_call_in_other_spacing_is_read() -> None:
    output = CALL_START + '{"arguments":{"a":1},"name":"f"}</tool_call>'
    assert split_calls(output, is_final=True) == ("", [("f", '{"a": 1}')])
