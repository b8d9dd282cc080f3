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
# Maximum size of the JSON files; thousands of models need far less.
_MAX_BYTES: Final = 64 << 20


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from a model's header that model lists show."""

    size_bytes: int
    """Total size of the model's files."""
    mtime_ns: int
    """Modification time of the first file. The facts are valid while this time and the size are unchanged."""
    architecture: str = ""
    name: str = ""
    quant: str = ""
    kind: str = "model"
    n_params: int = 0
    n_ctx_train: int = 0
    n_parts: int = 1
    has_template: bool = False
    problem: str = ""
    """Reason why the model cannot be used; "" if it can be used."""
    is_cacheable: bool = msgspec.field(default=True, name="is_for_good")
    """False if the file could not be read: these facts are not saved, because the next attempt may succeed."""


class VerifiedHash(msgspec.Struct, frozen=True, kw_only=True):
    """Reference hashes of a file from its last verification. `HashMemo` detects later changes of the file."""

    sha256: str
    """Hash computed by the last verification; reference for the next one if `expected` is ""."""
    expected: str = ""
    """Hash published by the file's source, or else the first computed hash; "" if there is neither."""
    size_bytes: int = 0
    """File size when the file was hashed. Older releases stored it here, with `mtime_ns`, instead of in `HashMemo`."""
    mtime_ns: int = 0


class ModelRecords(msgspec.Struct, kw_only=True):
    """Folders, files and aliases that the user added, last uses, and verified hashes. Keys are paths unless noted."""

    folders: list[str] = []
    files: list[str] = []
    """Paths of single model files that the user added."""
    aliases: dict[str, str] = {}
    """Model path by alias."""
    last_used_at: dict[str, float] = msgspec.field(default_factory=dict, name="used_s")
    """Unix time of the last use in seconds, by model path."""
    verified: dict[str, VerifiedHash] = {}


class _FactsFile(msgspec.Struct, kw_only=True):
    version: str
    facts: dict[str, ModelFacts]


# The cache is valid for one release, because another release may read other facts from the same header.
_VERSION: Final = f"1 {__version__}"


def _records_file() -> JsonFile[ModelRecords]:
    return JsonFile(paths.data_dir() / "library.json", ModelRecords, max_bytes=_MAX_BYTES)


def read_records() -> ModelRecords:
    """Read the records. Raises CatalogueError if the file is damaged, and never replaces a damaged file."""
    try:
        return _records_file().load() or ModelRecords()
    except InvalidFileError as error:
        raise CatalogueError(f"{error}. Repair the file, or move it away to start with an empty one.") from None


@contextlib.contextmanager
def edit_records() -> Iterator[ModelRecords]:
    """Lock and yield the records for changes, and write them when the block ends. Raises CatalogueError."""
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
            f"{path} has been locked by another edgechat for {_LOCK_TIMEOUT_S:.0f} s. Try again."
        ) from None
    except OSError as error:
        raise CatalogueError(f"Cannot write {path}: {error.strerror or error}") from error


def record_use(path: Path) -> None:
    """Record the current time as the last use of the model at `path`. Does nothing if the records cannot be written."""
    name = str(path.absolute())
    with contextlib.suppress(CatalogueError, OSError):
        if name.isprintable() and path.is_file():
            with edit_records() as records:
                records.last_used_at[name] = time.time()


def record_verified(hashes: Mapping[Path, VerifiedHash]) -> None:
    """Save newly computed hashes: in the records as references, and in the `HashMemo` that the engine reads.

    Raises CatalogueError.
    """
    HashMemo(paths.prefix_dir()).put({path: verified.sha256 for path, verified in hashes.items()})
    with edit_records() as records:
        records.verified |= {str(path): verified for path, verified in hashes.items()}


class ModelFactsCache:
    """Cache of header facts by path. Each version of a file is read once."""

    def __init__(self) -> None:
        self._file = JsonFile(
            paths.cache_dir() / "models.json", _FactsFile, max_bytes=_MAX_BYTES,
            is_valid=lambda content: content.version == _VERSION,
        )  # fmt: skip
        self._is_changed = False
        content = self._file.read()
        self._facts = content.facts if content is not None else {}

    def get(self, path: Path) -> ModelFacts:
        """Return the facts of the model at `path`, from the cache or from its header."""
        try:
            stat = path.stat()
        except OSError as error:
            return ModelFacts(size_bytes=0, mtime_ns=0, problem=f"cannot be read: {error.strerror or error}")
        cached = self._facts.get(str(path))
        if cached is not None and _is_current(cached, path, stat):
            return cached
        facts = _read_facts(path, stat.st_size, stat.st_mtime_ns)
        if facts.is_cacheable:
            self._facts[str(path)] = facts
            self._is_changed = True
        return facts

    def save(self, keep: Callable[[str], bool] = lambda path: True) -> None:
        """Write the cache to disk if it has changed, without the paths for which `keep` returns False."""
        if self._is_changed:
            facts = {path: facts for path, facts in self._facts.items() if keep(path)}
            self._file.save(_FactsFile(version=_VERSION, facts=facts))


def _is_current(facts: ModelFacts, path: Path, stat: os.stat_result) -> bool:
    if facts.mtime_ns != stat.st_mtime_ns:
        return False
    files = model_files(path)
    if len(files) == 1:
        return facts.size_bytes == stat.st_size
    # Adding or deleting another part does not change the modification time of the first part.
    return not facts.problem and all(map(Path.exists, files))


def _read_facts(path: Path, size_bytes: int, mtime_ns: int) -> ModelFacts:
    try:
        header = read_header(path)
    except ModelFileError as error:
        was_read = not isinstance(error.__cause__, OSError)
        problem = str(error).removeprefix(f"{path} ")
        return ModelFacts(size_bytes=size_bytes, mtime_ns=mtime_ns, problem=problem, is_cacheable=was_read)
    return ModelFacts(
        size_bytes=header.file_bytes, mtime_ns=mtime_ns, architecture=header.architecture, name=header.name,
        quant=header.quant, kind=header.kind, n_params=header.n_params, n_ctx_train=header.n_ctx_train,
        n_parts=header.n_parts, has_template=header.chat_template is not None,
    )  # fmt: skip
