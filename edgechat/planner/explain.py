"""Texts for the user that explain each value of a load plan, and why a model does not fit."""

from __future__ import annotations

from edgechat.humanize import size
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.load_variants import MANY_SEQS, N_UBATCHES, default_n_ctx
from edgechat.planner.machine import Machine
from edgechat.planner.memory import MemoryEstimate


def reasons(profile: ModelProfile, machine: Machine, plan: LoadPlan, n_ctx: int | None) -> dict[str, str]:
    """Return the reason for each field of a plan, by field name; `n_ctx` is the context length that the user set."""
    options, memory = plan.options, plan.estimate
    texts = {
        "n_ctx": _n_ctx_reason(profile, options.n_ctx, is_set=n_ctx is not None),
        "kv_type": "full precision fits" if options.kv_type == "f16"
        else "half the size, with a divergence of about 0.001",
        "use_mmap": "a mapped file loads fastest, and the system can drop its pages" if options.use_mmap
        else f"with a mapped file, {size(memory.weights)} of weights could be in memory twice",
        "use_extra_bufts": f"{size(memory.repacked)} of weights are copied into the layout of faster kernels"
        if memory.repacked else "no second copy of the weights is needed for faster kernels",
        "n_threads": f"{plan.n_threads} for decoding, {plan.n_threads_batch} for prefill: {machine.threads_reason}",
        "n_ubatch": "fastest prefill" if options.n_ubatch == N_UBATCHES[0] else "smaller compute buffers",
        "n_seqs": f"up to {options.n_seqs} branches and conversations share the context"
        + ("" if options.n_seqs == MANY_SEQS else "; in this kind of model each needs additional memory"),
        "prefix_ram_bytes": f"an eighth of the remaining memory, {size(plan.prefix_ram_bytes)}",
        "prefix_disk_bytes": f"a tenth of the free disk space, {size(plan.prefix_disk_bytes)}",
    }  # fmt: skip
    if machine.gpu_name:
        texts["n_gpu_layers"] = (
            f"{machine.gpu_name} computes {max(0, options.n_gpu_layers - 1)} of {profile.n_layers} layers, "
            f"{size(memory.gpu)} of {size(machine.gpu_free_bytes or machine.available_bytes)}"
        )
    return texts


def _n_ctx_reason(profile: ModelProfile, n_ctx: int, *, is_set: bool) -> str:
    if is_set:
        return "set by the user"
    if n_ctx == profile.n_ctx_train:
        return "the context length that the model was trained with"
    if n_ctx == default_n_ctx(profile):
        trained = (
            f"the model was trained with {profile.n_ctx_train}" if profile.n_ctx_train else "the maximum is unknown"
        )
        return f"the default; {trained}"
    return "the longest that fits"


def does_not_fit(profile: ModelProfile, machine: Machine, least: MemoryEstimate, n_ctx: int | None) -> str:
    """Return the error message for a model that does not fit; `least` is the memory of its smallest load variant."""
    context = f"a context of {n_ctx} tokens" if n_ctx else "its shortest context"
    weights = least.weights + least.repacked
    return (
        f"{profile.path} needs about {size(least.total)} with {context} (weights {size(weights)}, "
        f"KV cache {size(least.kv_cache)}, other buffers {size(least.total - weights - least.kv_cache)}), "
        f"but {size(machine.available_bytes)} are available{machine.other_instances}. Close other programs, "
        f"{'set a shorter context with --ctx, ' if n_ctx else ''}or choose a smaller model "
        "(`edgechat plan` shows which fit)."
    )
