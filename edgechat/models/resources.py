"""Resources of this machine that a plan may use now: free memory, threads, GPU and disk space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from edgechat import paths
from edgechat.config import Settings, parse_size
from edgechat.errors import EdgechatError
from edgechat.files import JsonFile
from edgechat.hardware.cpu import candidate_thread_counts, count_usable_threads
from edgechat.hardware.gpu import Gpu, GpuSpeeds
from edgechat.hardware.memory import read_memory, read_private_bytes
from edgechat.humanize import format_size
from edgechat.models.instances import RunningInstance, other_instances
from edgechat.planner.machine import DOWNLOAD_DISK_DIVISOR, Machine, choose_gpu, compute_reserved_bytes
from edgechat.planner.throughput import KernelSpeeds
from edgechat.runtime.backends import kernel_benchmark
from edgechat.runtime.backends.bundle import find_bundle

# GPU memory that plans leave free: 1 GiB, but at most an eighth of the total. The driver and the screen may use more
# memory over time, and CUDA's context and kernels take up to 500 MB when the first kernel runs.
_GPU_RESERVE_BYTES: Final = 1 << 30
_GPU_RESERVE_DIVISOR: Final = 8
_MAX_FILE_BYTES: Final = 1 << 16


def current_machine(
    settings: Settings, model_path: str = "", own_pid: int | None = None, gpus: Sequence[Gpu] | None = None
) -> Machine:
    """Return the resources available now for the model at `model_path`.

    Plans leave a part of the memory to other programs, unless the user set `budget`. Another process's memory for the
    same model file is not subtracted, because its mapped pages are shared. The memory of this program's own engine
    (`own_pid`) is added, because it is freed before a load. `gpus` defaults to `load_saved_gpus()`.
    """
    gpus = load_saved_gpus() if gpus is None and settings.gpu else gpus or ()
    gpu = choose_gpu(gpus)
    running_instances = other_instances(own_pid)
    other_instances_bytes = sum(
        r.reserved_bytes for r in running_instances if r.model_path != model_path or not model_path
    )
    own_bytes = read_private_bytes(own_pid) if own_pid is not None else 0
    memory = read_memory()
    available_bytes = max(0, memory.available_bytes + own_bytes - other_instances_bytes)
    budget_bytes = parse_size(settings.budget) if settings.budget else None
    n_threads, n_threads_batch, threads_reason = _choose_thread_counts(settings, load_measured_speeds())
    return Machine(
        available_bytes=available_bytes if budget_bytes is None else min(available_bytes, budget_bytes),
        is_budget_set=budget_bytes is not None and budget_bytes < available_bytes,
        reserved_bytes=compute_reserved_bytes(memory.total_bytes) if budget_bytes is None else 0,
        n_threads=n_threads, n_threads_batch=n_threads_batch, threads_reason=threads_reason,
        adapts_n_threads=settings.n_threads is None and not settings.strict,
        disk_free_bytes=_read_prefix_disk_free_bytes(settings), max_download_bytes=_read_max_download_bytes(),
        gpu_name=gpu.name if gpu else "", gpu_module=gpu.module if gpu else "", gpus=tuple(gpus),
        gpu_is_unified=bool(gpu and gpu.is_unified),
        gpu_free_bytes=_compute_gpu_budget_bytes(gpu) if gpu else 0, gpu_speeds=gpu.speeds if gpu else GpuSpeeds(),
        other_instances_text="".join(f"; {describe_instance(r)}" for r in running_instances),
    )  # fmt: skip


def _compute_gpu_budget_bytes(gpu: Gpu) -> int:
    if gpu.is_unified:  # plans leave a part of the machine's memory free
        return gpu.free_bytes
    return max(0, gpu.free_bytes - min(_GPU_RESERVE_BYTES, gpu.total_bytes // _GPU_RESERVE_DIVISOR))


def describe_instance(instance: RunningInstance) -> str:
    """Describe the process, model and memory of another edgechat process, as a clause for error messages."""
    name = os.path.basename(instance.model_path)  # noqa: PTH119  (the path may be of another system)
    return f"another edgechat (process {instance.pid}) has {name} loaded and uses {format_size(instance.total_bytes)}"


def load_measured_speeds() -> KernelSpeeds | None:
    """Return the saved kernel benchmark of this machine's best backend; None if no benchmark is saved."""
    try:
        bundle = find_bundle()
    except EdgechatError:
        return None
    return kernel_benchmark.load_speeds(bundle, *bundle.modules)


def _choose_thread_counts(settings: Settings, speeds: KernelSpeeds | None) -> tuple[int, int, str]:
    """Return the number of threads for decoding, the number for prefill, and the reason for both as text."""
    if settings.n_threads is not None:
        # With more threads than cores, the threads wait for each other, and a single token can take minutes.
        n_threads = min(settings.n_threads, os.cpu_count() or 1)
        return n_threads, n_threads, "set by the user"
    if speeds is not None and speeds.n_decode_threads and speeds.max_n_threads == candidate_thread_counts()[-1]:
        return speeds.n_decode_threads, speeds.n_prefill_threads, "measured as the fastest"
    n_threads = count_usable_threads()
    return n_threads, n_threads, "the number of fast cores (`edgechat plan` measures the best number)"


def save_gpus(gpus: Sequence[Gpu]) -> None:
    """Save the GPUs that an engine found, for plans that are made before the next engine starts."""
    if gpus or paths.gpus_file().exists():
        _gpus_file().save(list(gpus))


def load_saved_gpus() -> list[Gpu]:
    """Return the GPUs that an engine found most recently."""
    return _gpus_file().read() or []


def _gpus_file() -> JsonFile[list[Gpu]]:
    return JsonFile(paths.gpus_file(), list[Gpu], max_bytes=_MAX_FILE_BYTES)


def _read_max_download_bytes() -> int | None:
    """Return the size of the largest file to recommend for a download; None if the disk is inaccessible."""
    try:
        return paths.free_bytes(paths.models_dir()) // DOWNLOAD_DISK_DIVISOR
    except OSError:
        return None


def _read_prefix_disk_free_bytes(settings: Settings) -> int:
    """Return the free bytes on the disk of the prefix cache; 0 if the cache is off or the disk is inaccessible."""
    if not settings.prefix_cache:
        return 0
    try:
        return paths.free_bytes(paths.prefix_dir())
    except OSError:
        return 0
