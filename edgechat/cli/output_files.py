"""Files that a command writes for its user."""

from __future__ import annotations

import os
from pathlib import Path

from edgechat.errors import StoreError


def write_private(path: Path, text: str) -> None:
    """Replace `path` as a whole with a file that only its owner can read; a pipe or a device is written to.

    Raises StoreError.
    """
    import tempfile

    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        path = path.resolve()  # a link stays one
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(name, path)  # noqa: PTH105  (both are names)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
