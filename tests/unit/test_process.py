"""Child processes after edgechat's files were replaced or removed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgechat import process
from edgechat.engine.pipe import spawn_child
from edgechat.errors import EngineDiedError, TemplateError
from edgechat.prompt.renderer import PLAIN_TEMPLATE, Renderer
from tests.waiting import until


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


@pytest.mark.parametrize("is_killed", [False, True])
def test_child_ends_with_its_parent_although_native_code_computes(*, is_killed: bool) -> None:
    """The native code is a sleep without the GIL, in a process whose parent ends."""
    child = "from edgechat import process; import time; process.end_with_parent(); print(1, flush=True); time.sleep(99)"
    parent = (
        "import subprocess, sys, os\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.read(1)\nprint(child.pid, flush=True)\nsys.stdin.read()\nos._exit(0)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process_:
        assert process_.stdin is not None
        assert process_.stdout is not None
        pid = int(process_.stdout.readline())
        assert psutil.pid_exists(pid)
        if is_killed:
            process_.kill()
        else:
            process_.stdin.close()
        process_.wait()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
