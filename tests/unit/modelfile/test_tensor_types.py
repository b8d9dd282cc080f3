"""Tensor and file types, compared with the gguf package."""

from __future__ import annotations

from gguf.constants import GGML_QUANT_SIZES, LlamaFileType

from edgechat.modelfile.tensor_types import FILE_TYPES, TENSOR_TYPES


def test_tensor_types_match_the_gguf_package() -> None:
    for number, (block_size, block_bytes) in GGML_QUANT_SIZES.items():
        assert TENSOR_TYPES[number.value] == (number.name, block_size, block_bytes)


def test_file_types_match_the_gguf_package() -> None:
    names = {kind.value: kind.name.split("_", 1)[1] for kind in LlamaFileType if kind.name != "GUESSED"}
    assert names == FILE_TYPES
