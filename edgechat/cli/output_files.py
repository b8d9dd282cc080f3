"""Output files that commands write for the user."""

from __future__ import annotations

import os
from pathlib import Path

from edgechat.errors import StoreError


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path`, readable only by the owner. A regular file is replaced atomically; a pipe is written to.

    Raises StoreError.
    """
    import tempfile

    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        path = path.resolve()  # replaces the target of a symbolic link, not the link
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(name, path)  # noqa: PTH105  (both are strings)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror or error}") from error
