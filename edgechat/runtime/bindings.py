"""Bindings: load the native bundle with one CPU backend into this process, by absolute path.

Only this module imports llama_cpp. It imports only the low-level submodule and skips the package's `__init__`, which
would import numpy and an unused high-level layer.
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
from edgechat.hardware import vulkan
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.logs import LogSink

# Environment variables that make ggml load additional backends. `load` removes them, so that no untested module runs.
_SEARCH_PATH_VARIABLES: Final = ("GGML_BACKEND_PATH",)


class Bindings:
    """Libraries llama.cpp and libedgechat, loaded into this process. `load` creates the only instance."""

    def __init__(self, llama: Any, edgechat: ctypes.CDLL, module: BackendModule, log: LogSink) -> None:
        self.llama: Final = llama
        """Module `llama_cpp.llama_cpp`, which has a function of the same name for each C function."""
        self.edgechat: Final = edgechat
        """Library libedgechat (native/src/edgechat.h), with declared argument and result types."""
        self.module: Final = module
        """Loaded CPU backend module."""
        self.log: Final = log


_bindings: Bindings | None = None


def load(bundle: Bundle, module: BackendModule, gpu_modules: Sequence[BackendModule] = ()) -> Bindings:
    """Load `bundle` with the CPU module `module` and with `gpu_modules`, and return the bindings.

    Later calls return the same bindings and must name the same CPU module. A GPU module that fails to load is ignored,
    since its device may have been removed after the self-test. Raises RuntimeLoadError if a library is missing, fails
    to load, or does not match the bindings.
    """
    global _bindings  # noqa: PLW0603  (a process can hold only one native runtime)
    if _bindings is not None:
        if _bindings.module != module:
            raise RuntimeLoadError(
                f"Cannot load the backend {module.name}: this process already uses the backend "
                f"{_bindings.module.name}. Restart edgechat."
            )
        return _bindings
    for variable in _SEARCH_PATH_VARIABLES:
        os.environ.pop(variable, None)
    _load_backend(bundle, module)
    for gpu_module in gpu_modules:
        if gpu_module.name == "vulkan" and not vulkan.hide_cpu_devices():
            continue
        _open_library(bundle.library_path("ggml")).ggml_backend_load(os.fsencode(gpu_module.path))
    llama = _import_bindings(bundle)
    log = LogSink()
    # The callback must live as long as the process, since ggml keeps a pointer to it.
    log_callback = llama.llama_log_callback(log.make_callback())
    llama.llama_log_set(log_callback, None)
    llama.llama_backend_init()
    _bindings = Bindings(llama, load_edgechat(bundle), module, log)
    _bindings.edgechat.log_callback = log_callback  # type: ignore[attr-defined]
    return _bindings


def exclude_devices(bindings: Bindings, names: Sequence[str]) -> None:
    """Exclude GPUs, such as `Vulkan1`, from the devices that are listed and that models are placed on.

    Call it on the decoding thread. It replaces an earlier list.
    """
    array = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
    bindings.edgechat.edgechat_exclude_devices(array, len(names))


def _load_backend(bundle: Bundle, module: BackendModule) -> None:
    # This must run before llama.cpp is used: llama.cpp searches for backends only if none is registered.
    _open_library(bundle.library_path("ggml-base"))
    ggml = _open_library(bundle.library_path("ggml"))
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    ggml.ggml_backend_load.argtypes = [ctypes.c_char_p]
    if not ggml.ggml_backend_load(os.fsencode(module.path)):
        raise RuntimeLoadError(f"Cannot load the backend {module.name} ({module.path}). Run `edgechat doctor`.")


def _open_library(path: Path) -> ctypes.CDLL:
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
    bundle.library_path("llama")
    os.environ["LLAMA_CPP_LIB_PATH"] = bundle.directory
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(directory)]
    package.__spec__ = spec  # required by `importlib.util.find_spec`
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def _check_version(directory: Path, bundle: Bundle) -> None:
    """Raise RuntimeLoadError if llama-cpp-python has another version than the bundle, since struct layouts change."""
    try:
        match = re.search(r'__version__\s*=\s*"([^"]+)"', (directory / "__init__.py").read_text(encoding="utf-8"))
    except OSError:
        match = None
    version = match[1] if match else "unknown"
    if version != bundle.llama_cpp_python:
        raise RuntimeLoadError(
            f"llama-cpp-python {version} is installed, but this build of edgechat needs {bundle.llama_cpp_python}. "
            "Reinstall edgechat, or run "
            f"`pip install --find-links WHEELHOUSE llama-cpp-python=={bundle.llama_cpp_python}`."
        )


class Device(ctypes.Structure):
    """Structure edgechat_device of native/src/edgechat.h: a GPU and its memory in bytes."""

    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("description", ctypes.c_char * 128),
        ("free_bytes", ctypes.c_uint64),
        ("total_bytes", ctypes.c_uint64),
        ("is_unified", ctypes.c_int32),
    )


class MemoryEntry(ctypes.Structure):
    """Structure edgechat_memory_entry of native/src/edgechat.h: the memory of one buffer type in bytes."""

    _fields_ = (
        ("buffer_type", ctypes.c_char * 64),
        ("model_bytes", ctypes.c_uint64),
        ("context_bytes", ctypes.c_uint64),
        ("compute_bytes", ctypes.c_uint64),
        ("is_host", ctypes.c_int32),
    )


class DraftLayout(ctypes.Structure):
    """Structure edgechat_draft_layout of native/src/edgechat.h: widths and order of a drafter's batches."""

    _fields_ = (
        ("n_vocab", ctypes.c_int32),
        ("n_row", ctypes.c_int32),
        ("n_heads", ctypes.c_int32),
        ("has_fixed_position", ctypes.c_int32),
        ("has_separate_outputs", ctypes.c_int32),
    )


