"""What a plan may use of this machine now: memory that others leave, threads that were measured, disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from edgechat import paths
from edgechat.config import Settings, parse_size
from edgechat.errors import EdgechatError
from edgechat.files import JsonFile
from edgechat.hardware.cpu import candidate_thread_counts, usable_threads
from edgechat.hardware.memory import private_bytes, read_memory
from edgechat.hardware.profile import Gpu
from edgechat.humanize import size
from edgechat.models import instances
from edgechat.planner.machine import Machine, best_gpu
from edgechat.planner.throughput import KernelSpeeds
from edgechat.runtime.backends import kernel_benchmark
from edgechat.runtime.backends.bundle import find_bundle

# Of a GPU's memory: CUDA's context and kernels take up to 500 MB once something runs.
_GPU_SPARE_BYTES: Final = 1 << 30
_GPU_SPARE_SHARE: Final = 8
_MAX_BYTES: Final = 1 << 16


def current_machine(
    settings: Settings, model_path: str = "", own_pid: int | None = None, gpus: Sequence[Gpu] | None = None
) -> Machine:
    """For a model file, of which another program may have mapped the very pages; `gpus` are what an engine found now.

    Without them, what one found the last time.
    """
    gpu = best_gpu(saved_gpus() if gpus is None and settings.gpu else gpus or ())
    others = instances.others(own_pid)
    held = [r for r in others if r.model_path != model_path or not model_path]
    # What this program's engine has is given back before it loads anything.
    own = private_bytes(own_pid) if own_pid is not None else 0
    available = max(0, read_memory().available_bytes + own - sum(r.held_bytes for r in held))
    budget = parse_size(settings.budget) if settings.budget else None
    n_threads, n_threads_batch, words = _threads(settings, measured_speeds())
    return Machine(
        available_bytes=available if budget is None else min(available, budget), n_threads=n_threads,
        n_threads_batch=n_threads_batch, threads_reason=words, disk_free_bytes=_disk_free_bytes(settings),
        gpu_name=gpu.name if gpu else "", gpu_is_unified=bool(gpu and gpu.is_unified),
        gpu_free_bytes=_free_bytes(gpu) if gpu and not gpu.is_unified else 0,
        other_instances="".join(f"; {describe_instance(r)}" for r in others),
    )  # fmt: skip


def _free_bytes(gpu: Gpu) -> int:
    """What a plan may use of a GPU: its driver and the screen take more as they go on."""
    return max(0, gpu.free_bytes - min(_GPU_SPARE_BYTES, gpu.total_bytes // _GPU_SPARE_SHARE))


def describe_instance(other: instances.RunningInstance) -> str:
    """Who has a model loaded."""
    name = os.path.basename(other.model_path)  # noqa: PTH119  (a name, whatever the system writes paths as)
    return f"another edgechat (process {other.pid}) has {name} loaded and holds {size(other.total_bytes)}"


def measured_speeds() -> KernelSpeeds | None:
    """What the backend was measured at on this machine, if it was."""
    try:
        bundle = find_bundle()
    except EdgechatError:
        return None
    return kernel_benchmark.load_speeds(bundle, *bundle.modules)


def _threads(settings: Settings, measured: KernelSpeeds | None) -> tuple[int, int, str]:
    """For single tokens, for prompts, and why."""
    if settings.n_threads is not None:
        # Threads that wait for each other without a core each take minutes for a word.
        n_threads = min(settings.n_threads, os.cpu_count() or 1)
        return n_threads, n_threads, "as set"
    usable = usable_threads()
    most = candidate_thread_counts()[-1]
    if measured is not None and measured.decode_threads and measured.max_threads == most:
        return measured.decode_threads, measured.prefill_threads, "measured to be the fastest here"
    return usable, usable, "as many as there are fast cores (`edgechat plan` measures it)"


def save_gpus(gpus: Sequence[Gpu]) -> None:
    """Keep what an engine found, for plans that are made before one runs."""
    if gpus or paths.gpus_file().exists():
        _gpus_file().save(list(gpus))


def saved_gpus() -> list[Gpu]:
    """What was found the last time."""
    return _gpus_file().read() or []


def _gpus_file() -> JsonFile[list[Gpu]]:
    return JsonFile(paths.gpus_file(), list[Gpu], max_bytes=_MAX_BYTES)


def _disk_free_bytes(settings: Settings) -> int:
    """Free bytes where prefixes are kept; 0 if none are to be."""
    if not settings.prefix_cache:
        return 0
    try:
        return paths.free_bytes(paths.prefix_dir())
    except OSError:
        return 0
