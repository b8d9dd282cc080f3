"""Search of model directories on this machine: edgechat's own, and those of other programs, which are read only."""

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
"""Maximum folder depth of the search for model files."""
MAX_FILES: Final = 200_000
"""Maximum number of directory entries that are searched in one location."""
_MAX_MANIFEST_BYTES: Final = 1 << 20
_OLLAMA_MODEL_MEDIA_TYPE: Final = "application/vnd.ollama.image.model"

OWN, HUB_CACHE, OLLAMA, LM_STUDIO, LLAMA_CPP, PACKAGE, FOLDER, FILE = (
    "edgechat", "hub cache", "ollama", "lm studio", "llama.cpp", "package", "folder", "file",
)  # fmt: skip


class LocalFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model file, or the first part of a split model, with the properties that its path contains."""

    path: Path
    source: str
    """Program or kind of location to which the file belongs, such as `ollama` or `folder`."""
    name: str
    """Name of the model in the program given by `source`."""
    repo: str = ""
    """Hub repository; "" if the path does not contain it."""
    sha256: str = ""
    """Expected hash; "" if the path does not contain it."""


def search_locations(folders: list[Path]) -> list[tuple[str, Path]]:
    """Return all model locations as (source, directory), edgechat's own first. The directories need not exist.

    `folders` are the model folders that the user added.
    """
    home = Path.home()
    locations = [(OWN, paths.models_dir())]
    locations += [(FOLDER, folder) for folder in folders]
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hf_home = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    locations.append((HUB_CACHE, Path(hub).expanduser() if hub else hf_home / "hub"))
    ollama = os.environ.get("OLLAMA_MODELS")
    # The Linux service of Ollama uses the second path; packages of some distributions use the third.
    services = [home / ".ollama/models", Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/models")]
    stores = [Path(ollama).expanduser()] if ollama else services
    locations += [(OLLAMA, store) for store in stores]
    locations += [(LM_STUDIO, home / ".lmstudio/models"), (LM_STUDIO, home / ".cache/lm-studio/models")]
    return [*locations, (LLAMA_CPP, _llama_cpp_cache(home, cache)), *((PACKAGE, Path(p)) for p in _site_packages())]


def _llama_cpp_cache(home: Path, cache: Path) -> Path:
    if directory := os.environ.get("LLAMA_CACHE"):
        return Path(directory)
    if sys.platform == "darwin":
        return home / "Library/Caches/llama.cpp"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home)) / "llama.cpp"
    return cache / "llama.cpp"


def _site_packages() -> list[str]:
    directories = [sysconfig.get_path("purelib")]
    if site.ENABLE_USER_SITE:
        directories.append(site.getusersitepackages())
    return directories


def find_model_files(source: str, directory: Path) -> Iterator[LocalFile]:
    """Yield the models in one location. Files and folders that cannot be read are skipped."""
    if source == OLLAMA:
        yield from _ollama(directory)
    elif source == HUB_CACHE:
        yield from _hub_cache(directory)
    elif source == FILE:
        if directory.is_file():
            yield LocalFile(path=directory, source=FILE, name=_stem(directory))
    elif source == PACKAGE:
        for path in _files(directory, depth=1):
            yield LocalFile(path=path, source=PACKAGE, name=path.stem)
    else:
        for path in _files(directory, MAX_DEPTH):
            parts = path.relative_to(directory).parts
            repo = "/".join(parts[:2]) if source in {OWN, LM_STUDIO} and len(parts) > 2 else ""  # noqa: PLR2004
            yield LocalFile(path=path, source=source, name=_stem(path), repo=repo)


def _stem(path: Path) -> str:
    part = parse_part_name(path.name)
    return part.stem if part else path.stem


def _files(directory: Path, depth: int) -> Iterator[Path]:
    """Yield the GGUF files below a directory, without later parts of split models. Directory links are not followed."""
    pending, n_entries = [(directory, 0)], 0
    while pending:
        folder, level = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            n_entries += 1
            if n_entries > MAX_FILES:
                return
            if not entry.name.isprintable():  # could be neither displayed nor stored in JSON
                continue
            if entry.name.lower().endswith(".gguf"):
                part = parse_part_name(entry.name)
                if (part is None or part.number == 1) and _is_file(entry):
                    yield Path(entry.path)
            elif level < depth and not entry.name.startswith(".") and _is_directory(entry):
                pending.append((Path(entry.path), level + 1))


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


def _hub_cache(directory: Path) -> Iterator[LocalFile]:
    """Yield the models in a hub cache: models--OWNER--NAME/snapshots/REVISION/FILE links to a blob named by hash."""
    try:
        repositories = [entry for entry in os.scandir(directory) if entry.name.startswith("models--")]
    except OSError:
        return
    for entry in sorted(repositories, key=lambda entry: entry.name):
        repo = entry.name.removeprefix("models--").replace("--", "/", 1)
        for path in _files(Path(entry.path) / "snapshots", MAX_DEPTH):
            yield LocalFile(path=path, source=HUB_CACHE, name=_stem(path), repo=repo, sha256=expected_hash(path))


def expected_hash(path: Path) -> str:
    """Return the SHA-256 in the name of a file or of its link target (hub caches, Ollama); "" if there is none."""
    blob = path.resolve().name.removeprefix("sha256-")
    return blob if _is_sha256(blob) else ""


def _is_sha256(name: str) -> bool:
    return len(name) == 64 and all(c in "0123456789abcdef" for c in name)  # noqa: PLR2004  (hexadecimal digits)


def _ollama(directory: Path) -> Iterator[LocalFile]:
    """Yield the models in Ollama's store: manifests/HOST/NAMESPACE/NAME/TAG lists blobs, one of them a GGUF file."""
    root = directory / "manifests"
    for folder, subfolders, tags in os.walk(root):
        subfolders[:] = sorted(subfolders) if len(Path(folder).relative_to(root).parts) < MAX_DEPTH else []
        for tag in sorted(tags):
            manifest = Path(folder) / tag
            host, *owner, name = manifest.parent.relative_to(root).parts or ("",)
            model = "/".join([*(part for part in owner if part != "library"), name]) or host
            for digest in _model_digests(manifest):
                path = directory / "blobs" / f"sha256-{digest}"
                if path.is_file():
                    yield LocalFile(path=path, source=OLLAMA, name=f"{model}:{tag}", sha256=digest)


def _model_digests(manifest: Path) -> list[str]:
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            return []
        layers: Any = msgspec.json.decode(manifest.read_bytes())["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _OLLAMA_MODEL_MEDIA_TYPE]
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return []
    return [sha256 for digest in digests if _is_sha256(sha256 := digest.removeprefix("sha256:"))]
