"""Kernels of the real Vulkan module for each weight type, on lavapipe, Mesa's driver that computes on the CPU.

The driver compiles the kernels of one type for seconds to minutes, and keeps them in a cache. In `make test-long` the
types are tested from the fastest on until `BUDGET_S` is over; the skips name the types that were left out. In `make
test-exhaustive` all of `ORDER` are tested. docs/platforms.md lists the results.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import gpu_device_test, gpu_probe, probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.gpu_device_test import Demand
from tests.faults.test_vulkan import bundle, check, driver, native, use_lavapipe

__all__ = ["bundle", "driver", "native"]  # fixtures

pytestmark = [
    pytest.mark.long,
    pytest.mark.cold,
    pytest.mark.skipif(sys.platform != "linux", reason="the driver is installed from Debian's packages"),
]
BUDGET_S = 75.0
Q4_K, BF16 = 12, 30
# Types from the one whose kernels lavapipe compiles fastest to the slowest.
ORDER = (
    "Q4_K", "Q5_K", "Q4_1", "Q5_1", "F32", "Q8_0", "Q6_K", "Q4_0", "Q3_K", "Q2_K", "Q5_0", "TQ1_0", "TQ2_0", "Q2_0",
    "Q1_0", "IQ4_XS", "F16", "IQ3_XXS", "MXFP4", "IQ2_XXS", "IQ2_XS", "IQ3_S", "IQ4_NL", "IQ1_M", "IQ1_S",
    "NVFP4", "IQ2_S",
)  # fmt: skip
# BF16, with which lavapipe crashes, has its own test.
# Processor time that the compiler may take for a kernel, in the exhaustive test.
MAX_COMPILE_S = 900.0


@pytest.fixture
def machine(
    driver: dict[str, str], bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch, warm_verdicts: Path
) -> None:
    """A machine whose only GPU is lavapipe, which was not tested yet."""
    use_lavapipe(monkeypatch, driver, bundle, home, warm_verdicts)


@pytest.fixture(scope="module")
def started_s(bundle: Path, driver: dict[str, str]) -> float:
    """Time at which the first type is tested."""
    return time.monotonic()


def check_type(name: str) -> None:
    number = next(number for number, row in TENSOR_TYPES.items() if row.name == name)
    verdict = check(Demand(types=(number,)))
    assert verdict.is_usable, verdict.reason
    [device] = verdict.devices
    assert device.types == (number,)
    assert verdict.checks > 1  # more than the load of the module


@pytest.mark.parametrize("name", ORDER)
def test_kernels_of_a_type_are_right(name: str, started_s: float, machine: None) -> None:
    if time.monotonic() - started_s > BUDGET_S:
        pytest.skip(f"left out: {BUDGET_S:g} s are over; `make test-exhaustive` tests all types")
    check_type(name)


def test_type_that_crashes_the_driver_refuses_only_models_with_it(machine: None) -> None:
    """Mesa 22.3 with LLVM 15 crashes with BF16; a later one may be right."""
    results = gpu_probe.check_gpu_modules(
        find_bundle(), probe.choose_module(find_bundle())[0], demand=Demand(types=(Q4_K, BF16))
    )
    [(_, verdict)] = results
    assert verdict.is_usable, verdict.reason
    [device] = verdict.devices
    failed = gpu_probe.find_failed_devices(results, {Q4_K, BF16})
    assert device.types == ((Q4_K,) if failed else (Q4_K, BF16))
    assert [failure.type_id for failure in device.failed_types] == ([BF16] if failed else [])
    if failed or "LLVM 15." in device.description:
        assert "is not used for a model with BF16 weights" in failed["Vulkan0"]
    assert gpu_probe.find_failed_devices(results, {Q4_K}) == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ORDER)
def test_kernels_of_a_type_are_right_without_a_limit(name: str, machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_device_test, "MAX_COMPILE_S", MAX_COMPILE_S)
    monkeypatch.setattr(gpu_device_test, "_TIMEOUT_S", 2 * MAX_COMPILE_S)
    check_type(name)
