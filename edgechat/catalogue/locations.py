"""Search for model files in edgechat's models directory and, without changing them, in those of other programs."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edgechat import files, paths
from edgechat.modelfile.file_kinds import describe_download, describe_file_part, parse_file_part
from edgechat.modelfile.split import parse_part_name

MAX_DEPTH: Final = 6
"""Maximum folder depth of the search for model files in one location."""
MAX_ENTRIES: Final = 200_000
"""Maximum number of directory entries read in one location; further entries are ignored."""
MAX_SEARCH_S: Final = 10.0
"""Time limit of the search in one location, for links to slow network drives. A local disk needs about 1 s."""
_MAX_MANIFEST_BYTES: Final = 1 << 20
_OLLAMA_MODEL_MEDIA_TYPE: Final = "application/vnd.ollama.image.model"

MANAGED, HUB_CACHE, OLLAMA, LM_STUDIO, LLAMA_CPP, PACKAGE, FOLDER, FILE = (
    "edgechat", "hub cache", "ollama", "lm studio", "llama.cpp", "package", "folder", "file",
)  # fmt: skip


class SkippedPath(NamedTuple):
    """A file or folder that the search for models skipped."""

    path: Path
    reason: str
    """Reason as a predicate, such as `cannot be searched: Permission denied`."""


OnSkipped = Callable[[SkippedPath], object]


class LocalFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model file, or the first part of a split model, with the properties parsed from its path."""

    path: Path
    source: str
    """Program that owns the file, or kind of location, such as `ollama` or `folder`."""
    name: str
    """Model name: `NAME:TAG` for Ollama, otherwise the file name without suffix and part number."""
    repo: str = ""
    """Hub repository `owner/name`; "" if the path does not contain it."""
    sha256: str = ""
    """Expected SHA-256; "" if the path does not contain it."""


def list_locations(folders: list[Path]) -> list[tuple[str, Path]]:
    """Return all locations that can contain models as (source, directory), edgechat's models directory first.

    `folders` are the model folders that the user added. The directories need not exist.
    """
    home_dir = paths.home_dir()
    home = home_dir or Path()
    locations = [(MANAGED, paths.models_dir())]
    locations += [(FOLDER, folder) for folder in folders]
    hub_cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    xdg_cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = xdg_cache if xdg_cache.is_absolute() else home / ".cache"
    hf_home = paths.expand_user(os.environ.get("HF_HOME") or str(cache / "huggingface"))
    locations.append((HUB_CACHE, paths.expand_user(hub_cache) if hub_cache else hf_home / "hub"))
    ollama_models = os.environ.get("OLLAMA_MODELS")
    # The second path belongs to the Linux service of Ollama, the third to Ollama packages of some distributions.
    default_dirs = [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]
    ollama_dirs = [paths.expand_user(ollama_models)] if ollama_models else default_dirs
    locations += [(OLLAMA, ollama_dir) for ollama_dir in ollama_dirs]
    locations += [(LM_STUDIO, home / ".lmstudio/models"), (LM_STUDIO, home / ".cache/lm-studio/models")]
    locations.append((LLAMA_CPP, _llama_cpp_cache_dir(home, cache)))
    locations += [(PACKAGE, path) for path in _site_packages_dirs()]
    # Without a home directory, the paths below it are relative, and would be searched in the current directory.
    return [(source, path) for source, path in locations if home_dir or path.is_absolute()]


def _llama_cpp_cache_dir(home: Path, cache: Path) -> Path:
    if directory := os.environ.get("LLAMA_CACHE"):
        return Path(directory)
    if sys.platform == "darwin":
        return home / "Library/Caches/llama.cpp"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home)) / "llama.cpp"
    return cache / "llama.cpp"


def _site_packages_dirs() -> list[Path]:
    directories = [Path(sysconfig.get_path("purelib"))]
    if site.ENABLE_USER_SITE:
        directories.append(Path(site.getusersitepackages()))
    return directories


def find_model_files(source: str, directory: Path, on_skipped: OnSkipped = lambda skipped: None) -> Iterator[LocalFile]:
    """Yield the model files in one location. `on_skipped` receives the files and folders that cannot be used."""
    if source == OLLAMA:
        yield from _find_in_ollama(directory, on_skipped)
    elif source == HUB_CACHE:
        yield from _find_in_hub_cache(directory, on_skipped)
    elif source == FILE:
        if directory.is_file():
            yield LocalFile(path=directory, source=FILE, name=parse_model_name(directory))
        else:
            on_skipped(SkippedPath(directory, "is not a file, or no longer exists"))
    elif source == PACKAGE:
        for path in _find_gguf_files(directory, 1, lambda skipped: None):  # other packages' bad files are not reported
            yield LocalFile(path=path, source=PACKAGE, name=path.stem)
    else:
        for path in _find_gguf_files(directory, MAX_DEPTH, on_skipped):
            parts = path.relative_to(directory).parts
            repo = "/".join(parts[:2]) if source in {MANAGED, LM_STUDIO} and len(parts) > 2 else ""  # noqa: PLR2004
            yield LocalFile(path=path, source=source, name=parse_model_name(path), repo=repo)


def parse_model_name(path: Path) -> str:
    """Return a name for a model that has none in its header: the file name without suffix and part number."""
    part = parse_part_name(path.name)
    return part.stem if part else path.stem


