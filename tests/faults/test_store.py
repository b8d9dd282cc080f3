"""Conversations after processes were killed while writing, with concurrent readers and writers; odd data folders."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from edgechat import paths
from edgechat.chat.messages import Conversation, Message
from edgechat.chat.recorder import CHECKPOINT_TOKENS
from edgechat.store import open_store, recovery
from edgechat.store.sqlite import SqliteStore
from tests.cli.scripted_command import LONG_REPLY
from tests.conftest import Cli, remove_notes
from tests.fuzzing import shorten
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
ROOT = Path(__file__).parents[2]


QUESTION = "Tell me a very long story about the sea."
COMMAND = [sys.executable, "-m", "tests.cli.scripted_command"]
ASK = [*COMMAND, "ask"]
# Prints each message that the store acknowledged and each chunk before it is written, so that the test can compare.
WRITER = """
import sys, time
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.chat.recorder import ReplyRecorder
from edgechat.store import open_store
store = open_store()
conversation = Conversation(id=sys.argv[1], title="Kill me", created_at_ms=1)
messages = store.messages(conversation.id) if conversation.id in store.conversation_ids() else []
parent = messages[-1].id if messages else None
def report(*fields):
    print(*fields, flush=True)
while True:
    question = Message(id=new_id(), parent_id=parent, role="user", text="question", created_at_ms=1)
    reply = Message(id=new_id(), parent_id=question.id, role="assistant", finish_reason="streaming", created_at_ms=1)
    store.append(conversation, [question, reply])
    report("saved", question.id)
    recorder = ReplyRecorder(store, conversation, reply)
    for number in range(int(sys.argv[2])):
        recorder.add(f"{number} ", "", int(sys.argv[4]))
        report("streamed", reply.id, number)
        time.sleep(float(sys.argv[3]))
    recorder.finish(finish_reason="stop")
    report("finished", reply.id, int(sys.argv[2]))
    parent = reply.id
