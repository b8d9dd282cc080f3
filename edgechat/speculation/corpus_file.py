"""Texts of tokens in files: one for each conversation, checked when they are read."""

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
# The last byte is the version of the format.
MAGIC: Final = b"edgechat texts\x01"
FILE: Final = "said.tokens"
MAX_FILE_BYTES: Final = 8 << 20


def read(path: Path, n_vocab: int) -> list[bytes]:
    """The texts in a file, each as 32-bit integers below `n_vocab`; none, and the file is removed, if it is damaged.

    What is no file, or larger than any that is written, is left alone.
    """
    try:
        data = files.read_bytes(path, MAX_FILE_BYTES)
    except OSError:
        return []
    body = data[len(MAGIC) + 4 :]
    texts: list[bytes] = []
    if data.startswith(MAGIC + _crc(body)):
        with contextlib.suppress(msgspec.MsgspecError):
            texts = msgspec.msgpack.decode(body, type=list[bytes])
    if not texts or not all(_is_sound(text, n_vocab) for text in texts):
        _log.warning("the drafts in %s cannot be used, and are removed", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return []
    return texts


def write(path: Path, texts: list[bytes]) -> None:
    """Write the texts in place of what was there. Raises OSError."""
    body = msgspec.msgpack.encode(texts)
    files.replace_file(path, MAGIC + _crc(body) + body)


def _is_sound(text: bytes, n_vocab: int) -> bool:
    if len(text) % 4 or not text:
        return False
    tokens = array("i", text)
    return min(tokens) >= 0 and max(tokens) < n_vocab


def _crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")
