"""Processor detection: name, instruction set extensions, and the default number of compute threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from edgechat.hardware.cgroups import list_groups, read_text

# Maximum number of kinds of cores that macOS reports, and maximum number of CPUs that Linux supports.
_MAX_PERFORMANCE_LEVELS: Final = 3
_MAX_CPUS: Final = 8192
_SYS: Final = Path("/sys")


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
        return parse_cpuinfo(read_text(Path("/proc/cpuinfo")))
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        values = [_read_sysctl(name) for name in names]
        return Cpu(model=values[0] or platform.machine(), flags=" ".join(values[1:]).strip(), microcode="")
    return Cpu(model=platform.processor() or platform.machine(), flags="", microcode="")


def parse_cpuinfo(text: str) -> Cpu:
    """Parse the first processor in the text of /proc/cpuinfo, in the x86 or ARM format."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    arm_model = " ".join(fields[k] for k in ("cpu implementer", "cpu part", "cpu revision") if k in fields)
    return Cpu(
        model=fields.get("model name") or fields.get("model") or arm_model or platform.machine(),
        flags=" ".join(sorted((fields.get("flags") or fields.get("features") or "").split())),
        microcode=fields.get("microcode", ""),
    )


def count_usable_threads() -> int:
    """Return the default number of compute threads: fast physical cores within the affinity mask and CPU quota.

    The kernel benchmark of `edgechat plan` replaces this estimate with a measured number.
    """
    core_counts = count_cores_by_speed()
    n_fast, n_total = core_counts[0], sum(core_counts)
    # Slow cores delay fast cores at every barrier, but if most cores are slow, using all of them is faster.
    n_usable_cores = n_fast if len(core_counts) > 1 and 2 * n_fast >= n_total else n_total
    return max(1, min(n_usable_cores, _count_allowed_threads()))


def candidate_thread_counts() -> list[int]:
    """Return one to four thread counts to benchmark, in ascending order; the last is the number of allowed CPUs."""
    n_allowed = _count_allowed_threads()
    core_counts = count_cores_by_speed()
    counts = {sum(core_counts), core_counts[0], sum(core_counts) // 2, n_allowed}
    return sorted({max(1, min(count, n_allowed)) for count in counts})


def _count_allowed_threads() -> int:
    """Return the number of CPUs within the affinity mask and the CPU quotas of the control groups, at least one."""
    return max(1, min([count_allowed_cpus(), *read_cpu_quotas()]))


def count_allowed_cpus() -> int:
    """Return the number of logical CPUs on which this process may run, without regard to quotas."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_cpu_quotas(root: Path = Path("/")) -> list[int]:
    """Return the CPU quotas of this process's control groups and all their parents, in whole CPUs."""
    quotas = []
    for directory, version in list_groups("cpu", root):
        if version == 1:
            cpu_max = f"{read_text(directory / 'cpu.cfs_quota_us')} {read_text(directory / 'cpu.cfs_period_us')}"
        else:
            cpu_max = read_text(directory / "cpu.max")
        quota = parse_cpu_max(cpu_max)
        if quota is not None:
            quotas.append(quota)
    return quotas


def count_cores_by_speed(root: Path = _SYS) -> tuple[int, ...]:
    """Return the number of physical cores by speed class, fastest class first; one number if speeds are unknown."""
    if sys.platform == "darwin" and root == _SYS:
        counts = [_read_sysctl(f"hw.perflevel{level}.physicalcpu") for level in range(_MAX_PERFORMANCE_LEVELS)]
        if counts[0].isdigit():
            return tuple(int(count) for count in counts if count.isdigit())
    if sys.platform == "win32" and root == _SYS:
        from edgechat.hardware import windows_cores

        windows_counts = windows_cores.count_cores_by_efficiency_class()
        if windows_counts:
            return windows_counts
    cores_by_class: dict[int, int] = {}
    counted_siblings = set()
    performance_cpus = parse_cpu_list(read_text(root / "devices/cpu_core/cpus"))
    for directory in sorted((root / "devices/system/cpu").glob("cpu[0-9]*")):
        siblings = read_text(directory / "topology/thread_siblings_list").strip() or directory.name
        if siblings in counted_siblings:  # another hardware thread of a core that was already counted
            continue
        counted_siblings.add(siblings)
        speed = _read_speed_class(directory)
        if performance_cpus:  # Intel's processors with two kinds of cores
            speed = 2 if int(directory.name.removeprefix("cpu")) in performance_cpus else 1
        cores_by_class[speed] = cores_by_class.get(speed, 0) + 1
    if cores_by_class and 0 not in cores_by_class:
        return tuple(cores_by_class[speed] for speed in sorted(cores_by_class, reverse=True))
    import psutil

    return (psutil.cpu_count(logical=False) or os.cpu_count() or 1,)


def parse_cpu_list(text: str) -> set[int]:
    """Parse a list of CPU numbers of Linux, such as `0-3,8`; empty if it is damaged."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) >= _MAX_CPUS:
            return set()
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _read_speed_class(directory: Path) -> int:
    """Return the speed class of a core: its maximum speed, rounded down; 0 if the speed is unknown.

    Rounding puts cores whose speeds differ by a few per cent into the same class.
    """
    capacity = read_text(directory / "cpu_capacity").strip()
    if capacity.isdigit():
        return int(capacity) // 128
    frequency_khz = read_text(directory / "cpufreq/cpuinfo_max_freq").strip()
    return int(frequency_khz) // 600_000 if frequency_khz.isdigit() else 0


def parse_cpu_max(cpu_max: str) -> int | None:
    """Return the CPU quota in a text "QUOTA PERIOD", in whole CPUs (at least one); None without a quota."""
    quota, period = [*cpu_max.split(), "", ""][:2]
    if not quota.isdigit() or not period.isdigit():  # "max", or -1 in version 1
        return None
    return max(1, int(quota) // max(1, int(period)))


def _read_sysctl(name: str) -> str:
    command = ["/usr/sbin/sysctl", "-n", name]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
