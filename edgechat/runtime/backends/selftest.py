"""Child process that self-tests one backend module: `edgechat _selftest MODULE THREADS TIMEOUT_S CPU_MODULE`.

A module can crash or hang this process; the parent then finds the failed step in the last line of the report.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from edgechat.runtime.backends.bundle import find_bundle

# Exit codes. Neither Python nor the C library uses 10 or 11 for its own errors.
EXIT_PASSED, EXIT_WRONG, EXIT_REFUSED = 0, 10, 11


def main(arguments: list[str]) -> int:
    """Run the native self-test, which reports to stdout. Returns EXIT_PASSED, EXIT_WRONG or EXIT_REFUSED.

    To test a CPU module, pass "" as CPU_MODULE. To test a GPU module, pass the CPU module that computes the operations
    that the GPU module does not implement.
    """
    module, n_threads, timeout_s, cpu_module = arguments
    if hasattr(signal, "alarm"):
        signal.alarm(int(timeout_s))  # ends this process at the timeout even if its parent has died
    if sys.platform == "linux":
        disable_core_dumps()
    if cpu_module:
        ctypes.CDLL(str(find_bundle().library_path("ggml"))).ggml_backend_load(os.fsencode(cpu_module))
    library = ctypes.CDLL(str(find_bundle().library_path("edgechat")))
    library.edgechat_selftest.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.edgechat_selftest.restype = ctypes.c_int
    n_failures = library.edgechat_selftest(os.fsencode(module), int(n_threads), 1)
    return EXIT_PASSED if n_failures == 0 else EXIT_WRONG if n_failures > 0 else EXIT_REFUSED


def disable_core_dumps() -> None:
    """Disable core dumps of this process, since a crash is an expected test result."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
