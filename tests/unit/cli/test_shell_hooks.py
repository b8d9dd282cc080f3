"""Hooks and key bindings of shells: what `edgechat explain` learns from the shell, and what other programs do not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgechat.cli.shell_hooks import MAX_COMMAND_CHARS, make_script
from tests.conftest import Cli

# Stands in for edgechat: it prints its arguments and what the hook passes on.
FAKE = '#!/bin/sh\necho "ARGS $*|$EDGECHAT_LAST_COMMAND|$EDGECHAT_LAST_STATUS"\n'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a shell that finds the fake program."""
    program = tmp_path / "bin" / "edgechat"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    return os.environ | {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path),
        "HISTFILE": str(tmp_path / "history"),
    }  # fmt: skip


def run(shell: str, lines: list[str], environment: dict[str, str], folder: Path) -> list[str]:
    """Run lines in an interactive shell with the hook; return the output of the fake program."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    settings = folder / ".zshrc"
    settings.write_text(make_script(shell, hook=True, keys=False))
    arguments = ["--rcfile", str(settings)] if shell == "bash" else []
    result = subprocess.run(
        [shell, *arguments, "-i"], input="\n".join([*lines, ""]), env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return [line[line.index("ARGS ") :] for line in result.stdout.splitlines() if "ARGS " in line]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_last_command_and_its_exit_code_are_passed_to_explain_only(
    shell: str, environment: dict[str, str], tmp_path: Path
) -> None:
    lines = [
        "edgechat explain", "true | (exit 3)", "edgechat explain why", "edgechat explain again", "edgechat ask",
        "echo a; false", "edgechat explain", f"true {'x' * 9000}", "edgechat explain",
    ]  # fmt: skip
    none, first, again, other, second, long = run(shell, lines, environment, tmp_path)
    assert none == "ARGS explain||"
    assert first == "ARGS explain why|true | (exit 3)|3"
    assert again == "ARGS explain again|true | (exit 3)|3"  # an explanation is not explained
    assert other == "ARGS ask||"
    assert second == "ARGS explain|echo a; false|1"
    assert long == f"ARGS explain|{lines[7][:MAX_COMMAND_CHARS]}|0"


@pytest.mark.parametrize(
    ("control", "lines", "expected"),
    [
        # A repeated command takes the number of the newest entry, because its earlier entry is deleted.
        ("erasedups", ["false", "true", "false"], "false|1"),
        ("erasedups", ["false", "edgechat explain", "true", "edgechat explain", "false"], "false|1"),
        ("erasedups", ["F=3", "(exit $F)", "F=4", "(exit $F)"], "(exit $F)|4"),
        ("ignoredups", ["F=3", "(exit $F)", " F=4", "(exit $F)"], "(exit $F)|4"),
        ("ignoredups", ["F() { return $((++N)); }", "F", "F"], "F|2"),
        ("ignorespace", ["true", " false"], "true|0"),
        ("ignorespace:erasedups", ["(exit 5)", "true", "(exit 5)", ""], "(exit 5)|5"),
        # The same command again and one that is not in the history look the same, so that the exit code is unknown.
        ("ignoreboth", ["true", " false"], "true|"),
        ("ignoreboth", ["true", " true"], "true|0"),
        ("", ["false", " true"], " true|0"),
    ],
)  # fmt: skip
def test_last_command_of_bash_is_right_with_a_shortened_history(
    control: str, lines: list[str], expected: str, environment: dict[str, str], tmp_path: Path
) -> None:
    setting = f"HISTCONTROL={control}"
    *_, last = run("bash", [setting, *lines, "edgechat explain"], environment, tmp_path)
    assert last == f"ARGS explain|{expected}"


def test_first_command_without_a_history_is_remembered(environment: dict[str, str], tmp_path: Path) -> None:
    assert run("bash", ["(exit 3)", "edgechat explain"], environment, tmp_path) == ["ARGS explain|(exit 3)|3"]


def test_newest_entry_of_an_earlier_shell_is_not_the_last_command(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "history").write_text("false\n")
    assert run("bash", ["edgechat explain"], environment, tmp_path) == ["ARGS explain||"]


def test_hook_of_bash_keeps_the_exit_code_and_other_prompt_commands(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bin" / "edgechat").write_text("#!/bin/sh\n")
    lines = ["PROMPT_COMMAND+='; echo \"ARGS $?\"'", "(exit 5)", "true"]
    assert run("bash", lines, environment, tmp_path)[1:] == ["ARGS 5", "ARGS 0"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("options", [["--hook"], ["--keys"], ["--hook", "--keys"]])
def test_each_shell_accepts_its_scripts(cli: Cli, shell: str, options: list[str], tmp_path: Path) -> None:
    result = cli("completion", *options, shell)
    assert result.returncode == 0, result.stderr
    assert ("explain" in result.stdout) == ("--hook" in options)
    assert ("do --print" in result.stdout) == ("--keys" in options)
    assert "_EDGECHAT_COMPLETE" not in result.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(result.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)
