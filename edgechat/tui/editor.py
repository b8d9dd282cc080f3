"""The user's own editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgechat.errors import UsageError


def edit_text(text: str) -> str:
    """`text` as it comes back from $VISUAL or $EDITOR; the screen must be out of the way. Raises UsageError."""
    wanted = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    usual = next((name for name in ("sensible-editor", "nano", "vi", "notepad") if shutil.which(name)), None)
    try:
        command = shlex.split(wanted, posix=os.name != "nt") if wanted else [usual] if usual else []
    except ValueError as error:
        raise UsageError(f"$VISUAL or $EDITOR is {wanted!r}, which is no command: {error}") from None
    if not command:
        raise UsageError("there is no editor: set $EDITOR")
    handle, name = tempfile.mkstemp(prefix="edgechat-", suffix=".md")
    file = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        code = subprocess.run([*command, name], check=False).returncode
        if code:
            raise UsageError(f"{command[0]} ended with {code}; the text is as it was")
        return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError as error:
        raise UsageError(
            f"{command[0]} cannot be started: {error.strerror or error} (the editor is $VISUAL or $EDITOR)"
        ) from error
    finally:
        file.unlink(missing_ok=True)
