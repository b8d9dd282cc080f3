"""Paths of edgechat's files and directories. The functions do not create files or directories.

The environment variable `EDGECHAT_HOME` moves all files into one directory, for portable installations and tests.
The functions raise UsageError if the user has no home directory, or if edgechat's directory cannot be opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from pathlib import Path

from edgechat.errors import UsageError


def home_dir() -> Path | None:
    """Return the user's home directory; None if neither HOME nor the password database contains an absolute path."""
    home = os.path.expanduser("~") if sys.platform == "win32" else os.environ.get("HOME", "")  # noqa: PTH111
    if not os.path.isabs(home):  # noqa: PTH117  (works on text)
        with contextlib.suppress(ImportError, KeyError):  # no password database (Windows), or no entry in it
            import pwd

            home = pwd.getpwuid(os.getuid()).pw_dir
    return Path(home) if os.path.isabs(home) else None  # noqa: PTH117


def expand_user(name: str) -> Path:
    """Return `name` as a path, with the home directory in place of a leading `~`, if that directory is known."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  (Path.expanduser raises an exception for an unknown user)


def _base_directory(kind: str) -> Path:
    directory = _find_base_directory(kind)
    try:
        os.stat(os.path.join(directory, os.curdir))  # noqa: PTH116, PTH118  (a Path would drop the dot)
    except (FileNotFoundError, NotADirectoryError):  # the directory is created later, or writing to it fails
        pass
    except OSError as error:
        raise UsageError(
            f"Cannot open the folder {directory}: {error.strerror}. Correct its permissions, or set HOME or "
            "EDGECHAT_HOME to a folder of yours."
        ) from None
    return directory


def _find_base_directory(kind: str) -> Path:
    home = os.environ.get("EDGECHAT_HOME")
    if home:
        with contextlib.suppress(FileNotFoundError):  # the current directory was deleted
            return Path(home).absolute() / kind
        raise UsageError(f"EDGECHAT_HOME is {home!r}, but the current folder was deleted. Set it to an absolute path.")
    import platformdirs

    dirs = platformdirs.PlatformDirs("edgechat", appauthor=False)
    directories = {"config": "user_config_path", "data": "user_data_path", "cache": "user_cache_path"}
    with contextlib.suppress(RuntimeError):  # the home directory is unknown
        path: Path = getattr(dirs, directories[kind])
        if path.is_absolute():
            return path
    raise UsageError(
        "There is no home directory for edgechat's files: HOME is not an absolute path, and the password database has "
        "no entry for the current user. Set HOME, or set EDGECHAT_HOME to a folder for edgechat's files."
    )


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


def documents_dir() -> Path:
    """Return the directory of collections of documents, with one database for each collection."""
    return data_dir() / "documents"


def log_file() -> Path:
    """Return the path of the engine's log file; the previous log file has the suffix `.1`."""
    return cache_dir() / "engine.log"


def launch_logs_dir() -> Path:
    """Return the directory of the logs of `edgechat launch`, with one file for the server of each launch."""
    return cache_dir() / "launch"


def recent_choices_file() -> Path:
    """Return the path of the file with the recent choices in the command palette."""
    return cache_dir() / "recent-choices.json"


def prefix_dir() -> Path:
    """Return the directory of the prefix cache, whose files are as private as the conversations."""
    return cache_dir() / "prefix"


def verdicts_file() -> Path:
    """Return the path of the state file with the results of backend self-tests."""
    return cache_dir() / "backends.json"


def kernel_speeds_file() -> Path:
    """Return the path of the state file with kernel benchmark results."""
    return cache_dir() / "speeds.json"


def remote_models_file() -> Path:
    """Return the path of the state file with the lists of models of remotes."""
    return cache_dir() / "remote-models.json"


def observed_memory_file() -> Path:
    """Return the path of the state file with the observed memory use of models."""
    return cache_dir() / "memory.json"


def context_limits_file() -> Path:
    """Return the path of the state file with the context lengths up to which models may grow on this machine."""
    return cache_dir() / "context-limits.json"


def drafter_crashes_file() -> Path:
    """Return the path of the state file with the model drafters with which the engine process died."""
    return cache_dir() / "drafter-crashes.json"


def observed_speeds_file() -> Path:
    """Return the path of the state file with the speeds of replies."""
    return cache_dir() / "reply-speeds.json"


def gpus_file() -> Path:
    """Return the path of the state file with the usable GPUs."""
    return cache_dir() / "gpus.json"


def instances_dir() -> Path:
    """Return the directory of running instances, with one state file for each engine process."""
    return cache_dir() / "running"


def sockets_dir() -> Path:
    """Return the directory of the sockets on which engine processes listen.

    This is `XDG_RUNTIME_DIR/edgechat` if that directory belongs to the user, and EDGECHAT_HOME is not set.
    """
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if sys.platform != "win32" and not os.environ.get("EDGECHAT_HOME") and os.path.isabs(runtime_dir):  # noqa: PTH117
        with contextlib.suppress(OSError):  # the directory does not exist, or the user cannot open it
            status = Path(runtime_dir).stat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                return Path(runtime_dir) / "edgechat"
    return cache_dir() / "engines"


def free_bytes(path: Path) -> int:
    """Return the number of free bytes on the disk of `path`, even if `path` does not exist. Raises OSError."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
