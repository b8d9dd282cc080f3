"""Choice of a model drafter for a plan, and the memory that it needs beside its target."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from edgechat.humanize import format_size
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.drafter_plan import (
    DRAFTER_CELLS,
    DRAFTER_UBATCH,
    EAGLE3_UBATCH,
    MAX_DRAFTED_SEQS,
    MAX_HIDDEN_ROWS,
    MAX_MODEL_DRAFT_TOKENS,
    DrafterKind,
    DrafterPlan,
)
from edgechat.planner.load_plan import N_BATCH
from edgechat.planner.memory import (
    N_OUTPUTS,
    LoadOptions,
    compute_vocabulary_bytes,
    estimate_buffers,
    estimate_context_buffers,
)

_F32_BYTES: Final = 4
_MASK_BYTES: Final = 2  # an attention mask has F16 values
# Fraction of the free memory that a drafter may take which the user did not name: a long context is worth more.
_AUTOMATIC_DIVISOR: Final = 2


class DrafterChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Model or heads that a plan adds as its drafter if there is room, or the reason why there are none."""

    reason: str
    """Why these were chosen, or why none were, as a clause."""
    kind: DrafterKind | None = None
    """Kind of the drafter; None for none."""
    name: str = ""
    """Name of the draft model or of the heads for the user."""
    profile: ModelProfile | None = None
    """Profile of the draft model or of the heads; that of the target for heads in its own file."""
    is_required: bool = False
    """True if the user named the drafter: it may take all free memory, and its absence is a concession."""
    refusal: str = ""
    """Why the drafter that the user named is not used, as a clause; "" if it is used, or if the user named none."""
    gpu_problem: str = ""
    """Why the drafter must not be placed on the GPUs, as a sentence without a full stop; "" if it may."""
    fallback: DrafterChoice | None = None
    """Heads of the model itself, which are used if a drafter that the user named has no room."""


NO_DRAFTER: Final = DrafterChoice(reason="")
"""No drafter, without a reason to show."""


class AddedDrafter(msgspec.Struct, frozen=True):
    """Drafter of a plan, if there is room for one."""

    plan: DrafterPlan | None
    reason: str
    concession: str = ""
    """Concession of the plan if the drafter that the user named has no room; otherwise ""."""
    refusal: str = ""
    """Why the drafter that the user named is not used, as a clause; "" if it is used, or if the user named none."""


