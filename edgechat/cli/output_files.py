"""Write output files of commands."""

from __future__ import annotations

import os
from pathlib import Path

from edgechat.errors import StoreError


def write_private(path: Path, text: str) -> None:
    """Write `text` to a file that only its owner can read, and replace an existing file atomically.

    If `path` is not a regular file but, for example, a pipe, write to it directly. Raises StoreError.
    """
    import tempfile

    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        path = path.resolve()  # if the path is a symbolic link, its target is replaced, not the link
        descriptor, temporary_path = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(temporary_path, path)  # noqa: PTH105  (both are strings)
        except BaseException:
            Path(temporary_path).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror or error}") from error
