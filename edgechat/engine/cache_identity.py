"""Directory name of the disk tier: a hash of the inputs that decide the content of the KV cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from edgechat.engine.protocol import Load
from edgechat.modelfile import content_hash
from edgechat.prefix.disk_tier import DiskTier
from edgechat.runtime.backends.bundle import Bundle
from edgechat.runtime.context import Context
from edgechat.runtime.memory_report import memory_layout

_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def open_disk_tier(load: Load, context: Context, bundle: Bundle) -> DiskTier | None:
    """Open the disk tier of the prefix cache; None if the load request allows no files.

    If the hash of the weights is not remembered, the tier's own thread computes it, which takes seconds per gigabyte.
    """
    if not load.prefix_dir or load.plan.prefix_disk_bytes <= 0:
        return None
    root = Path(load.prefix_dir)
    memo = root / "weights.json"
    files = parts(context.model.path)
    known_hashes = [content_hash.known_hash(file, memo) for file in files]

    def name(hashes: list[str]) -> str:
        return cache_identity(hashes, bundle.build_id, memory_layout(context))

    def find_identity(pause: Callable[[], None]) -> str:
        return name([content_hash.file_hash(file, memo, pause) for file in files])

    disk = DiskTier(root, load.plan.prefix_disk_bytes, find_identity)
    if all(known_hashes):
        disk.identity = name([sha256 for sha256 in known_hashes if sha256])
    return disk


def cache_identity(weights_sha256: list[str], build_id: str, layout: str) -> str:
    """Hash of the weights, the llama.cpp build and the memory layout; 24 hexadecimal digits."""
    return hashlib.sha256("\n".join([*weights_sha256, build_id, layout]).encode()).hexdigest()[:24]


def parts(path: Path) -> list[Path]:
    """Paths of all files of a model, which may be a split one."""
    match = _SPLIT.search(path.name)
    if match is None:
        return [path]
    return sorted(path.parent.glob(f"{path.name[: match.start()]}-*-of-{match[1]}.gguf"))
