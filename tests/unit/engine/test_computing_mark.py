"""The mark by which engines see each other compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.engine.computing_mark import ComputingMark

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no shared locks")


def test_marks_of_others_are_seen_while_they_compute(tmp_path: Path) -> None:
    first, second, third = (ComputingMark(tmp_path / "new" / "mark") for _ in range(3))
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert not first.is_set_by_others()
    second.set(True)
    third.set(True)
    assert first.is_set_by_others()
    second.set(False)
    assert first.is_set_by_others()
    third.close()
    assert not first.is_set_by_others()
    first.set(True)
    assert second.is_set_by_others()


def test_mark_of_a_killed_process_disappears(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom edgechat.engine.computing_mark import ComputingMark\n"
        "mark = ComputingMark(Path(sys.argv[1]))\nmark.set(True)\nprint(1, flush=True)\ntime.sleep(600)"
    )
    mark = ComputingMark(tmp_path / "mark")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "mark")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert mark.is_set_by_others()
        process.kill()
    assert not mark.is_set_by_others()


def test_without_a_file_nobody_else_computes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (None, tmp_path / "link", tmp_path):
        mark = ComputingMark(path)
        mark.set(True)
        mark.set(False)
        assert not mark.is_set_by_others()
        mark.close()
