"""Native bundle: location, build manifest, libraries, and backend modules in order of preference."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import RuntimeLoadError, format_reason

INSTALL_HINT: Final = "Install a wheel of edgechat, which contains the bundle. In a source checkout, run `make setup`."
_LIBRARY_SUFFIX: Final = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
_LIBRARY_PREFIX: Final = "" if sys.platform == "win32" else "lib"

# CPU modules, fastest first. In every measurement, the module with the newest instruction sets was the fastest. The
# self-test determines which modules work on this CPU.
_CPU_MODULE_NAMES: Final = (
    "sapphirerapids", "zen4", "cooperlake", "icelake", "cascadelake", "cannonlake", "skylakex", "alderlake",
    "haswell", "piledriver", "ivybridge", "sandybridge", "sse42", "x64",
    "armv9.2_2", "armv9.2_1", "armv8.6_2", "armv8.6_1", "armv8.2_3", "armv8.2_2", "armv8.2_1", "armv8.0_1",
    "apple_m4", "apple_m2_m3", "apple_m1",
)  # fmt: skip

_GPU_MODULE_NAMES: Final = ("cuda", "metal", "vulkan", "hip", "sycl")

# Optional packages that contain a GPU module, in order of preference.
_GPU_PACKAGES: Final = ("edgechat_cuda13", "edgechat_cuda12", "edgechat_vulkan")


class BackendModule(msgspec.Struct, frozen=True):
    """Shared library with the kernels of one backend."""

    name: str
    """Backend name as in the file name: `cpu-zen4` for libggml-cpu-zen4.so."""
    path: str
    """Absolute path of the library; the file may be missing."""

    def fingerprint(self) -> str:
        """Return the file's size and modification time, which identify its content; "missing" if there is no file."""
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
    """CPU backend modules, fastest first."""
    gpu_modules: tuple[BackendModule, ...] = ()
    """GPU backend modules from the bundle and from GPU packages; within each kind, the preferred module is first."""
    warnings: tuple[str, ...] = ()
    """Messages about installed packages and libraries that edgechat does not use, with the reasons."""

    def library_path(self, name: str) -> Path:
        """Return the path of a library such as `llama`. Raises RuntimeLoadError if the file is missing."""
        path = Path(self.directory) / f"{_LIBRARY_PREFIX}{name}{_LIBRARY_SUFFIX}"
        if not path.is_file():
            raise RuntimeLoadError(f"The native bundle is damaged: {path} is missing. {INSTALL_HINT}")
        return path

    def check_libraries(self) -> None:
        """Raise RuntimeLoadError if a library that every backend needs is missing."""
        for name in ("ggml-base", "ggml", "llama", "edgechat"):
            self.library_path(name)


class _Manifest(msgspec.Struct):
    build_id: str
    llama_cpp_python: str
    llama_cpp_commit: str
    compiler: str
    files: list[str]


def find_bundle() -> Bundle:
    """Return the bundle that `EDGECHAT_NATIVE_DIR` names, or the bundle inside this package.

    A source checkout has the symbolic link `_native_link` instead of the directory `_native`, so that wheels never
    include the bundle of the checkout. Raises RuntimeLoadError if the bundle is missing or its manifest is unreadable.
    """
    override_dir = os.environ.get("EDGECHAT_NATIVE_DIR")
    package_dir = Path(__file__).resolve().parents[2]
    wheel_dir, link_dir = package_dir / "_native", package_dir / "_native_link"
    directory = Path(override_dir).resolve() if override_dir else link_dir if link_dir.exists() else wheel_dir
    try:
        manifest = _read_manifest(directory)
    except (OSError, msgspec.MsgspecError) as error:
        where, hint = f"in {directory}", INSTALL_HINT
        if override_dir:
            where += ", which the environment variable EDGECHAT_NATIVE_DIR names"
            hint = "Correct or unset the variable."
        raise RuntimeLoadError(f"Cannot find a native bundle {where} ({format_reason(error)}). {hint}") from error
    modules = _list_modules(directory, manifest.files)
    gpu_package_modules, package_messages = _find_gpu_package_modules(manifest.llama_cpp_commit)
    return Bundle(
        directory=str(directory),
        build_id=manifest.build_id,
        llama_cpp_python=manifest.llama_cpp_python,
        llama_cpp_commit=manifest.llama_cpp_commit,
        compiler=manifest.compiler,
        modules=tuple(sorted((m for m in modules if m.name.startswith("cpu-")), key=_preference_rank)),
        gpu_modules=tuple(m for m in (*modules, *gpu_package_modules) if m.name in _GPU_MODULE_NAMES),
        warnings=(*package_messages, *_find_unused_libraries()),
    )


def _read_manifest(directory: Path) -> _Manifest:
    return msgspec.json.decode((directory / "manifest.json").read_bytes(), type=_Manifest)


def _find_gpu_package_modules(llama_cpp_commit: str) -> tuple[list[BackendModule], list[str]]:
    """Return the modules of GPU packages built for `llama_cpp_commit`, and a message for each unusable package."""
    modules, messages = [], []
    for package in _GPU_PACKAGES:
        spec = importlib.util.find_spec(package)
        for directory in (spec and spec.submodule_search_locations) or ():
            try:
                manifest = _read_manifest(Path(directory))
            except (OSError, msgspec.MsgspecError) as error:
                messages.append(f"{package} is damaged ({format_reason(error)}). Reinstall it.")
                continue
            if manifest.llama_cpp_commit == llama_cpp_commit:
                modules += _list_modules(Path(directory), manifest.files)
            else:
                messages.append(
                    f"{package} is for llama.cpp {manifest.llama_cpp_commit}, but edgechat uses {llama_cpp_commit}. "
                    "Install the version of the package that matches edgechat."
                )
    return modules, messages


def _find_unused_libraries() -> Iterator[str]:
    """Yield a message if the installed llama-cpp-python contains a build of llama.cpp in addition to the bindings."""
    spec = importlib.util.find_spec("llama_cpp")
    for directory in (spec and spec.submodule_search_locations) or ():
        if any((Path(directory) / "lib").glob("*llama*")):
            yield (
                "llama-cpp-python contains its own build of llama.cpp, which edgechat does not use. To remove it, "
                "reinstall with `--find-links` and `--only-binary llama-cpp-python` (see the README)."
            )


def _list_modules(directory: Path, files: list[str]) -> list[BackendModule]:
    """Return the backend modules among `files`, which are the file names in the manifest of `directory`."""
    prefix, suffix = f"{_LIBRARY_PREFIX}ggml-", _LIBRARY_SUFFIX
    names = [f[len(prefix) : -len(suffix)] for f in files if f.startswith(prefix) and f.endswith(suffix)]
    return [BackendModule(name=n, path=str(directory / f"{prefix}{n}{suffix}")) for n in names]


def _preference_rank(module: BackendModule) -> tuple[int, str]:
    name = module.name.removeprefix("cpu-")
    return (_CPU_MODULE_NAMES.index(name) if name in _CPU_MODULE_NAMES else len(_CPU_MODULE_NAMES), name)
