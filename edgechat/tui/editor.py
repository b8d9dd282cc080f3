"""Edit a text in the editor that $VISUAL or $EDITOR names."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgechat.errors import UsageError


def edit_text(text: str) -> str:
    """Open `text` in an editor and return the edited text. The application must be suspended meanwhile.

    Raises UsageError if no editor is found, or if it cannot be started or fails.
    """
    configured = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    fallback = next((name for name in ("sensible-editor", "nano", "vi", "notepad") if shutil.which(name)), None)
    try:
        command = shlex.split(configured, posix=os.name != "nt") if configured else [fallback] if fallback else []
    except ValueError as error:
        raise UsageError(f"$VISUAL or $EDITOR is {configured!r}, which is not a command: {error}") from None
    if not command:
        raise UsageError("No editor found. Set $EDITOR.")
    handle, name = tempfile.mkstemp(prefix="edgechat-", suffix=".md")
    file = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        code = subprocess.run([*command, name], check=False).returncode
        if code:
            raise UsageError(f"{command[0]} failed with exit code {code}; the text is unchanged")
        return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError as error:
        raise UsageError(
            f"Cannot start {command[0]}: {error.strerror or error}. The editor is set with $VISUAL or $EDITOR."
        ) from error
    finally:
        file.unlink(missing_ok=True)
