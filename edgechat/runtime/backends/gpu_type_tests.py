"""Tests of the weight types that no model has needed yet, in idle time and by `edgechat doctor`.

Each result is added to the newest saved verdict at once, so that a test can be ended at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import gpu_absence, gpu_probe, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.gpu_device_test import (
    MAX_FAILED_TYPES,
    Demand,
    DeviceTest,
    IsCancelled,
    Work,
    add_types,
    run_test,
)
from edgechat.runtime.backends.gpu_merging import combine_devices
from edgechat.runtime.backends.probe import OnProgress
from edgechat.runtime.backends.verdicts import DeviceVerdict, FailedType, Verdict


def test_all_types(
    bundle: Bundle, cpu_module: BackendModule, needed: Collection[int], on_progress: OnProgress,
    is_cancelled: IsCancelled,
) -> list[tuple[BackendModule, Verdict]]:  # fmt: skip
    """Test all GPU modules until `is_cancelled`; return them with their verdicts.

    The weight types `needed` are tested first. A type with which a driver crashes is not used any more, because no
    model is loaded that could be the reason. Raises RuntimeLoadError if edgechat was upgraded.
    """
    results = gpu_probe.check_gpu_modules(bundle, cpu_module, on_progress, Demand(), is_cancelled=is_cancelled)
    if not any(verdict.is_usable for _, verdict in results):
        return results
    for types in (needed, TENSOR_TYPES):
        _test_modules(bundle, cpu_module, is_cancelled, _TypeTests(types, on_progress, is_needed=types is needed))
    saved = ((module, verdict, gpu_absence.compute_key(bundle, module)) for module, verdict in results)
    return [(m, (verdict.is_usable and verdicts.load_verdict(key)) or verdict) for m, verdict, key in saved]


def test_unused_types(bundle: Bundle, cpu_module: BackendModule, is_cancelled: IsCancelled) -> None:
    """Test the weight types that no model has needed yet on all usable devices, until `is_cancelled`.

    A type with which the test crashes or hangs is left to the test before its next use, because the memory that a
    loaded model takes can be the reason, and the test continues with the others; so are failures that are not due to
    one type. Raises RuntimeLoadError if edgechat was upgraded.
    """
    _test_modules(bundle, cpu_module, is_cancelled, _TypeTests(TENSOR_TYPES, is_beside_model=True))


class _TypeTests(msgspec.Struct, frozen=True):
    """Which weight types are tested, and whether a failure is due to the type."""

    types: Collection[int]
    on_progress: OnProgress = lambda status: None
    is_needed: bool = False
    """Whether models need the types, so that one with which a driver hangs is not used any more."""
    is_beside_model: bool = False
    """Whether a model is loaded, which can be the reason of a failure."""

    def list_missing(self, device: DeviceVerdict) -> list[int]:
        """Return the types that must still be tested."""
        failed = {f.type_id for f in device.failed_types if f.is_final or not self.is_needed}
        return sorted(set(self.types) - {*(device.types or ()), *failed})

    def add_failure(self, newest: DeviceVerdict, test: DeviceTest, failed_type: FailedType) -> DeviceVerdict:
        """Return a verdict with a type that failed; it refuses the device if more than `MAX_FAILED_TYPES` did."""
        is_final = not self.is_beside_model and (self.is_needed or test.status == "crashed")
        others = [other for other in newest.failed_types if other.type_id != failed_type.type_id]
        failures = (*others, msgspec.structs.replace(failed_type, is_final=is_final))
        device = msgspec.structs.replace(newest, failed_types=failures)
        n_final = sum(failure.is_final for failure in failures)
        if n_final <= MAX_FAILED_TYPES:
            return device
        reason = f"fails with {n_final} weight types: {failed_type.reason}"
        return msgspec.structs.replace(device, status=test.status, reason=reason)


def _test_modules(bundle: Bundle, cpu_module: BackendModule, is_cancelled: IsCancelled, tests: _TypeTests) -> None:
    for module in bundle.gpu_modules:
        key = gpu_absence.compute_key(bundle, module)
        verdict = verdicts.load_verdict(key)
        n_devices = len(verdict.devices) if verdict is not None and verdict.is_usable else 0
        for number in range(n_devices):
            for _ in range(MAX_FAILED_TYPES + 1):
                if is_cancelled() or not _test_types(module, cpu_module, key, number, is_cancelled, tests):
                    break


def _test_types(
    module: BackendModule, cpu_module: BackendModule, key: str, number: int, is_cancelled: IsCancelled,
    tests: _TypeTests,
) -> bool:  # fmt: skip
    """Test the missing weight types of a device; return whether one of them failed, so that others may be left."""
    verdict = verdicts.load_verdict(key)
    device = verdict.devices[number] if verdict is not None and number < len(verdict.devices) else None
    if device is None or not device.is_usable or device.types is None:
        return False
    missing = tests.list_missing(device)
    if not missing or len(device.failed_types) > MAX_FAILED_TYPES:
        return False

    def change(change_device: Callable[[DeviceVerdict], DeviceVerdict], n_checks: int = 0) -> None:
        def change_newest(newest: Verdict) -> Verdict:
            devices = list(newest.devices)
            if number >= len(devices) or devices[number].name != device.name or not devices[number].is_usable:
                return newest  # it was tested again meanwhile
            devices[number] = change_device(devices[number])
            return combine_devices(module.name, devices, newest.checks + n_checks, newest.elapsed_s)

        verdicts.change_verdict(key, change_newest)

    def add(types: Sequence[int], *, is_supported: bool = True) -> None:
        unsupported = [] if is_supported else types
        change(
            lambda newest: msgspec.structs.replace(
                newest, types=add_types(newest, types),
                unsupported_types=tuple(sorted({*newest.unsupported_types, *unsupported})),
                failed_types=tuple(failed for failed in newest.failed_types if failed.type_id not in types),
            )
        )  # fmt: skip

    test = run_test(
        module, cpu_module, number, Work(missing), tests.on_progress,
        on_type=lambda type_id, is_supported: add([type_id], is_supported=is_supported), is_cancelled=is_cancelled,
    )  # fmt: skip
    failed_type = None if is_cancelled() else test.failed_type
    if test.status == "passed":
        add(missing)  # also types that the module cannot multiply, which the CPU multiplies
    elif test.status == "wrong":
        change(lambda newest: msgspec.structs.replace(newest, status="wrong", reason=test.reason), test.report.n_checks)
    elif failed_type is not None:
        change(lambda newest: tests.add_failure(newest, test, failed_type))
    return failed_type is not None
