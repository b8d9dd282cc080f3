"""Tests of `hardware.windows_cores`, with records as Windows returns them."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from edgechat.hardware import windows_cores
from edgechat.hardware.cpu import count_cores_by_speed

if TYPE_CHECKING:
    import pytest


def record(relationship: int, efficiency_class: int, size: int = 48) -> bytes:
    return struct.pack("<IIBB", relationship, size, 1, efficiency_class).ljust(size, b"\0")


def test_cores_are_counted_by_class() -> None:
    records = b"".join([*[record(0, 1)] * 4, *[record(0, 0)] * 8, record(3, 7)])
    assert windows_cores.parse_cores(records) == (4, 8)
    assert windows_cores.parse_cores(record(0, 0) * 6) == (6,)
    assert windows_cores.parse_cores(b"") == ()
    assert windows_cores.parse_cores(record(0, 1)[:4] + bytes(44)) == ()


@given(st.binary(max_size=300))
def test_damaged_records_end(records: bytes) -> None:
    assert sum(windows_cores.parse_cores(records)) <= 30


def test_thread_counts_follow_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(windows_cores, "count_cores_by_efficiency_class", lambda: (6, 8))
    assert count_cores_by_speed() == (6, 8)
