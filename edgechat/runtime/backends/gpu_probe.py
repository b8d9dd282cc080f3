"""Self-tests of GPU modules, one child process for each device, before the engine loads the modules.

A driver compiles a kernel for each weight type, which can take minutes for all of them. So a device is first tested
with the types of the model that is about to be loaded; the verdict grows when another model needs further types.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.hardware.contention import AwakeClock
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import gpu_absence, gpu_speeds, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.gpu_device_test import (
    ALL,
    Demand,
    IsCancelled,
    list_failed_types,
    list_missing_types,
    test_device,
)
from edgechat.runtime.backends.gpu_merging import combine_devices, merge_verdicts
from edgechat.runtime.backends.probe import OnProgress
from edgechat.runtime.backends.verdicts import DeviceVerdict, FailedType, Verdict

_MAX_DEVICES: Final = 16
# Factor by which a model must be larger than the memory that was tested before memory is tested again.
_MEMORY_STEP: Final = 1.25


def check_gpu_modules(
    bundle: Bundle,
    cpu_module: BackendModule,
    on_progress: OnProgress = lambda status: None,
    demand: Demand = ALL,
    model_path: str = "",
    is_cancelled: IsCancelled = lambda: False,
) -> list[tuple[BackendModule, Verdict]]:
    """Return the GPU modules and their verdicts; `cpu_module` computes operations that a GPU module does not implement.

    A module on which the engine failed with the model at `model_path` is distrusted.
    Tests what `demand` asks for and no earlier test has covered, until `is_cancelled`. After a module of a kind (such
    as CUDA) has passed, other modules of that kind are skipped, because they would list the same devices. So is the
    Vulkan module after a module for the same GPUs.
    """
    if not bundle.gpu_modules:
        return []
    results: list[tuple[BackendModule, Verdict]] = []
    for module in bundle.gpu_modules:
        usable = [other.name for other, verdict in results if verdict.is_usable]
        if module.name not in usable and not (module.name == "vulkan" and usable):
            verdict = _load_or_test(bundle, module, cpu_module, on_progress, demand, model_path, is_cancelled)
            results.append((module, verdict))
    return results


def find_usable_devices(
    results: Sequence[tuple[BackendModule, Verdict]],
) -> dict[str, tuple[BackendModule, DeviceVerdict]]:
    """Return the usable devices with their modules and verdicts, by llama.cpp's name."""
    return {
        device.name: (module, device) for module, verdict in results if verdict.is_usable
        for device in verdict.devices if device.is_usable
    }  # fmt: skip


def list_excluded_devices(results: Sequence[tuple[BackendModule, Verdict]]) -> list[str]:
    """Return the names of devices that must not be used although another device of their module works."""
    return [d.name for _, verdict in results if verdict.is_usable for d in verdict.devices if not d.is_usable]


def find_failed_devices(results: Sequence[tuple[BackendModule, Verdict]], types: Collection[int]) -> dict[str, str]:
    """Return the usable devices that must not be used with the weight types `types`, and the reason for each.

    Their driver failed with one of the types or does not support it, or their test ended before it came to it.
    """
    reasons = {}
    for name, (_, device) in find_usable_devices(results).items():
        if failed := list_failed_types(device, types):
            reasons[name] = f"{device.description} is not used for a model with {describe_failed_types(failed)}"
        elif unsupported := sorted(set(device.unsupported_types).intersection(types)):
            names = ", ".join(map(_find_type_name, unsupported))
            reasons[name] = (
                f"{device.description} is not used for a model with {names} weights, which it does not support"
            )
        elif missing := list_missing_types(device, Demand(types=tuple(types))):
            names = ", ".join(_find_type_name(number) for number in missing)
            reasons[name] = f"{device.description} is not used, because it is not tested yet with {names} weights"
    return reasons


def describe_failed_types(failed_types: Sequence[FailedType]) -> str:
    """Return the names of weight types and why each failed, as a phrase."""
    return "; ".join(
        f"{_find_type_name(failed.type_id)} weights, because its test {failed.reason}" for failed in failed_types
    )


def _find_type_name(number: int) -> str:
    return TENSOR_TYPES[number].name if number in TENSOR_TYPES else str(number)


def _load_or_test(
    bundle: Bundle, module: BackendModule, cpu_module: BackendModule, on_progress: OnProgress, demand: Demand,
    model_path: str, is_cancelled: IsCancelled,
) -> Verdict:  # fmt: skip
    """Return the cached verdict of a module, extended by tests of what `demand` asks for and it does not cover."""
    if not Path(module.path).is_file():
        return Verdict(
            module=module.name, status="missing", reason=f"its file is missing. Install the module again: {module.path}"
        )
    key = gpu_absence.compute_key(bundle, module)
    verdict = verdicts.load_verdict(key, model_path)
    is_tested = verdict is None or any(_lacks(device, demand) for device in verdict.devices)
    # Before a test after a crash with the model, what an earlier test refused stays refused.
    known = verdicts.load_saved_verdict(key) if verdict is None else verdict
    if verdict is not None and not is_tested:
        new = verdict
    else:
        earlier = known.devices if known is not None else ()
        new = _test_devices(module, cpu_module, on_progress, demand, earlier, is_cancelled, tests_again=verdict is None)
    types = demand.types or ()
    if new.is_usable and any(gpu_speeds.list_unmeasured_types(device, types) for device in new.devices):
        on_progress(f"Measuring the speed of the backend {module.name}")
        devices = (gpu_speeds.measure(module, cpu_module, n, device, types) for n, device in enumerate(new.devices))
        new = msgspec.structs.replace(new, devices=tuple(devices))
    if new.status == "untested" or new == verdict:  # an earlier verdict still holds for what it covers
        return new
    # Without the types of the model, a test cannot end the distrust after a crash.
    merged = verdicts.save_verdict(
        key, new, model_path, is_tested=is_tested and demand.types != (), merge=merge_verdicts
    )
    if not new.devices:
        return new
    # A device that could not be tested now must not be used, although it keeps an earlier verdict.
    pairs = zip(new.devices, merged.devices, strict=True)
    found = [device if device.status == "untested" else saved for device, saved in pairs]
    return combine_devices(module.name, found, new.checks, new.elapsed_s)


