"""How a model is loaded, and what that takes."""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.errors import PlanError
from edgechat.modelfile.header import ModelHeader
from edgechat.planner.context import context_bytes, states_bytes

DEFAULT_N_CTX: Final = 8192
MIN_N_CTX: Final = 512
N_UBATCH: Final = 512
_F32_BYTES: Final = 4

# Client, renderer and engine without the model: 46 and 24 MB measured for the first two on Linux x86-64, and under
# 64 MB for the engine with the buffers of a short context.
PROCESS_BYTES: Final = 128 << 20


FEW_SEQS: Final = 4
MANY_SEQS: Final = 8
# Of the memory that is left, and of the disk: a small board must not inherit a workstation's caches.
PREFIX_RAM_SHARE: Final = 8
MAX_PREFIX_RAM_BYTES: Final = 2 << 30
PREFIX_DISK_SHARE: Final = 10
MAX_PREFIX_DISK_BYTES: Final = 4 << 30

SPECULATION_SHARE: Final = 16
MAX_DRAFT_TOKENS: Final = 1 << 17
# Of each token in a suffix index and in what stands beside it; see native/src/edgechat.h.
_INDEX_BYTES: Final = 64
# States for batches of 8, 4 and 2.
_N_RS_SEQ: Final = (7, 3, 1)

# Types that some CPU module keeps in a layout of its own (ggml-cpu/repack.cpp, amx.cpp): with a mapped file
# that is a second copy of these weights.
_REPACKED: Final = frozenset(("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"))


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by what they are for."""

    weights: int
    repacked: int
    """A second copy of weights whose kernels want another layout; at most this much, and only beside a mapped file."""
    kv_cache: int
    compute: int
    speculation: int = 0
    """Copies of states that drafts can be taken back to, and indices of texts."""
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.repacked + self.kv_cache + self.compute + self.speculation + self.process


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that loading a model needs to be told."""

    model_path: str
    n_ctx: int
    n_threads: int
    n_batch: int
    n_ubatch: int
    use_mmap: bool
    use_extra_bufts: bool
    n_seqs: int
    """Branches and conversations that are live at a time."""
    prefix_ram_bytes: int
    """For prefixes that are not live."""
    prefix_disk_bytes: int
    """For all prefixes on disk."""
    speculation: bool
    n_rs_seq: int
    """Where memory is a state: how many drafted tokens can be taken back."""
    draft_tokens: int
    """Of other conversations, in which drafts are looked for."""
    estimate: MemoryEstimate


def estimate(header: ModelHeader, n_ctx: int, *, use_mmap: bool = True, n_ubatch: int = N_UBATCH) -> MemoryEstimate:
    """Memory for `header` with a context of `n_ctx` tokens.

    Compute buffers hold, per token of a micro batch, the logits and a few times the widest activations.
    """
    widest = max(header.number("feed_forward_length"), header.n_embd)
    return MemoryEstimate(
        weights=header.tensor_bytes,
        repacked=sum(t.size_bytes for t in header.tensors if t.type in _REPACKED) if use_mmap else 0,
        # And one sequence more, in which parts of others are put together.
        kv_cache=context_bytes(header, n_ctx, n_seqs=n_seqs_of(header) + 1, n_ubatch=min(n_ubatch, n_ctx)),
        compute=min(n_ubatch, n_ctx) * (header.n_vocab + 4 * widest) * _F32_BYTES,
        speculation=n_ctx * _INDEX_BYTES,
    )


def n_seqs_of(header: ModelHeader) -> int:
    """Branches and conversations that are live at a time: few where each takes memory of its own."""
    return FEW_SEQS if header.has_state or header.number("attention.sliding_window") else MANY_SEQS


def _speculation(header: ModelHeader, left_bytes: int) -> tuple[int, int, int]:
    """How many drafted tokens a state can take back, tokens of other conversations to draft from, and bytes for both."""
    share = max(0, left_bytes) // SPECULATION_SHARE
    state = states_bytes(header, n_seqs_of(header) + 1)
    n_rs_seq = next((n for n in _N_RS_SEQ if n * state <= share), 0) if state else 0
    draft_tokens = min(MAX_DRAFT_TOKENS, (share - n_rs_seq * state) // _INDEX_BYTES)
    return n_rs_seq, draft_tokens, n_rs_seq * state + draft_tokens * _INDEX_BYTES


def plan(
    header: ModelHeader,
    *,
    available_bytes: int,
    n_threads: int,
    n_ctx: int | None = None,
    disk_free_bytes: int = 0,
    speculation: bool = True,
) -> LoadPlan:
    """The plan for one model file within `available_bytes`, and `disk_free_bytes` where prefixes are kept.

    If two copies of the weights might not fit, the file is read instead of mapped, which leaves one. Then, without
    a wish for `n_ctx`, the context shrinks from `DEFAULT_N_CTX` until it fits. Raises PlanError, with the
    numbers, if nothing does.
    """
    chosen = n_ctx or min(header.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
    needed = estimate(header, chosen)
    use_mmap = needed.total <= available_bytes
    if not use_mmap:
        needed = estimate(header, chosen, use_mmap=False)
    while n_ctx is None and needed.total > available_bytes and chosen > MIN_N_CTX:
        chosen = max(MIN_N_CTX, chosen // 2)
        needed = estimate(header, chosen, use_mmap=False)
    if needed.total > available_bytes:
        raise PlanError(
            f"{header.path} needs about {_mib(needed.total)} with a context of {chosen} tokens "
            f"(weights {_mib(needed.weights)}, KV cache {_mib(needed.kv_cache)}, the rest "
            f"{_mib(needed.compute + needed.process)}), but {_mib(available_bytes)} are available: "
            "close other programs, ask for a smaller context with --ctx, or take a smaller model"
        )
    n_rs_seq = draft_tokens = 0
    if speculation:
        n_rs_seq, draft_tokens, taken = _speculation(header, available_bytes - needed.total)
        needed = msgspec.structs.replace(needed, speculation=needed.speculation + taken)
    return LoadPlan(
        model_path=header.path, n_ctx=chosen, n_threads=n_threads, n_batch=N_UBATCH, n_ubatch=N_UBATCH,
        use_mmap=use_mmap, use_extra_bufts=True,
        n_seqs=n_seqs_of(header),
        prefix_ram_bytes=min((available_bytes - needed.total) // PREFIX_RAM_SHARE, MAX_PREFIX_RAM_BYTES),
        prefix_disk_bytes=min(disk_free_bytes // PREFIX_DISK_SHARE, MAX_PREFIX_DISK_BYTES),
        speculation=speculation, n_rs_seq=n_rs_seq, draft_tokens=draft_tokens, estimate=needed,
    )  # fmt: skip


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
