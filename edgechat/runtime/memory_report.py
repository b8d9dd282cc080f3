"""Memory of llama.cpp models and contexts: buffer sizes, KV layout, and GPU devices."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgechat.hardware.gpu import Gpu
from edgechat.planner.load_plan import manual_plan
from edgechat.planner.memory import LoadOptions
from edgechat.runtime.bindings import Bindings, Device, MemoryEntry
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model

_MAX_BUFFER_TYPES = 32
_MAX_DEVICES = 16


def memory_layout(context: Context) -> str:
    """Describe the context parameters that determine the bytes of a token's KV memory.

    Some RoPE scalings depend on the context length, which is therefore included for models with RoPE scaling.
    """
    is_scaled = any(".rope.scaling." in key for key in context.model.metadata_keys())
    n_ctx = context.n_ctx if is_scaled else "any"
    return f"k={context.kv_type} v={context.kv_type} flash=auto adapter=none rope=model n_ctx={n_ctx}"


def memory_breakdown(context: Context) -> dict[str, dict[str, int]]:
    """Return `model_bytes`, `context_bytes`, `compute_bytes` and `is_host` of each buffer type."""
    entries = (MemoryEntry * _MAX_BUFFER_TYPES)()
    count = context.model.bindings.edgechat.edgechat_memory_breakdown(context.pointer, entries, len(entries))
    return {
        entry.buffer_type.decode(): {
            "model_bytes": entry.model_bytes,
            "context_bytes": entry.context_bytes,
            "compute_bytes": entry.compute_bytes,
            "is_host": entry.is_host,
        }
        for entry in entries[: min(count, len(entries))]
    }


def devices(native: Bindings) -> list[Gpu]:
    """Return the GPUs that the loaded modules support, with their free memory."""
    entries = (Device * _MAX_DEVICES)()
    count = native.edgechat.edgechat_devices(entries, len(entries))
    return [
        Gpu(
            name=entry.description.decode("utf-8", "replace") or entry.name.decode("utf-8", "replace"),
            total_bytes=entry.total_bytes, free_bytes=entry.free_bytes, is_unified=bool(entry.is_unified),
        )
        for entry in entries[: min(count, len(entries))]
    ]  # fmt: skip


class MemoryEstimator:
    """Asks llama.cpp for buffer sizes without allocating the buffers.

    The last model stays loaded: reading its vocabulary takes most of the time.
    """

    def __init__(self) -> None:
        self._model: Model | None = None
        self._key: tuple[object, ...] = ()

    def estimate(self, native: Bindings, path: Path, options: LoadOptions) -> dict[str, dict[str, int]]:
        """Return the `memory_breakdown` of a context with `options`. Raises ModelFileError and PlanError."""
        key = (path, options.use_extra_bufts, options.n_gpu_layers, options.experts_on_cpu)
        if self._model is None or self._key != key:
            self.close()
            self._model, self._key = Model(native, path, options, is_probe=True), key
        plan = manual_plan(str(path), n_threads=1, **msgspec.structs.asdict(options))
        context = Context(self._model, plan)
        try:
            return memory_breakdown(context)
        finally:
            context.close()

    def close(self) -> None:
        """Free the loaded model."""
        if self._model is not None:
            self._model.close()
        self._model = None
