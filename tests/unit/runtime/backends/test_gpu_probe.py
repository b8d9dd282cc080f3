"""Self-tests of GPU modules by device and weight type, with scripted child processes."""

from __future__ import annotations

import _ctypes
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgechat.hardware import vulkan
from edgechat.hardware.gpu import TypeRates
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.runtime.backends import (
    gpu_absence,
    gpu_merging,
    gpu_probe,
    gpu_speeds,
    gpu_type_tests,
    probe,
    verdicts,
)
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.gpu_device_test import ALL, Demand
from edgechat.runtime.backends.probe import ChildResult
from edgechat.runtime.backends.verdicts import DeviceVerdict, FailedType, Verdict

CPU_MODULE = BackendModule("cpu-x64", "/bundle/libggml-cpu-x64.so")
PASSED = ChildResult(was_killed=False, exit_code=0)
Q4_0, Q8_0, Q4_K, Q6_K, BF16 = 2, 8, 12, 14, 30


CRASHED = ChildResult(was_killed=False, exit_code=-signal.SIGSEGV)
STALLED = ChildResult(was_killed=True, exit_code=-9, was_stalled=True)


class Devices:
    """Script of a module: the outcome of the test of each device, and the arguments of all tests."""

    def __init__(self, *results: ChildResult, types: tuple[int, ...] = (0, 1, Q4_0, Q4_K, Q6_K)) -> None:
        self.results, self.types = results, types
        self.calls: list[tuple[int, str, int, bool]] = []
        self.failures: dict[int, str] = {}
        self.timed: list[str] = []
        self.rates: dict[str, float] = {}
        self.faster = {0: 1.0}
        """Factor of the rates of each device."""
        self.speed_result = PASSED

    def run_child(
        self, directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: float
    ) -> ChildResult:
        device, types, n_bytes, decodes, n_speed_threads = arguments[5:]
        if n_speed_threads != "0":
            self.timed.append(types)
            on_line(f"speed\tcopy\tVulkan{device}\t1\t5e9\n")
            for name, rate in self.rates.items():
                for batch in (1, 256):
                    on_line(f"speed\t{name}\tVulkan{device}\t{batch}\t{rate * batch * self.faster[int(device)]}\n")
                    on_line(f"speed\t{name}\tCPU\t{batch}\t{90 * batch}\n")
                    on_line(f"speed\t{name}\tCPU_REPACK\t{batch}\t{100 * batch}\n")
            return self.speed_result
        self.calls.append((int(device), types, int(n_bytes), decodes == "1"))
        on_line("physical\tintegrated\t8086:1 0x2\tGraphics 0\n")
        on_line("stage\tloading the module\n")
        on_line(f"device\t{len(self.results)}\tVulkan{device}\tGraphics {device}\tgpu\n")
        for number in self.types if types == "all" else types.split():
            on_line(f"stage\tproduct of {number} in Vulkan{device}, batch 1\n")
            on_line(f"type\t{number}\n")
        if int(device) in self.failures:
            on_line(f"fail\t{self.failures[int(device)]}\n")
            return ChildResult(was_killed=False, exit_code=10)
        result = self.results[int(device)] if types else PASSED
        on_line("memory\t1000\n")
        if result == PASSED:
            on_line("done\t4\t0\n")
        return result


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    shutil.copy(_ctypes.__file__, tmp_path / "libggml-vulkan.so")  # a whole library
    monkeypatch.setattr(vulkan, "read_driver_stamp", lambda: "driver 1")
    return Bundle(
        directory=str(tmp_path), build_id="1", llama_cpp_python="", llama_cpp_commit="", compiler="", modules=(),
        gpu_modules=(BackendModule("vulkan", str(tmp_path / "libggml-vulkan.so")),),
    )  # fmt: skip


def check(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, devices: Devices, demand: Demand = ALL) -> Verdict:
    monkeypatch.setattr(probe, "run_child", devices.run_child)
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=demand)
    return verdict


