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
from edgechat.modelfile.split import list_model_files


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Computed and expected hash of one model file."""

    path: Path
    sha256: str
    """Computed hash; "" if the file is missing."""
    expected_sha256: str = msgspec.field(name="expected")
    """Published hash, or else the last computed hash; "" if neither is known."""
    is_match: bool | None = msgspec.field(name="is_good")
    """True if the two hashes are equal; None if no expected hash is known."""

    @property
    def description(self) -> str:
        """Result as text for display, without the path."""
        if not self.sha256:
            return "MISSING. Download the model again."
        if self.is_match is None:
            return f"SHA-256 {self.sha256} (no expected hash is known; the next verification compares with this hash)"
        return "verified" if self.is_match else f"DIFFERS: SHA-256 {self.sha256}, expected {self.expected_sha256}"


def verify_files(model: InstalledModel, on_progress: Callable[[str], None] | None = None) -> Iterator[VerifyResult]:
    """Verify each file of a model against its published hash, or else against the last computed hash.

    `on_progress` receives progress messages for display. Raises CatalogueError.
    """
    verified_hashes = registry.read_records().verified_hashes
    for path in list_model_files(model.path):
        if not path.exists():
            yield VerifyResult(path=path, sha256="", expected_sha256="", is_match=False)
            continue
        last_record = verified_hashes.get(str(path))
        published_hash = locations.parse_expected_hash(path) or (model.sha256 if path == model.path else "")
        expected_sha256 = published_hash or (last_record.expected_sha256 or last_record.sha256 if last_record else "")
        size_bytes = max(1, path.stat().st_size)

        def report_progress(done_bytes: int, path: Path = path, size_bytes: int = size_bytes) -> None:
            if on_progress is not None:
                on_progress(f"{path.name}: {100 * done_bytes // size_bytes} %")

        try:
            sha256 = hash_file(path, report_progress)
        except OSError as error:
            raise CatalogueError(f"Cannot read {path}: {error.strerror or error}") from error
        registry.save_verified_hashes({path: VerifiedHash(sha256=sha256, expected_sha256=expected_sha256)})
        is_match = sha256 == expected_sha256 if expected_sha256 else None
        yield VerifyResult(path=path, sha256=sha256, expected_sha256=expected_sha256, is_match=is_match)
