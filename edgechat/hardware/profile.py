"""Hardware profile: the properties of a machine that determine load plans.

A profile can be saved (`edgechat doctor --json`) and used to plan for another machine (`edgechat plan --machine FILE`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.hardware.cpu import Cpu, count_cores_by_speed, count_usable_threads, read_cpu
from edgechat.hardware.disk_speed import measure_disk_speed
from edgechat.hardware.gpu import Gpu, find_gpu_problem
from edgechat.hardware.memory import SystemMemory, read_memory

_HOT_CELSIUS: Final = 85.0


class HardwareProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Processor, memory, GPUs and disk of a machine. The encoded field names are part of the JSON format."""

    cpu: Cpu
    n_cores: int
    """Number of physical cores."""
    n_performance_cores: int
    """Number of fast physical cores; all cores if they are equally fast."""
    n_threads: int
    """Default number of compute threads."""
    memory: SystemMemory
    swap_bytes: int = 0
    """Swap space including compressed memory (zram). Plans never use swap."""
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    """Message that explains why edgechat does not use an installed GPU; "" without a problem."""
    is_on_battery: bool | None = None
    """True on battery power; None if the system does not report the power source."""
    hottest_celsius: float | None = None
    """Highest temperature of the machine's sensors in °C; None if no sensor is readable."""
    disk_free_bytes: int = 0
    """Free bytes on the disk of the models directory."""
    disk_read_bytes_per_s: float = msgspec.field(default=0.0, name="disk_read_bps")
    """Read speed of the disk of a model file, in bytes per second; 0.0 if unknown."""
    read_bytes_per_s: float = msgspec.field(default=0.0, name="read_bps")
    """Memory bandwidth of the processor in bytes per second; 0.0 if unknown."""
    prefill_weights_per_s: float = 0.0
    """Number of weights that the processor multiplies per second in prefill, counted once per token; 0.0 if unknown."""
    product_rates: dict[str, dict[int, float]] = {}
    """Measured number of weights multiplied per second, by tensor type and batch size; empty if not measured."""
    attention_rates: dict[str, dict[int, float]] = {}
    """Measured number of KV cache elements that attention reads per second, by KV cache type and batch size."""
    operations_per_s: float = 0.0
    """Measured number of small ggml operations per second; 0.0 if not measured."""
    products_per_s: float = 0.0
    """Measured number of small matrix products per second; 0.0 if not measured."""
    sources: str = ""
    """Where the figures of a described machine come from, and which of them are estimates."""

    def warnings(self) -> list[str]:
        """Return messages about battery power, high temperature and GPU problems."""
        messages = []
        if self.gpu_problem:
            messages.append(self.gpu_problem)
        if self.is_on_battery:
            messages.append("This machine runs on battery power, which may slow the processor down.")
        if self.hottest_celsius is not None and self.hottest_celsius >= _HOT_CELSIUS:
            messages.append(f"The temperature is {self.hottest_celsius:.0f} °C, so the processor may slow down.")
        return messages


def read_profile(
    models_dir: Path, gpus: tuple[Gpu, ...] = (), read_bytes_per_s: float = 0.0, model_file: Path | None = None,
    product_rates: dict[str, dict[int, float]] | None = None,
) -> HardwareProfile:  # fmt: skip
    """Return the current profile of this machine.

    `gpus`, the memory bandwidth `read_bytes_per_s` and the kernel speeds `product_rates` come from a backend. The disk
    speed is measured on `model_file`, and is 0.0 without a file.
    """
    core_counts = count_cores_by_speed()
    disk_free_bytes, disk_read_bytes_per_s = 0, 0.0
    with contextlib.suppress(OSError):
        disk_free_bytes = paths.free_bytes(models_dir)
        disk_read_bytes_per_s = measure_disk_speed(model_file) if model_file is not None else 0.0
    return HardwareProfile(
        cpu=read_cpu(), n_cores=sum(core_counts), n_performance_cores=core_counts[0], n_threads=count_usable_threads(),
        memory=read_memory(), swap_bytes=_read_swap_bytes(), gpus=gpus, gpu_problem="" if gpus else find_gpu_problem(),
        is_on_battery=_is_on_battery(), hottest_celsius=_read_hottest_celsius(), disk_free_bytes=disk_free_bytes,
        disk_read_bytes_per_s=disk_read_bytes_per_s, read_bytes_per_s=read_bytes_per_s,
        product_rates=product_rates or {},
    )  # fmt: skip


def _read_swap_bytes() -> int:
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


def _read_hottest_celsius() -> float | None:
    import psutil

    try:
        sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    except (OSError, RuntimeError):
        return None
    return max(
        (reading.current for readings in sensors.values() for reading in readings if reading.current), default=None
    )
