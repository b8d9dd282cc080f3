"""Save code blocks of messages to files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

from edgechat.errors import UsageError

_MAX_FILES: Final = 1000
"""Number of names that are tried before saving fails."""


def save_code(code: str, language: str, number: int) -> Path:
    """Write code to a new file such as `code-2.py` in the working directory, and return its path.

    Existing files are never replaced. Raises UsageError.
    """
    suffix = _find_suffix(language)
    try:
        folder = Path.cwd()
        for attempt in itertools.islice(itertools.count(1), _MAX_FILES):
            file = folder / f"code-{number}{'' if attempt == 1 else f'-{attempt}'}{suffix}"
            try:
                with file.open("x", encoding="utf-8") as stream:
                    stream.write(code if code.endswith("\n") else f"{code}\n")
            except FileExistsError:
                continue
            return file
    except OSError as error:
        raise UsageError(f"Cannot save the code in the working directory: {error.strerror or error}") from error
    raise UsageError(f"Cannot save the code: {folder} has {_MAX_FILES} files named code-{number} already")


def _find_suffix(language: str) -> str:
    """Return the usual file suffix of a language, such as `.py`; `.txt` if the language is unknown."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        patterns = get_lexer_by_name(language.split(maxsplit=1)[0]).filenames if language else []
    except ClassNotFound:
        patterns = []
    return next((p[1:] for p in patterns if p.startswith("*.") and p[2:].isalnum()), ".txt")
