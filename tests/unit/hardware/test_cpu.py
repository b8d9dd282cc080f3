"""Processor properties from /proc, /sys and cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.hardware import cpu as cpu_module
from edgechat.hardware.cpu import (
    candidate_thread_counts,
    count_cores_by_speed,
    count_usable_threads,
    parse_cpu_max,
    parse_cpuinfo,
    read_cpu_quotas,
)

X86 = """processor : 0
model name : AMD EPYC
microcode : 0xa1
flags : sse avx2 avx

processor : 1
model name : other
"""
ARM = """processor : 0
Features : fp asimd
CPU implementer : 0x41
CPU part : 0xd0b
CPU revision : 1
"""


def test_cpuinfo_is_parsed_in_x86_and_arm_form() -> None:
    cpu = parse_cpuinfo(X86)
    assert (cpu.model, cpu.microcode, cpu.flags) == ("AMD EPYC", "0xa1", "avx avx2 sse")
    cpu = parse_cpuinfo(ARM)
    assert (cpu.model, cpu.flags) == ("0x41 0xd0b 1", "asimd fp")
    assert parse_cpuinfo("").model


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000", None), ("", None), ("150000 100000", 1), ("50000 100000", 1), ("400000 100000\n", 4),
        ("-1\n 100000\n", None), ("100000\n 50000\n", 2), ("100000", None), ("100000 0", 100000),
    ],
)  # fmt: skip
def test_cpu_quota_is_rounded_down_to_at_least_one(text: str, cpus: int | None) -> None:
    assert parse_cpu_max(text) == cpus


def write_quotas(root: Path, membership: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_cpu_quotas_of_nested_groups_are_read_in_version_2(tmp_path: Path) -> None:
    files = {
        "box/inner/cpu.max": "max 100000", "box/cpu.max": "300000 100000", "cpu.max": "600000 100000",
        "elsewhere/cpu.max": "100000 100000",
    }  # fmt: skip
    assert read_cpu_quotas(write_quotas(tmp_path, "0::/box/inner\n", files)) == [3, 6]


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_cpu_quotas_of_nested_groups_are_read_in_version_1(tmp_path: Path, controllers: str) -> None:
    files = {
        f"{controllers}/box/inner/cpu.cfs_quota_us": "200000\n",
        f"{controllers}/box/inner/cpu.cfs_period_us": "100000\n",
        f"{controllers}/box/cpu.cfs_quota_us": "-1\n", f"{controllers}/box/cpu.cfs_period_us": "100000\n",
        "memory/box/inner/cpu.cfs_quota_us": "100000\n", "memory/box/inner/cpu.cfs_period_us": "100000\n",
    }  # fmt: skip
    membership = f"9:memory:/box/inner\n4:{controllers}:/box/inner\n0::/\n"
    assert read_cpu_quotas(write_quotas(tmp_path, membership, files)) == [2]


def test_cpu_quotas_of_both_versions_are_read_on_a_hybrid_system(tmp_path: Path) -> None:
    files = {"unified/box/cpu.max": "200000 100000", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    assert read_cpu_quotas(write_quotas(tmp_path, "1:cpu:/\n0::/box\n", files)) == [2]


def test_usable_threads_are_at_most_the_cpu_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_module, "read_cpu_quotas", lambda: [8, 1])
    assert count_usable_threads() == 1
    assert candidate_thread_counts() == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="control groups exist on Linux only")
def test_usable_threads_follow_the_quota_of_a_nested_group() -> None:
    group = Path(f"/sys/fs/cgroup/cpu/edgechat-test-{os.getpid()}")
    inner = group / "inner"
    try:
        inner.mkdir(parents=True)
        (group / "cpu.cfs_quota_us").write_text("100000")
        (group / "cpu.cfs_period_us").write_text("100000")
    except OSError:
        pytest.skip("this user may not create control groups of version 1")
    code = "from edgechat.hardware.cpu import count_usable_threads; print(count_usable_threads())"
    command = ["sh", "-c", f'echo $$ > "{inner}/cgroup.procs"; exec "$@"', "sh", sys.executable, "-c", code]
    try:
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
    finally:
        inner.rmdir()
        group.rmdir()


def test_this_machine_has_usable_threads() -> None:
    assert count_usable_threads() >= 1
    assert 1 <= candidate_thread_counts()[0] <= candidate_thread_counts()[-1]


def add_core(root: Path, number: int, siblings: str, khz: int | None = None, capacity: int | None = None) -> None:
    directory = root / f"devices/system/cpu/cpu{number}"
    (directory / "topology").mkdir(parents=True)
    (directory / "topology/thread_siblings_list").write_text(siblings)
    for name, value in (("cpufreq/cpuinfo_max_freq", khz), ("cpu_capacity", capacity)):
        if value is not None:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(str(value))


def test_cores_are_grouped_by_clock_frequency(tmp_path: Path) -> None:
    for number in range(4):  # two fast cores with two hardware threads each; one has a slightly higher clock
        siblings = f"{number // 2 * 2}-{number // 2 * 2 + 1}"
        add_core(tmp_path, number, siblings, khz=5_000_000 + 200_000 * (number > 1))
    for number in range(4, 8):
        add_core(tmp_path, number, str(number), khz=3_400_000)
    assert count_cores_by_speed(tmp_path) == (2, 4)


def test_cores_are_grouped_by_capacity_on_arm(tmp_path: Path) -> None:
    for number in range(6):
        add_core(tmp_path, number, str(number), capacity=1024 if number < 2 else 400)
    assert count_cores_by_speed(tmp_path) == (2, 4)


def test_cores_are_grouped_by_kind_on_hybrid_intel_processors(tmp_path: Path) -> None:
    for number in range(8):  # the clocks of both kinds are almost the same
        add_core(tmp_path, number, f"{number // 2 * 2}-{number // 2 * 2 + 1}" if number < 4 else str(number), 4_400_000)
    (tmp_path / "devices/cpu_core").mkdir(parents=True)
    (tmp_path / "devices/cpu_core/cpus").write_text("0-3\n")
    assert count_cores_by_speed(tmp_path) == (2, 4)


def test_cores_are_grouped_by_performance_level_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda **_options: 8)
    counts = {"hw.perflevel0.physicalcpu": "4", "hw.perflevel1.physicalcpu": "6"}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(cpu_module, "_read_sysctl", lambda name: counts.get(name, ""))
    assert count_cores_by_speed() == (4, 6)
    counts.clear()  # an Intel Mac
    monkeypatch.setattr(Path, "glob", lambda *_arguments: [])
    assert count_cores_by_speed() == (8,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3,8\n", {0, 1, 2, 3, 8}), ("", set()), ("0-\n", {0}), ("a-b", set()), ("0-99999999999", set())],
)
def test_lists_of_cpus(text: str, expected: set[int]) -> None:
    assert cpu_module.parse_cpu_list(text) == expected
