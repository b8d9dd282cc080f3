"""Memory estimate of a loaded model, from formulas or from the buffer sizes that llama.cpp reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.kv_memory import layer_bytes, round_up_to_cells, states_bytes

_F32_BYTES: Final = 4
_F16_BYTES: Final = 2

# Memory of the client with its renderer, and of the engine without a model, on Linux x86-64. `edgechat bench memory`
# measures both.
CLIENT_BYTES: Final = 30 << 20
ENGINE_BYTES: Final = 15 << 20
# Memory that llama.cpp needs for each vocabulary entry and for the graph of each layer.
_TOKEN_BYTES: Final = 270
_LAYER_BYTES: Final = 150 << 10
N_OUTPUTS: Final = 32
"""Maximum number of tokens with logits in a batch; each needs buffers as wide as the vocabulary."""
INDEX_BYTES: Final = 64
"""Bytes per token in a suffix index and its tables (native/src/edgechat.h)."""

REPACKED_TYPES: Final = frozenset(("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"))
"""Tensor types that some CPU backend repacks (ggml-cpu/repack.cpp, amx.cpp); default for an unknown backend."""
# Buffer types whose weights keep the layout of the file.
_FILE_LAYOUT_BUFFERS: Final = ("CPU", "CPU_Mapped")


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of llama.cpp that determine the memory of a model."""

    n_ctx: int
    n_seqs: int
    """Maximum number of branches and conversations in the context at the same time."""
    n_ubatch: int = 512
    kv_type: Literal["f16", "q8_0"] = "f16"
    use_mmap: bool = True
    use_extra_bufts: bool = True
    n_rs_seq: int = 0
    """Number of drafted tokens that a recurrent state can roll back; 0 for models without recurrent states."""
    n_gpu_layers: int = 0
    """Number of layers on a GPU, counted from the last layer; `n_layers` + 1 also includes the output layer."""
    experts_on_cpu: bool = False
    """Keep the experts of GPU layers in CPU memory."""


class BufferSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of llama.cpp's buffers in bytes, for options with `n_rs_seq` = 0."""

    weights: int
    repacked: int
    """Second copy of the weights whose kernels need another layout."""
    kv_cache: int
    compute: int
    gpu: int = 0
    """Total size of all buffers on a GPU; the other fields are CPU memory."""
    is_exact: bool = False
    """True if llama.cpp reported the sizes."""


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of memory by purpose. The field names are part of the JSON output."""

    weights: int
    repacked: int
    """Second copy of the weights whose kernels need another layout, mostly in addition to a mapped file."""
    kv_cache: int
    compute: int
    output: int = 0
    """Output buffer for logits."""
    vocabulary: int = 0
    """Vocabulary and compute graphs."""
    speculation: int = 0
    """State copies for rolling back drafts, and suffix indices."""
    process: int = CLIENT_BYTES + ENGINE_BYTES
    """Client and engine processes without a model."""
    observed_extra: int = msgspec.field(default=0, name="learned")
    """Memory beyond the estimate that earlier loads of this model needed on this machine."""
    gpu: int = 0
    """GPU memory; part of the total only if `is_unified`."""
    is_unified: bool = False
    is_exact: bool = False
    """True if llama.cpp reported the buffer sizes."""

    @property
    def engine(self) -> int:
        """Memory of the engine process, in bytes."""
        return self.total - CLIENT_BYTES

    @property
    def total(self) -> int:
        """Peak CPU memory in bytes, reached at the end of loading with all pages of the file in use."""
        return (
            self.weights + self.repacked + self.kv_cache + self.compute + self.output + self.vocabulary
            + self.speculation + self.process + self.observed_extra + (self.gpu if self.is_unified else 0)
        )  # fmt: skip


def estimate(
    profile: ModelProfile, options: LoadOptions, buffers: BufferSizes | None = None, *, extra_bytes: int = 0,
    is_unified: bool = False, draft_tokens: int = 0,
) -> MemoryEstimate:  # fmt: skip
    """Estimate the memory of a model loaded with `options`.

    `buffers` defaults to `formula_buffers`. `extra_bytes` is the observed additional memory, `is_unified` is True if
    the GPU shares the machine's memory, and `draft_tokens` is the capacity of the draft corpus.
    """
    sizes = buffers or formula_buffers(profile, options)
    n_seqs = n_seqs_with_scratch(options)
    state_copies = options.n_rs_seq * states_bytes(profile, n_seqs)
    # State copies are in the same memory as the layers.
    gpu_copies = state_copies if options.n_gpu_layers and not is_unified else 0
    return MemoryEstimate(
        weights=sizes.weights, repacked=sizes.repacked, kv_cache=sizes.kv_cache, compute=sizes.compute,
        output=max(N_OUTPUTS, n_seqs) * profile.n_vocab * _F32_BYTES,
        vocabulary=profile.n_vocab * _TOKEN_BYTES + profile.n_layers * _LAYER_BYTES,
        speculation=(options.n_ctx + draft_tokens) * INDEX_BYTES + state_copies - gpu_copies,
        observed_extra=extra_bytes, gpu=sizes.gpu + gpu_copies, is_unified=is_unified, is_exact=sizes.is_exact,
    )  # fmt: skip


def formula_buffers(
    profile: ModelProfile, options: LoadOptions, repacked_types: frozenset[str] = REPACKED_TYPES
) -> BufferSizes:
    """Compute buffer sizes from formulas; `repacked_types` are the tensor types that the backend repacks.

    The size of compute buffers is slightly overestimated.
    """
    on_gpu = [t for t in profile.tensors if _is_on_gpu(profile, t, options)] if options.n_gpu_layers else []
    gpu_weights = sum(t.size_bytes for t in on_gpu)
    if options.n_gpu_layers and not profile.has_output_tensor:  # the output layer uses a copy of the token embedding
        gpu_weights += sum(t.size_bytes for t in profile.tensors if t.name == "token_embd.weight")
    types = repacked_types if options.use_extra_bufts else frozenset()
    repacked = _repacked_bytes(profile, types, options)
    if options.use_mmap:
        repacked -= sum(t.size_bytes for t in on_gpu if t.type in types)
    layers = layer_bytes(
        profile, options.n_ctx, n_seqs=n_seqs_with_scratch(options), n_ubatch=min(options.n_ubatch, options.n_ctx),
        kv_type=options.kv_type,
    )  # fmt: skip
    gpu_kv = sum(layers[max(0, first_gpu_layer(profile, options)) :]) if options.n_gpu_layers else 0
    compute = _compute_bytes(profile, options)
    # With the whole model on a GPU, the CPU only looks up embeddings and receives logits.
    is_all_on_gpu = options.n_gpu_layers > profile.n_layers and not options.experts_on_cpu
    return BufferSizes(
        weights=profile.tensor_bytes - (0 if options.use_mmap else gpu_weights), repacked=repacked,
        kv_cache=sum(layers) - gpu_kv, compute=compute // 8 if is_all_on_gpu else compute,
        gpu=gpu_weights + gpu_kv + (compute if options.n_gpu_layers else 0),
    )  # fmt: skip


def reported_buffers(
    profile: ModelProfile, options: LoadOptions, report: Mapping[str, Mapping[str, int]]
) -> BufferSizes:
    """Convert llama.cpp's report of the buffers for `options`: bytes by purpose and buffer type."""
    host = {name: sizes for name, sizes in report.items() if sizes["is_host"] or name.startswith("CPU")}
    gpu = sum(
        sizes[part] for name, sizes in report.items() if name not in host
        for part in ("model_bytes", "context_bytes", "compute_bytes")
    )  # fmt: skip
    plain = sum(sizes["model_bytes"] for name, sizes in host.items() if name in _FILE_LAYOUT_BUFFERS)
    other = sum(sizes["model_bytes"] for name, sizes in host.items() if name not in _FILE_LAYOUT_BUFFERS)
    return BufferSizes(
        # While it is loaded, a mapped file is in memory as a whole, copied tensors included.
        weights=profile.tensor_bytes if options.use_mmap else plain + other,
        repacked=other if options.use_mmap else 0,
        kv_cache=sum(sizes["context_bytes"] for sizes in host.values()),
        compute=sum(sizes["compute_bytes"] for sizes in host.values()),
        gpu=gpu, is_exact=True,
    )  # fmt: skip


