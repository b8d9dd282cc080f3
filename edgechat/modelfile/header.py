"""Model headers: the metadata and tensor list of a GGUF file."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Final

import msgspec

from edgechat.modelfile.tensor_types import FILE_TYPES, TENSOR_TYPES

# Architectures of files that contain only heads, which draft tokens for a model in another file.
_HEADS_ARCHITECTURES: Final = ("dflash", "eagle3", "gemma4-assistant")


class Tensor(msgspec.Struct, frozen=True):
    """Name, shape, type and position of one tensor."""

    name: str
    shape: tuple[int, ...]
    """Dimensions in GGUF order, which begins with the row length."""
    type_id: int
    offset: int
    """Offset from the start of the data section, in bytes."""
    size_bytes: int
    part_index: int = 0
    """Index, from 0, of the part of a split model that contains the tensor."""

    @property
    def type(self) -> str:
        """Name of the tensor type, such as `Q4_K`."""
        return TENSOR_TYPES[self.type_id].name

    @property
    def layer_index(self) -> int | None:
        """Index of the layer that contains the tensor; None for a tensor outside of the layers."""
        start, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if start == "blk" and number.isdecimal() and "." in rest else None


class ModelHeader(msgspec.Struct, frozen=True, dict=True):
    """Header of a GGUF file. All counts, lengths and tensor ranges have been checked against the file size."""

    path: str
    file_bytes: int
    version: int
    metadata: dict[str, Any]
    """Scalars and short arrays by key; the lengths of longer arrays are in `array_lengths`."""
    array_lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    data_offset: int
    """Offset of the data section in the file, in bytes."""
    value_offsets: dict[str, int] = {}
    """Offset of each metadata value in the file, in bytes."""
    later_data_offsets: tuple[int, ...] = ()
    """Offsets of the data sections in the second and later parts of a split model, in bytes."""

    @property
    def architecture(self) -> str:
        """Architecture name of llama.cpp, such as `llama` or `qwen3`; "" if absent."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def name(self) -> str:
        """Name of the model in its metadata; "" if absent."""
        return str(self.metadata.get("general.name", ""))

    @property
    def n_parts(self) -> int:
        """Number of files of the model; more than 1 for a split model."""
        return self._read_integer("split.count", 1) or 1

    @property
    def part_index(self) -> int:
        """Index of this file in a split model, from 0."""
        return self._read_integer("split.no", 0)

    @property
    def kind(self) -> str:
        """Kind of file: `model`, `projector` (mmproj: encoder for images or sound), `adapter` (LoRA) or `heads`.

        `heads` draft tokens for a model in another file.
        """
        kind = self.metadata.get("general.type")
        if self.architecture == "clip" or kind == "mmproj":
            return "projector"
        if kind == "adapter":
            return "adapter"
        return "heads" if self.architecture in _HEADS_ARCHITECTURES or self._has_only_prediction_layers else "model"

    @cached_property
    def _has_only_prediction_layers(self) -> bool:
        """True if the file has the prediction layers (MTP) of a model, but none of its other layers."""
        n_other_layers = self.n_layers - self.hparam("nextn_predict_layers")
        if not 0 < n_other_layers < self.n_layers:
            return False
        layers = {t.layer_index for t in self.tensors} - {None}
        return bool(layers) and min(i for i in layers if i is not None) >= n_other_layers

    @property
    def quant(self) -> str:
        """Quantisation, such as `Q4_K_M`, from `general.file_type`, or else the tensor type with the most bytes."""
        preset = FILE_TYPES.get(self._read_integer("general.file_type", -1))
        if preset is not None:
            return preset
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size_bytes
        return max(sizes, key=sizes.__getitem__, default="")

    @cached_property
    def n_params(self) -> int:
        """Number of weights in all tensors of the file."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def chat_template(self) -> str | None:
        """Chat template as Jinja source; None if absent."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @cached_property
    def has_recurrent_state(self) -> bool:
        """True if some layers have a recurrent state instead of keys and values for each token."""
        names = (".ssm.", ".shortconv.", ".wkv.", ".token_shift_count", ".kda.")
        return any(name in key for key in self.metadata for name in names)

    @property
    def is_embedding(self) -> bool:
        """True for a model that generates no text: it pools its output (mean, first token, last token or rank)."""
        return self.hparam("pooling_type") in {1, 2, 3, 4}

    @property
    def is_reranker(self) -> bool:
        """True for a reranker, which computes a score of a query and a document."""
        return self.hparam("pooling_type") == 4  # noqa: PLR2004  (LLAMA_POOLING_TYPE_RANK)

    @cached_property
    def tensor_bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(t.size_bytes for t in self.tensors)

    def _read_integer(self, key: str, default: int) -> int:
        value = self.metadata.get(key, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def hparam(self, key: str, default: int = 0) -> int:
        """Return an integer hyperparameter, such as `block_count`; if it has a value per layer, return the maximum.

        `key` does not include the architecture prefix. Returns `default` for missing, negative and non-integer values.
        """
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            value = max((v for v in value if isinstance(v, int)), default=default)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default

    @property
    def n_layers(self) -> int:
        """Number of layers (blocks)."""
        return self.hparam("block_count")

    @property
    def n_ctx_train(self) -> int:
        """Context length that the model was trained with, in tokens; 0 if unknown."""
        return self.hparam("context_length")

    @property
    def n_embd(self) -> int:
        """Width of the token embeddings."""
        return self.hparam("embedding_length")

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.array_lengths.get("tokenizer.ggml.tokens") or self.hparam("vocab_size")
