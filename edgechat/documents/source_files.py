"""Files of the sources of a collection, with the documents that stay while their folder cannot be read."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from edgechat.documents.collection import DocumentRecord
from edgechat.humanize import format_count


class SourceFile(Protocol):
    """File of a source, as `sources.find_files` yields it."""

    @property
    def path(self) -> Path:
        """Absolute path."""

    @property
    def name(self) -> str:
        """Path relative to the source."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def problem(self) -> str:
        """Sentence that says why the file or folder cannot be read; "" for a readable file."""


class _Problem(msgspec.Struct, frozen=True):
    """Source without files, as a file with a problem."""

    path: Path
    name: str
    problem: str
    size_bytes: int = 0
    mtime_ns: int = 0


class SourceFiles:
    """Files of all sources, each once, with the id of the first source that contains it.

    A source that is missing or empty although it had documents is probably on a disk that is not mounted: it becomes
    a problem, and its documents stay.
    """

    def __init__(
        self,
        name: str,
        find_files: Callable[[Path], Iterable[SourceFile]],
        records: Mapping[bytes, DocumentRecord],
    ) -> None:
        """Prepare a search with `find_files`; `records` are those of the collection called `name`, by path."""
        self.warnings: list[str] = []
        """Sentences for the user."""
        self.n_bytes = 0
        self._name = name
        self._find_files = find_files
        self._records = records
        self._files: dict[bytes, tuple[int, SourceFile]] = {}
        self._n_documents = Counter(record.source_id for record in records.values() if not record.problem)
        self._kept_paths: set[bytes] = set()
        """Paths of files, and of folders that cannot be read, whose documents stay."""

    def __len__(self) -> int:
        return len(self._files)

    def list_all(self) -> list[tuple[int, SourceFile]]:
        """Return the files with the ids of their sources, in the order in which they were found."""
        return list(self._files.values())

    def find(self, sources: Sequence[tuple[int, Path]]) -> Iterator[None]:
        """Find the files of sources, given as pairs of id and path; yield after each file."""
        for source_id, source in sources:
            n_documents = self._n_documents[source_id]
            old = self._records.get(os.fsencode(source))
            is_missing = not os.path.exists(source)  # noqa: PTH110  (Path.exists raises for an unreadable parent)
            if is_missing and old is not None and old.hash:
                self._handle_missing_file(source)
                continue
            is_empty = True
            for file in () if is_missing else self._find_files(source):
                is_empty = False
                self._add(source_id, file)
                yield
            if is_empty and (n_documents or is_missing):
                problem = self._describe_empty(source, n_documents, is_missing=is_missing)
                self._add(source_id, _Problem(source, source.name, problem))
                yield

    def find_removed(self) -> list[DocumentRecord]:
        """Return the records whose files are gone, apart from those in folders that cannot be read."""
        return [record for path, record in self._records.items() if path not in self._files and not self._is_kept(path)]

    def _add(self, source_id: int, file: SourceFile) -> None:
        path = os.fsencode(file.path)
        if file.problem:
            self._kept_paths.add(path)
        if path not in self._files:
            self._files[path] = source_id, file
            self.n_bytes += file.size_bytes

    def _is_kept(self, path: bytes) -> bool:
        while self._kept_paths:
            if path in self._kept_paths:
                return True
            parent = os.path.dirname(path)  # noqa: PTH120  (bytes)
            if parent == path:
                break
            path = parent
        return False

    def _handle_missing_file(self, source: Path) -> None:
        try:
            with os.scandir(source.parent) as entries:
                is_deleted = any(entries)
        except OSError:
            is_deleted = False
        if is_deleted:
            self.warnings.append(f"{source} does not exist any more. Its text was removed from the collection.")
        else:
            self._kept_paths.add(os.fsencode(source))
            self.warnings.append(f"{source} cannot be found. Its text stays in the collection as it was.")

    def _describe_empty(self, source: Path, n_documents: int, *, is_missing: bool) -> str:
        state = "It cannot be found" if is_missing else "The folder is empty"
        if not n_documents:
            return f"{state}. Check whether its disk is mounted."
        return (
            f"{state}; {format_count(n_documents, 'document')} of it stay in the collection. Check whether its disk is "
            f"mounted. To remove them, run `edgechat docs remove {shlex.quote(self._name)} --source "
            f"{shlex.quote(os.fspath(source))}`."
        )
