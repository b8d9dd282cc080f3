"""GPUs on which an engine process places models, with a scripted backend."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from edgechat.engine import inspector, protocol
from edgechat.engine.inspector import ModelInspector
from edgechat.engine.server import EngineServer
from edgechat.errors import PlanError, RuntimeLoadError
from edgechat.hardware.gpu import Gpu
from edgechat.planner.load_plan import make_manual_plan
from edgechat.planner.memory import LoadOptions
from edgechat.runtime import bindings
from edgechat.runtime.backends import gpu_probe, kernel_benchmark, probe
from edgechat.runtime.backends.bundle import BackendModule
from edgechat.runtime.backends.gpu_device_test import Demand
from edgechat.runtime.backends.verdicts import DeviceVerdict, FailedType, Verdict

NAMES = ("Vulkan0", "Vulkan1", "Vulkan2")


@pytest.fixture
def excluded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Devices that the backend of three devices excludes; `Vulkan2` has failed its test."""
    names: list[str] = []

    def exclude(loaded: object, new_names: Sequence[str]) -> None:
        names[:] = new_names

    devices = tuple(
        DeviceVerdict(
            name=name, description=name, kind="discrete", status="wrong" if name == "Vulkan2" else "passed", reason=""
        )
        for name in NAMES
    )
    module = BackendModule("vulkan", "/bundle/libggml-vulkan.so")
    verdict = Verdict("vulkan", "passed", "", devices=devices)
    monkeypatch.setattr(inspector, "find_bundle", lambda: None)
    monkeypatch.setattr(probe, "choose_module", lambda *_: (BackendModule("cpu-x64", ""), None))
    monkeypatch.setattr(gpu_probe, "check_gpu_modules", lambda *_: [(module, verdict)])
    monkeypatch.setattr(bindings, "load", lambda *_: SimpleNamespace())
    monkeypatch.setattr(bindings, "exclude_devices", exclude)
    monkeypatch.setattr(inspector, "list_gpu_names", lambda _: [name for name in NAMES if name not in names])
    return names


def test_new_process_uses_only_the_gpus_of_the_plan(excluded: list[str]) -> None:
    ModelInspector(lambda event: None).load_backend(1, "m.gguf")
    assert excluded == ["Vulkan2"]
    loaded = ModelInspector(lambda event: None)
    loaded.load_backend(1, "m.gguf", ["Vulkan1", "Vulkan2"])
    assert excluded == ["Vulkan0", "Vulkan2"]
    loaded.load_backend(2, "other.gguf", ["Vulkan0"])
    assert excluded == ["Vulkan1", "Vulkan2"]
    loaded.load_backend(3)
    assert excluded == ["Vulkan1", "Vulkan2"]


def test_memory_is_estimated_on_the_gpus_of_the_plan(excluded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a new process, for which nobody has listed the GPUs."""
    inspected = ModelInspector(lambda event: None)
    monkeypatch.setattr(inspected._memory_estimator, "estimate", lambda *_: {})
    options = LoadOptions(n_ctx=64, n_seqs=1, n_gpu_layers=9)
    inspected.execute(protocol.ProbeMemory(id=1, model_path="m.gguf", options=options, devices=["Vulkan1"]))
    assert excluded == ["Vulkan0", "Vulkan2"]


def test_load_on_a_gpu_that_is_refused_or_missing_is_an_error(excluded: list[str]) -> None:
    """llama.cpp would place the model on the CPU, and the plan and the user would know nothing of it."""
    server = EngineServer()
    server._inspector = ModelInspector(lambda event: None)
    gpus = tuple(Gpu(name="GPU", total_bytes=1, free_bytes=1, device=device) for device in ("Vulkan1", "Vulkan2"))
    plan = make_manual_plan("m.gguf", n_threads=1, n_ctx=64, n_gpu_layers=9, gpus=gpus)
    with pytest.raises(PlanError, match="Vulkan2 cannot be used any more: it has"):
        server._load(protocol.Load(id=1, plan=plan))


def test_weights_of_the_drafter_are_tested_after_those_of_the_model(
    excluded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    demands: list[tuple[int, ...] | None] = []
    module = BackendModule("vulkan", "/bundle/libggml-vulkan.so")
    device = DeviceVerdict(name="Vulkan0", description="GPU", kind="discrete", status="passed", reason="", types=(2,))

    def check(_bundle: object, _module: object, _report: object, demand: Demand, *_: object) -> Any:
        demands.append(demand.types)
        if demand.types == (3,):  # the driver crashes with this type
            failed = (FailedType(3, "crashed"),)
            return [(module, Verdict("vulkan", "passed", "", devices=(structs.replace(device, failed_types=failed),)))]
        return [(module, Verdict("vulkan", "passed", "", devices=(device,)))]

    monkeypatch.setattr(gpu_probe, "check_gpu_modules", check)
    monkeypatch.setattr(kernel_benchmark, "load_speeds", lambda *_: None)
    monkeypatch.setattr(inspector, "list_gpus", lambda *_: [Gpu(name="GPU", total_bytes=1, free_bytes=1)])
    request = protocol.ListDevices(id=1, n_weights={2: 1}, drafter_types=[3])
    listed: Any = ModelInspector(lambda event: None).execute(request)
    assert demands[:2] == [(2,), (3,)]
    assert listed.problems == []
    assert "Vulkan0" not in excluded, "the model itself can use the GPU"


def test_load_names_the_gpus_of_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[object] = []

    def load_backend(request_id: int, model_path: str, devices: Sequence[str]) -> Any:
        named.append(devices)
        raise RuntimeLoadError("no backend")

    server = EngineServer()
    monkeypatch.setattr(server._inspector, "load_backend", load_backend)
    gpus = tuple(Gpu(name="GPU", total_bytes=1, free_bytes=1, device=device) for device in ("Vulkan1", ""))
    plan = make_manual_plan("m.gguf", n_threads=1, n_ctx=64, n_gpu_layers=9, gpus=gpus)
    with pytest.raises(RuntimeLoadError):
        server._load(protocol.Load(id=1, plan=plan))
    assert named == [["Vulkan1"]]