def test_only_types_that_no_earlier_test_covered_are_tested(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED)
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q4_K, Q6_K), n_bytes=500))
    assert (verdict.status, verdict.devices[0].types) == ("passed", (Q4_K, Q6_K))
    assert (verdict.devices[0].kind, verdict.devices[0].driver) == ("integrated", "8086:1 0x2")
    check(bundle, monkeypatch, devices, Demand(types=(Q6_K,), n_bytes=600))
    assert devices.calls == [(0, "12 14", 500, True)]
    check(bundle, monkeypatch, devices, Demand(types=(Q4_0, Q4_K)))
    assert devices.calls[1:] == [(0, "2", 0, False)]
    check(bundle, monkeypatch, devices, Demand(types=(Q4_0, Q4_K), n_bytes=900))  # needs more memory than was tested
    assert devices.calls[2:] == [(0, "", 900, False)]
    assert check(bundle, monkeypatch, devices).devices[0].types is None
    assert devices.calls[3:] == [(0, "all", 0, False)]
    check(bundle, monkeypatch, devices)
    assert len(devices.calls) == 4


def test_new_driver_is_tested_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED)
    check(bundle, monkeypatch, devices)
    monkeypatch.setattr(vulkan, "read_driver_stamp", lambda: "driver 2")
    check(bundle, monkeypatch, devices)
    assert len(devices.calls) == 2


def test_each_device_has_its_own_verdict(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(ChildResult(was_killed=False, exit_code=-signal.SIGSEGV), PASSED, PASSED)
    devices.failures[2] = "product of q4_K in Vulkan2, batch 1: row 0, column 0 is 1, should be 2"
    verdict = check(bundle, monkeypatch, devices)
    assert [device.status for device in verdict.devices] == ["crashed", "passed", "wrong"]
    assert verdict.is_usable
    assert "Vulkan2 (Graphics 2): computes wrong numbers: product of q4_K" in verdict.reason
    results = [(bundle.gpu_modules[0], verdict)]
    assert gpu_probe.list_excluded_devices(results) == ["Vulkan0", "Vulkan2"]
    check(bundle, monkeypatch, devices)
    assert len(devices.calls) == 3


def test_device_that_fails_with_a_later_type_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED)
    assert check(bundle, monkeypatch, devices, Demand(types=(Q4_0,))).is_usable
    devices.failures[0] = "product of q4_K in Vulkan0, batch 4: row 3, column 1 is 1, should be 2"
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q4_K,)))
    assert verdict.status == "wrong"
    assert "row 3, column 1" in verdict.reason
    assert check(bundle, monkeypatch, devices, Demand(types=(Q4_0,))) == verdict
    assert len(devices.calls) == 2


def test_memory_that_other_programs_take_is_not_a_failure(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED)
    devices.failures[0] = "product of q4_0 in Vulkan0, batch 1: its buffer can't be allocated"
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    assert verdict.status == "untested"
    assert verdict.reason.startswith("had no memory for its self-test: product of q4_0")
    failures, devices.failures = devices.failures, {}
    assert check(bundle, monkeypatch, devices, Demand(types=(Q4_0,))).is_usable
    devices.failures = failures
    gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: False)
    assert check(bundle, monkeypatch, devices, Demand(types=(Q4_0,))).is_usable


@pytest.mark.parametrize("is_wrong", [False, True])
def test_only_a_device_that_could_not_be_tested_is_tested_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *, is_wrong: bool
) -> None:
    devices = Devices(PASSED, PASSED)
    devices.failures[0] = "product of q4_0 in Vulkan0, batch 1: its buffer can't be allocated"
    if is_wrong:
        devices.failures[1] = "product of q4_0 in Vulkan1, batch 1: row 0, column 0 is 1, should be 2"
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    status = "wrong" if is_wrong else "passed"
    assert (verdict.status, [device.status for device in verdict.devices]) == (status, ["untested", status])
    devices.failures = {}
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    assert devices.calls[2:] == [(0, "2", 0, True)]
    assert [device.status for device in verdict.devices] == ["passed", status]


