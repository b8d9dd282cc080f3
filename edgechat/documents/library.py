"""All collections of documents: a folder with one database for each collection."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from edgechat import paths
from edgechat.documents.collection import Collection, CollectionInfo, DocumentProblem
from edgechat.documents.database import (
    DAMAGE_SUFFIX,
    FILE_SUFFIXES,
    check_program,
    connect,
    lock_updates,
    make_damaged_error,
)
from edgechat.documents.descriptions import describe_unknown_collection
from edgechat.documents.saved_sources import SOURCES_SUFFIXES, read_saved_sources, save_sources
from edgechat.documents.vectors import VectorCache
from edgechat.errors import DamagedCollectionError, DocumentError, FullDiskError
from edgechat.files import open_new_private
from edgechat.prefix.shared_prefix import delete_pinned

_T = TypeVar("_T")

_SUFFIX: Final = ".db"
_NAME: Final = re.compile(r"[^\W_][\w.-]*(?: [\w.-]+)*")
MAX_NAME_CHARS: Final = 48
"""Maximum length of the name of a collection."""
_WINDOWS_NAMES: Final = frozenset(
    ("con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10)))
)


class DocumentLibrary:
    """The collections in one folder, usually `paths.documents_dir()`. Threads can share it."""

    def __init__(self, root: Path) -> None:
        """Use the collections in `root`, which need not exist."""
        self.root = root
        self._vector_caches: dict[str, VectorCache] = {}

    def names(self) -> list[str]:
        """Return the names of all collections in alphabetical order. Raises DocumentError."""
        try:
            names = [entry.name for entry in os.scandir(self.root) if entry.name.endswith(_SUFFIX) and entry.is_file()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DocumentError(f"Cannot read {self.root}: {error.strerror}. Check its permissions.") from error
        stems = [name.removesuffix(_SUFFIX) for name in names]
        return sorted((stem for stem in stems if is_valid_name(stem)), key=lambda name: (name.casefold(), name))

    def list(self) -> list[CollectionInfo]:
        """Return the descriptions of all collections. A damaged one has the reason among its problems."""
        return [self.describe(name) for name in self.names()]

    def describe(self, name: str) -> CollectionInfo:
        """Return the description of a collection; its problems say why if it cannot be opened.

        The sources of one that cannot be opened are those from which it would be rebuilt.
        """
        try:
            with self.open(name) as collection:
                return collection.describe()
        except DocumentError as error:
            path, is_damaged = self.find_path(name), isinstance(error, DamagedCollectionError)
            sources = read_saved_sources(path) or []
            with contextlib.suppress(DocumentError):
                sources = _salvage_sources(path) if is_damaged else sources
            return CollectionInfo(
                name=name, sources=tuple(map(str, sources)), problems=(DocumentProblem(str(path), str(error)),),
                is_damaged=is_damaged,
            )  # fmt: skip

    def find_path(self, name: str) -> Path:
        """Return the path of a collection's database, which need not exist. Raises DocumentError for a bad name."""
        if not is_valid_name(name):
            raise DocumentError(
                f"{name!r} is not a name of a collection. Use at most {MAX_NAME_CHARS} letters, digits and spaces, "
                "and the characters - _ . after the first one."
            )
        return self.root / f"{name}{_SUFFIX}"

    def create(self, name: str) -> Collection:
        """Create an empty collection and open it. Raises DocumentError if the name is taken or invalid."""
        path = self.find_path(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DocumentError(f"Cannot create {self.root}: {error.strerror}.") from error
        with lock_updates(path):
            if any(existing.casefold() == name.casefold() for existing in self.names()):
                raise DocumentError(f"There is a collection {name} already. Choose another name.")
            self._replace(path, ())
        return self._open(path)

    def open(self, name: str, *, rebuild_damaged: bool = False) -> Collection:
        """Open a collection.

        With `rebuild_damaged`, a collection in which damage was found, or one of an older version, is replaced by an
        empty one with the same sources, for an update. Raises DocumentError, and DamagedCollectionError for a damaged
        collection.
        """
        path = self.find_path(name)
        if not path.exists():
            description = describe_unknown_collection(name, self.names())
            raise DocumentError(f"{description} Add one with `edgechat docs add`.")
        if not rebuild_damaged:
            return self._open(path)
        if (collection := self._open_undamaged(path)) is not None:
            return collection
        with lock_updates(path):
            # Another process can have rebuilt the collection before this one acquired the lock.
            if (collection := self._open_undamaged(path)) is not None:
                return collection
            self._replace(path, _salvage_sources(path))
        return self._open(path)

    def update(self, name: str, run: Callable[[Collection], _T], *, can_create: bool = False) -> _T:
        """Return the result of `run`, which updates the collection `name`.

        With `can_create`, the collection is created if it does not exist. A damaged one is rebuilt first. If `run`
        finds damage, the collection is rebuilt and `run` called again. Raises DocumentError and the errors of `run`.
        A new collection without documents is removed if the disk is full.
        """
        if can_create and name not in self.names():
            return self._fill_new(name, run)
        with self.open(name, rebuild_damaged=True) as collection, contextlib.suppress(DamagedCollectionError):
            return run(collection)
        with self.open(name, rebuild_damaged=True) as collection:
            return run(collection)

    def remove(self, name: str) -> None:
        """Delete a collection and the cached prompts of its documents; the files of its sources stay.

        The lock file stays, too, so that all processes use the same lock. Raises DocumentError if the collection is
        being updated, or if the file belongs to another program.
        """
        path = self.find_path(name)
        if not path.exists():
            self.open(name)  # raises the error with the names of the collections
        with lock_updates(path):
            with contextlib.suppress(sqlite3.Error), contextlib.closing(connect(path, "ro")) as db:
                check_program(db, path)
            _delete_files(path)
            _delete_files(path, (DAMAGE_SUFFIX, *SOURCES_SUFFIXES))
        delete_pinned(paths.prefix_dir(), name)
        self._vector_caches.pop(name, None)

    def _fill_new(self, name: str, run: Callable[[Collection], _T]) -> _T:
        try:
            with self.create(name) as collection:
                return run(collection)
        except FullDiskError as error:
            if self.find_path(name).exists():
                if self.describe(name).n_documents:
                    raise
                self.remove(name)
            raise DocumentError(
                f"{error.reason} The collection {name} was not created. Free some space, then add its folder again "
                "with `edgechat docs add`."
            ) from error

    def _open(self, path: Path) -> Collection:
        return Collection(path, vector_cache=self._vector_caches.setdefault(path.stem, VectorCache()))

    def _open_undamaged(self, path: Path) -> Collection | None:
        """Open a collection; return None if it is damaged or of an older version. Raises DocumentError."""
        if path.with_name(path.name + DAMAGE_SUFFIX).exists():
            return None
        try:
            return self._open(path)
        except DamagedCollectionError:
            return None

    def _replace(self, path: Path, sources: Sequence[Path]) -> None:
        """Write an empty collection with `sources` to `path`, while the caller holds its lock.

        The database is complete before it gets its name, so that a kill leaves the old file or none.
        """
        new_path = path.with_suffix(".new")  # with the same stem, which is the name in error messages
        _delete_files(new_path)
        try:
            open_new_private(new_path).close()
            with Collection(new_path, is_new=True) as collection:
                collection.add_sources(sources)
            _delete_files(path, FILE_SUFFIXES[:-1])  # logs first, so that a new database never reads old logs
            new_path.replace(path)
        except OSError as error:
            raise DocumentError(f"Cannot create {path}: {error.strerror}.") from error
        finally:
            _delete_files(new_path)
        save_sources(path, sources)
        _delete_files(path, (DAMAGE_SUFFIX,))
        self._vector_caches.pop(path.stem, None)


def is_valid_name(name: str) -> bool:
    """Return whether a collection can have this name."""
    return (
        len(name) <= MAX_NAME_CHARS
        and _NAME.fullmatch(name) is not None
        and not name.endswith(".")
        and name.split(".", maxsplit=1)[0].casefold() not in _WINDOWS_NAMES
    )


def _salvage_sources(path: Path) -> list[Path]:
    """Return the sources of a damaged collection: those in its database, or else those in the file of saved sources.

    A database without tables, which a kill of an earlier version while it created a collection leaves, has no sources.
    Raises DocumentError if they cannot be read from either.
    """
    saved_sources = read_saved_sources(path)
    try:
        with contextlib.closing(connect(path, "ro")) as db:
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return saved_sources or []
            rows = db.execute("SELECT path FROM sources ORDER BY id").fetchall()
            return [Path(os.fsdecode(row[0])) for row in rows] or saved_sources or []
    except (sqlite3.Error, TypeError) as error:
        if saved_sources is not None:
            return saved_sources
        raise DocumentError(
            f"The collection {path.stem} is damaged ({error}), and its list of folders cannot be read. Remove it with "
            f"`edgechat docs remove {path.stem}`, and add its folders again."
        ) from make_damaged_error(path, str(error))


def _delete_files(path: Path, suffixes: tuple[str, ...] = FILE_SUFFIXES) -> None:
    try:
        for suffix in suffixes:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        advice = " Close the programs that use it." if sys.platform == "win32" else ""
        raise DocumentError(f"Cannot delete the files of {path}: {error.strerror}.{advice}") from error
