"""Search for model files in edgechat's models directory and, without changing them, in those of other programs."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat import paths
from edgechat.modelfile.split import parse_part_name

MAX_DEPTH: Final = 6
"""Maximum folder depth of the search for model files in one location."""
MAX_ENTRIES: Final = 200_000
"""Maximum number of directory entries read in one location; further entries are ignored."""
_MAX_MANIFEST_BYTES: Final = 1 << 20
_OLLAMA_MODEL_MEDIA_TYPE: Final = "application/vnd.ollama.image.model"

MANAGED, HUB_CACHE, OLLAMA, LM_STUDIO, LLAMA_CPP, PACKAGE, FOLDER, FILE = (
    "edgechat", "hub cache", "ollama", "lm studio", "llama.cpp", "package", "folder", "file",
)  # fmt: skip


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
    home = Path.home()
    locations = [(MANAGED, paths.models_dir())]
    locations += [(FOLDER, folder) for folder in folders]
    hub_cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hf_home = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    locations.append((HUB_CACHE, Path(hub_cache).expanduser() if hub_cache else hf_home / "hub"))
    ollama_models = os.environ.get("OLLAMA_MODELS")
    # The second path belongs to the Linux service of Ollama, the third to Ollama packages of some distributions.
    default_dirs = [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]
    ollama_dirs = [Path(ollama_models).expanduser()] if ollama_models else default_dirs
    locations += [(OLLAMA, ollama_dir) for ollama_dir in ollama_dirs]
    locations += [(LM_STUDIO, home / ".lmstudio/models"), (LM_STUDIO, home / ".cache/lm-studio/models")]
    locations.append((LLAMA_CPP, _llama_cpp_cache_dir(home, cache)))
    return [*locations, *((PACKAGE, path) for path in _site_packages_dirs())]


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


def find_model_files(source: str, directory: Path) -> Iterator[LocalFile]:
    """Yield the model files in one location. Skips files and folders that cannot be read."""
    if source == OLLAMA:
        yield from _find_in_ollama(directory)
    elif source == HUB_CACHE:
        yield from _find_in_hub_cache(directory)
    elif source == FILE:
        if directory.is_file():
            yield LocalFile(path=directory, source=FILE, name=_parse_model_name(directory))
    elif source == PACKAGE:
        for path in _find_gguf_files(directory, depth=1):
            yield LocalFile(path=path, source=PACKAGE, name=path.stem)
    else:
        for path in _find_gguf_files(directory, MAX_DEPTH):
            parts = path.relative_to(directory).parts
            repo = "/".join(parts[:2]) if source in {MANAGED, LM_STUDIO} and len(parts) > 2 else ""  # noqa: PLR2004
            yield LocalFile(path=path, source=source, name=_parse_model_name(path), repo=repo)


def _parse_model_name(path: Path) -> str:
    part = parse_part_name(path.name)
    return part.stem if part else path.stem


def _find_gguf_files(directory: Path, depth: int) -> Iterator[Path]:
    """Yield the GGUF files below a directory. Skips later parts of split models. Does not follow directory links."""
    pending_folders, n_entries = [(directory, 0)], 0
    while pending_folders:
        folder, level = pending_folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            n_entries += 1
            if n_entries > MAX_ENTRIES:
                return
            if not entry.name.isprintable():  # such a name can be neither displayed nor saved in JSON
                continue
            if entry.name.lower().endswith(".gguf"):
                part = parse_part_name(entry.name)
                if (part is None or part.number == 1) and _is_file(entry):
                    yield Path(entry.path)
            elif level < depth and not entry.name.startswith(".") and _is_directory(entry):
                pending_folders.append((Path(entry.path), level + 1))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _find_in_hub_cache(directory: Path) -> Iterator[LocalFile]:
    """Yield the models in a hub cache, in which models--OWNER--NAME/snapshots/REVISION/FILE links to blobs/HASH."""
    try:
        repositories = [entry for entry in os.scandir(directory) if entry.name.startswith("models--")]
    except OSError:
        return
    for entry in sorted(repositories, key=lambda entry: entry.name):
        repo = entry.name.removeprefix("models--").replace("--", "/", 1)
        for path in _find_gguf_files(Path(entry.path) / "snapshots", MAX_DEPTH):
            yield LocalFile(
                path=path, source=HUB_CACHE, name=_parse_model_name(path), repo=repo, sha256=parse_expected_hash(path)
            )


def parse_expected_hash(path: Path) -> str:
    """Return the SHA-256 that is the name of a file or its link target (hub caches, Ollama); "" for other names."""
    blob = path.resolve().name.removeprefix("sha256-")
    return blob if _is_sha256(blob) else ""


def _is_sha256(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)  # noqa: PLR2004  (hexadecimal digits)


def _find_in_ollama(directory: Path) -> Iterator[LocalFile]:
    """Yield the models in Ollama's store, in which manifests/HOST/NAMESPACE/NAME/TAG lists the blobs of a model."""
    root = directory / "manifests"
    for folder, subfolders, tags in os.walk(root):
        subfolders[:] = sorted(subfolders) if len(Path(folder).relative_to(root).parts) < MAX_DEPTH else []
        for tag in sorted(tags):
            manifest = Path(folder) / tag
            host, *owner, name = manifest.parent.relative_to(root).parts or ("",)
            model = "/".join([*(part for part in owner if part != "library"), name]) or host
            for digest in _read_model_digests(manifest):
                path = directory / "blobs" / f"sha256-{digest}"
                if path.is_file():
                    yield LocalFile(path=path, source=OLLAMA, name=f"{model}:{tag}", sha256=digest)


def _read_model_digests(manifest: Path) -> list[str]:
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            return []
        layers: Any = msgspec.json.decode(manifest.read_bytes())["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _OLLAMA_MODEL_MEDIA_TYPE]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return []
    return [sha256 for digest in digests if _is_sha256(sha256 := digest.removeprefix("sha256:"))]