def test_slow_compiler_is_not_a_failure(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(ChildResult(was_killed=True, exit_code=-9, was_stalled=False))
    verdict = check(bundle, monkeypatch, devices)
    assert (verdict.status, verdict.devices[0].types) == ("passed", devices.types)
    stalled = Devices(ChildResult(was_killed=True, exit_code=-9, was_stalled=True))
    monkeypatch.setattr(vulkan, "read_driver_stamp", lambda: "driver 2")
    assert check(bundle, monkeypatch, stalled, Demand(types=(Q4_0,))).status == "hung"


def test_device_is_not_used_with_types_that_its_test_did_not_reach(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_child(directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object) -> object:
        on_line("device\t1\tVulkan0\tGraphics 0\tgpu\n")
        if not arguments[6]:  # decodes
            on_line("done\t4\t0\n")
            return PASSED
        on_line("stage\tproduct of q4_0 in Vulkan0, batch 4\n")
        on_line(f"type\t{Q4_0}\n")
        on_line("stage\tproduct of q4_K in Vulkan0, batch 4\n")
        return ChildResult(was_killed=True, exit_code=-9)

    monkeypatch.setattr(probe, "run_child", run_child)
    results = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_0, Q4_K, Q6_K)))
    assert gpu_probe.find_failed_devices(results, {Q4_0, Q4_K, Q6_K}) == {
        "Vulkan0": "Graphics 0 is not used, because it is not tested yet with Q4_K, Q6_K weights"
    }
    assert gpu_probe.find_failed_devices(results, {Q4_0}) == {}
    words = "; 1 weight type tested; the test stopped at product of q4_K in Vulkan0, batch 4"
    assert results[0][1].reason.endswith(words)


def test_slow_kernel_of_a_type_that_no_model_needs_is_not_a_failure(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled = Devices(ChildResult(was_killed=True, exit_code=-9, was_stalled=True))
    verdict = check(bundle, monkeypatch, stalled)
    assert (verdict.status, verdict.devices[0].types) == ("passed", stalled.types)
    assert check(bundle, monkeypatch, stalled, Demand(types=(99,))).status == "hung"


def test_module_that_cannot_be_loaded_is_tested_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    n_calls = []

    def run_child(*arguments: object, **limits: object) -> ChildResult:
        n_calls.append(1)
        return ChildResult(was_killed=False, exit_code=11)

    monkeypatch.setattr(probe, "run_child", run_child)
    for _ in range(2):
        [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE)
        assert (verdict.status, verdict.devices) == ("refused", ())
    assert len(n_calls) == 1
    Path(bundle.gpu_modules[0].path).write_bytes(b"")
    for _ in range(2):
        [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE)
        path = bundle.gpu_modules[0].path
        assert verdict.status == "damaged"
        assert verdict.reason == f"its file is empty (0 bytes). Install the module again: {path}"
    assert len(n_calls) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("refused\tit was built for another version of llama.cpp", "it was built for another version of llama.cpp"),
        ("physical\tcpu\t10005:0000 0x1\tllvmpipe", "no GPU was found: the only driver, llvmpipe, computes on the CPU"),
        ("stage\tloading the module", "no driver or no supported device was found"),
    ],
)
def test_refusal_has_its_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, line: str, reason: str) -> None:
    def run_child(directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object) -> object:
        on_line(f"{line}\n")
        return ChildResult(was_killed=False, exit_code=11)

    monkeypatch.setattr(probe, "run_child", run_child)
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE)
    assert (verdict.status, verdict.reason.startswith("cannot be loaded: ")) == ("refused", True)
    assert verdict.reason.endswith(reason)


