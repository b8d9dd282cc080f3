"""Comparison of the vocabularies of two models: a draft model must have the tokens of its target.

The rules are those of common_speculative_are_compatible in llama.cpp (common/speculative.cpp). The vocabularies are
read from the files again, which takes about 0.1 s for 150,000 tokens, because headers store only their length.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, NamedTuple

from edgechat.errors import ModelFileError
from edgechat.files import open_regular
from edgechat.modelfile.header import ModelHeader

_TOKENS_KEY: Final = "tokenizer.ggml.tokens"
_ARRAY_HEAD_BYTES: Final = 12
"""Size in bytes of the element type and the length, which precede the elements of an array."""
MAX_SIZE_DIFFERENCE: Final = 128
"""Maximum difference between the numbers of tokens: SPEC_VOCAB_MAX_SIZE_DIFFERENCE of llama.cpp."""
FIRST_COMPARED_ID: Final = 5
"""First token whose text is compared: SPEC_VOCAB_CHECK_START_TOKEN_ID of llama.cpp."""
# Ids that llama.cpp gives to the first and last token of a text if the file has none, by tokenizer.
_DEFAULT_BOS_IDS: Final = {"bert": 101, "gpt2": 11, "llama": 1}
_DEFAULT_EOS_IDS: Final = {"gpt2": 11, "llama": 2, "t5": 1}
# Tokenizers, and pre-tokenizers of `gpt2`, that add a token to the start of a text unless the file says otherwise.
_TOKENIZERS_WITH_BOS: Final = ("bert", "llama")
_PRE_TOKENIZERS_WITH_BOS: Final = frozenset((
    "chameleon", "falcon-h1", "falcon3", "jina-v5-nano", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0",
    "pixtral", "tekken",
))  # fmt: skip


class _AddedTokens(NamedTuple):
    """Ids of the tokens that llama.cpp adds to the start and end of a text; None for none."""

    bos: int | None
    eos: int | None


def find_vocabulary_difference(target: ModelHeader, draft: ModelHeader) -> str:
    """Return why the model `draft` cannot draft for `target`, as a predicate; "" if their vocabularies match.

    Raises ModelFileError if a file cannot be read.
    """
    target_tokenizer, draft_tokenizer = _read_tokenizer(target), _read_tokenizer(draft)
    if target_tokenizer != draft_tokenizer:
        return f"has the tokenizer {draft_tokenizer[:40]!r}, and the model has {target_tokenizer[:40]!r}"
    if _find_added_tokens(target) != _find_added_tokens(draft):
        return "adds other tokens to the start or end of a text than the model"
    n_target, n_draft = target.n_vocab, draft.n_vocab
    if abs(n_target - n_draft) > MAX_SIZE_DIFFERENCE:
        return (
            f"has a vocabulary of {n_draft:,} tokens, and the model has {n_target:,}: at most {MAX_SIZE_DIFFERENCE} "
            "tokens may differ"
        )
    first, second = _read_tokens(target), _read_tokens(draft)
    if first is None or second is None:
        return "" if first is second else "has no vocabulary, or the model has none"
    try:
        token_id = _find_different_token(first, second, min(n_target, n_draft))
    except struct.error:
        raise ModelFileError(f"{draft.path} or {target.path} was changed while it was read. Try again.") from None
    return f"has another text for the token {token_id:,} than the model" if token_id is not None else ""


def _read_tokenizer(header: ModelHeader) -> str:
    return str(header.metadata.get("tokenizer.ggml.model", ""))


def _find_added_tokens(header: ModelHeader) -> _AddedTokens:
    tokenizer = _read_tokenizer(header)
    pre_tokenizer = str(header.metadata.get("tokenizer.ggml.pre", ""))
    adds_bos = tokenizer in _TOKENIZERS_WITH_BOS or pre_tokenizer in _PRE_TOKENIZERS_WITH_BOS
    adds_bos = header.metadata.get("tokenizer.ggml.add_bos_token", adds_bos) or pre_tokenizer == "gemma4"
    adds_eos = header.metadata.get("tokenizer.ggml.add_eos_token", tokenizer == "t5")
    return _AddedTokens(
        header.metadata.get("tokenizer.ggml.bos_token_id", _DEFAULT_BOS_IDS.get(tokenizer)) if adds_bos else None,
        header.metadata.get("tokenizer.ggml.eos_token_id", _DEFAULT_EOS_IDS.get(tokenizer)) if adds_eos else None,
    )


def _read_tokens(header: ModelHeader) -> bytes | None:
    """Return the header of a file from the first token of its vocabulary on; None if it has no vocabulary."""
    offset = header.value_offsets.get(_TOKENS_KEY)
    if offset is None:
        return None
    try:
        with open_regular(Path(header.path)) as file:
            file.seek(offset + _ARRAY_HEAD_BYTES)
            return file.read(max(0, header.data_offset - offset - _ARRAY_HEAD_BYTES))
    except OSError as error:
        raise ModelFileError(f"{header.path} cannot be read: {error.strerror or error}") from error


def _find_different_token(first: bytes, second: bytes, n_tokens: int) -> int | None:
    """Return the id of the first compared token of `n_tokens` that differs; None if all are equal.

    Raises struct.error if the strings are longer than the data.
    """
    n_skipped = min(FIRST_COMPARED_ID, n_tokens)
    start, other_start = _skip_strings(first, 0, n_skipped), _skip_strings(second, 0, n_skipped)
    n_bytes = _skip_strings(first, start, n_tokens - n_skipped) - start
    if first[start : start + n_bytes] == second[other_start : other_start + n_bytes]:  # much faster than a loop
        return None
    for token_id in range(n_skipped, n_tokens):
        end, other_end = _skip_strings(first, start, 1), _skip_strings(second, other_start, 1)
        if first[start:end] != second[other_start:other_end]:
            return token_id
        start, other_start = end, other_end
    return None


def _skip_strings(data: bytes, position: int, count: int) -> int:
    """Return the position after `count` strings, each of which follows its length. Raises struct.error."""
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(count):
        position += 8 + unpack(data, position)[0]
    return position
