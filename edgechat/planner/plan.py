"""How a model is loaded: what is given up so that it fits, and why everything is as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from edgechat.errors import PlanError
from edgechat.humanize import size
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.layers import read_layers
from edgechat.planner.kv_memory import states_bytes
from edgechat.planner.machine import Machine
from edgechat.planner.memory import INDEX_BYTES, REPACKED, LoadOptions, MemoryEstimate, estimate, n_seqs_with_scratch

DEFAULT_N_CTX: Final = 8192
MIN_N_CTX: Final = 512
LEAST_N_CTX: Final = 16
"""Below this, what a file says of its context is taken for nonsense."""
N_BATCH: Final = 512
N_UBATCHES: Final = (512, 128)
# Contexts that are tried before anything else is given up, and at the very end.
_N_CTXS: Final = (8192, 4096, 2048)
_SMALL_N_CTXS: Final = (1024, 512)

FEW_SEQS: Final = 4
MANY_SEQS: Final = 8
# Of the memory that is left, and of the disk: a small board must not inherit a workstation's caches.
PREFIX_RAM_SHARE: Final = 8
MAX_PREFIX_RAM_BYTES: Final = 2 << 30
PREFIX_DISK_SHARE: Final = 10
MAX_PREFIX_DISK_BYTES: Final = 4 << 30

# Of a plan that was too large, a second one takes at most this much.
_SMALLER: Final = 0.8
_Q8_BLOCK: Final = 32
_READ_WORDS: Final = "the file is read, not mapped, so that weights are in memory once"

SPECULATION_SHARE: Final = 16
MAX_DRAFT_TOKENS: Final = 1 << 17
# States for batches of 8, 4 and 2.
_N_RS_SEQ: Final = (7, 3, 1)

# A text is read as a whole: this is the longest one.
_EMBEDDING_N_CTXS: Final = (2048, 1024, 512, 256)

Estimator = Callable[[LoadOptions], MemoryEstimate]
"""What a model takes with these options."""


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that loading a model needs to be told."""

    model_path: str
    options: LoadOptions
    n_threads: int
    n_threads_batch: int
    n_batch: int
    prefix_ram_bytes: int
    """For prefixes that are not live."""
    prefix_disk_bytes: int
    """For all prefixes on disk."""
    speculation: bool
    draft_tokens: int
    """Of other conversations, in which drafts are looked for."""
    estimate: MemoryEstimate
    concessions: tuple[str, ...] = ()
    """What was given up so that it fits, in words."""
    reasons: dict[str, str] = {}
    """Why each field is as it is."""


def default_n_seqs(header: ModelHeader) -> int:
    """Branches and conversations that are live at a time: few where each takes memory of its own."""
    return FEW_SEQS if header.has_recurrent_state or header.hparam("attention.sliding_window") else MANY_SEQS


def default_n_ctx(header: ModelHeader) -> int:
    """The context of a model that nobody asked for another one of."""
    trained = header.n_ctx_train
    return min(trained, DEFAULT_N_CTX) if trained >= LEAST_N_CTX else DEFAULT_N_CTX


def plan(
    header: ModelHeader,
    machine: Machine,
    *,
    n_ctx: int | None = None,
    speculation: bool = True,
    estimator: Estimator | None = None,
) -> LoadPlan:
    """The plan for one model file on a machine.

    What is given up, in this order, until it fits: the second copy of mapped weights, context (unless `n_ctx` asks for
    one), precision of keys and values, the size of micro batches, and more context. `estimator` says what options take,
    formulas if it is None. Raises PlanError, with the numbers, if nothing fits.
    """
    needed = least = None
    for options, trades in _ways(header, machine, n_ctx):
        needed = _needed(header, machine, options, estimator)
        if _fits(needed, options, machine):
            return _finished(header, machine, options, trades, needed, speculation=speculation, n_ctx=n_ctx)
        if least is None or needed.total < least.total:
            least = needed
    raise PlanError(_refusal(header, machine, least, n_ctx))


