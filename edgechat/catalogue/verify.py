"""Are files still what they should be?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edgechat.catalogue import library, locations, registry
from edgechat.catalogue.download.hashing import sha256
from edgechat.catalogue.library import InstalledModel
from edgechat.errors import CatalogueError


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Of one file."""

    path: Path
    sha256: str
    expected: str
    is_good: bool | None
    """None if nobody said what it should be."""

    @property
    def description(self) -> str:
        """For a person."""
        if not self.sha256:
            return "MISSING: pull the model again"
        if self.is_good is None:
            return f"SHA-256 {self.sha256} (nobody said what it should be; a later change will show)"
        return "as it should be" if self.is_good else f"DIFFERS: SHA-256 {self.sha256}, but should be {self.expected}"


def verify_files(entry: InstalledModel, on_progress: Callable[[str], None] | None = None) -> Iterator[VerifyResult]:
    """The hash of each file of a model against the hub's, its keeper's, or the last time's. Raises CatalogueError."""
    known = registry.read_records().verified
    for path in library.parts_of(entry.path):
        if not path.exists():
            yield VerifyResult(path=path, sha256="", expected="", is_good=False)
            continue
        before = known.get(str(path))
        told = locations.expected_hash(path) or (entry.sha256 if path == entry.path else "")
        expected = told or (before.expected or before.sha256 if before else "")
        size_bytes = max(1, path.stat().st_size)

        def hear(done: int, path: Path = path, size_bytes: int = size_bytes) -> None:
            if on_progress is not None:
                on_progress(f"{path.name}: {100 * done // size_bytes} %")

        try:
            found = sha256(path, hear)
            library.record_hash(path, found, expected)
        except OSError as error:
            raise CatalogueError(f"{path} cannot be read: {error.strerror or error}") from error
        yield VerifyResult(path=path, sha256=found, expected=expected, is_good=found == expected if expected else None)