def test_vulkan_is_not_used_beside_a_module_for_the_same_gpus(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    devices = Devices(PASSED)
    monkeypatch.setattr(probe, "run_child", devices.run_child)
    (tmp_path / "libggml-cuda.so").write_bytes(b"")
    modules = (BackendModule("cuda", str(tmp_path / "libggml-cuda.so")), *bundle.gpu_modules)
    both = Bundle(
        directory=str(tmp_path), build_id="1", llama_cpp_python="", llama_cpp_commit="", compiler="", modules=(),
        gpu_modules=modules,
    )  # fmt: skip
    assert [module.name for module, _ in gpu_probe.check_gpu_modules(both, CPU_MODULE)] == ["cuda"]


def test_speeds_of_the_types_of_a_model_are_measured_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED)
    devices.rates = {"q4_0": 50.0, "q4_K": 400.0}
    [device] = check(bundle, monkeypatch, devices, Demand(types=(Q4_0, Q4_K))).devices
    assert device.speeds.copied_bytes_per_s == 5e9
    assert [rates.type_id for rates in device.speeds.rates] == [Q4_0, Q4_K]
    assert device.speeds.rates[0] == TypeRates(
        type_id=Q4_0, decode=50, prefill=50 * 256, cpu_decode=100, cpu_prefill=100 * 256, cpu_plain_decode=90
    )
    [device] = check(bundle, monkeypatch, devices, Demand(types=(Q4_0, Q6_K))).devices
    assert devices.timed == ["2 12", "14"]
    assert [rates.type_id for rates in device.speeds.rates] == [Q4_0, Q4_K]
    assert device.unmeasured_types == (Q6_K,)
    check(bundle, monkeypatch, devices)  # tests all types, as `edgechat doctor` does
    [device] = check(bundle, monkeypatch, devices, Demand(types=(Q8_0,))).devices
    assert device.types is None
    assert devices.timed == ["2 12", "14", "8"]
    check(bundle, monkeypatch, devices, Demand(types=(Q8_0,)))
    assert devices.timed == ["2 12", "14", "8"]


def test_only_a_slower_one_of_several_devices_is_not_used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED, PASSED)
    devices.rates, devices.faster = {"q4_0": 50.0, "q4_K": 400.0}, {0: 1.0, 1: 3.0}
    monkeypatch.setattr(probe, "run_child", devices.run_child)
    results = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_0, Q4_K)))
    slow = gpu_speeds.find_slow_devices(results, {Q4_0: 1000, Q4_K: 10})
    assert list(slow) == ["Vulkan0"]
    assert slow["Vulkan0"].startswith("Graphics 0 is not used: slower than the CPU in prefill (")
    assert gpu_speeds.find_slow_devices(results, {Q4_0: 10, Q4_K: 1000}) == {}
    assert gpu_speeds.find_slow_devices(results, {Q6_K: 1000}) == {}  # was not measured
    devices.faster[1] = 1.0
    monkeypatch.setattr(vulkan, "read_driver_stamp", lambda: "driver 2")
    results = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_0,)))
    assert gpu_speeds.find_slow_devices(results, {Q4_0: 1000}) == {}  # the plan decides about all of them
    for device in results[0][1].devices:
        is_slower, text = gpu_speeds.describe_speed(device)
        assert is_slower
        assert text == (
            "slower than the CPU in prefill (0.00328 against 0.00655 tokens/s) and decoding (5e-08 against 1e-07 "
            "tokens/s), with a billion weights in Q4_0"
        )


def test_failed_measurement_does_not_refuse_the_device(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED)
    devices.speed_result = ChildResult(was_killed=False, exit_code=-signal.SIGSEGV)
    monkeypatch.setattr(probe, "run_child", devices.run_child)
    results = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_0,)))
    assert results[0][1].is_usable
    assert gpu_speeds.find_slow_devices(results, {Q4_0: 1000}) == {}


