"""Child process that self-tests one backend module.

`edgechat _selftest MODULE THREADS TIMEOUT_S CPU_MODULE [DEVICE TYPES BYTES DECODES SPEED_THREADS]`: the last five are
for GPU modules; TYPES are ggml's numbers, or `all`. A module can crash or hang this process; the parent then finds the
failed step in the last line of the report.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from edgechat import process
from edgechat.runtime.backends.bundle import find_bundle

# Exit codes. Neither Python nor the C library uses 10 or 11 for its own errors.
EXIT_PASSED, EXIT_WRONG, EXIT_REFUSED = 0, 10, 11


class _Options(ctypes.Structure):
    """Structure edgechat_selftest_options of native/src/edgechat.h."""

    _fields_ = (
        ("device", ctypes.c_int32),
        ("n_threads", ctypes.c_int32),
        ("report_fd", ctypes.c_int32),
        ("decodes", ctypes.c_int32),
        ("types", ctypes.c_char_p),
        ("n_bytes", ctypes.c_uint64),
        ("n_speed_threads", ctypes.c_int32),
    )


def main(arguments: list[str]) -> int:
    """Run the native self-test, which reports to stdout. Returns EXIT_PASSED, EXIT_WRONG or EXIT_REFUSED.

    To test a CPU module, pass "" as CPU_MODULE. To test a GPU module, pass the CPU module that computes the operations
    that the GPU module does not implement.
    """
    module, n_threads, timeout_s, cpu_module, *gpu_arguments = arguments
    process.end_with_parent()
    if hasattr(signal, "alarm"):
        signal.alarm(int(timeout_s))  # ends this process at the timeout even if its parent is stopped
    if sys.platform == "linux":
        disable_core_dumps()
    if cpu_module:
        ctypes.CDLL(str(find_bundle().library_path("ggml"))).ggml_backend_load(os.fsencode(cpu_module))
    library = ctypes.CDLL(str(find_bundle().library_path("edgechat")))
    if gpu_arguments and not _prepare_devices(module):
        _report_refusal("the only driver computes on the CPU, so it is of no use")
        return EXIT_REFUSED
    if gpu_arguments:
        device, types, n_bytes, decodes, n_speed_threads = gpu_arguments
        options = _Options(
            device=int(device), n_threads=int(n_threads), report_fd=1, decodes=int(decodes), n_bytes=int(n_bytes),
            # No type has the number -1: an empty list tests no product.
            n_speed_threads=int(n_speed_threads), types=b"" if types == "all" else (types or "-1").encode(),
        )  # fmt: skip
        library.edgechat_selftest_device.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Options)]
        library.edgechat_selftest_device.restype = ctypes.c_int
        n_failures = library.edgechat_selftest_device(os.fsencode(module), ctypes.byref(options))
    else:
        library.edgechat_selftest.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        library.edgechat_selftest.restype = ctypes.c_int
        n_failures = library.edgechat_selftest(os.fsencode(module), int(n_threads), 1)
    if n_failures < 0 and gpu_arguments:
        _report_refusal(_find_load_problem(module, cpu_module))
    return EXIT_PASSED if n_failures == 0 else EXIT_WRONG if n_failures > 0 else EXIT_REFUSED


def _prepare_devices(module: str) -> bool:
    """Report the devices of a Vulkan driver and hide those that are the CPU. Returns False if no device is left."""
    if "vulkan" not in Path(module).name:
        return True
    from edgechat.hardware import vulkan

    devices = vulkan.list_physical_devices()
    for device in devices:
        os.write(1, f"physical\t{device.kind}\t{device.driver}\t{' '.join(device.name.split())}\n".encode())
    return vulkan.hide_cpu_devices(devices)


def _report_refusal(reason: str) -> None:
    os.write(1, f"refused\t{' '.join(reason.split())}\n".encode())


def _find_load_problem(module: str, cpu_module: str) -> str:
    """Return why the system or llama.cpp cannot load a GPU module; "" if it can, and only a device is missing."""
    try:
        library = ctypes.CDLL(module)
    except OSError as error:
        return _explain_system_error(str(error))
    try:
        versions = [_read_interface_version(each) for each in (library, ctypes.CDLL(cpu_module))]
    except AttributeError:
        return "it is no backend module of llama.cpp"
    if None not in versions and versions[0] != versions[1]:
        found, expected = versions
        return f"it was built for another version of llama.cpp (interface {found} instead of {expected})"
    return ""


def _explain_system_error(text: str) -> str:
    """Return the reason for which the system does not load a library, from its message."""
    if "undefined symbol" in text:
        symbol = text.rpartition("undefined symbol:")[2].strip()
        return f"it was built for another version of llama.cpp or of its own libraries: {symbol} is missing there"
    if "cannot open shared object file" in text:
        name = text.partition(":")[0]
        if name.startswith("libvulkan"):
            return f"the Vulkan loader ({name}) is not installed; on Debian and Ubuntu, it is the package libvulkan1"
        return f"the library {name}, which it needs, is not installed"
    return text


def _read_interface_version(library: ctypes.CDLL) -> int | None:
    """Return the version of llama.cpp's interface for backends of a module; None if it has no driver."""
    library.ggml_backend_init.restype = ctypes.c_void_p
    address = library.ggml_backend_init()
    return ctypes.c_int.from_address(address).value if address else None


def disable_core_dumps() -> None:
    """Disable core dumps of this process, since a crash is an expected test result."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
