"""Self-tests of GPU modules, one child process for each device, before the engine loads the modules.

A driver compiles a kernel for each weight type, which can take minutes for all of them. So a device is first tested
with the types of the model that is about to be loaded; the verdict grows when another model needs further types.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgechat.hardware.contention import AwakeClock
from edgechat.hardware.cpu import count_usable_threads
from edgechat.hardware.gpu import PREFILL_COLUMNS, GpuSpeeds, TypeRates
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import gpu_absence, probe, verdicts
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.backends.probe import OnProgress, SelftestReport
from edgechat.runtime.backends.verdicts import DeviceVerdict, Verdict

# Limits of a test: in total, without output and CPU time, and CPU time without output. Mesa's driver for the CPU, the
# slowest compiler, took 15 s for a kernel on a busy machine.
_TIMEOUT_S: Final = 600.0
_STALL_TIMEOUT_S: Final = 20.0
_MAX_COMPILE_S: Final = 120.0
_MAX_DEVICES: Final = 16
_SPEED_TIMEOUT_S: Final = 60.0
# Type of buffer in CPU memory in which weights have the layout of the file.
_PLAIN_BUFFER: Final = "CPU"
# Set by tests whose device computes on the CPU and must be used nevertheless.
_IGNORE_SPEED_VARIABLE: Final = "EDGECHAT_TEST_IGNORE_GPU_SPEED"
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


def list_excluded_devices(results: Sequence[tuple[BackendModule, Verdict]]) -> list[str]:
    """Return the names of devices that must not be used although another device of their module works."""
    return [d.name for _, verdict in results if verdict.is_usable for d in verdict.devices if not d.is_usable]


def find_slow_devices(results: Sequence[tuple[BackendModule, Verdict]], n_weights: Mapping[int, int]) -> dict[str, str]:
    """Return the usable devices that are slower than the CPU with a model, and the reason for each.

    `n_weights` is the number of weights of each type; if it is empty, all measured types count the same. A device
    whose speed was not measured is not slow. Empty if all devices are slow: the load plan decides about a single one,
    whereas the layers of a model would be divided among all devices.
    """
    devices = [d for _, verdict in results if verdict.is_usable for d in verdict.devices if d.is_usable]
    slow = {}
    for device in devices:
        is_slower, text = describe_speed(device, n_weights)
        if is_slower:
            slow[device.name] = f"{device.description} is left alone, because the CPU is faster: {text}"
    return slow if len(slow) < len(devices) else {}


def describe_speed(device: DeviceVerdict, n_weights: Mapping[int, int] | None = None) -> tuple[bool, str]:
    """Return whether a device is slower than the CPU in prefill and in decoding, and both speeds as text.

    The text is "" if the speeds were not measured. `n_weights` is the number of weights of each type; by default, all
    measured types count the same. The speeds are those of a model with a billion weights.
    """
    rates = [r for r in device.speeds.rates if r.is_complete]
    pairs = [(r, n_weights.get(r.type_id, 0) if n_weights else 1) for r in rates]
    total = sum(count for _, count in pairs)
    if not total:
        return False, ""
    token_s = {
        name: sum(n / getattr(r, name) for r, n in pairs) / total * 1e9 / (PREFILL_COLUMNS if "prefill" in name else 1)
        for name in ("prefill", "decode", "cpu_prefill", "cpu_decode")
    }
    is_slower = token_s["prefill"] >= token_s["cpu_prefill"] and token_s["decode"] >= token_s["cpu_decode"]
    names = ", ".join(TENSOR_TYPES[r.type_id].name for r, n in pairs if n and r.type_id in TENSOR_TYPES)
    tps = {name: f"{1 / seconds:.3g}" for name, seconds in token_s.items()}
    text = (
        f"prefill {tps['prefill']} and decoding {tps['decode']} tokens/s with a billion weights in {names}; the CPU "
        f"{tps['cpu_prefill']} and {tps['cpu_decode']}"
    )
    return is_slower, text


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
    if new.is_usable and any(_list_unmeasured_types(device, demand) for device in new.devices):
        on_progress(f"Measuring the speed of the backend {module.name}")
        devices = (_measure(module, cpu_module, n, device, demand) for n, device in enumerate(new.devices))
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


def record_failure(bundle: Bundle, cause: str, model_path: str) -> None:
    """Record a failure of the engine on a GPU, which makes the module distrusted for the model.

    `cause` describes the failure, such as a signal. Clients of the same engine record its failure only once.
    """
    if is_distrusted(bundle, model_path):
        return
    for module in bundle.gpu_modules:
        key = gpu_absence.compute_key(bundle, module)
        verdict = verdicts.load_verdict(key)
        if verdict is not None and verdict.is_usable:
            verdicts.record_engine_crash(key, module.name, cause, model_path, causes_distrust=True)
            return


def is_distrusted(bundle: Bundle, model_path: str) -> bool:
    """Return whether a GPU module is distrusted for the model at `model_path`, which was to use it."""
    distrusted = verdicts.list_distrusted_modules(model_path)
    return any(module.name in distrusted for module in bundle.gpu_modules)


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


def _list_unmeasured_types(device: DeviceVerdict, demand: Demand) -> list[int]:
    """Return the types of `demand` whose speed on a usable device must still be measured."""
    if not device.is_usable or os.environ.get(_IGNORE_SPEED_VARIABLE):
        return []
    return sorted(set(demand.types or ()) - {rates.type_id for rates in device.speeds.rates})


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
        stall_timeout_s=_STALL_TIMEOUT_S, max_compile_s=_MAX_COMPILE_S, is_cancelled=is_cancelled,
    )  # fmt: skip
    status, reason = probe.interpret_report(module, report, result, clock.read(), _STALL_TIMEOUT_S)
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


def _measure(
    module: BackendModule, cpu_module: BackendModule, number: int, device: DeviceVerdict, demand: Demand
) -> DeviceVerdict:
    """Return the verdict with the speeds of the types of `demand` that were not measured yet.

    Measures in a child process of its own, so that a failure does not make the device unusable.
    """
    missing = _list_unmeasured_types(device, demand)
    if not missing:
        return device
    speeds: dict[tuple[str, str, int], float] = {}

    def read_line(line: str) -> None:
        kind, *values = line.rstrip("\n").split("\t")
        if kind == "speed" and len(values) == 4:  # noqa: PLR2004
            name, buffer_type, batch, rate = values
            where = "gpu" if buffer_type.startswith(device.name) else "cpu"
            for place in {where, buffer_type}:
                key = (name.upper(), place, int(batch))
                speeds[key] = max(speeds.get(key, 0.0), float(rate))

    n_threads = count_usable_threads()
    arguments = [
        "_selftest", module.path, str(n_threads), str(int(probe.BUSY_FACTOR * _SPEED_TIMEOUT_S)), cpu_module.path,
        str(number), " ".join(map(str, missing)), "0", "0", str(n_threads),
    ]  # fmt: skip
    probe.run_child(
        Path(cpu_module.path).parent, arguments, read_line, n_threads=n_threads, timeout_s=_SPEED_TIMEOUT_S,
        stall_timeout_s=_STALL_TIMEOUT_S, max_compile_s=_MAX_COMPILE_S,
    )  # fmt: skip
    rates = [
        TypeRates(
            type_id=type_id, decode=speeds.get((name, "gpu", 1), 0.0),
            prefill=speeds.get((name, "gpu", PREFILL_COLUMNS), 0.0), cpu_decode=speeds.get((name, "cpu", 1), 0.0),
            cpu_prefill=speeds.get((name, "cpu", PREFILL_COLUMNS), 0.0),
            cpu_plain_decode=speeds.get((name, _PLAIN_BUFFER, 1), 0.0),
        )
        for type_id in missing if type_id in TENSOR_TYPES for name in (TENSOR_TYPES[type_id].name,)
    ]  # fmt: skip
    copied_bytes_per_s = max(speeds.get(("COPY", "gpu", 1), 0.0), device.speeds.copied_bytes_per_s)
    measured = GpuSpeeds(rates=(*device.speeds.rates, *rates), copied_bytes_per_s=copied_bytes_per_s)
    return msgspec.structs.replace(device, speeds=measured)


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
