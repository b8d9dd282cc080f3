"""Update of a collection: reads new and changed files of its sources, removes deleted ones, then computes embeddings.

Files are written in transactions of several documents, each complete, and embeddings in transactions of one batch. A
kill at any time therefore loses at most the last seconds of work; the next update continues from there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from edgechat import paths
from edgechat.documents.collection import Collection, DocumentRecord, make_valid_text
from edgechat.documents.embedding import TextEmbedder
from edgechat.documents.embedding_updates import embed_chunks
from edgechat.documents.file_states import FileState, describe_extraction, read_state
from edgechat.documents.source_files import SourceFile, SourceFiles
from edgechat.documents.text import Chunk, ExtractedDocument
from edgechat.errors import DocumentError, UnreadableFileError, format_reason
from edgechat.humanize import format_count, shorten
from edgechat.prefix.shared_prefix import clear_pinned

# A transaction ends after this much text, this many documents or this time.
_MAX_PENDING_BYTES: Final = 8 << 20
_MAX_PENDING_DOCUMENTS: Final = 256
_MAX_PENDING_S: Final = 1.0
_MAX_READS: Final = 3
_MAX_SHOWN_NAME_CHARS: Final = 40


class FileExtractor(Protocol):
    """Extraction of the text of files, as `extraction.process.ExtractionProcess` provides it."""

    def extract(self, path: Path, is_cancelled: Callable[[], bool]) -> ExtractedDocument:
        """Return the text of a file. Raises DocumentError, also if `is_cancelled` returns True meanwhile."""


class FileReader(msgspec.Struct, frozen=True):
    """The functions with which an update finds and reads files."""

    find_files: Callable[[Path], Iterable[SourceFile]]
    open_extractor: Callable[[], contextlib.AbstractContextManager[FileExtractor]]
    split: Callable[[ExtractedDocument, str], Sequence[Chunk]]


class IndexProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of an update."""

    phase: str
    """`finding`, `reading` or `embedding`."""
    n_files: int = 0
    """Number of files found so far, and of all files after the phase `finding`."""
    n_files_done: int = 0
    n_bytes: int = 0
    n_bytes_done: int = 0
    n_chunks: int = 0
    """Number of chunks without embeddings at the start of the phase `embedding`."""
    n_chunks_done: int = 0
    path: str = ""
    """Name of the file that is being read."""

    @property
    def message(self) -> str:
        """Status text, such as "reading 12 of 340 files"."""
        if self.phase == "finding":
            return f"{format_count(self.n_files, 'file')} found"
        if self.phase == "embedding":
            return f"computing embeddings: {self.n_chunks_done:,} of {format_count(self.n_chunks, 'passage')}"
        name = f" ({shorten(self.path, _MAX_SHOWN_NAME_CHARS)})" if self.path else ""
        return f"reading {self.n_files_done:,} of {format_count(self.n_files, 'file')}{name}"


class UpdateSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Result of an update."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    failed: int = 0
    """Number of files that could not be read; the description of the collection lists them."""
    n_chunks: int = 0
    """Number of chunks of added and changed documents."""
    n_bytes: int = 0
    """Size of the added and changed files."""
    n_embedded: int = 0
    """Number of chunks whose embeddings were computed."""
    elapsed_s: float = 0.0
    is_cancelled: bool = False
    warnings: tuple[str, ...] = ()
    """Sentences for the user, for example about sources that do not exist."""

    def describe_changes(self) -> str:
        """Return the numbers of files by what changed, such as "3 added, 1 could not be read"; or "no changes"."""
        counts = {
            "added": self.added, "changed": self.changed, "removed": self.removed, "could not be read": self.failed,
        }  # fmt: skip
        return ", ".join(f"{n:,} {text}" for text, n in counts.items() if n) or "no changes"


