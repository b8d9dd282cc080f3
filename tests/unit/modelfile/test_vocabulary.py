"""Vocabularies on which llama.cpp would stop its process are refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.modelfile.vocabulary import check_vocabulary
from tests.gguf_file import ARRAY, I32, STRING, RawGguf
from tests.models import write_tiny_bert, write_tiny_llama

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


@pytest.fixture
def model(tmp_path: Path) -> RawGguf:
    return RawGguf.read(write_tiny_llama(tmp_path / "llama.gguf"))


def check(model: RawGguf, folder: Path) -> str:
    """Check a model file; return the error message, or "" if the model is not refused."""
    message = ""
    try:
        check_vocabulary(read_gguf_header(model.write(folder / "model.gguf")))
    except ModelFileError as error:
        message = str(error)
    assert "\n" not in message
    return message


def with_tokens(model: RawGguf, changes: dict[int, bytes], n_copies: int = 1) -> RawGguf:
    tokens = list(model.metadata[TOKENS][1][1])
    for index, token in changes.items():
        tokens[index] = token
    tokens += [b"%s %d" % (token, copy) for copy in range(1, n_copies) for token in tokens]
    return model.with_value(TOKENS, ARRAY, (STRING, tokens))


def test_valid_vocabularies_pass(model: RawGguf, tmp_path: Path) -> None:
    assert check(model, tmp_path) == ""
    assert check(RawGguf.read(write_tiny_bert(tmp_path / "bert.gguf")), tmp_path) == ""


@pytest.mark.parametrize("n_copies", [1, 30])  # more than the 4096 tokens that a header stores
def test_repeated_token_is_named(model: RawGguf, n_copies: int, tmp_path: Path) -> None:
    changed = with_tokens(model, {300: b"he"}, n_copies)
    assert "has the token 'he' twice in its vocabulary" in check(changed, tmp_path)


def test_tokens_that_differ_after_a_nul_are_the_same(model: RawGguf, tmp_path: Path) -> None:
    changed = with_tokens(model, {300: b"new\0one", 301: b"new\0two"})
    assert "has the token 'new' twice" in check(changed, tmp_path)


def test_empty_tokens_and_invalid_utf8_are_allowed(model: RawGguf, tmp_path: Path) -> None:
    assert check(with_tokens(model, {300: b"", 301: b"", 302: b"\xff", 303: b"\xfe"}), tmp_path) == ""


def test_byte_tokens_need_a_tokenizer_that_knows_them(model: RawGguf, tmp_path: Path) -> None:
    changed = model.with_value("tokenizer.ggml.model", STRING, b"bert")
    assert "has byte tokens in its vocabulary, which the tokenizer 'bert' cannot have" in check(changed, tmp_path)


def test_byte_tokens_must_be_written_as_hexadecimal_numbers(model: RawGguf, tmp_path: Path) -> None:
    types = list(model.metadata[TYPES][1][1])
    types[300] = 6
    changed = model.with_value(TYPES, ARRAY, (I32, types))
    assert "is not written as '<0x..>'" in check(changed, tmp_path)


@pytest.mark.parametrize("key", [TOKENS, TYPES])
def test_arrays_of_another_type_are_left_to_llama_cpp(model: RawGguf, key: str, tmp_path: Path) -> None:
    assert check(model.with_value(key, ARRAY, (4, [1, 2, 3])), tmp_path) == ""
    assert check(model.with_value(key, STRING, b"text"), tmp_path) == ""


def test_deleted_file_is_an_error(model: RawGguf, tmp_path: Path) -> None:
    path = model.write(tmp_path / "model.gguf")
    header = read_gguf_header(path)
    path.unlink()
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        check_vocabulary(header)
