"""GPUs in `edgechat doctor`: their tests, for a limited time, and their description."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from edgechat import signals
from edgechat.errors import EdgechatError
from edgechat.humanize import format_size

if TYPE_CHECKING:
    from types import FrameType

    from edgechat.cli.progress import StderrStatus
    from edgechat.runtime.backends.bundle import BackendModule, Bundle
    from edgechat.runtime.backends.verdicts import DeviceVerdict, Verdict

MAX_TEST_S: Final = 60.0
"""Time for the tests of all GPUs. A driver can need minutes to compile the kernels for all weight types."""


def check_gpus(
    bundle: Bundle, cpu_module: BackendModule, status: StderrStatus, max_s: float
) -> list[tuple[BackendModule, Verdict]]:
    """Test the GPU modules for at most `max_s` seconds, at first with the weight types of the installed models.

    Call this in the main thread. Raises KeyboardInterrupt after Ctrl-C; the results so far are then saved.
    """
    from edgechat.runtime.backends.gpu_type_tests import test_all_types

    if not bundle.gpu_modules:
        return []
    is_interrupted = threading.Event()
    ends_at = time.monotonic() + max_s

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if is_interrupted.is_set():
            raise KeyboardInterrupt
        is_interrupted.set()

    with signals.handle_signals((signal.SIGINT,), interrupt):
        needed = list_needed_types()
        results = test_all_types(
            bundle, cpu_module, needed, status.show, lambda: is_interrupted.is_set() or time.monotonic() >= ends_at
        )
    if is_interrupted.is_set():
        status.note("The tests of the GPUs were interrupted. The results so far are saved.")
        raise KeyboardInterrupt
    return results


def list_needed_types() -> list[int]:
    """Return the weight types of the installed models, as ggml's numbers; none if the models cannot be listed."""
    from edgechat.models.loading import count_weights
    from edgechat.models.selection import list_installed_candidates

    try:
        candidates = list_installed_candidates()
    except EdgechatError:  # doctor reports the problem
        return []
    return sorted({type_id for c in candidates for type_id in count_weights(c.profile)})


def describe_gpu_setup(bundle: Bundle | None, cards: list[str], *, is_enabled: bool) -> str:
    """Return why edgechat uses no GPU before any test, and what to do; "" if a GPU module is installed and enabled.

    `cards` are the GPUs that the kernel lists; `is_enabled` is the setting `gpu`.
    """
    if bundle is None:
        return ""
    if not is_enabled:
        return "not tested and not used, because the setting `gpu` is false"
    if bundle.gpu_modules:
        return ""
    packages = sorted({"edgechat-cuda" if card.startswith("NVIDIA") else "edgechat-vulkan" for card in cards})
    machine = f"the kernel lists {', '.join(cards)}, but " if cards else ""
    # A package for another version of edgechat has a warning of its own.
    found = "no matching GPU module is installed" if bundle.warnings else "no GPU module is installed"
    advice = f"docs/install.md says how to add {' or '.join(packages) or 'one'}."
    return f"{machine}{found}, so edgechat uses the CPU; {advice}"


def make_device_object(device: dict[str, Any], verdict: DeviceVerdict) -> dict[str, Any]:
    """Return the JSON object of a GPU: `device`, the fields of its verdict, and texts about its speed and weight types.

    `untested_types` are the names of the weight types that will be tested before a model needs them.
    """
    from edgechat.modelfile.tensor_types import NON_MATRIX_TYPES, TENSOR_TYPES
    from edgechat.runtime.backends.gpu_probe import describe_failed_types
    from edgechat.runtime.backends.gpu_speeds import describe_speed

    is_slower, speed = describe_speed(verdict)
    open_failures = {failed.type_id for failed in verdict.failed_types if not failed.is_final}
    final_failures = {failed.type_id for failed in verdict.failed_types if failed.is_final}
    untested = open_failures if verdict.types is None else TENSOR_TYPES.keys() - {*verdict.types, *final_failures}
    names = [row.name for number, row in TENSOR_TYPES.items() if number in untested]
    return {
        **device, "is_slower": is_slower, "speed": speed,
        "failed": describe_failed_types([f for f in verdict.failed_types if f.is_final]),
        "untested_types": [name for name in names if name not in NON_MATRIX_TYPES] if verdict.is_usable else [],
    }  # fmt: skip


def describe_device(device: dict[str, Any]) -> str:
    """Return the name, kind and driver of a GPU, and what its test covered."""
    from edgechat.modelfile.tensor_types import NON_MATRIX_TYPES, TENSOR_TYPES

    driver = f", driver {device['driver']}" if device["driver"] else ""
    text = f"{device['description']} ({device['kind']}{driver})"
    if device["status"] != "passed":
        return text
    names, unsupported = (
        [TENSOR_TYPES[n].name for n in numbers if n in TENSOR_TYPES and TENSOR_TYPES[n].name not in NON_MATRIX_TYPES]
        for numbers in (device["types"] or (), device["unsupported_types"])
    )
    names = [name for name in names if name not in unsupported]
    if device["untested_types"]:
        n_left = len(device["untested_types"])
        others = f"the other {n_left}" if names else f"all {n_left}"
        types = (
            f"{', '.join(names) or 'no'} weight types tested; {others} are tested while edgechat is idle, "
            "before a model needs them, or by another `edgechat doctor`"
        )
    else:
        types = f"{'all other' if device['failed'] or unsupported else 'all'} weight types tested"
    if unsupported:
        types += f"; {', '.join(unsupported)} not supported on this GPU, computed on the CPU"
    memory = f"; {format_size(device['allocated_bytes'])} allocated" if device["allocated_bytes"] else ""
    speed = f"; {'not used: ' if device['is_slower'] else ''}{device['speed']}" if device["speed"] else ""
    unmeasured = ", ".join(TENSOR_TYPES[number].name for number in device["unmeasured_types"] if number in TENSOR_TYPES)
    speed += f"; its speed with {unmeasured} could not be measured" if unmeasured else ""
    failed = f"; not used for models with {device['failed']}" if device["failed"] else ""
    return f"{text}; {types}{failed}{memory}{speed}"
