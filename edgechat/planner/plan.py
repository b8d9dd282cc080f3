"""Planning: choose the best load variant of a model that fits in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from edgechat.errors import PlanError
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner import explain
from edgechat.planner.context_growth import MemoryLimits, plan_growth
from edgechat.planner.drafter_choice import NO_DRAFTER, AddedDrafter, DrafterChoice, RemainingMemory, add_drafter
from edgechat.planner.kv_memory import compute_states_bytes
from edgechat.planner.load_plan import (
    MAX_PREFIX_DISK_BYTES,
    MAX_PREFIX_RAM_BYTES,
    N_BATCH,
    PREFIX_DISK_DIVISOR,
    PREFIX_RAM_DIVISOR,
    LoadPlan,
)
from edgechat.planner.load_variants import LoadVariant, list_load_variants
from edgechat.planner.machine import Machine
from edgechat.planner.memory import (
    INDEX_BYTES,
    BufferSizes,
    LoadOptions,
    MemoryEstimate,
    estimate,
    estimate_buffers,
    n_seqs_with_scratch,
)

SPECULATION_DIVISOR: Final = 16
MAX_DRAFT_TOKENS: Final = 1 << 17
# Numbers of copies of each recurrent state to try. They allow verification steps of 8, 4 and 2 tokens.
_N_RS_SEQ_CHOICES: Final = (7, 3, 1)
# If loading runs out of memory, the next plan may use at most this fraction of the memory (or GPU memory) of the failed
# plan.
_RETRY_FRACTION: Final = 0.8

_NO_MEMORY: Final = "memory ran out with the drafter"

Estimator = Callable[[LoadOptions], BufferSizes]
"""Function that returns the buffer sizes of a model for the load options in its argument."""


def plan(
    profile: ModelProfile, machine: Machine, *, n_ctx: int | None = None, speculation: bool = True,
    estimator: Estimator | None = None, extra_bytes: int = 0, longest_n_ctx: int | None = None,
    drafter: DrafterChoice = NO_DRAFTER,
) -> LoadPlan:  # fmt: skip
    """Return the load plan of a model on a machine.

    Until the model fits, the plan makes these concessions in order: no `drafter`, a KV cache in smaller types, a
    shorter context (unless `n_ctx` sets its length), smaller micro-batches, and a still shorter context. The plan
    leaves `machine.reserved_bytes` to other programs if the model fits into the rest, and otherwise uses all memory.
    `estimator` defaults to `estimate_buffers`; `extra_bytes` is the observed additional memory of the model. Raises
    PlanError, with the required and the available memory, if no variant fits.

    Unless `n_ctx` is set, the context can grow beyond its planned length (`LoadPlan.growth`), up to `longest_n_ctx` if
    it is given.
    """
    if machine.reserved_bytes and _can_leave_reserve(profile, machine, n_ctx, extra_bytes):
        with contextlib.suppress(PlanError):  # the model does not fit, according to exact sizes
            return plan(
                profile, machine.leave_reserve(), n_ctx=n_ctx, speculation=speculation, estimator=estimator,
                extra_bytes=extra_bytes, longest_n_ctx=longest_n_ctx, drafter=drafter,
            )  # fmt: skip
    longest_n_ctx = min(profile.n_ctx_train, longest_n_ctx or profile.n_ctx_train)
    smallest_estimate: MemoryEstimate | None = None
    for variant in list_load_variants(profile, machine, n_ctx):
        buffers = (estimator or partial(estimate_buffers, profile))(variant.options)
        memory = estimate(profile, variant.options, buffers, extra_bytes=extra_bytes, is_unified=machine.gpu_is_unified)
        if _fits(memory, variant.options, machine):
            return _make_load_plan(
                profile, machine, variant, memory, buffers, drafter=drafter if speculation else None, n_ctx=n_ctx,
                longest_n_ctx=longest_n_ctx if n_ctx is None else None,
            )  # fmt: skip
        if smallest_estimate is None or memory.total < smallest_estimate.total:
            smallest_estimate = memory
    if smallest_estimate is None:
        raise PlanError(f"edgechat cannot plan how to load {profile.path}. Choose another model.")
    raise PlanError(explain.make_does_not_fit_message(profile, machine, smallest_estimate, n_ctx))


def _can_leave_reserve(profile: ModelProfile, machine: Machine, n_ctx: int | None, extra_bytes: int) -> bool:
    """Return whether any variant leaves memory to other programs, according to formulas (an estimator takes longer)."""
    smaller_machine = machine.leave_reserve()
    return any(
        _fits(
            estimate(profile, options, extra_bytes=extra_bytes, is_unified=machine.gpu_is_unified), options,
            smaller_machine,
        )
        for options, _ in list_load_variants(profile, machine, n_ctx)
    )  # fmt: skip


def make_smaller_plan(
    profile: ModelProfile, machine: Machine, failed_plan: LoadPlan, n_ctx: int | None = None
) -> LoadPlan | None:
    """Return a plan with at most 80 % of the memory of `failed_plan`, which ran out of memory; None if none fits.

    After a plan that used a GPU, this is the memory of the GPU, or else that of the CPU with no more on the GPU.
    The context of the plan does not grow, and it has no model drafter. Without a GPU, the weights are read instead of
    mapped, because a limited address space (`ulimit -v`) may not have room for both the file and the copies of its
    weights.
    """
    failed_estimate, growth = failed_plan.estimate, failed_plan.growth
    failed_bytes = growth.compute_bytes(growth.initial_n_ctx) if growth is not None else failed_estimate.total
    reasons, failed_drafter = failed_plan.reasons, failed_plan.drafter
    is_named = failed_drafter is not None and failed_drafter.is_named
    drafter = DrafterChoice(
        reason=reasons.get("drafter", "") if failed_drafter is None else _NO_MEMORY,
        refusal=_NO_MEMORY if is_named else reasons.get("draft_model", ""),
    )
    fallback: LoadPlan | None = None
    for variant in map(_read_weights, list_load_variants(profile, machine, n_ctx)):
        buffers = estimate_buffers(profile, variant.options)
        memory = estimate(profile, variant.options, buffers, is_unified=machine.gpu_is_unified)
        is_same = variant.options == msgspec.structs.replace(failed_plan.options, n_rs_seq=0)
        if (is_same and failed_plan.drafter is None) or not _fits(memory, variant.options, machine):
            continue
        smaller_plan = _make_load_plan(
            profile, machine, variant, memory, buffers, drafter=drafter if failed_plan.speculation else None,
            n_ctx=n_ctx,
        )  # fmt: skip
        memory = smaller_plan.estimate  # includes the memory of speculation, as does the estimate of the failed plan
        if failed_estimate.gpu and memory.gpu <= _RETRY_FRACTION * failed_estimate.gpu:
            return smaller_plan
        if memory.total <= _RETRY_FRACTION * failed_bytes:
            if not failed_estimate.gpu:
                return smaller_plan
            # Less CPU memory with more on the GPU does not help if the memory of the GPU ran out.
            if memory.gpu <= failed_estimate.gpu:
                fallback = fallback or smaller_plan
    return fallback


def _read_weights(variant: LoadVariant) -> LoadVariant:
    """Return the variant without a mapped file, unless it has layers on a GPU."""
    if variant.options.n_gpu_layers or not variant.options.use_mmap:
        return variant
    options = msgspec.structs.replace(variant.options, use_mmap=False)
    return LoadVariant(options, ("the weights are read instead of mapped", *variant.concessions))


def _fits(memory: MemoryEstimate, options: LoadOptions, machine: Machine) -> bool:
    limit_bytes = _find_gpu_limit(options, machine)
    return (limit_bytes is None or memory.gpu <= limit_bytes) and memory.total <= machine.available_bytes


def _find_gpu_limit(options: LoadOptions, machine: Machine) -> int | None:
    """Return how many bytes a plan may put on the GPU; None without a GPU or a limit beside that of all memory."""
    is_limited = bool(machine.gpu_free_bytes) or not machine.gpu_is_unified
    return machine.gpu_free_bytes if options.uses_gpu and is_limited else None


def _make_load_plan(
    profile: ModelProfile, machine: Machine, variant: LoadVariant, memory: MemoryEstimate,
    buffers: BufferSizes, *, drafter: DrafterChoice | None, n_ctx: int | None, longest_n_ctx: int | None = None,
) -> LoadPlan:  # fmt: skip
    """Return the plan for a variant that fits, and divide the free memory.

    Speculation gets a part of the free memory, then the drafter and the prefix cache; the context can grow into the
    rest. Without speculation, `drafter` is None. Without `longest_n_ctx`, the context does not grow. If a discrete GPU
    is used, it does not grow either, because the engine cannot read how much memory of the GPU is free.
    """
    options, draft_tokens, addition = variant.options, 0, AddedDrafter(None, "")
    if drafter is not None:
        options, draft_tokens = _add_speculation(
            profile, options, _count_free_memory(machine, memory, options).smaller // SPECULATION_DIVISOR
        )
        estimate_again = partial(
            estimate, profile, options, buffers, extra_bytes=memory.observed_excess, is_unified=machine.gpu_is_unified,
            draft_tokens=draft_tokens,
        )  # fmt: skip
        memory = estimate_again()
        addition = add_drafter(
            drafter, profile, options, _count_free_memory(machine, memory, options),
            has_concessions=bool(variant.concessions),
        )  # fmt: skip
        memory = estimate_again(drafter=addition.plan)
    free_bytes = max(0, machine.available_bytes - memory.total)
    prefix_ram_bytes = min(free_bytes // PREFIX_RAM_DIVISOR, MAX_PREFIX_RAM_BYTES)
    growth = None
    if longest_n_ctx is not None and (not options.uses_gpu or machine.gpu_is_unified):
        limits = MemoryLimits(machine.available_bytes - prefix_ram_bytes, _find_gpu_limit(options, machine))
        growth = plan_growth(profile, options, buffers, memory, limits, longest_n_ctx, draft_tokens, addition.plan)
    load_plan = LoadPlan(
        model_path=profile.path, options=options, n_threads=machine.n_threads,
        n_threads_batch=machine.n_threads_batch or machine.n_threads, n_batch=N_BATCH,
        adapts_n_threads=machine.adapts_n_threads and not options.uses_gpu,
        prefix_ram_bytes=prefix_ram_bytes,
        prefix_disk_bytes=min(machine.disk_free_bytes // PREFIX_DISK_DIVISOR, MAX_PREFIX_DISK_BYTES),
        gpu_module=machine.gpu_module if options.uses_gpu else "", gpus=machine.gpus if options.uses_gpu else (),
        speculation=drafter is not None, draft_tokens=draft_tokens, drafter=addition.plan, estimate=memory,
        concessions=(*([addition.concession] if addition.concession else []), *variant.concessions), growth=growth,
    )  # fmt: skip
    reasons = explain.explain_plan(profile, machine, load_plan, n_ctx)
    if addition.refusal:
        reasons |= {"draft_model": addition.refusal}
    if addition.reason and addition.reason != addition.refusal:
        reasons |= {"drafter": addition.reason}
    return msgspec.structs.replace(load_plan, reasons=reasons)


def _count_free_memory(machine: Machine, memory: MemoryEstimate, options: LoadOptions) -> RemainingMemory:
    """Return the memory that a plan leaves."""
    cpu_bytes, limit_bytes = machine.available_bytes - memory.total, _find_gpu_limit(options, machine)
    gpu_bytes = limit_bytes - memory.gpu if limit_bytes is not None else None
    return RemainingMemory(cpu_bytes, gpu_bytes, is_unified=machine.gpu_is_unified)


def _add_speculation(profile: ModelProfile, options: LoadOptions, budget_bytes: int) -> tuple[LoadOptions, int]:
    """Return `options` with the state copies that fit in `budget_bytes`, and the draft corpus size for the rest."""
    state_bytes = compute_states_bytes(profile, n_seqs_with_scratch(options))
    n_rs_seq = next((n for n in _N_RS_SEQ_CHOICES if n * state_bytes <= budget_bytes), 0) if state_bytes else 0
    draft_tokens = max(0, min(MAX_DRAFT_TOKENS, (budget_bytes - n_rs_seq * state_bytes) // INDEX_BYTES))
    return msgspec.structs.replace(options, n_rs_seq=n_rs_seq), draft_tokens
