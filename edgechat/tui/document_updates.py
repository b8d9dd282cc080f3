"""Updates of collections for the documents screen, in a worker thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from edgechat.errors import DocumentError
from edgechat.humanize import format_count

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.documents.collection import Collection, DocumentProblem
    from edgechat.documents.indexing import IndexProgress, UpdateSummary
    from edgechat.documents.library import DocumentLibrary

# Minimum interval between two reports of progress; a collection can have 100,000 files.
_INTERVAL_S: Final = 0.1


class UpdateResult(NamedTuple):
    """Result of an update."""

    name: str
    summary: UpdateSummary
    is_new: bool
    """True if the update has created the collection."""


class ThrottledProgress:
    """Passes progress on at most ten times a second, and always when a phase begins or ends."""

    def __init__(self, report: Callable[[IndexProgress], object]) -> None:
        self._report = report
        self._reported_at = 0.0
        self._phase = ""

    def show(self, progress: IndexProgress) -> None:
        """Report the progress, unless the last report was a moment ago."""
        done, total = progress.n_files_done, progress.n_files
        if progress.phase == "embedding":
            done, total = progress.n_chunks_done, progress.n_chunks
        is_end = done == total
        if progress.phase != self._phase or is_end or time.monotonic() - self._reported_at >= _INTERVAL_S:
            self._reported_at, self._phase = time.monotonic(), progress.phase
            self._report(progress)


def update_collection(
    library: DocumentLibrary, settings: Settings, name: str, path: Path | None,
    on_progress: Callable[[str, IndexProgress], object], on_status: Callable[[str, str], None],
    is_cancelled: Callable[[], bool],
) -> UpdateResult:  # fmt: skip
    """Update the collection `name` with the new source `path`; if `name` is empty, create a collection of `path`.

    `on_progress` and `on_status` receive the name of the collection first. Without an embedding model that can be
    loaded, no embeddings are computed. Raises DocumentError, also if a new collection would have no documents.
    """
    from edgechat.documents import indexing
    from edgechat.documents.naming import choose_name
    from edgechat.documents.search_models import SearchModels

    must_choose = not name and path is not None
    if not name and path is not None:
        name = choose_name([path], library.list())
    is_new = name not in library.names()

    def run(collection: Collection) -> tuple[UpdateSummary, Sequence[DocumentProblem]]:
        summary = indexing.update(
            collection,
            add=[path] if path is not None else [],
            embedder=models.open_embedder(settings, lambda text: on_status(name, text)),
            on_progress=ThrottledProgress(lambda progress: on_progress(name, progress)).show,
            is_cancelled=is_cancelled,
        )
        return summary, collection.describe().problems

    with closing(SearchModels()) as models:
        summary, problems = library.update(name, run, can_create=path is not None)
        if models.problem:
            warning = f"No embeddings were computed, because {models.problem}"
            summary = msgspec.structs.replace(summary, warnings=(*summary.warnings, warning))
    if must_choose and not is_new:
        warning = f"{path} is in this collection already."
        summary = msgspec.structs.replace(summary, warnings=(*summary.warnings, warning))
    if is_new and not summary.added and not summary.is_cancelled:
        library.remove(name)
        reason = f" {problems[0].path}: {problems[0].reason}" if problems else ""
        n_files = format_count(len(problems), "file")
        cause = f"none of {n_files} could be read.{reason}" if problems else "there are no documents in it."
        raise DocumentError(f"{path} was not added, because {cause}")
    return UpdateResult(name, summary, is_new)
