"""Identity of a model in the disk tier: a hash of all inputs that determine the content of the KV cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from edgechat.engine.protocol import Load
from edgechat.modelfile.content_hash import HashMemo
from edgechat.modelfile.split import list_model_files
from edgechat.prefix.disk_tier import DiskTier
from edgechat.runtime.backends.bundle import Bundle
from edgechat.runtime.context import Context
from edgechat.runtime.memory_report import describe_memory_layout


def open_disk_tier(load: Load, context: Context, bundle: Bundle) -> DiskTier | None:
    """Open the disk tier of the prefix cache; return None if the load request disables it.

    If the hashes of the weights are not saved, the writer thread computes them, which takes seconds per gigabyte.
    """
    if not load.prefix_dir or load.plan.prefix_disk_bytes <= 0:
        return None
    root = Path(load.prefix_dir)
    hash_memo = HashMemo(root)
    weight_files = [file for file in list_model_files(context.model.path) if file.exists()]
    saved_hashes = [hash_memo.get(file) for file in weight_files]

    def combine_hashes(hashes: list[str]) -> str:
        return compute_cache_identity(hashes, bundle.build_id, describe_memory_layout(context))

    def compute_identity(pause: Callable[[], None]) -> str:
        return combine_hashes([hash_memo.get_or_compute(file, lambda done_bytes: pause()) for file in weight_files])

    disk = DiskTier(root, load.plan.prefix_disk_bytes, compute_identity)
    if all(saved_hashes):
        disk.identity = combine_hashes([sha256 for sha256 in saved_hashes if sha256])
    return disk


def compute_cache_identity(weight_hashes: list[str], build_id: str, layout: str) -> str:
    """Return the identity of a model: a hash of 24 hexadecimal digits.

    `weight_hashes` has one hash per model file; `layout` describes the KV memory of the context.
    """
    return hashlib.sha256("\n".join([*weight_hashes, build_id, layout]).encode()).hexdigest()[:24]
