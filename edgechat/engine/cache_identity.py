"""Directory name of the disk tier: a hash of the inputs that determine the content of the KV cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from edgechat.engine.protocol import Load
from edgechat.modelfile.content_hash import HashMemo
from edgechat.modelfile.split import model_files
from edgechat.prefix.disk_tier import DiskTier
from edgechat.runtime.backends.bundle import Bundle
from edgechat.runtime.context import Context
from edgechat.runtime.memory_report import memory_layout


def open_disk_tier(load: Load, context: Context, bundle: Bundle) -> DiskTier | None:
    """Open the disk tier of the prefix cache; return None if the load request disables it.

    If the hash of the weights is not cached, the writer thread computes it, which takes seconds per gigabyte.
    """
    if not load.prefix_dir or load.plan.prefix_disk_bytes <= 0:
        return None
    root = Path(load.prefix_dir)
    memo = HashMemo(root)
    files = [file for file in model_files(context.model.path) if file.exists()]
    cached_hashes = [memo.get(file) for file in files]

    def identity_of(hashes: list[str]) -> str:
        return cache_identity(hashes, bundle.build_id, memory_layout(context))

    def find_identity(pause: Callable[[], None]) -> str:
        return identity_of([memo.get_or_compute(file, lambda done_bytes: pause()) for file in files])

    disk = DiskTier(root, load.plan.prefix_disk_bytes, find_identity)
    if all(cached_hashes):
        disk.identity = identity_of([sha256 for sha256 in cached_hashes if sha256])
    return disk


def cache_identity(weights_sha256: list[str], build_id: str, layout: str) -> str:
    """Return a hash of the weights, the llama.cpp build and the memory layout: 24 hexadecimal digits."""
    return hashlib.sha256("\n".join([*weights_sha256, build_id, layout]).encode()).hexdigest()[:24]
