"""The child process in which a backend module is tried: `edgechat _selftest MODULE THREADS`.

Whatever the module does to this process, the parent survives it and reads from the last line where it was.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from edgechat.runtime.backends.bundle import find_bundle

# Exit codes, apart from those that an accident in Python or the C library has.
PASSED, WRONG, REFUSED = 0, 10, 11


def main(arguments: list[str]) -> int:
    """Run the native self test; its report goes to stdout. Returns PASSED, WRONG or REFUSED."""
    module, n_threads, longest_s, beside = arguments
    if hasattr(signal, "alarm"):
        signal.alarm(int(longest_s))  # who started this may be gone
    if sys.platform == "linux":
        no_core_dump()
    if beside:  # a GPU's module leaves to a CPU's what it cannot do
        ctypes.CDLL(str(find_bundle().library("ggml"))).ggml_backend_load(os.fsencode(beside))
    library = ctypes.CDLL(str(find_bundle().library("edgechat")))
    library.edgechat_selftest.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.edgechat_selftest.restype = ctypes.c_int
    failures = library.edgechat_selftest(os.fsencode(module), int(n_threads), 1)
    return PASSED if failures == 0 else WRONG if failures > 0 else REFUSED


def no_core_dump() -> None:
    """A crash here is an answer, not an accident to keep."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