def n_seqs_with_scratch(options: LoadOptions) -> int:
    """Return the number of sequences of the context: `n_seqs` and a scratch sequence for joining segments."""
    return options.n_seqs + 1


def first_gpu_layer(profile: ModelProfile, options: LoadOptions) -> int:
    """Return the index of the first GPU layer; the output layer is offloaded first (i_gpu_start in llama-model.cpp)."""
    return profile.n_layers + 1 - options.n_gpu_layers


def _repacked_bytes(profile: ModelProfile, types: frozenset[str], options: LoadOptions) -> int:
    """Return the bytes of weights that are in memory a second time, in the layout of the kernels."""
    tensors = [t for t in profile.tensors if t.type in types and len(t.shape) > 1]
    embedding = sum(t.size_bytes for t in tensors if t.name == "token_embd.weight")
    # The embedding table keeps its layout for row lookups. If it is also the output matrix, a copy of it is repacked.
    copied = 0 if profile.has_output_tensor else embedding
    return copied + (sum(t.size_bytes for t in tensors) - embedding if options.use_mmap else 0)


def _is_on_gpu(profile: ModelProfile, tensor: Tensor, options: LoadOptions) -> bool:
    if options.experts_on_cpu and "_exps." in tensor.name:
        return False
    layer = _layer_index(tensor)
    return tensor.name.startswith("output") if layer is None else layer >= first_gpu_layer(profile, options)


def _layer_index(tensor: Tensor) -> int | None:
    parts = tensor.name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 2 and parts[1].isdigit() else None  # noqa: PLR2004


def _compute_bytes(profile: ModelProfile, options: LoadOptions) -> int:
    """Return the compute buffer size of a micro-batch: copies of the widest activations, attention masks, logits."""
    n_ubatch = min(options.n_ubatch, options.n_ctx)
    n_used = max(1, profile.n_experts_used)
    widest = max(
        *(layer.n_ff for layer in profile.layers), *(layer.n_head * layer.key_length for layer in profile.layers),
        profile.expert_n_ff * n_used, 2 * profile.inner_size,
    )  # fmt: skip
    # The output of each expert is as wide as the model's embedding.
    n_model_wide = 3 + (n_used if profile.n_experts else 0)
    activations = n_ubatch * _F32_BYTES * (3 * widest + n_model_wide * profile.n_embd)
    n_masks = bool(profile.count("window")) + bool(profile.count("full") + profile.count("full and state"))
    masks = n_ubatch * _F16_BYTES * round_up_to_cells(options.n_ctx) * n_masks
    logits = N_OUTPUTS * profile.n_vocab * _F32_BYTES
    return max(activations + masks, logits) + (2 << 20)
