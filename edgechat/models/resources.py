"""Resources of this machine that a plan may use now: free memory, threads, GPU and disk space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from edgechat import paths
from edgechat.config import Settings, parse_size
from edgechat.errors import EdgechatError
from edgechat.files import JsonFile
from edgechat.hardware.cpu import candidate_thread_counts, usable_threads
from edgechat.hardware.gpu import Gpu
from edgechat.hardware.memory import private_bytes, read_memory
from edgechat.humanize import size
from edgechat.models.instances import RunningInstance, other_instances
from edgechat.planner.machine import Machine, best_gpu
from edgechat.planner.throughput import KernelSpeeds
from edgechat.runtime.backends import kernel_benchmark
from edgechat.runtime.backends.bundle import find_bundle

# GPU memory that plans leave free: at most 1 GiB, and at most an eighth. The driver and the screen need more over time,
# and CUDA's context and kernels take up to 500 MB when the first kernel runs.
_GPU_RESERVE_BYTES: Final = 1 << 30
_GPU_RESERVE_SHARE: Final = 8
_MAX_FILE_BYTES: Final = 1 << 16


def current_machine(
    settings: Settings, model_path: str = "", own_pid: int | None = None, gpus: Sequence[Gpu] | None = None
) -> Machine:
    """Return the resources available now for the model at `model_path`.

    Pages of the same file that another process has mapped are shared, so they count as available. So does the memory
    of this program's own engine (`own_pid`), because it is freed before a load. `gpus` defaults to `saved_gpus()`.
    """
    gpu = best_gpu(saved_gpus() if gpus is None and settings.gpu else gpus or ())
    others = other_instances(own_pid)
    reserved = sum(r.reserved_bytes for r in others if r.model_path != model_path or not model_path)
    own = private_bytes(own_pid) if own_pid is not None else 0
    available = max(0, read_memory().available_bytes + own - reserved)
    budget = parse_size(settings.budget) if settings.budget else None
    n_threads, n_threads_batch, threads_reason = _threads(settings, measured_speeds())
    return Machine(
        available_bytes=available if budget is None else min(available, budget), n_threads=n_threads,
        n_threads_batch=n_threads_batch, threads_reason=threads_reason,
        disk_free_bytes=_prefix_disk_free_bytes(settings), gpu_name=gpu.name if gpu else "",
        gpu_is_unified=bool(gpu and gpu.is_unified),
        gpu_free_bytes=_gpu_budget_bytes(gpu) if gpu and not gpu.is_unified else 0,
        other_instances="".join(f"; {describe_instance(r)}" for r in others),
    )  # fmt: skip


def _gpu_budget_bytes(gpu: Gpu) -> int:
    return max(0, gpu.free_bytes - min(_GPU_RESERVE_BYTES, gpu.total_bytes // _GPU_RESERVE_SHARE))


def describe_instance(instance: RunningInstance) -> str:
    """Return a clause for error messages with the process, the model and the memory of another instance."""
    name = os.path.basename(instance.model_path)  # noqa: PTH119  (the path may be of another system)
    return f"another edgechat (process {instance.pid}) has {name} loaded and uses {size(instance.total_bytes)}"


def measured_speeds() -> KernelSpeeds | None:
    """Return the saved kernel benchmark of this machine's best backend; None if there is none."""
    try:
        bundle = find_bundle()
    except EdgechatError:
        return None
    return kernel_benchmark.load_speeds(bundle, *bundle.modules)


def _threads(settings: Settings, speeds: KernelSpeeds | None) -> tuple[int, int, str]:
    """Return the numbers of threads for decoding and for prefill, and the reason for them as text."""
    if settings.n_threads is not None:
        # With more threads than cores, threads wait for each other, and a token can take minutes.
        n_threads = min(settings.n_threads, os.cpu_count() or 1)
        return n_threads, n_threads, "set by the user"
    if speeds is not None and speeds.decode_threads and speeds.max_threads == candidate_thread_counts()[-1]:
        return speeds.decode_threads, speeds.prefill_threads, "measured as the fastest"
    usable = usable_threads()
    return usable, usable, "the number of fast cores (`edgechat plan` measures the best number)"


def save_gpus(gpus: Sequence[Gpu]) -> None:
    """Save the GPUs that an engine found, for plans that are made before an engine is started."""
    if gpus or paths.gpus_file().exists():
        _gpus_file().save(list(gpus))


def saved_gpus() -> list[Gpu]:
    """Return the GPUs that an engine found most recently."""
    return _gpus_file().read() or []


def _gpus_file() -> JsonFile[list[Gpu]]:
    return JsonFile(paths.gpus_file(), list[Gpu], max_bytes=_MAX_FILE_BYTES)


def _prefix_disk_free_bytes(settings: Settings) -> int:
    """Return the free bytes on the disk of the prefix cache; 0 if the cache is turned off."""
    if not settings.prefix_cache:
        return 0
    try:
        return paths.free_bytes(paths.prefix_dir())
    except OSError:
        return 0
