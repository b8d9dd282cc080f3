"""Memory that this process can allocate: within cgroup limits, and without the pages that it has mapped."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from edgechat.hardware.free_memory import read_free_memory
from edgechat.hardware.memory import read_memory

MIB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and cgroups exist on Linux only")


def write_group(root: Path, *, unified: bool, limit: int, usage: int, inactive: int, active: int) -> None:
    """Write the files of a control group of this process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/box\n" if unified else "4:memory:/box\n")
    group = root / "sys/fs/cgroup" / ("" if unified else "memory") / "box"
    group.mkdir(parents=True)
    names = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, usage), strict=True):
        (group / name).write_text(f"{value}\n")
    prefix = "" if unified else "total_"
    (group / "memory.stat").write_text(f"{prefix}inactive_file {inactive}\n{prefix}active_file {active}\nodd\n")
    (group / "memory.pressure").write_text(
        "some avg10=20.00 avg60=1.00 avg300=0.10 total=9\nfull avg10=12.50 avg60=1.00 avg300=0.10 total=5\n"
    )


@pytest.mark.parametrize("unified", [True, False])
def test_pages_that_this_process_maps_are_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, unified: bool
) -> None:
    own = psutil.Process().memory_info()._replace(shared=60 * MIB)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _process: own)
    write_group(tmp_path, unified=unified, limit=256 * MIB, usage=200 * MIB, inactive=80 * MIB, active=20 * MIB)
    memory = read_free_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (256 * MIB, (256 - 200 + 40) * MIB)
    assert memory.stall_percent == 12.5


def test_soft_limit_of_a_group_counts_if_it_is_lower(tmp_path: Path) -> None:
    write_group(tmp_path, unified=True, limit=256 * MIB, usage=100 * MIB, inactive=0, active=0)
    high = tmp_path / "sys/fs/cgroup/box/memory.high"
    for text, limit in ((f"{200 * MIB}\n", 200), ("max\n", 256), (f"{400 * MIB}\n", 256)):
        high.write_text(text)
        memory = read_free_memory(tmp_path)
        assert (memory.total_bytes, memory.available_bytes) == (limit * MIB, (limit - 100) * MIB)


def test_stalls_of_a_group_without_a_limit_count(tmp_path: Path) -> None:
    write_group(tmp_path, unified=True, limit=1, usage=0, inactive=0, active=0)
    (tmp_path / "sys/fs/cgroup/box/memory.max").write_text("max\n")
    assert read_free_memory(tmp_path).stall_percent == 12.5


def test_unlimited_group_has_the_memory_of_the_machine(tmp_path: Path) -> None:
    write_group(tmp_path, unified=True, limit=1 << 62, usage=200 * MIB, inactive=0, active=0)
    memory = read_free_memory(tmp_path)
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_free_memory_is_at_most_the_available_memory() -> None:
    available_bytes = read_memory().available_bytes
    assert 0 < read_free_memory().available_bytes <= available_bytes + 64 * MIB


def test_data_limit_counts_what_the_process_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import resource

    own = psutil.Process().memory_info()._replace(data=300 * MIB)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _process: own)
    limits = {resource.RLIMIT_DATA: 400 * MIB}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY), -1))
    assert read_free_memory(tmp_path).available_bytes == 100 * MIB


def test_damaged_pressure_files_count_as_no_stall(tmp_path: Path) -> None:
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/pressure/memory").write_text("full avg10=x avg60\nfull\n")
    assert read_free_memory(tmp_path).stall_percent == 0.0