class RemainingMemory(NamedTuple):
    """Memory that the plan of the target leaves, in bytes; negative if it does not fit."""

    cpu: int
    gpu: int | None
    """None without layers on a GPU whose memory is limited; then buffers on the GPU are CPU memory."""
    is_unified: bool = False
    """True if the GPU shares the memory of the CPU: buffers on it take both."""

    @property
    def smaller(self) -> int:
        """The fuller of both memories."""
        return self.cpu if self.gpu is None else min(self.cpu, self.gpu)

    def divide(self, divisor: int) -> RemainingMemory:
        """Return a fraction of both memories."""
        gpu_bytes = self.gpu // divisor if self.gpu is not None else None
        return self._replace(cpu=self.cpu // divisor, gpu=gpu_bytes)

    def find_shortage(self, plan: DrafterPlan) -> tuple[int, int] | None:
        """Return the needed and the free bytes of the memory that has no room for a drafter; None if both have."""
        cpu_bytes = plan.total if self.gpu is None or self.is_unified else plan.cpu
        needed = [(cpu_bytes, self.cpu), *([(plan.gpu, self.gpu)] if self.gpu is not None else [])]
        return next(((n_bytes, max(0, free)) for n_bytes, free in needed if n_bytes > max(0, free)), None)


def add_drafter(
    choice: DrafterChoice, target: ModelProfile, options: LoadOptions, free: RemainingMemory, *, has_concessions: bool
) -> AddedDrafter:
    """Return the plan of the chosen drafter, or why it is left out.

    The drafter is the first concession of a plan: it is left out if the plan of the target alone `has_concessions`.
    If a drafter that the user named has no room, the heads of the model itself are tried. `options` are those of the
    target, and `free` is the memory that its plan leaves.
    """
    added = _add_one_drafter(choice, target, options, free, has_concessions=has_concessions)
    if added.plan is not None or not choice.is_required:
        return msgspec.structs.replace(added, refusal=choice.refusal)
    heads = None
    if choice.fallback is not None:
        heads = _add_one_drafter(choice.fallback, target, options, free, has_concessions=has_concessions)
    return AddedDrafter(
        heads.plan if heads is not None else None, heads.reason if heads is not None else added.reason,
        added.concession, refusal=added.reason,
    )  # fmt: skip


def _add_one_drafter(
    choice: DrafterChoice, target: ModelProfile, options: LoadOptions, free: RemainingMemory, *, has_concessions: bool
) -> AddedDrafter:
    if choice.kind is None or choice.profile is None:
        return AddedDrafter(None, choice.reason)
    if target.n_state_layers and not options.n_rs_seq:
        reason = f"{choice.name} is not used, because no memory is left for copies of recurrent states"
        return AddedDrafter(None, reason, _make_concession(choice))
    if choice.gpu_problem and options.n_gpu_layers:
        return AddedDrafter(None, f"{choice.name} is left out: {choice.gpu_problem}")
    plan = estimate_drafter(choice.kind, choice.profile, target, options)
    if has_concessions:
        reason = f"{choice.name} needs {format_size(plan.total)}, and the model itself does not have enough memory"
        return AddedDrafter(None, reason, _make_concession(choice))
    shortage = (free if choice.is_required else free.divide(_AUTOMATIC_DIVISOR)).find_shortage(plan)
    if shortage is not None:
        needed_bytes, free_bytes = shortage
        reason = f"{choice.name} needs {format_size(needed_bytes)}, and only {format_size(free_bytes)} are left for it"
        return AddedDrafter(None, reason, _make_concession(choice))
    return AddedDrafter(
        msgspec.structs.replace(plan, name=choice.name, is_named=choice.is_required),
        f"{choice.name}, {choice.reason}; needs {format_size(plan.total)}",
    )


def _make_concession(choice: DrafterChoice) -> str:
    return f"{choice.name} is not loaded for drafts" if choice.is_required else ""


def estimate_drafter(
    kind: DrafterKind, profile: ModelProfile, target: ModelProfile, options: LoadOptions
) -> DrafterPlan:
    """Return the plan of a drafter with its memory, for a target with `options`.

    `profile` is that of the draft model or of the heads, or that of the target for heads in its own file.
    """
    n_seqs = min(options.n_seqs, MAX_DRAFTED_SEQS)
    max_tokens = min(MAX_MODEL_DRAFT_TOKENS, options.n_rs_seq) if target.n_state_layers else MAX_MODEL_DRAFT_TOKENS
    computed_profile = make_heads_profile(profile) if kind == "mtp" else _fill_windows(profile)
    has_states = kind == "draft-model" and profile.n_state_layers > 0
    # Drafts after a recurrent state are computed on a copy of the sequence.
    n_own_seqs = n_seqs * (2 if has_states else 1)
    n_ubatch, n_outputs = DRAFTER_UBATCH, n_own_seqs
    if kind == "eagle3":
        n_ubatch = n_outputs = max(EAGLE3_UBATCH, n_seqs)
    # `estimate` adds a sequence that the context of a drafter does not have.
    drafter_options = LoadOptions(
        n_ctx=DRAFTER_CELLS * n_seqs, n_seqs=n_own_seqs - 1, n_ubatch=n_ubatch, use_mmap=options.use_mmap,
        use_extra_bufts=options.use_extra_bufts, n_gpu_layers=options.n_gpu_layers,
    )  # fmt: skip
    if kind == "mtp" and options.n_gpu_layers <= computed_profile.n_layers:  # the first layers after the output layer
        drafter_options = msgspec.structs.replace(drafter_options, n_gpu_layers=0)
    context = estimate_context_buffers(computed_profile, drafter_options, n_outputs)
    # An assistant attends to all cells of its target, and can compute one token of each sequence of the target.
    bytes_per_cell = max(EAGLE3_UBATCH, options.n_seqs + 2) * _MASK_BYTES if kind == "assistant" else 0
    weights = _estimate_weights(kind, profile, drafter_options)
    output_bytes = n_outputs * max(profile.n_vocab, target.n_vocab) * _F32_BYTES
    return DrafterPlan(
        kind=kind, model_path="" if kind == "mtp" else profile.path, n_seqs=n_seqs, max_tokens=max_tokens,
        weights=weights.cpu, mapped_weights=weights.mapped, kv_cache=context.kv_cache,
        compute=context.compute + output_bytes + _estimate_hidden_rows(kind, target, options.n_seqs),
        gpu=weights.gpu + context.gpu, bytes_per_cell=bytes_per_cell,
    ).resize_target(options.n_ctx)  # fmt: skip


def _fill_windows(profile: ModelProfile) -> ModelProfile:
    """Return the profile of a drafter, whose layers have cells for the whole context even if they need only a window.

    Otherwise draft tokens could not be removed.
    """
    layers = tuple(
        msgspec.structs.replace(layer, cache_kind="full") if layer.cache_kind == "window" else layer
        for layer in profile.layers
    )  # fmt: skip
    return msgspec.structs.replace(profile, layers=layers)


def make_heads_profile(profile: ModelProfile) -> ModelProfile:
    """Return the profile of the prediction layers (MTP) of a model alone, as if they were a model."""
    first_layer = profile.n_layers - profile.n_skipped_layers
    layers = tuple(msgspec.structs.replace(layer, cache_kind="full") for layer in profile.layers[first_layer:])
    tensors = tuple(t for t in profile.tensors if t.layer_index is not None and t.layer_index >= first_layer)
    return msgspec.structs.replace(
        profile.with_tensors(profile.path, tensors), layers=layers, n_skipped_layers=0, inner_size=0, state_width=0
    )


class _Weights(NamedTuple):
    """Memory of weights, in bytes; `mapped` is the part of `cpu` that is mapped from the model file."""

    cpu: int
    gpu: int
    mapped: int


def _estimate_weights(kind: DrafterKind, profile: ModelProfile, options: LoadOptions) -> _Weights:
    """Return the memory of the weights.

    The heads in the file of the target count with the size of their tensors, which are either mapped or copied into
    another layout. A file of its own also has a vocabulary.
    """
    if kind == "mtp":
        n_bytes = make_heads_profile(profile).tensor_bytes
        return _Weights(0, n_bytes, 0) if options.n_gpu_layers else _Weights(n_bytes, 0, n_bytes * options.use_mmap)
    sizes = estimate_buffers(profile, options)
    gpu_bytes = sizes.gpu - estimate_context_buffers(profile, options).gpu
    cpu_bytes = sizes.weights + sizes.repacked_weights + compute_vocabulary_bytes(profile)
    return _Weights(cpu_bytes, gpu_bytes, sizes.weights * options.use_mmap)


def _estimate_hidden_rows(kind: DrafterKind, target: ModelProfile, n_seqs: int) -> int:
    """Return the memory of the hidden rows of a target with `n_seqs` sequences for the heads, in bytes.

    llama.cpp computes three layers for each token of a batch, and otherwise the last layer for outputs only; the newest
    rows of each sequence are kept.
    """
    if kind == "draft-model":
        return 0
    n_computed, n_joined = (3 * N_BATCH, 3) if kind == "eagle3" else (N_OUTPUTS, 1)
    return (n_computed + n_joined * MAX_HIDDEN_ROWS * n_seqs) * target.n_embd * _F32_BYTES
