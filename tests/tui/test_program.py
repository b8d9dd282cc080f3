"""The real program in a pseudo-terminal with the starter model: complete sessions, signals, and plain output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.bench.pty_program import run_in_pty
from tests.conftest import edgechat_command
from tests.terminal import Terminal, terminal

RESTORE_SEQUENCES = ("\x1b[?1049l", "\x1b[?25h")
"""Leave the alternate screen and show the cursor."""


def assert_terminal_restored(t: Terminal) -> None:
    end = t.output[-3000:].decode("utf-8", "replace")
    assert all(sequence in end for sequence in RESTORE_SEQUENCES)
    assert "\x1b[?1000l" in end  # mouse reporting is off
    assert t.modes() == t.initial_modes


def history(*arguments: str) -> str:
    return subprocess.run(edgechat_command("history", *arguments), capture_output=True, text=True, check=True).stdout


def test_first_frame_imports_neither_engine_nor_planner() -> None:
    with run_in_pty(edgechat_command(), os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}) as program:
        program.wait_for("sk something")  # the placeholder of the input
        imported = program.output.partition(b"sk something")[0]
        assert b" edgechat.tui.screens.chat" in imported
        for module in (b" edgechat.engine.protocol", b" edgechat.planner.load_plan", b" edgechat.chat.messages"):
            assert module not in imported


@pytest.mark.parametrize("key", ["\x11", "\x1b"], ids=["Ctrl+Q", "Esc"])
def test_first_run_screen_is_shown_once(key: str) -> None:
    with terminal(*edgechat_command()) as t:
        t.until("Chat now with starter (no internet needed)")
        assert "Welcome to edgechat" in t.text()
        t.type(key)
        if key == "\x1b":
            t.until_stable("Ready")
            t.type("\x11")
        assert t.wait() == 0
    with terminal(*edgechat_command()) as t:
        t.until_stable("Ready")
        assert "Welcome" not in t.text()
    assert json.loads(history("list", "--json")) == []


def test_session_from_first_message_to_restart(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[1], 'a').write(' in one word')\n")
    editor.chmod(0o755)
    env = os.environ | {"EDITOR": str(editor)}
    with terminal(*edgechat_command("-m", "starter", "--max-tokens", "30", "--temperature", "0"), env=env) as t:
        t.until_stable("Ready")
        t.type("What is gravity?\r")
        t.until(lambda: "tokens/s" in t.text() and "Ready" in t.text())
        assert "What is gravity?" in t.text()
        # Ctrl+J, Alt+Enter and a bracketed paste all add lines to one message.
        t.type("one\x0atwo\x1b\rthree")
        t.until(lambda: all(word in t.text() for word in ("one", "two", "three")))
        assert "Ready" in t.text()
        t.type("\x1b[200~\nfour\nfive\x1b[201~\r")
        t.until(lambda: "five" in t.text() and "Ready" in t.text() and len(json.loads(history("list", "--json"))) == 1)
        # Generate an alternative reply, and switch back.
        t.type("/retry\r")
        t.until("‹2/2›")  # noqa: RUF001
        t.until_stable("Ready")
        t.type("/switch\r")
        t.until("‹1/2›")  # noqa: RUF001
        # Use the external editor.
        t.type("Say it\x07")
        t.until("Say it in one word")
        t.type("\r")
        t.until(lambda: "Ready" in t.text() and "in one word" in t.text())
        # Open a search result.
        t.type("\x06")
        t.until("Search all conversations")
        t.type("gravity")
        t.until("assistant Gravity is")  # a row of the search
        t.type("\r")
        t.until(lambda: "Search all conversations" not in t.text())
        t.until("Enter input")  # the transcript has the focus
        t.type("\r")
        t.until_stable("Ready")
        t.type("/rename About weight\r")
        t.type(f"/export {tmp_path / 'out.md'}\r")
        t.until((tmp_path / "out.md").exists)
        assert (tmp_path / "out.md").read_text().count("About weight") == 2
        t.type("half a thought")
        t.until("half a thought")
        t.until(lambda: any((Path(os.environ["EDGECHAT_HOME"]) / "data" / "drafts").glob("*.txt")))
        t.type("\x11")
        assert t.wait() == 0
        assert_terminal_restored(t)
    [summary] = json.loads(history("list", "--json"))
    assert summary["conversation"]["title"] == "About weight"
    with terminal(*edgechat_command("-c")) as t:
        t.until("half a thought")
        t.until_stable("Ready")
        t.type("\x11")
        assert t.wait() == 0


def test_a_missing_model_opens_the_history_and_the_list_of_models() -> None:
    with terminal(*edgechat_command("-m", "starter", "--max-tokens", "8")) as t:
        t.until_stable("Ready")
        t.type("What is gravity?\r")
        t.until(lambda: "tokens/s" in t.text() and "Ready" in t.text())
        t.type("\x11")
        assert t.wait() == 0
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text('model = "gone-model"\n')
    with terminal(*edgechat_command()) as t:
        t.until("Models")
        t.until("starter")
        t.type("\x1b")
        t.until("No model with the name 'gone-model'")
        t.type("\x02")  # the list of conversations
        t.until("What is gravity?")
        t.type("\x02")
        t.until(lambda: "What is gravity?" not in t.text())
        t.type("/model starter\r")
        t.until_stable("Ready")
        t.type("Hi\r")
        t.until(lambda: "tokens/s" in t.text() and "Ready" in t.text())
        t.type("\x11")
        assert t.wait() == 0
    assert len(json.loads(history("list", "--json"))) == 2


def test_reply_is_stopped_continued_and_interrupted_by_quit() -> None:
    with terminal(*edgechat_command("-m", "starter"), size=(60, 20)) as t:
        t.until_stable("Ready")
        t.type("Tell me a very long story about the sea.\r")
        t.until("Generating")
        t.type("\x1b")
        t.until("(Stopped; /continue resumes the reply)")
        t.type("/continue\r")
        t.until("Generating")
        for size in ((10, 5), (120, 40), (1, 1), (40, 12), (80, 24)):
            t.resize(*size)
        t.until("Generating")
        t.type("\x11")
        assert t.wait() == 0
        assert_terminal_restored(t)
    assert json.loads(history("list", "--json"))[0]["n_messages"] == 2


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signal_during_a_reply_loses_nothing(signal_: signal.Signals) -> None:
    with terminal(*edgechat_command("-m", "starter")) as t:
        t.until_stable("Ready")
        t.type("Tell me a very long story about the sea.\r")
        t.until(lambda: "Generating" in t.text() and len(t.text().split()) > 60)
        t.child.send_signal(signal_)
        t.wait()
    [summary] = json.loads(history("list", "--json"))
    exported = json.loads(history("show", summary["conversation"]["id"], "--json"))
    assert [m["role"] for m in exported["messages"]] == ["user", "assistant"]
    with terminal(*edgechat_command("-c")) as t:
        t.until("long story about the sea")
        t.until_stable("Ready")
        t.type("\x11")
        assert t.wait() == 0


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"EDGECHAT_THEME": "ansi-dark"}, {"EDGECHAT_ASCII": "yes"}])
def test_no_color_ansi_theme_and_ascii_mode(variable: dict[str, str]) -> None:
    with terminal(*edgechat_command("-m", "starter", "--max-tokens", "5"), env=os.environ | variable) as t:
        t.until_stable("Ready")
        if "EDGECHAT_ASCII" in variable:
            assert t.text().isascii()
        t.type("Hello\r")
        t.until("length limit")
        output = t.output.decode("utf-8", "replace")
        if "EDGECHAT_ASCII" in variable:
            drawn = [line for line in t.text().splitlines() if not line.startswith("  ")]  # without the model's words
            assert all(line.isascii() for line in drawn)
        elif "EDGECHAT_THEME" in variable:
            assert "38;2;" not in output
        t.type("\x11")
        assert t.wait() == 0


def test_editor_that_fails_returns_to_the_chat() -> None:
    with terminal(*edgechat_command("-m", "starter"), env=os.environ | {"EDITOR": "false"}) as t:
        t.until_stable("Ready")
        t.type("one\x07")
        t.until("failed with exit code 1")
        t.type(" more")
        t.until("one more")
        t.type("\x11")
        assert t.wait() == 0


def test_plain_chat_accepts_the_same_commands(tmp_path: Path) -> None:
    lines = f"Say hi.\n/retry\n/switch 1\n/nothing\n/rename Plain\n/export {tmp_path / 'out.md'}\n/help\n/quit\nnever\n"
    command = edgechat_command("--plain", "-m", "starter", "--max-tokens", "6", "--temperature", "0")
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 2  # because one command does not exist
    assert "Unknown command /nothing" in done.stderr
    assert "(Alternative 1 of 2)" in done.stdout
    assert (tmp_path / "out.md").exists()
    assert "\x1b" not in done.stdout
    [summary] = json.loads(history("list", "--json"))
    assert (summary["conversation"]["title"], summary["n_messages"]) == ("Plain", 3)


def test_dumb_terminal_gets_plain_chat() -> None:
    env = os.environ | {"TERM": "dumb"}
    with terminal("/usr/bin/env", "TERM=dumb", *edgechat_command("-m", "starter", "--max-tokens", "5"), env=env) as t:
        t.until("/help lists commands")
        t.type("Hello\r")
        t.until("length limit")
        t.type("/search hello\r")
        t.until("/open NUMBER")
        t.type("\x04")
        assert t.wait() == 0
        assert b"\x1b[?1049h" not in t.output
