"""Resources of a machine that are available to a plan."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgechat.hardware.gpu import Gpu
from edgechat.hardware.profile import HardwareProfile


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Memory, threads and disk space available to a plan."""

    available_bytes: int
    """Memory budget in bytes."""
    is_budget_set: bool = False
    """True if the user set the budget to less than the available memory."""
    n_threads: int = 1
    """Number of threads for decoding."""
    n_threads_batch: int = 0
    """Number of threads for prefill; 0 means `n_threads`."""
    threads_reason: str = "the number of cores"
    disk_free_bytes: int = 0
    """Free bytes on the disk of the prefix cache; 0 turns the cache on disk off."""
    gpu_free_bytes: int = 0
    """Memory budget on a discrete GPU, in bytes; 0 without a discrete GPU."""
    gpu_is_unified: bool = False
    gpu_name: str = ""
    read_bytes_per_s: float = 0.0
    """Memory bandwidth of the processor in bytes per second; 0.0 if unknown."""
    gpu_read_bytes_per_s: float = 0.0
    other_instances_text: str = ""
    """Text about the memory of other edgechat processes, for the error message about a model that does not fit."""


def choose_gpu(gpus: Sequence[Gpu]) -> Gpu | None:
    """Return the GPU with the most free memory, preferably a discrete GPU; None without a GPU."""
    return max(gpus, key=lambda gpu: (not gpu.is_unified, gpu.free_bytes), default=None)


def machine_from_profile(profile: HardwareProfile) -> Machine:
    """Return the resources of the machine that `profile` describes, including its best GPU."""
    gpu = choose_gpu(profile.gpus)
    return Machine(
        available_bytes=profile.memory.available_bytes, n_threads=profile.n_threads,
        threads_reason=f"{profile.n_performance_cores} of {profile.n_cores} cores are fast",
        disk_free_bytes=profile.disk_free_bytes, gpu_name=gpu.name if gpu else "",
        gpu_free_bytes=gpu.free_bytes if gpu and not gpu.is_unified else 0, gpu_is_unified=bool(gpu and gpu.is_unified),
        read_bytes_per_s=profile.read_bytes_per_s, gpu_read_bytes_per_s=gpu.read_bytes_per_s if gpu else 0.0,
    )  # fmt: skip
