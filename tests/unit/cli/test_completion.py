"""Shell completion: scripts for three shells, and completions of the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli, edgechat_command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_accepts_its_completion_script(cli: Cli, shell: str, tmp_path: Path) -> None:
    result = cli("completion", shell)
    assert result.returncode == 0
    assert "_EDGECHAT_COMPLETE" in result.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(result.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("line", "completions"),
    [("edgechat as", {"ask"}), ("edgechat ask --te", {"--temperature"}), ("edgechat co", {"config", "completion"})],
)
def test_commands_and_options_are_completed(line: str, completions: set[str]) -> None:
    environment = os.environ | {
        "_EDGECHAT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
    }  # fmt: skip
    result = subprocess.run(edgechat_command(), env=environment, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in result.stdout.split()} == completions
