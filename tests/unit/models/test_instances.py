"""Memory reserved by other edgechat processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgechat import paths
from edgechat.config import Settings
from edgechat.hardware.free_memory import FreeMemory
from edgechat.models import instances, resources
from edgechat.models.resources import current_machine

if TYPE_CHECKING:
    import pytest


def test_mapped_pages_of_another_engine_are_not_available(starter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FreeMemory(total_bytes=64 << 30, available_bytes=32 << 30)  # that of the machine changes meanwhile
    monkeypatch.setattr(resources, "read_memory", lambda: memory)
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        before = current_machine(Settings()).available_bytes
        instances.register(child.pid, str(starter), 2 << 30)
        assert before - current_machine(Settings()).available_bytes > 1 << 30
        # Processes that map the same file share its pages.
        assert before - current_machine(Settings(), str(starter)).available_bytes < 1 << 30
    finally:
        child.communicate(b"")
    assert instances.other_instances() == []
    assert list(paths.instances_dir().iterdir()) == []


def test_mapped_weights_stay_reserved_after_the_context_has_grown(starter: Path) -> None:
    own_bytes = 1 << 20  # this process uses more, as an engine does whose context has grown beyond its plan
    instances.register(os.getpid(), str(starter), (1 << 30) + own_bytes, mapped_bytes=1 << 30)
    path = paths.instances_dir() / f"{os.getpid()}.json"
    record = msgspec.json.decode(path.read_bytes(), type=instances.RunningInstance)
    assert record.reserved_bytes == 1 << 30
    instances.unregister(os.getpid())


def test_records_without_mapped_bytes_are_readable() -> None:
    text = b'{"pid":1,"started_s":2.5,"model_path":"a.gguf","total_bytes":5}'
    assert msgspec.json.decode(text, type=instances.RunningInstance).mapped_bytes == 0


def test_record_keeps_its_field_names_on_disk(starter: Path) -> None:
    instances.register(1, str(starter), 5)
    record = msgspec.json.decode((paths.instances_dir() / "1.json").read_bytes())
    assert set(record) == {"pid", "started_s", "model_path", "total_bytes", "mapped_bytes"}
    instances.unregister(1)
    assert list(paths.instances_dir().iterdir()) == []
