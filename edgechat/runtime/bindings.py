"""Loads the native bundle into this process: exactly one chosen backend, by absolute path.

The only importer of llama_cpp, and only of its low-level submodule: the package's own `__init__` imports
numpy and a high-level layer that nobody here uses, so it does not run.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from edgechat.errors import RuntimeLoadError
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.logs import LogSink

# Variables that make ggml look for backends elsewhere: a planted module must not run.
_SEARCH_VARIABLES: Final = ("GGML_BACKEND_PATH",)


class Bindings:
    """llama.cpp and libedgechat, loaded; make one per process with `load`."""

    def __init__(self, llama: Any, edgechat: ctypes.CDLL, module: BackendModule, log: LogSink) -> None:
        self.llama: Final = llama
        """The module `llama_cpp.llama_cpp`: one function per C function, same names."""
        self.edgechat: Final = edgechat
        """libedgechat (native/src/edgechat.h), with argument types set."""
        self.module: Final = module
        """The backend that computes."""
        self.log: Final = log


Progress = Callable[[float], bool]
"""Gets the part that is done, from 0 to 1; returns False to stop."""

_loaded: Bindings | None = None


def load(bundle: Bundle, module: BackendModule, gpu_modules: Sequence[BackendModule] = ()) -> Bindings:
    """Load `bundle` with `module` for the CPU, and those for GPUs; the second call in a process must name the same one.

    A module for a GPU that does not load is left out: it passed its test, but the device may have gone since. Raises RuntimeLoadError if a library is missing, refuses to load, or does not match the bindings.
    """
    global _loaded  # noqa: PLW0603  (a process can hold one native runtime: so does this module)
    if _loaded is not None:
        if _loaded.module != module:
            raise RuntimeLoadError(f"this process already computes with {_loaded.module.name}, not {module.name}")
        return _loaded
    for variable in _SEARCH_VARIABLES:
        os.environ.pop(variable, None)
    _load_backend(bundle, module)
    for gpu_module in gpu_modules:
        _open(bundle.library("ggml")).ggml_backend_load(os.fsencode(gpu_module.path))
    llama = _import_bindings(bundle)
    log = LogSink()
    # The callback object must live as long as the process: ggml keeps the pointer.
    log_callback = llama.llama_log_callback(log.callback())
    llama.llama_log_set(log_callback, None)
    llama.llama_backend_init()
    _loaded = Bindings(llama, load_edgechat(bundle), module, log)
    _loaded.edgechat.keep = log_callback  # type: ignore[attr-defined]
    return _loaded


def _load_backend(bundle: Bundle, module: BackendModule) -> None:
    # Before anything else touches llama.cpp: with a backend registered, its own search does not happen.
    _open(bundle.library("ggml-base"))
    ggml = _open(bundle.library("ggml"))
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    ggml.ggml_backend_load.argtypes = [ctypes.c_char_p]
    if not ggml.ggml_backend_load(os.fsencode(module.path)):
        raise RuntimeLoadError(f"the backend {module.name} ({module.path}) does not load; try `edgechat doctor`")


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeLoadError(f"the native library {path} does not load: {error}; {INSTALL_HINT}") from error


def _import_bindings(bundle: Bundle) -> Any:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeLoadError("the package llama-cpp-python is not installed: reinstall edgechat")
    directory = Path(spec.submodule_search_locations[0])
    _check_version(directory, bundle)
    bundle.library("llama")
    os.environ["LLAMA_CPP_LIB_PATH"] = bundle.directory
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(directory)]
    package.__spec__ = spec  # without one, nobody could ask again where it is
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def _check_version(directory: Path, bundle: Bundle) -> None:
    """The bindings' struct layouts carry no version: they must come from the very source of the bundle."""
    try:
        found = re.search(r'__version__\s*=\s*"([^"]+)"', (directory / "__init__.py").read_text(encoding="utf-8"))
    except OSError:
        found = None
    version = found[1] if found else "unknown"
    if version != bundle.llama_cpp_python:
        raise RuntimeLoadError(
            f"llama-cpp-python {version} is installed, but this build of edgechat needs {bundle.llama_cpp_python}: "
            f"reinstall edgechat, or `pip install llama-cpp-python=={bundle.llama_cpp_python}` from its wheelhouse"
        )


class Device(ctypes.Structure):
    """edgechat_device of native/src/edgechat.h."""

    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("description", ctypes.c_char * 128),
        ("free_bytes", ctypes.c_uint64),
        ("total_bytes", ctypes.c_uint64),
        ("is_unified", ctypes.c_int32),
    )


class MemoryEntry(ctypes.Structure):
    """edgechat_memory_entry of native/src/edgechat.h."""

    _fields_ = (
        ("buffer_type", ctypes.c_char * 64),
        ("model_bytes", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("compute_bytes", ctypes.c_uint64),
        ("is_host", ctypes.c_int32),
    )


def load_edgechat(bundle: Bundle) -> ctypes.CDLL:
    """Libedgechat by itself, with argument types set; no backend is needed for its indices. Raises RuntimeLoadError."""
    library = _open(bundle.library("edgechat"))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    int32, int32s = ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "edgechat_abort_flag_new": (pointer, []),
        "edgechat_abort_flag_free": (None, [pointer]),
        "edgechat_abort_flag_set": (None, [pointer, integer]),
        "edgechat_threadpool_new": (pointer, [integer]),
        "edgechat_threadpool_attach": (None, [pointer, pointer]),
        "edgechat_threadpool_free": (None, [pointer]),
        "edgechat_argmax": (int32, [ctypes.POINTER(ctypes.c_float), int32]),
        "edgechat_suffix_index_new": (pointer, [int32]),
        "edgechat_suffix_index_free": (None, [pointer]),
        "edgechat_suffix_index_size": (int32, [pointer]),
        "edgechat_suffix_index_bytes": (ctypes.c_uint64, [pointer]),
        "edgechat_suffix_index_append": (int32, [pointer, int32s, int32]),
        "edgechat_suffix_index_truncate": (None, [pointer, int32]),
        "edgechat_suffix_index_draft": (int32, [pointer, int32s, int32, int32s, int32, int32s, int32s]),
        "edgechat_devices": (integer, [ctypes.POINTER(Device), integer]),
        "edgechat_place": (None, [pointer, integer, integer]),
        "edgechat_memory_breakdown": (integer, [pointer, ctypes.POINTER(MemoryEntry), integer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
