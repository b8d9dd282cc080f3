"""Memory estimate of a loaded model, from formulas or from the buffer sizes that llama.cpp reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.drafter_plan import MAX_DRAFTED_SEQS, DrafterPlan
from edgechat.planner.kv_memory import compute_states_bytes, layer_bytes, round_up_to_cells
from edgechat.planner.kv_types import KvType

_F32_BYTES: Final = 4
_F16_BYTES: Final = 2

# Memory of the client with its renderer, and of the engine without a model, on Linux x86-64. `edgechat bench memory`
# measures both.
CLIENT_BYTES: Final = 30 << 20
ENGINE_BYTES: Final = 15 << 20
# Memory that llama.cpp needs per vocabulary entry, and per layer for the compute graph.
_TOKEN_BYTES: Final = 270
_LAYER_BYTES: Final = 150 << 10
# Memory per vocabulary entry that llama.cpp needs only while it loads a model: metadata, and the pages of the file that
# contain it.
_LOADING_TOKEN_BYTES: Final = 180
N_OUTPUTS: Final = 32
"""Maximum number of tokens in a batch whose logits are computed; each needs one float for every vocabulary entry."""
INDEX_BYTES: Final = 64
"""Bytes per token in a suffix index and its tables (native/src/edgechat.h)."""

REPACKED_TYPES: Final = frozenset(("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"))
"""Tensor types that any CPU backend repacks (ggml-cpu/repack.cpp, amx.cpp); used if the backend is unknown."""
# Buffer types in which weights have the same layout as in the model file.
_FILE_LAYOUT_BUFFERS: Final = ("CPU", "CPU_Mapped")
# Token embedding, of which a model reads one row per token. A model without an output matrix uses it for output, too.
_ROW_TABLE: Final = "token_embd.weight"
# Embeddings of each token for each layer; a model reads one row of them for each token.
_LAYER_ROW_TABLE: Final = "per_layer_token_embd.weight"
# Architectures whose `_LAYER_ROW_TABLE` llama.cpp can read row by row (TENSOR_READ_LAZY in src/models/*.cpp).
_LAZY_ARCHITECTURES: Final = ("gemma4", "qwen4exp")
# Prefixes of the names of ggml's buffer types on GPUs, for reports that do not contain `is_gpu`.
_GPU_BUFFER_NAMES: Final = ("CUDA", "ROCm", "MUSA", "MTL", "Metal", "Vulkan", "SYCL")


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of llama.cpp that determine the memory of a model."""

    n_ctx: int
    n_seqs: int
    """Maximum number of branches and conversations in the context at the same time."""
    n_ubatch: int = 512
    kv_type: KvType = "f16"
    yarn_factor: float = 1.0
    """Factor by which YaRN extends the context beyond the training length; 1.0 without YaRN."""
    use_mmap: bool = True
    use_extra_bufts: bool = True
    n_rs_seq: int = 0
    """Number of draft tokens that can be rolled back in a recurrent state; 0 for models without recurrent states."""
    n_gpu_layers: int = 0
    """Number of layers on a GPU, counted from the last layer; `n_layers` + 1 also includes the output layer."""
    experts_on_cpu: bool = False
    """True if the expert weights of GPU layers stay in CPU memory."""
    prefill_on_gpu: bool = False
    """True if a GPU computes large batches with copies of weights that stay in CPU memory; the CPU decodes. Needs
    `use_extra_bufts` = False, because a GPU can read weights only in the layout of the file."""

    @property
    def uses_gpu(self) -> bool:
        """True if a GPU computes anything."""
        return self.n_gpu_layers > 0 or self.prefill_on_gpu


class BufferSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of llama.cpp's buffers in bytes, without the state copies for `n_rs_seq`."""

    weights: int
    """Weights in the layout of the file. In a mapped file, only tensors that are used in this layout count."""
    repacked_weights: int = msgspec.field(name="repacked")
    """Copies of weights in the layout that faster kernels need."""
    kv_cache: int
    compute: int
    gpu: int = 0
    """Total size of all buffers on a GPU; the other fields are sizes in CPU memory."""
    file_cache: int = 0
    """Part of a mapped file that the model does not need in memory: tensors with a copy, and tables of rows."""
    is_exact: bool = False
    """True if llama.cpp reported the sizes."""


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated memory in bytes, by purpose. The encoded field names are part of the JSON output."""

    weights: int
    """Weights in the layout of the file. In a mapped file, only tensors that are used in this layout count."""
    repacked_weights: int = msgspec.field(name="repacked")
    """Copies of weights in the layout that faster kernels need."""
    kv_cache: int
    compute: int
    output: int = 0
    """Memory of the output buffer for logits."""
    vocabulary: int = 0
    """Memory of the vocabulary and of the compute graphs."""
    speculation: int = 0
    """Memory of state copies, which allow drafts to be rolled back, and of suffix indices."""
    drafter: int = 0
    """CPU memory of the model drafter: its weights, context and compute buffers."""
    process: int = CLIENT_BYTES + ENGINE_BYTES
    """Memory of the client and engine processes without a model."""
    observed_excess: int = msgspec.field(default=0, name="learned")
    """Additional memory that earlier loads of this model needed on this machine, compared with the estimate."""
    loading: int = 0
    """Excess of the mapped file at the start of loading over the buffers that are allocated later."""
    file_cache: int = 0
    """Page cache of the model file that the system can reclaim, because the model uses copies of these tensors or reads
    single rows of them. It is not part of `total`."""
    gpu: int = 0
    """GPU memory, which is part of `total` only if `is_unified` is True."""
    is_unified: bool = False
    is_exact: bool = False
    """True if llama.cpp reported the buffer sizes."""

    @property
    def engine(self) -> int:
        """Memory of the engine process, in bytes."""
        return self.total - CLIENT_BYTES

    @property
    def total(self) -> int:
        """Peak CPU memory in bytes.

        It is reached by the loaded model, or at the start of loading, when the whole model file is mapped.
        """
        return (
            self.weights + self.repacked_weights + self.kv_cache + self.compute + self.output + self.vocabulary
            + self.speculation + self.drafter + self.process + self.observed_excess + self.loading
            + (self.gpu if self.is_unified else 0)
        )  # fmt: skip


def estimate(
    profile: ModelProfile, options: LoadOptions, buffers: BufferSizes | None = None, *, extra_bytes: int = 0,
    is_unified: bool = False, draft_tokens: int = 0, drafter: DrafterPlan | None = None,
) -> MemoryEstimate:  # fmt: skip
    """Estimate the memory of a model loaded with `options`.

    `buffers` defaults to the result of `estimate_buffers`. `extra_bytes` is the observed additional memory,
    `is_unified` is True if the GPU shares the machine's memory, `draft_tokens` is the capacity of the draft corpus, and
    `drafter` is the model drafter for a context of this length.
    """
    sizes = buffers or estimate_buffers(profile, options)
    n_seqs = n_seqs_with_scratch(options)
    state_copy_bytes = options.n_rs_seq * compute_states_bytes(profile, n_seqs)
    # Copies of a recurrent state are stored in the same memory as its layer.
    gpu_copy_bytes = state_copy_bytes if options.n_gpu_layers and not is_unified else 0
    output_bytes = max(N_OUTPUTS, n_seqs) * profile.n_vocab * _F32_BYTES
    n_texts = min(options.n_seqs, MAX_DRAFTED_SEQS)  # each has a suffix index, and may share the cells of the others
    mapped_bytes = sizes.file_cache - lazy_bytes(profile, options)
    # The buffers that are allocated after the whole file was mapped.
    later_bytes = sizes.repacked_weights + sizes.kv_cache + sizes.compute + output_bytes
    return MemoryEstimate(
        weights=sizes.weights, repacked_weights=sizes.repacked_weights, kv_cache=sizes.kv_cache, compute=sizes.compute,
        output=output_bytes, vocabulary=compute_vocabulary_bytes(profile),
        speculation=(n_texts * options.n_ctx + draft_tokens) * INDEX_BYTES + state_copy_bytes - gpu_copy_bytes,
        drafter=drafter.cpu if drafter is not None else 0,
        observed_excess=extra_bytes,
        loading=max(0, mapped_bytes + profile.n_vocab * _LOADING_TOKEN_BYTES - later_bytes) if sizes.file_cache else 0,
        file_cache=sizes.file_cache,
        gpu=sizes.gpu + gpu_copy_bytes + (drafter.gpu if drafter is not None else 0), is_unified=is_unified,
        is_exact=sizes.is_exact,
    )  # fmt: skip


def compute_vocabulary_bytes(profile: ModelProfile) -> int:
    """Return the memory of the vocabulary and of the compute graphs of a model, in bytes."""
    return profile.n_vocab * _TOKEN_BYTES + profile.n_layers * _LAYER_BYTES


def estimate_buffers(
    profile: ModelProfile, options: LoadOptions, repacked_types: frozenset[str] = REPACKED_TYPES
) -> BufferSizes:
    """Compute the buffer sizes from formulas; `repacked_types` are the tensor types that the backend repacks.

    The size of compute buffers is slightly overestimated.
    """
    gpu_tensors = [t for t in profile.loaded_tensors if options.n_gpu_layers and is_on_gpu(profile, t, options)]
    gpu_weight_bytes = sum(t.size_bytes for t in gpu_tensors)
    if options.n_gpu_layers and not profile.has_output_tensor:  # the output layer is a copy of the token embedding
        gpu_weight_bytes += sum(t.size_bytes for t in profile.tensors if t.name == _ROW_TABLE)
    repacked_bytes = sum(
        t.size_bytes for t in profile.loaded_tensors if _is_repacked(profile, t, options, repacked_types)
    )
    unused_bytes = sum(t.size_bytes for t in find_unused_tensors(profile, options, repacked_types))
    read_bytes = profile.loaded_bytes - lazy_bytes(profile, options) - gpu_weight_bytes
    context_sizes = estimate_context_buffers(profile, options)
    return msgspec.structs.replace(
        context_sizes, weights=profile.tensor_bytes - unused_bytes if options.use_mmap else read_bytes,
        repacked_weights=repacked_bytes, file_cache=unused_bytes, gpu=gpu_weight_bytes + context_sizes.gpu,
    )  # fmt: skip


def estimate_context_buffers(profile: ModelProfile, options: LoadOptions, n_outputs: int = N_OUTPUTS) -> BufferSizes:
    """Compute the sizes of the buffers of a context from formulas; the sizes of the weights are 0.

    Logits are computed for at most `n_outputs` tokens of a batch.
    """
    kv_bytes_by_layer = layer_bytes(
        profile, options.n_ctx, n_seqs=n_seqs_with_scratch(options), n_ubatch=min(options.n_ubatch, options.n_ctx),
        kv_type=options.kv_type,
    )  # fmt: skip
    gpu_kv_bytes = sum(kv_bytes_by_layer[max(0, first_gpu_layer(profile, options)) :]) if options.n_gpu_layers else 0
    compute = _compute_bytes(profile, options, n_outputs)
    # With the whole model on a GPU, the CPU only looks up embeddings and receives logits.
    cpu_compute = compute // 8 if is_all_on_gpu(profile, options) else compute
    gpu_compute = compute if options.uses_gpu else 0
    if options.prefill_on_gpu:  # copies of the weights of one product, and of the KV cache of one layer
        weights = [t for t in profile.loaded_tensors if t.name != _LAYER_ROW_TABLE]
        gpu_compute += max((t.size_bytes for t in weights), default=0) + max(kv_bytes_by_layer, default=0)
    return BufferSizes(
        weights=0, repacked_weights=0, kv_cache=sum(kv_bytes_by_layer) - gpu_kv_bytes, compute=cpu_compute,
        gpu=gpu_kv_bytes + gpu_compute,
    )  # fmt: skip


def convert_reported_buffers(
    profile: ModelProfile, options: LoadOptions, report: Mapping[str, Mapping[str, int]]
) -> BufferSizes:
    """Convert llama.cpp's `report` for `options` to buffer sizes; `report` has bytes by buffer type and purpose.

    A buffer type counts as CPU memory unless it belongs to a GPU, so that a plan also includes the memory of buffer
    types with new names (`AMX` is one that llama.cpp does not call host memory).
    """
    host_buffers = {name: sizes for name, sizes in report.items() if not _is_gpu_buffer(name, sizes)}
    gpu = sum(
        sizes[part] for name, sizes in report.items() if name not in host_buffers
        for part in ("model_bytes", "context_bytes", "compute_bytes")
    )  # fmt: skip
    weights_bytes = {name: sizes["model_bytes"] for name, sizes in host_buffers.items()}
    file_layout_bytes = sum(n_bytes for name, n_bytes in weights_bytes.items() if name in _FILE_LAYOUT_BUFFERS)
    other_layout_bytes = sum(n_bytes for name, n_bytes in weights_bytes.items() if name not in _FILE_LAYOUT_BUFFERS)
    all_weights_bytes = sum(sizes["model_bytes"] for sizes in report.values())
    mapped_bytes = max(0, file_layout_bytes - _unused_table_bytes(profile, all_weights_bytes, file_layout_bytes))
    read_bytes = max(0, file_layout_bytes + other_layout_bytes - lazy_bytes(profile, options))
    return BufferSizes(
        weights=mapped_bytes if options.use_mmap else read_bytes,
        repacked_weights=other_layout_bytes if options.use_mmap else 0,
        file_cache=max(0, profile.tensor_bytes - mapped_bytes) if options.use_mmap else 0,
        kv_cache=sum(sizes["context_bytes"] for sizes in host_buffers.values()),
        compute=sum(sizes["compute_bytes"] for sizes in host_buffers.values()),
        gpu=gpu, is_exact=True,
    )  # fmt: skip


def find_unused_tensors(
    profile: ModelProfile, options: LoadOptions, repacked_types: frozenset[str] = REPACKED_TYPES
) -> list[Tensor]:
    """Return the tensors of a mapped file that a loaded model does not need in memory, in the order of `profile`.

    The model uses a copy of them (in another layout or on a GPU), reads only single rows of them, or does not use them.
    """
    if not options.use_mmap:
        return []
    used_names = {t.name for t in profile.loaded_tensors} - {_LAYER_ROW_TABLE}
    copied_names = {
        name for t in profile.loaded_tensors if (name := t.name) in used_names and (
            _is_repacked(profile, t, options, repacked_types)
            or (options.n_gpu_layers and (name == _ROW_TABLE or is_on_gpu(profile, t, options)))
        )
    }  # fmt: skip
    used_names -= copied_names | ({_ROW_TABLE} if profile.has_output_tensor and copied_names else set())
    return [t for t in profile.tensors if t.name not in used_names]


def lazy_bytes(profile: ModelProfile, options: LoadOptions) -> int:
    """Return the size of the tensors of which llama.cpp only ever reads single rows, even if it does not map the file.

    `edgechat.runtime.model.Model` turns this on for models without layers on a GPU.
    """
    if options.n_gpu_layers or profile.architecture not in _LAZY_ARCHITECTURES:
        return 0
    return sum(t.size_bytes for t in profile.tensors if t.name == _LAYER_ROW_TABLE)


def _unused_table_bytes(profile: ModelProfile, all_weights_bytes: int, file_layout_bytes: int) -> int:
    """Return the size of the tables in a mapped file that are in buffers but that the model does not need in memory.

    llama.cpp reads only single rows of the embeddings for each layer and, in a model with an output matrix, of the
    token embedding. In a model without an output matrix, llama.cpp has a second tensor with the data of the token
    embedding. If the second tensor has another layout, only single rows of the first one are read; if it has the layout
    of the file, both are the same pages. The arguments are the total size of all buffers with weights, and the size of
    those in the layout of the file.
    """
    layer_table_bytes = sum(t.size_bytes for t in profile.tensors if t.name == _LAYER_ROW_TABLE)
    table_bytes = sum(t.size_bytes for t in profile.tensors if t.name == _ROW_TABLE)
    if profile.has_output_tensor:
        is_table_unused = all_weights_bytes > file_layout_bytes
    else:
        is_table_unused = all_weights_bytes >= profile.loaded_bytes + table_bytes // 2
    return layer_table_bytes + (table_bytes if is_table_unused else 0)


def _is_gpu_buffer(name: str, sizes: Mapping[str, int]) -> bool:
    return not sizes["is_host"] and bool(sizes.get("is_gpu", name.startswith(_GPU_BUFFER_NAMES)))


def n_seqs_with_scratch(options: LoadOptions) -> int:
    """Return the number of sequences of the context: `n_seqs` and the internal scratch sequence."""
    return options.n_seqs + 1


def first_gpu_layer(profile: ModelProfile, options: LoadOptions) -> int:
    """Return the index of the first layer on the GPU, i_gpu_start in llama-model.cpp; the last layers are offloaded."""
    return profile.n_layers + 1 - options.n_gpu_layers


def _is_repacked(profile: ModelProfile, tensor: Tensor, options: LoadOptions, repacked_types: frozenset[str]) -> bool:
    """Return whether a tensor is copied into another layout in CPU memory for faster kernels.

    The token embedding keeps its layout for row lookups. If it is also the output matrix, it has a copy, even if the
    file is not mapped.
    """
    if not options.use_extra_bufts or tensor.type not in repacked_types or len(tensor.shape) == 1:
        return False
    if tensor.name == _LAYER_ROW_TABLE:
        return False
    if tensor.name == _ROW_TABLE:
        return not profile.has_output_tensor and not options.n_gpu_layers
    return options.use_mmap and not (options.n_gpu_layers and is_on_gpu(profile, tensor, options))


def is_all_on_gpu(profile: ModelProfile, options: LoadOptions) -> bool:
    """Return whether `options` put all layers of a model on a GPU, including the output layer and the experts."""
    return options.n_gpu_layers > profile.n_layers and not options.experts_on_cpu


def is_on_gpu(profile: ModelProfile, tensor: Tensor, options: LoadOptions) -> bool:
    """Return whether a tensor is in GPU memory with `options`, which put at least one layer on the GPU."""
    if options.experts_on_cpu and "_exps." in tensor.name:
        return False
    layer = tensor.layer_index
    return tensor.name.startswith("output") if layer is None else layer >= first_gpu_layer(profile, options)


def _compute_bytes(profile: ModelProfile, options: LoadOptions, n_outputs: int = N_OUTPUTS) -> int:
    """Return the size of the compute buffer: copies of the widest activations, attention masks, and logits."""
    n_ubatch = min(options.n_ubatch, options.n_ctx)
    n_experts_used = max(1, profile.n_experts_used)
    max_width = max(
        *(layer.n_ff for layer in profile.layers), *(layer.n_head * layer.key_length for layer in profile.layers),
        profile.expert_n_ff * n_experts_used, 2 * profile.inner_size,
    )  # fmt: skip
    # The output of each expert has `n_embd` elements.
    n_embd_vectors = 3 + (n_experts_used if profile.n_experts else 0)
    activation_bytes = n_ubatch * _F32_BYTES * (3 * max_width + n_embd_vectors * profile.n_embd)
    n_masks = (profile.count_layers("window") > 0) + (
        profile.count_layers("full") + profile.count_layers("full and state") > 0
    )
    mask_bytes = n_ubatch * _F16_BYTES * round_up_to_cells(options.n_ctx) * n_masks
    logits_bytes = n_outputs * profile.n_vocab * _F32_BYTES
    return max(activation_bytes + mask_bytes, logits_bytes) + (2 << 20)
