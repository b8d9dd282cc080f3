"""Measured read speed of the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.hardware.disk_speed import measure_disk_speed


def test_read_speed_of_a_file_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    assert measure_disk_speed(tmp_path / "file") >= 0


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        measure_disk_speed(tmp_path / "none")
