"""Records of drafters with which the engine died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import edgechat
from edgechat import paths
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime import drafter_crashes
from edgechat.runtime.drafter_crashes import find_crash, list_crashes, record_crash


@pytest.fixture(autouse=True)
def no_records() -> Iterator[None]:
    drafter_crashes._unsaved_records.clear()
    yield
    drafter_crashes._unsaved_records.clear()


def test_crash_belongs_to_a_drafter_with_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, other, draft = (str(tmp_path / name) for name in ("target.gguf", "other.gguf", "my draft.gguf"))
    for path in (target, other, draft):
        Path(path).write_bytes(b"1")
    record_crash(target, DrafterPlan(kind="draft-model", model_path=draft), "SIGSEGV")
    record_crash(target, DrafterPlan(kind="mtp"), "SIGABRT")
    drafter_crashes._unsaved_records.clear()  # as in a new process
    assert find_crash(target, "draft-model", draft) == "SIGSEGV"
    assert find_crash(target, "mtp") == "SIGABRT"
    assert not find_crash(other, "draft-model", draft)
    assert not find_crash(target, "eagle3", draft)
    assert list_crashes(target) == {"my draft.gguf": "SIGSEGV", "MTP heads": "SIGABRT"}
    record_crash(other, DrafterPlan(kind="eagle3", model_path=str(tmp_path / "missing.gguf")), "SIGBUS")
    assert list_crashes(other) == {"missing.gguf": "SIGBUS"}
    monkeypatch.setattr(edgechat, "__version__", "99.0")
    assert not find_crash(target, "mtp")
    monkeypatch.undo()
    Path(draft).write_bytes(b"another version")
    assert not find_crash(target, "draft-model", draft)


def test_record_that_cannot_be_saved_is_remembered(tmp_path: Path) -> None:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    paths.drafter_crashes_file().mkdir()  # no file can be written in its place
    record_crash(str(tmp_path / "target.gguf"), DrafterPlan(kind="mtp"), "SIGSEGV")
    assert find_crash(str(tmp_path / "target.gguf"), "mtp") == "SIGSEGV"


def test_damaged_file_counts_as_empty_and_records_are_cleared(tmp_path: Path) -> None:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    paths.drafter_crashes_file().write_text("[1")
    target = str(tmp_path / "target.gguf")
    assert not find_crash(target, "mtp")
    record_crash(target, DrafterPlan(kind="mtp"), "SIGSEGV")
    drafter_crashes.clear()
    assert not find_crash(target, "mtp")
