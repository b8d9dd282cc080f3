"""The native bundle: where it is, what was built into it, and which backends it offers."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import RuntimeLoadError

INSTALL_HINT: Final = "install a wheel of edgechat, which brings it, or build it in a source checkout with `make setup`"
_SUFFIX: Final = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_PREFIX: Final = "" if sys.platform == "win32" else "lib"

# Best first. Between modules that a CPU can run, more and newer instructions won every measurement; what a
# module is really worth on this CPU is decided by its self test, not by this list.
_PREFERENCE: Final = (
    "sapphirerapids", "zen4", "cooperlake", "icelake", "cascadelake", "cannonlake", "skylakex", "alderlake",
    "haswell", "piledriver", "ivybridge", "sandybridge", "sse42", "x64",
    "armv9.2_2", "armv9.2_1", "armv8.6_2", "armv8.6_1", "armv8.2_3", "armv8.2_2", "armv8.2_1", "armv8.0_1",
    "apple_m4", "apple_m2_m3", "apple_m1",
)  # fmt: skip


_GPUS: Final = ("cuda", "metal", "vulkan", "hip", "sycl")

# Packages that bring a module for GPUs to the bundle of another, the preferred one first.
_ADD_ONS: Final = ("edgechat_cuda13", "edgechat_cuda12")


class BackendModule(msgspec.Struct, frozen=True):
    """One backend module of the bundle."""

    name: str
    """As in the file name: `cpu-zen4` for libggml-cpu-zen4.so."""
    path: str
    """Absolute path of the shared library, which may be missing."""

    def fingerprint(self) -> str:
        """Size and time of the file: changes when the file does, without reading it."""
        try:
            stat = Path(self.path).stat()
        except OSError:
            return "missing"
        return f"{stat.st_size}-{stat.st_mtime_ns}"


class Bundle(msgspec.Struct, frozen=True):
    """A native build that belongs together."""

    directory: str
    build_id: str
    llama_cpp_python: str
    """Version of the bindings whose struct layouts this build has."""
    llama_cpp_commit: str
    compiler: str
    modules: tuple[BackendModule, ...]
    """Backend modules for CPUs, best first."""
    gpu_modules: tuple[BackendModule, ...] = ()
    """Those for GPUs, of the build and of packages beside it; of a kind, the preferred one first."""
    left_out: tuple[str, ...] = ()
    """What else is installed and why it is not used, each in a sentence."""

    def library(self, name: str) -> Path:
        """Path of a library such as `llama`; raises RuntimeLoadError if the file is missing."""
        path = Path(self.directory) / f"{_PREFIX}{name}{_SUFFIX}"
        if not path.is_file():
            raise RuntimeLoadError(f"the native bundle is damaged: {path} is missing; {INSTALL_HINT}")
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
    """The bundle inside this package, or the one that `EDGECHAT_NATIVE_DIR` names.

    A working tree has a link in its place, under another name, so that wheels are never made of it. Raises RuntimeLoadError if there is none or its manifest cannot be read.
    """
    named = os.environ.get("EDGECHAT_NATIVE_DIR")
    package = Path(__file__).resolve().parents[2]
    installed, linked = package / "_native", package / "_native_link"
    directory = Path(named).resolve() if named else linked if linked.exists() else installed
    try:
        manifest = msgspec.json.decode((directory / "manifest.json").read_bytes(), type=_Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise RuntimeLoadError(f"no native bundle in {directory} ({error}): {INSTALL_HINT}") from error
    modules = _modules(directory, manifest.files)
    added, left_out = _added(manifest.llama_cpp_commit)
    return Bundle(
        directory=str(directory),
        build_id=manifest.build_id,
        llama_cpp_python=manifest.llama_cpp_python,
        llama_cpp_commit=manifest.llama_cpp_commit,
        compiler=manifest.compiler,
        modules=tuple(sorted((m for m in modules if m.name.startswith("cpu-")), key=_rank)),
        gpu_modules=tuple(m for m in (*modules, *added) if m.name in _GPUS),
        left_out=(*left_out, *_stock_library()),
    )


def _added(llama_cpp_commit: str) -> tuple[list[BackendModule], list[str]]:
    """Modules of packages that are installed beside this one, and why others are left out."""
    modules, left_out = [], []
    for package in _ADD_ONS:
        spec = importlib.util.find_spec(package)
        for directory in (spec and spec.submodule_search_locations) or ():
            try:
                manifest = msgspec.json.decode((Path(directory) / "manifest.json").read_bytes(), type=_Manifest)
            except (OSError, msgspec.MsgspecError) as error:
                left_out.append(f"{package} is damaged ({error}): install it again")
                continue
            if manifest.llama_cpp_commit == llama_cpp_commit:
                modules += _modules(Path(directory), manifest.files)
            else:
                left_out.append(
                    f"{package} is for llama.cpp {manifest.llama_cpp_commit}, and this is {llama_cpp_commit}: install the one "
                    "of the same version as edgechat"
                )
    return modules, left_out


def _stock_library() -> Iterator[str]:
    """The library that llama-cpp-python was compiled with, if it was: it takes long to build, and may crash."""
    spec = importlib.util.find_spec("llama_cpp")
    for directory in (spec and spec.submodule_search_locations) or ():
        if any((Path(directory) / "lib").glob("*llama*")):
            yield (
                "llama-cpp-python was compiled with a library of its own, which edgechat does not use: it brings a tested one. "
                "To be rid of it, install with `--find-links` and `--only-binary llama-cpp-python`, as the README shows"
            )


def _modules(directory: Path, files: list[str]) -> list[BackendModule]:
    # The manifest decides, not the directory: a file that strayed in is not part of the build.
    start = f"{_PREFIX}ggml-"
    names = [f[len(start) : -len(_SUFFIX)] for f in files if f.startswith(start) and f.endswith(_SUFFIX)]
    return [BackendModule(name=n, path=str(directory / f"{start}{n}{_SUFFIX}")) for n in names]


def _rank(module: BackendModule) -> tuple[int, str]:
    name = module.name.removeprefix("cpu-")
    return (_PREFERENCE.index(name) if name in _PREFERENCE else len(_PREFERENCE), name)
