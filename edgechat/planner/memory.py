"""What a model takes of memory, by what it is for: by formulas, until llama.cpp has said it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.layers import read_layers
from edgechat.planner.kv_memory import layer_bytes, padded

_F32_BYTES: Final = 4
_F16_BYTES: Final = 2

# Client and renderer, and engine without model and context, on Linux x86-64: `edgechat bench memory` measures them again.
CLIENT_BYTES: Final = 30 << 20
ENGINE_BYTES: Final = 15 << 20
# Of each token of a vocabulary and of each layer's graph.
_TOKEN_BYTES: Final = 270
_LAYER_BYTES: Final = 150 << 10
N_OUTPUTS: Final = 32
"""Tokens of a batch that have logits, at most: each takes buffers as wide as the vocabulary."""
# Of each token in a suffix index and in what stands beside it; see native/src/edgechat.h.
INDEX_BYTES: Final = 64

# Types that some CPU module keeps in a layout of its own (ggml-cpu/repack.cpp, amx.cpp), until it is known which of them
# this one does.
REPACKED: Final = frozenset(("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"))
# Buffer types of weights that lie in the file's pages, or would.
_PLAIN_BUFFERS: Final = ("CPU", "CPU_Mapped")


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What decides how much memory a model takes."""

    n_ctx: int
    n_seqs: int
    """Branches and conversations that are live at a time."""
    n_ubatch: int = 512
    kv_type: Literal["f16", "q8_0"] = "f16"
    use_mmap: bool = True
    use_extra_bufts: bool = True
    n_rs_seq: int = 0
    """Where memory is a state: how many drafted tokens can be taken back."""
    n_gpu_layers: int = 0
    """Layers on a GPU, the last ones first; one more than there are takes the output too."""
    experts_on_cpu: bool = False
    """Keep the experts of layers on a GPU out of its memory."""


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by what they are for."""

    weights: int
    repacked: int
    """A second copy of weights whose kernels want another layout; only beside a mapped file."""
    kv_cache: int
    compute: int
    output: int = 0
    """Logits."""
    vocabulary: int = 0
    """Tokens, and the graphs of layers."""
    speculation: int = 0
    """Copies of states that drafts can be taken back to, and indices of texts."""
    process: int = CLIENT_BYTES + ENGINE_BYTES
    """Of the programs themselves, the one with the conversation and the one with the model."""
    observed_extra: int = msgspec.field(default=0, name="learned")
    """What this machine was seen to take beyond all that, or not to."""
    gpu: int = 0
    """On the device, and not a part of the total unless its memory is the machine's."""
    is_unified: bool = False
    is_exact: bool = False
    """True if llama.cpp itself said how large its buffers are."""

    @property
    def engine(self) -> int:
        """What the process with the model takes."""
        return self.total - CLIENT_BYTES

    @property
    def total(self) -> int:
        """All of it, at the highest moment: at the end of loading, with the file's pages still in use."""
        return (
            self.weights + self.repacked + self.kv_cache + self.compute + self.output + self.vocabulary
            + self.speculation + self.process + self.observed_extra + (self.gpu if self.is_unified else 0)
        )  # fmt: skip


def estimate(
    header: ModelHeader, options: LoadOptions, repacked: frozenset[str] = REPACKED, learned: int = 0
) -> MemoryEstimate:
    """Memory by formulas; `repacked` are the types that this machine's backend keeps in another layout.

    Compute buffers come out somewhat too large. Raises ModelFileError for a number of layers that cannot be.
    """
    on_gpu = [t for t in header.tensors if _is_on_gpu(header, t, options)] if options.n_gpu_layers else []
    gpu_weights = sum(t.size_bytes for t in on_gpu)
    if options.n_gpu_layers and not any(t.name == "output.weight" for t in header.tensors):
        gpu_weights += sum(
            t.size_bytes for t in header.tensors if t.name == "token_embd.weight"
        )  # a copy is the output
    weights = header.tensor_bytes - (0 if options.use_mmap else gpu_weights)
    layouts = repacked if options.use_extra_bufts else frozenset()
    second = _copied_bytes(header, layouts, options)
    if options.use_mmap:
        second -= sum(t.size_bytes for t in on_gpu if t.type in layouts)
    layers = _kv_bytes(header, options)
    gpu_kv = sum(layers[max(0, first_gpu_layer(header, options)) :]) if options.n_gpu_layers else 0
    compute = _compute_bytes(header, options)
    # With everything on a GPU, the CPU still looks up embeddings and gets logits.
    here = compute // 8 if options.n_gpu_layers > header.n_layers and not options.experts_on_cpu else compute
    return _with_the_rest(header, options, MemoryEstimate(
        weights=weights, repacked=second, kv_cache=sum(layers) - gpu_kv, compute=here, observed_extra=learned,
        gpu=gpu_weights + gpu_kv + (compute if options.n_gpu_layers else 0),
    ))  # fmt: skip


