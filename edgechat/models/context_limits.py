"""Limits of growing contexts, from engines that the system killed because their context had grown too long."""

from __future__ import annotations

from typing import Final

from edgechat import paths
from edgechat.files import JsonFile, make_file_key

_MAX_FILE_BYTES: Final = 1 << 20
_MAX_MODELS: Final = 200


def read_limit(model_path: str) -> int | None:
    """Return the length in tokens beyond which the context of a model should not grow; None without a limit."""
    return _read_limits().get(make_file_key(model_path))


def record_kill(model_path: str, n_ctx: int) -> None:
    """Limit the context of a model to half of `n_ctx`, with which the system killed its engine."""
    limits = _read_limits()
    key = make_file_key(model_path)
    limits.pop(key, None)
    _limits_file().save(dict([*limits.items(), (key, n_ctx // 2)][-_MAX_MODELS:]))


def record_success(model_path: str, n_ctx: int) -> None:
    """Double the limit of a model whose context has grown to `n_ctx`, if it has reached the limit.

    The kill may have had another cause, such as another program that used much memory for a short time.
    """
    limits = _read_limits()
    key = make_file_key(model_path)
    if key in limits and n_ctx >= limits[key]:
        _limits_file().save(limits | {key: 2 * limits[key]})


def _limits_file() -> JsonFile[dict[str, int]]:
    return JsonFile(paths.context_limits_file(), dict[str, int], max_bytes=_MAX_FILE_BYTES)


def _read_limits() -> dict[str, int]:
    return _limits_file().read() or {}
