"""The child process in which a backend module is tried: `edgechat _selftest MODULE THREADS`.

Whatever the module does to this process, the parent survives it and reads from the last line where it was.
"""

from __future__ import annotations

import ctypes
import os
import sys

from edgechat.runtime.bundle import find_bundle


def main(arguments: list[str]) -> int:
    """Run the native self test; its report goes to stdout. Returns 0 if every check passed."""
    module, n_threads = arguments
    if sys.platform == "linux":
        no_core_dump()
    library = ctypes.CDLL(str(find_bundle().library("edgechat")))
    library.edgechat_selftest.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.edgechat_selftest.restype = ctypes.c_int
    return 0 if library.edgechat_selftest(os.fsencode(module), int(n_threads), 1) == 0 else 1


def no_core_dump() -> None:
    """A crash here is an answer, not an accident to keep."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
