"""What a context's memory looks like, and how much there is of it."""

from __future__ import annotations

from edgechat.runtime.bindings import MemoryEntry
from edgechat.runtime.context import Context


def memory_layout(context: Context) -> str:
    """What of the context's own parameters decides what the memory of a token looks like.

    Some scalings of RoPE choose their factors by the length of the context; with them it counts too.
    """
    scaled = any(".rope.scaling." in key for key in context.model.metadata_keys())
    return f"k=f16 v=f16 flash=auto adapter=none rope=model n_ctx={context.n_ctx if scaled else 'any'}"


def memory_breakdown(context: Context) -> dict[str, dict[str, int]]:
    """Bytes by buffer type, split into model, context and compute."""
    entries = (MemoryEntry * 32)()
    count = context.model.bindings.edgechat.edgechat_memory_breakdown(context.pointer, entries, len(entries))
    return {
        entry.buffer_type.decode(): {
            "model_bytes": entry.model_bytes,
            "context_bytes": entry.context_bytes,
            "compute_bytes": entry.compute_bytes,
        }
        for entry in entries[: min(count, len(entries))]
    }
