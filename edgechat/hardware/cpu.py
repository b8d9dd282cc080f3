"""The processor: its name, instruction sets, and how many threads of it are worth using."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec


class Cpu(msgspec.Struct, frozen=True):
    """A processor as the operating system describes it."""

    model: str
    """Marketing name, or the architecture where there is none."""
    flags: str
    """Instruction set extensions, sorted, separated by spaces; empty where the system does not tell."""
    microcode: str
    """Microcode revision; empty where the system does not tell."""


def read_cpu() -> Cpu:
    """Describe the first processor; costs about a millisecond on Linux."""
    if sys.platform == "linux":
        return parse_cpuinfo(_read("/proc/cpuinfo"))
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        values = [_sysctl(name) for name in names]
        return Cpu(model=values[0] or platform.machine(), flags=" ".join(values[1:]).strip(), microcode="")
    return Cpu(model=platform.processor() or platform.machine(), flags="", microcode="")


def parse_cpuinfo(text: str) -> Cpu:
    """Read the first processor of a /proc/cpuinfo, in the x86 or the ARM form."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    arm = " ".join(fields[k] for k in ("cpu implementer", "cpu part", "cpu revision") if k in fields)
    return Cpu(
        model=fields.get("model name") or fields.get("model") or arm or platform.machine(),
        flags=" ".join(sorted((fields.get("flags") or fields.get("features") or "").split())),
        microcode=fields.get("microcode", ""),
    )


def usable_threads() -> int:
    """Threads worth computing with: physical cores, within the affinity mask and the cgroup's CPU quota."""
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(physical, allowed, cgroup_cpus(_read("/sys/fs/cgroup/cpu.max")) or physical))


def cgroup_cpus(cpu_max: str) -> int | None:
    """Whole CPUs that a cgroup v2 `cpu.max` grants (at least one), or None where it sets no limit."""
    quota, _, period = cpu_max.partition(" ")
    if not quota.isdigit() or not period.strip().isdigit():
        return None
    return max(1, int(quota) // max(1, int(period)))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    command = ["/usr/sbin/sysctl", "-n", name]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
