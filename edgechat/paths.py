"""Paths of edgechat's files and directories. The functions do not create files or directories.

The environment variable `EDGECHAT_HOME` moves all files into one directory, for portable installations and tests.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def _base_directory(kind: str) -> Path:
    home = os.environ.get("EDGECHAT_HOME")
    if home:
        return Path(home) / kind
    import platformdirs

    dirs = platformdirs.PlatformDirs("edgechat", appauthor=False)
    return {"config": dirs.user_config_path, "data": dirs.user_data_path, "cache": dirs.user_cache_path}[kind]


def config_dir() -> Path:
    """Return the directory of settings, themes and personas, which the user edits."""
    return _base_directory("config")


def data_dir() -> Path:
    """Return the directory of data that cannot be recreated: conversations and models."""
    return _base_directory("data")


def cache_dir() -> Path:
    """Return the directory of data that can be recreated: measurements, prefix cache and logs."""
    return _base_directory("cache")


def config_file() -> Path:
    """Return the path of the settings file."""
    return config_dir() / "config.toml"


def history_file() -> Path:
    """Return the path of the database of conversations."""
    return data_dir() / "history.db"


def unsent_messages_dir() -> Path:
    """Return the directory of unsent messages, with one text file for each conversation."""
    return data_dir() / "drafts"


def themes_dir() -> Path:
    """Return the directory of the user's themes, with one TOML file for each theme."""
    return config_dir() / "themes"


def personas_dir() -> Path:
    """Return the directory of personas, with one TOML file for each persona."""
    return config_dir() / "personas"


def models_dir() -> Path:
    """Return the directory of downloaded models."""
    return data_dir() / "models"


def log_file() -> Path:
    """Return the path of the engine's log file; the previous log file has the suffix `.1`."""
    return cache_dir() / "engine.log"


def prefix_dir() -> Path:
    """Return the directory of the prefix cache, whose files are as private as the conversations."""
    return cache_dir() / "prefix"


def verdicts_file() -> Path:
    """Return the path of the state file with the results of backend self-tests."""
    return cache_dir() / "backends.json"


def kernel_speeds_file() -> Path:
    """Return the path of the state file with kernel benchmark results."""
    return cache_dir() / "speeds.json"


def observed_memory_file() -> Path:
    """Return the path of the state file with the observed memory use of models."""
    return cache_dir() / "memory.json"


def gpus_file() -> Path:
    """Return the path of the state file with the usable GPUs."""
    return cache_dir() / "gpus.json"


def instances_dir() -> Path:
    """Return the directory of running instances, with one state file for each engine process."""
    return cache_dir() / "running"


def free_bytes(path: Path) -> int:
    """Return the number of free bytes on the disk of `path`, even if `path` does not exist. Raises OSError."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
