"""Corpus file: the texts of one conversation as tokens, with a checksum."""

from __future__ import annotations

import contextlib
import logging
import zlib
from array import array
from pathlib import Path
from typing import Final

import msgspec

from edgechat import files

_log = logging.getLogger(__name__)
# File signature; its last byte is the format version.
MAGIC: Final = b"edgechat texts\x01"
FILE_NAME: Final = "said.tokens"
MAX_FILE_BYTES: Final = 8 << 20


def read(path: Path, n_vocab: int) -> list[bytes]:
    """Return the texts of a file, each as packed 32-bit tokens; return an empty list if the file cannot be used.

    A file that is damaged, or has tokens outside 0 to `n_vocab` - 1, is deleted. A file that cannot be read, or is
    larger than `MAX_FILE_BYTES`, is not deleted.
    """
    try:
        data = files.read_bytes(path, MAX_FILE_BYTES)
    except OSError:
        return []
    body = data[len(MAGIC) + 4 :]
    texts: list[bytes] = []
    if data.startswith(MAGIC + _compute_crc(body)):
        with contextlib.suppress(msgspec.MsgspecError):
            texts = msgspec.msgpack.decode(body, type=list[bytes])
    if not texts or not all(_is_valid(text, n_vocab) for text in texts):
        _log.warning("Deleted the damaged draft corpus %s", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return []
    return texts


def write(path: Path, texts: list[bytes]) -> None:
    """Write `texts` to a file; an existing file is replaced atomically. Raises OSError."""
    body = msgspec.msgpack.encode(texts)
    files.replace_file(path, MAGIC + _compute_crc(body) + body)


def _is_valid(text: bytes, n_vocab: int) -> bool:
    if len(text) % 4 or not text:
        return False
    tokens = array("i", text)
    return min(tokens) >= 0 and max(tokens) < n_vocab


def _compute_crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")
