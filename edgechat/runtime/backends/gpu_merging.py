"""Union of two verdicts of a GPU module: the result of a test, and what other processes saved while it ran."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgechat.hardware.gpu import GpuSpeeds
from edgechat.runtime.backends.verdicts import DeviceVerdict, Verdict


def combine_devices(module: str, devices: Sequence[DeviceVerdict], n_checks: int, elapsed_s: float) -> Verdict:
    """Return the verdict of a module, which is usable if one of its devices is."""
    status = min(devices, key=lambda device: (not device.is_usable, device.status == "untested")).status
    reasons = [d.reason if len(devices) == 1 else f"{d.name} ({d.description}): {d.reason}" for d in devices]
    return Verdict(module, status, "; ".join(reasons), n_checks, elapsed_s, tuple(devices))


def merge_verdicts(newest: Verdict, new: Verdict) -> Verdict:
    """Return the verdict to be saved after a test with the result `new`; `newest` is the saved one.

    A device that `newest` refuses stays refused. Of a device that is right in both, the tested types and the speeds are
    united. A device that could not be tested keeps its earlier result.
    """
    if not newest.devices or not new.devices:
        return new
    n_known = len(newest.devices)
    devices = [
        _merge_devices(newest.devices[number], device) if number < n_known else device
        for number, device in enumerate(new.devices)
    ]
    return combine_devices(new.module, devices, new.checks, new.elapsed_s)


def _merge_devices(newest: DeviceVerdict, new: DeviceVerdict) -> DeviceVerdict:
    if newest.name != new.name or newest.status == "untested":
        return new
    if not newest.is_usable or new.status == "untested":
        return newest
    if not new.is_usable:
        return new
    failures = (*newest.failed_types, *new.failed_types)
    final = {failed.type_id: failed for failed in failures if failed.is_final}
    # A type that failed beside a loaded model can have been tested again.
    unclear = {f.type_id: f for f in failures if not (_is_right(newest, f.type_id) or _is_right(new, f.type_id))}
    rates = {rates.type_id: rates for rates in (*newest.speeds.rates, *new.speeds.rates)}
    unmeasured_types = {*newest.unmeasured_types, *new.unmeasured_types} - rates.keys()
    return msgspec.structs.replace(
        new,
        types=None if newest.types is None or new.types is None
        else tuple(sorted({*newest.types, *new.types} - final.keys())),
        failed_types=tuple((unclear | final).values()),
        unsupported_types=tuple(sorted({*newest.unsupported_types, *new.unsupported_types})),
        allocated_bytes=max(newest.allocated_bytes, new.allocated_bytes),
        asked_bytes=max(newest.asked_bytes, new.asked_bytes),
        speeds=GpuSpeeds(
            rates=tuple(rates.values()),
            copied_bytes_per_s=max(newest.speeds.copied_bytes_per_s, new.speeds.copied_bytes_per_s),
        ),
        unmeasured_types=tuple(sorted(unmeasured_types)),
        unmeasured_at=new.unmeasured_at if new.unmeasured_types else newest.unmeasured_at,
    )  # fmt: skip


def _is_right(device: DeviceVerdict, type_id: int) -> bool:
    """Return whether a weight type was tested on a device and is right."""
    if device.types is None:
        return all(failed.type_id != type_id for failed in device.failed_types)
    return type_id in device.types
