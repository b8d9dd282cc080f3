"""`edgechat commit`: the staged diff and its limits, the message, and git's editor, errors and exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from edgechat.cli import commit as commit_module
from edgechat.cli import staged_diff, structured_reply
from edgechat.cli.commit import format_message, make_request
from edgechat.cli.progress import StderrStatus
from edgechat.cli.root import edgechat
from edgechat.cli.staged_diff import StagedChanges, StagedDiff, cut_diff, read_earlier_subjects, read_staged_changes
from edgechat.errors import EngineError, UsageError
from edgechat.terminal import escape_controls
from tests.conftest import Cli


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty repository, which is the current folder."""
    for name, value in (
        ("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null"), ("GIT_AUTHOR_NAME", "A"),
        ("GIT_AUTHOR_EMAIL", "a@example.org"), ("GIT_COMMITTER_NAME", "A"), ("GIT_COMMITTER_EMAIL", "a@example.org"),
        ("GIT_CEILING_DIRECTORIES", str(tmp_path)),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.chdir(folder)
    git("init", "-q")
    return folder


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def read_diff(max_chars: int = 12_000) -> StagedDiff:
    return cut_diff(read_staged_changes(), max_chars)


def stage(folder: Path, name: str, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    git("add", name)


def run(fields: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run `edgechat commit` in a terminal, with the fields of a reply; return the exit code."""
    monkeypatch.setattr(structured_reply, "generate_fields", lambda *_, **__: fields)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = edgechat.main(["commit", "-m", "starter"], standalone_mode=False)
    return result if isinstance(result, int) else 0


def test_nothing_staged_is_one_sentence(repository: Path, cli: Cli) -> None:
    (repository / "a").write_text("x")
    result = cli("commit", "--print")
    assert (result.returncode, result.stderr) == (
        2, "edgechat: Nothing is staged: stage the changes with `git add` first.\n"
    )  # fmt: skip


def test_errors_of_git_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UsageError, match="not a git repository"):
        read_diff()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="Cannot run git"):
        read_diff()


def test_without_a_terminal_nothing_is_committed(repository: Path, cli: Cli) -> None:
    stage(repository, "a", "x")
    result = cli("commit")
    assert (result.returncode, result.stderr) == (
        2, "edgechat: git's editor needs a terminal. --print prints only the message.\n"
    )  # fmt: skip


def test_diff_does_not_depend_on_the_settings_of_the_user(repository: Path) -> None:
    git("config", "color.ui", "always")
    git("config", "diff.external", "false")
    git("config", "diff.noprefix", "true")
    git("config", "core.pager", "false")
    stage(repository, "a.txt", "one\ntwo\n")
    stage(repository, "b.bin", bytes(range(256)))
    diff = read_diff()
    assert diff.text.startswith("Changed files:\nA a.txt\nA b.bin\n\ndiff --git ")
    assert "+one\n+two" in diff.text
    assert "\x1b" not in diff.text
    assert diff.note == ""
    assert read_earlier_subjects() == []
    git("commit", "-qm", "first: add two files")
    assert read_earlier_subjects() == ["first: add two files"]


def test_long_diff_is_cut_per_file_and_says_so(repository: Path) -> None:
    stage(repository, "long.txt", "".join(f"line {i}\n" for i in range(20_000)))
    stage(repository, "short.txt", "short\n")
    stage(repository, "wide.txt", "w" * 50_000)
    diff = read_diff()
    assert len(diff.text) < 12_500
    assert "+line 1\n" in diff.text
    assert "more lines of this file]" in diff.text
    assert "+short" in diff.text
    assert "The model reads 12,000 of them: 2 of 3 files are cut." in diff.note


def test_huge_output_of_git_is_not_read_to_its_end(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_diff, "_MAX_READ_BYTES", 1000)
    stage(repository, "a.txt", "x\n" * 500_000)
    stage(repository, "b.txt", "y\n")
    diff = read_diff()
    assert "A b.txt" in diff.text
    assert ": 1 of 2 files is cut." in diff.note


@hypothesis.given(st.lists(st.integers(0, 400), max_size=40), st.integers(100, 4000))
def test_cut_diff_has_the_requested_length(lengths: list[int], max_chars: int) -> None:
    parts = [f"diff --git a/{i} b/{i}\n" + "+x\n" * n for i, n in enumerate(lengths)]
    diff = cut_diff(StagedChanges("".join(parts), [f"M\t{i}" for i in range(len(lengths))]), max_chars)
    body = diff.text.partition("\n\n")[2]
    notes = [line for line in body.splitlines() if line.startswith("[")]
    assert len(body) <= max_chars + len(parts) + sum(len(note) + 1 for note in notes)
    total = sum(map(len, parts))
    assert bool(diff.note) == (total > max_chars)
    if total <= max_chars:
        assert body == "".join(parts).rstrip("\n")


@hypothesis.given(st.text(max_size=200), st.text(max_size=900))
def test_message_has_lines_that_git_and_terminals_show(subject: str, body: str) -> None:
    try:
        message = format_message(subject, body)
    except EngineError:
        assert not escape_controls(subject).strip().strip("# \t\n")
        return
    lines = message.split("\n")
    assert lines[0].strip()
    assert len(lines) == 1 or lines[1] == ""
    assert not any(line.startswith("#") for line in lines)
    assert escape_controls(message) == message


def test_message_is_wrapped_at_72_columns() -> None:
    message = format_message("# Add  a\nfile", "word " * 60 + "\n\n# comment\nend")
    assert message.startswith("Add a file\n\nword word")
    assert max(map(len, message.split("\n"))) <= 72
    assert message.endswith("\ncomment\nend")


def test_requests_get_shorter_and_each_cut_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    changes = StagedChanges("diff --git a/x b/x\n" + "+1\n" * 9000, ["M\tx"])
    lengths = [len(request) for request in commit_module._make_requests(changes, [], StderrStatus())]
    assert lengths == sorted(lengths, reverse=True)
    assert capsys.readouterr().err.count("1 of 1 file is cut.") == len(lengths) == 3


def test_request_has_earlier_subjects_before_the_diff() -> None:
    assert make_request("D", []).startswith("D\n")
    assert make_request("D", ["a: b"]).index("a: b") < make_request("D", ["a: b"]).index("D\n")


def test_message_is_opened_in_the_editor_of_git(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stage(repository, "a", "x")
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/seen\nprintf "edited\\n" > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("GIT_EDITOR", str(editor))
    assert run({"subject": "Add a", "body": "Why."}, monkeypatch) == 0
    assert (tmp_path / "seen").read_text().startswith("Add a\n\nWhy.\n")
    assert git("log", "--format=%B").strip() == "edited"


@pytest.mark.parametrize("cause", ["empty message", "hook", "editor"])
def test_refusal_of_git_has_its_exit_code(
    cause: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stage(repository, "a", "x")
    monkeypatch.setenv("GIT_EDITOR", "true")
    if cause == "hook":
        hook = repository / ".git" / "hooks" / "commit-msg"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\necho refused by the hook >&2\nexit 7\n")
        hook.chmod(0o755)
    elif cause == "editor":
        monkeypatch.setenv("GIT_EDITOR", "false")
    else:
        monkeypatch.setenv("GIT_EDITOR", "sh -c ': > \"$1\"' -")
    assert run({"subject": "Add a", "body": ""}, monkeypatch) == 1
    error = capfd.readouterr().err
    messages = {"hook": "refused by the hook", "editor": "problem with the editor", "empty message": "empty"}
    assert messages[cause] in error
    assert "A  a" in git("status", "--porcelain")
