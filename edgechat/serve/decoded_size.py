"""Estimate of the memory of decoded JSON, which is up to 30 times as large as the JSON if it has many small values."""

from __future__ import annotations

import re
from typing import Final

from edgechat.serve.errors import ApiError

MAX_VALUES: Final = 1 << 19
"""Maximum number of keys and values in the JSON of a request body; lists and objects count twice."""
_UNCOUNTED_VALUES: Final = 4096
"""Number of values in each body whose memory is not counted, so that ordinary requests are never refused."""
# Maximum memory per comma, colon or opening bracket (Python 3.10, 64 bits): an empty list or object and its slot in the
# outer list, or the share of an object with one key.
_VALUE_BYTES: Final = 96
_STRUCTURAL_BYTES: Final = b",:[{"
_BLOCK_BYTES: Final = 1 << 20
# Characters beyond U+FFFF, in UTF-8 or as an escape. A Python string with such a character takes 4 bytes per character.
_WIDE_CHARACTER: Final = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")


def estimate_decoded_bytes(data: bytearray) -> int:
    """Return an upper bound of the memory of a decoded JSON body, without the first `_UNCOUNTED_VALUES` values.

    Raises ApiError if the body has more than `MAX_VALUES` keys and values.
    """
    n_values = count_values(data)
    if n_values > MAX_VALUES:
        raise ApiError(413, f"The body has more than {MAX_VALUES} JSON values. Send fewer of them.", code="too_large")
    return _VALUE_BYTES * max(0, n_values - _UNCOUNTED_VALUES) + _find_character_bytes(data) * len(data)


def count_values(data: bytes | bytearray) -> int:
    """Return the number of commas, colons and opening brackets outside the strings of a JSON text.

    The number is exact only between `_UNCOUNTED_VALUES` and `MAX_VALUES`, where it matters; outside this range it is an
    estimate. Takes at most 10 ms per MiB.
    """
    n_values = _count_structural_bytes(data)
    if n_values <= _UNCOUNTED_VALUES:
        return n_values
    text = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    n_values, is_in_string = 0, False
    for start in range(0, len(text), _BLOCK_BYTES):
        parts = text[start : start + _BLOCK_BYTES].split(b'"')
        n_values += _count_structural_bytes(b"".join(parts[is_in_string::2]))
        is_in_string ^= len(parts) % 2 == 0
        if n_values > MAX_VALUES:
            break
    return n_values


def _count_structural_bytes(data: bytes | bytearray) -> int:
    return len(data) - len(data.translate(None, _STRUCTURAL_BYTES))


def _find_character_bytes(data: bytearray) -> int:
    """Return the maximum memory, in bytes, of Python strings per byte of a JSON body."""
    if data.isascii() and b"\\u" not in data:
        return 1
    return 4 if _WIDE_CHARACTER.search(data) else 2
