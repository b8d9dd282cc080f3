"""Tool calls in plain JSON: which replies are calls, and which beginnings are held back in a stream."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prompt.bare_calls import find_bare_calls, may_become_bare_call

CALL = '{"name": "f", "arguments": {"a": 1}}'
CALLS = [
    CALL, f" {CALL}\n", f"```json\n{CALL}\n```", f"```\n{CALL}\n```", f"[{CALL}]",
    '{"name": "f", "parameters": {"a": 1}}',
    '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}', '{"arguments": {"a": 1}, "name": "f"}',
    '{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"id": "1", "type": "function", "name": "f", "arguments": {"a": 1}}',
]  # fmt: skip
NO_CALLS = [
    "", "Hello", "[1] A source.", '{"sum": 5}', '{"name": "g", "arguments": {}}', '{"name": "f"}', f"{CALL} Done.",
    f"Sure: {CALL}", "```python\nprint(1)\n```", "`f`", '{"name": "f", "arguments": [1]}', "[]", "{", "```",
    '{"name": "f", "arguments": {"a": NaN}}', '{"name": ["f"], "arguments": {}}', "[" * 100_000, '{"name": "f", "arg',
]  # fmt: skip


@pytest.mark.parametrize("content", CALLS)
def test_calls_without_marks_are_found_and_held_back(content: str) -> None:
    [(name, arguments)] = find_bare_calls(content, ["f"])
    assert (name, json.loads(arguments)) == ("f", {"a": 1})
    assert all(may_become_bare_call(content[:i]) for i in range(len(content.rstrip("`\n ")) + 1) if content[:i].strip())


@pytest.mark.parametrize("content", NO_CALLS)
def test_other_replies_are_no_calls(content: str) -> None:
    assert find_bare_calls(content, ["f"]) == []


def test_several_calls_follow_each_other() -> None:
    assert len(find_bare_calls(f"{CALL}\n\n{CALL}", ["f"])) == len(find_bare_calls(f"[{CALL}, {CALL}]", ["f"])) == 2
    assert find_bare_calls(f"{CALL}\nDone.", ["f"]) == []


@pytest.mark.parametrize("content", ["```python", "```js ", "[1", "[1] First", '{"sum', "{}", "Hello", "a`", "```\nx"])
def test_beginning_of_another_reply_is_not_held_back(content: str) -> None:
    assert not may_become_bare_call(content)


@given(st.text('`{["name ajson\n', max_size=20), st.integers(0, 20))
def test_later_text_never_makes_a_call_of_a_reply_that_was_not_held_back(content: str, cut: int) -> None:
    if may_become_bare_call(content):
        assert all(may_become_bare_call(content[:i]) for i in range(cut) if content[:i].strip())
