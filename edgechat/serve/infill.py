"""Prompts for code infilling (fill-in-the-middle, FIM): the model writes the text between a prefix and a suffix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from edgechat.engine.protocol import FimTokens
from edgechat.errors import ContextOverflowError
from edgechat.serve.errors import ApiError
from edgechat.serve.model_queue import ModelQueue

# Tokens for the generated text that a prompt with other files leaves free, if the request has no limit.
_DEFAULT_REPLY_TOKENS: Final = 256
# Texts of llama-server, which other files of the repository follow.
_REPOSITORY_NAME: Final = "myproject\n"
_FILE_NAME: Final = "filename\n"
_CHUNK_SEPARATOR: Final = "\n\n--- snip ---\n\n"


class InfillFile(Struct, frozen=True):
    """Part of another file of the repository."""

    text: str
    filename: str | None = None


class InfillParts(NamedTuple):
    """Texts of a prompt for infilling. The texts of control tokens in them are plain text."""

    prefix: str | list[int]
    """Text before the gap, or its tokens."""
    suffix: str
    middle: str = ""
    """Beginning of the text in the gap, which the model continues."""
    files: Sequence[InfillFile] = ()
    """Other files, the most important last."""


async def make_infill_prompt(queue: ModelQueue, parts: InfillParts, max_tokens: int | None, param: str) -> list[int]:
    """Return the tokens of a prompt in the format of Qwen2.5-Coder, which llama-server uses for all models.

    Files that do not fit in the context together with the reply are left out, the first ones first. Raises ApiError,
    which names the field `param`, if the vocabulary has no tokens for infilling.
    """
    fim_tokens = find_fim_tokens(queue, param)
    prefix = await _tokenize(queue, parts.prefix) if isinstance(parts.prefix, str) else parts.prefix
    suffix, middle = await _tokenize(queue, parts.suffix), await _tokenize(queue, parts.middle)
    prompt = [
        fim_tokens.prefix, *prefix, *middle, fim_tokens.suffix, *suffix, fim_tokens.middle,
    ]  # fmt: skip
    n_reply = max_tokens if max_tokens is not None else _DEFAULT_REPLY_TOKENS
    n_free = queue.model_properties.n_ctx - len(fim_tokens.bos_tokens) - len(prompt) - n_reply
    return [*fim_tokens.bos_tokens, *await _make_repository(queue, fim_tokens, parts.files, n_free), *prompt]


def find_fim_tokens(queue: ModelQueue, param: str) -> FimTokens:
    """Return the tokens for infilling. Raises ApiError if the vocabulary has none."""
    fim_tokens = queue.model_properties.fim_tokens
    if fim_tokens is None:
        message = (
            f"{param}: {queue.name} has no tokens for infilling (fill-in-the-middle). Serve a model for code, "
            "such as Qwen2.5-Coder."
        )
        raise ApiError(400, message, param=param)
    return fim_tokens


async def _make_repository(
    queue: ModelQueue, fim_tokens: FimTokens, files: Sequence[InfillFile], n_free: int
) -> list[int]:  # fmt: skip
    """Return the tokens of the other files, at most `n_free`, and of the name of the file with the gap."""
    if not files:
        return []
    start, end = [], []
    if fim_tokens.repository is not None:
        start = [fim_tokens.repository, *await _tokenize(queue, _REPOSITORY_NAME)]
    if fim_tokens.separator is not None:
        end = [fim_tokens.separator, *await _tokenize(queue, _FILE_NAME)]
    n_free -= len(start) + len(end)
    chunks: list[list[int]] = []
    for file in reversed(files):
        try:
            chunk = await _tokenize_file(queue, fim_tokens, file)
        except ContextOverflowError:  # the file is several times longer than the context
            break
        n_free -= len(chunk)
        if n_free < 0:
            break
        chunks.insert(0, chunk)
    return [*start, *(token for chunk in chunks for token in chunk), *end] if chunks else []


async def _tokenize_file(queue: ModelQueue, fim_tokens: FimTokens, file: InfillFile) -> list[int]:
    if fim_tokens.separator is not None:
        name = [fim_tokens.separator, *await _tokenize(queue, f"{file.filename or 'tmp'}\n")]
    else:
        name = await _tokenize(queue, _CHUNK_SEPARATOR)
    return name + await _tokenize(queue, file.text)


async def _tokenize(queue: ModelQueue, text: str) -> list[int]:
    return await queue.tokenize_text(text, add_special=False, parse_special=False) if text else []
