"""Comparison of vocabularies: a draft model must have the tokens of its target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import msgspec
import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.gguf import MAX_ARRAY_LENGTH
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.shared_vocabulary import find_vocabulary_difference
from edgechat.modelfile.split import read_header

N_TOKENS = 300


def write(
    path: Path, *, tokens: list[str] | None = None, n_tokens: int = N_TOKENS, model: str = "gpt2", pre: str = "qwen2",
    **values: Any,
) -> ModelHeader:  # fmt: skip
    """Write a file of a vocabulary, and return its header."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens if tokens is not None else [f"token {i}" for i in range(n_tokens)])
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_uint32(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_header(path)


@pytest.mark.parametrize("n_tokens", [1, 5, 6, N_TOKENS, MAX_ARRAY_LENGTH + 1])
def test_equal_vocabularies_match(tmp_path: Path, n_tokens: int) -> None:
    headers = [write(tmp_path / f"{i}.gguf", n_tokens=n_tokens) for i in range(2)]
    assert find_vocabulary_difference(*headers) == ""


def test_the_first_tokens_and_additional_tokens_may_differ(tmp_path: Path) -> None:
    tokens = [f"token {i}" for i in range(N_TOKENS)]
    target = write(tmp_path / "target.gguf", tokens=tokens)
    other_start = write(tmp_path / "start.gguf", tokens=["a", "bb", "", "d", "e", *tokens[5:]])
    longer = write(tmp_path / "longer.gguf", tokens=[*tokens, *(f"more {i}" for i in range(128))])
    for draft in (other_start, longer):
        assert find_vocabulary_difference(target, draft) == ""
        assert find_vocabulary_difference(draft, target) == ""


@pytest.mark.parametrize("token_id", [5, 6, 200, N_TOKENS - 1])
@pytest.mark.parametrize("text", ["other", "token x", ""])
def test_a_different_text_is_found(tmp_path: Path, token_id: int, text: str) -> None:
    tokens = [f"token {i}" for i in range(N_TOKENS)]
    target = write(tmp_path / "target.gguf", tokens=tokens)
    tokens[token_id] = text
    draft = write(tmp_path / "draft.gguf", tokens=tokens)
    assert find_vocabulary_difference(target, draft) == f"has another text for the token {token_id} than the model"


@pytest.mark.parametrize(
    ("values", "difference"),
    [
        ({"model": "llama"}, "has the tokenizer 'llama', and the model has 'gpt2'"),
        ({"n_tokens": N_TOKENS + 129}, "has a vocabulary of 429 tokens, and the model has 300"),
        ({"add_bos_token": True}, "adds other tokens"),
        ({"add_eos_token": True, "eos_token_id": 3}, "adds other tokens"),
        ({"pre": "llama-bpe"}, "adds other tokens"),
        ({"pre": "llama-bpe", "add_bos_token": False}, ""),
        ({"bos_token_id": 7}, ""),
        ({"add_bos_token": False, "add_eos_token": False}, ""),
    ],
)
def test_rules_of_llama_cpp(tmp_path: Path, values: dict[str, Any], difference: str) -> None:
    target, draft = write(tmp_path / "target.gguf"), write(tmp_path / "draft.gguf", **values)
    found = find_vocabulary_difference(target, draft)
    assert difference in found
    assert bool(found) == bool(difference)


def test_different_first_tokens_that_are_added(tmp_path: Path) -> None:
    headers = [write(tmp_path / f"{i}.gguf", add_bos_token=True, bos_token_id=i) for i in range(2)]
    assert "adds other tokens" in find_vocabulary_difference(*headers)


def test_files_that_change_or_vanish_are_reported(tmp_path: Path) -> None:
    target, draft = write(tmp_path / "target.gguf"), write(tmp_path / "draft.gguf")
    Path(draft.path).write_bytes(b"")
    Path(target.path).write_bytes(b"")
    with pytest.raises(ModelFileError, match="was changed while it was read"):
        find_vocabulary_difference(target, draft)
    Path(draft.path).unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        find_vocabulary_difference(target, draft)


def test_models_without_a_vocabulary(tmp_path: Path) -> None:
    target = write(tmp_path / "target.gguf", n_tokens=50)
    without = msgspec.structs.replace(target, value_offsets={}, array_lengths={})
    assert "has no vocabulary" in find_vocabulary_difference(target, without)
    assert find_vocabulary_difference(without, without) == ""
