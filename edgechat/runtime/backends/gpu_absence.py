"""Saved verdicts of machines without a GPU, so that a start there asks no engine about GPUs.

A GPU module that is installed where no driver lists a device is refused by its self-test. Until a driver, the loader or
the kernel changes, the saved verdict holds, and a program that plans a load need not wait for the engine.
"""

from __future__ import annotations

from edgechat.hardware import vulkan
from edgechat.hardware.cpu import read_cpu
from edgechat.hardware.gpu import read_driver_version
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle


def has_no_gpu(bundle: Bundle) -> bool:
    """Return whether the bundle has no GPU module, or each was refused by its last test and nothing changed since."""
    for module in bundle.gpu_modules:
        verdict = verdicts.load_verdict(compute_key(bundle, module))
        if verdict is None or verdict.status != "refused":
            return False
    return True


def compute_key(bundle: Bundle, module: BackendModule) -> str:
    """Return the key of the verdict of a GPU module, which depends on the driver of its devices."""
    driver = vulkan.read_driver_stamp() if module.name == "vulkan" else read_driver_version()
    return verdicts.compute_verdict_key(bundle, module, read_cpu(), driver)