"""


def start(conversation_id: str, n_chunks: int, interval_s: float, n_chunk_tokens: int = 16) -> subprocess.Popen[str]:
    """Start a writer of replies of `n_chunks` chunks."""
    arguments = map(str, (conversation_id, n_chunks, interval_s, n_chunk_tokens))
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)


class WriterReport(NamedTuple):
    """The output of a killed writer."""

    saved_ids: set[str]
    """Questions that the store acknowledged."""
    n_chunks: dict[str, int]
    """Chunks of each finished reply."""
    streamed_ids: set[str]
    """Replies of which the writer has streamed a chunk."""


def read_report(writer: subprocess.Popen[str]) -> WriterReport:
    out, _ = writer.communicate()
    report = WriterReport(set(), {}, set())
    for line in out.splitlines():
        fields = line.split()
        with contextlib.suppress(IndexError, ValueError):  # the last line may be incomplete
            if fields[0] == "saved":
                report.saved_ids.add(fields[1])
            elif fields[0] == "finished":
                report.n_chunks[fields[1]] = int(fields[2])
            else:
                report.streamed_ids.add(fields[1])
    return report


def check(store: SqliteStore, report: WriterReport) -> None:
    """Assert that the store has everything that the writer reported, except for the last chunks of a reply."""
    messages = {m.id: m for i in store.conversation_ids() for m in store.messages(i)}
    assert report.saved_ids <= set(messages)
    for reply_id, n in report.n_chunks.items():
        assert messages[reply_id].text == "".join(f"{i} " for i in range(n))
        assert messages[reply_id].finish_reason == "stop"
    for reply_id in report.streamed_ids:
        text = messages[reply_id].text
        assert text == "".join(f"{i} " for i in range(text.count(" ")))
        assert messages[reply_id].is_interrupted or messages[reply_id].finish_reason == "stop"


@pytest.mark.long
def test_writer_killed_two_hundred_times_loses_no_acknowledged_message() -> None:
    draw = random.Random(1)
    stop = threading.Event()
    problems: list[str] = []
    open_store().close()

    def read() -> None:
        store = open_store()
        while not stop.wait(0.02):
            for summary in store.list_conversations():
                ids = {None, *(m.id for m in store.messages(summary.conversation.id))}
                if any(m.parent_id not in ids for m in store.messages(summary.conversation.id) if m.id in ids):
                    problems.append("a message without its parent")
            store.search("question")
        store.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(shorten(200, 20)):
            writer = start(f"talk{number % 5}", draw.choice([3, 20]), 0.002)
            assert writer.stdout is not None
            writer.stdout.readline()  # the first message is saved
            time.sleep(draw.random() * 0.15)
            writer.kill()
            report = read_report(writer)
            store = open_store()
            check(store, report)
            store.close()
    finally:
        stop.set()
        reader.join()
    assert problems == []
    assert recovery.is_intact(paths.history_file())


def test_slow_reply_is_saved_again_and_again_until_the_writer_is_killed() -> None:
    writer = start("slow", 1000, 0.5, n_chunk_tokens=1)
    store = open_store()

    def count_saved_chunks() -> int:
        if "slow" not in store.conversation_ids():
            return 0
        return sum(message.text.count(" ") for message in store.messages("slow") if message.role == "assistant")

    until(count_saved_chunks)
    n_chunks = count_saved_chunks()
    until(lambda: count_saved_chunks() > n_chunks)
    assert count_saved_chunks() < CHECKPOINT_TOKENS  # the recorder saved them for their age, not for their number
    store.close()
    writer.kill()
    report = read_report(writer)
    store = open_store()
    check(store, report)
    assert count_saved_chunks() > n_chunks
    store.close()


def test_killed_chat_keeps_question_and_partial_reply(cli: Cli) -> None:
    asking = subprocess.Popen([*ASK, QUESTION], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    store = open_store()
    until(lambda: any(len(m.text) > 100 for i in store.conversation_ids() for m in store.messages(i)))
    store.close()
    asking.kill()
    output, _ = asking.communicate()
    [summary] = json.loads(cli("history", "list", "--json").stdout)
    assert summary["n_messages"] == 2
    shown = json.loads(cli("history", "show", summary["conversation"]["id"], "--json").stdout)
    question, reply = shown["messages"]
    assert question["text"] == QUESTION
    assert reply["finish_reason"] == "interrupted"
    assert len(reply["text"]) > 100
    assert LONG_REPLY.startswith(reply["text"])
    assert LONG_REPLY.startswith(output.decode())
    continued = json.loads(cli("ask", "-c", "Go on.", "-m", "starter", "--max-tokens", "5", "--json").stdout)
    assert continued["conversation_id"] == summary["conversation"]["id"]


def test_concurrent_writers_of_one_conversation_lose_no_message() -> None:
    store = open_store()
    conversation = Conversation(id="shared", title="Shared", created_at_ms=1)
    store.append(conversation, [Message(id="root", role="user", text="root")])
    writers = [start("shared", 2, 0) for _ in range(3)]
    outputs = [writer.stdout for writer in writers if writer.stdout is not None]
    until(lambda: all(select.select([output], [], [], 0)[0] for output in outputs))  # each has saved a question
    until(lambda: len(store.messages("shared")) > 30)
    for writer in writers:
        writer.kill()
    reports = [read_report(w) for w in writers]
    store.close()
    store = open_store()
    for report in reports:
        assert report.saved_ids
        check(store, report)
    store.close()


def test_ephemeral_chat_writes_no_text_to_any_file(cli: Cli, home: Path) -> None:
    phrase = "xyzzy plugh 42"
    result = cli("ask", phrase, "--ephemeral", "--max-tokens", "5", "--json")
    assert json.loads(result.stdout)["text"]
    assert not (home / "data").exists()
    for path in home.rglob("*"):
        if path.is_file():
            assert phrase.encode() not in path.read_bytes()


def test_deleted_conversation_is_in_no_file(cli: Cli, home: Path) -> None:
    phrase = "xqzzyplugh"
    cli("ask", f"say {phrase}", "--max-tokens", "5")
    [summary] = json.loads(cli("history", "list", "--json").stdout)
    assert cli("history", "delete", summary["conversation"]["id"], input="n\n").returncode == 1
    assert cli("history", "delete", "--yes", summary["conversation"]["id"]).returncode == 0
    for path in (home / "data").rglob("*"):
        assert phrase.encode() not in path.read_bytes()
        assert b"xqz" not in path.read_bytes()  # nor in the search index


def test_chat_works_with_unwritable_data_folder_and_reports_it(cli: Cli, home: Path) -> None:
    (home / "data").write_text("in the way")
    result = cli("ask", "Hi", "--max-tokens", "3")
    assert result.returncode == 0
    assert result.stdout.strip()
    assert "This conversation is not saved" in result.stderr
    listed = cli("history", "list")
    assert listed.returncode == 4
    assert "it is not a folder" in listed.stderr


def test_damaged_history_does_not_prevent_a_chat(cli: Cli, home: Path) -> None:
    open_store().close()
    file = home / "data" / "history.db"
    file.write_bytes(b"garbage" * 1000)
    result = cli("ask", "Hi", "--max-tokens", "3")
    assert result.returncode == 0
    assert "damaged" in result.stderr
    assert list((home / "data").glob("*.damaged-*"))
    assert remove_notes(cli("ask", "-m", "starter", "Hi", "--max-tokens", "3").stderr) == ""


@pytest.mark.parametrize("name", ["history.db", "history.db-wal", "history.db.damaged-20260101-000000"])
def test_directory_in_place_of_a_database_file_is_one_clear_sentence(cli: Cli, home: Path, name: str) -> None:
    for arguments in (["history", "list"], ["history", "recover"]):
        shutil.rmtree(home / "data", ignore_errors=True)
        open_store().close()
        directory = home / "data" / name
        if directory.exists():
            directory.unlink()
        directory.mkdir()
        result = cli(*arguments)
        assert result.returncode == 0
        assert "Traceback" not in result.stderr
        assert (
            str(home / "data" / "history.db.damaged-") in (result.stdout + result.stderr) or arguments[1] == "recover"
        )
    assert cli("ask", "Hi", "--max-tokens", "3").stdout.strip()
    assert len(json.loads(cli("history", "list", "--json").stdout)) == 1
    assert cli("history", "list").stderr == ""


def test_reply_that_could_not_be_saved_ends_with_an_error(cli: Cli, home: Path) -> None:
    code = (
        "from edgechat.cli.root import run; from edgechat.errors import StoreError; "
        "from edgechat.store.sqlite import SqliteStore; import sys\n"
        "def fail(*_): raise StoreError('The disk is full.')\n"
        "SqliteStore.checkpoint = fail; sys.exit(run())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "ask", "Hi", "--max-tokens", "5"], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 4
    assert result.stdout.strip()
    assert "The reply is not saved: The disk is full." in result.stderr
    assert "Traceback" not in result.stderr


def test_deletion_of_a_conversation_that_is_answered_is_one_sentence(cli: Cli, home: Path) -> None:
    gate = home / "continue"  # the reply waits for this file after its first words
    chat = subprocess.Popen(
        [*COMMAND, "--plain"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"REPLY": "word " * 100, "TOKEN_INTERVAL_S": "0", "GATE": str(gate)},
    )  # fmt: skip
    assert chat.stdin is not None
    assert chat.stdout is not None
    chat.stdin.write(QUESTION + "\n")
    chat.stdin.flush()
    chat.stdout.read(20)  # blocks until the reply has begun
    [summary] = json.loads(cli("history", "list", "--json").stdout)
    assert cli("history", "delete", "--yes", summary["conversation"]["id"]).returncode == 0
    gate.touch()
    out, error = chat.communicate("/new\nWhat is two and two?\n")
    assert "Traceback" not in error
    assert "Another edgechat process has deleted this conversation" in error
    assert out.strip()
    [summary] = json.loads(cli("history", "list", "--json").stdout)
    assert summary["n_messages"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
@pytest.mark.parametrize("name", [os.fsdecode(b"h\xe9me"), "a\nb ?#%", "/".join(["d" * 200] * 10)])
def test_data_folder_with_an_odd_name_does_not_prevent_a_chat(cli: Cli, tmp_path: Path, name: str) -> None:
    environment = os.environ | {"EDGECHAT_HOME": str(tmp_path / name)}
    result = cli("ask", "-m", "starter", "Hi", "--max-tokens", "3", env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    listed = cli("history", "list", env=environment)
    continued = cli("ask", "-c", "More", "--max-tokens", "3", env=environment)
    if len(name) < 500:
        assert (remove_notes(result.stderr), listed.returncode, continued.returncode) == ("", 0, 0)
        assert len(listed.stdout.splitlines()) == 1
    else:
        assert "This conversation is not saved" in result.stderr
        for refused in (listed, continued):
            assert refused.returncode in (2, 4) or (refused.returncode, refused.stdout) == (0, "")
            assert len(refused.stderr.splitlines()) == 1
            assert len(refused.stderr) <= 1100