def smaller_plan(header: ModelHeader, machine: Machine, failed: LoadPlan, n_ctx: int | None = None) -> LoadPlan | None:
    """What to try after memory ran out with a plan all the same: what takes a fifth less; None if nothing does."""
    before = failed.estimate
    for options, trades in _ways(header, machine, n_ctx):
        needed = _needed(header, machine, options, None)
        is_less = needed.total <= _SMALLER * before.total or (bool(before.gpu) and needed.gpu <= _SMALLER * before.gpu)
        is_same = options == msgspec.structs.replace(failed.options, n_rs_seq=0)
        if is_less and not is_same and _fits(needed, options, machine):
            return _finished(header, machine, options, trades, needed, speculation=failed.speculation, n_ctx=n_ctx)
    return None


def _needed(header: ModelHeader, machine: Machine, options: LoadOptions, estimator: Estimator | None) -> MemoryEstimate:
    found = estimate(header, options, REPACKED) if estimator is None else estimator(options)
    return msgspec.structs.replace(found, is_unified=machine.gpu_is_unified)


def _fits(needed: MemoryEstimate, options: LoadOptions, machine: Machine) -> bool:
    if options.n_gpu_layers and not machine.gpu_is_unified and needed.gpu > machine.gpu_free_bytes:
        return False
    return needed.total <= machine.available_bytes


def _ways(header: ModelHeader, machine: Machine, n_ctx: int | None) -> Iterator[tuple[LoadOptions, tuple[str, ...]]]:
    """Options from the best to the most frugal, with what each of them gives up."""
    if header.is_embedding:
        return _embedding_ways(header, n_ctx)
    return _text_ways(header, machine, n_ctx)


def _text_ways(
    header: ModelHeader, machine: Machine, n_ctx: int | None
) -> Iterator[tuple[LoadOptions, tuple[str, ...]]]:
    wanted = n_ctx or default_n_ctx(header)
    full = LoadOptions(n_ctx=wanted, n_seqs=default_n_seqs(header))
    if machine.gpu_is_unified:  # what is not on the GPU is in the same memory, and mapped pages would be a second copy
        full = msgspec.structs.replace(full, n_gpu_layers=header.n_layers + 1, use_mmap=False)
    yield from _gpu_ways(header, machine, full, is_asked=n_ctx is not None)
    yield full, ()
    now, given_up = msgspec.structs.replace(full, use_mmap=False), dict[str, str]()
    if full.use_mmap:
        given_up["use_mmap"] = _READ_WORDS
        yield now, tuple(given_up.values())
    for shorter in _N_CTXS if n_ctx is None else ():
        if shorter < wanted:
            now = msgspec.structs.replace(now, n_ctx=shorter)
            given_up["n_ctx"] = f"context of {shorter} tokens instead of {wanted}"
            yield now, tuple(given_up.values())
    if _can_be_q8(header):
        now = msgspec.structs.replace(now, kv_type="q8_0")
        given_up["kv_type"] = "keys and values in Q8_0, half the size"
        yield now, tuple(given_up.values())
    now = msgspec.structs.replace(now, n_ubatch=N_UBATCHES[-1])
    given_up["n_ubatch"] = f"micro batches of {N_UBATCHES[-1]} tokens: prompts are read slower"
    yield now, tuple(given_up.values())
    for shorter in _SMALL_N_CTXS if n_ctx is None else ():
        if shorter < now.n_ctx:
            given_up["n_ctx"] = f"context of {shorter} tokens instead of {wanted}"
            yield msgspec.structs.replace(now, n_ctx=shorter), tuple(given_up.values())


def _embedding_ways(header: ModelHeader, n_ctx: int | None) -> Iterator[tuple[LoadOptions, tuple[str, ...]]]:
    longest = header.n_ctx_train or _EMBEDDING_N_CTXS[0]  # beyond it there may be no positions
    for length in sorted({min(n, longest) for n in ((n_ctx,) if n_ctx else _EMBEDDING_N_CTXS)}, reverse=True):
        yield LoadOptions(n_ctx=length, n_seqs=1, n_ubatch=length), ()


