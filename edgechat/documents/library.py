"""All collections of documents: a folder with one database for each collection."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import sys
from pathlib import Path
from typing import Final

from edgechat.documents.collection import Collection, CollectionInfo, DocumentProblem
from edgechat.documents.database import DAMAGE_SUFFIX, FILE_SUFFIXES, connect, make_damaged_error
from edgechat.documents.vectors import VectorCache
from edgechat.errors import DamagedCollectionError, DocumentError

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
        """Return the description of a collection; its problems say why if it cannot be opened."""
        try:
            with self.open(name) as collection:
                return collection.describe()
        except DocumentError as error:
            return CollectionInfo(name=name, problems=(DocumentProblem(str(self.find_path(name)), str(error)),))

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
        if any(existing.casefold() == name.casefold() for existing in self.names()):
            raise DocumentError(f"There is a collection {name} already. Choose another name.")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise DocumentError(f"Cannot create {path}: {error.strerror}.") from error
        try:
            return Collection(path, is_new=True, vector_cache=self._find_cache(name))
        except DocumentError:  # for example because the disk is full
            _delete_files(path)
            raise

    def open(self, name: str, *, rebuild_damaged: bool = False) -> Collection:
        """Open a collection.

        With `rebuild_damaged`, a collection in which damage was found, or one of an older version, is replaced by an
        empty one with the same sources, for an update. Raises DocumentError, and DamagedCollectionError for a damaged
        collection.
        """
        path = self.find_path(name)
        if not path.exists():
            names = ", ".join(self.names()) or "none"
            raise DocumentError(
                f"There is no collection named {name} (collections: {names}). Add one with `edgechat docs add`."
            )
        if rebuild_damaged and path.with_name(path.name + DAMAGE_SUFFIX).exists():
            return self.rebuild(name)
        try:
            return Collection(path, vector_cache=self._find_cache(name))
        except DamagedCollectionError:
            if not rebuild_damaged:
                raise
        return self.rebuild(name)

    def rebuild(self, name: str) -> Collection:
        """Replace a damaged collection by an empty one with its sources, and open it. Raises DocumentError.

        The damaged files are deleted if their list of sources can be read; otherwise nothing is changed.
        """
        path = self.find_path(name)
        sources = _salvage_sources(path)
        new_path = path.with_name(f".{path.name}.new")
        _delete_files(new_path)
        collection = Collection(new_path, is_new=True)
        try:
            collection.add_sources(sources)
        except BaseException:
            collection.close()
            _delete_files(new_path)
            raise
        collection.close()
        _delete_files(path, FILE_SUFFIXES[:-1])  # logs first, so that a new database never reads old logs
        try:
            new_path.replace(path)
        except OSError as error:
            raise DocumentError(f"Cannot replace {path}: {error.strerror}.") from error
        _delete_files(new_path)
        _delete_files(path, (DAMAGE_SUFFIX,))
        self._vector_caches.pop(name, None)
        return Collection(path, vector_cache=self._find_cache(name))

    def remove(self, name: str) -> None:
        """Delete a collection; the files of its sources stay. Raises DocumentError if it is being updated."""
        path = self.find_path(name)
        if not path.exists():
            self.open(name)  # raises the error with the names of the collections
        with contextlib.suppress(DamagedCollectionError), self.open(name) as collection, collection.lock_for_update():
            pass
        _delete_files(path)
        _delete_files(path, (".lock", DAMAGE_SUFFIX))
        self._vector_caches.pop(name, None)

    def _find_cache(self, name: str) -> VectorCache:
        return self._vector_caches.setdefault(name, VectorCache())


def is_valid_name(name: str) -> bool:
    """Return whether a collection can have this name."""
    return (
        len(name) <= MAX_NAME_CHARS
        and _NAME.fullmatch(name) is not None
        and not name.endswith(".")
        and name.split(".", maxsplit=1)[0].casefold() not in _WINDOWS_NAMES
    )


def _salvage_sources(path: Path) -> list[Path]:
    """Return the sources in a damaged database. Raises DocumentError if they cannot be read."""
    try:
        with contextlib.closing(connect(path, "ro")) as db:
            return [Path(os.fsdecode(row[0])) for row in db.execute("SELECT path FROM sources ORDER BY id")]
    except (sqlite3.Error, TypeError) as error:
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
