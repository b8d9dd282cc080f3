"""`edgechat do`: what is shown and asked, and that only a command that was shown and confirmed is run."""

from __future__ import annotations

import io
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import click
import hypothesis
import pytest
from hypothesis import strategies as st

from edgechat.cli import do, shell_command, structured_reply
from edgechat.cli.root import edgechat
from edgechat.cli.shell_command import make_command
from edgechat.errors import DeclinedError, EdgechatError, EngineError, UsageError
from edgechat.terminal import escape_controls

INVISIBLE = frozenset("\u034f\u115f\u1160\u180b\u2800\u3164\ufe00\ufe0f\uffa0\U000e0100")


@pytest.fixture(autouse=True)
def keep_signals() -> Iterator[None]:
    """Restore the handlers that are reset before a command replaces the process: here, it does not."""
    numbers = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Executed(BaseException):
    """Raised in place of the replacement of the process by a shell."""


class Terminal(io.StringIO):
    """Standard stream that is a terminal."""

    def isatty(self) -> bool:
        return True


# Shell metacharacters, line ends, escape sequences, bidi controls, invisible characters and words.
PIECES = [
    *";&|<>()$`\\\"' \t\n\r*?[]#~=%!{}^", "\0", "\x1b[2J", "\x1b]52;c;eA==\x07", "\x9b", "\x7f", "\x08", "\u202e",
    "\u2066", "\u200b", "\u2028", "\ufeff", "\U000e0041", "\ufffd", "\u0301" * 12, "y", "yes\n", "rm -rf ~", "ls", "é",
    "…\u200b", "\u00a0", "a\u034f", "x\ufe0f", "\u2800", "\u3164",
]  # fmt: skip
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=30))
ANSWERS = st.lists(
    st.sampled_from(["y\n", "yes\n", "Y\n", "n\n", "\n", "e\n", "x\n", " y \n", "yy\n", "run\n"]), max_size=4
)


