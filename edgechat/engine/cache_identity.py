"""Where the prefixes of a loaded model are on disk, and under which name."""

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


def open_disk_tier(request: Load, context: Context, bundle: Bundle) -> DiskTier | None:
    """The disk tier of a context; None if nothing may be written."""
    if not request.prefix_dir or request.plan.prefix_disk_bytes <= 0:
        return None
    root = Path(request.prefix_dir)
    memo = root / "weights.json"
    files = parts(context.model.path)
    known = [content_hash.known_hash(file, memo) for file in files]

    def name(hashes: list[str]) -> str:
        return cache_identity(hashes, bundle.build_id, memory_layout(context))

    def find(pause: Callable[[], None]) -> str:
        return name([content_hash.file_hash(file, memo, pause) for file in files])

    disk = DiskTier(root, request.plan.prefix_disk_bytes, find)
    if all(known):
        disk.identity = name([k for k in known if k])
    return disk


def cache_identity(weights_sha256: list[str], build_id: str, layout: str) -> str:
    """A name for everything that decides what the memory of a token looks like."""
    return hashlib.sha256("\n".join([*weights_sha256, build_id, layout]).encode()).hexdigest()[:24]


def parts(path: Path) -> list[Path]:
    """The files of a model, which may be split."""
    found = _SPLIT.search(path.name)
    if found is None:
        return [path]
    return sorted(path.parent.glob(f"{path.name[: found.start()]}-*-of-{found[1]}.gguf"))
