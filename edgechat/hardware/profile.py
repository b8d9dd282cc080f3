"""Hardware profile: the properties of a machine that plans depend on.

A profile can be saved (`edgechat doctor --json`) and used to plan for another machine (`edgechat plan --machine FILE`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.hardware.cpu import Cpu, cores_by_kind, read_cpu, usable_threads
from edgechat.hardware.disk_speed import measure_read_bps
from edgechat.hardware.gpu import Gpu, find_gpu_problem
from edgechat.hardware.memory import SystemMemory, read_memory

_HOT_CELSIUS: Final = 85.0


class HardwareProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's processor, memory, GPUs and disk. The field names are part of the JSON format."""

    cpu: Cpu
    n_cores: int
    """Physical cores."""
    n_performance_cores: int
    """Fast physical cores; all of them if there is one kind."""
    n_threads: int
    """Default number of compute threads."""
    memory: SystemMemory
    swap_bytes: int = 0
    """Swap, compressed memory (zram) included; plans never count it as memory."""
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    """Why an installed graphics card is not used, as a message; "" without a problem."""
    is_on_battery: bool | None = None
    """None if the system does not report it."""
    hottest_celsius: float | None = None
    disk_free_bytes: int = 0
    """Free space on the disk of the models directory."""
    disk_read_bps: float = 0.0
    """Bytes per second read from a model file's disk; 0.0 if unknown."""
    read_bps: float = 0.0
    """Memory bandwidth of the processor in bytes per second; 0.0 if unknown."""

    def warnings(self) -> list[str]:
        """Return messages about conditions that slow this machine down."""
        messages = []
        if self.gpu_problem:
            messages.append(self.gpu_problem)
        if self.is_on_battery:
            messages.append("On battery power: the processor may run slower than with a charger.")
        if self.hottest_celsius is not None and self.hottest_celsius >= _HOT_CELSIUS:
            messages.append(f"{self.hottest_celsius:.0f} °C: the processor may slow down to cool off.")
        return messages


def read_profile(
    models_dir: Path, gpus: tuple[Gpu, ...] = (), read_bps: float = 0.0, model_file: Path | None = None
) -> HardwareProfile:
    """Return the profile of this machine now.

    `gpus` and `read_bps` come from a backend, which alone knows the devices that it can use. The disk speed is measured
    on `model_file`, if given.
    """
    kinds = cores_by_kind()
    disk_free_bytes, disk_read_bps = 0, 0.0
    with contextlib.suppress(OSError):
        disk_free_bytes = paths.free_bytes(models_dir)
        disk_read_bps = measure_read_bps(model_file) if model_file is not None else 0.0
    return HardwareProfile(
        cpu=read_cpu(), n_cores=sum(kinds), n_performance_cores=kinds[0], n_threads=usable_threads(),
        memory=read_memory(), swap_bytes=_swap_bytes(), gpus=gpus, gpu_problem="" if gpus else find_gpu_problem(),
        is_on_battery=_is_on_battery(), hottest_celsius=_hottest_celsius(), disk_free_bytes=disk_free_bytes,
        disk_read_bps=disk_read_bps, read_bps=read_bps,
    )  # fmt: skip


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


def _hottest_celsius() -> float | None:
    import psutil

    try:
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    except (OSError, RuntimeError):
        return None
    return max((entry.current for entries in sensors.values() for entry in entries if entry.current), default=None)
