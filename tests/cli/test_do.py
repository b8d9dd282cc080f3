"""`edgechat do` in a terminal: keys before the question, confirmation, editing, and the end of the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.terminal import terminal

pytestmark = [pytest.mark.cold, pytest.mark.skipif(sys.platform == "win32", reason="waits for a terminal of Unix")]

COMMAND = [sys.executable, "-m", "tests.cli.scripted_command", "do", "make a file"]
QUESTION = "[y]es, [e]dit, [N]o:"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the file that the command creates."""
    monkeypatch.setenv("SHELL", "/bin/sh")
    file = tmp_path / "made"
    set_reply(f"echo made > {file}; exit 7", monkeypatch)
    return file


def set_reply(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLY", json.dumps({"command": command, "explanation": "Makes a file."}))


@pytest.mark.parametrize("answer", ["\r", "n\r", "\x04", "yy\r", "\x03"])
def test_command_does_not_run_after_another_answer_or_keys_before_the_question(answer: str, file: Path) -> None:
    with terminal(*COMMAND, is_controlling=True) as t:
        t.type("y\ry\r")
        t.until(QUESTION)
        t.type(answer)
        assert t.wait() == (130 if answer == "\x03" else 1)
        assert "Makes a file." in t.text()
    assert not file.exists()


def test_confirmed_command_runs_and_its_exit_code_is_passed_on(file: Path) -> None:
    with terminal(*COMMAND, is_controlling=True) as t:
        t.until(QUESTION)
        assert not file.exists()
        t.type("y\r")
        assert t.wait() == 7
    assert file.read_text() == "made\n"


def test_edited_command_is_shown_again_before_it_runs(file: Path) -> None:
    with terminal(*COMMAND, is_controlling=True) as t:
        t.until(QUESTION)
        t.type("e\r")
        t.until("Command: echo made")
        t.type("\x15exit 5\r")
        t.until(lambda: t.text().count(QUESTION) == 2)
        assert "\n  exit 5" in t.text()
        t.type("y\r")
        assert t.wait() == 5
    assert not file.exists()


def test_command_that_hides_a_part_cannot_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_reply(f"ls \x1b[8m; echo made > {file}", monkeypatch)
    with terminal(*COMMAND, is_controlling=True) as t:
        t.until("cannot be run. [e]dit, [N]o:")
        assert "ls ␛[8m; echo made" in t.text()
        t.type("y\r")
        assert t.wait() == 1
    assert not file.exists()
