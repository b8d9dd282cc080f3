"""Vocabularies for tests of the tokeniser: those in llama.cpp's sources, and tiny ones with each pre-tokenizer."""

from __future__ import annotations

import ctypes
import os
import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import pytest

from edgechat.runtime.bindings import Bindings
from edgechat.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

# One name for each set of patterns in llama.cpp's src/llama-vocab.cpp.
PRE_TOKENIZERS = (
    "default", "llama-bpe", "jais-2", "deepseek-llm", "deepseek-v3", "spark2_5", "youtu", "deepseek-coder", "falcon",
    "starcoder", "gpt-2", "qwen2", "qwen35", "poro-chat", "viking", "tekken", "chameleon", "gpt-4o",
    "granite-embed-multi-97m", "tiny_aya", "kimi-k2", "superbpe", "bailingmoe", "seed-coder", "ufakzeka", "afmoe",
    "laguna", "exaone-moe", "minicpm5", "sarvam-moe", "gemma4", "glm4",
)  # fmt: skip
# Pre-tokenizers whose time grows with the square of the length, so that the tests need shorter texts.
QUADRATIC_PRE_TOKENIZERS = ("deepseek-llm", "superbpe")
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|end|>", "<s>")
USER_DEFINED_TOKENS = ("<b>", "</b>", "<|tool|>", "      ", "\n\n\n")
_MERGES = (
    "Z Z", "ZZ ZZ", "a a", "aa aa", "aaaa aaaa", "Ġ Ġ", "ĠĠ ĠĠ", "ĠĠĠĠ ĠĠĠĠ", "Ċ Ċ", "ĊĊ ĊĊ", "1 2", "3 4", "12 34",
    "9 9", "9 99", "t h", "th e", "Ġ the", "Ġ a", "o f", "Ġ of", "e r", "i n", "in g", ". .", ".. ..", "! !", "Ġ Ċ",
    "A C", "G T", "AC GT", "Ã ©", "Ã© Ã©", "' s", "- -", "-- --",
)  # fmt: skip


def find_vocabularies() -> list[Path]:
    """Return the vocabularies in llama.cpp's sources, in the build folder of one build; none if it is absent."""
    pattern = ".cache/edgechat-build/tree/*/llama_cpp_python-*/vendor/llama.cpp/models/ggml-vocab-*.gguf"
    return sorted({path.name: path for path in Path.home().glob(pattern)}.values(), key=lambda path: path.name)


def vocabulary_parameters() -> list[ParameterSet]:
    """Return a test parameter for each of these vocabularies; without them, one that is skipped with a reason."""
    parameters = [pytest.param(path, id=path.stem) for path in find_vocabularies()]
    reason = "needs the vocabularies in llama.cpp's sources, which a build of the native bundle leaves in its folder"
    return parameters or [pytest.param(None, id="no vocabulary", marks=pytest.mark.skip(reason))]


