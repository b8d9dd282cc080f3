"""Processor properties from /proc, /sys and cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.hardware.cpu import (
    candidate_thread_counts,
    count_cores_by_speed,
    count_usable_threads,
    parse_cpu_max,
    parse_cpuinfo,
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
    ("text", "cpus"), [("max 100000", None), ("", None), ("150000 100000", 1), ("50000 100000", 1)]
)
def test_cpu_quota_is_rounded_down_to_at_least_one(text: str, cpus: int | None) -> None:
    assert parse_cpu_max(text) == cpus


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