def test_failed_measurement_is_repeated_after_a_day(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    devices = Devices(PASSED)
    devices.speed_result = CRASHED

    def measure() -> DeviceVerdict:
        return check(bundle, monkeypatch, devices, Demand(types=(Q4_0, Q4_K))).devices[0]

    for _ in range(2):
        device = measure()
        assert (device.speeds.rates, device.unmeasured_types) == ((), (Q4_0, Q4_K))
    assert devices.timed == ["2 12"]
    now += 86_401
    devices.speed_result, devices.rates = PASSED, {"q4_0": 50.0}
    device = measure()
    assert devices.timed[1:] == ["2", "12"]  # either may be the reason
    assert [rates.type_id for rates in device.speeds.rates] == [Q4_0]
    assert device.unmeasured_types == (Q4_K,)
    assert measure() == device
    now -= 86_400  # the clock was wrong
    devices.rates = {"q4_K": 50.0}
    assert [rates.type_id for rates in measure().speeds.rates] == [Q4_0, Q4_K]
    assert measure().unmeasured_types == ()
    assert devices.timed[3:] == ["12"]


def test_failure_of_the_engine_makes_the_module_distrusted_for_the_model(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(PASSED)
    check(bundle, monkeypatch, devices)
    assert not gpu_probe.find_distrust(bundle, "/models/bad.gguf")
    for _ in range(2):  # two clients of one engine
        gpu_probe.record_failure(bundle, "SIGSEGV (signal 11)", "/models/bad.gguf")
        [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(), model_path="/models/bad.gguf")
        assert verdict.status == "distrusted"
    assert "not used with bad.gguf: the engine failed on it 1 time" in verdict.reason
    assert gpu_probe.find_distrust(bundle, "/models/bad.gguf")
    assert not gpu_probe.find_distrust(bundle, "/models/good.gguf")
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(), model_path="/models/good.gguf")
    assert verdict.is_usable


def test_test_after_a_crash_keeps_what_was_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    devices = Devices(PASSED, PASSED)
    devices.failures[0] = "product of q4_0 in Vulkan0, batch 1: row 0, column 0 is 1, should be 2"
    check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    failed_type = FailedType(Q6_K, "crashed")

    def add_failed_type(newest: Verdict) -> Verdict:
        wrong, right = newest.devices
        return msgspec.structs.replace(
            newest, devices=(wrong, msgspec.structs.replace(right, failed_types=(failed_type,)))
        )

    verdicts.change_verdict(gpu_absence.compute_key(bundle, bundle.gpu_modules[0]), add_failed_type)
    devices.failures = {}
    gpu_probe.record_failure(bundle, "SIGSEGV (signal 11)", "/models/bad.gguf")
    now += 86_401
    for _ in range(2):
        [(_, verdict)] = gpu_probe.check_gpu_modules(
            bundle, CPU_MODULE, demand=Demand(types=(Q4_0, Q4_K)), model_path="/models/bad.gguf"
        )
        assert devices.calls[2:] == [(1, "2 12", 0, True)]
        assert [device.status for device in verdict.devices] == ["wrong", "passed"]
        assert verdict.devices[1].failed_types == (failed_type,)


@pytest.mark.parametrize("names", [("cuda", "vulkan"), ("cuda13/cuda", "cuda12/cuda")])
def test_failure_is_recorded_for_the_module_in_use(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: tuple[str, str]
) -> None:
    devices = Devices(PASSED)
    monkeypatch.setattr(probe, "run_child", devices.run_child)
    modules = tuple(BackendModule(Path(name).name, str(tmp_path / f"{name}.so")) for name in names)
    for module in modules:
        Path(module.path).parent.mkdir(exist_ok=True)
        Path(module.path).write_bytes(b"")
    both = msgspec.structs.replace(bundle, gpu_modules=modules)

    def find_used(model_path: str) -> list[BackendModule]:
        results = gpu_probe.check_gpu_modules(both, CPU_MODULE, demand=Demand(), model_path=model_path)
        return [module for module, _ in gpu_probe.find_usable_devices(results).values()]

    first, second = modules
    assert find_used("/models/bad.gguf") == [first]
    for _ in range(2):  # two clients of one engine
        gpu_probe.record_failure(both, "SIGSEGV (signal 11)", "/models/bad.gguf", first.path)
        assert find_used("/models/bad.gguf") == [second]
    assert not gpu_probe.find_distrust(both, "/models/bad.gguf", second.path)
    gpu_probe.record_failure(both, "SIGSEGV (signal 11)", "/models/bad.gguf", second.path)
    assert gpu_probe.find_distrust(both, "/models/bad.gguf", second.path)
    assert find_used("/models/bad.gguf") == []
    assert find_used("/models/good.gguf") == [first]


def test_types_that_no_model_uses_are_tested_in_idle_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(PASSED)
    check(bundle, monkeypatch, devices, Demand(types=(Q4_0,), n_bytes=1000))
    gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: False)
    _, (number, types, n_bytes, is_first) = devices.calls
    assert (number, n_bytes, is_first) == (0, 0, False)
    assert set(map(int, types.split())) == TENSOR_TYPES.keys() - {Q4_0}
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q6_K,), n_bytes=1000))
    gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: False)
    assert verdict.is_usable
    assert len(devices.calls) == 2  # nothing is tested twice
    assert verdict.devices[0].asked_bytes == 1000


