"""Child processes after edgechat's files were replaced or removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgechat import process
from edgechat.engine.pipe import spawn_child
from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt.renderer import PLAIN_TEMPLATE, Renderer


def test_child_of_another_version_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "__version__", "0.0.9")
    for command in process.HIDDEN_COMMANDS:
        run = subprocess.run(process.make_command_line(command), check=False)
        assert run.returncode == process.EXIT_VERSION_CHANGED
    renderer = Renderer()
    with pytest.raises(TemplateError, match="was upgraded while it was running"):
        renderer.render(PLAIN_TEMPLATE, [], bos="", eos="", control_tokens=[])


def test_error_names_a_removed_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineDiedError, match="If edgechat was uninstalled"):
        spawn_child(["_engine"], subprocess.DEVNULL)
