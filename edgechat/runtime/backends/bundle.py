"""Native bundle: location, build manifest, libraries, and backend modules in order of preference."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import RuntimeLoadError

INSTALL_HINT: Final = "Install a wheel of edgechat, which contains the bundle. In a source checkout, run `make setup`."
_SUFFIX: Final = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_PREFIX: Final = "" if sys.platform == "win32" else "lib"

# CPU modules, best first. In every measurement, the module with the most and newest instructions was the fastest. The
# self-test decides which modules work on this CPU.
_PREFERENCE: Final = (
    "sapphirerapids", "zen4", "cooperlake", "icelake", "cascadelake", "cannonlake", "skylakex", "alderlake",
    "haswell", "piledriver", "ivybridge", "sandybridge", "sse42", "x64",
    "armv9.2_2", "armv9.2_1", "armv8.6_2", "armv8.6_1", "armv8.2_3", "armv8.2_2", "armv8.2_1", "armv8.0_1",
    "apple_m4", "apple_m2_m3", "apple_m1",
)  # fmt: skip

_GPUS: Final = ("cuda", "metal", "vulkan", "hip", "sycl")

# Optional packages with a GPU module, preferred first.
_GPU_PACKAGES: Final = ("edgechat_cuda13", "edgechat_cuda12")


class BackendModule(msgspec.Struct, frozen=True):
    """Shared library with the kernels of one backend."""

    name: str
    """Backend name as in the file name: `cpu-zen4` for libggml-cpu-zen4.so."""
    path: str
    """Absolute path of the library; the file may be missing."""

    def fingerprint(self) -> str:
        """Return the size and modification time of the file, which identify its content without a read."""
        try:
            stat = Path(self.path).stat()
        except OSError:
            return "missing"
        return f"{stat.st_size}-{stat.st_mtime_ns}"


class Bundle(msgspec.Struct, frozen=True):
    """Libraries and backend modules of one native build."""

    directory: str
    build_id: str
    llama_cpp_python: str
    """Version of the Python bindings whose struct layouts match this build."""
    llama_cpp_commit: str
    compiler: str
    modules: tuple[BackendModule, ...]
    """Backend modules for CPUs, best first."""
    gpu_modules: tuple[BackendModule, ...] = ()
    """Backend modules for GPUs, from the bundle and from installed GPU packages; preferred ones first."""
    left_out: tuple[str, ...] = ()
    """Messages about installed packages and libraries that edgechat does not use, each with the reason."""

    def library(self, name: str) -> Path:
        """Return the path of a library such as `llama`. Raises RuntimeLoadError if the file is missing."""
        path = Path(self.directory) / f"{_PREFIX}{name}{_SUFFIX}"
        if not path.is_file():
            raise RuntimeLoadError(f"The native bundle is damaged: {path} is missing. {INSTALL_HINT}")
        return path

    def check(self) -> None:
        """Raise RuntimeLoadError if a library that every backend needs is missing."""
        for name in ("ggml-base", "ggml", "llama", "edgechat"):
            self.library(name)


class _Manifest(msgspec.Struct):
    build_id: str
    llama_cpp_python: str
    llama_cpp_commit: str
    compiler: str
    files: list[str]


def find_bundle() -> Bundle:
    """Return the bundle that `EDGECHAT_NATIVE_DIR` names, or the one inside this package.

    A source checkout has the symbolic link `_native_link` instead of the directory `_native`, so that wheels never
    include the bundle of the checkout. Raises RuntimeLoadError if there is no bundle, or its manifest is unreadable.
    """
    override = os.environ.get("EDGECHAT_NATIVE_DIR")
    package = Path(__file__).resolve().parents[2]
    installation, link = package / "_native", package / "_native_link"
    directory = Path(override).resolve() if override else link if link.exists() else installation
    try:
        manifest = _read_manifest(directory)
    except (OSError, msgspec.MsgspecError) as error:
        raise RuntimeLoadError(f"Cannot find a native bundle in {directory} ({error}). {INSTALL_HINT}") from error
    modules = _modules(directory, manifest.files)
    gpu_package_modules, left_out = _gpu_package_modules(manifest.llama_cpp_commit)
    return Bundle(
        directory=str(directory),
        build_id=manifest.build_id,
        llama_cpp_python=manifest.llama_cpp_python,
        llama_cpp_commit=manifest.llama_cpp_commit,
        compiler=manifest.compiler,
        modules=tuple(sorted((m for m in modules if m.name.startswith("cpu-")), key=_preference)),
        gpu_modules=tuple(m for m in (*modules, *gpu_package_modules) if m.name in _GPUS),
        left_out=(*left_out, *_unused_llama_library()),
    )


def _read_manifest(directory: Path) -> _Manifest:
    return msgspec.json.decode((directory / "manifest.json").read_bytes(), type=_Manifest)


def _gpu_package_modules(llama_cpp_commit: str) -> tuple[list[BackendModule], list[str]]:
    """Return the modules of the installed GPU packages for this llama.cpp, and a message for each unusable package."""
    modules, left_out = [], []
    for package in _GPU_PACKAGES:
        spec = importlib.util.find_spec(package)
        for directory in (spec and spec.submodule_search_locations) or ():
            try:
                manifest = _read_manifest(Path(directory))
            except (OSError, msgspec.MsgspecError) as error:
                left_out.append(f"{package} is damaged ({error}). Reinstall it.")
                continue
            if manifest.llama_cpp_commit == llama_cpp_commit:
                modules += _modules(Path(directory), manifest.files)
            else:
                left_out.append(
                    f"{package} is for llama.cpp {manifest.llama_cpp_commit}, but edgechat uses {llama_cpp_commit}. "
                    "Install the version of the package that matches edgechat."
                )
    return modules, left_out


def _unused_llama_library() -> Iterator[str]:
    """Yield a message if the installed llama-cpp-python contains its own build of llama.cpp, not only the bindings."""
    spec = importlib.util.find_spec("llama_cpp")
    for directory in (spec and spec.submodule_search_locations) or ():
        if any((Path(directory) / "lib").glob("*llama*")):
            yield (
                "llama-cpp-python contains its own build of llama.cpp, which edgechat does not use. To remove it, "
                "reinstall with `--find-links` and `--only-binary llama-cpp-python` (see the README)."
            )


def _modules(directory: Path, files: list[str]) -> list[BackendModule]:
    """Return the backend modules that the manifest lists in `files`; other files in the directory are ignored."""
    start = f"{_PREFIX}ggml-"
    names = [f[len(start) : -len(_SUFFIX)] for f in files if f.startswith(start) and f.endswith(_SUFFIX)]
    return [BackendModule(name=n, path=str(directory / f"{start}{n}{_SUFFIX}")) for n in names]


def _preference(module: BackendModule) -> tuple[int, str]:
    name = module.name.removeprefix("cpu-")
    return (_PREFERENCE.index(name) if name in _PREFERENCE else len(_PREFERENCE), name)