def test_idle_test_that_a_request_ends_keeps_what_it_has_tested(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = Devices(PASSED)
    check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    is_requested = False

    def run_child(directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object) -> object:
        nonlocal is_requested
        on_line("device\t1\tVulkan0\tGraphics 0\tgpu\n")
        on_line(f"type\t{Q4_K}\n")
        is_requested = True
        return ChildResult(was_killed=True, exit_code=-9)

    monkeypatch.setattr(probe, "run_child", run_child)
    gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: is_requested)
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q4_0, Q4_K)))
    assert verdict.is_usable
    assert verdict.devices[0].types == (Q4_0, Q4_K)
    assert len(devices.calls) == 1


class Products:
    """Script of a module that tests each type, and fails with those in `results`."""

    def __init__(self, results: dict[int, ChildResult]) -> None:
        self.results = results
        self.calls: list[list[int]] = []
        self.decodes: list[bool] = []
        self.on_type: Callable[[int], None] = lambda number: None

    def run_child(
        self, directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object
    ) -> ChildResult:
        types = sorted(TENSOR_TYPES) if arguments[6] == "all" else [int(number) for number in arguments[6].split()]
        self.calls.append(types)
        self.decodes.append(arguments[8] == "1")
        on_line("device\t1\tVulkan0\tGraphics 0\tgpu\n")
        for number in types:
            on_line(f"stage\trouted product of {TENSOR_TYPES[number].name.lower()} in Vulkan0, batch 4\n")
            if number in self.results:
                return self.results[number]
            on_line(f"type\t{number}\n")
            self.on_type(number)
        if arguments[8] == "1":
            on_line("stage\tdecoding one by one\n")
        on_line("done\t4\t0\n")
        return PASSED


@pytest.mark.parametrize("result", [CRASHED, STALLED])
def test_type_that_fails_refuses_only_models_with_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, result: ChildResult
) -> None:
    products = Products({Q4_K: result})
    monkeypatch.setattr(probe, "run_child", products.run_child)
    demand = Demand(types=(Q4_0, Q4_K, Q6_K), n_bytes=1000)
    results = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=demand)
    [device] = results[0][1].devices
    assert (device.status, device.types) == ("passed", (Q4_0, Q6_K))
    assert products.calls == [[Q4_0, Q4_K, Q6_K], [Q6_K]]
    assert gpu_probe.find_failed_devices(results, {Q4_0, Q6_K}) == {}
    failed = gpu_probe.find_failed_devices(results, {Q4_0, Q4_K})
    words = "Graphics 0 is not used for a model with Q4_K weights, because its test "
    assert list(failed) == ["Vulkan0"]
    assert failed["Vulkan0"].startswith(words)
    assert failed["Vulkan0"].endswith("at step: routed product of q4_k in Vulkan0, batch 4")
    gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=demand)
    assert len(products.calls) == 2
    assert gpu_speeds.list_unmeasured_types(device, (Q4_0, Q4_K)) == []
    assert gpu_speeds.list_unmeasured_types(device, (Q4_0, Q6_K)) == [Q4_0, Q6_K]


def test_a_drafter_is_refused_for_types_that_failed_or_were_not_tested(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "run_child", Products({Q4_K: CRASHED}).run_child)
    devices = [(bundle.gpu_modules[0].path, "Vulkan0")]
    assert gpu_probe.find_type_problem(bundle, devices, {Q4_0}) == "Vulkan0 is not used, because it is not tested"
    gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_0,)))
    assert gpu_probe.find_type_problem(bundle, devices, {Q4_0}) == ""
    untested = "Graphics 0 is not used, because it is not tested yet with Q4_K weights"
    assert gpu_probe.find_type_problem(bundle, devices, {Q4_0, Q4_K}) == untested
    gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_K,)))
    failed = "Graphics 0 is not used for a model with Q4_K weights, because its test crashed with SIGSEGV"
    assert gpu_probe.find_type_problem(bundle, devices, {Q4_0, Q4_K}).startswith(failed)
    assert gpu_probe.find_type_problem(bundle, devices, {Q4_0}) == ""


