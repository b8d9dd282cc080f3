"""Status of commands that can take long, on standard error that is not a terminal."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from types import SimpleNamespace

import pytest

from edgechat.cli import progress
from tests.waiting import until


@pytest.mark.parametrize(("print_lines", "expected"), [(True, ["b", "d"]), (False, [])])
def test_status_outside_a_terminal_is_a_line_every_ten_seconds(
    print_lines: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    status = progress.StderrStatus(print_lines=print_lines)
    for seconds, text in ((9, "a"), (10, "b"), (19, "c"), (20, "d"), (40, "")):
        now = 100.0 + seconds
        status.show(text)
    status.clear()
    assert capsys.readouterr().err.splitlines() == expected


def test_status_line_shows_the_elapsed_time_until_the_end_of_the_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "supports_escapes", lambda _stream: True)
    monkeypatch.setattr(progress, "_TICK_S", 0.001)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((30, 5)))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=itertools.count(100).__next__))
    status, output = progress.StderrStatus(), ""

    def shown_seconds(text: str) -> list[int]:
        nonlocal output
        output += capsys.readouterr().err
        return [int(seconds) for seconds in re.findall(rf"\r{text}[^(\r]*\((\d+) s\)", output)]

    with status.show_elapsed():
        status.show("Measuring")
        until(lambda: len(shown_seconds("Measuring ")) > 3)
        status.show("Reading the speed of this machine")  # cut, because a wrapped line cannot be cleared
        until(lambda: len(shown_seconds("Reading ")) > 3)
    seconds = shown_seconds("")
    assert seconds == sorted(seconds)
    assert {len(line) for line in output.split("\r") if line.startswith("Reading")} == {29}
    status.clear()
    status.show("Done")
    assert capsys.readouterr().err.endswith("\r\rDone")  # click removes the escape sequences


def test_long_step_outside_a_terminal_is_a_line_with_its_time_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_TICK_S", 0.001)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=itertools.count(100, 5).__next__))
    status, output = progress.StderrStatus(print_lines=True), ""

    def shown_lines() -> list[str]:
        nonlocal output
        output += capsys.readouterr().err
        return output.splitlines()

    with status.show_elapsed():
        status.show("Compiling")
        until(lambda: len(shown_lines()) > 1)
    assert all(re.fullmatch(r"Compiling \(\d+ s\)", line) for line in shown_lines())


def test_elapsed_time_is_not_shown_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    status = progress.StderrStatus()
    with status.show_elapsed():
        status.show("Measuring")
    assert capsys.readouterr().err == ""


def test_long_wait_outside_a_terminal_is_announced_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_WAIT_NOTICE_S", 0.01)
    notes: list[str] = []
    monkeypatch.setattr(progress, "echo_note", notes.append)
    status = progress.StderrStatus()
    with status.announce_wait():
        status.show("Testing the CPU backend")
        until(lambda: notes)
    monkeypatch.setattr(progress, "_WAIT_NOTICE_S", 60.0)
    with status.announce_wait():
        pass
    assert notes == ["edgechat: Testing the CPU backend"]
