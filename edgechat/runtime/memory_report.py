"""Memory of llama.cpp models and contexts: buffer sizes, KV layout, and GPU devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from edgechat.hardware.gpu import Gpu, GpuSpeeds
from edgechat.planner.kv_types import split_kv_type
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.memory import LoadOptions
from edgechat.runtime.bindings import Bindings, Device, MemoryEntry
from edgechat.runtime.context import Context
from edgechat.runtime.drafter_context import DrafterContext
from edgechat.runtime.model import Model

_MAX_BUFFER_TYPES = 32
_MAX_DEVICES = 16


def describe_memory_layout(context: Context) -> str:
    """Return a text with the context parameters that determine the bytes stored in the KV cache for a token.

    The text includes the context length only for models with RoPE scaling, since some scalings depend on it. Those of
    models whose context grows do not.
    """
    has_rope_scaling = any(".rope.scaling." in key for key in context.model.metadata_keys())
    n_ctx_text = context.n_ctx if has_rope_scaling and not context.is_resizable else "any"
    rope = "model" if context.yarn_factor == 1.0 else f"yarn{context.yarn_factor:g}"
    key_type, value_type = split_kv_type(context.kv_type)
    return f"k={key_type} v={value_type} flash=auto adapter=none rope={rope} n_ctx={n_ctx_text}"


def read_memory_breakdown(context: Context | DrafterContext) -> dict[str, dict[str, int]]:
    """Return `model_bytes`, `context_bytes`, `compute_bytes`, `is_host` and `is_gpu` by name of the buffer type.

    The context of a drafter that shares the weights of its target reports them, too.
    """
    gpu_names = _read_gpu_names(context.model.bindings)
    entries = (MemoryEntry * _MAX_BUFFER_TYPES)()
    count = context.model.bindings.edgechat.edgechat_memory_breakdown(context.pointer, entries, len(entries))
    return {
        entry.buffer_type.decode(): {
            "model_bytes": entry.model_bytes,
            "context_bytes": entry.context_bytes,
            "compute_bytes": entry.compute_bytes,
            "is_host": entry.is_host,
            "is_gpu": int(entry.buffer_type.decode().startswith(gpu_names)),
        }
        for entry in entries[: min(count, len(entries))]
    }


def _read_gpu_names(bindings: Bindings) -> tuple[str, ...]:
    """Return the names with which the buffer types of GPUs start: device names without numbers, such as `CUDA`."""
    names = (name.rstrip("0123456789") for name in list_gpu_names(bindings))
    return tuple(name for name in names if name)


def list_gpu_names(bindings: Bindings) -> list[str]:
    """Return llama.cpp's names of the GPUs that the loaded modules support, such as `Vulkan0`."""
    entries = (Device * _MAX_DEVICES)()
    count = bindings.edgechat.edgechat_devices(entries, len(entries))
    return [entry.name.decode("utf-8", "replace") for entry in entries[: min(count, len(entries))]]


def list_gpus(
    bindings: Bindings, speeds: Mapping[str, GpuSpeeds] = MappingProxyType({}),
    modules: Mapping[str, str] = MappingProxyType({}),
) -> list[Gpu]:  # fmt: skip
    """Return the GPUs that the loaded modules support, with their free memory.

    `speeds` and `modules` have the measured speeds and the path of the module by llama.cpp's name of a GPU.
    """
    entries = (Device * _MAX_DEVICES)()
    count = bindings.edgechat.edgechat_devices(entries, len(entries))
    return [
        Gpu(
            name=entry.description.decode("utf-8", "replace") or entry.name.decode("utf-8", "replace"),
            total_bytes=entry.total_bytes, free_bytes=entry.free_bytes, is_unified=bool(entry.is_unified),
            speeds=speeds.get(entry.name.decode("utf-8", "replace"), GpuSpeeds()),
            module=modules.get(entry.name.decode("utf-8", "replace"), ""),
            device=entry.name.decode("utf-8", "replace"),
        )
        for entry in entries[: min(count, len(entries))]
    ]  # fmt: skip


class MemoryEstimator:
    """Memory estimator that asks llama.cpp for buffer sizes without allocating the buffers.

    The last model stays loaded, because reading its vocabulary takes most of the time of an estimate.
    """

    def __init__(self) -> None:
        self._model: Model | None = None
        self._key: tuple[object, ...] = ()

    def estimate(self, bindings: Bindings, path: Path, options: LoadOptions) -> dict[str, dict[str, int]]:
        """Return the memory breakdown of the model file at `path` with `options`, as `read_memory_breakdown` does.

        Raises ModelFileError and PlanError.
        """
        key = (
            path, options.use_extra_bufts, options.n_gpu_layers, options.experts_on_cpu, options.prefill_on_gpu
        )  # fmt: skip
        if self._model is None or self._key != key:
            self.close()
            self._model, self._key = Model(bindings, path, options, is_probe=True), key
        plan = make_manual_plan(str(path), n_threads=1, **msgspec.structs.asdict(options))
        context = Context(self._model, plan)
        try:
            return read_memory_breakdown(context)
        finally:
            context.close()

    def close(self) -> None:
        """Free the loaded model."""
        if self._model is not None:
            self._model.close()
        self._model = None