def test_a_test_since_the_load_can_refuse_the_gpu_of_a_plan(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices, module = Devices(PASSED, PASSED), bundle.gpu_modules[0].path

    def is_refused(*names: str, types: tuple[int, ...] = (Q4_0,)) -> bool:
        return gpu_probe.is_refused(bundle, module, names, types)

    assert not is_refused("Vulkan0"), "without a verdict, a load tests"
    check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    assert not is_refused("Vulkan0", "Vulkan1")
    devices.failures[1] = "product\tQ8_0\tVulkan1\twrong"
    check(bundle, monkeypatch, devices, Demand(types=(Q8_0,)))
    assert not is_refused("Vulkan0")
    assert is_refused("Vulkan0", "Vulkan1")
    [key] = [gpu_absence.compute_key(bundle, bundle.gpu_modules[0])]

    def fail(newest: Verdict) -> Verdict:
        failed = [msgspec.structs.replace(d, failed_types=(FailedType(Q4_0, "crashed"),)) for d in newest.devices]
        return msgspec.structs.replace(newest, devices=tuple(failed))

    verdicts.change_verdict(key, fail)
    assert is_refused("Vulkan0")
    assert not is_refused("Vulkan0", types=(Q8_0,))


def test_all_types_are_tested_but_those_that_crash(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    products = Products({BF16: CRASHED, Q4_K: CRASHED})
    monkeypatch.setattr(probe, "run_child", products.run_child)
    for _ in range(2):
        [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE)
        [device] = verdict.devices
        assert (verdict.status, device.types) == ("passed", None)
        assert [failed.type_id for failed in device.failed_types] == [Q4_K, BF16]
    assert [types[0] for types in products.calls] == [0, Q4_K + 1, BF16 + 4]
    assert products.decodes == [True, True, True]


def test_device_that_crashes_with_many_types_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    products = Products(dict.fromkeys(TENSOR_TYPES, CRASHED))
    monkeypatch.setattr(probe, "run_child", products.run_child)
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE)
    assert verdict.status == "crashed"
    assert verdict.reason.startswith("fails with 4 weight types: crashed with SIGSEGV")
    assert len(products.calls) == 4


def test_stall_before_any_type_ends_the_test(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    n_calls = 0

    def run_child(directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object) -> object:
        nonlocal n_calls
        n_calls += 1
        on_line("device\t1\tVulkan0\tGraphics 0\tgpu\n")
        on_line("stage\tallocation of 64 MiB on the device\n")
        return STALLED

    monkeypatch.setattr(probe, "run_child", run_child)
    for demand in (ALL, Demand(types=(Q4_0,))):
        [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=demand)
        assert (verdict.status, n_calls) == ("hung", 1)


def test_type_that_failed_beside_a_loaded_model_is_tested_before_its_use(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = Products({})
    monkeypatch.setattr(probe, "run_child", products.run_child)
    gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_0,)))
    products.results = {Q6_K: CRASHED}
    gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: False)
    products.results = {}
    results = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q6_K,)))
    assert products.calls[-1] == [Q6_K]
    assert results[0][1].devices[0].failed_types == ()
    assert gpu_probe.find_failed_devices(results, {Q6_K}) == {}


