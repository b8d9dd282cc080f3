"""Texts for the user that explain each value of a load plan, and why a model does not fit."""

from __future__ import annotations

from typing import Final

from edgechat.humanize import format_size
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.gpu_use import explain_measured_speeds
from edgechat.planner.kv_types import DIVERGENCE_BY_KV_TYPE, size_share
from edgechat.planner.load_plan import MAX_PREFIX_DISK_BYTES, MAX_PREFIX_RAM_BYTES, LoadPlan
from edgechat.planner.load_variants import MANY_SEQS, N_UBATCHES, default_n_ctx
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, MemoryEstimate

# Largest factor for which model families recommend YaRN: 4 in the model cards of Qwen2.5 and Qwen3.
_MAX_YARN_FACTOR: Final = 4


def explain_plan(profile: ModelProfile, machine: Machine, plan: LoadPlan, n_ctx: int | None) -> dict[str, str]:
    """Return the reason for each value in a plan, by field name; `n_ctx` is the context length that the user set."""
    options, memory = plan.options, plan.estimate
    reasons = {
        "n_ctx": _explain_n_ctx(profile, options.n_ctx, is_set=n_ctx is not None),
        "kv_type": "the KV cache fits in memory at full precision" if options.kv_type == "f16"
        else f"{size_share(options.kv_type):.0%} of the size of f16; it changes the predictions only slightly (KL "
        f"divergence of about {DIVERGENCE_BY_KV_TYPE[options.kv_type]:.4f}, measured with two small models)",
        "use_mmap": _explain_mapping(memory) if options.use_mmap
        else "a mapped file could be in memory beside the copies of its weights",
        "use_extra_bufts":
        f"{format_size(memory.repacked_weights)} of weights are copied into the layout of faster kernels"
        if memory.repacked_weights else "no weights need another layout for faster kernels",
        "n_threads": f"{plan.n_threads} for decoding, {plan.n_threads_batch} for prefill: {machine.threads_reason}",
        "n_ubatch": "fastest prefill" if options.n_ubatch == N_UBATCHES[0] else "smaller compute buffers",
        "n_seqs": f"up to {options.n_seqs} branches and conversations share the context"
        + ("" if options.n_seqs == MANY_SEQS else "; with this model, each of them needs additional memory"),
        "prefix_ram_bytes": f"an eighth of the remaining memory, at most {format_size(MAX_PREFIX_RAM_BYTES)}",
        "prefix_disk_bytes": f"a tenth of the free disk space, at most {format_size(MAX_PREFIX_DISK_BYTES)}",
    }  # fmt: skip
    if options.yarn_factor != 1.0:
        reasons["yarn_factor"] = (
            f"the model was trained with {profile.n_ctx_train} tokens, and YaRN stretches its positions over "
            f"{options.n_ctx}; "
            + (
                "replies to short prompts may get slightly worse"
                if options.yarn_factor <= _MAX_YARN_FACTOR
                else f"model families recommend YaRN up to a factor of {_MAX_YARN_FACTOR}; beyond, replies get worse"
            )
        )
    if plan.growth is not None:
        reasons["max_n_ctx"] = (
            f"the context starts with {plan.initial_n_ctx:,} tokens and grows up to {plan.max_n_ctx:,} tokens "
            f"({format_size(plan.growth.max_bytes)}) while memory is free"
        )
    if machine.gpu_name:
        reasons["n_gpu_layers"] = _explain_gpu(profile, machine, options, memory)
    return reasons


def _explain_gpu(profile: ModelProfile, machine: Machine, options: LoadOptions, memory: MemoryEstimate) -> str:
    n_layers, budget_bytes = max(0, options.n_gpu_layers - 1), machine.gpu_free_bytes or machine.available_bytes
    use_text = f"computes {n_layers} of {profile.n_layers} layers"
    if options.prefill_on_gpu:
        use_text = "computes the prefill with copies of the weights, and the CPU decodes"
    text = f"{machine.gpu_name} {use_text} and uses {format_size(memory.gpu)} of {format_size(budget_bytes)} of memory"
    speeds_text = explain_measured_speeds(profile, options, machine.gpu_speeds)
    if not options.uses_gpu:
        cause = f"no layer of the model fits into the {format_size(budget_bytes)} of memory that are free for it"
        if profile.is_embedding:
            cause = "embedding models use the CPU"
        return f"{machine.gpu_name} is not used: {speeds_text or cause}"
    return f"{text}; {speeds_text or 'its speed with this model was not measured'}"


def _explain_mapping(memory: MemoryEstimate) -> str:
    text = "a mapped file loads fastest"
    return (
        f"{text}; the {format_size(memory.file_cache)} of it that have a copy or are seldom read stay in the page "
        "cache, which the system can reclaim" if memory.file_cache else f"{text}, and the system can reclaim its pages"
    )  # fmt: skip


def _explain_n_ctx(profile: ModelProfile, n_ctx: int, *, is_set: bool) -> str:
    if is_set:
        return "set by the user"
    if n_ctx == profile.n_ctx_train:
        return "the context length that the model was trained with"
    if n_ctx == default_n_ctx(profile):
        maximum_text = (
            f"the model was trained with {profile.n_ctx_train} tokens"
            if profile.n_ctx_train
            else "the maximum of the model is unknown"
        )
        return f"the length for which the plan counts memory; {maximum_text}"
    return "the longest context that fits"


def make_does_not_fit_message(
    profile: ModelProfile, machine: Machine, memory: MemoryEstimate, n_ctx: int | None
) -> str:
    """Return the error message for a model that does not fit. `memory` is for its smallest load variant."""
    context = f"a context of {n_ctx} tokens" if n_ctx else "its shortest context"
    weight_bytes = memory.weights + memory.repacked_weights
    other_bytes = memory.total - weight_bytes - memory.kv_cache
    limit = format_size(machine.available_bytes)
    if machine.is_budget_set:
        limit_text, remedy = f"the memory budget is {limit}", "Set a larger budget"
    else:
        limit_text, remedy = f"{limit} are available{machine.other_instances_text}", "Close other programs"
    return (
        f"{profile.path} needs about {format_size(memory.total)} with {context} "
        f"(weights {format_size(weight_bytes)}, KV cache {format_size(memory.kv_cache)}, "
        f"other buffers {format_size(other_bytes)}), but {limit_text}. {remedy}, "
        f"{'set a shorter context with --ctx, ' if n_ctx else ''}or choose a smaller model "
        "(`edgechat plan` shows which models fit)."
    )
