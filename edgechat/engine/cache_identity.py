"""Identity of a model in the disk tier: a hash of all inputs that determine the content of the KV cache."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from edgechat.engine.protocol import Load
from edgechat.modelfile.content_hash import FileStamp, HashMemo, read_stamp
from edgechat.prefix.disk_tier import DiskTier
from edgechat.runtime.backends.bundle import Bundle
from edgechat.runtime.context import Context
from edgechat.runtime.memory_report import describe_memory_layout


def open_disk_tier(load: Load, context: Context, bundle: Bundle) -> DiskTier | None:
    """Open the disk tier of the prefix cache; return None if the load request disables it.

    If the hashes of the weights are not saved, the writer thread computes them, which takes seconds per gigabyte. If a
    model file has changed since the load, nothing is saved, because its hash is not that of the loaded weights.
    """
    if not load.prefix_dir or load.plan.prefix_disk_bytes <= 0:
        return None
    root = Path(load.prefix_dir)
    hash_memo = HashMemo(root)
    stamps = context.model.file_stamps

    def combine_hashes(hashes: list[str]) -> str:
        check_files_unchanged(stamps)
        return compute_cache_identity(hashes, bundle.build_id, describe_memory_layout(context))

    def compute_identity(pause: Callable[[], None]) -> str:
        return combine_hashes([hash_memo.get_or_compute(file, lambda done_bytes: pause()) for file in stamps])

    disk = DiskTier(root, load.plan.prefix_disk_bytes, compute_identity)
    saved_hashes = [hash_memo.get(file) for file in stamps]
    if None not in saved_hashes:
        with contextlib.suppress(OSError, ValueError):  # the writer thread computes the identity and logs the error
            disk.identity = combine_hashes([sha256 or "" for sha256 in saved_hashes])
    return disk


def check_files_unchanged(stamps: Mapping[Path, FileStamp]) -> None:
    """Raise OSError if a file has changed since its stamp in `stamps` was taken."""
    for file, stamp in stamps.items():
        if read_stamp(file) != stamp:
            raise OSError(f"{file} has changed since the model was loaded")


def compute_cache_identity(weight_hashes: list[str], build_id: str, layout: str) -> str:
    """Return the identity of a model: a hash of 24 hexadecimal digits.

    `weight_hashes` has one hash per model file; `layout` describes the KV memory of the context. Raises ValueError if a
    hash is missing: models without hashes would share their cached prefixes.
    """
    if not weight_hashes or not all(weight_hashes):
        raise ValueError("a model without the hashes of its weights has no identity")
    return hashlib.sha256("\n".join([*weight_hashes, build_id, layout]).encode()).hexdigest()[:24]
