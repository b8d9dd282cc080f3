"""Load variants: options for loading a model, in order of decreasing memory, with the concessions of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.gpu_use import predict_turn_s, put_prefill_on_gpu
from edgechat.planner.kv_memory import round_up_to_cells
from edgechat.planner.kv_types import DIVERGENCE_BY_KV_TYPE, KvType, list_kv_types, size_share, split_kv_type
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions
from edgechat.planner.quality import compute_next_quant_divergence

DEFAULT_N_CTX: Final = 8192
MIN_N_CTX: Final = 512
_MIN_N_CTX_TRAIN: Final = 16
"""Shortest plausible context length in training; a shorter value in a header is ignored as invalid."""
N_UBATCHES: Final = (512, 128)
# Context lengths to try as an early concession.
_N_CTXS: Final = (8192, 4096, 2048)
# Context lengths to try as the last concession.
_SMALL_N_CTXS: Final = (1024, 512)
# Context lengths to try for embedding models. They read a text in one batch, so the context limits the text's length.
_EMBEDDING_N_CTXS: Final = (2048, 1024, 512, 256)

# YaRN factors are multiples of this number.
_YARN_STEP: Final = 0.5
FEW_SEQS: Final = 4
MANY_SEQS: Final = 8
_NO_MMAP_CONCESSION: Final = "the weights are read instead of mapped, to avoid a copy of those on the GPU"


class LoadVariant(NamedTuple):
    """Load options, with the concessions that distinguish them from the best options."""

    options: LoadOptions
    concessions: tuple[str, ...]


def default_n_seqs(profile: ModelProfile) -> int:
    """Return the default number of sequences, which is lower if each sequence needs additional memory."""
    return FEW_SEQS if profile.has_costly_sequences else MANY_SEQS


def default_n_ctx(profile: ModelProfile) -> int:
    """Return the default context length of a model: `DEFAULT_N_CTX`, or less if the model was trained with less."""
    n_ctx_train = profile.n_ctx_train
    return min(n_ctx_train, DEFAULT_N_CTX) if n_ctx_train >= _MIN_N_CTX_TRAIN else DEFAULT_N_CTX


def compute_yarn_factor(profile: ModelProfile, n_ctx: int) -> float:
    """Return the YaRN factor for a context of `n_ctx` tokens; 1.0 for a model that YaRN cannot or need not extend.

    The factor is rounded up, so that contexts of similar lengths share their cached prefixes.
    """
    if not profile.supports_yarn or n_ctx <= profile.n_ctx_train:
        return 1.0
    return math.ceil(round_up_to_cells(n_ctx) / profile.n_ctx_train / _YARN_STEP) * _YARN_STEP


def list_load_variants(profile: ModelProfile, machine: Machine, n_ctx: int | None) -> Iterator[LoadVariant]:
    """Yield load variants in the order in which `plan` tries them; `n_ctx` is the context length that the user set.

    The uses of a GPU whose speed was measured are tried in the order of the time that a typical turn takes with them,
    and those that are slower than the CPU last. Before the context is shortened for a faster use, all other faster uses
    and the CPU are tried.
    """
    if profile.is_embedding:
        yield from _list_embedding_variants(profile, n_ctx)
        return
    best_options = LoadOptions(
        n_ctx=n_ctx or default_n_ctx(profile), n_seqs=default_n_seqs(profile),
        yarn_factor=compute_yarn_factor(profile, n_ctx or 0),
    )  # fmt: skip
    cpu_variants = _list_cpu_variants(profile, best_options, may_shorten_context=n_ctx is None)
    if not machine.gpu_is_unified and not machine.gpu_free_bytes:
        yield from cpu_variants
        return
    list_gpu_variants = _list_unified_variants if machine.gpu_is_unified else _list_gpu_variants
    gpu_variants = list_gpu_variants(profile, best_options, may_shorten_context=n_ctx is None)
    cpu_s = predict_turn_s(profile, best_options, machine.gpu_speeds)
    if math.isinf(cpu_s):  # the speed of the GPU was not measured
        yield from gpu_variants
        yield from cpu_variants
        return
    prefill_options = put_prefill_on_gpu(best_options)
    prefill_variants = _list_cpu_variants(profile, prefill_options, may_shorten_context=n_ctx is None)
    timed_variants = [
        (predict_turn_s(profile, variant.options, machine.gpu_speeds), variant)
        for variant in (*gpu_variants, *prefill_variants)
    ]
    timed_variants.sort(key=lambda timed: timed[0])  # keeps the order of concessions that do not change the time
    faster_variants = [variant for turn_s, variant in timed_variants if turn_s < cpu_s]
    preferred_variants = [*faster_variants, *cpu_variants]
    # Sorting keeps the order of both kinds, and puts the shortened contexts last.
    yield from sorted(preferred_variants, key=lambda variant: variant.options.n_ctx < best_options.n_ctx)
    yield from (variant for turn_s, variant in timed_variants if turn_s >= cpu_s)


def _list_cpu_variants(
    profile: ModelProfile, best_options: LoadOptions, *, may_shorten_context: bool
) -> Iterator[LoadVariant]:
    """Yield the best options, then variants with cumulative concessions.

    The concessions are: a KV cache in smaller types, shorter contexts, smaller micro-batches, and the shortest
    contexts.
    """
    yield LoadVariant(best_options, ())
    options, concessions = best_options, dict[str, str]()
    for kv_type in list_offered_kv_types(profile, on_gpu=best_options.n_gpu_layers > 0)[1:]:
        options = msgspec.structs.replace(options, kv_type=kv_type)
        concessions["kv_type"] = describe_kv_type(kv_type)
        yield LoadVariant(options, tuple(concessions.values()))
    for n_ctx in _N_CTXS if may_shorten_context else ():
        if n_ctx < best_options.n_ctx:
            options = msgspec.structs.replace(options, n_ctx=n_ctx)
            concessions["n_ctx"] = _describe_context_concession(n_ctx, best_options)
            yield LoadVariant(options, tuple(concessions.values()))
    options = msgspec.structs.replace(options, n_ubatch=N_UBATCHES[-1])
    concessions["n_ubatch"] = f"micro-batches of {N_UBATCHES[-1]} tokens, which slow prefill down"
    yield LoadVariant(options, tuple(concessions.values()))
    for n_ctx in _SMALL_N_CTXS if may_shorten_context else ():
        if n_ctx < options.n_ctx:
            concessions["n_ctx"] = _describe_context_concession(n_ctx, best_options)
            yield LoadVariant(msgspec.structs.replace(options, n_ctx=n_ctx), tuple(concessions.values()))


def _describe_context_concession(n_ctx: int, best_options: LoadOptions) -> str:
    return f"context of {n_ctx} tokens instead of {best_options.n_ctx}"


def _list_embedding_variants(profile: ModelProfile, n_ctx: int | None) -> Iterator[LoadVariant]:
    max_n_ctx = profile.n_ctx_train or _EMBEDDING_N_CTXS[0]  # longer contexts may lack position embeddings of the model
    n_ctxs = (n_ctx,) if n_ctx else _EMBEDDING_N_CTXS
    for length in sorted({min(length, max_n_ctx) for length in n_ctxs}, reverse=True):
        yield LoadVariant(LoadOptions(n_ctx=length, n_seqs=1, n_ubatch=length), ())


def list_offered_kv_types(profile: ModelProfile, *, on_gpu: bool = False) -> tuple[KvType, ...]:
    """Return the KV cache types that plans may use, largest first.

    A type below Q8_0 is offered if it changes the predictions less than the next smaller quant of the weights would.
    """
    max_divergence = compute_next_quant_divergence(profile.quant)
    return tuple(
        kv_type for kv_type in list_kv_types(profile, on_gpu=on_gpu)
        if kv_type in {"f16", "q8_0"} or DIVERGENCE_BY_KV_TYPE[kv_type] < max_divergence
    )  # fmt: skip


def describe_kv_type(kv_type: KvType) -> str:
    """Describe a KV cache in `kv_type` as a concession: `the KV cache is stored in Q4_0, at 28 % of the size`."""
    key_type, value_type = (name.upper() for name in split_kv_type(kv_type))
    types = key_type if key_type == value_type else f"{key_type} (keys) and {value_type} (values)"
    return f"the KV cache is stored in {types}, at {size_share(kv_type):.0%} of the size"


def _list_gpu_variants(
    profile: ModelProfile, best_options: LoadOptions, *, may_shorten_context: bool
) -> Iterator[LoadVariant]:
    """Yield variants for a GPU with its own memory: each first with memory mapping, and then without it.

    Without memory mapping, there is no copy of the GPU weights in CPU memory.
    """
    for variant in _list_layer_variants(profile, best_options, may_shorten_context=may_shorten_context):
        yield variant
        yield LoadVariant(
            msgspec.structs.replace(variant.options, use_mmap=False), (*variant.concessions, _NO_MMAP_CONCESSION)
        )


def _list_unified_variants(
    profile: ModelProfile, best_options: LoadOptions, *, may_shorten_context: bool
) -> Iterator[LoadVariant]:
    """Yield variants for a GPU that shares the memory of the CPU, so that mapped pages would be a second copy."""
    best_options = msgspec.structs.replace(best_options, use_mmap=False)
    yield from _list_layer_variants(profile, best_options, may_shorten_context=may_shorten_context)
    all_gpu_options = msgspec.structs.replace(best_options, n_gpu_layers=profile.n_layers + 1)
    yield from _list_cpu_variants(profile, all_gpu_options, may_shorten_context=may_shorten_context)


def _list_layer_variants(
    profile: ModelProfile, best_options: LoadOptions, *, may_shorten_context: bool
) -> Iterator[LoadVariant]:
    """Yield variants with the whole model on the GPU, then variants that need less GPU memory.

    The concessions are: a KV cache in smaller types, then also a shorter context, experts in CPU memory, and fewer
    layers on the GPU.
    """
    all_gpu_options = msgspec.structs.replace(best_options, n_gpu_layers=profile.n_layers + 1)
    yield LoadVariant(all_gpu_options, ())
    options, concessions = all_gpu_options, dict[str, str]()
    for kv_type in list_offered_kv_types(profile, on_gpu=True)[1:]:
        options = msgspec.structs.replace(options, kv_type=kv_type)
        concessions["kv_type"] = describe_kv_type(kv_type)
        yield LoadVariant(options, tuple(concessions.values()))
    if may_shorten_context and _N_CTXS[1] < best_options.n_ctx:
        concessions["n_ctx"] = _describe_context_concession(_N_CTXS[1], best_options)
        yield LoadVariant(msgspec.structs.replace(options, n_ctx=_N_CTXS[1]), tuple(concessions.values()))
    if profile.n_experts:
        cpu_expert_options = msgspec.structs.replace(all_gpu_options, experts_on_cpu=True)
        yield LoadVariant(cpu_expert_options, ("the experts stay in CPU memory",))
    for n_layers in range(profile.n_layers - 1, 0, -max(1, profile.n_layers // 16)):
        concession = f"{n_layers} of {profile.n_layers} layers fit on the GPU"
        yield LoadVariant(msgspec.structs.replace(best_options, n_gpu_layers=n_layers + 1), (concession,))