def exact(
    header: ModelHeader, options: LoadOptions, breakdown: Mapping[str, Mapping[str, int]], learned: int = 0
) -> MemoryEstimate:
    """Memory with the sizes that llama.cpp reports of a model that it has not loaded, by buffer type."""
    host = {name: sizes for name, sizes in breakdown.items() if sizes["is_host"] or name.startswith("CPU")}
    gpu = sum(
        sizes[part] for name, sizes in breakdown.items() if name not in host
        for part in ("model_bytes", "context_bytes", "compute_bytes")
    )  # fmt: skip
    plain = sum(sizes["model_bytes"] for name, sizes in host.items() if name in _PLAIN_BUFFERS)
    other = sum(sizes["model_bytes"] for name, sizes in host.items() if name not in _PLAIN_BUFFERS)
    return _with_the_rest(header, options, MemoryEstimate(
        # A mapped file is in memory as a whole while it is loaded, whatever is copied out of it.
        weights=header.tensor_bytes if options.use_mmap else plain + other,
        repacked=other if options.use_mmap else 0,
        kv_cache=sum(sizes["context_bytes"] for sizes in host.values()),
        compute=sum(sizes["compute_bytes"] for sizes in host.values()),
        observed_extra=learned, gpu=gpu, is_exact=True,
    ))  # fmt: skip


def n_seqs_with_scratch(options: LoadOptions) -> int:
    """Sequences of a context: one more, in which parts of others are put together."""
    return options.n_seqs + 1


def _with_the_rest(header: ModelHeader, options: LoadOptions, buffers: MemoryEstimate) -> MemoryEstimate:
    """With what no buffer of llama.cpp's report holds."""
    return msgspec.structs.replace(
        buffers, output=max(N_OUTPUTS, n_seqs_with_scratch(options)) * header.n_vocab * _F32_BYTES,
        vocabulary=header.n_vocab * _TOKEN_BYTES + header.n_layers * _LAYER_BYTES,
        speculation=options.n_ctx * INDEX_BYTES,
    )  # fmt: skip


def _copied_bytes(header: ModelHeader, layouts: frozenset[str], options: LoadOptions) -> int:
    """Of weights that are in memory twice: those in another layout beside a mapped file."""
    tensors = [t for t in header.tensors if t.type in layouts and len(t.shape) > 1]
    table = [t for t in tensors if t.name == "token_embd.weight"]
    # A table that rows are taken from stays as it is. Where it is the output as well, it is copied in any case.
    is_output = not any(t.name == "output.weight" for t in header.tensors)
    copied = sum(t.size_bytes for t in table) if is_output else 0
    return copied + (sum(t.size_bytes for t in tensors if t.name != "token_embd.weight") if options.use_mmap else 0)


def _is_on_gpu(header: ModelHeader, tensor: Tensor, options: LoadOptions) -> bool:
    if options.experts_on_cpu and "_exps." in tensor.name:
        return False
    number = _layer_number(tensor)
    return tensor.name.startswith("output") if number is None else number >= first_gpu_layer(header, options)


def first_gpu_layer(header: ModelHeader, options: LoadOptions) -> int:
    """The first layer that is on a GPU; the output goes there before any of them (llama-model.cpp: i_gpu_start)."""
    return header.n_layers + 1 - options.n_gpu_layers


def _layer_number(tensor: Tensor) -> int | None:
    parts = tensor.name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdigit() else None  # noqa: PLR2004


def _kv_bytes(header: ModelHeader, options: LoadOptions) -> list[int]:
    """Of each layer."""
    return layer_bytes(
        header, options.n_ctx, n_seqs=n_seqs_with_scratch(options), n_ubatch=min(options.n_ubatch, options.n_ctx),
        n_rs_seq=options.n_rs_seq, kv_type=options.kv_type,
    )  # fmt: skip


def _compute_bytes(header: ModelHeader, options: LoadOptions) -> int:
    """Of a micro batch: the widest activations a few times, the mask of the attention, the logits of the last step."""
    parts = read_layers(header)
    n_ubatch = min(options.n_ubatch, options.n_ctx)
    n_used = max(1, parts.n_experts_used)
    ff = max([layer.n_ff for layer in parts.layers] or [0])
    expert_ff = header.hparam("expert_feed_forward_length", ff) if parts.n_experts else 0
    inner = header.hparam("ssm.inner_size")
    widest = max(ff, expert_ff * n_used, 2 * inner, *(x.n_head * x.key_length for x in parts.layers))
    # Each expert's output has the width of the model.
    activations = n_ubatch * _F32_BYTES * (3 * widest + (3 + (n_used if parts.n_experts else 0)) * parts.n_embd)
    kinds = bool(parts.count("window")) + bool(parts.count("full") + parts.count("full and state"))
    masks = n_ubatch * _F16_BYTES * padded(options.n_ctx) * kinds
    logits = N_OUTPUTS * parts.n_vocab * _F32_BYTES
    return max(activations + masks, logits) + (2 << 20)
