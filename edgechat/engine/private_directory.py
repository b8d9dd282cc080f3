"""Directories that only their owner can access, in places where other users may have created files."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

from edgechat.errors import LocalSocketError, format_reason

_PRIVATE_MODE: Final = 0o700


def make_private_directory(path: Path) -> None:
    """Create a directory that only its owner can access; withdraw the access of others to an existing directory.

    Raises LocalSocketError if the directory is a symbolic link, belongs to another user, is inside a directory of
    another user, or cannot be created. In these cases nothing is created.
    """
    try:
        if sys.platform == "win32":  # a new directory has the permissions of the user's cache directory
            path.mkdir(parents=True, exist_ok=True)
            return
        _check_ancestors(path)
        path.mkdir(mode=_PRIVATE_MODE, parents=True, exist_ok=True)
        _restrict_access(path)
    except OSError as error:
        raise LocalSocketError(
            f"Cannot use the folder {path} for the sockets of edgechat: {format_reason(error)}. Correct its "
            "permissions, free disk space, or set EDGECHAT_HOME to another folder of yours."
        ) from error


def _check_ancestors(path: Path) -> None:
    """Raise LocalSocketError if another user could replace `path`.

    For root, all ancestors are checked: with `sudo` and the HOME of a user, root must not create anything in that
    HOME. For other users, only the parent is checked, because the ancestors of a directory may belong to any system
    user, for example in a container.
    """
    own_uid = os.geteuid()
    parent = next(ancestor for ancestor in path.parents if ancestor.exists())
    resolved_parent = parent.resolve()
    for directory in [resolved_parent, *(resolved_parent.parents if own_uid == 0 else ())]:
        status = directory.stat()
        # In a directory with the sticky bit, such as /tmp, users cannot replace the files of others.
        if status.st_uid not in {own_uid, 0} and not status.st_mode & stat.S_ISVTX:
            raise LocalSocketError(
                f"The folder {directory} belongs to user {status.st_uid}, and edgechat runs as user {own_uid}. Run "
                "edgechat as that user, or set EDGECHAT_HOME to a folder of yours."
            )


def _restrict_access(path: Path) -> None:
    """Check the owner of a directory, and withdraw the access of others. Raises LocalSocketError and OSError."""
    own_uid = os.geteuid()
    if stat.S_ISLNK(path.lstat().st_mode):
        raise LocalSocketError(f"{path} is a symbolic link, which edgechat does not follow here. Delete it.")
    # Checks and changes go to the opened directory, so that a change of the path in the meantime has no effect.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != own_uid:
            raise LocalSocketError(
                f"The folder {path} belongs to user {status.st_uid}, and edgechat runs as user {own_uid}. Delete the "
                "folder, or set EDGECHAT_HOME to a folder of yours."
            )
        if stat.S_IMODE(status.st_mode) & 0o777 != _PRIVATE_MODE:
            os.fchmod(descriptor, _PRIVATE_MODE)
        if os.fstat(descriptor).st_mode & 0o077:  # a file system without permissions, such as FAT
            raise LocalSocketError(
                f"Other users can open the folder {path}: its file system has no permissions. Set EDGECHAT_HOME to a "
                "folder on another file system."
            )
    finally:
        os.close(descriptor)
