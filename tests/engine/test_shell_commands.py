"""`do`, `explain` and `commit` with the starter model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli


@pytest.mark.slow
def test_do_without_a_terminal_runs_nothing_and_saves_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_STRICT", "true")  # so that both processes write the same command
    arguments = ("do", "-m", "starter", "remove all files in the folder")
    (tmp_path / "file").touch()
    result = cli(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("edgechat: Nothing was run, because there is no terminal")
    printed = cli(*arguments, "--print", cwd=tmp_path)
    assert printed.returncode == 0
    assert printed.stderr == "" or "Writing a command" in printed.stderr
    assert "\n".join(f"  {line}" for line in printed.stdout.splitlines()) in result.stdout
    assert (tmp_path / "file").exists()
    assert json.loads(cli("history", "list", "--json").stdout) == []


@pytest.mark.slow
def test_explain_reads_piped_text_and_is_saved(cli: Cli) -> None:
    result = cli("explain", "-m", "starter", "--max-tokens", "8", input="ls: cannot access 'x': No such file\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert len(json.loads(cli("history", "list", "--json").stdout)) == 1


@pytest.mark.slow
def test_commit_prints_a_message_for_the_staged_changes(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "hello.py").write_text("print('hello')\n")
    for arguments in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    result = cli("commit", "--print", "-m", "starter", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert len(result.stdout.splitlines()[0]) <= 72
