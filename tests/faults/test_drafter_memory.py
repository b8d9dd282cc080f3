"""Model drafters for which the memory of the process does not suffice: replies go on without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.planner.drafter_plan import DrafterKind
from tests.conftest import ROOT
from tests.engine.test_model_drafter import DRAFTERS

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the data segment and /proc"),
    pytest.mark.usefixtures("warm"),
]  # fmt: skip
# Without dynamic thresholds, large buffers of malloc are always new mappings, which the limit counts.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(ROOT)}

# An assistant has no cells, and needs so little that memory would have to run out where llama.cpp ends the process: the
# engine then starts again without it, as after other crashes.
_WITH_CELLS = tuple(kind for kind in DRAFTERS if kind != "assistant")


def exhaust(kind: DrafterKind, when: str, folder: Path) -> tuple[str, str]:
    """Run the program `exhausted_drafter`; return the error of the drafter, and what the engine's log says."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults.exhausted_drafter", kind, when, str(folder)],
        env=os.environ | _ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


@pytest.mark.parametrize("kind", _WITH_CELLS)
def test_memory_runs_out_when_a_drafter_is_opened(kind: DrafterKind, tmp_path: Path) -> None:
    """The model is loaded without the drafter, and one sentence says so."""
    error, log = exhaust(kind, "open", tmp_path)
    assert error
    assert log.count(f"Decoding without the drafter: {error}") == 1


@pytest.mark.parametrize("kind", _WITH_CELLS)
def test_memory_runs_out_when_a_drafter_is_woken(kind: DrafterKind, tmp_path: Path) -> None:
    """It sleeps on until its next trial, which is no failure."""
    error, log = exhaust(kind, "wake", tmp_path)
    assert not error
    assert "Decoding without" not in log


@pytest.mark.parametrize("n_free", [0, 1 << 14])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_memory_runs_out_in_a_draft(kind: DrafterKind, n_free: int, tmp_path: Path) -> None:
    error, log = exhaust(kind, f"draft {n_free}", tmp_path)
    assert "memory may have run out" in error
    assert log.count(f"Decoding without the drafter: {error}") == 1
