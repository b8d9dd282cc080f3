"""What llama.cpp does with files of heads that are damaged or do not fit: it ends the process for those on the list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hostile_heads import HOSTILE_PAIRS, PAIRS_THAT_END_LLAMA

_SCRIPT = """
import sys
from pathlib import Path
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import load
from tests.engine.reference_drafters import ReferenceRun
from tests.hostile_heads import HOSTILE_PAIRS

name = sys.argv[1]
bundle = find_bundle()
native = load(bundle, probe.choose_module(bundle)[0])
target, draft = HOSTILE_PAIRS[name](Path(sys.argv[2]))
kind = "mtp" if draft is None else "eagle3" if name.startswith("EAGLE") else "assistant"
with ReferenceRun(native, target, kind, draft) as reference:
    reference.generate([1, 60, 61, 62], 30)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="an abort has another exit code there")
@pytest.mark.parametrize("name", HOSTILE_PAIRS)
def test_list_of_files_with_which_llama_ends_the_process(name: str, tmp_path: Path) -> None:
    """The list says which files edgechat must refuse itself. A change of the pinned version can change it."""
    command = [sys.executable, "-c", _SCRIPT, name, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT, check=False)
    assert (result.returncode < 0) == (name in PAIRS_THAT_END_LLAMA), result.stderr[-2000:]
