"""Folders and files that a message mentions become collections of documents of its conversation."""

from __future__ import annotations

import contextlib
import queue
import shlex
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.chat import events
from edgechat.documents import indexing, naming
from edgechat.documents.collection import Collection, CollectionInfo
from edgechat.documents.embedding import TextEmbedder
from edgechat.documents.indexing import IndexProgress, UpdateSummary
from edgechat.documents.library import DocumentLibrary
from edgechat.errors import DocumentError, EngineError, RequestCancelledError

# Interval at which the progress of an update is passed on.
_PROGRESS_INTERVAL_S: Final = 0.1
# Maximum wait for the end of a cancelled update, which may be reading a file.
_CANCEL_TIMEOUT_S: Final = 2.0
# Maximum number of passages whose embeddings are computed before the reply: a few seconds with a small model.
_MAX_EMBEDDED: Final = 1000


def add_sources(
    library: DocumentLibrary,
    sources: Sequence[Path],
    is_cancelled: Callable[[], bool],
    open_embedder: Callable[[], TextEmbedder | None] = lambda: None,
    *,
    can_create: bool = True,
) -> Generator[events.SessionEvent, None, tuple[str, ...]]:
    """Create or update a collection for each of `sources`; return the names of the collections.

    Embeddings are computed with the result of `open_embedder`, unless that would delay the reply for long. Without
    `can_create`, only existing collections are updated.
    Raises DocumentError, and RequestCancelledError if `is_cancelled` returns True; what was read until then is kept.
    """
    names = []
    for source in sources:
        _check_source(source)
        name = naming.choose_name([source], library.list())
        is_new = name not in library.names()
        if is_new and not can_create:
            raise DocumentError(
                f"{source} is not a collection of documents yet, and this conversation writes nothing to disk. Add it "
                f"first: edgechat docs add {shlex.quote(str(source))}"
            )
        update = _Update(library, name, source, is_cancelled, open_embedder)
        try:
            yield from update.run()
            summary, info = update.result
        finally:
            if is_new:
                _remove_if_empty(library, name)
        if summary.is_cancelled:
            raise RequestCancelledError(f"Stopped while {source} was read. The message was not sent.")
        if not info.n_documents:
            reason = info.problems[0].reason if info.problems else "it contains no documents."
            raise DocumentError(f"There is no text in {source}: {reason}")
        yield events.CollectionUpdated(
            name=name, n_documents=info.n_documents, is_new=is_new,
            n_changes=summary.added + summary.changed + summary.removed, n_failed=summary.failed,
        )  # fmt: skip
        names.append(name)
    return tuple(names)


def _check_source(source: Path) -> None:
    """Raise DocumentError for the root of a disk and for the home directory, which are mentioned by mistake."""
    path = source.absolute()
    if path.resolve() == Path(path.anchor) or path.resolve() == paths.home_dir():
        raise DocumentError(
            f"{source} is too large for a message. Mention a folder in it, or run `edgechat docs add {source}`."
        )


def _remove_if_empty(library: DocumentLibrary, name: str) -> None:
    """Remove a new collection without documents, unless another process is filling it."""
    with contextlib.suppress(DocumentError):
        if name in library.names() and not library.describe(name).n_documents:
            library.remove(name)


class _Update:
    """Update of a collection in a thread, so that its progress can be yielded."""

    def __init__(
        self, library: DocumentLibrary, name: str, source: Path, is_cancelled: Callable[[], bool],
        open_embedder: Callable[[], TextEmbedder | None],
    ) -> None:  # fmt: skip
        self._library = library
        self._name = name
        self._source = source
        self._is_cancelled = is_cancelled
        self._open_embedder = open_embedder
        self._is_closed = threading.Event()
        self._progress: IndexProgress | None = None
        self._outcomes: queue.SimpleQueue[tuple[UpdateSummary, CollectionInfo] | BaseException] = queue.SimpleQueue()
        self.result: tuple[UpdateSummary, CollectionInfo]

    def run(self) -> Iterator[events.SessionEvent]:
        """Yield the progress, and set `result`. Raises the errors of the update."""
        thread = threading.Thread(target=self._run_thread, name="document-update", daemon=True)
        thread.start()
        shown_progress = None
        try:
            while True:
                try:
                    outcome = self._outcomes.get(timeout=_PROGRESS_INTERVAL_S)
                except queue.Empty:
                    progress = self._progress
                    if progress is not None and progress is not shown_progress:
                        shown_progress = progress
                        yield events.CollectionProgressed(name=self._name, progress=progress.message)
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                self.result = outcome
                return
        finally:
            self._is_closed.set()
            thread.join(_CANCEL_TIMEOUT_S)

    def _run_thread(self) -> None:
        try:
            self._outcomes.put(self._library.update(self._name, self._update_collection, can_create=True))
        except BaseException as error:  # noqa: BLE001  (raised again in the thread that iterates)
            self._outcomes.put(error)

    def _update_collection(self, collection: Collection) -> tuple[UpdateSummary, CollectionInfo]:
        summary = indexing.update(
            collection, add=[self._source], on_progress=self._set_progress, is_cancelled=self._must_stop
        )
        self._add_embeddings(collection)
        return summary, collection.describe()

    def _add_embeddings(self, collection: Collection) -> None:
        """Compute the missing embeddings if they are few. Without them, the collection is searched by keywords."""
        info = collection.describe()
        if not 0 < info.n_chunks - info.n_embedded <= _MAX_EMBEDDED or self._must_stop():
            return
        embedder = self._open_embedder()
        if embedder is not None:
            with contextlib.suppress(EngineError):
                indexing.update(
                    collection, embedder=embedder, on_progress=self._set_progress, is_cancelled=self._must_stop
                )

    def _set_progress(self, progress: IndexProgress) -> None:
        self._progress = progress

    def _must_stop(self) -> bool:
        return self._is_closed.is_set() or self._is_cancelled()
