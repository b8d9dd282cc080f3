"""Self-tests of GPU modules, one child process for each device, before the engine loads the modules.

A driver compiles a kernel for each weight type, which can take minutes for all of them. So a device is first tested
with the types of the model that is about to be loaded; the verdict grows when another model needs further types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgechat.hardware.contention import AwakeClock
from edgechat.hardware.cpu import count_usable_threads
from edgechat.hardware.gpu import GpuSpeeds
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import gpu_absence, gpu_speeds, probe, verdicts
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.backends.gpu_speeds import MAX_COMPILE_S, STALL_TIMEOUT_S
from edgechat.runtime.backends.probe import OnProgress, SelftestReport
from edgechat.runtime.backends.verdicts import DeviceVerdict, Verdict

_TIMEOUT_S: Final = 600.0
_MAX_DEVICES: Final = 16
# Factor by which a model must be larger than the memory that was tested before memory is tested again.
_MEMORY_STEP: Final = 1.25


class Demand(msgspec.Struct, frozen=True):
    """What the next model needs from a device."""

    types: tuple[int, ...] | None = ()
    """Weight types, as ggml's numbers; None for all."""
    n_bytes: int = 0
    """Memory on the device that is allocated, written and read back."""


ALL: Final = Demand(types=None)


def check_gpu_modules(
    bundle: Bundle,
    cpu_module: BackendModule,
    on_progress: OnProgress = lambda status: None,
    demand: Demand = ALL,
    model_path: str = "",
) -> list[tuple[BackendModule, Verdict]]:
    """Return the GPU modules and their verdicts; `cpu_module` computes operations that a GPU module does not implement.

    A module on which the engine failed with the model at `model_path` is distrusted.
    Tests what `demand` asks for and no earlier test has covered. After a module of a kind (such as CUDA) has passed,
    other modules of that kind are skipped, because they would list the same devices. So is the Vulkan module after a
    module for the same GPUs.
    """
    if not bundle.gpu_modules:
        return []
    results: list[tuple[BackendModule, Verdict]] = []
    for module in bundle.gpu_modules:
        usable = [other.name for other, verdict in results if verdict.is_usable]
        if module.name not in usable and not (module.name == "vulkan" and usable):
            results.append((module, _load_or_test(bundle, module, cpu_module, on_progress, demand, model_path)))
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


def _load_or_test(
    bundle: Bundle, module: BackendModule, cpu_module: BackendModule, on_progress: OnProgress, demand: Demand,
    model_path: str,
) -> Verdict:  # fmt: skip
    """Return the cached verdict of a module, extended by tests of what `demand` asks for and it does not cover."""
    if not Path(module.path).is_file():
        return Verdict(module=module.name, status="missing", reason=f"{module.path} is missing. {INSTALL_HINT}")
    key = gpu_absence.compute_key(bundle, module)
    verdict = verdicts.load_verdict(key, model_path)
    if verdict is not None and not any(_lacks(device, demand) for device in verdict.devices):
        new = verdict
    else:
        earlier = {} if verdict is None else {device.name: device for device in verdict.devices}
        new = _test_devices(module, cpu_module, on_progress, demand, earlier)
    types = demand.types or ()
    if new.is_usable and any(gpu_speeds.list_unmeasured_types(device, types) for device in new.devices):
        on_progress(f"Measuring the speed of the backend {module.name}")
        devices = (gpu_speeds.measure(module, cpu_module, n, device, types) for n, device in enumerate(new.devices))
        new = msgspec.structs.replace(new, devices=tuple(devices))
    if new.status != "untested" and new != verdict:  # an earlier verdict still holds for what it covers
        verdicts.save_verdict(key, new)
    return new


