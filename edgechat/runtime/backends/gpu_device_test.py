"""Test of one device of a GPU module in child processes, and what the next model needs from a device.

A driver that crashes or hangs when it computes with one weight type can be right with the others. Wrong numbers are
another matter: they refuse the device, because a fault that changes them seldom concerns only what a test can see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from edgechat.hardware.contention import AwakeClock
from edgechat.hardware.cpu import count_usable_threads
from edgechat.humanize import format_count
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import BackendModule
from edgechat.runtime.backends.gpu_speeds import MAX_COMPILE_S, STALL_TIMEOUT_S
from edgechat.runtime.backends.probe import ChildResult, OnProgress, SelftestReport
from edgechat.runtime.backends.verdicts import DeviceVerdict, FailedType, Status

IsCancelled = Callable[[], bool]
"""Callback that returns True as soon as a test is to be ended."""
MAX_FAILED_TYPES: Final = 3
"""Weight types with which a driver may crash or hang; with more, it is not tested any further."""
_TIMEOUT_S: Final = 600.0
# Name of a step that tests one weight type (native/src/selftest.cpp).
_PRODUCT: Final = re.compile(r"(?:routed )?product of (\S+) in ")


class Demand(msgspec.Struct, frozen=True):
    """What the next model needs from a device."""

    types: tuple[int, ...] | None = ()
    """Weight types, as ggml's numbers; None for all."""
    n_bytes: int = 0
    """Memory on the device that is allocated, written and read back."""


ALL: Final = Demand(types=None)


class Work(NamedTuple):
    """What one child process tests."""

    types: Sequence[int] | None
    """Weight types; None for all."""
    n_bytes: int = 0
    """Memory that is allocated, written and read back."""
    decodes: bool = False
    """Whether a tiny model decodes."""


class DeviceTest(NamedTuple):
    """Result of one child process that tested a device."""

    report: SelftestReport
    result: ChildResult
    status: Status
    reason: str

    @property
    def failed_type(self) -> FailedType | None:
        """Weight type with which the child crashed or hung; None if it did not, or at another step."""
        match = _PRODUCT.match(self.report.stage)
        if match is None or not (self.status == "crashed" or (self.status == "hung" and self.result.was_stalled)):
            return None
        number = next((n for n, row in TENSOR_TYPES.items() if row.name == match[1].upper()), None)
        return None if number is None else FailedType(number, self.reason)


def list_missing_types(device: DeviceVerdict | None, demand: Demand) -> tuple[int, ...] | None:
    """Return the types that must still be tested; None for all.

    Types that failed are not tested again, unless a loaded model may have been the reason.
    """
    if device is None:
        return demand.types
    failed = {failed.type_id: failed.is_final for failed in device.failed_types}
    if demand.types is None and device.types is not None and not failed:
        return None
    wanted = set(TENSOR_TYPES) if demand.types is None else set(demand.types)
    known = set(TENSOR_TYPES) - failed.keys() if device.types is None else set(device.types)
    return tuple(sorted(wanted - known - {type_id for type_id, is_final in failed.items() if is_final}))


def list_failed_types(device: DeviceVerdict, types: Collection[int]) -> list[FailedType]:
    """Return the failures with those of the weight types `types` with which a device must not be used."""
    return [failed for failed in device.failed_types if failed.is_final and failed.type_id in types]


def run_test(
    module: BackendModule, cpu_module: BackendModule, number: int, work: Work,
    on_progress: OnProgress = lambda status: None, *, on_type: Callable[[int, bool], None] = lambda *_: None,
    is_cancelled: IsCancelled = lambda: False,
) -> DeviceTest:  # fmt: skip
    """Test device `number` of a module in a child process.

    `on_type` is called with each type whose numbers are right, and whether the module supports it; `on_progress` before
    each step. Raises
    RuntimeLoadError if edgechat was upgraded.
    """
    report, clock, shown = SelftestReport(), AwakeClock(), ""

    def read_line(line: str) -> None:
        nonlocal shown
        n_types = len(report.types)
        report.read_line(line)
        if len(report.types) > n_types and not report.failures:
            on_type(report.types[-1], report.types[-1] not in report.unsupported_types)
        stage = report.stage.partition(" in ")[0]  # a product is tested in several batch sizes
        if stage != shown:
            shown = stage
            on_progress(f"Testing the backend {module.name}: {stage}")

    n_threads = min(probe.MAX_SELFTEST_THREADS, count_usable_threads())
    arguments = [
        "_selftest", module.path, str(n_threads), str(int(probe.BUSY_FACTOR * _TIMEOUT_S)), cpu_module.path,
        str(number), "all" if work.types is None else " ".join(map(str, work.types)), str(work.n_bytes),
        str(int(work.decodes)), "0",
    ]  # fmt: skip
    # A GPU module can come from another package. The libraries that it needs are in the bundle of the CPU module.
    result = probe.run_child(
        Path(cpu_module.path).parent, arguments, read_line, n_threads=n_threads, timeout_s=_TIMEOUT_S,
        stall_timeout_s=STALL_TIMEOUT_S, max_compile_s=MAX_COMPILE_S, is_cancelled=is_cancelled,
    )  # fmt: skip
    return DeviceTest(
        report, result, *probe.interpret_report(module, report, result, clock.read(), STALL_TIMEOUT_S)
    )  # fmt: skip


