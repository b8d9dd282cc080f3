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
"""Shortest plausible trained context; a shorter one in a header is ignored as invalid."""
N_UBATCHES: Final = (512, 128)
# Context lengths that are tried as an early concession, and as the last concession.
_N_CTXS: Final = (8192, 4096, 2048)
_SMALL_N_CTXS: Final = (1024, 512)
# Context lengths for embedding models, which read a text in one batch; the context also limits the length of a text.
_EMBEDDING_N_CTXS: Final = (2048, 1024, 512, 256)

FEW_SEQS: Final = 4
MANY_SEQS: Final = 8
_Q8_BLOCK: Final = 32
_READ_CONCESSION: Final = "the weights are read instead of mapped, to avoid a second copy in memory"


class LoadVariant(NamedTuple):
    """Load options, with their concessions compared with the best options."""

    options: LoadOptions
    concessions: tuple[str, ...]


def default_n_seqs(profile: ModelProfile) -> int:
    """Return the default number of sequences; it is smaller if each sequence needs additional memory."""
    return FEW_SEQS if profile.has_costly_sequences else MANY_SEQS


def default_n_ctx(profile: ModelProfile) -> int:
    """Return the default context length of a model."""
    trained = profile.n_ctx_train
    return min(trained, DEFAULT_N_CTX) if trained >= _MIN_N_CTX_TRAIN else DEFAULT_N_CTX


def load_variants(profile: ModelProfile, machine: Machine, n_ctx: int | None) -> Iterator[LoadVariant]:
    """Yield load variants in the order in which a plan tries them; `n_ctx` is the context length that the user set."""
    if profile.is_embedding:
        yield from _embedding_variants(profile, n_ctx)
        return
    best = LoadOptions(n_ctx=n_ctx or default_n_ctx(profile), n_seqs=default_n_seqs(profile))
    if machine.gpu_is_unified:  # GPU and CPU share the memory, where mapped pages would be a second copy
        best = msgspec.structs.replace(best, n_gpu_layers=profile.n_layers + 1, use_mmap=False)
    elif machine.gpu_free_bytes:
        yield from _gpu_variants(profile, best, may_shorten_context=n_ctx is None)
    yield from _cpu_variants(profile, best, may_shorten_context=n_ctx is None)


def _cpu_variants(profile: ModelProfile, best: LoadOptions, *, may_shorten_context: bool) -> Iterator[LoadVariant]:
    """Yield the best options, then reduce mapping, context, KV precision, micro-batch size, and context again."""
    yield LoadVariant(best, ())
    options, concessions = msgspec.structs.replace(best, use_mmap=False), dict[str, str]()
    if best.use_mmap:
        concessions["use_mmap"] = _READ_CONCESSION
        yield LoadVariant(options, tuple(concessions.values()))
    for n_ctx in _N_CTXS if may_shorten_context else ():
        if n_ctx < best.n_ctx:
            options = msgspec.structs.replace(options, n_ctx=n_ctx)
            concessions["n_ctx"] = _context_concession(n_ctx, best)
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
            concessions["n_ctx"] = _context_concession(n_ctx, best)
            yield LoadVariant(msgspec.structs.replace(options, n_ctx=n_ctx), tuple(concessions.values()))


def _context_concession(n_ctx: int, best: LoadOptions) -> str:
    return f"context of {n_ctx} tokens instead of {best.n_ctx}"


def _embedding_variants(profile: ModelProfile, n_ctx: int | None) -> Iterator[LoadVariant]:
    longest = profile.n_ctx_train or _EMBEDDING_N_CTXS[0]  # longer contexts may lack position embeddings
    lengths = (n_ctx,) if n_ctx else _EMBEDDING_N_CTXS
    for length in sorted({min(length, longest) for length in lengths}, reverse=True):
        yield LoadVariant(LoadOptions(n_ctx=length, n_seqs=1, n_ubatch=length), ())


def _can_use_q8(profile: ModelProfile) -> bool:
    """Return True if every head consists of whole Q8_0 blocks, which llama.cpp requires."""
    return all(
        layer.key_length % _Q8_BLOCK == layer.value_length % _Q8_BLOCK == 0
        for layer in profile.layers if layer.kv_width
    )  # fmt: skip


def _gpu_variants(profile: ModelProfile, best: LoadOptions, *, may_shorten_context: bool) -> Iterator[LoadVariant]:
    """Yield variants with the whole model on the GPU, then with less context, without experts, and with fewer layers.

    Every variant is yielded twice: with a mapped file, and with a file that is read, which avoids a copy of the GPU
    weights in CPU memory.
    """
    everything = msgspec.structs.replace(best, n_gpu_layers=profile.n_layers + 1)
    variants = [LoadVariant(everything, ())]
    if may_shorten_context and _N_CTXS[1] < best.n_ctx:
        shorter = msgspec.structs.replace(everything, n_ctx=_N_CTXS[1])
        variants.append(LoadVariant(shorter, (_context_concession(shorter.n_ctx, best),)))
    if profile.n_experts:
        without_experts = msgspec.structs.replace(everything, experts_on_cpu=True)
        variants.append(LoadVariant(without_experts, ("the experts stay in CPU memory",)))
    for n_layers in range(profile.n_layers - 1, 0, -max(1, profile.n_layers // 16)):
        concession = f"{n_layers} of {profile.n_layers} layers fit on the GPU"
        variants.append(LoadVariant(msgspec.structs.replace(best, n_gpu_layers=n_layers + 1), (concession,)))
    for options, concessions in variants:
        yield LoadVariant(options, concessions)
        yield LoadVariant(msgspec.structs.replace(options, use_mmap=False), (*concessions, _READ_CONCESSION))
