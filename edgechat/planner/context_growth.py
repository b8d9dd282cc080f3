"""Growth of a context: its initial length, the largest length that fits, and the memory that each length needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.planner.kv_memory import CELL_MULTIPLE
from edgechat.planner.memory import BufferSizes, LoadOptions, MemoryEstimate, estimate, estimate_context_buffers

INITIAL_N_CTX: Final = 4096
"""Context length with which a growing context opens."""
# Name of tensors that make rotary embeddings depend on the context length. The context of a model with such tensors
# cannot grow, because the values in a longer KV cache would differ.
_LENGTH_DEPENDENT_TENSOR: Final = "rope_factors_long"


class ContextSize(msgspec.Struct, frozen=True):
    """Length of a context in tokens, and the memory estimate of the plan with this length."""

    n_ctx: int
    total_bytes: int


class MemoryLimits(NamedTuple):
    """Memory that a growing context may fill together with the rest of its plan, in bytes."""

    total: int
    gpu: int | None
    """Part that may be on a GPU; None without a limit beside `total`."""


class ContextGrowth(msgspec.Struct, frozen=True, kw_only=True):
    """Context lengths between which the engine can resize a context."""

    sizes: tuple[ContextSize, ...]
    """Ascending context lengths: the initial one, its doublings, and the largest one."""

    @property
    def initial_n_ctx(self) -> int:
        """Context length with which the context opens."""
        return self.sizes[0].n_ctx

    @property
    def max_n_ctx(self) -> int:
        """Largest context length."""
        return self.sizes[-1].n_ctx

    @property
    def max_bytes(self) -> int:
        """Memory estimate of the plan with the largest context, in bytes."""
        return self.sizes[-1].total_bytes

    def compute_bytes(self, n_ctx: int) -> int:
        """Return the memory estimate with a context of `n_ctx` tokens, interpolated between the sizes."""
        for small, large in itertools.pairwise(self.sizes):
            if n_ctx <= large.n_ctx:
                n_bytes = large.total_bytes - small.total_bytes
                return small.total_bytes + n_bytes * (n_ctx - small.n_ctx) // (large.n_ctx - small.n_ctx)
        return self.max_bytes

    def find_largest_n_ctx(self, total_bytes: int) -> int:
        """Return the largest multiple of a cell block up to `max_n_ctx` whose estimate is at most `total_bytes`.

        The result is 0 if even the first block does not fit.
        """
        return _find_largest(self.max_n_ctx, lambda n_ctx: self.compute_bytes(n_ctx) <= total_bytes)


def plan_growth(
    profile: ModelProfile, options: LoadOptions, buffers: BufferSizes, memory: MemoryEstimate, limits: MemoryLimits,
    longest_n_ctx: int, draft_tokens: int = 0, drafter: DrafterPlan | None = None,
) -> ContextGrowth | None:  # fmt: skip
    """Return how the context of a plan with `options` grows; None if its length is fixed.

    `memory` is the estimate of the plan with `buffers`, `draft_tokens` and `drafter`. The largest context is the
    longest one up to `longest_n_ctx` whose memory is within `limits`, together with the copy of all sequences that a
    resize needs. If even the planned context does not fit with this copy, its length is fixed.
    """
    if profile.is_embedding or any(_LENGTH_DEPENDENT_TENSOR in tensor.name for tensor in profile.tensors):
        return None
    planned_sizes = estimate_context_buffers(profile, options)

    def estimate_sizes(n_ctx: int) -> tuple[MemoryEstimate, BufferSizes]:
        """Return the memory with a context of `n_ctx` tokens, and the buffers of which a resize needs a copy."""
        resized_options = msgspec.structs.replace(options, n_ctx=n_ctx)
        sizes = estimate_context_buffers(profile, resized_options)
        resized_buffers = msgspec.structs.replace(
            buffers,
            kv_cache=buffers.kv_cache + sizes.kv_cache - planned_sizes.kv_cache,
            compute=buffers.compute + sizes.compute - planned_sizes.compute,
            gpu=buffers.gpu + sizes.gpu - planned_sizes.gpu,
        )
        resized_memory = estimate(
            profile, resized_options, resized_buffers, extra_bytes=memory.observed_excess,
            is_unified=memory.is_unified, draft_tokens=draft_tokens,
            drafter=drafter.resize_target(n_ctx - options.n_ctx) if drafter is not None else None,
        )  # fmt: skip
        return resized_memory, sizes

    def fits(n_ctx: int) -> bool:
        resized_memory, sizes = estimate_sizes(n_ctx)
        copy_bytes = sizes.kv_cache + (sizes.gpu if memory.is_unified else 0)
        return resized_memory.total + copy_bytes <= limits.total and (
            limits.gpu is None or resized_memory.gpu + sizes.gpu <= limits.gpu
        )

    initial_n_ctx = min(INITIAL_N_CTX, options.n_ctx)
    max_n_ctx = max(options.n_ctx, _find_largest(longest_n_ctx, fits))
    if max_n_ctx <= initial_n_ctx or not fits(options.n_ctx):
        return None
    doublings = itertools.takewhile(lambda n: n < max_n_ctx, (initial_n_ctx << i for i in itertools.count()))
    return ContextGrowth(sizes=tuple(ContextSize(n, estimate_sizes(n)[0].total) for n in (*doublings, max_n_ctx)))


def _find_largest(max_n_ctx: int, is_allowed: Callable[[int], bool]) -> int:
    """Return the largest multiple of a cell block up to `max_n_ctx` with the monotone property `is_allowed`, or 0.

    If `max_n_ctx` itself is allowed, it is the result, even if it is not a multiple.
    """
    if max_n_ctx > 0 and is_allowed(max_n_ctx):
        return max_n_ctx
    low, high = 0, max(0, max_n_ctx) // CELL_MULTIPLE + 1
    while high - low > 1:
        middle = (low + high) // 2
        if is_allowed(middle * CELL_MULTIPLE):
            low = middle
        else:
            high = middle
    return low * CELL_MULTIPLE