def _can_be_q8(header: ModelHeader) -> bool:
    """llama.cpp wants whole blocks of Q8_0 in a head."""
    return all(
        layer.key_length % _Q8_BLOCK == layer.value_length % _Q8_BLOCK == 0
        for layer in read_layers(header).layers if layer.kv_width
    )  # fmt: skip


def _gpu_ways(
    header: ModelHeader, machine: Machine, full: LoadOptions, *, is_asked: bool
) -> Iterator[tuple[LoadOptions, tuple[str, ...]]]:
    """Everything on the GPU, with less context, all but the experts, then as many layers as there is room for.

    Each with the file mapped, and then read, so that what is on the GPU is nowhere else.
    """
    if not machine.gpu_free_bytes or machine.gpu_is_unified:
        return
    everything = msgspec.structs.replace(full, n_gpu_layers=header.n_layers + 1)
    ways: list[tuple[LoadOptions, tuple[str, ...]]] = [(everything, ())]
    if not is_asked and _N_CTXS[1] < full.n_ctx:
        shorter = msgspec.structs.replace(everything, n_ctx=_N_CTXS[1])
        ways.append((shorter, (f"context of {shorter.n_ctx} tokens instead of {full.n_ctx}",)))
    if header.hparam("expert_count"):
        words = "the experts stay with the CPU, where there is room for them"
        ways.append((msgspec.structs.replace(everything, experts_on_cpu=True), (words,)))
    for n_layers in range(header.n_layers - 1, 0, -max(1, header.n_layers // 16)):
        words = f"{n_layers} of {header.n_layers} layers are on the GPU, for more it has no room"
        ways.append((msgspec.structs.replace(full, n_gpu_layers=n_layers + 1), (words,)))
    for options, trades in ways:
        yield options, trades
        yield msgspec.structs.replace(options, use_mmap=False), (*trades, _READ_WORDS)


def _finished(
    header: ModelHeader,
    machine: Machine,
    options: LoadOptions,
    trades: tuple[str, ...],
    needed: MemoryEstimate,
    *,
    speculation: bool,
    n_ctx: int | None,
) -> LoadPlan:
    """The plan, with what is left given to drafts and prefixes."""
    left = max(0, machine.available_bytes - needed.total)
    draft_tokens = 0
    # States that drafts are taken back to lie where the layers do.
    on_gpu = bool(options.n_gpu_layers) and not machine.gpu_is_unified
    if speculation:
        room = min(left, machine.gpu_free_bytes - needed.gpu) if on_gpu else left
        n_rs_seq, draft_tokens, states, drafts = _speculation(header, options, room)
        options = msgspec.structs.replace(options, n_rs_seq=n_rs_seq)
        needed = msgspec.structs.replace(
            needed, speculation=needed.speculation + drafts + (0 if on_gpu else states),
            gpu=needed.gpu + (states if on_gpu else 0),
        )  # fmt: skip
        left -= drafts + (0 if on_gpu else states)
    made = LoadPlan(
        model_path=header.path, options=options, n_threads=machine.n_threads,
        n_threads_batch=machine.n_threads_batch or machine.n_threads, n_batch=N_BATCH,
        prefix_ram_bytes=min(left // PREFIX_RAM_SHARE, MAX_PREFIX_RAM_BYTES),
        prefix_disk_bytes=min(machine.disk_free_bytes // PREFIX_DISK_SHARE, MAX_PREFIX_DISK_BYTES),
        speculation=speculation, draft_tokens=draft_tokens, estimate=needed, concessions=trades,
    )  # fmt: skip
    return msgspec.structs.replace(made, reasons=_reasons(header, machine, made, n_ctx))


def _speculation(header: ModelHeader, options: LoadOptions, room_bytes: int) -> tuple[int, int, int, int]:
    """How many drafted tokens a state can take back, tokens of other conversations to draft from, and bytes of each."""
    share = room_bytes // SPECULATION_SHARE
    state = states_bytes(header, n_seqs_with_scratch(options))
    n_rs_seq = next((n for n in _N_RS_SEQ if n * state <= share), 0) if state else 0
    draft_tokens = max(0, min(MAX_DRAFT_TOKENS, (share - n_rs_seq * state) // INDEX_BYTES))
    return n_rs_seq, draft_tokens, n_rs_seq * state, draft_tokens * INDEX_BYTES


def _reasons(header: ModelHeader, machine: Machine, made: LoadPlan, n_ctx: int | None) -> dict[str, str]:
    options, needed = made.options, made.estimate
    wanted = default_n_ctx(header)
    reasons = {
        "n_ctx": "as asked for" if n_ctx is not None
        else f"the model's own {header.n_ctx_train}" if options.n_ctx == header.n_ctx_train
        else f"enough for most chats; the model could {header.n_ctx_train or 'say no more'}" if options.n_ctx == wanted
        else "what fits",
        "kv_type": "full precision fits" if options.kv_type == "f16" else "half the size, at a divergence of about 0.001",
        "use_mmap": "mapped: it starts at once, and pages can be dropped" if options.use_mmap
        else f"read: mapped, {size(needed.weights)} of weights could be in memory twice",
        "use_extra_bufts": f"{size(needed.repacked)} of weights get the layout of faster kernels" if needed.repacked
        else "weights have the layout that the kernels want, or get it as they are read",
        "n_threads": f"{made.n_threads} for answers, {made.n_threads_batch} for prompts: {machine.threads_reason}",
        "n_ubatch": "prompts are read fastest" if options.n_ubatch == N_UBATCHES[0] else "a smaller one saves buffers",
        "n_seqs": f"{options.n_seqs} branches can be live at a time"
        + ("" if options.n_seqs == MANY_SEQS else ": each takes memory of its own in this kind of model"),
        "prefix_ram_bytes": f"an eighth of what is left, {size(made.prefix_ram_bytes)}",
        "prefix_disk_bytes": f"a tenth of what is free on the disk, {size(made.prefix_disk_bytes)}",
    }  # fmt: skip
    if machine.gpu_name:
        reasons["n_gpu_layers"] = (
            f"{machine.gpu_name} takes {max(0, options.n_gpu_layers - 1)} of {header.n_layers} layers, "
            f"{size(needed.gpu)} of {size(machine.gpu_free_bytes or machine.available_bytes)}"
        )
    return reasons


def _refusal(header: ModelHeader, machine: Machine, least: MemoryEstimate | None, n_ctx: int | None) -> str:
    if least is None:
        return f"there is no way to load {header.path}"
    context = f"a context of {n_ctx} tokens" if n_ctx else "its smallest context"
    rest = least.total - least.weights - least.repacked - least.kv_cache
    return (
        f"{header.path} needs about {size(least.total)} with {context} (weights {size(least.weights + least.repacked)}, "
        f"KV cache {size(least.kv_cache)}, the rest {size(rest)}), but {size(machine.available_bytes)} are available"
        f"{machine.other_instances}: close other programs, {'ask for a smaller context with --ctx, ' if n_ctx else ''}"
        "or take a smaller model (`edgechat plan` shows what fits)"
    )


def manual_plan(model_path: str, *, n_threads: int, n_batch: int = N_BATCH, **given: Any) -> LoadPlan:
    """A plan that nobody made: for measurements and tests that say themselves how a model is loaded.

    `given` are fields of LoadPlan or of LoadOptions.
    """
    fields = {name: value for name, value in given.items() if name in LoadPlan.__struct_fields__}
    options = {name: value for name, value in given.items() if name not in fields}
    options.setdefault("n_seqs", 2)
    ours: dict[str, Any] = {
        "prefix_ram_bytes": 0, "prefix_disk_bytes": 0, "speculation": True, "draft_tokens": 0,
        "n_threads_batch": n_threads, "estimate": MemoryEstimate(weights=0, repacked=0, kv_cache=0, compute=0),
    } | fields  # fmt: skip
    return LoadPlan(
        model_path=model_path, n_threads=n_threads, n_batch=n_batch, options=LoadOptions(**options), **ours
    )  # fmt: skip
