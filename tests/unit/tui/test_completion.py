"""Shell completion: scripts for three shells, and what they ask the program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli, edgechat_command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_that_the_shell_accepts(cli: Cli, shell: str, tmp_path: Path) -> None:
    result = cli("completion", shell)
    assert result.returncode == 0
    assert "_EDGECHAT_COMPLETE" in result.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(result.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("edgechat as", {"ask"}), ("edgechat ask --te", {"--temperature"}), ("edgechat co", {"config", "completion"})],
)
def test_words_are_completed(words: str, expected: set[str]) -> None:
    environment = os.environ | {
        "_EDGECHAT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
    }  # fmt: skip
    found = subprocess.run(edgechat_command(), env=environment, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in found.stdout.split()} == expected
