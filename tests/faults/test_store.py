"""What is kept when processes are killed in the middle of writing, with others looking on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.chat.messages import Conversation, Message
from edgechat.store import open_store, recovery
from edgechat.store.sqlite import SqliteStore
from tests.conftest import Cli, edgechat_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
ROOT = Path(__file__).parents[2]

# Says what it is about to stream, and what was acknowledged, so that the test knows what must be there.
WRITER = """
import sys, time
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.recorder import ReplyRecorder
from edgechat.store import open_store
store = open_store()
conversation = Conversation(id=sys.argv[1], title="Kill me", created_at_ms=1)
messages = store.messages(conversation.id) if conversation.id in store.conversation_ids() else []
parent = messages[-1].id if messages else None
def tell(*words):
    print(*words, flush=True)
while True:
    question = Message(id=new_id(), parent_id=parent, role="user", text="question", created_at_ms=1)
    answer = Message(id=new_id(), parent_id=question.id, role="assistant", finish_reason="streaming", created_at_ms=1)
    store.append(conversation, [question, answer])
    tell("kept", question.id)
    recorder = ReplyRecorder(store, conversation, answer)
    for number in range(int(sys.argv[2])):
        recorder.add(f"{number} ", "", 16)
        tell("streamed", answer.id, number, time.time())
        time.sleep(float(sys.argv[3]))
    recorder.finish(finish_reason="stop")
    tell("finished", answer.id, int(sys.argv[2]))
    parent = answer.id
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def what_it_told(writer: subprocess.Popen[str]) -> tuple[set[str], dict[str, int], dict[str, list[tuple[int, float]]]]:
    """Questions that were acknowledged, answers that were finished, and what was streamed of each answer when."""
    out, _ = writer.communicate()
    kept: set[str] = set()
    finished: dict[str, int] = {}
    streamed: dict[str, list[tuple[int, float]]] = {}
    for line in out.splitlines():
        words = line.split()
        with contextlib.suppress(IndexError, ValueError):  # the last line may be cut off
            if words[0] == "kept":
                kept.add(words[1])
            elif words[0] == "finished":
                finished[words[1]] = int(words[2])
            else:
                streamed.setdefault(words[1], []).append((int(words[2]), float(words[3])))
    return kept, finished, streamed


def check(
    store: SqliteStore, told: tuple[set[str], dict[str, int], dict[str, list[tuple[int, float]]]], died_s: float
) -> None:
    kept, finished, streamed = told
    messages = {m.id: m for i in store.conversation_ids() for m in store.messages(i)}
    assert kept <= set(messages)
    for answer_id, n in finished.items():
        assert messages[answer_id].text == "".join(f"{i} " for i in range(n))
        assert messages[answer_id].finish_reason == "stop"
    for answer_id, pieces in streamed.items():
        text = messages[answer_id].text
        assert text == "".join(f"{i} " for i in range(text.count(" ")))
        due = [number for number, at_s in pieces if at_s < died_s - 2.0]
        assert text.count(" ") >= len(due)
        assert messages[answer_id].is_interrupted or messages[answer_id].finish_reason == "stop"


@pytest.mark.long
def test_a_writer_killed_at_any_moment_two_hundred_times_with_a_reader_attached() -> None:
    draw = random.Random(1)
    stop = threading.Event()
    problems: list[str] = []
    open_store().close()

    def read() -> None:
        store = open_store()
        while not stop.is_set():
            for summary in store.list_conversations():
                seen = {None, *(m.id for m in store.messages(summary.conversation.id))}
                if any(m.parent_id not in seen for m in store.messages(summary.conversation.id) if m.id in seen):
                    problems.append("a message without its parent")
            store.search("question")
        store.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(200):
            writer = start(f"talk{number % 5}", draw.choice([3, 20]), 0.002)
            assert writer.stdout is not None
            writer.stdout.readline()  # it writes
            time.sleep(draw.random() * 0.15)
            died_s = time.time()
            writer.kill()
            told = what_it_told(writer)
            store = open_store()
            check(store, told, died_s)
            store.close()
    finally:
        stop.set()
        reader.join()
    assert problems == []
    assert recovery.is_intact(paths.history_file())


