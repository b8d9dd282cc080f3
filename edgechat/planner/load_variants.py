"""Load variants: options for loading a model, in order of decreasing memory, with the concessions of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions

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

FEW_SEQS: Final = 4
MANY_SEQS: Final = 8
_Q8_BLOCK: Final = 32
_NO_MMAP_CONCESSION: Final = "the weights are read instead of mapped, to avoid a second copy in memory"


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


def list_load_variants(profile: ModelProfile, machine: Machine, n_ctx: int | None) -> Iterator[LoadVariant]:
    """Yield load variants in the order in which `plan` tries them; `n_ctx` is the context length that the user set."""
    if profile.is_embedding:
        yield from _list_embedding_variants(profile, n_ctx)
        return
    best_options = LoadOptions(n_ctx=n_ctx or default_n_ctx(profile), n_seqs=default_n_seqs(profile))
    if machine.gpu_is_unified:  # GPU and CPU share memory, so mapped pages would be a second copy of the weights
        best_options = msgspec.structs.replace(best_options, n_gpu_layers=profile.n_layers + 1, use_mmap=False)
    elif machine.gpu_free_bytes:
        yield from _list_gpu_variants(profile, best_options, may_shorten_context=n_ctx is None)
    yield from _list_cpu_variants(profile, best_options, may_shorten_context=n_ctx is None)


def _list_cpu_variants(
    profile: ModelProfile, best_options: LoadOptions, *, may_shorten_context: bool
) -> Iterator[LoadVariant]:
    """Yield the best options, then variants with cumulative concessions.

    The concessions are: no memory mapping, shorter contexts, a KV cache in Q8_0, smaller micro-batches, and the
    shortest contexts.
    """
    yield LoadVariant(best_options, ())
    options, concessions = msgspec.structs.replace(best_options, use_mmap=False), dict[str, str]()
    if best_options.use_mmap:
        concessions["use_mmap"] = _NO_MMAP_CONCESSION
        yield LoadVariant(options, tuple(concessions.values()))
    for n_ctx in _N_CTXS if may_shorten_context else ():
        if n_ctx < best_options.n_ctx:
            options = msgspec.structs.replace(options, n_ctx=n_ctx)
            concessions["n_ctx"] = _describe_context_concession(n_ctx, best_options)
            yield LoadVariant(options, tuple(concessions.values()))
    if _can_use_q8(profile):
        options = msgspec.structs.replace(options, kv_type="q8_0")
        concessions["kv_type"] = "the KV cache is stored in Q8_0, at half the size"
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


def _can_use_q8(profile: ModelProfile) -> bool:
    """Return whether every attention head consists of whole Q8_0 blocks, as llama.cpp requires for a Q8_0 cache."""
    return all(
        layer.key_length % _Q8_BLOCK == layer.value_length % _Q8_BLOCK == 0
        for layer in profile.layers if layer.kv_width
    )  # fmt: skip


def _list_gpu_variants(
    profile: ModelProfile, best_options: LoadOptions, *, may_shorten_context: bool
) -> Iterator[LoadVariant]:
    """Yield variants with the whole model on the GPU, then variants that need less GPU memory.

    The concessions are: a shorter context, experts in CPU memory, and fewer layers on the GPU. Each variant is yielded
    first with memory mapping, and then without it, which avoids a copy of the GPU weights in CPU memory.
    """
    all_gpu_options = msgspec.structs.replace(best_options, n_gpu_layers=profile.n_layers + 1)
    variants = [LoadVariant(all_gpu_options, ())]
    if may_shorten_context and _N_CTXS[1] < best_options.n_ctx:
        shorter_options = msgspec.structs.replace(all_gpu_options, n_ctx=_N_CTXS[1])
        variants.append(
            LoadVariant(shorter_options, (_describe_context_concession(shorter_options.n_ctx, best_options),))
        )
    if profile.n_experts:
        cpu_expert_options = msgspec.structs.replace(all_gpu_options, experts_on_cpu=True)
        variants.append(LoadVariant(cpu_expert_options, ("the experts stay in CPU memory",)))
    for n_layers in range(profile.n_layers - 1, 0, -max(1, profile.n_layers // 16)):
        concession = f"{n_layers} of {profile.n_layers} layers fit on the GPU"
        variants.append(LoadVariant(msgspec.structs.replace(best_options, n_gpu_layers=n_layers + 1), (concession,)))
    for options, concessions in variants:
        yield LoadVariant(options, concessions)
        yield LoadVariant(msgspec.structs.replace(options, use_mmap=False), (*concessions, _NO_MMAP_CONCESSION))
