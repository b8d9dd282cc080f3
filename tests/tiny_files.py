"""Tiny model files as dictionaries of metadata and tensors, which a test can change before it writes them."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models import TEMPLATE, list_vocabulary

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass
class Vocabulary:
    """A SentencePiece vocabulary. The fields can be changed, to get one that differs from another."""

    tokens: list[tuple[str, gguf.TokenType]] = dataclasses.field(default_factory=list_vocabulary)
    bos: int = 1
    eos: int = 2
    adds_bos: bool = True
    adds_eos: bool = False
    template: str | None = TEMPLATE

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Add the vocabulary to a model file."""
        writer.add_tokenizer_model("llama")
        writer.add_token_list([text for text, _ in self.tokens])
        writer.add_token_scores([-float(i) for i in range(len(self.tokens))])
        writer.add_token_types([kind for _, kind in self.tokens])
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.template is not None:
            writer.add_chat_template(self.template)


def make_other_vocabularies() -> dict[str, tuple[Vocabulary, bool]]:
    """Return vocabularies that differ from the standard one, by the difference.

    Each comes with True if llama.cpp lets a draft model with it draft for a model with the standard one, or the other
    way round.
    """
    words = list_vocabulary()
    filler = [(f"filler{i}", gguf.TokenType.NORMAL) for i in range(200)]
    other_text, other_start = list(words), list(words)
    other_text[300] = ("other", words[300][1])
    other_start[4] = ("other", gguf.TokenType.NORMAL)
    return {
        "other text of a token": (Vocabulary(other_text), False),
        "other text of one of the first five tokens": (Vocabulary(other_start), True),
        "100 more tokens": (Vocabulary([*words, *filler[:100]]), True),
        "200 more tokens": (Vocabulary([*words, *filler]), False),
        "no BOS in front": (Vocabulary(adds_bos=False), False),
        "other BOS": (Vocabulary(bos=2), False),
        "EOS at the end": (Vocabulary(adds_eos=True), False),
        "other EOS, which is not added": (Vocabulary(eos=len(words) - 1), True),
    }


@dataclasses.dataclass
class TinyFile:
    """Content of a model file."""

    architecture: str
    metadata: dict[str, Any]
    """Values by key without the architecture, such as `block_count`."""
    tensors: dict[str, np.ndarray]
    """Weights by name. The last dimension of a matrix is its input."""
    vocabulary: Vocabulary = dataclasses.field(default_factory=Vocabulary)

    def write(self, path: Path) -> Path:
        """Write the file, and return its path."""
        writer = gguf.GGUFWriter(path, self.architecture)
        writer.add_name("tiny")
        for key, value in self.metadata.items():
            self._add(writer, f"{self.architecture}.{key}", value)
        self.vocabulary.add_to(writer)
        for name, values in self.tensors.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _add(self, writer: gguf.GGUFWriter, key: str, value: Any) -> None:
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.vocabulary.tokens)


def draw_tensors(shapes: Shapes, seed: int) -> dict[str, np.ndarray]:
    """Return random weights by name. Each tensor depends only on its name, its shape and the seed.

    So a file with prediction heads has the same other weights as a file without them.
    """
    return {name: _draw(name, shape, seed) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith(("norm.weight", "norm_2.weight", "layer_output_scale.weight")):
        return np.ones(shape, dtype=np.float32)
    if name.endswith("ssm_a"):
        return -np.exp(random.normal(0.0, 0.5, shape)).astype(np.float32)
    if name.endswith("ssm_dt.bias"):
        # A small step size, so that the state decays slowly.
        return np.full(shape, -3.0, dtype=np.float32)
    # Weights are scaled so that activations keep their magnitude.
    return random.normal(0.0, shape[-1] ** -0.5, shape).astype(np.float32)
