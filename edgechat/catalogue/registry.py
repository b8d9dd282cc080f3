"""What edgechat remembers of model files: what a person said of them, and what was read of them once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat import __version__, paths
from edgechat.errors import CatalogueError, InvalidFileError, ModelFileError
from edgechat.files import JsonFile
from edgechat.modelfile.split import parse_part_name, read_header

_LOCK_S: Final = 5.0
# Far more than thousands of models take.
_MAX_BYTES: Final = 64 << 20


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a list shows of a model, as its header says it."""

    size_bytes: int
    """All files of a set."""
    mtime_ns: int
    """Of the first; with the size, what tells whether these facts still hold."""
    architecture: str = ""
    name: str = ""
    quant: str = ""
    kind: str = "model"
    n_params: int = 0
    n_ctx_train: int = 0
    n_parts: int = 1
    has_template: bool = False
    problem: str = ""
    """Why it cannot be used; "" if it can."""
    is_permanent: bool = msgspec.field(default=True, name="is_for_good")
    """False if the problem may be gone the next time: nobody was asked what the file says."""


class VerifiedHash(msgspec.Struct, frozen=True, kw_only=True):
    """The hash of a file, as it was when it was last computed."""

    sha256: str
    size_bytes: int
    mtime_ns: int
    expected: str = ""
    """What it should be, where that was known."""


class ModelRecords(msgspec.Struct, kw_only=True):
    """What a person said, and what must not be lost; by path where it is of a file."""

    folders: list[str] = []
    files: list[str] = []
    """Single ones, which lie anywhere."""
    aliases: dict[str, str] = {}
    """Names that a person gave, and the path each stands for."""
    last_used_at: dict[str, float] = msgspec.field(default_factory=dict, name="used_s")
    """When it last answered, in seconds since 1970."""
    verified: dict[str, VerifiedHash] = {}


class _Cache(msgspec.Struct, kw_only=True):
    """Can be made again."""

    version: str
    facts: dict[str, ModelFacts]


# Another edgechat may understand what this one does not.
_VERSION: Final = f"1 {__version__}"


def _records_file() -> JsonFile[ModelRecords]:
    return JsonFile(paths.data_dir() / "library.json", ModelRecords, max_bytes=_MAX_BYTES)


def read_records() -> ModelRecords:
    """Raises CatalogueError if the file is damaged: it is not ours to throw away."""
    try:
        return _records_file().load() or ModelRecords()
    except InvalidFileError as error:
        raise CatalogueError(f"{error}; repair the file, or move it away to start with an empty one") from None


@contextlib.contextmanager
def edit_records() -> Iterator[ModelRecords]:
    """Records to change; they are written at the end, and nobody else changes them in between. Raises CatalogueError."""
    import filelock

    file = _records_file()
    path = file.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(path.name + ".lock"), timeout=_LOCK_S):
            records = read_records()
            yield records
            file.write(records, indent=1)
    except filelock.Timeout:
        raise CatalogueError(f"{path} has been locked by another edgechat for {_LOCK_S:.0f} s") from None
    except OSError as error:
        raise CatalogueError(f"{path} cannot be written: {error.strerror or error}") from error


def record_use(path: Path) -> None:
    """This model answers now. A note that cannot be made is not made."""
    name = str(path.absolute())
    with contextlib.suppress(CatalogueError, OSError):
        if name.isprintable() and path.is_file():
            with edit_records() as records:
                records.last_used_at[name] = time.time()


class ModelFactsCache:
    """Facts of files, read once for each version of a file."""

    def __init__(self) -> None:
        self._file = JsonFile(
            paths.cache_dir() / "models.json", _Cache, max_bytes=_MAX_BYTES,
            is_valid=lambda cache: cache.version == _VERSION,
        )  # fmt: skip
        self._is_changed = False
        cache = self._file.read()
        self._facts = cache.facts if cache is not None else {}

    def get(self, path: Path) -> ModelFacts:
        """What is known of this file, or what its header says now."""
        try:
            stat = path.stat()
        except OSError as error:
            return ModelFacts(size_bytes=0, mtime_ns=0, problem=f"cannot be read: {error.strerror or error}")
        known = self._facts.get(str(path))
        if known is not None and _holds(known, path, stat):
            return known
        facts = _read(path, stat.st_size, stat.st_mtime_ns)
        if not facts.problem or facts.is_permanent:
            self._facts[str(path)] = facts
            self._is_changed = True
        return facts

    def save(self, keep: Callable[[str], bool] = lambda path: True) -> None:
        """Write down what is new, of files that still count. What cannot be written is read again the next time."""
        if self._is_changed:
            kept = {path: facts for path, facts in self._facts.items() if keep(path)}
            self._file.save(_Cache(version=_VERSION, facts=kept))


def _holds(known: ModelFacts, path: Path, stat: os.stat_result) -> bool:
    if known.mtime_ns != stat.st_mtime_ns:
        return False
    part = parse_part_name(path.name)
    if part is None:
        return known.size_bytes == stat.st_size
    # Of a set only the first file is looked at; what it lacked may have come since, and what it had may be gone.
    return not known.problem and all(path.with_name(name).exists() for name in part.all_names())


def _read(path: Path, size_bytes: int, mtime_ns: int) -> ModelFacts:
    try:
        header = read_header(path)
    except ModelFileError as error:
        could_read = not isinstance(error.__cause__, OSError)
        problem = str(error).removeprefix(f"{path} ")
        return ModelFacts(size_bytes=size_bytes, mtime_ns=mtime_ns, problem=problem, is_permanent=could_read)
    return ModelFacts(
        size_bytes=header.file_bytes, mtime_ns=mtime_ns, architecture=header.architecture, name=header.name,
        quant=header.quant, kind=header.kind, n_params=header.n_params, n_ctx_train=header.n_ctx_train,
        n_parts=header.n_parts, has_template=header.chat_template is not None,
    )  # fmt: skip
