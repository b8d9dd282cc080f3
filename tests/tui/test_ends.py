"""Ends of the chat by signals and closed terminals: nothing that was shown is lost, and the terminal is restored."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from edgechat.store import open_store
from tests.terminal import Terminal, terminal
from tests.waiting import until

pytestmark = pytest.mark.cold

PROGRAM = [sys.executable, "-m", "tests.tui.scripted_program"]
RESTORE_SEQUENCES = [
    "\x1b[?1049l", "\x1b[?25h", "\x1b[?1000l", "\x1b[?1003l", "\x1b[?1006l", "\x1b[?2004l", "\x1b[?1004l", "\x1b[<u"
]  # fmt: skip
ENDS = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT]


def shown_numbers(t: Terminal) -> list[int]:
    return [int(number) for number in re.findall(r"\bword(\d+)\b", t.text())]


def start_reply(t: Terminal) -> None:
    """Send a message, wait for a part of the reply, and type a message that is not sent."""
    t.until_stable("Ready")
    t.type("Question\r")
    t.until(lambda: max(shown_numbers(t), default=0) > 100)
    t.type("unsent words")
    t.until("unsent words")


def assert_saved(t: Terminal, last_number: int) -> None:
    """Check that the store has the reply up to the last word that was shown, and the unsent text."""
    store = open_store()
    [summary] = store.list_conversations(limit=10)
    texts = [message.text for message in store.messages(summary.conversation.id)]
    store.close()
    assert texts[0] == "Question"
    assert f"word{last_number} " in texts[1]
    assert read_unsent_text() == "unsent words"


def read_unsent_text() -> str:
    [file] = (Path(os.environ["EDGECHAT_HOME"]) / "data" / "drafts").glob("*.txt")
    return file.read_text()


def assert_restored(t: Terminal) -> None:
    assert t.modes() == t.initial_modes
    # The terminal may still read what the program wrote at its end.
    until(lambda: all(sequence in t.output[-3000:].decode("utf-8", "replace") for sequence in RESTORE_SEQUENCES))


@pytest.mark.parametrize("number", ENDS)
def test_signal_saves_everything_and_restores_the_terminal(number: signal.Signals) -> None:
    with terminal(*PROGRAM) as t:
        start_reply(t)
        last_number = max(shown_numbers(t))
        t.child.send_signal(number)
        assert t.wait() == 128 + number
        assert_restored(t)
        assert b"Traceback" not in t.output
        assert_saved(t, last_number)


@pytest.mark.parametrize("number", ENDS)
def test_signal_while_starting_restores_the_terminal(number: signal.Signals) -> None:
    with terminal(*PROGRAM) as t:
        t.until(lambda: b"\x1b[?1049h" in t.output)
        t.child.send_signal(number)
        assert t.wait() == 128 + number
        assert_restored(t)
        assert b"Traceback" not in t.output


@pytest.mark.parametrize("is_controlling", [True, False])
def test_closed_terminal_saves_everything(is_controlling: bool) -> None:
    """With a controlling terminal, the kernel sends SIGHUP; without, reads and writes fail."""
    with terminal(*PROGRAM, is_controlling=is_controlling) as t:
        start_reply(t)
        last_number = max(shown_numbers(t))
        t.hang_up()
        assert t.wait() == 128 + signal.SIGHUP
        assert_saved(t, last_number)


def test_ignored_hangup_signal_stays_ignored_until_the_terminal_is_gone() -> None:
    code = f"import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, {PROGRAM})"
    with terminal(sys.executable, "-c", code) as t:
        start_reply(t)
        t.child.send_signal(signal.SIGHUP)
        number = max(shown_numbers(t))
        t.until(lambda: max(shown_numbers(t)) > number)
        last_number = max(shown_numbers(t))
        t.hang_up()
        assert t.wait() == 128 + signal.SIGHUP
        assert_saved(t, last_number)


def test_terminal_that_does_not_read_delays_the_end_by_ten_seconds_at_most() -> None:
    with terminal(*PROGRAM) as t:
        start_reply(t)
        last_number = max(shown_numbers(t))
        t.reads.clear()
        t.type("\x1b[5~" * 20_000)  # scrolling fills the buffer of the terminal
        until(lambda: t.n_unread_bytes() > 3000, timeout_s=60)
        t.child.send_signal(signal.SIGTERM)
        assert t.wait(15) == 128 + signal.SIGTERM
        assert_saved(t, last_number)


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGSTOP])
def test_chat_that_was_stopped_continues(number: signal.Signals) -> None:
    with terminal(*PROGRAM) as t:
        start_reply(t)
        os.kill(t.child.pid, number)
        until(lambda: os.waitpid(t.child.pid, os.WUNTRACED | os.WNOHANG)[0])
        if number == signal.SIGTSTP:
            t.until(lambda: b"\x1b[?1049l" in t.output)
            assert_restored(t)
        os.kill(t.child.pid, signal.SIGCONT)
        t.until(lambda: t.output.count(b"\x1b[?1049h") == 2)
        t.type(", and more")
        t.until("unsent words, and more")
        t.type("\x11")
        assert t.wait() == 0
        assert_restored(t)


def test_signal_while_an_earlier_message_is_edited_keeps_both_texts() -> None:
    with terminal(sys.executable, "-m", "tests.tui.scripted_program", "0", "Answer") as t:
        t.until_stable("Ready")
        t.type("Question\r")
        t.until("Answer")
        t.until_stable("Ready")
        t.type("not sent")
        t.until("not sent")
        t.type("\x1b")
        t.until("Enter input")
        t.type("\x1b[A")
        t.type("e")
        t.until("editing (Esc cancels)")
        t.type(" changed")
        t.until("Question changed")
        t.child.send_signal(signal.SIGTERM)
        assert t.wait() == 128 + signal.SIGTERM
    assert read_unsent_text() == "not sent\n\nQuestion changed"


def test_signal_while_the_editor_runs_saves_what_it_wrote(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\necho from the editor >> $1\ntouch {tmp_path}/open\nexec sleep 60\n")
    editor.chmod(0o755)
    with terminal(*PROGRAM, env=os.environ | {"EDITOR": str(editor)}) as t:
        t.until_stable("Ready")
        t.type("written \x07")
        until((tmp_path / "open").exists)
        t.child.send_signal(signal.SIGINT)  # Ctrl-C belongs to the editor
        t.child.send_signal(signal.SIGTERM)
        assert t.wait() == 128 + signal.SIGTERM
        assert t.modes() == t.initial_modes
    assert read_unsent_text() == "written from the editor"


@pytest.mark.parametrize("ends_by_key", [True, False])
def test_window_title_is_set_and_restored(*, ends_by_key: bool) -> None:
    with terminal(*PROGRAM) as t:
        t.until("Ready")
        saved, _, rest = t.output.partition(b"\x1b[22;2t\x1b]2;edgechat\x07")
        assert rest
        assert b"\x1b]2;" not in saved
        t.type("A question\r")
        t.until("word5")
        t.until(lambda: b"\x1b]2;A question - edgechat\x07" in t.output)
        if ends_by_key:
            t.type("\x11")
        else:
            t.child.send_signal(signal.SIGTERM)
        t.wait()
        assert t.output.count(b"\x1b[22;2t") == t.output.count(b"\x1b[23;2t") == 1