class SequenceDraft(ctypes.Structure):
    """Structure edgechat_draft of native/src/edgechat.h: the pending tokens and the draft of one sequence."""

    _fields_ = (
        ("seq", ctypes.c_int32),
        ("chain_seq", ctypes.c_int32),
        ("position", ctypes.c_int32),
        ("n_pending", ctypes.c_int32),
        ("pending", ctypes.POINTER(ctypes.c_int32)),
        ("rows", ctypes.POINTER(ctypes.c_float)),
        ("max_tokens", ctypes.c_int32),
        ("min_probability", ctypes.c_float),
        ("ends_at_eog", ctypes.c_int32),
        ("tokens", ctypes.POINTER(ctypes.c_int32)),
        ("probabilities", ctypes.POINTER(ctypes.c_float)),
        ("n_tokens", ctypes.c_int32),
    )


def load_edgechat(bundle: Bundle) -> ctypes.CDLL:
    """Load libedgechat without llama.cpp, which is enough for suffix indices, and declare its C functions.

    Raises RuntimeLoadError if the library is missing or fails to load.
    """
    library = _open_library(bundle.library_path("edgechat"))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    int32, int32s, floats = ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_float)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "edgechat_abort_flag_new": (pointer, []),
        "edgechat_abort_flag_free": (None, [pointer]),
        "edgechat_abort_flag_set": (None, [pointer, integer]),
        "edgechat_threadpool_new": (pointer, [integer]),
        "edgechat_threadpool_attach": (None, [pointer, pointer]),
        "edgechat_threadpool_free": (None, [pointer]),
        "edgechat_argmax": (int32, [floats, int32]),
        "edgechat_suffix_index_new": (pointer, [int32]),
        "edgechat_suffix_index_free": (None, [pointer]),
        "edgechat_suffix_index_size": (int32, [pointer]),
        "edgechat_suffix_index_bytes": (ctypes.c_uint64, [pointer]),
        "edgechat_suffix_index_append": (int32, [pointer, int32s, int32]),
        "edgechat_suffix_index_truncate": (None, [pointer, int32]),
        "edgechat_suffix_index_draft": (int32, [pointer, int32s, int32, int32s, int32, int32s, int32s]),
        "edgechat_draft_tokens": (
            int32,
            [pointer, ctypes.POINTER(DraftLayout), ctypes.POINTER(SequenceDraft), int32],
        ),
        "edgechat_keep_rows": (None, [pointer, int32s, int32]),
        "edgechat_copy_rows": (int32, [pointer, int32s, int32, int32s, int32, floats]),
        "edgechat_encode_rows": (int32, [pointer, floats, int32, int32, int32, floats]),
        "edgechat_target_layers": (int32, [pointer, int32s, int32]),
        "edgechat_devices": (integer, [ctypes.POINTER(Device), integer]),
        "edgechat_exclude_devices": (None, [ctypes.POINTER(ctypes.c_char_p), integer]),
        "edgechat_place": (None, [pointer, integer, integer]),
        "edgechat_memory_breakdown": (integer, [pointer, ctypes.POINTER(MemoryEntry), integer]),
    }
    for name, (result_type, argument_types) in signatures.items():
        function = getattr(library, name, None)
        if function is None:  # a development build from before that function
            continue
        function.restype, function.argtypes = result_type, argument_types
    if not hasattr(library, "edgechat_set_lazy_clear"):  # a development build from before that function
        library.edgechat_set_lazy_clear = lambda is_lazy: None  # type: ignore[attr-defined]
    return library
