"""What of a machine a plan depends on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgechat.hardware.profile import Gpu, HardwareProfile


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan may use."""

    available_bytes: int
    n_threads: int = 1
    """For single tokens, and the next for prompts."""
    n_threads_batch: int = 0
    """0: as many."""
    threads_reason: str = "as many as there are cores"
    disk_free_bytes: int = 0
    """Where prefixes are kept."""
    gpu_free_bytes: int = 0
    gpu_is_unified: bool = False
    gpu_name: str = ""
    read_bps: float = 0.0
    """Bytes of memory read in a second by the processor, and by the GPU; 0.0 if nobody knows."""
    gpu_read_bps: float = 0.0
    other_instances: str = ""
    """What other programs of ours hold of the memory, for the error that says that it is not enough."""


def best_gpu(gpus: Sequence[Gpu]) -> Gpu | None:
    """The one to plan for: a card of its own before what shares the machine's memory, then the one with the most room."""
    return max(gpus, key=lambda gpu: (not gpu.is_unified, gpu.free_bytes), default=None)


def machine_from_profile(profile: HardwareProfile) -> Machine:
    """A machine that is described, this one or another; of several GPUs the one with the most room."""
    gpu = best_gpu(profile.gpus)
    return Machine(
        available_bytes=profile.memory.available_bytes, n_threads=profile.n_threads,
        threads_reason=f"of {profile.n_cores} cores, {profile.n_performance_cores} fast ones",
        disk_free_bytes=profile.disk_free_bytes, gpu_name=gpu.name if gpu else "",
        gpu_free_bytes=gpu.free_bytes if gpu and not gpu.is_unified else 0, gpu_is_unified=bool(gpu and gpu.is_unified),
        read_bps=profile.read_bps, gpu_read_bps=gpu.read_bps if gpu else 0.0,
    )  # fmt: skip