def test_device(
    module: BackendModule, cpu_module: BackendModule, on_progress: OnProgress, demand: Demand, number: int,
    previous: DeviceVerdict | None, is_cancelled: IsCancelled,
) -> tuple[SelftestReport, DeviceVerdict]:  # fmt: skip
    """Test what `demand` asks for; return the last child's report with all checks, and the extended verdict.

    A device without a verdict, or with one that covers no type, also decodes with a tiny model. It is `untested` if
    `is_cancelled` ended the test.
    A type with which the child crashes or hangs is left out, and another child tests what is left. A device is not
    usable if more than `MAX_FAILED_TYPES` types fail during one call, or if another step fails.
    """
    clock, n_checks, n_failed, device, note = AwakeClock(), 0, 0, previous, ""
    types, n_bytes = list_missing_types(previous, demand), demand.n_bytes
    decodes = previous is None or previous.types == ()
    while True:
        work = Work(types, n_bytes, decodes)
        test = run_test(module, cpu_module, number, work, on_progress, is_cancelled=is_cancelled)
        report, result = test.report, test.result
        report.n_checks = n_checks = n_checks + report.n_checks
        # A type that the module cannot multiply counts as tested, because the CPU multiplies it.
        covered = [*report.types, *(types or () if report.is_done else ())]
        has_all = demand.types is None and report.is_done and not note
        device = _make_verdict(test, demand, number, device, covered, has_all=has_all)
        if device.is_usable:
            reason = f"passed {n_checks} checks in {clock.read():.1f} s{note}"
            return report, msgspec.structs.replace(device, reason=reason)
        if report.failures or result.was_cancelled:
            return report, device
        # The child made progress until its total time ended, or the driver compiled a kernel for minutes in a test of
        # all types. The types that were tested are right; the others are tested before a model needs them.
        is_late = result.was_killed and (not result.was_stalled or demand.types is None)
        if is_late and report.types:
            note = (
                f"; {format_count(len(device.types or ()), 'weight type')} tested; the test stopped at {report.stage}"
            )
            left: set[int] = set()
        elif (failed := test.failed_type) is not None:
            others = [other for other in device.failed_types if other.type_id != failed.type_id]
            device = msgspec.structs.replace(device, failed_types=(*others, failed))
            n_failed += 1
            if n_failed > MAX_FAILED_TYPES:
                reason = f"fails with {n_failed} weight types: {device.reason}"
                return report, msgspec.structs.replace(device, reason=reason)
            left = set(TENSOR_TYPES if types is None else types) - {*(device.types or ()), failed.type_id}
            left -= {other.type_id for other in others if other.is_final}
        else:
            return report, device
        device = msgspec.structs.replace(device, status="passed", reason=f"passed {n_checks} checks{note}")
        types, n_bytes = tuple(sorted(left)), 0
        if not types and not decodes:
            return report, device


def _make_verdict(
    test: DeviceTest, demand: Demand, number: int, previous: DeviceVerdict | None, covered: Sequence[int], *,
    has_all: bool,
) -> DeviceVerdict:  # fmt: skip
    """Return the verdict of a test together with that of earlier ones; the types `covered` are right."""
    report = test.report
    _, name, description, kind = report.device if len(report.device) == 4 else ("", f"device {number}", "", "")  # noqa: PLR2004
    physical = next((p for p in report.physical_devices if len(p) == 3 and p[2] == description), None)  # noqa: PLR2004
    types = add_types(previous, covered, has_all=has_all)
    verdict = previous or DeviceVerdict(name="", description="", kind="other", status="untested", reason="")
    return msgspec.structs.replace(
        verdict, name=name, description=description, kind=_find_kind(kind, physical),
        driver=physical[1] if physical else "", status=test.status, reason=test.reason, types=types,
        failed_types=tuple(failed for failed in verdict.failed_types if failed.type_id not in covered),
        unsupported_types=tuple(sorted({*verdict.unsupported_types, *report.unsupported_types})),
        allocated_bytes=max(report.allocated_bytes, verdict.allocated_bytes),
        asked_bytes=max(demand.n_bytes, verdict.asked_bytes),
    )  # fmt: skip


def add_types(
    previous: DeviceVerdict | None, new_types: Sequence[int], *, has_all: bool = False
) -> tuple[int, ...] | None:
    """Return the tested types of a verdict together with `new_types`; None for all."""
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
