"""Model profile: the properties of a model that load plans depend on, computed once from its header."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.heads import DraftingHeads, read_heads
from edgechat.modelfile.layers import ModelLayers, read_layers
from edgechat.modelfile.rope import supports_yarn


class ModelProfile(ModelLayers, frozen=True, kw_only=True):
    """Layers, dimensions and tensors of a model."""

    path: str
    quant: str = ""
    """Quantisation, such as `Q4_K_M`; "" if unknown."""
    is_embedding: bool
    """True for an embedding model, which generates no text."""
    supports_yarn: bool
    """True if YaRN can extend the context beyond the training length."""
    has_costly_sequences: bool
    """True if each sequence needs additional memory, for a recurrent state or a sliding window."""
    state_width: int
    """Number of elements in the recurrent state of one sequence in one layer, including convolution inputs."""
    inner_size: int
    """Inner width of state-space layers; 0 without such layers."""
    expert_n_ff: int
    """Feed-forward width of one expert; 0 without experts."""
    tensors: tuple[Tensor, ...]
    tensor_bytes: int
    n_params: int
    heads: DraftingHeads | None = None
    """Heads that draft tokens, in the file of the model; None without."""
    data_offsets: tuple[int, ...] = ()
    """Offset of the data section in each file of the model, in bytes."""

    @classmethod
    def from_header(cls, header: ModelHeader) -> ModelProfile:
        """Compute the profile of a model. Raises ModelFileError for an invalid number of layers."""
        dimensions = read_layers(header)
        n_ff = max([layer.n_ff for layer in dimensions.layers] or [0])
        return cls(
            **msgspec.structs.asdict(dimensions), path=header.path, quant=header.quant,
            is_embedding=header.is_embedding, supports_yarn=supports_yarn(header),
            has_costly_sequences=header.has_recurrent_state or header.hparam("attention.sliding_window") > 0,
            state_width=_compute_state_width(header), inner_size=header.hparam("ssm.inner_size"),
            expert_n_ff=header.hparam("expert_feed_forward_length", n_ff) if dimensions.n_experts else 0,
            heads=read_heads(header), tensors=header.tensors, tensor_bytes=header.tensor_bytes,
            n_params=header.n_params, data_offsets=(header.data_offset, *header.later_data_offsets),
        )  # fmt: skip

    def with_tensors(self, path: str, tensors: tuple[Tensor, ...], quant: str = "") -> ModelProfile:
        """Return the profile of the same model with other tensors, such as those of another `quant`."""
        return msgspec.structs.replace(
            self, path=path, tensors=tensors, quant=quant, tensor_bytes=sum(t.size_bytes for t in tensors),
            n_params=sum(math.prod(t.shape) for t in tensors),
        )  # fmt: skip

    @property
    def loaded_tensors(self) -> Sequence[Tensor]:
        """The tensors that llama.cpp loads: all but those of skipped layers."""
        if not self.n_skipped_layers:
            return self.tensors
        n_loaded_layers = self.n_layers - self.n_skipped_layers
        return [t for t in self.tensors if t.layer_index is None or t.layer_index < n_loaded_layers]

    @property
    def loaded_bytes(self) -> int:
        """Size of `loaded_tensors`, in bytes."""
        return sum(t.size_bytes for t in self.loaded_tensors) if self.n_skipped_layers else self.tensor_bytes

    @property
    def n_layers(self) -> int:
        """Number of layers (blocks)."""
        return len(self.layers)

    @property
    def n_state_layers(self) -> int:
        """Number of layers with a recurrent state."""
        return self.count_layers("state") + self.count_layers("full and state")

    @property
    def has_output_tensor(self) -> bool:
        """True if the model has an output matrix; False if its token embedding is used instead (tied embeddings)."""
        return any(t.name == "output.weight" for t in self.tensors)


def _compute_state_width(header: ModelHeader) -> int:
    """Return the number of elements in a recurrent state, as in llama-hparams.cpp (n_embd_r plus n_embd_s)."""
    n_conv = max(0, header.hparam("ssm.conv_kernel") - 1)
    inner_size, state_size = header.hparam("ssm.inner_size"), header.hparam("ssm.state_size")
    n_embd, n_head = header.n_embd, header.hparam("attention.head_count")
    if head_size := header.hparam("wkv.head_size"):
        return header.hparam("token_shift_count", 2) * n_embd + n_embd * head_size
    if cache_length := header.hparam("shortconv.l_cache"):
        return n_embd * (cache_length - 1) + state_size * inner_size
    if head_size := header.hparam("kda.head_dim"):
        return 3 * (n_conv or 3) * n_head * head_size + head_size * head_size * n_head
    return n_conv * (inner_size + 2 * header.hparam("ssm.group_count") * state_size) + state_size * inner_size
