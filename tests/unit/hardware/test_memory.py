"""Available memory within cgroup limits, and memory of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgechat.hardware.memory import (
    count_memory_kills,
    is_process_running,
    read_cpu_time_s,
    read_memory,
    read_own_cpu_time_s,
    read_peak_pss_bytes,
    read_process_start_time,
    read_tree_pss_bytes,
)

MIB = 1 << 20


def test_available_memory_is_at_most_the_total() -> None:
    memory = read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups exist on Linux only")
@pytest.mark.parametrize("hierarchy", ["unified", "memory"])
def test_cgroup_limits_are_read_in_both_versions(tmp_path: Path, hierarchy: str) -> None:
    unified = hierarchy == "unified"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box/inner\n" if unified else "4:cpu:/\n9:memory:/box/inner\n")
    inner = tmp_path / "sys/fs/cgroup" / ("" if unified else "memory") / "box/inner"
    inner.mkdir(parents=True)
    limit, usage = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (inner / limit).write_text("max" if unified else str(1 << 62))
    (inner / usage).write_text("5000")
    (inner.parent / limit).write_text(str(256 * MIB))
    (inner.parent / usage).write_text(str(100 * MIB))
    (inner.parent / "memory.stat").write_text(f"{'' if unified else 'total_'}inactive_file {40 * MIB}\nodd\n")
    memory = read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (256 * MIB, 196 * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc exists on Linux only")
def test_memory_of_a_process_is_zero_after_it_ended() -> None:
    assert 0 < read_tree_pss_bytes(os.getpid()) <= read_memory().total_bytes
    assert read_peak_pss_bytes(os.getpid()) > 0
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert (read_tree_pss_bytes(child.pid), read_peak_pss_bytes(child.pid)) == (0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="descendants are included on Windows")
def test_own_cpu_time_needs_no_list_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "children", None)
    assert 0 < read_own_cpu_time_s(os.getpid()) < 1e6
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert read_own_cpu_time_s(child.pid) == 0.0
    monkeypatch.undo()
    assert read_cpu_time_s(os.getpid()) >= read_own_cpu_time_s(os.getpid()) - 1.0


def test_memory_kills_are_counted(tmp_path: Path) -> None:
    assert count_memory_kills(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\noom_kill 7\noom_kill_disable 1\n")
    assert count_memory_kills(tmp_path) == 7


def test_start_time_of_a_process_is_that_of_psutil() -> None:
    """Records of engines that another edgechat wrote with psutil stay valid."""
    started_at = read_process_start_time(os.getpid())
    assert is_process_running(os.getpid(), psutil.Process().create_time())
    assert is_process_running(os.getpid(), started_at)
    assert not is_process_running(os.getpid(), started_at - 10)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no zombie processes")
def test_ended_process_does_not_run_even_if_its_parent_has_not_read_its_exit_code() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started_at = read_process_start_time(child.pid)
        assert is_process_running(child.pid, started_at)
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_process_running(child.pid, started_at)
    assert not is_process_running(child.pid, started_at)
    assert read_process_start_time(child.pid) == 0.0
