"""Tests of all weight types of a GPU by `edgechat doctor`, with scripted child processes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from edgechat.cli.doctor import _make_backend_object
from edgechat.cli.doctor_gpus import describe_device
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import gpu_probe, gpu_type_tests, probe
from edgechat.runtime.backends.bundle import Bundle
from edgechat.runtime.backends.gpu_device_test import Demand
from edgechat.runtime.backends.probe import ChildResult
from edgechat.runtime.backends.verdicts import DeviceVerdict, Verdict
from tests.unit.runtime.backends.test_gpu_probe import (
    BF16,
    CPU_MODULE,
    CRASHED,
    Q4_0,
    Q4_K,
    Q6_K,
    Q8_0,
    STALLED,
    Products,
    bundle,
)

__all__ = ["bundle"]  # fixture

RunTests = Callable[..., Verdict]


@pytest.fixture
def run_tests(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> RunTests:
    def run(
        products: Products, needed: Collection[int] = (), is_cancelled: Callable[[], bool] = lambda: False
    ) -> Verdict:
        monkeypatch.setattr(probe, "run_child", products.run_child)
        [(_, verdict)] = gpu_type_tests.test_all_types(
            bundle, CPU_MODULE, needed, lambda status: None, is_cancelled
        )  # fmt: skip
        return verdict

    return run


class Cancellable(Products):
    """Script of a test that is ended when it comes to the weight type `last`."""

    def __init__(self, last: int) -> None:
        super().__init__({last: ChildResult(was_killed=True, exit_code=-9, was_cancelled=True)})
        self.is_cancelled = False

    def run_child(
        self, directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object
    ) -> ChildResult:
        result = super().run_child(directory, arguments, on_line, **limits)
        self.is_cancelled |= result.was_cancelled
        return result


def list_failures(device: DeviceVerdict) -> list[tuple[int, bool]]:
    return [(failed.type_id, failed.is_final) for failed in device.failed_types]


def test_types_of_installed_models_are_tested_first_and_each_type_once(run_tests: RunTests) -> None:
    products = Products({})
    for _ in range(2):
        verdict = run_tests(products, [Q4_K, Q8_0])
        assert verdict.is_usable
        assert set(verdict.devices[0].types or ()) == TENSOR_TYPES.keys()
    assert products.calls == [[], [Q8_0, Q4_K], sorted(TENSOR_TYPES.keys() - {Q8_0, Q4_K})]
    assert products.decodes == [True, False, False]


def test_ended_test_keeps_the_types_so_far_and_continues_there(run_tests: RunTests) -> None:
    products = Cancellable(Q6_K)
    verdict = run_tests(products, [Q4_K, Q6_K, BF16], lambda: products.is_cancelled)
    assert (verdict.status, verdict.devices[0].types, verdict.devices[0].failed_types) == ("passed", (Q4_K,), ())
    products.results, products.is_cancelled = {}, False
    run_tests(products, [Q4_K, Q6_K, BF16])
    assert products.calls[2] == [Q6_K, BF16]


def test_ended_first_test_of_a_device_is_no_verdict(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    products = Cancellable(Q4_K)
    monkeypatch.setattr(probe, "run_child", products.run_child)
    demand = Demand(types=(Q4_0, Q4_K))
    [(_, verdict)] = gpu_probe.check_gpu_modules(
        bundle, CPU_MODULE, demand=demand, is_cancelled=lambda: products.is_cancelled
    )
    step = "routed product of q4_k in Vulkan0, batch 4"
    assert (verdict.status, verdict.reason) == ("untested", f"its self-test was ended at step: {step}")
    assert len(products.calls) == 1
    products.results = {}
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=demand)
    assert (verdict.status, products.calls[1]) == ("passed", [Q4_0, Q4_K])


def test_crash_is_due_to_the_type_but_a_hang_only_if_a_model_needs_it(run_tests: RunTests) -> None:
    [device] = run_tests(Products({Q4_0: STALLED, Q6_K: STALLED, BF16: CRASHED}), [Q4_0, Q4_K]).devices
    assert device.is_usable
    assert list_failures(device) == [(Q4_0, True), (Q6_K, False), (BF16, True)]
    assert set(device.types or ()) == TENSOR_TYPES.keys() - {Q4_0, Q6_K, BF16}
    [device] = run_tests(Products({}), [Q6_K]).devices
    assert list_failures(device) == [(Q4_0, True), (BF16, True)]
    assert Q6_K in (device.types or ())


def test_device_that_crashes_with_many_types_is_refused(run_tests: RunTests) -> None:
    products = Products(dict.fromkeys(TENSOR_TYPES, CRASHED))
    verdict = run_tests(products)
    assert verdict.status == "crashed"
    assert verdict.reason.startswith("fails with 4 weight types: crashed with SIGSEGV")
    assert len(products.calls) == 5  # the first one tests no type


class PartialSupport(Products):
    """Script of a module that computes no product with the weight types `unsupported`."""

    def __init__(self, *unsupported: int) -> None:
        super().__init__({})
        self.unsupported = unsupported

    def run_child(
        self, directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object
    ) -> ChildResult:
        names = [f"product of {TENSOR_TYPES[number].name.lower()} in" for number in self.unsupported]

        def on_other_line(line: str) -> None:
            if not any(name in line for name in names):
                on_line(line)

        return super().run_child(directory, arguments, on_other_line, **limits)


@pytest.mark.parametrize("tests_all", [False, True])
def test_type_without_a_kernel_is_not_a_failure_and_left_to_the_cpu(
    bundle: Bundle, run_tests: RunTests, monkeypatch: pytest.MonkeyPatch, *, tests_all: bool
) -> None:
    products = PartialSupport(Q6_K)
    if tests_all:
        [device] = run_tests(products).devices
    monkeypatch.setattr(probe, "run_child", products.run_child)
    results = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_K, Q6_K)))
    [device] = results[0][1].devices
    assert (device.status, device.failed_types, device.unsupported_types) == ("passed", (), (Q6_K,))
    assert device.unmeasured_types == (Q4_K,)  # the script measures nothing
    assert gpu_probe.find_failed_devices(results, {Q4_K}) == {}
    assert gpu_probe.find_failed_devices(results, {Q4_K, Q6_K}) == {
        "Vulkan0": "Graphics 0 is not used for a model with Q6_K weights, which it does not support"
    }
    text = describe_device(_make_backend_object(bundle.gpu_modules[0], results[0][1])["devices"][0])
    assert "; Q6_K not supported on this GPU, computed on the CPU" in text