class Screen:
    """A terminal with answers that are typed in advance; it records what is shown and what is run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[str], edits: list[str] | None = None) -> None:
        self.n_read = 0
        self.executed: list[str] = []
        self.out, self.err = Terminal(), Terminal()
        self._answers, self._edits = iter(answers), iter(edits or [])
        monkeypatch.setattr(sys, "stdin", MagicMock(isatty=lambda: True, readline=self._read, fileno=self._no_file))
        monkeypatch.setattr(sys, "stdout", self.out)
        monkeypatch.setattr(sys, "stderr", self.err)
        monkeypatch.setattr(do, "_edit_text", lambda text: next(self._edits, text))
        monkeypatch.setattr(os, "execv", self._execute)
        monkeypatch.setenv("SHELL", "/bin/sh")

    def _no_file(self) -> int:
        raise ValueError

    def _read(self) -> str:
        self.n_read += 1
        return next(self._answers, "")

    def _execute(self, _path: str, arguments: list[str]) -> None:
        assert arguments[:2] == ["/bin/sh", "-c"]
        self.executed.append(arguments[2])
        raise Executed


def run(fields: dict[str, str], *arguments: str) -> None:
    """Run `edgechat do` with the fields of a reply."""
    original, structured_reply.generate_fields = structured_reply.generate_fields, lambda *_, **__: fields
    try:
        edgechat.main(["do", *arguments, "request"], standalone_mode=False)
    except (EdgechatError, Executed, click.ClickException):
        pass
    finally:
        structured_reply.generate_fields = original


@hypothesis.settings(max_examples=400)
@hypothesis.given(text=TEXTS, explanation=TEXTS, answers=ANSWERS, edits=st.lists(TEXTS, max_size=3))
def test_only_a_shown_and_confirmed_command_is_run(
    text: str, explanation: str, answers: list[str], edits: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        screen = Screen(monkeypatch, answers, edits)
        run({"command": text, "explanation": explanation}, "-m", "starter")
        shown = screen.err.getvalue()
        assert escape_controls(shown) == shown
        assert screen.out.getvalue() == ""
        if not screen.executed:
            return
        answer = answers[screen.n_read - 1].strip().lower()
        assert answer in {"y", "yes"}
        assert len(screen.executed) == 1
        executed = screen.executed[0]
        last_question = shown.rindex("Run th")
        lines = "\n".join(f"  {line}" for line in executed.split("\n"))
        start = shown.rindex(lines, 0, last_question)
        assert f"\n{lines}\n" in shown[max(0, start - 1) : last_question]
        assert "\0" not in executed
        visible = [c for c in executed if c not in " \n\t"]
        assert not INVISIBLE.intersection(visible)
        assert not {unicodedata.category(c) for c in visible} & {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}
        if "e\n" not in answers:
            assert executed == text.replace("\r\n", "\n").strip(" \t\n")


@hypothesis.given(text=TEXTS, explanation=TEXTS)
@pytest.mark.parametrize("arguments", [["--print"], []])
@pytest.mark.parametrize("missing", ["stdin", "stderr"])
def test_nothing_is_run_or_asked_without_a_terminal_or_with_print(
    text: str, explanation: str, arguments: list[str], missing: str
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        screen = Screen(monkeypatch, ["y\n"] * 9)
        if not arguments:
            monkeypatch.setattr(getattr(sys, missing), "isatty", lambda: False)
        run({"command": text, "explanation": explanation}, *arguments)
        assert not screen.executed
        assert screen.n_read == 0
        out = screen.out.getvalue()
        assert escape_controls(out) == out
        if arguments and out:
            assert out == text.replace("\r\n", "\n").strip(" \t\n") + "\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("ls \x1b[8m; rm x", "ls ␛[8m; rm x"), ("ls\0", "ls␀"), ("a\u202eb", "a\ufffdb"), ("ls\rrm x", "ls␍rm x")],
)
def test_command_with_invisible_characters_can_only_be_edited(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(monkeypatch, ["y\n"])
    with pytest.raises(DeclinedError):
        do.confirm(make_command(text, ""))
    assert f"  {shown}\n" in screen.err.getvalue()
    assert "cannot be run. [e]dit, [N]o: " in screen.err.getvalue()
    with pytest.raises(UsageError, match="is not run"):
        shell_command.run_command(make_command(text, ""))
    screen = Screen(monkeypatch, ["e\n", "y\n"], ["ls"])
    assert do.confirm(make_command(text, "")).text == "ls"


def test_command_with_several_lines_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch, ["y\n"])
    text = "\n".join(f"echo {i}" for i in range(40))
    assert do.confirm(make_command(text, "Prints numbers.")).text == text
    shown = screen.err.getvalue()
    assert all(f"\n  echo {i}\n" in shown for i in range(40))
    assert shown.endswith("Prints numbers.\nRun these 40 lines? [y]es, [e]dit, [N]o: ")


def test_end_of_the_input_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    Screen(monkeypatch, [])
    with pytest.raises(DeclinedError):
        do.confirm(make_command("ls", ""))


@pytest.mark.parametrize("text", ["", " \n", "\t\r\n"])
def test_empty_command_is_an_error_with_the_reason(text: str) -> None:
    with pytest.raises(EngineError, match=r"no command for this\. There is no such file\."):
        make_command(text, "There is no such file.")


def test_instructions_name_the_shell_and_the_folder_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    folder = tmp_path / "secret" / "my project"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SHELL", "/bin/bash")
    monkeypatch.setenv("TOKEN", "hunter2")
    text = shell_command.make_instructions()
    assert "for the shell bash on " in text
    assert "my project" in text
    for hidden in ("secret", "hunter2", os.environ.get("USER") or "no user", os.uname().nodename):
        assert hidden not in text


@pytest.mark.parametrize("shell", ["", "bash", "/none/zsh"])
def test_unusable_shell_is_replaced(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", shell)
    assert shell_command.find_shell() == ["/bin/sh", "-c"]
