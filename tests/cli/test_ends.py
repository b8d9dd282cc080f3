"""Ends of `ask` and `--plain` by signals, closed terminals and closed pipes: what was shown is saved."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat.store import open_store
from tests.conftest import remove_notes
from tests.terminal import Terminal, terminal
from tests.waiting import until

pytestmark = [pytest.mark.cold, pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")]

COMMAND = [sys.executable, "-m", "tests.cli.scripted_command"]
ASK = [*COMMAND, "ask", "Question"]
ENDS = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT]


def last_number(text: str) -> int:
    return max((int(number) for number in re.findall(r"\bword(\d+) ", text)), default=0)


def saved_texts() -> list[str]:
    store = open_store()
    try:
        [summary] = store.list_conversations(limit=10)
        return [message.text for message in store.messages(summary.conversation.id)]
    finally:
        store.close()


def unsent_files() -> Iterator[Path]:
    return (Path(os.environ["EDGECHAT_HOME"]) / "data" / "drafts").glob("*.txt")


def wait_for_words(t: Terminal) -> None:
    t.until(lambda: last_number(t.text()) > 20)


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("arguments", [["ask", "Question"], ["--plain"]], ids=["ask", "plain"])
def test_signal_during_a_reply_saves_what_was_shown(arguments: list[str], number: signal.Signals) -> None:
    if arguments == ["--plain"] and number == signal.SIGINT:
        pytest.skip("Ctrl-C stops the reply and the chat goes on")
    with terminal(*COMMAND, *arguments) as t:
        if arguments == ["--plain"]:
            t.until("/help lists commands")
            t.type("Question\r")
        wait_for_words(t)
        shown = last_number(t.text())
        t.child.send_signal(number)
        assert t.wait() == 128 + number
        t.until(lambda: t.modes() == t.initial_modes)
        assert b"Traceback" not in t.output
    texts = saved_texts()
    assert texts[0] == "Question"
    assert last_number(f"{texts[1]} ") >= shown


def test_ctrl_c_stops_the_reply_of_the_plain_chat_which_goes_on() -> None:
    with terminal(*COMMAND, "--plain") as t:
        t.until("/help lists commands")
        t.type("Question\r")
        wait_for_words(t)
        t.child.send_signal(signal.SIGINT)
        t.until("(Stopped; /continue resumes the reply)")
        t.type("/quit\r")
        assert t.wait() == 0


@pytest.mark.parametrize("arguments", [["ask", "Question"], ["--plain"]], ids=["ask", "plain"])
@pytest.mark.parametrize("is_controlling", [True, False])
def test_closed_terminal_saves_what_was_shown(arguments: list[str], is_controlling: bool) -> None:
    with terminal(*COMMAND, *arguments, is_controlling=is_controlling) as t:
        if arguments == ["--plain"]:
            t.until("/help lists commands")
            t.type("Question\r")
        wait_for_words(t)
        shown = last_number(t.text())
        t.hang_up()
        assert t.wait() == 128 + signal.SIGHUP
    assert last_number(f"{saved_texts()[1]} ") >= shown


def test_signal_while_the_terminal_does_not_read_ends_ask() -> None:
    with terminal(*ASK, env=os.environ | {"TOKEN_INTERVAL_S": "0.0005"}) as t:
        wait_for_words(t)
        t.reads.clear()
        until(lambda: t.n_unread_bytes() > 3000)
        shown = last_number(t.text())
        t.child.send_signal(signal.SIGTERM)
        assert t.wait(60) == 128 + signal.SIGTERM
    assert last_number(f"{saved_texts()[1]} ") >= shown


def test_unsent_line_of_the_plain_chat_is_saved_and_offered_again() -> None:
    with terminal(*COMMAND, "--plain") as t:
        t.until("/help lists commands")
        t.type("first line\\\rsecond words")
        t.until("> second words")  # with the prompt: the program has read the words, and not only the terminal
        t.child.send_signal(signal.SIGTERM)
        assert t.wait() == 143
        t.until(lambda: t.modes() == t.initial_modes)
    [file] = unsent_files()
    assert file.read_text() == "first line\nsecond words"
    with terminal(*COMMAND, "--plain", env=os.environ | {"REPLY": "Answer"}) as t:
        t.until("second words")
        assert "> first line\\" in t.text()
        t.type(" and more\r")
        t.until("Answer")
        t.type("/quit\r")
        assert t.wait() == 0
    assert not list(unsent_files())
    assert saved_texts()[0] == "first line\nsecond words and more"


def test_pipe_that_is_closed_during_the_reply_ends_ask_with_141_and_saves_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with subprocess.Popen(
        ASK, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"REPLY": "first\n" + " word" * 200, "TOKEN_INTERVAL_S": "0.005", "GATE": str(gate)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        gate.touch()
        assert process.wait(120) == 141
        assert process.stderr is not None
        assert remove_notes(process.stderr.read().decode()) == ""
    assert saved_texts()[1].startswith("first\n word")


def test_pipe_that_is_closed_before_the_reply_ends_ask_with_141_and_saves_it() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*ASK, "--json"], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"REPLY": "first\n" + " word" * 200, "TOKEN_INTERVAL_S": "0"},
    )  # fmt: skip
    os.close(writer)
    assert (result.returncode, remove_notes(result.stderr)) == (141, "")
    assert saved_texts()[1].startswith("first\n word")


def test_reply_that_a_signal_stops_is_printed_as_json() -> None:
    with subprocess.Popen(
        [*ASK, "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        until(lambda: Path(os.environ["EDGECHAT_HOME"], "data", "history.db").exists() and _saved_length() > 100)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert json.loads(output)["finish_reason"] == "cancelled"
    assert json.loads(output)["text"] == saved_texts()[1]
    assert "UNSET" not in output


def _saved_length() -> int:
    try:
        return len(saved_texts()[1])
    except (IndexError, ValueError):
        return 0


def test_ignored_hangup_signal_does_not_end_ask() -> None:
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *ASK], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        env=os.environ | {"REPLY": "first\n" + " word" * 200, "TOKEN_INTERVAL_S": "0.005"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.read().count(b"word") == 200
        assert process.wait(60) == 0
