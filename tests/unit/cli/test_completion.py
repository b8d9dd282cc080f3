"""Shell completion: scripts for three shells, and completions of the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.cli.options import complete_draft_model
from edgechat.store import open_store
from tests.conftest import Cli, edgechat_command
from tests.draft_models import make_eagle3, make_llama


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
    [
        ("edgechat as", {"ask"}),
        ("edgechat ask --te", {"--temperature"}),
        ("edgechat co", {"commit", "config", "completion"}),
    ],
)  # fmt: skip
def test_commands_and_options_are_completed(line: str, completions: set[str]) -> None:
    environment = os.environ | {
        "_EDGECHAT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
    }  # fmt: skip
    result = subprocess.run(edgechat_command(), env=environment, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in result.stdout.split()} == completions


@pytest.fixture(autouse=True)
def no_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the models that other programs of the user have installed."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)


def complete(line: str) -> list[str]:
    environment = os.environ | {
        "_EDGECHAT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")),
    }  # fmt: skip
    result = subprocess.run(edgechat_command(), env=environment, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in result.stdout.split()]


def test_drafters_are_installed_models_and_heads() -> None:
    """Neither models of the catalogue or of a remote, which cannot draft."""
    paths.models_dir().mkdir(parents=True)
    make_llama().write(paths.models_dir() / "small.gguf")
    make_eagle3().write(paths.models_dir() / "eagle.gguf")
    names = complete_draft_model(None, None, "")  # type: ignore[arg-type]
    assert [name for name in names if name != "starter"] == ["auto", "off", "eagle", "small"]
    assert complete_draft_model(None, None, "E") == ["eagle"]  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["ask -m", "-m", "plan -m", "models info"])
def test_installed_models_are_completed_first(command: str) -> None:
    names = complete(f"edgechat {command} ")
    assert names[0] == "starter"
    assert "qwen3.5-4b" in names
    assert names[1:] == sorted(names[1:])


@pytest.mark.slow
def test_conversation_ids_are_completed() -> None:
    store = open_store()
    for number, conversation_id in enumerate(("aaaa1111b", "bbbb1111c", "bbbb1111d")):
        message = Message(id=new_id(), role="user", text="Hi")
        store.append(Conversation(id=conversation_id * 3, title="T", created_at_ms=number), [message])
    store.close()
    for command in ("history show", "history delete", "history export", "ask --conversation"):
        assert complete(f"edgechat {command} ") == ["bbbb1111d" * 3, "bbbb1111c" * 3, "aaaa1111"]
    assert complete("edgechat history show aa") == ["aaaa1111"]
    assert complete("edgechat history show zz") == []
