"""Stored data about model files: the user's records (library.json) and a cache of header facts (models.json)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgechat import __version__, paths
from edgechat.errors import CatalogueError, InvalidFileError, ModelFileError
from edgechat.files import JsonFile
from edgechat.modelfile.content_hash import HashMemo
from edgechat.modelfile.split import model_files, read_header

_LOCK_TIMEOUT_S: Final = 5.0
# Far more than thousands of models take.
_MAX_BYTES: Final = 64 << 20


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from a model's header for lists."""

    size_bytes: int
    """Size of all files of the model."""
    mtime_ns: int
    """Of the first file. The facts are valid while it and the size are the same."""
    architecture: str = ""
    name: str = ""
    quant: str = ""
    kind: str = "model"
    n_params: int = 0
    n_ctx_train: int = 0
    n_parts: int = 1
    has_template: bool = False
    problem: str = ""
    """Reason why the model cannot be used; "" if it can."""
    is_permanent: bool = msgspec.field(default=True, name="is_for_good")
    """False if the file could not be read, so that the next attempt may succeed."""


class VerifiedHash(msgspec.Struct, frozen=True, kw_only=True):
    """Reference hashes of a file from its last verification. `HashMemo` knows whether the file has changed since."""

    sha256: str
    """Hash at that time; the reference for the next verification if `expected` is ""."""
    expected: str = ""
    """Hash published by the file's source, or the first one computed; "" if there was neither."""
    size_bytes: int = 0
    """Only read, like `mtime_ns`: releases before the shared memo stored here which version of the file was hashed."""
    mtime_ns: int = 0


class ModelRecords(msgspec.Struct, kw_only=True):
    """Choices of the user, and hashes that cannot be downloaded again. Keys are paths unless noted."""

    folders: list[str] = []
    files: list[str] = []
    """Single files that the user added."""
    aliases: dict[str, str] = {}
    """Path by alias."""
    last_used_at: dict[str, float] = msgspec.field(default_factory=dict, name="used_s")
    """Unix time of the last use, in seconds."""
    verified: dict[str, VerifiedHash] = {}


class _FactsFile(msgspec.Struct, kw_only=True):
    version: str
    facts: dict[str, ModelFacts]


# Another release may read other facts from the same header.
_VERSION: Final = f"1 {__version__}"


def _records_file() -> JsonFile[ModelRecords]:
    return JsonFile(paths.data_dir() / "library.json", ModelRecords, max_bytes=_MAX_BYTES)


def read_records() -> ModelRecords:
    """Read the records. Raises CatalogueError if the file is damaged; it is never replaced by an empty one."""
    try:
        return _records_file().load() or ModelRecords()
    except InvalidFileError as error:
        raise CatalogueError(f"{error}; repair the file, or move it away to start with an empty one") from None


@contextlib.contextmanager
def edit_records() -> Iterator[ModelRecords]:
    """Yield the records for changes under a lock, and write them at the end. Raises CatalogueError."""
    import filelock

    file = _records_file()
    path = file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(path.name + ".lock"), timeout=_LOCK_TIMEOUT_S):
            records = read_records()
            yield records
            file.write(records, indent=1)
    except filelock.Timeout:
        raise CatalogueError(
            f"{path} has been locked by another edgechat for {_LOCK_TIMEOUT_S:.0f} s; try again"
        ) from None
    except OSError as error:
        raise CatalogueError(f"Cannot write {path}: {error.strerror or error}") from error


def record_use(path: Path) -> None:
    """Store the present time as the model's last use. Does nothing if the records cannot be written."""
    name = str(path.absolute())
    with contextlib.suppress(CatalogueError, OSError):
        if name.isprintable() and path.is_file():
            with edit_records() as records:
                records.last_used_at[name] = time.time()


def record_verified(hashes: Mapping[Path, VerifiedHash]) -> None:
    """Store hashes that were just computed: in the records as references, and in the memo that the engine reads.

    Raises CatalogueError.
    """
    HashMemo(paths.prefix_dir()).put({path: verified.sha256 for path, verified in hashes.items()})
    with edit_records() as records:
        records.verified |= {str(path): verified for path, verified in hashes.items()}


class ModelFactsCache:
    """Header facts by path, read once for each version of a file."""

    def __init__(self) -> None:
        self._file = JsonFile(
            paths.cache_dir() / "models.json", _FactsFile, max_bytes=_MAX_BYTES,
            is_valid=lambda content: content.version == _VERSION,
        )  # fmt: skip
        self._is_changed = False
        content = self._file.read()
        self._facts = content.facts if content is not None else {}

    def get(self, path: Path) -> ModelFacts:
        """Return the cached facts of a model, or read its header."""
        try:
            stat = path.stat()
        except OSError as error:
            return ModelFacts(size_bytes=0, mtime_ns=0, problem=f"cannot be read: {error.strerror or error}")
        cached = self._facts.get(str(path))
        if cached is not None and _is_current(cached, path, stat):
            return cached
        facts = _read_facts(path, stat.st_size, stat.st_mtime_ns)
        if facts.is_permanent:
            self._facts[str(path)] = facts
            self._is_changed = True
        return facts

    def save(self, keep: Callable[[str], bool] = lambda path: True) -> None:
        """Write new facts to disk, without those of paths for which `keep` is false."""
        if self._is_changed:
            facts = {path: facts for path, facts in self._facts.items() if keep(path)}
            self._file.save(_FactsFile(version=_VERSION, facts=facts))


def _is_current(facts: ModelFacts, path: Path, stat: os.stat_result) -> bool:
    if facts.mtime_ns != stat.st_mtime_ns:
        return False
    files = model_files(path)
    if len(files) == 1:
        return facts.size_bytes == stat.st_size
    # The first part has the same time when another part was added or deleted.
    return not facts.problem and all(map(Path.exists, files))


def _read_facts(path: Path, size_bytes: int, mtime_ns: int) -> ModelFacts:
    try:
        header = read_header(path)
    except ModelFileError as error:
        was_read = not isinstance(error.__cause__, OSError)
        problem = str(error).removeprefix(f"{path} ")
        return ModelFacts(size_bytes=size_bytes, mtime_ns=mtime_ns, problem=problem, is_permanent=was_read)
    return ModelFacts(
        size_bytes=header.file_bytes, mtime_ns=mtime_ns, architecture=header.architecture, name=header.name,
        quant=header.quant, kind=header.kind, n_params=header.n_params, n_ctx_train=header.n_ctx_train,
        n_parts=header.n_parts, has_template=header.chat_template is not None,
    )  # fmt: skip
