"""Resources of a machine that are available to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.hardware.gpu import Gpu, GpuSpeeds
from edgechat.hardware.profile import HardwareProfile
from edgechat.planner.memory import REPACKED_TYPES
from edgechat.planner.throughput import DeviceRates, KernelSpeeds

# Memory that plans leave to other programs: a fifth of the total, and 2 GiB on machines with more than 8 GiB.
_RESERVE_DIVISOR: Final = 5
_SMALL_MACHINE_BYTES: Final = 8 << 30
_MIN_RESERVED_BYTES: Final = 2 << 30
DOWNLOAD_DISK_DIVISOR: Final = 4
"""Divisor of the free disk space that gives the maximum size of a recommended download."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Memory, threads and disk space available to a plan."""

    available_bytes: int
    """Memory budget in bytes."""
    is_budget_set: bool = False
    """True if the user set the budget to less than the available memory."""
    reserved_bytes: int = 0
    """Part of the memory budget that plans leave to other programs, if the model fits into the rest."""
    n_threads: int = 1
    """Number of threads for decoding."""
    n_threads_batch: int = 0
    """Number of threads for prefill; 0 means `n_threads`."""
    threads_reason: str = "the number of cores"
    adapts_n_threads: bool = False
    """Whether decoding may use fewer threads while other programs are busy."""
    disk_free_bytes: int = 0
    """Free bytes on the disk of the prefix cache; 0 disables the cache on disk."""
    max_download_bytes: int | None = None
    """Size of the largest file that edgechat recommends to download; None without a limit."""
    gpu_free_bytes: int = 0
    """Memory budget on a GPU, in bytes; 0 without a GPU, or if it is unknown. If the GPU shares the machine's memory,
    this is the part of `available_bytes` that it can use."""
    gpu_is_unified: bool = False
    gpu_name: str = ""
    gpu_module: str = ""
    """Path of the module that computes on the GPU; "" if it is unknown."""
    gpus: tuple[Gpu, ...] = ()
    """GPUs that may be used, the one of the fields above among them; empty if they are unknown."""
    rates: DeviceRates = DeviceRates()
    """Speed of the processor, used for models whose kernels were not measured."""
    gpu_rates: DeviceRates = DeviceRates()
    gpu_speeds: GpuSpeeds = GpuSpeeds()
    other_instances_text: str = ""
    """Text about the memory of other edgechat processes, for the error message about a model that does not fit."""

    def without_gpus(self) -> Machine:
        """Return a copy of the machine whose GPUs are not used."""
        return msgspec.structs.replace(
            self, gpu_free_bytes=0, gpu_is_unified=False, gpu_name="", gpu_module="", gpus=(), gpu_speeds=GpuSpeeds()
        )

    def leave_reserve(self) -> Machine:
        """Return a copy of the machine whose memory budget excludes `reserved_bytes`."""
        available_bytes = max(0, self.available_bytes - self.reserved_bytes)
        return msgspec.structs.replace(self, available_bytes=available_bytes, reserved_bytes=0)


def compute_reserved_bytes(total_bytes: int) -> int:
    """Return the memory that plans leave to other programs on a machine with `total_bytes` of memory.

    This reserve is a fifth of the total, and at least 2 GiB on machines with more than 8 GiB. Just above 8 GiB, the
    reserve grows with the memory, so that a machine with more memory never has less left for a model.
    """
    if total_bytes <= _SMALL_MACHINE_BYTES:
        return total_bytes // _RESERVE_DIVISOR
    left_bytes_on_small_machine = _SMALL_MACHINE_BYTES - _SMALL_MACHINE_BYTES // _RESERVE_DIVISOR
    return max(total_bytes // _RESERVE_DIVISOR, min(_MIN_RESERVED_BYTES, total_bytes - left_bytes_on_small_machine))


def choose_gpu(gpus: Sequence[Gpu]) -> Gpu | None:
    """Return the GPU with the most free memory, preferably a discrete GPU; None without a GPU."""
    return max(gpus, key=lambda gpu: (not gpu.is_unified, gpu.free_bytes), default=None)


def machine_from_profile(profile: HardwareProfile) -> Machine:
    """Return the resources of the machine that `profile` describes, including its best GPU."""
    gpu = choose_gpu(profile.gpus)
    return Machine(
        available_bytes=profile.memory.available_bytes,
        reserved_bytes=compute_reserved_bytes(profile.memory.total_bytes),
        n_threads=profile.n_threads,
        threads_reason=f"{profile.n_performance_cores} of {profile.n_cores} cores are fast",
        disk_free_bytes=profile.disk_free_bytes,
        max_download_bytes=profile.disk_free_bytes // DOWNLOAD_DISK_DIVISOR if profile.disk_free_bytes else None,
        gpu_name=gpu.name if gpu else "",
        gpu_free_bytes=gpu.free_bytes if gpu else 0, gpu_is_unified=bool(gpu and gpu.is_unified),
        gpu_speeds=gpu.speeds if gpu else GpuSpeeds(),
        rates=DeviceRates(
            read_bytes_per_s=profile.read_bytes_per_s, prefill_weights_per_s=profile.prefill_weights_per_s
        ),
        gpu_rates=DeviceRates(
            read_bytes_per_s=gpu.read_bytes_per_s, prefill_weights_per_s=gpu.prefill_weights_per_s
        ) if gpu else DeviceRates(),
    )  # fmt: skip


def speeds_from_profile(profile: HardwareProfile) -> KernelSpeeds | None:
    """Return the kernel speeds of the machine that `profile` describes; None if they were not measured.

    All types that any backend repacks count as repacked, because the profile does not name the backend.
    """
    if not profile.product_rates:
        return None
    return KernelSpeeds(
        backend="", n_threads=profile.n_threads, product_rates=profile.product_rates,
        attention_rates=profile.attention_rates, operations_per_s=profile.operations_per_s,
        products_per_s=profile.products_per_s,
        file_layout_product_rates={t: r for t, r in profile.product_rates.items() if t in REPACKED_TYPES},
    )  # fmt: skip