def update(
    collection: Collection,
    *,
    add: Sequence[Path] = (),
    embedder: TextEmbedder | None = None,
    on_progress: Callable[[IndexProgress], None] = lambda progress: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    reader: FileReader | None = None,
) -> UpdateSummary:
    """Make the index of a collection equal to its sources, with the new sources `add`.

    Without an embedder, no embeddings are computed; the existing ones of unchanged documents stay. Raises
    DocumentError, for example if the disk is full; what was indexed before the error stays.
    """
    started_at = time.monotonic()
    for path in add:
        if not path.exists():
            raise DocumentError(f"Cannot add {path}: it does not exist.")
    with collection.lock_for_update():
        if add:
            collection.add_sources(Path(os.path.abspath(path)) for path in add)  # noqa: PTH100  (keeps symbolic links)
        collection.save_sources()
        files = _FileUpdate(collection, reader or _default_reader(), on_progress, is_cancelled)
        files.run()
        n_embedded = 0
        if embedder is not None and not is_cancelled():
            n_embedded = embed_chunks(
                collection, embedder,
                lambda done, total: on_progress(
                    IndexProgress(phase="embedding", n_chunks=total, n_chunks_done=done)
                ),
                is_cancelled,
            )  # fmt: skip
        if files.summary.changed or files.summary.removed:
            clear_pinned(paths.prefix_dir(), collection.name)
        is_complete = not is_cancelled()
        if is_complete:
            collection.finish_update(describe_extraction())
    return msgspec.structs.replace(
        files.summary, n_embedded=n_embedded, elapsed_s=time.monotonic() - started_at, is_cancelled=not is_complete
    )


