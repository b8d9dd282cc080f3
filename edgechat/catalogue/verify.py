"""Verification of model files against their expected hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edgechat.catalogue import locations, registry
from edgechat.catalogue.library import InstalledModel
from edgechat.catalogue.registry import VerifiedHash
from edgechat.errors import CatalogueError
from edgechat.modelfile.content_hash import hash_file
from edgechat.modelfile.split import model_files


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Computed and expected hash of one model file."""

    path: Path
    sha256: str
    """Computed hash; "" if the file is missing."""
    expected: str
    is_good: bool | None
    """True if the hashes are equal; None if no expected hash is known."""

    @property
    def description(self) -> str:
        """Text of the result for display, without the path."""
        if not self.sha256:
            return "MISSING. Download the model again."
        if self.is_good is None:
            return f"SHA-256 {self.sha256} (no expected hash is known; the next verification compares with this hash)"
        return "verified" if self.is_good else f"DIFFERS: SHA-256 {self.sha256}, expected {self.expected}"


def verify_files(model: InstalledModel, on_progress: Callable[[str], None] | None = None) -> Iterator[VerifyResult]:
    """Hash each file of a model, and compare the hash with that of its source or of the last verification.

    `on_progress` receives progress messages for display. Raises CatalogueError.
    """
    previous = registry.read_records().verified
    for path in model_files(model.path):
        if not path.exists():
            yield VerifyResult(path=path, sha256="", expected="", is_good=False)
            continue
        last = previous.get(str(path))
        published = locations.expected_hash(path) or (model.sha256 if path == model.path else "")
        expected = published or (last.expected or last.sha256 if last else "")
        size_bytes = max(1, path.stat().st_size)

        def report(done_bytes: int, path: Path = path, size_bytes: int = size_bytes) -> None:
            if on_progress is not None:
                on_progress(f"{path.name}: {100 * done_bytes // size_bytes} %")

        try:
            sha256 = hash_file(path, report)
        except OSError as error:
            raise CatalogueError(f"Cannot read {path}: {error.strerror or error}") from error
        registry.record_verified({path: VerifiedHash(sha256=sha256, expected=expected)})
        yield VerifyResult(
            path=path, sha256=sha256, expected=expected, is_good=sha256 == expected if expected else None
        )