def write_bpe_vocabulary(path: Path, pre_tokenizer: str, model: str = "gpt2") -> Path:
    """Write a file with a byte-level vocabulary of a few merges, and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    add_bpe_vocabulary(writer, pre_tokenizer, model)
    _write(writer)
    return path


def add_bpe_vocabulary(writer: gguf.GGUFWriter, pre_tokenizer: str, model: str = "gpt2") -> int:
    """Add a byte-level vocabulary of a few merges to a model file; return the number of tokens."""
    byte_tokens = [_BYTE_LETTERS[byte] for byte in range(256)]
    merged = ["".join(merge.split()) for merge in _MERGES]
    kinds = gguf.TokenType
    tokens = [(text, kinds.NORMAL) for text in byte_tokens + merged]
    tokens += [(text, kinds.CONTROL) for text in CONTROL_TOKENS]
    tokens += [(text, kinds.USER_DEFINED) for text in USER_DEFINED_TOKENS]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges(_MERGES)
    writer.add_bos_token_id(len(tokens) - len(USER_DEFINED_TOKENS) - 1)
    writer.add_eos_token_id(len(tokens) - len(USER_DEFINED_TOKENS) - 2)
    return len(tokens)


def write_spm_vocabulary(path: Path, *, has_byte_tokens: bool) -> Path:
    """Write a file with a SentencePiece vocabulary, and no weights."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256) if has_byte_tokens]
    tokens += [(text, kinds.NORMAL) for text in ["▁", "a", "b", "▁a", "ab", "▁ab", "aa", "aaaa"]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    _write(writer)
    return path


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _make_byte_letters() -> dict[int, str]:
    """Return the characters that stand for bytes in byte-level vocabularies (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_BYTE_LETTERS = _make_byte_letters()


def open_vocabulary(native: Bindings, path: Path) -> Tokenizer:
    """Open the vocabulary in a file without its weights; it stays open until the process ends."""
    llama = native.llama
    params = llama.llama_model_default_params()
    params.vocab_only = True
    pointer = llama.llama_model_load_from_file(os.fsencode(path), params)
    assert pointer, native.log.take_errors()

    def read(key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        count = llama.llama_model_meta_val_str(pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if count >= 0 else ""

    vocab = llama.llama_model_get_vocab(pointer)
    return Tokenizer(native, vocab, path, read("tokenizer.ggml.pre"), read("tokenizer.ggml.model"))


def tokenize_whole(native: Bindings, tokenizer: Tokenizer, text: str, *, parse_special: bool) -> list[int]:
    """Return the tokens of one call of llama.cpp for the whole text. The calling thread must have enough stack."""
    data = text.encode("utf-8", "replace")
    tokens = (ctypes.c_int32 * (len(data) + 4))()
    count = native.llama.llama_tokenize(tokenizer._vocab, data, len(data), tokens, len(tokens), True, parse_special)
    return tokens[:count]


# Texts

RUNS = [
    "Z", "a", "\n", " ", "9", "[", "<", "一", "é", "!", "\t", "\r\n", " \n", "\u0301", "a\u0301", "Ab", "aB", "あ",
    "가", "😀", "\0", "\x01", "\xa0", "\x85", "½", "ZZa", "'s", "a'", ". ", "x ", " x", "▁", "0x", ",", "ǅ", "\u2028",
    "-=", "\u0627", "ক", "\ud800", "1,", "12 ", "a1", "\x7f", "ж", "/*", "▁ ", "<0x0A>", "\ufeff", "`", "\ufdd0",
    "\u202e",
]  # fmt: skip
_WORDS = (
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he",
    "his", "but", "at", "are", "this", "have", "from", "or",
)  # fmt: skip


@cache
def _list_blocks() -> list[range]:
    """Return ranges of 128 characters that cover all of Unicode but the unassigned planes and the surrogates."""
    starts = [*range(0, 0xD800, 128), *range(0xE000, 0x32000, 128), *range(0xE0000, 0xE0200, 128)]
    return [range(start, start + 128) for start in starts]


def _make_segment(rng: random.Random, length: int, special_tokens: list[str]) -> str:
    kind = rng.choice(["run", "run", "block", "words", "letters", "nesting", "special", "any"])
    if kind == "run":
        return rng.choice(RUNS) * length
    if kind == "nesting":
        return "(" * (length // 2) + ")" * (length // 2)
    if kind == "words":
        return " ".join(rng.choices(_WORDS, k=length // 4 + 1))
    if kind == "special":
        return "".join(rng.choices([*special_tokens, " ", "\n", "a", "<", "|"], k=length // 8 + 1))
    letters = ["0123456789", "ACGT", " \n\t", "abcXYZ 0123,.!?\n()[]{}<>\"'", "([{<", ")]}>"]
    blocks = [rng.choice(_list_blocks()) for _ in range(1 if kind == "block" else 20)]
    characters = rng.choice(letters) if kind == "letters" else "".join(chr(c) for block in blocks for c in block)
    return "".join(rng.choices(characters, k=length))


def make_text(rng: random.Random, length: int, special_tokens: list[str]) -> str:
    """Return a random text of `length` characters: runs, nesting, words, digits, controls, and all Unicode blocks."""
    segments, n_chars = [], 0
    while n_chars < length:
        n = min(length - n_chars, max(1, int(length * rng.random() ** 3)))
        segments.append(_make_segment(rng, n, special_tokens)[:n])
        n_chars += len(segments[-1])
    return "".join(segments)[:length]
