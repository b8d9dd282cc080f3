"""Files of a source: walks a folder, or takes a single file.

A walk skips hidden files and folders, files that .gitignore files exclude, symbolic links (what they lead to in the
folder is found under its own name), special files, and binary files without a supported format.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat import files
from edgechat.documents.extraction.formats import DOCUMENT_EXTENSIONS, is_probably_text
from edgechat.documents.gitignore import IgnoreFile, is_ignored
from edgechat.errors import format_reason
from edgechat.file_formats import HEAD_BYTES

_IGNORE_FILE_NAME: Final = ".gitignore"
_MAX_IGNORE_FILE_BYTES: Final = 1 << 20
# Folders with generated files that projects without a .gitignore contain, too.
_SKIPPED_FOLDERS: Final = frozenset(("__pycache__", "node_modules"))
# Extensions of binary files, which need not be opened to skip them.
_BINARY_EXTENSIONS: Final = frozenset((
    "7z", "a", "avi", "avif", "bin", "bmp", "bz2", "class", "dat", "db", "deb", "dll", "dylib", "eot", "exe", "flac",
    "gguf", "gif", "gz", "heic", "ico", "iso", "jar", "jpeg", "jpg", "lib", "m4a", "mkv", "mov", "mp3", "mp4", "npy",
    "npz", "o", "obj", "ogg", "otf", "parquet", "png", "psd", "pyc", "pyd", "rar", "rpm", "safetensors", "so", "sqlite",
    "tar", "tgz", "tif", "tiff", "ttf", "wasm", "wav", "webm", "webp", "whl", "woff", "woff2", "xz", "zip", "zst",
))  # fmt: skip

# Control characters, line separators, and the surrogates to which Python decodes bytes that are not UTF-8.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class FoundFile(msgspec.Struct, frozen=True, kw_only=True):
    """File of a source, or a file or folder that cannot be read."""

    path: Path
    """Absolute path."""
    name: str
    """Path relative to the source, with `/` between folders; the file name if the source is a file. Printable."""
    size_bytes: int = 0
    mtime_ns: int = 0
    problem: str = ""
    """Sentence that says why the file or folder cannot be read; "" for a readable file."""


class _Folder(msgspec.Struct, frozen=True):
    """Folder that is still to be walked."""

    path: str
    name: str
    """Path relative to the source, with `/` at the end; "" for the source."""
    ignore_files: tuple[tuple[str, IgnoreFile], ...]
    """Pairs for `is_ignored`; their folders are relative to the root of the repository."""


def find_files(source: Path) -> Iterator[FoundFile]:
    """Yield the files of a folder, in the order of their names, or the one file that `source` is.

    Folders and files that cannot be read are yielded with a problem. Raises no exception.
    """
    path = os.path.abspath(source)  # noqa: PTH100  (Path.absolute keeps ..)
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:
        yield _make_problem(path, Path(path).name, f"It cannot be read: {_describe(error)}.")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield _make_file(path, Path(path).name, status)
        return
    prefix, ignore_files = _read_outer_ignore_files(path)
    folders = [_Folder(path, "", ignore_files)]
    while folders:
        subfolders: list[_Folder] = []
        yield from _walk_folder(folders.pop(), prefix, subfolders)
        folders.extend(reversed(subfolders))


def _walk_folder(folder: _Folder, prefix: str, subfolders: list[_Folder]) -> Iterator[FoundFile]:
    """Yield the files in `folder`, and append its folders to `subfolders`.

    `prefix` is the path of the source, relative to the root of the repository.
    """
    try:
        file_names, folder_names = _list_folder(folder.path)
    except OSError as error:
        yield _make_problem(folder.path, folder.name or ".", f"The folder cannot be read: {_describe(error)}.")
        return
    ignore_files = folder.ignore_files
    repository_folder = prefix + folder.name
    if own_file := _read_ignore_file(folder.path):
        ignore_files = (*ignore_files, (repository_folder, own_file))
    for name in file_names:
        if is_ignored(ignore_files, repository_folder + name, is_folder=False):
            continue
        path = os.path.join(folder.path, name)  # noqa: PTH118  (faster for many files)
        try:
            if _has_text(path):
                yield _make_file(path, folder.name + name, os.stat(path, follow_symlinks=False))  # noqa: PTH116
        except (OSError, ValueError) as error:
            yield _make_problem(path, folder.name + name, f"It cannot be read: {_describe(error)}.")
    for name in folder_names:
        if not is_ignored(ignore_files, repository_folder + name, is_folder=True):
            path = os.path.join(folder.path, name)  # noqa: PTH118
            subfolders.append(_Folder(path, f"{folder.name}{name}/", ignore_files))


def _list_folder(path: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of the files and of the folders in a folder, without links and hidden ones.

    Raises OSError. Only names are held in memory, because a folder can have 100,000 files.
    """
    file_names: list[str] = []
    folder_names: list[str] = []
    with os.scandir(path) as scan:
        for entry in scan:
            if entry.name.startswith("."):
                continue
            if entry.is_file(follow_symlinks=False):
                file_names.append(entry.name)
            elif entry.is_dir(follow_symlinks=False) and entry.name not in _SKIPPED_FOLDERS and not _is_junction(entry):
                folder_names.append(entry.name)
    return sorted(file_names), sorted(folder_names)