def test_unused_types(bundle: Bundle, cpu_module: BackendModule, is_cancelled: Callable[[], bool]) -> None:
    """Test the weight types that no model has needed yet on all usable devices, until `is_cancelled`; save the results.

    Only right and wrong numbers count. Other failures can be due to the memory that a loaded model takes, and are left
    to the test before the next use. Raises RuntimeLoadError if edgechat was upgraded.
    """
    demand = Demand(types=tuple(sorted(TENSOR_TYPES)))
    for module in bundle.gpu_modules:
        key = gpu_absence.compute_key(bundle, module)
        verdict = verdicts.load_verdict(key)
        if verdict is None or not verdict.is_usable:
            continue
        for number, device in enumerate(verdict.devices):
            if is_cancelled() or not _lacks(device, demand):
                continue
            report, tested = _test_device(
                module, cpu_module, lambda status: None, demand, number, device, is_cancelled
            )  # fmt: skip
            if tested.is_usable or tested.status == "wrong":
                devices = [*verdict.devices[:number], tested, *verdict.devices[number + 1 :]]
                verdict = _combine(module, devices, verdict.checks + report.n_checks, verdict.elapsed_s)
                verdicts.save_verdict(key, verdict)


def record_failure(bundle: Bundle, cause: str, model_path: str, module_path: str = "") -> None:
    """Record a failure of the engine on a GPU, which makes the module distrusted for the model.

    `cause` describes the failure, such as a signal. The module in use is at `module_path`; if that is "", it is the
    first usable one. Clients of the same engine record its failure only once.
    """
    if is_distrusted(bundle, model_path, module_path):
        return
    for module in _list_modules(bundle, module_path):
        key = gpu_absence.compute_key(bundle, module)
        verdict = verdicts.load_verdict(key)
        if verdict is not None and verdict.is_usable:
            verdicts.record_engine_crash(key, module.name, cause, model_path, causes_distrust=True)
            return


def is_distrusted(bundle: Bundle, model_path: str, module_path: str = "") -> bool:
    """Return whether the GPU module at `module_path` is distrusted for the model at `model_path`.

    If `module_path` is "", any GPU module counts.
    """
    modules = _list_modules(bundle, module_path)
    found = (verdicts.load_verdict(gpu_absence.compute_key(bundle, module), model_path) for module in modules)
    return any(verdict is not None and verdict.status == "distrusted" for verdict in found)


def _list_modules(bundle: Bundle, module_path: str) -> list[BackendModule]:
    """Return the GPU module at `module_path`; all GPU modules if that is ""."""
    return [module for module in bundle.gpu_modules if module_path in {"", module.path}]


def _lacks(device: DeviceVerdict, demand: Demand) -> bool:
    """Return whether the verdict of a usable device does not cover what `demand` asks for."""
    return device.is_usable and (
        bool(_list_missing_types(device, demand) != ()) or demand.n_bytes > _MEMORY_STEP * device.asked_bytes
    )


def _list_missing_types(device: DeviceVerdict | None, demand: Demand) -> tuple[int, ...] | None:
    """Return the types that must still be tested; None for all."""
    if device is None:
        return demand.types
    if device.types is None:
        return ()
    return None if demand.types is None else tuple(sorted(set(demand.types) - set(device.types)))


def _test_devices(
    module: BackendModule, cpu_module: BackendModule, on_progress: OnProgress, demand: Demand,
    earlier: dict[str, DeviceVerdict],
) -> Verdict:  # fmt: skip
    """Test each device of a module that `earlier` does not already reject or cover."""
    clock = AwakeClock()
    known = list(earlier.values())
    n_devices, n_checks = max(1, len(known)), 0
    devices: list[DeviceVerdict] = []
    while len(devices) < min(n_devices, _MAX_DEVICES):
        previous = known[len(devices)] if known else None
        if previous is not None and not _lacks(previous, demand):
            devices.append(previous)
            continue
        report, device = _test_device(module, cpu_module, on_progress, demand, len(devices), previous)
        n_checks += report.n_checks
        if report.device:
            n_devices = int(report.device[0])
        elif not devices:  # the module cannot be loaded, or crashes before it names its first device
            return Verdict(module.name, device.status, device.reason, report.n_checks, round(clock.read(), 3))
        devices.append(device)
    return _combine(module, devices, n_checks, round(clock.read(), 3))


