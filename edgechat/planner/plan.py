"""Planning: choose the best load variant of a model that fits in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from edgechat.errors import PlanError
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner import explain
from edgechat.planner.kv_memory import states_bytes
from edgechat.planner.load_plan import N_BATCH, LoadPlan
from edgechat.planner.load_variants import LoadVariant, load_variants
from edgechat.planner.machine import Machine
from edgechat.planner.memory import (
    INDEX_BYTES,
    BufferSizes,
    LoadOptions,
    MemoryEstimate,
    estimate,
    n_seqs_with_scratch,
)

# Caches get 1/8 of the remaining memory and 1/10 of the free disk space, so that they stay small on small machines.
PREFIX_RAM_SHARE: Final = 8
MAX_PREFIX_RAM_BYTES: Final = 2 << 30
PREFIX_DISK_SHARE: Final = 10
MAX_PREFIX_DISK_BYTES: Final = 4 << 30
SPECULATION_SHARE: Final = 16
MAX_DRAFT_TOKENS: Final = 1 << 17
# Numbers of recurrent-state copies to try: for steps of 8, 4 and 2 tokens.
_N_RS_SEQ: Final = (7, 3, 1)
# Maximum memory of the second plan, as a fraction of a first plan that ran out of memory.
_RETRY_FRACTION: Final = 0.8

Estimator = Callable[[LoadOptions], BufferSizes]
"""Function that returns the buffer sizes of a model with the load options of its argument."""


def plan(
    profile: ModelProfile, machine: Machine, *, n_ctx: int | None = None, speculation: bool = True,
    estimator: Estimator | None = None, extra_bytes: int = 0,
) -> LoadPlan:  # fmt: skip
    """Return the load plan of a model on a machine.

    Until the model fits, these are reduced in order: the second copy of mapped weights, the context length (unless
    `n_ctx` sets it), the KV cache precision, the micro-batch size, and the context length again. `estimator` defaults
    to `formula_buffers`; `extra_bytes` is the observed additional memory of the model. Raises PlanError, with the
    required and available memory, if no variant fits.
    """
    least: MemoryEstimate | None = None
    for variant in load_variants(profile, machine, n_ctx):
        buffers = estimator(variant.options) if estimator is not None else None
        memory = estimate(profile, variant.options, buffers, extra_bytes=extra_bytes, is_unified=machine.gpu_is_unified)
        if _fits(memory, variant.options, machine):
            return _load_plan(profile, machine, variant, memory, buffers, speculation=speculation, n_ctx=n_ctx)
        if least is None or memory.total < least.total:
            least = memory
    if least is None:
        raise PlanError(f"{profile.path} cannot be loaded with any options.")
    raise PlanError(explain.does_not_fit(profile, machine, least, n_ctx))


def smaller_plan(
    profile: ModelProfile, machine: Machine, failed: LoadPlan, n_ctx: int | None = None
) -> LoadPlan | None:
    """Return a plan with at most 80 % of the memory of `failed`, which ran out of memory; None if there is none."""
    before = failed.estimate
    for variant in load_variants(profile, machine, n_ctx):
        memory = estimate(profile, variant.options, is_unified=machine.gpu_is_unified)
        is_less = memory.total <= _RETRY_FRACTION * before.total or (
            bool(before.gpu) and memory.gpu <= _RETRY_FRACTION * before.gpu
        )
        is_same = variant.options == msgspec.structs.replace(failed.options, n_rs_seq=0)
        if is_less and not is_same and _fits(memory, variant.options, machine):
            return _load_plan(profile, machine, variant, memory, None, speculation=failed.speculation, n_ctx=n_ctx)
    return None


def _fits(memory: MemoryEstimate, options: LoadOptions, machine: Machine) -> bool:
    if options.n_gpu_layers and not machine.gpu_is_unified and memory.gpu > machine.gpu_free_bytes:
        return False
    return memory.total <= machine.available_bytes


def _load_plan(
    profile: ModelProfile, machine: Machine, variant: LoadVariant, memory: MemoryEstimate,
    buffers: BufferSizes | None, *, speculation: bool, n_ctx: int | None,
) -> LoadPlan:  # fmt: skip
    """Make a plan of a variant that fits, and divide the remaining memory between speculation and the prefix cache."""
    options, draft_tokens = variant.options, 0
    if speculation:
        free_bytes = machine.available_bytes - memory.total
        if options.n_gpu_layers and not machine.gpu_is_unified:  # state copies are on the GPU
            free_bytes = min(free_bytes, machine.gpu_free_bytes - memory.gpu)
        options, draft_tokens = _with_speculation(profile, options, free_bytes // SPECULATION_SHARE)
        memory = estimate(
            profile, options, buffers, extra_bytes=memory.observed_extra, is_unified=machine.gpu_is_unified,
            draft_tokens=draft_tokens,
        )  # fmt: skip
    free_bytes = max(0, machine.available_bytes - memory.total)
    load_plan = LoadPlan(
        model_path=profile.path, options=options, n_threads=machine.n_threads,
        n_threads_batch=machine.n_threads_batch or machine.n_threads, n_batch=N_BATCH,
        prefix_ram_bytes=min(free_bytes // PREFIX_RAM_SHARE, MAX_PREFIX_RAM_BYTES),
        prefix_disk_bytes=min(machine.disk_free_bytes // PREFIX_DISK_SHARE, MAX_PREFIX_DISK_BYTES),
        speculation=speculation, draft_tokens=draft_tokens, estimate=memory, concessions=variant.concessions,
    )  # fmt: skip
    return msgspec.structs.replace(load_plan, reasons=explain.reasons(profile, machine, load_plan, n_ctx))


def _with_speculation(profile: ModelProfile, options: LoadOptions, budget_bytes: int) -> tuple[LoadOptions, int]:
    """Return the options with as many state copies as fit in `budget_bytes`, and the draft corpus size for the rest."""
    state = states_bytes(profile, n_seqs_with_scratch(options))
    n_rs_seq = next((n for n in _N_RS_SEQ if n * state <= budget_bytes), 0) if state else 0
    draft_tokens = max(0, min(MAX_DRAFT_TOKENS, (budget_bytes - n_rs_seq * state) // INDEX_BYTES))
    return msgspec.structs.replace(options, n_rs_seq=n_rs_seq), draft_tokens
