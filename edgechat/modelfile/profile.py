"""Model profile: the properties of a model that plans depend on, computed once from its header."""

from __future__ import annotations

import math

import msgspec

from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.layers import ModelLayers, read_layers


class ModelProfile(ModelLayers, frozen=True, kw_only=True):
    """Layers, dimensions and tensors of a model."""

    path: str
    is_embedding: bool
    """True for an embedding model, which generates no text."""
    has_costly_sequences: bool
    """True if each sequence needs additional memory, for a recurrent state or a sliding window."""
    state_width: int
    """Elements of the recurrent state of one sequence in one layer, including convolution inputs."""
    inner_size: int
    """Inner width of state-space layers; 0 without such layers."""
    expert_n_ff: int
    """Feed-forward width of one expert; 0 without experts."""
    tensors: tuple[Tensor, ...]
    tensor_bytes: int
    n_params: int

    @classmethod
    def from_header(cls, header: ModelHeader) -> ModelProfile:
        """Compute the profile of a model. Raises ModelFileError for an invalid number of layers."""
        dimensions = read_layers(header)
        n_ff = max([layer.n_ff for layer in dimensions.layers] or [0])
        return cls(
            **msgspec.structs.asdict(dimensions), path=header.path, is_embedding=header.is_embedding,
            has_costly_sequences=header.has_recurrent_state or header.hparam("attention.sliding_window") > 0,
            state_width=_state_width(header), inner_size=header.hparam("ssm.inner_size"),
            expert_n_ff=header.hparam("expert_feed_forward_length", n_ff) if dimensions.n_experts else 0,
            tensors=header.tensors, tensor_bytes=header.tensor_bytes, n_params=header.n_params,
        )  # fmt: skip

    def with_tensors(self, path: str, tensors: tuple[Tensor, ...]) -> ModelProfile:
        """Return the profile of the same model with other tensors, such as another quant."""
        return msgspec.structs.replace(
            self, path=path, tensors=tensors, tensor_bytes=sum(t.size_bytes for t in tensors),
            n_params=sum(math.prod(t.shape) for t in tensors),
        )  # fmt: skip

    @property
    def n_layers(self) -> int:
        """Number of layers (blocks)."""
        return len(self.layers)

    @property
    def n_state_layers(self) -> int:
        """Number of layers with a recurrent state."""
        return self.count("state") + self.count("full and state")

    @property
    def has_output_tensor(self) -> bool:
        """False if the token embedding is also the output matrix (tied embeddings)."""
        return any(t.name == "output.weight" for t in self.tensors)


def _state_width(header: ModelHeader) -> int:
    """Count the elements of a state as llama.cpp does (n_embd_r and n_embd_s in llama-hparams.cpp)."""
    n_conv = max(0, header.hparam("ssm.conv_kernel") - 1)
    inner, size = header.hparam("ssm.inner_size"), header.hparam("ssm.state_size")
    n_embd, n_head = header.n_embd, header.hparam("attention.head_count")
    if head := header.hparam("wkv.head_size"):
        return header.hparam("token_shift_count", 2) * n_embd + n_embd * head
    if cache := header.hparam("shortconv.l_cache"):
        return n_embd * (cache - 1) + size * inner
    if head := header.hparam("kda.head_dim"):
        return 3 * (n_conv or 3) * n_head * head + head * head * n_head
    return n_conv * (inner + 2 * header.hparam("ssm.group_count") * size) + size * inner
