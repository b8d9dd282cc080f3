"""Execution of the requests that need no loaded model: ProbeMemory, ListDevices and ListQuantTypes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from edgechat.engine import protocol
from edgechat.errors import BackendMismatchError, PlanError
from edgechat.runtime import bindings, quantize
from edgechat.runtime.backends import gpu_probe, gpu_speeds, kernel_benchmark, probe, verdicts
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.gpu_device_test import Demand
from edgechat.runtime.memory_report import MemoryEstimator, list_gpu_names, list_gpus

InspectionRequest = protocol.ProbeMemory | protocol.ListDevices | protocol.ListQuantTypes


class ModelInspector:
    """Chooses and loads the backend, and executes the requests that need no loaded model.

    All methods must be called on the decoding thread.
    """

    def __init__(self, send: Callable[[protocol.Event], None]) -> None:
        self.backend = ""
        """Name of the loaded backend module; "" before `load_backend`."""
        self._send = send
        self._memory_estimator = MemoryEstimator()
        self._bindings: bindings.Bindings | None = None

    def load_backend(self, request_id: int, model_path: str = "", devices: Collection[str] = ()) -> bindings.Bindings:
        """Load the best working backend for the model at `model_path` on the first call; return its bindings.

        `devices` names the GPUs on which models may be placed from now on, as llama.cpp does; without names, an earlier
        list stays. Sends BackendTesting and BackendChosen. Raises RuntimeLoadError if no backend works on this machine.
        """
        if self._bindings is not None:
            if devices:
                _use_devices(self._bindings, devices)
            return self._bindings
        bundle = find_bundle()
        on_progress = self._make_progress_callback(request_id)
        module, _ = probe.choose_module(bundle, on_progress, model_path)
        gpu_verdicts = gpu_probe.check_gpu_modules(bundle, module, on_progress, Demand(), model_path)
        gpus = [gpu for gpu, verdict in gpu_verdicts if verdict.is_usable]
        self.backend = module.name
        self._send(protocol.BackendChosen(id=request_id, backend=module.name))
        self._bindings = bindings.load(bundle, module, gpus)
        refused = gpu_probe.list_excluded_devices(gpu_verdicts)
        if devices:  # another process may have tested them with the weights of the model
            _use_devices(self._bindings, set(devices).difference(refused))
        else:
            bindings.exclude_devices(self._bindings, refused)
        return self._bindings

    def check_devices(self, names: Collection[str]) -> None:
        """Raise PlanError if models cannot be placed on one of the GPUs `names`; llama.cpp would use the CPU."""
        available = list_gpu_names(self._bindings) if self._bindings is not None else []
        if missing := sorted(set(names).difference(available)):
            names = " and ".join(missing)
            state = "it has failed or is missing" if len(missing) == 1 else "they have failed or are missing"
            raise PlanError(f"{names} cannot be used any more: {state}.")

    def check_backend(self, request_id: int, model_path: str) -> None:
        """Raise BackendMismatchError if the loaded backend is not the best working one for the model."""
        if not self.backend or not verdicts.has_crash_records():
            return
        module, _ = probe.choose_module(find_bundle(), self._make_progress_callback(request_id), model_path)
        if module.name != self.backend:
            raise BackendMismatchError(
                f"This model needs the backend {module.name}, but {self.backend} is loaded. Restart edgechat."
            )

    def execute(self, request: InspectionRequest) -> protocol.Event:
        """Execute a request and return its final event. Raises EdgechatError."""
        if isinstance(request, protocol.ListDevices):
            return self._list_devices(request)
        if isinstance(request, protocol.ListQuantTypes):
            loaded_bindings = self.load_backend(request.id)
            ggml_types = quantize.choose_quant_types(loaded_bindings.edgechat, request.model, request.preset)
            return protocol.QuantTypesListed(id=request.id, ggml_types=ggml_types)
        loaded_bindings = self.load_backend(request.id, request.model_path, request.devices)
        memory = self._memory_estimator.estimate(loaded_bindings, Path(request.model_path), request.options)
        return protocol.MemoryProbed(id=request.id, backend=self.backend, memory=memory)

    def close_model(self) -> None:
        """Free the model that the last ProbeMemory request opened."""
        self._memory_estimator.close()

    def _list_devices(self, request: protocol.ListDevices) -> protocol.DevicesListed:
        bundle = find_bundle()
        on_progress = self._make_progress_callback(request.id)
        module, _ = probe.choose_module(bundle, on_progress)
        speeds = kernel_benchmark.load_speeds(bundle, module)
        if request.benchmark and (request.remeasure or kernel_benchmark.needs_measurement(speeds)):
            speeds = kernel_benchmark.measure_speeds(bundle, module, on_progress) or speeds
        demand = Demand(types=tuple(sorted(request.n_weights)), n_bytes=request.n_bytes)
        gpu_verdicts = gpu_probe.check_gpu_modules(bundle, module, on_progress, demand, request.model_path)
        if request.drafter_types and any(verdict.is_usable for _, verdict in gpu_verdicts):
            demand = Demand(types=tuple(request.drafter_types))
            later = gpu_probe.check_gpu_modules(bundle, module, on_progress, demand, request.model_path)
            # A device that could not be tested now can still be used.
            states = {verdict.status for _, verdict in later}
            states |= {device.status for _, verdict in later for device in verdict.devices}
            gpu_verdicts = gpu_verdicts if "untested" in states else later
        # The bundle contains modules for devices that most machines lack; a missing device is not a problem to report.
        problems = [
            f"{gpu.name}: {verdict.reason}"
            for gpu, verdict in gpu_verdicts
            if not verdict.is_usable and verdict.status not in {"refused", "missing"}
        ]
        slow = gpu_speeds.find_slow_devices(gpu_verdicts, request.n_weights)
        failed = gpu_probe.find_failed_devices(gpu_verdicts, request.n_weights)
        problems += failed.values()
        gpus = []
        if any(verdict.is_usable for _, verdict in gpu_verdicts):
            loaded_bindings = self.load_backend(request.id, request.model_path)
            devices = gpu_probe.find_usable_devices(gpu_verdicts)
            # A module that was loaded for another model can be distrusted for this one.
            _use_devices(loaded_bindings, devices.keys() - slow.keys() - failed.keys())
            gpus = list_gpus(
                loaded_bindings, {name: device.speeds for name, (_, device) in devices.items()},
                {name: module.path for name, (module, _) in devices.items()},
            )  # fmt: skip
        return protocol.DevicesListed(
            id=request.id, backend=module.name, gpus=gpus, speeds=speeds, problems=problems,
            slow_gpus=list(slow.values()),
        )  # fmt: skip

    def _make_progress_callback(self, request_id: int) -> Callable[[str], None]:
        return lambda message: self._send(protocol.BackendTesting(id=request_id, message=message))


def _use_devices(loaded_bindings: bindings.Bindings, names: Collection[str]) -> None:
    """Exclude the GPUs of the loaded modules that are not in `names`."""
    bindings.exclude_devices(loaded_bindings, [])
    excluded = [name for name in list_gpu_names(loaded_bindings) if name not in names]
    bindings.exclude_devices(loaded_bindings, excluded)
