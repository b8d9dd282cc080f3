"""Generated and recorded sessions of a coding agent."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from edgechat.bench.agent_session import SessionSize, make_session, read_session, remove_header
from edgechat.errors import UsageError
from edgechat.prompt.renderer import PromptMessage
from edgechat.serve.prompt_rules import PROMPT_RULES, apply_prompt_rules

SIZE = SessionSize(n_turns=4, n_system_lines=5, n_result_lines=2)


def test_each_request_repeats_the_conversation_after_a_changed_header() -> None:
    requests = make_session(SIZE)
    assert [len(request["messages"]) for request in requests] == [2, 4, 6, 8]
    systems = [request["messages"][0]["content"] for request in requests]
    assert len(set(systems)) == 4
    for earlier, later in itertools.pairwise(requests):
        assert remove_header(later)["messages"][: len(earlier["messages"])] == remove_header(earlier)["messages"]
    assert make_session(SIZE) == requests


def test_prompt_rules_remove_the_header() -> None:
    systems = [PromptMessage("system", request["messages"][0]["content"]) for request in make_session(SIZE)]
    contents = {apply_prompt_rules([system], PROMPT_RULES)[0].content for system in systems}
    assert len(contents) == 1
    assert contents.pop().startswith("You are a coding agent.")


def test_recorded_session_is_read(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    requests = make_session(SIZE)
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    assert read_session(file) == requests


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "has no lines"), ("{", "line 1: not valid JSON"), ('{"messages": []}\n[]', "line 2: not")],
)
def test_invalid_recorded_session_is_an_error(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "session.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match=problem):
        read_session(file)
