"""Check of a model's vocabulary for tokens that make llama.cpp abort its process instead of reporting an error.

The check reads the vocabulary again from the file, which takes 0.2 to 0.4 s for 150,000 tokens, because a header stores
only its length. Therefore it runs only to explain a crash.
"""

from __future__ import annotations

import struct
import sys
from array import array
from pathlib import Path
from typing import Final

from edgechat.errors import ModelFileError
from edgechat.files import open_regular
from edgechat.modelfile.header import ModelHeader

_TOKENS_KEY: Final = "tokenizer.ggml.tokens"
_TYPES_KEY: Final = "tokenizer.ggml.token_type"
_ARRAY_HEAD_BYTES: Final = 12
"""Size in bytes of the element type and the length, which precede the elements of an array."""
_STRING, _INT32 = 8, 5
_BYTE_TOKEN_TYPE: Final = 6
"""LLAMA_TOKEN_TYPE_BYTE of llama.cpp."""
# Values of tokenizer.ggml.model whose vocabulary can contain byte tokens (llama_vocab::impl::token_to_byte).
_TOKENIZERS_WITH_BYTES: Final = ("gemma4", "gpt2", "hybriddna", "llama", "t5", "whitespace")


def check_vocabulary(header: ModelHeader) -> None:
    """Raise ModelFileError if the vocabulary of a model file would make llama.cpp abort its process.

    Does nothing for a model without a vocabulary, or if llama.cpp rejects the vocabulary with an error message.
    """
    path, n_tokens = Path(header.path), header.array_lengths.get(_TOKENS_KEY, 0)
    if not n_tokens or _TOKENS_KEY not in header.value_offsets:
        return
    try:
        with open_regular(path) as file:
            data = file.read(header.data_offset)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    problem = _find_problem(header, data, n_tokens)
    if problem:
        raise ModelFileError(f"{path} {problem}. The file is damaged or was converted incorrectly.")


def _find_problem(header: ModelHeader, data: bytes, n_tokens: int) -> str:
    tokens = _read_strings(data, header.value_offsets[_TOKENS_KEY], n_tokens)
    if any(b"\0" in token for token in tokens):
        tokens = [token.partition(b"\0")[0] for token in tokens]  # llama.cpp reads only to the first NUL
    named_tokens = [token for token in tokens if token] if b"" in tokens else tokens
    if len(set(named_tokens)) < len(named_tokens):
        seen: set[bytes] = set()
        repeated = next(token for token in named_tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        return f"has the token {repeated[:40].decode('utf-8', 'replace')!r} twice in its vocabulary"
    tokenizer = str(header.metadata.get("tokenizer.ggml.model", ""))
    if _TYPES_KEY in header.value_offsets:
        types = _read_int32s(data, header.value_offsets[_TYPES_KEY])
        byte_tokens = [token for token, kind in zip(tokens, types, strict=False) if kind == _BYTE_TOKEN_TYPE]
        if byte_tokens and tokenizer not in _TOKENIZERS_WITH_BYTES:
            return f"has byte tokens in its vocabulary, which the tokenizer {tokenizer[:40]!r} cannot have"
        if not all(token.startswith(b"<0x") for token in byte_tokens):
            return "has a byte token in its vocabulary that is not written as '<0x..>'"
    return ""


def _read_strings(data: bytes, offset: int, count: int) -> list[bytes]:
    """Return the strings of an array at `offset`. The lengths have been checked with the header."""
    if struct.unpack_from("<I", data, offset)[0] != _STRING:
        return []
    strings, position, unpack = [], offset + _ARRAY_HEAD_BYTES, struct.Struct("<Q").unpack_from
    for _ in range(count):
        start = position + 8
        position = start + unpack(data, position)[0]
        strings.append(data[start:position])
    return strings


def _read_int32s(data: bytes, offset: int) -> array[int]:
    """Return the integers of an array at `offset`; an empty array if its elements are not 32-bit integers."""
    type_id, count = struct.unpack_from("<IQ", data, offset)
    values = array("i")
    if type_id == _INT32:
        start = offset + _ARRAY_HEAD_BYTES
        values.frombytes(data[start : start + 4 * count])
        if sys.byteorder == "big":
            values.byteswap()
    return values
