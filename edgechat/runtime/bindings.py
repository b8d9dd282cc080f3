"""Bindings: load the native bundle with one chosen CPU backend into this process, by absolute path.

Only this module imports llama_cpp, and it imports only the low-level submodule: the `__init__` of the package, which
imports numpy and an unused high-level layer, does not run.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from edgechat.errors import RuntimeLoadError
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.logs import LogSink

# Environment variables that make ggml load other backends. They are removed, so that no foreign module can run.
_SEARCH_VARIABLES: Final = ("GGML_BACKEND_PATH",)


class Bindings:
    """Loaded libraries of llama.cpp and libedgechat; create one per process with `load`."""

    def __init__(self, llama: Any, edgechat: ctypes.CDLL, module: BackendModule, log: LogSink) -> None:
        self.llama: Final = llama
        """Module `llama_cpp.llama_cpp`: one function per C function, under the same name."""
        self.edgechat: Final = edgechat
        """libedgechat (native/src/edgechat.h) with argument types."""
        self.module: Final = module
        """CPU backend module that was loaded."""
        self.log: Final = log


_bindings: Bindings | None = None


def load(bundle: Bundle, module: BackendModule, gpu_modules: Sequence[BackendModule] = ()) -> Bindings:
    """Load `bundle` with one CPU module and with GPU modules. A second call must name the same CPU module.

    A GPU module that fails to load is ignored: its device may be gone since its self-test. Raises RuntimeLoadError if
    a library is missing, fails to load, or does not match the bindings.
    """
    global _bindings  # noqa: PLW0603  (a process can hold only one native runtime)
    if _bindings is not None:
        if _bindings.module != module:
            raise RuntimeLoadError(f"This process already uses the backend {_bindings.module.name}, not {module.name}.")
        return _bindings
    for variable in _SEARCH_VARIABLES:
        os.environ.pop(variable, None)
    _load_backend(bundle, module)
    for gpu_module in gpu_modules:
        _open(bundle.library("ggml")).ggml_backend_load(os.fsencode(gpu_module.path))
    llama = _import_bindings(bundle)
    log = LogSink()
    # The callback must live as long as the process, since ggml keeps a pointer to it.
    log_callback = llama.llama_log_callback(log.callback())
    llama.llama_log_set(log_callback, None)
    llama.llama_backend_init()
    _bindings = Bindings(llama, load_edgechat(bundle), module, log)
    _bindings.edgechat.keep = log_callback  # type: ignore[attr-defined]
    return _bindings


def _load_backend(bundle: Bundle, module: BackendModule) -> None:
    # This must run before other uses of llama.cpp: once a backend is registered, llama.cpp does not search for others.
    _open(bundle.library("ggml-base"))
    ggml = _open(bundle.library("ggml"))
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    ggml.ggml_backend_load.argtypes = [ctypes.c_char_p]
    if not ggml.ggml_backend_load(os.fsencode(module.path)):
        raise RuntimeLoadError(f"Cannot load the backend {module.name} ({module.path}). Run `edgechat doctor`.")


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise RuntimeLoadError(f"Cannot load the native library {path}: {error}. {INSTALL_HINT}") from error


def _import_bindings(bundle: Bundle) -> Any:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeLoadError("The package llama-cpp-python is not installed. Reinstall edgechat.")
    directory = Path(spec.submodule_search_locations[0])
    _check_version(directory, bundle)
    bundle.library("llama")
    os.environ["LLAMA_CPP_LIB_PATH"] = bundle.directory
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(directory)]
    package.__spec__ = spec  # `importlib.util.find_spec` needs it
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def _check_version(directory: Path, bundle: Bundle) -> None:
    """Check that the bindings match the bundle, since struct layouts change. Raises RuntimeLoadError."""
    try:
        match = re.search(r'__version__\s*=\s*"([^"]+)"', (directory / "__init__.py").read_text(encoding="utf-8"))
    except OSError:
        match = None
    version = match[1] if match else "unknown"
    if version != bundle.llama_cpp_python:
        raise RuntimeLoadError(
            f"llama-cpp-python {version} is installed, but this build of edgechat needs {bundle.llama_cpp_python}. "
            f"Reinstall edgechat, or run `pip install llama-cpp-python=={bundle.llama_cpp_python}` with the wheelhouse."
        )


class Device(ctypes.Structure):
    """GPU and its memory in bytes: edgechat_device of native/src/edgechat.h."""

    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("description", ctypes.c_char * 128),
        ("free_bytes", ctypes.c_uint64),
        ("total_bytes", ctypes.c_uint64),
        ("is_unified", ctypes.c_int32),
    )


class MemoryEntry(ctypes.Structure):
    """Memory use of one buffer type: edgechat_memory_entry of native/src/edgechat.h."""

    _fields_ = (
        ("buffer_type", ctypes.c_char * 64),
        ("model_bytes", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("compute_bytes", ctypes.c_uint64),
        ("is_host", ctypes.c_int32),
    )


def load_edgechat(bundle: Bundle) -> ctypes.CDLL:
    """Load only libedgechat, enough for suffix indices, and declare its C functions. Raises RuntimeLoadError."""
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
