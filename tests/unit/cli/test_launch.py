"""The command `edgechat launch`: its list of agents, and invalid arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgechat.cli.launch import _format_flags, launch
from edgechat.cli.serve import make_api_name
from edgechat.errors import AgentNotFoundError, UsageError
from edgechat.launch.agents import AGENTS
from tests.conftest import Cli


@pytest.fixture(autouse=True)
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let no agent of the user be found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_list_shows_whether_each_agent_is_installed(user_home: Path) -> None:
    program = user_home / "bin" / "codex"
    program.parent.mkdir()
    program.touch(mode=0o755)
    result = CliRunner().invoke(launch, ["--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)["agents"]}
    assert list(rows) == list(AGENTS)
    assert rows["codex"]["program"] == str(program)
    assert [name for name, row in rows.items() if row["is_installed"]] == ["codex"]
    text = CliRunner().invoke(launch, []).stdout
    assert f"codex     Codex         {program}\n" in text
    assert "claude    Claude Code   not installed\n" in text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["claude"], AgentNotFoundError, "Claude Code is not installed"),
        (["claude", "--json"], UsageError, "--json needs --print"),
        (["claude", "--server", "localhost"], AgentNotFoundError, "not installed"),
        (["claude", "--print", "--server", "localhost"], UsageError, "'localhost' is not the address of a server"),
        (["claude", "--print", "--server", "http://h", "--ctx", "4096"], UsageError, "no effect with --server"),
    ],
)
def test_invalid_arguments(arguments: list[str], error: type[Exception], message: str) -> None:
    result = CliRunner().invoke(launch, arguments)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_unknown_agent_is_an_error_with_the_names() -> None:
    result = CliRunner().invoke(launch, ["cursor"])
    assert result.exit_code == 2
    assert "'aider', 'claude', 'codex'" in result.stderr


def test_options_reach_the_server() -> None:
    flags = {"n_ctx": 4096, "max_tokens": None, "reasoning": False, "speculation": True, "budget": "4GB", "top_p": 0.5}
    expected = ["--ctx=4096", "--no-reasoning", "--speculation", "--budget=4GB", "--top-p=0.5"]
    assert list(_format_flags(flags)) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("/models/Qwen-0.5B-Q4_K_M.gguf", "Qwen-0.5B-Q4_K_M"), ("q:4b", "q:4b")]
)
def test_file_is_named_without_its_folder(name: str, expected: str) -> None:
    assert make_api_name(name) == expected


def test_context_can_be_longer_than_the_training_length(cli: Cli) -> None:
    result = cli("launch", "claude", "-m", "starter", "--ctx", "24576", "--print", "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert (printed["n_ctx"], printed["agents"][0]["fits"]) == (24_576, True)
