"""This machine as a planner sees it: frozen, in plain numbers, the same for a real one and for one written down."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.hardware.cpu import Cpu, cores_by_kind, read_cpu, usable_threads
from edgechat.hardware.memory import SystemMemory, read_memory

_NVIDIA_S: Final = 3.0
_HOT_CELSIUS: Final = 85.0
_PROBE_BYTES: Final = 32 << 20


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A device that can compute."""

    name: str
    total_bytes: int
    free_bytes: int
    is_unified: bool = False
    """True if its memory is the machine's own (Apple, Jetson): then it counts once."""
    read_bps: float = 0.0
    """Bytes per second that it reads of its memory; 0.0 if nobody knows."""


class HardwareProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan depends on."""

    cpu: Cpu
    n_cores: int
    """Physical ones."""
    n_performance_cores: int
    """The fast ones of them; all where there is one kind."""
    n_threads: int
    """Worth computing with: within the affinity and the cgroup's share."""
    memory: SystemMemory
    swap_bytes: int = 0
    """Seen, and never counted as memory; compressed memory (zram) is a part of it."""
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    """Why a graphics card that is there is not used, in words."""
    is_on_battery: bool | None = None
    """None where the system does not tell."""
    hottest_celsius: float | None = None
    disk_free_bytes: int = 0
    """Where models are kept."""
    disk_read_bps: float = 0.0
    """Bytes that a model file's disk yields in a second; 0.0 if nobody knows."""
    read_bps: float = 0.0
    """Bytes of memory that the processor reads in a second; 0.0 if nobody knows."""

    def warnings(self) -> list[str]:
        """What makes this machine slower than it could be, in words."""
        found = []
        if self.gpu_problem:
            found.append(self.gpu_problem)
        if self.is_on_battery:
            found.append("on battery: the processor may be slower than with a charger")
        if self.hottest_celsius is not None and self.hottest_celsius >= _HOT_CELSIUS:
            found.append(f"{self.hottest_celsius:.0f} degrees Celsius: it may slow down to cool off")
        return found


def read_profile(
    models_dir: Path, gpus: tuple[Gpu, ...] = (), read_bps: float = 0.0, model_file: Path | None = None
) -> HardwareProfile:
    """This machine now. `gpus` and `read_bps` were found by a backend: nothing else can tell what it can use.

    With a `model_file` its disk is measured.
    """
    kinds = cores_by_kind()
    n_cores = sum(kinds)
    disk_free_bytes, disk_read_bps = 0, 0.0
    with contextlib.suppress(OSError):
        disk_free_bytes = paths.free_bytes(models_dir)
        disk_read_bps = measure_read_bps(model_file) if model_file is not None else 0.0
    return HardwareProfile(
        cpu=read_cpu(), n_cores=n_cores, n_performance_cores=kinds[0], n_threads=usable_threads(),
        memory=read_memory(), swap_bytes=_swap_bytes(), gpus=gpus, gpu_problem="" if gpus else gpu_problem(),
        is_on_battery=_is_on_battery(), hottest_celsius=_hottest(), disk_free_bytes=disk_free_bytes, disk_read_bps=disk_read_bps, read_bps=read_bps,
    )  # fmt: skip


def gpu_problem() -> str:
    """What is wrong with an NVIDIA driver that is there; "" if nothing is, or there is none."""
    if sys.platform == "linux" and not Path("/proc/driver/nvidia/version").exists():
        return ""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_NVIDIA_S)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        return f"the NVIDIA driver does not answer: {error}"
    return nvidia_problem(found.returncode, found.stdout, found.stderr)


def driver_version() -> str:
    """The NVIDIA driver's, as the kernel has it; "" where there is none."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""


def nvidia_problem(code: int, output: str, errors: str) -> str:
    """What an end of nvidia-smi means for a program without a CUDA backend that works."""
    lines = (output or errors).strip().splitlines()
    if code == 0 and lines:
        return f"{lines[0].strip()}: there is no CUDA backend in this build that works here, so the CPU computes"
    words = lines[0].strip() if lines else f"nvidia-smi ended with {code}"
    if "mismatch" in words.lower():  # an update of the driver that the kernel has not loaded yet
        words += "; restarting the machine loads the new one"
    return f"the NVIDIA driver does not work: {words}"


def measure_read_bps(file: Path) -> float:
    """Bytes per second from the disk under a file; 0.0 where the system cannot leave its memory of it aside.

    Reads up to 32 MiB of its end. Raises OSError.
    """
    if not hasattr(os, "posix_fadvise"):
        return 0.0
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        count = min(size, _PROBE_BYTES)
        os.posix_fadvise(descriptor, size - count, count, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        done = len(os.pread(descriptor, count, size - count))
        return done / max(1e-9, time.perf_counter() - started)
    finally:
        os.close(descriptor)


def _swap_bytes() -> int:
    import psutil

    try:
        return int(psutil.swap_memory().total)
    except (OSError, RuntimeError):
        return 0


def _is_on_battery() -> bool | None:
    import psutil

    try:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    except (OSError, RuntimeError):
        return None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _hottest() -> float | None:
    import psutil

    try:
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    except (OSError, RuntimeError):
        return None
    return max((entry.current for entries in sensors.values() for entry in entries if entry.current), default=None)
