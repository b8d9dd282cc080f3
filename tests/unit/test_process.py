"""Children of a program whose files were replaced or removed while it ran."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgechat import process
from edgechat.engine.pipe import spawn_child
from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt.renderer import PLAIN_TEMPLATE, Renderer


def test_a_child_of_another_version_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "__version__", "0.0.9")
    for word in process.HIDDEN_COMMANDS:
        assert subprocess.run(process.command_line(word), check=False).returncode == process.EXIT_VERSION_CHANGED
    renderer = Renderer()
    with pytest.raises(TemplateError, match="was upgraded while this one ran"):
        renderer.render(PLAIN_TEMPLATE, [], bos="", eos="", control_tokens=[])


def test_a_program_that_was_removed_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(EngineDiedError, match="Was edgechat removed"):
        spawn_child(["_engine"], subprocess.DEVNULL)