class _FileUpdate:
    """The part of an update that reads files."""

    def __init__(
        self,
        collection: Collection,
        reader: FileReader,
        on_progress: Callable[[IndexProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self.summary = UpdateSummary()
        self._collection = collection
        self._reader = reader
        self._on_progress = on_progress
        self._is_cancelled = is_cancelled
        self._records = collection.read_records()
        self._is_new_extraction = collection.read_extraction() != describe_extraction()
        self._pending: list[tuple[DocumentRecord, Sequence[Chunk]]] = []
        self._pending_times: list[DocumentRecord] = []
        self._pending_bytes = 0
        self._pending_since = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._extractor: FileExtractor | None = None

    def run(self) -> None:
        files = self._find_files()
        if files is None:
            return
        n_files, n_bytes, n_bytes_done = len(files), files.n_bytes, 0
        if removed := files.find_removed():
            self._collection.remove_documents([record.id for record in removed])
            self._count(removed=sum(not record.problem for record in removed))
        with self._stack:
            for i, (source_id, file) in enumerate(files.list_all()):
                if self._is_cancelled():
                    break
                self._on_progress(IndexProgress(
                    phase="reading", n_files=n_files, n_files_done=i, n_bytes=n_bytes, n_bytes_done=n_bytes_done,
                    path=file.name,
                ))  # fmt: skip
                self._update_file(source_id, file)
                n_bytes_done += file.size_bytes
                if (
                    self._pending_bytes >= _MAX_PENDING_BYTES
                    or len(self._pending) >= _MAX_PENDING_DOCUMENTS
                    or time.monotonic() - self._pending_since >= _MAX_PENDING_S
                ):
                    self._flush()
            self._flush()
        self._on_progress(IndexProgress(
            phase="reading", n_files=n_files, n_files_done=n_files, n_bytes=n_bytes, n_bytes_done=n_bytes_done
        ))  # fmt: skip

    def _find_files(self) -> SourceFiles | None:
        """Return the files of all sources; None after a cancellation."""
        files = SourceFiles(self._collection.name, self._reader.find_files, self._records)
        for _ in files.find(self._collection.sources()):
            if len(files) % 256 == 1:
                self._on_progress(IndexProgress(phase="finding", n_files=len(files), n_bytes=files.n_bytes))
                if self._is_cancelled():
                    return None
        self.summary = msgspec.structs.replace(self.summary, warnings=tuple(files.warnings))
        return None if self._is_cancelled() else files

    def _update_file(self, source_id: int, file: SourceFile) -> None:
        old = self._records.get(os.fsencode(file.path))
        if file.problem:
            self._fail(source_id, file, file.problem)
            return
        # Of a file that could not be read before, the hash is only compared if the extraction has not changed.
        is_known = (
            old is not None and old.source_id == source_id and old.name == make_valid_text(file.name)
            and bool(old.hash) and not (old.problem and self._is_new_extraction)
        )  # fmt: skip
        times = file.size_bytes, file.mtime_ns
        if old is not None and is_known and old.mtime_ns and (old.size_bytes, old.mtime_ns) == times:
            self._count_unchanged(old)
            return
        state = None
        try:
            state = read_state(file.path, self._is_cancelled)
            if old is not None and is_known and state.hash == old.hash:
                self._pending_times.append(msgspec.structs.replace(
                    old, size_bytes=state.size_bytes, mtime_ns=state.reliable_mtime_ns
                ))  # fmt: skip
                self._count_unchanged(old)
                return
            text_state, document = self._read_file(file.path, state)
            chunks = self._reader.split(document, file.name)
        except DocumentError as error:
            if not self._is_cancelled():
                is_final = isinstance(error, UnreadableFileError) and not error.is_temporary
                reason = error.reason if isinstance(error, UnreadableFileError) else str(error)
                self._fail(source_id, file, reason, state if is_final else None)
            return
        except OSError as error:
            self._fail(source_id, file, f"Cannot read the file: {format_reason(error)}.")
            return
        record = DocumentRecord(
            source_id=source_id, path=os.fsencode(file.path), name=file.name, size_bytes=text_state.size_bytes,
            mtime_ns=text_state.reliable_mtime_ns, hash=text_state.hash, notice=document.notice, title=document.title,
        )  # fmt: skip
        self._add_pending(record, chunks)
        is_new = old is None or bool(old.problem)
        self._count(
            added=int(is_new), changed=int(not is_new), n_chunks=len(chunks), n_bytes=text_state.size_bytes
        )  # fmt: skip

    def _read_file(self, path: Path, state: FileState) -> tuple[FileState, ExtractedDocument]:
        """Return the text of a file with the state of the file that has this text. Raises DocumentError and OSError."""
        if self._extractor is None:
            self._extractor = self._stack.enter_context(self._reader.open_extractor())
        for _ in range(_MAX_READS):
            document = self._extractor.extract(path, self._is_cancelled)
            if state.matches(path):
                return state, document
            state = read_state(path, self._is_cancelled)
        raise DocumentError("The file is being changed while it is read. Update the collection again later.")

    def _fail(self, source_id: int, file: SourceFile, problem: str, state: FileState | None = None) -> None:
        """Store a file without text. With a state, the file is not read again until it changes."""
        record = DocumentRecord(
            source_id=source_id, path=os.fsencode(file.path), name=file.name,
            size_bytes=state.size_bytes if state else file.size_bytes,
            mtime_ns=state.reliable_mtime_ns if state else 0, hash=state.hash if state else b"", problem=problem,
        )  # fmt: skip
        self._add_pending(record, ())
        self._count(failed=1)

    def _count_unchanged(self, record: DocumentRecord) -> None:
        self._count(failed=int(bool(record.problem)), unchanged=int(not record.problem))

    def _add_pending(self, record: DocumentRecord, chunks: Sequence[Chunk]) -> None:
        if not self._pending:
            self._pending_since = time.monotonic()
        self._pending.append((record, chunks))
        self._pending_bytes += sum(len(chunk.text) for chunk in chunks)

    def _flush(self) -> None:
        if self._pending:
            self._collection.replace_documents(self._pending)
            self._pending, self._pending_bytes = [], 0
        if self._pending_times:
            self._collection.set_file_times(self._pending_times)
            self._pending_times = []
        self._pending_since = time.monotonic()

    def _count(self, **counts: int) -> None:
        totals = {name: getattr(self.summary, name) + count for name, count in counts.items()}
        self.summary = msgspec.structs.replace(self.summary, **totals)


def _default_reader() -> FileReader:
    from edgechat.documents import chunks, sources
    from edgechat.documents.extraction.process import ExtractionProcess

    return FileReader(sources.find_files, ExtractionProcess, chunks.split)
