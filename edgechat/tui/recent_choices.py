"""Recent choices in the command palette, in a state file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgechat import paths
from edgechat.files import JsonFile

MAX_RECENT: Final = 12
"""Maximum number of recent choices."""
_MAX_BYTES: Final = 64 << 10
_MAX_CHARS: Final = 300


class RecentChoices:
    """List of choices, newest first. A missing or damaged file counts as an empty list."""

    def __init__(self) -> None:
        self._choices: list[str] | None = None

    def read(self) -> Sequence[str]:
        """Return the choices, newest first."""
        if self._choices is None:
            saved = _recent_choices_file().read() or []
            self._choices = [choice for choice in saved if len(choice) <= _MAX_CHARS][:MAX_RECENT]
        return self._choices

    def record(self, choice: str, *, save_file: bool) -> None:
        """Put a choice at the start of the list, and save the list if `save_file`."""
        others = [other for other in self.read() if other != choice]
        self._choices = [choice, *others][:MAX_RECENT]
        if save_file:
            _recent_choices_file().save(self._choices)


def _recent_choices_file() -> JsonFile[list[str]]:
    return JsonFile(paths.recent_choices_file(), list[str], max_bytes=_MAX_BYTES)
