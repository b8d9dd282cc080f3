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
from edgechat.files import FileLock, JsonFile
from edgechat.modelfile.content_hash import HashMemo
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import list_model_files, read_header

_LOCK_TIMEOUT_S: Final = 5.0
# Maximum size of each JSON file. Thousands of models need far less.
_MAX_BYTES: Final = 64 << 20


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a model from its header, for display in model lists."""

    size_bytes: int
    """Total size of the model's files in bytes."""
    mtime_ns: int
    """Modification time of the first file in ns. The facts are valid while this time and the size are unchanged."""
    architecture: str = ""
    name: str = ""
    quant: str = ""
    kind: str = "model"
    n_params: int = 0
    n_ctx_train: int = 0
    n_parts: int = 1
    has_template: bool = False
    purpose: str = ""
    """`chat`, `embedding` or `reranking`; "" if the file is not a model or has a problem."""
    problem: str = ""
    """Reason why the model cannot be used; "" if it can be used."""
    is_cacheable: bool = msgspec.field(default=True, name="is_for_good")
    """True if the facts can be saved; False after a read error, because the next attempt may succeed."""


class VerifiedHash(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the last verification of a file. Later changes of the file are detected by `HashMemo`."""

    sha256: str
    """Hash that the last verification computed. If `expected_sha256` is "", the next verification expects this hash."""
    expected_sha256: str = msgspec.field(default="", name="expected")
    """Hash that the last verification expected (published, or computed earlier); "" if no hash was known."""
    size_bytes: int = 0
    """File size when the file was hashed; 0 in new records, because `HashMemo` now stores the size and `mtime_ns`."""
    mtime_ns: int = 0


class ModelRecords(msgspec.Struct, kw_only=True):
    """Model folders, files and aliases that the user added, times of last use, and verified hashes."""

    folders: list[str] = []
    files: list[str] = []
    """Paths of single model files that the user added."""
    aliases: dict[str, str] = {}
    """Path of the model file for each alias."""
    last_used_at: dict[str, float] = msgspec.field(default_factory=dict, name="used_s")
    """Unix time in seconds of the last use of a model, by model path."""
    verified_hashes: dict[str, VerifiedHash] = msgspec.field(default_factory=dict, name="verified")
    """Verified hashes by file path."""


class _FactsFile(msgspec.Struct, kw_only=True):
    version: str
    facts: dict[str, ModelFacts]


# The cache is valid for one release, because another release may read different facts from the same header.
_VERSION: Final = f"3 {__version__}"


def _records_file() -> JsonFile[ModelRecords]:
    return JsonFile(paths.data_dir() / "library.json", ModelRecords, max_bytes=_MAX_BYTES)


def read_records() -> ModelRecords:
    """Read library.json. Raises CatalogueError if the file is damaged; a damaged file is never replaced."""
    try:
        return _records_file().load() or ModelRecords()
    except InvalidFileError as error:
        raise CatalogueError(
            f"{error}. Repair the file, or move it to another folder to start with an empty file."
        ) from None


@contextlib.contextmanager
def edit_records() -> Iterator[ModelRecords]:
    """Context manager: lock library.json, yield its records, and save them at the end. Raises CatalogueError."""
    file = _records_file()
    path = file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(FileLock(path.with_name(path.name + ".lock"))) as lock:
            if not lock.acquire(_LOCK_TIMEOUT_S):
                raise CatalogueError(
                    f"{path} has been locked by another edgechat process for {_LOCK_TIMEOUT_S:.0f} s. Try again."
                )
            records = read_records()
            yield records
            file.write(records, indent=1)
    except OSError as error:
        raise CatalogueError(f"Cannot write {path}: {error.strerror or error}") from error


def record_use(path: Path) -> None:
    """Record the current time as the last use of the model at `path`. Does nothing if the records cannot be written."""
    name = str(path.absolute())
    with contextlib.suppress(CatalogueError, OSError):
        if name.isprintable() and path.is_file():
            with edit_records() as records:
                records.last_used_at[name] = time.time()


def save_verified_hashes(hashes: Mapping[Path, VerifiedHash]) -> None:
    """Save newly computed hashes in library.json for later verifications, and in the `HashMemo` for the engine.

    Raises CatalogueError.
    """
    HashMemo(paths.prefix_dir()).put({path: verified_hash.sha256 for path, verified_hash in hashes.items()})
    with edit_records() as records:
        records.verified_hashes |= {str(path): verified_hash for path, verified_hash in hashes.items()}


class ModelFactsCache:
    """Cache of header facts by path. The header is read once for each version of a file."""

    def __init__(self) -> None:
        self._file = JsonFile(
            paths.cache_dir() / "models.json", _FactsFile, max_bytes=_MAX_BYTES,
            is_valid=lambda content: content.version == _VERSION,
        )  # fmt: skip
        self._is_changed = False
        content = self._file.read()
        self._facts = content.facts if content is not None else {}

    def get(self, path: Path) -> ModelFacts:
        """Return the facts about the model at `path`, from the cache or from the header of the file."""
        try:
            stat = path.stat()
        except OSError as error:
            return ModelFacts(size_bytes=0, mtime_ns=0, problem=f"cannot be read: {error.strerror or error}")
        cached_facts = self._facts.get(str(path))
        if cached_facts is not None and _is_current(cached_facts, path, stat):
            return cached_facts
        facts = _read_facts(path, stat.st_size, stat.st_mtime_ns)
        if facts.is_cacheable:
            self._facts[str(path)] = facts
            self._is_changed = True
        return facts

    def save(self, should_keep: Callable[[str], bool] = lambda path: True) -> None:
        """Save the cache to disk if it has changed, without the paths for which `should_keep` returns False."""
        if self._is_changed:
            facts = {path: facts for path, facts in self._facts.items() if should_keep(path)}
            self._file.save(_FactsFile(version=_VERSION, facts=facts))


def _is_current(facts: ModelFacts, path: Path, stat: os.stat_result) -> bool:
    if facts.mtime_ns != stat.st_mtime_ns:
        return False
    files = list_model_files(path)
    if len(files) == 1:
        return facts.size_bytes == stat.st_size
    # Adding or deleting another part does not change the modification time of the first part.
    return not facts.problem and all(map(Path.exists, files))


def _read_facts(path: Path, size_bytes: int, mtime_ns: int) -> ModelFacts:
    try:
        header = read_header(path)
    except ModelFileError as error:
        is_cacheable = not isinstance(error.__cause__, OSError)
        problem = str(error).removeprefix(f"{path} ")
        return ModelFacts(size_bytes=size_bytes, mtime_ns=mtime_ns, problem=problem, is_cacheable=is_cacheable)
    return ModelFacts(
        size_bytes=header.file_bytes, mtime_ns=mtime_ns, architecture=header.architecture, name=header.name,
        quant=header.quant, kind=header.kind, n_params=header.n_params, n_ctx_train=header.n_ctx_train,
        n_parts=header.n_parts, has_template=header.chat_template is not None, purpose=_find_purpose(header),
    )  # fmt: skip


def _find_purpose(header: ModelHeader) -> str:
    if header.kind != "model":
        return ""
    return "reranking" if header.is_reranker else "embedding" if header.is_embedding else "chat"
