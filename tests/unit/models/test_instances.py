"""Memory reserved by other edgechat processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from edgechat import paths
from edgechat.config import Settings
from edgechat.models import instances
from edgechat.models.resources import current_machine


def test_mapped_pages_of_another_engine_are_not_available(starter: Path) -> None:
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


def test_record_keeps_its_field_names_on_disk(starter: Path) -> None:
    instances.register(1, str(starter), 5)
    record = msgspec.json.decode((paths.instances_dir() / "1.json").read_bytes())
    assert set(record) == {"pid", "started_s", "model_path", "total_bytes"}
    instances.unregister(1)
    assert list(paths.instances_dir().iterdir()) == []