def _combine(module: BackendModule, devices: Sequence[DeviceVerdict], n_checks: int, elapsed_s: float) -> Verdict:
    """Return the verdict of a module, which is usable if one of its devices is."""
    status = next((d.status for d in devices if d.is_usable), devices[0].status)
    reasons = [d.reason if len(devices) == 1 else f"{d.name} ({d.description}): {d.reason}" for d in devices]
    return Verdict(module.name, status, "; ".join(reasons), n_checks, elapsed_s, tuple(devices))


def _test_device(
    module: BackendModule, cpu_module: BackendModule, on_progress: OnProgress, demand: Demand, number: int,
    previous: DeviceVerdict | None, is_cancelled: Callable[[], bool] = lambda: False,
) -> tuple[SelftestReport, DeviceVerdict]:  # fmt: skip
    """Test one device in a child process; return the child's report, and the verdict together with `previous`."""
    report, clock = SelftestReport(), AwakeClock()
    types = _list_missing_types(previous, demand)

    shown = ""

    def read_line(line: str) -> None:
        nonlocal shown
        report.read_line(line)
        stage = report.stage.partition(" in ")[0]  # a product is tested in several batch sizes
        if stage != shown:
            shown = stage
            on_progress(f"Testing the backend {module.name}: {stage}")

    n_threads = min(probe.MAX_SELFTEST_THREADS, count_usable_threads())
    is_first = previous is None
    arguments = [
        "_selftest", module.path, str(n_threads), str(int(probe.BUSY_FACTOR * _TIMEOUT_S)), cpu_module.path,
        str(number), "all" if types is None else " ".join(map(str, types)), str(demand.n_bytes),
        str(int(is_first)), "0",
    ]  # fmt: skip
    # A GPU module can come from another package. The libraries that it needs are in the bundle of the CPU module.
    result = probe.run_child(
        Path(cpu_module.path).parent, arguments, read_line, n_threads=n_threads, timeout_s=_TIMEOUT_S,
        stall_timeout_s=STALL_TIMEOUT_S, max_compile_s=MAX_COMPILE_S, is_cancelled=is_cancelled,
    )  # fmt: skip
    status, reason = probe.interpret_report(module, report, result, clock.read(), STALL_TIMEOUT_S)
    # A type that the module cannot multiply is as good as tested.
    covered = [*report.types, *(types or () if report.is_done else ())]
    tested = _add_types(previous, covered, has_all=types is None and report.is_done)
    if result.was_killed and (not result.was_stalled or types is None) and not report.failures and report.types:
        # The time is over, not the patience, or a driver compiles the kernel of a type for minutes that no model needs
        # now: what was tested so far is right, and the rest follows before its use.
        status, reason = (
            "passed",
            f"passed {report.n_checks} checks; {len(report.types)} weight types are tested so far, not {report.stage}",
        )
    _, name, description, kind = report.device if len(report.device) == 4 else ("", f"device {number}", "", "")  # noqa: PLR2004
    physical = next((p for p in report.physical_devices if len(p) == 3 and p[2] == description), None)  # noqa: PLR2004
    return report, DeviceVerdict(
        name=name, description=description, kind=_find_kind(kind, physical), driver=physical[1] if physical else "",
        status=status, reason=reason, types=tested,
        allocated_bytes=max(report.allocated_bytes, previous.allocated_bytes if previous else 0),
        asked_bytes=max(demand.n_bytes, previous.asked_bytes if previous else 0),
        speeds=previous.speeds if previous else GpuSpeeds(),
    )  # fmt: skip


def _add_types(previous: DeviceVerdict | None, new_types: Sequence[int], *, has_all: bool) -> tuple[int, ...] | None:
    if has_all or (previous is not None and previous.types is None):
        return None
    return tuple(sorted({*(previous.types or () if previous is not None else ()), *new_types}))


def _find_kind(
    kind: str, physical: tuple[str, ...] | None
) -> Literal["discrete", "integrated", "virtual", "cpu", "other"]:
    """Return the kind of a device: as the driver says, or else as ggml says."""
    for name in ("discrete", "integrated", "virtual", "cpu"):
        if physical is not None and physical[0] == name:
            return name
    return {"gpu": "discrete", "igpu": "integrated"}.get(kind, "other")  # type: ignore[return-value]
