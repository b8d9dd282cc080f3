"""Where edgechat keeps its files: one function per directory, none is made by asking.

`EDGECHAT_HOME` moves all of them below one directory, for portable installs and for tests.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def _directory(kind: str) -> Path:
    home = os.environ.get("EDGECHAT_HOME")
    if home:
        return Path(home) / kind
    import platformdirs

    dirs = platformdirs.PlatformDirs("edgechat", appauthor=False)
    return {"config": dirs.user_config_path, "data": dirs.user_data_path, "cache": dirs.user_cache_path}[kind]


def config_dir() -> Path:
    """Settings that a person edits."""
    return _directory("config")


def data_dir() -> Path:
    """What must never be lost: conversations and models."""
    return _directory("data")


def cache_dir() -> Path:
    """What can be made again: verdicts and logs."""
    return _directory("cache")


def config_file() -> Path:
    """The settings file."""
    return config_dir() / "config.toml"


def history_file() -> Path:
    """The database of conversations."""
    return data_dir() / "history.db"


def unsent_messages_dir() -> Path:
    """What was typed and not sent."""
    return data_dir() / "drafts"


def themes_dir() -> Path:
    """Colours of a person's own, a TOML file each."""
    return config_dir() / "themes"


def personas_dir() -> Path:
    """Personas, a TOML file each."""
    return config_dir() / "personas"


def models_dir() -> Path:
    """Model files that belong to edgechat."""
    return data_dir() / "models"


def log_file() -> Path:
    """The engine's log; the one before it has the suffix `.1`."""
    return cache_dir() / "engine.log"


def prefix_dir() -> Path:
    """What models computed of conversations: as private as these are."""
    return cache_dir() / "prefix"


def verdicts_file() -> Path:
    """What the self tests of backends found on this machine."""
    return cache_dir() / "backends.json"


def kernel_speeds_file() -> Path:
    """How fast backends were found to be on this machine."""
    return cache_dir() / "speeds.json"


def observed_memory_file() -> Path:
    """What models were found to take on this machine."""
    return cache_dir() / "memory.json"


def gpus_file() -> Path:
    """GPUs that were found to work on this machine."""
    return cache_dir() / "gpus.json"


def instances_dir() -> Path:
    """What programs of ours that run now have loaded, a file each."""
    return cache_dir() / "running"


def free_bytes(path: Path) -> int:
    """Free bytes of the disk on which `path` is, or would be. Raises OSError."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