def test_at_most_two_seconds_of_a_slow_answer_are_missing() -> None:
    writer = start("slow", 1000, 0.25)  # four pieces a second: far from 64 tokens in two seconds' time
    time.sleep(4.5)
    died_s = time.time()
    writer.kill()
    told = what_it_told(writer)
    store = open_store()
    check(store, told, died_s)
    assert any(m.text for m in store.messages("slow"))
    store.close()


def test_a_killed_chat_keeps_the_question_and_the_answer_so_far(cli: Cli) -> None:
    asking = subprocess.Popen(
        edgechat_command("ask", "Tell me a very long story about the sea.", "--temperature", "0", "--max-tokens", "2000"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert asking.stdout is not None
    seen = b""
    started = time.monotonic()
    while time.monotonic() - started < 2.5:
        seen += os.read(asking.stdout.fileno(), 4096)
    asking.kill()
    asking.communicate()
    [summary] = json.loads(cli("history", "list", "--json").stdout)
    assert summary["n_messages"] == 2
    shown = json.loads(cli("history", "show", summary["conversation"]["id"], "--json").stdout)
    question, answer = shown["messages"]
    assert question["text"] == "Tell me a very long story about the sea."
    assert answer["finish_reason"] == "interrupted"
    assert len(answer["text"]) > 100
    assert seen.decode().startswith(answer["text"][: len(seen) // 2])
    went_on = json.loads(cli("ask", "-c", "Go on.", "--max-tokens", "5", "--json").stdout)
    assert went_on["conversation_id"] == summary["conversation"]["id"]


def test_two_processes_in_one_conversation_keep_every_message() -> None:
    store = open_store()
    conversation = Conversation(id="shared", title="Shared", created_at_ms=1)
    store.append(conversation, [Message(id="root", role="user", text="root")])
    writers = [start("shared", 2, 0) for _ in range(3)]
    time.sleep(1.5)
    died_s = time.time()
    for writer in writers:
        writer.kill()
    told = [what_it_told(w) for w in writers]
    store.close()
    store = open_store()
    for one in told:
        assert one[0]
        check(store, one, died_s)
    store.close()


def test_ephemeral_leaves_nothing_anywhere(cli: Cli, home: Path) -> None:
    phrase = "xyzzy plugh 42"
    result = cli("ask", phrase, "--ephemeral", "--max-tokens", "5", "--json")
    assert json.loads(result.stdout)["text"]
    assert not (home / "data").exists()
    for path in home.rglob("*"):
        if path.is_file():
            assert phrase.encode() not in path.read_bytes()


def test_a_deleted_conversation_is_in_no_file(cli: Cli, home: Path) -> None:
    phrase = "xqzzyplugh"
    cli("ask", f"say {phrase}", "--max-tokens", "5")
    [summary] = json.loads(cli("history", "list", "--json").stdout)
    assert cli("history", "delete", summary["conversation"]["id"], input="n\n").returncode == 130
    assert cli("history", "delete", "--yes", summary["conversation"]["id"]).returncode == 0
    for path in (home / "data").rglob("*"):
        assert phrase.encode() not in path.read_bytes()
        assert b"xqz" not in path.read_bytes()  # nor in the index of the search


def test_a_chat_in_a_home_that_cannot_be_written_to_goes_on_and_says_so(cli: Cli, home: Path) -> None:
    (home / "data").write_text("in the way")
    result = cli("ask", "Hi", "--max-tokens", "3")
    assert result.returncode == 0
    assert result.stdout.strip()
    assert "this conversation is not kept" in result.stderr
    listed = cli("history", "list")
    assert "cannot be written" in listed.stderr


def test_a_damaged_history_does_not_keep_anybody_from_chatting(cli: Cli, home: Path) -> None:
    cli("ask", "Hi", "--max-tokens", "3")
    file = home / "data" / "history.db"
    file.write_bytes(b"garbage" * 1000)
    result = cli("ask", "Hi", "--max-tokens", "3")
    assert result.returncode == 0
    assert "damaged" in result.stderr
    assert list((home / "data").glob("*.damaged-*"))
    assert cli("ask", "Hi", "--max-tokens", "3").stderr == ""
