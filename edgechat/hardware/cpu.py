"""Processor detection: name, instruction set extensions, and the default number of compute threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec


class Cpu(msgspec.Struct, frozen=True):
    """Properties of a processor, as the operating system reports them."""

    model: str
    """Model name, or the architecture if the system reports no name."""
    flags: str
    """Instruction set extensions, sorted, separated by spaces; empty if unknown."""
    microcode: str
    """Microcode revision; empty if unknown."""


def read_cpu() -> Cpu:
    """Return the properties of the first processor. Takes about a millisecond on Linux."""
    if sys.platform == "linux":
        return parse_cpuinfo(_read("/proc/cpuinfo"))
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        values = [_sysctl(name) for name in names]
        return Cpu(model=values[0] or platform.machine(), flags=" ".join(values[1:]).strip(), microcode="")
    return Cpu(model=platform.processor() or platform.machine(), flags="", microcode="")


def parse_cpuinfo(text: str) -> Cpu:
    """Parse the first processor in the text of /proc/cpuinfo, in the x86 or ARM format."""
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
    """Return the default number of compute threads: fast physical cores within the affinity mask and CPU quota.

    The kernel benchmark of `edgechat plan` replaces this estimate with a measured number.
    """
    kinds = cores_by_kind()
    # Slow cores delay fast cores at every barrier, but if most cores are slow, using all of them is faster.
    physical = kinds[0] if len(kinds) > 1 and 2 * kinds[0] >= sum(kinds) else sum(kinds)
    return max(1, min(physical, _allowed_threads()))


def candidate_thread_counts() -> list[int]:
    """Return at most four thread counts to benchmark, in ascending order; the last is the number of allowed CPUs."""
    allowed = _allowed_threads()
    kinds = cores_by_kind()
    counts = {sum(kinds), kinds[0], sum(kinds) // 2, allowed}
    return sorted({max(1, min(count, allowed)) for count in counts})


def _allowed_threads() -> int:
    """Return the number of CPUs within the affinity mask and the cgroup's CPU quota, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, cgroup_cpus(_read("/sys/fs/cgroup/cpu.max")) or allowed))


def cores_by_kind(root: Path = Path("/sys")) -> tuple[int, ...]:
    """Count the physical cores of each speed class, fastest first; a single count if the classes are unknown."""
    kinds: dict[int, int] = {}
    counted = set()
    for directory in sorted((root / "devices/system/cpu").glob("cpu[0-9]*")):
        siblings = _read(str(directory / "topology/thread_siblings_list")).strip() or directory.name
        if siblings in counted:  # another hardware thread of a counted core
            continue
        counted.add(siblings)
        speed = _speed_class(directory)
        kinds[speed] = kinds.get(speed, 0) + 1
    if kinds and 0 not in kinds:
        return tuple(kinds[speed] for speed in sorted(kinds, reverse=True))
    import psutil

    return (psutil.cpu_count(logical=False) or os.cpu_count() or 1,)


def _speed_class(directory: Path) -> int:
    """Return the rounded maximum speed of a core; 0 if unknown.

    Rounding puts cores whose speeds differ by a few per cent into one class.
    """
    capacity = _read(str(directory / "cpu_capacity")).strip()
    if capacity.isdigit():
        return int(capacity) // 128
    frequency_khz = _read(str(directory / "cpufreq/cpuinfo_max_freq")).strip()
    return int(frequency_khz) // 600_000 if frequency_khz.isdigit() else 0


def cgroup_cpus(cpu_max: str) -> int | None:
    """Parse the text of a cgroup v2 `cpu.max` file: the limit in whole CPUs (at least one), or None without a limit."""
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