@pytest.mark.parametrize("result", [CRASHED, STALLED])
def test_idle_test_leaves_out_a_type_that_fails_and_keeps_the_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, result: ChildResult
) -> None:
    devices, products = Devices(PASSED), Products({Q6_K: result})
    key = gpu_absence.compute_key(bundle, bundle.gpu_modules[0])
    others = TENSOR_TYPES.keys() - {Q4_0, Q6_K}

    def load_device() -> DeviceVerdict:
        verdict = verdicts.load_verdict(key)
        assert verdict is not None
        assert verdict.is_usable
        return verdict.devices[0]

    def check_saved(number: int) -> None:
        assert number in (load_device().types or ())

    check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    monkeypatch.setattr(probe, "run_child", products.run_child)
    products.on_type = check_saved
    for _ in range(2):
        gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: False)
        assert [types[0] for types in products.calls] == [0, Q6_K + 1]
    assert load_device().types == tuple(sorted({Q4_0, *others}))
    [failed_type] = load_device().failed_types
    assert (failed_type.type_id, failed_type.is_final) == (Q6_K, False)
    assert failed_type.reason.endswith("at step: routed product of q6_k in Vulkan0, batch 4")
    check(bundle, monkeypatch, devices, Demand(types=(Q6_K,)))
    assert [call[1] for call in devices.calls] == ["2", "14"]


def test_idle_test_does_not_replace_a_newer_verdict(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    products = Products({})
    check(bundle, monkeypatch, Devices(PASSED), Demand(types=(Q4_0,)))
    key = gpu_absence.compute_key(bundle, bundle.gpu_modules[0])
    device = DeviceVerdict(name="Vulkan0", description="Graphics 0", kind="other", status="wrong", reason="wrong")
    newer = Verdict("vulkan", "wrong", "computes wrong numbers", devices=(device,))

    def test_again(number: int) -> None:
        if number == Q4_K:
            verdicts.save_verdict(key, newer)

    products.on_type = test_again
    monkeypatch.setattr(probe, "run_child", products.run_child)
    gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: False)
    assert len(products.calls) == 1
    assert verdicts.load_verdict(key) == newer


def test_test_keeps_what_another_process_saves_meanwhile(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    products = Products({})
    monkeypatch.setattr(probe, "run_child", products.run_child)
    gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_0,)))
    key = gpu_absence.compute_key(bundle, bundle.gpu_modules[0])
    changes: dict[str, object] = {"types": (Q4_0, Q6_K), "failed_types": (FailedType(BF16, "crashed"),)}

    def save(_number: int) -> None:
        def change(newest: Verdict) -> Verdict:
            devices = [msgspec.structs.replace(device, **changes) for device in newest.devices]
            return gpu_merging.combine_devices(newest.module, devices, newest.checks, newest.elapsed_s)

        verdicts.change_verdict(key, change)

    products.on_type = save
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q4_K,)))
    assert verdict.devices[0].types == (Q4_0, Q4_K, Q6_K)
    assert [failed.type_id for failed in verdict.devices[0].failed_types] == [BF16]
    assert verdicts.load_verdict(key) == verdict
    changes = {"status": "wrong", "reason": "computes wrong numbers"}
    [(_, verdict)] = gpu_probe.check_gpu_modules(bundle, CPU_MODULE, demand=Demand(types=(Q8_0,)))
    assert (verdict.status, verdict.reason) == ("wrong", "computes wrong numbers")
    assert verdicts.load_verdict(key) == verdict


@pytest.mark.parametrize(("exit_code", "is_usable"), [(10, False), (-signal.SIGABRT, True), (1, True)])
def test_only_wrong_numbers_in_idle_time_refuse_a_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, exit_code: int, *, is_usable: bool
) -> None:
    """The memory of the loaded model can be the reason of other failures."""
    devices = Devices(PASSED)
    check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))

    def run_child(directory: Path, arguments: list[str], on_line: Callable[[str], None], **limits: object) -> object:
        on_line("device\t1\tVulkan0\tGraphics 0\tgpu\n")
        on_line("fail\tproduct of q4_K: row 1\n")
        return ChildResult(was_killed=False, exit_code=exit_code)

    monkeypatch.setattr(probe, "run_child", run_child)
    gpu_type_tests.test_unused_types(bundle, CPU_MODULE, lambda: False)
    verdict = check(bundle, monkeypatch, devices, Demand(types=(Q4_0,)))
    assert verdict.is_usable == is_usable
    assert len(devices.calls) == 1
