"""Edit text in the external editor that is set in $VISUAL or $EDITOR."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgechat.errors import UsageError


def edit_text(text: str) -> str:
    """Open `text` in an external editor and return the edited text. Suspend the application before the call.

    Raises UsageError if no editor is found, or if the editor cannot be started or fails.
    """
    configured_editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    fallback = next((name for name in ("sensible-editor", "nano", "vi", "notepad") if shutil.which(name)), None)
    try:
        command = [fallback] if fallback else []
        if configured_editor:
            command = shlex.split(configured_editor, posix=os.name != "nt")
    except ValueError as error:
        raise UsageError(f"Cannot parse $VISUAL or $EDITOR as a command: {configured_editor!r}: {error}") from None
    if not command:
        raise UsageError("No editor found. Set $EDITOR.")
    descriptor, name = tempfile.mkstemp(prefix="edgechat-", suffix=".md")
    file = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        code = subprocess.run([*command, name], check=False).returncode
        if code:
            raise UsageError(f"{command[0]} failed with exit code {code}; the text is unchanged")
        return file.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError as error:
        raise UsageError(
            f"Cannot start {command[0]}: {error.strerror or error}. Set another editor in $VISUAL or $EDITOR."
        ) from error
    finally:
        file.unlink(missing_ok=True)
