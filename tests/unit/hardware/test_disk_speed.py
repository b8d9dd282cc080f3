"""Measured read speed of the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgechat.hardware.disk_speed import measure_disk_speed


def test_read_speed_of_a_file_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    assert measure_disk_speed(tmp_path / "file") >= 0


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the page cache cannot be bypassed")
def test_pause_while_reading_does_not_lower_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(4 << 20))
    seconds = iter([0.0, 60.0, 60.0, 60.001, 61.0, 61.002, 62.0, 62.002])  # one part takes a minute
    monkeypatch.setattr(time, "perf_counter", seconds.__next__)
    assert measure_disk_speed(tmp_path / "file") == pytest.approx((1 << 20) / 0.001)


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        measure_disk_speed(tmp_path / "none")
