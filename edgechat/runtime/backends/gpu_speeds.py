"""Speeds of GPUs beside the CPU: their measurement in a child process, and which devices are slower with a model."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.hardware.cpu import count_usable_threads
from edgechat.hardware.gpu import PREFILL_COLUMNS, GpuSpeeds, TypeRates
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import BackendModule
from edgechat.runtime.backends.verdicts import DeviceVerdict, Verdict

MAX_COMPILE_S: Final = 120.0
"""Processor time without output that a driver may take to compile a kernel."""
STALL_TIMEOUT_S: Final = 20.0
"""Time without output and processor time after which a driver hangs. Mesa's driver for the CPU, the slowest compiler,
took 15 s for a kernel on a busy machine."""
_TIMEOUT_S: Final = 60.0
# Time until a failed measurement is repeated.
_RETRY_S: Final = 86_400.0
# Type of buffer in CPU memory in which weights have the layout of the file.
_PLAIN_BUFFER: Final = "CPU"
# Set by tests whose device computes on the CPU and must be used nevertheless.
_IGNORE_SPEED_VARIABLE: Final = "EDGECHAT_TEST_IGNORE_GPU_SPEED"


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
            slow[device.name] = f"{device.description} is not used: {text}"
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
    if is_slower:
        text = (
            f"slower than the CPU in prefill ({tps['prefill']} against {tps['cpu_prefill']} tokens/s) and decoding "
            f"({tps['decode']} against {tps['cpu_decode']} tokens/s), with a billion weights in {names}"
        )
    else:
        text = (
            f"prefill {tps['prefill']} and decoding {tps['decode']} tokens/s with a billion weights in {names}; the "
            f"CPU {tps['cpu_prefill']} and {tps['cpu_decode']}"
        )
    return is_slower, text


def list_unmeasured_types(device: DeviceVerdict, types: Sequence[int]) -> list[int]:
    """Return those of the weight types `types` whose speed on a usable device must be measured now.

    A type whose measurement failed is due again after a day, because other programs can be the reason.
    """
    failed = {failed.type_id for failed in device.failed_types}
    if not device.is_usable or not failed.isdisjoint(types) or os.environ.get(_IGNORE_SPEED_VARIABLE):
        return []
    known = {rates.type_id for rates in device.speeds.rates if rates.is_complete}
    # A time in the future was recorded with a wrong clock.
    if device.unmeasured_at <= time.time() < device.unmeasured_at + _RETRY_S:
        known |= set(device.unmeasured_types)
    return sorted(set(types) - known - set(device.unsupported_types))


def measure(
    module: BackendModule, cpu_module: BackendModule, number: int, device: DeviceVerdict, types: Sequence[int]
) -> DeviceVerdict:
    """Return the verdict with the speeds of those of the weight types `types` that were not measured yet.

    Measures in a child process of its own, so that a failure does not make the device unusable.
    """
    missing = list_unmeasured_types(device, types)
    # One of the types can be the reason of an earlier failure, so they are then measured alone.
    has_failed = not set(missing).isdisjoint(device.unmeasured_types)
    for group in [[type_id] for type_id in missing] if has_failed else [missing]:
        if group:
            device = _measure_together(module, cpu_module, number, device, group)
    return device


def _measure_together(
    module: BackendModule, cpu_module: BackendModule, number: int, device: DeviceVerdict, types: Sequence[int]
) -> DeviceVerdict:
    """Return the verdict with the speeds of `types`, measured in one child process."""
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
        "_selftest", module.path, str(n_threads), str(int(probe.BUSY_FACTOR * _TIMEOUT_S)), cpu_module.path,
        str(number), " ".join(map(str, types)), "0", "0", str(n_threads),
    ]  # fmt: skip
    probe.run_child(
        Path(cpu_module.path).parent, arguments, read_line, n_threads=n_threads, timeout_s=_TIMEOUT_S,
        stall_timeout_s=STALL_TIMEOUT_S, max_compile_s=MAX_COMPILE_S,
    )  # fmt: skip
    rates = [
        TypeRates(
            type_id=type_id, decode=speeds.get((name, "gpu", 1), 0.0),
            prefill=speeds.get((name, "gpu", PREFILL_COLUMNS), 0.0), cpu_decode=speeds.get((name, "cpu", 1), 0.0),
            cpu_prefill=speeds.get((name, "cpu", PREFILL_COLUMNS), 0.0),
            cpu_plain_decode=speeds.get((name, _PLAIN_BUFFER, 1), 0.0),
        )
        for type_id in types if type_id in TENSOR_TYPES for name in (TENSOR_TYPES[type_id].name,)
    ]  # fmt: skip
    copied_bytes_per_s = max(speeds.get(("COPY", "gpu", 1), 0.0), device.speeds.copied_bytes_per_s)
    measured = {r.type_id: r for r in (*device.speeds.rates, *rates) if r.is_complete}
    unmeasured = {*device.unmeasured_types, *types} - measured.keys()
    return msgspec.structs.replace(
        device, speeds=GpuSpeeds(rates=tuple(measured.values()), copied_bytes_per_s=copied_bytes_per_s),
        unmeasured_types=tuple(sorted(unmeasured)),
        unmeasured_at=device.unmeasured_at if unmeasured.isdisjoint(types) else time.time(),
    )  # fmt: skip
