"""`/now` and other lines that are typed in the line-by-line chat while a reply is generated."""

from __future__ import annotations

import re
import sys

import pytest

from edgechat.store import open_store
from tests.terminal import terminal

pytestmark = [pytest.mark.cold, pytest.mark.skipif(sys.platform == "win32", reason="waits for a terminal of Unix")]

COMMAND = [sys.executable, "-m", "tests.cli.scripted_command", "--plain"]
THOUGHT = " ".join(f"thought{number}" for number in range(8000))


def test_now_ends_the_reasoning_and_the_next_line_is_the_next_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLY", f"<think>{THOUGHT}</think>The answer is 42.")
    with terminal(*COMMAND) as t:
        t.until("/help lists commands")
        t.type("Question\r")
        t.until("Reasoning")
        t.type("/now\r")
        t.until(lambda: re.search(r"The answer is 42\.\s+>", t.text()))
        t.type("/now\r")
        t.until("No reply is being generated")
        t.type("Second question\r")
        t.until(lambda: t.text().count("Reasoning") == 2)
        t.type("Third question\r")
        t.type("/now\r")
        t.until(lambda: re.search(r"The answer is 42\.\s+Reasoning", t.text()))
        t.type("/now\r")
        t.until(lambda: t.text().count("The answer is 42.") == 3)
        t.type("/quit\r")
        assert t.wait() == 0
    store = open_store()
    [summary] = store.list_conversations(limit=10)
    messages = store.messages(summary.conversation.id)
    store.close()
    assert [m.text for m in messages if m.role == "user"] == ["Question", "Second question", "Third question"]
    replies = [m for m in messages if m.role == "assistant"]
    assert {m.text for m in replies} == {"The answer is 42."}
    assert all(m.reasoning.startswith("thought0") for m in replies)