def _has_text(path: str) -> bool:
    """Return whether a file has a supported format or looks like text. Raises OSError if it cannot be read."""
    extension = path.rpartition(".")[2].lower()
    if extension in DOCUMENT_EXTENSIONS:
        return True
    if extension in _BINARY_EXTENSIONS:
        return False
    try:
        with files.open_regular(Path(path)) as file:
            head = file.read(HEAD_BYTES) or b""
    except PermissionError:
        return True  # the extraction reports it
    return is_probably_text(head)


def _is_junction(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder is a junction of Windows, which leads to another folder."""
    is_junction = getattr(entry, "is_junction", None)  # since Python 3.12
    return bool(is_junction is not None and is_junction())


def _make_file(path: str, name: str, status: os.stat_result) -> FoundFile:
    if _UNPRINTABLE.search(name):
        return _make_problem(path, name, "Its name has control characters or is not valid UTF-8. Rename it.")
    if not stat.S_ISREG(status.st_mode):
        return _make_problem(path, name, "It is not a regular file. Copy its content to an ordinary file to add it.")
    return FoundFile(path=Path(path), name=name, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


def _make_problem(path: str, name: str, problem: str) -> FoundFile:
    printable = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], name)
    return FoundFile(path=Path(path), name=printable, problem=problem)


def _describe(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or format_reason(error)


def _read_outer_ignore_files(folder: str) -> tuple[str, tuple[tuple[str, IgnoreFile], ...]]:
    """Return the path of `folder` relative to its Git repository, and the .gitignore files of the folders above it.

    The path ends with `/`. Outside of a repository, it is "" and there are no files.
    """
    parents = [Path(folder), *Path(folder).parents]
    root = next((i for i, parent in enumerate(parents) if _exists(parent / ".git")), 0)
    names = [parent.name for parent in reversed(parents[:root])]
    ignore_files = []
    for depth, parent in enumerate(reversed(parents[1 : root + 1])):
        if ignore_file := _read_ignore_file(os.fspath(parent)):
            ignore_files.append(("".join(f"{name}/" for name in names[:depth]), ignore_file))
    return "".join(f"{name}/" for name in names), tuple(ignore_files)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _read_ignore_file(folder: str) -> IgnoreFile | None:
    """Return the rules of the .gitignore file in `folder`; None if there is none or it cannot be read."""
    path = os.path.join(folder, _IGNORE_FILE_NAME)  # noqa: PTH118  (faster for many folders)
    try:
        data = files.read_bytes(Path(path), _MAX_IGNORE_FILE_BYTES)
    except OSError:
        return None
    return IgnoreFile(os.fsdecode(data.removeprefix(b"\xef\xbb\xbf")))
