"""Earlier replies on the command line: `ask --earlier`, and the offer of the line-by-line chat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.store import open_store

pytestmark = pytest.mark.cold

COMMAND = [sys.executable, "-m", "tests.cli.scripted_command"]
QUESTION = "What is the capital of France?"
AT_MS = 1_762_171_200_000  # 3 November 2025, at noon


@pytest.fixture(autouse=True)
def earlier(home: Path) -> Message:
    """Save an earlier conversation, and return its reply."""
    store = open_store()
    message = Message(id=new_id(), role="user", text=QUESTION, created_at_ms=AT_MS)
    reply = Message(
        id=new_id(), parent_id=message.id, role="assistant", text="Paris.", finish_reason="stop", created_at_ms=AT_MS,
        model="small.gguf",
    )  # fmt: skip
    store.append(Conversation(id="earlier", title="Old", created_at_ms=AT_MS), [message, reply])
    store.close()
    return reply


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"REPLY": "A new reply.", "TOKEN_INTERVAL_S": "0"}
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, check=False, env=environment, timeout=60
    )


def count_conversations() -> int:
    store = open_store()
    n_conversations = store.count_conversations(archived=None)
    store.close()
    return n_conversations


def test_ask_never_offers_without_the_option() -> None:
    result = run("ask", QUESTION)
    assert (result.returncode, result.stdout) == (0, "A new reply.\n")
    assert "earlier" not in result.stderr.lower()


def test_ask_prints_the_earlier_reply_with_its_day_and_saves_nothing() -> None:
    result = run("ask", "--earlier", "--no-stdin", "Tell me the capital of France")
    assert (result.returncode, result.stdout) == (0, "Paris.\n")
    assert "Asked on 3 November 2025, small replied (conversation earlier):" in result.stderr
    assert count_conversations() == 1


def test_ask_asks_the_model_if_there_is_no_earlier_reply() -> None:
    result = run("ask", "--earlier", "--no-stdin", "Tell me the capital of Italy")
    assert (result.returncode, result.stdout) == (0, "A new reply.\n")
    assert count_conversations() == 2


def test_earlier_reply_as_json_names_its_origin(earlier: Message) -> None:
    result = json.loads(run("ask", "--earlier", "--json", "--no-stdin", QUESTION).stdout)
    assert result["text"] == "Paris."
    assert result["earlier"] == {
        "question": QUESTION, "conversation_id": "earlier", "message_id": earlier.id, "created_at_ms": AT_MS,
    }  # fmt: skip


@pytest.mark.parametrize("options", [["--answers", "2"], ["--schema", __file__]])
def test_options_that_need_the_model_are_refused(options: list[str]) -> None:
    result = run("ask", "--earlier", "--no-stdin", *options, QUESTION)
    assert result.returncode == 2
    assert "--earlier cannot be used with" in result.stderr


def test_attached_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    result = run("ask", "--earlier", "--no-stdin", "-a", str(tmp_path), QUESTION)
    assert "Traceback" not in result.stderr


def test_plain_chat_offers_in_one_line_and_its_command_shows_the_reply() -> None:
    result = run("--plain", stdin=f"{QUESTION}\n/earlier\nAnd of Italy?\n")
    lines = [line for line in result.stderr.splitlines() if "Asked on" in line]
    assert lines == ["edgechat: Asked on 3 November 2025: /earlier shows the earlier reply."]
    assert "(Earlier reply of 3 November 2025; /retry generates a new one)" in result.stdout
    assert result.stdout.index("A new reply.") < result.stdout.index("Paris.")
    assert result.returncode == 0


def test_plain_chat_without_an_earlier_reply_says_so() -> None:
    result = run("--plain", stdin="What is the capital of Italy?\n/earlier\n")
    assert "Asked on" not in result.stderr
    assert "No earlier conversation begins with the same question" in result.stderr
