"""`edgechat explain`: the question about piped text or the last command, its limits, and the output in tmux."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from edgechat.cli import explain, tmux_output
from edgechat.cli.explain import cut_middle, make_command_question, make_question
from edgechat.cli.tmux_output import find_output, read_last_output
from edgechat.errors import UsageError
from tests.conftest import Cli

SCREEN = """user@host:~$ make
old output
user@host:~$ make
gcc: error: no input files
make: *** [all] Error 1
user@host:~$ edgechat explain
An earlier explanation.
user@host:~$ edgechat explain "why?"
"""


def test_output_is_between_the_last_command_and_the_explanation() -> None:
    assert find_output(SCREEN, "make") == "gcc: error: no input files\nmake: *** [all] Error 1"
    assert find_output(SCREEN, "ls") == ""
    assert find_output(SCREEN, "") == ""
    assert find_output("$ make\noutput", "make") == ""
    assert find_output("$ ls\ntools\nx\n$ edgechat explain", "ls") == "tools\nx"
    assert (
        find_output("$ for i in 1\n> do echo $i\n> done\n1\n$ edgechat explain", "for i in 1\ndo echo $i\ndone") == "1"
    )


@pytest.mark.parametrize("pane", ["", "0", "%1; rm", "-t"])
def test_tmux_is_asked_for_a_valid_pane_only(pane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "socket")
    monkeypatch.setenv("TMUX_PANE", pane)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("tmux was started"))
    assert read_last_output("make") == ""


def test_failure_of_tmux_is_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "socket")
    monkeypatch.setenv("TMUX_PANE", "%1")
    monkeypatch.setenv("PATH", "")
    assert read_last_output("make") == ""


def test_command_and_exit_code_are_in_the_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGECHAT_LAST_COMMAND", "make all")
    monkeypatch.setenv("EDGECHAT_LAST_STATUS", "2")
    text = make_command_question(None)
    assert "Command:\n```\nmake all\n```" in text
    assert text.endswith("Exit code: 2")
    assert "COMMAND 2>&1 | edgechat explain" in capsys.readouterr().err
    assert "EDGECHAT_LAST_COMMAND" not in os.environ  # child processes must not inherit it
    monkeypatch.setattr(tmux_output, "read_last_output", lambda command: "boom")
    monkeypatch.setenv("EDGECHAT_LAST_COMMAND", "make all")
    text = make_command_question("Why?")
    assert text.startswith("Why?\n")
    assert text.endswith("Output:\n```\nboom\n```")
    assert capsys.readouterr().err == ""


def test_without_text_and_command_the_hook_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(UsageError, match="edgechat completion --help"):
        make_command_question(None)


def test_empty_standard_input_is_an_error(cli: Cli) -> None:
    assert cli("explain").returncode == 2


def test_fence_is_longer_than_those_in_the_text() -> None:
    assert make_question("Q", "Output", "a\n````\nb\n") == "Q\n\nOutput:\n`````\na\n````\nb\n`````"


def test_long_text_loses_its_middle_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(f"{i}\n" for i in range(10_000))
    short = cut_middle(text)
    assert len(short) < explain._MAX_START_CHARS + explain._MAX_END_CHARS + 50
    assert short.startswith("0\n1\n")
    assert short.endswith("9998\n9999\n")
    assert "characters left out]" in short
    assert f"The text has {len(text):,} characters." in capsys.readouterr().err
    assert cut_middle("short") == "short"