def _find_gguf_files(directory: Path, depth: int, on_skipped: OnSkipped) -> Iterator[Path]:
    """Yield the GGUF files below a directory. Skips later parts of split models."""
    cut_files: set[tuple[Path, str]] = set()
    for entry in walk_files(directory, depth, on_skipped):
        path = Path(entry.path)
        if entry.name.lower().endswith(".gguf"):
            part = parse_part_name(entry.name)
            if part is not None and part.number != 1:
                continue
            problem = _find_file_problem(entry)
            if problem:
                on_skipped(SkippedPath(path, problem))
            else:
                yield path
            continue
        file_part = parse_file_part(entry.name) if ".gguf" in entry.name.lower() else None
        if file_part is not None and (path.parent, file_part.whole_name) not in cut_files:
            cut_files.add((path.parent, file_part.whole_name))  # one message for all parts
            on_skipped(SkippedPath(path, describe_file_part(path)))


def _find_file_problem(entry: os.DirEntry[str]) -> str:
    """Return the reason why a directory entry is not a readable regular file; "" if it is one."""
    try:
        if entry.is_file():
            return describe_download(Path(entry.path))
        if entry.is_symlink():
            return f"is a link to {os.readlink(entry.path)}, which does not exist or is not a file"  # noqa: PTH115
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return "is a pipe, a socket or a device, not a file"


def walk_files(directory: Path, depth: int, on_skipped: OnSkipped) -> Iterator[os.DirEntry[str]]:
    """Yield the entries below a directory that are not folders, at most `depth` folders deep.

    Follows links to folders, but visits each folder once, so that cycles of links end. Shallow folders come before deep
    ones, and links come last, so that a file is found at its real path first. Skips hidden folders, and names that
    cannot be displayed. Ends after `MAX_ENTRIES` entries or `MAX_SEARCH_S` seconds.
    """
    pending_folders, pending_links = deque([(directory, 0)]), deque[tuple[Path, int]]()
    visited: set[tuple[int, int]] = set()
    n_entries, deadline = 0, time.monotonic() + MAX_SEARCH_S
    while pending_folders or pending_links:
        folder, level = pending_folders.popleft() if pending_folders else pending_links.popleft()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if level or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                on_skipped(SkippedPath(folder, f"cannot be searched: {error.strerror or error}"))
            continue
        for entry in entries:
            n_entries += 1
            if n_entries > MAX_ENTRIES or time.monotonic() > deadline:
                limit = f"{MAX_ENTRIES:,} files" if n_entries > MAX_ENTRIES else f"{MAX_SEARCH_S:.0f} s"
                on_skipped(SkippedPath(directory, f"was searched only in part: the search ended after {limit}"))
                return
            if not entry.name.isprintable():  # such a name can be neither displayed nor saved in JSON
                continue
            if not _is_directory(entry):
                yield entry
            elif level < depth and not entry.name.startswith("."):
                (pending_links if entry.is_symlink() else pending_folders).append((Path(entry.path), level + 1))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that cannot be read, or a cycle of links
        return False


def _find_in_hub_cache(directory: Path, on_skipped: OnSkipped) -> Iterator[LocalFile]:
    """Yield the models in a hub cache, in which models--OWNER--NAME/snapshots/REVISION/FILE links to blobs/HASH."""
    try:
        repositories = [entry for entry in os.scandir(directory) if entry.name.startswith("models--")]
    except OSError:
        return
    for entry in sorted(repositories, key=lambda entry: entry.name):
        repo = entry.name.removeprefix("models--").replace("--", "/", 1)
        for path in _find_gguf_files(Path(entry.path) / "snapshots", MAX_DEPTH, on_skipped):
            yield LocalFile(
                path=path, source=HUB_CACHE, name=parse_model_name(path), repo=repo, sha256=parse_expected_hash(path)
            )


def parse_expected_hash(path: Path) -> str:
    """Return the SHA-256 that is the name of a file or its link target (hub caches, Ollama); "" for other names."""
    blob = path.resolve().name.removeprefix("sha256-")
    return blob if _is_sha256(blob) else ""


def _is_sha256(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)  # noqa: PLR2004  (hexadecimal digits)


def _find_in_ollama(directory: Path, on_skipped: OnSkipped) -> Iterator[LocalFile]:
    """Yield the models in Ollama's store, in which manifests/HOST/NAMESPACE/NAME/TAG lists the blobs of a model."""
    root = directory / "manifests"
    for entry in walk_files(root, MAX_DEPTH, on_skipped):
        manifest = Path(entry.path)
        host, *owner, name = manifest.parent.relative_to(root).parts or ("",)
        model = "/".join([*(part for part in owner if part != "library"), name]) or host
        for digest in _read_model_digests(manifest):
            path = directory / "blobs" / f"sha256-{digest}"
            if path.is_file():
                yield LocalFile(path=path, source=OLLAMA, name=f"{model}:{manifest.name}", sha256=digest)


def _read_model_digests(manifest: Path) -> list[str]:
    try:
        layers: Any = msgspec.json.decode(files.read_bytes(manifest, _MAX_MANIFEST_BYTES))["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _OLLAMA_MODEL_MEDIA_TYPE]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return []
    return [sha256 for digest in digests if _is_sha256(sha256 := digest.removeprefix("sha256:"))]
