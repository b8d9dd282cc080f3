"""What a model file says of itself."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import msgspec

from edgechat.modelfile.tensor_types import FILE_TYPES, TENSOR_TYPES


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of the file."""

    name: str
    shape: tuple[int, ...]
    """As GGUF writes it: the row length first."""
    type_id: int
    offset: int
    """Bytes from the start of the data section."""
    size_bytes: int
    part_index: int = 0
    """In which file of a set it lies, from 0."""

    @property
    def type(self) -> str:
        """The type's name, such as `Q4_K`."""
        return TENSOR_TYPES[self.type_id].name


class ModelHeader(msgspec.Struct, frozen=True, dict=True):
    """The header of a GGUF file, checked: counts, lengths and tensor ranges agree with the file's size."""

    path: str
    file_bytes: int
    version: int
    metadata: dict[str, Any]
    """Scalars and short arrays by key; a long array is represented by its length in `array_lengths`."""
    array_lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    data_offset: int
    """Where the data section starts in the file."""

    @property
    def architecture(self) -> str:
        """As llama.cpp names it: `llama`, `qwen3`, ..."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def name(self) -> str:
        """What the model calls itself, or ""."""
        return str(self.metadata.get("general.name", ""))

    @property
    def n_parts(self) -> int:
        """In how many files the model lies; 1 but for sets."""
        return self._whole("split.count", 1) or 1

    @property
    def part_index(self) -> int:
        """Which of them this is, from 0."""
        return self._whole("split.no", 0)

    @property
    def kind(self) -> str:
        """`model`, `projector` (what turns pictures or sound into input, an mmproj file), or `adapter` (LoRA)."""
        kind = self.metadata.get("general.type")
        if self.architecture == "clip" or kind == "mmproj":
            return "projector"
        return "adapter" if kind == "adapter" else "model"

    @property
    def quant(self) -> str:
        """The name of the mixture of types, such as `Q4_K_M`; the type of most bytes if the file does not say."""
        known = FILE_TYPES.get(self._whole("general.file_type", -1))
        if known is not None:
            return known
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size_bytes
        return max(sizes, key=sizes.__getitem__, default="")

    @cached_property
    def n_params(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def chat_template(self) -> str | None:
        """The chat template as Jinja source, or None."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    @cached_property
    def has_recurrent_state(self) -> bool:
        """True if some layers keep a state instead of a cell for each token."""
        names = (".ssm.", ".shortconv.", ".wkv.", ".token_shift_count", ".kda.")
        return any(name in key for key in self.metadata for name in names)

    @property
    def is_embedding(self) -> bool:
        """True if it makes vectors of texts, not texts: its pooling is by mean, first or last token."""
        return self.hparam("pooling_type") in {1, 2, 3}

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.size_bytes for t in self.tensors)

    def _whole(self, key: str, default: int) -> int:
        value = self.metadata.get(key, default)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def hparam(self, key: str, default: int = 0) -> int:
        """A count of this architecture, such as `block_count`; the largest where it is one per layer."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            value = max((v for v in value if isinstance(v, int)), default=default)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.hparam("block_count")

    @property
    def n_ctx_train(self) -> int:
        """Context length that the model was trained for, in tokens; 0 if the file does not say."""
        return self.hparam("context_length")

    @property
    def n_embd(self) -> int:
        """Width of the embeddings."""
        return self.hparam("embedding_length")

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.array_lengths.get("tokenizer.ggml.tokens") or self.hparam("vocab_size")