def record_failure(bundle: Bundle, cause: str, model_path: str, module_path: str = "") -> None:
    """Record a failure of the engine on a GPU, which makes the module distrusted for the model.

    `cause` describes the failure, such as a signal. The module in use is at `module_path`; if that is "", it is the
    first usable one. Clients of the same engine record its failure only once.
    """
    if find_distrust(bundle, model_path, module_path):
        return
    for module in _list_modules(bundle, module_path):
        key = gpu_absence.compute_key(bundle, module)
        verdict = verdicts.load_verdict(key)
        if verdict is not None and verdict.is_usable:
            verdicts.record_engine_crash(key, module.name, cause, model_path, causes_distrust=True)
            return


def find_distrust(bundle: Bundle, model_path: str, module_path: str = "") -> str:
    """Return why the GPU module at `module_path` is distrusted for the model at `model_path`; "" if it is not.

    If `module_path` is "", any GPU module counts.
    """
    modules = _list_modules(bundle, module_path)
    found = (verdicts.load_verdict(gpu_absence.compute_key(bundle, module), model_path) for module in modules)
    return next((v.reason for v in found if v is not None and v.status == "distrusted"), "")


def is_refused(bundle: Bundle, module_path: str, devices: Collection[str], types: Collection[int]) -> bool:
    """Return whether a test has refused one of `devices` of the GPU module at `module_path`, or one of the `types`.

    If `module_path` is "", any GPU module counts. A device without a verdict is not refused: a load tests it.
    """
    found = (verdicts.load_verdict(gpu_absence.compute_key(bundle, m)) for m in _list_modules(bundle, module_path))
    tested = [device for verdict in found if verdict is not None for device in verdict.devices]
    return any(
        device.status not in {"passed", "untested"} or list_failed_types(device, types)
        for device in tested if device.name in devices
    )  # fmt: skip


def find_type_problem(bundle: Bundle, devices: Collection[tuple[str, str]], types: Collection[int]) -> str:
    """Return why weights of `types` must not be placed on one of `devices`, as a sentence; "" if they may.

    Each device is the path of its module and its name. Only saved verdicts are read; what has none is not tested.
    """
    for module_path, name in devices:
        found = [
            (m, verdicts.load_verdict(gpu_absence.compute_key(bundle, m))) for m in _list_modules(bundle, module_path)
        ]
        results = [(module, verdict) for module, verdict in found if verdict is not None]
        if name not in find_usable_devices(results):
            return f"{name} is not used, because it is not tested"
        if problem := find_failed_devices(results, types).get(name):
            return problem
    return ""


def _list_modules(bundle: Bundle, module_path: str) -> list[BackendModule]:
    """Return the GPU module at `module_path`; all GPU modules if that is ""."""
    return [module for module in bundle.gpu_modules if module_path in {"", module.path}]


def _lacks(device: DeviceVerdict, demand: Demand) -> bool:
    """Return whether a device that may be usable has not been tested for what `demand` asks for.

    A device that cannot be used with one of the types needs no further test for the model.
    """
    return device.status == "untested" or (
        device.is_usable
        and not list_failed_types(device, demand.types or ())
        and (bool(list_missing_types(device, demand) != ()) or demand.n_bytes > _MEMORY_STEP * device.asked_bytes)
    )


def _test_devices(
    module: BackendModule, cpu_module: BackendModule, on_progress: OnProgress, demand: Demand,
    earlier: Sequence[DeviceVerdict], is_cancelled: IsCancelled, *, tests_again: bool,
) -> Verdict:  # fmt: skip
    """Test each device of a module that `earlier` does not already reject or cover.

    With `tests_again`, usable devices are tested as if they had no verdict, except with types that failed.
    """
    clock = AwakeClock()
    n_devices, n_checks = max(1, len(earlier)), 0
    devices: list[DeviceVerdict] = []
    while len(devices) < min(n_devices, _MAX_DEVICES):
        previous = earlier[len(devices)] if len(devices) < len(earlier) else None
        if previous is not None and tests_again and previous.is_usable:
            previous = msgspec.structs.replace(previous, types=())
        elif previous is not None and not _lacks(previous, demand):
            devices.append(previous)
            continue
        if previous is not None and previous.status == "untested":
            previous = None
        number = len(devices)
        report, device = test_device(module, cpu_module, on_progress, demand, number, previous, is_cancelled)
        n_checks += report.n_checks
        if report.device:
            n_devices = int(report.device[0])
        elif not devices:  # the module cannot be loaded, or crashes before it names its first device
            return Verdict(module.name, device.status, device.reason, report.n_checks, round(clock.read(), 3))
        devices.append(device)
    return combine_devices(module.name, devices, n_checks, round(clock.read(), 3))
