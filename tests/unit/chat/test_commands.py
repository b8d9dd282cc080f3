"""Slash commands: what is one, what is not, and that every screen knows them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.chat.commands import COMMANDS, mentioned_files, parse, parse_reasoning
from edgechat.cli.plain_chat import PlainChat
from edgechat.errors import UsageError
from edgechat.tui.actions import Actions
from edgechat.tui.completion import complete, is_begun


def test_what_is_a_command_and_what_a_message() -> None:
    assert parse("/new") == ("new", "")
    assert parse("/RENAME  A title \n") == ("rename", "A title")
    assert parse("/edit one\ntwo") == ("edit", "one\ntwo")
    for message in ("hello", " /new", "/etc/passwd is what?", "/", "// comment", "/1", "a\n/new"):
        assert parse(message) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [("/nwe", "did you mean /new"), ("/zzz", "/help"), ("/search", "/search WORDS"), ("/retry now", "takes nothing")],
)
def test_a_wrong_command_is_said(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text)


@pytest.mark.parametrize("kind", [Actions, PlainChat])
def test_every_screen_knows_every_command(kind: type) -> None:
    for command in COMMANDS:
        assert callable(getattr(kind, f"do_{command.name}")), command.name
    known = {name.removeprefix("do_") for name in dir(kind) if name.startswith("do_")}
    assert known == {command.name for command in COMMANDS}


@given(st.text())
def test_any_text_is_a_message_a_command_or_an_error(text: str) -> None:
    try:
        parsed = parse(text)
    except UsageError:
        return
    assert parsed is None or parsed[0] in {c.name for c in COMMANDS}


def test_files_after_an_at() -> None:
    assert mentioned_files('see @a.txt and @"b c.txt", not x@y.org; @a.txt') == ["a.txt", "b c.txt"]
    assert mentioned_files("@") == []


def test_truth() -> None:
    assert [parse_reasoning(word) for word in ("on", "OFF", "auto")] == [True, False, None]
    with pytest.raises(UsageError, match="maybe"):
        parse_reasoning("maybe")


def test_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "new plan.md").write_text("x")
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "deep.py").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "n\x1bx").write_text("x")
    assert [c.text for c in complete("/re", tmp_path)] == ["/retry", "/rename ", "/reasoning "]
    assert [c.text for c in complete("see @n", tmp_path)] == ["@nested/", '@"new plan.md" ', "@notes.md "]
    assert [(c.text, c.n_chars) for c in complete("@nested/d", tmp_path)] == [("@nested/deep.py ", 9)]
    assert [c.text for c in complete("/attach no", tmp_path)] == ["notes.md"]
    assert [c.text for c in complete("/set temp", tmp_path)] == ["temperature"]
    assert complete("@nowhere/x", tmp_path) == []
    assert [c.text for c in complete("@.h", tmp_path)] == ["@.hidden "]


@pytest.mark.parametrize(
    ("before", "begun"),
    [("/", True), ("/re", True), ("/set te", True), ("a @b", True), ("a\n@", True), ("a", False), ("a/b", False), ("x@y", False), ("a\n/re", False)],
)  # fmt: skip
def test_when_something_is_offered(before: str, *, begun: bool) -> None:
    assert is_begun(before) is begun
