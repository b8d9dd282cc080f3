"""Requests that need no loaded model: memory estimates, devices, and quantisation types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgechat.engine import protocol
from edgechat.runtime import bindings, quantize
from edgechat.runtime.backends import kernel_benchmark, probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.memory_report import MemoryEstimator, devices

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
        self._native: bindings.Bindings | None = None

    def load_backend(self, request_id: int) -> bindings.Bindings:
        """Load the best working backend, once per process. Sends BackendTesting and BackendChosen.

        Raises RuntimeLoadError if no backend works on this machine.
        """
        if self._native is not None:
            return self._native
        bundle = find_bundle()
        on_progress = self._progress_callback(request_id)
        module, _ = probe.choose_module(bundle, on_progress)
        gpus = [gpu for gpu, verdict in probe.gpu_module_verdicts(bundle, module, on_progress) if verdict.is_usable]
        self.backend = module.name
        self._send(protocol.BackendChosen(id=request_id, backend=module.name))
        self._native = bindings.load(bundle, module, gpus)
        return self._native

    def execute(self, request: InspectionRequest) -> protocol.Event:
        """Execute a request and return its final event. Raises EdgechatError."""
        if isinstance(request, protocol.ListDevices):
            return self._list_devices(request)
        native = self.load_backend(request.id)
        if isinstance(request, protocol.ListQuantTypes):
            types = quantize.quantized_types(native.edgechat, request.model, request.preset)
            return protocol.QuantTypesListed(id=request.id, types=types)
        memory = self._memory_estimator.estimate(native, Path(request.model_path), request.options)
        return protocol.MemoryProbed(id=request.id, backend=self.backend, memory=memory)

    def close_model(self) -> None:
        """Free the model of the last ProbeMemory request."""
        self._memory_estimator.close()

    def _list_devices(self, request: protocol.ListDevices) -> protocol.DevicesListed:
        bundle = find_bundle()
        on_progress = self._progress_callback(request.id)
        module, _ = probe.choose_module(bundle, on_progress)
        speeds = kernel_benchmark.load_speeds(bundle, module)
        if request.benchmark and (speeds is None or request.remeasure):
            speeds = kernel_benchmark.measure_speeds(bundle, module, on_progress)
        verdicts = probe.gpu_module_verdicts(bundle, module, on_progress)
        # A bundle for many machines contains modules for devices that most machines lack: do not report these modules.
        problems = [
            f"{gpu.name}: {verdict.reason}"
            for gpu, verdict in verdicts
            if not verdict.is_usable and verdict.status not in {"refused", "missing"}
        ]
        gpus = devices(self.load_backend(request.id)) if any(verdict.is_usable for _, verdict in verdicts) else []
        return protocol.DevicesListed(id=request.id, backend=module.name, gpus=gpus, speeds=speeds, problems=problems)

    def _progress_callback(self, request_id: int) -> Callable[[str], None]:
        return lambda message: self._send(protocol.BackendTesting(id=request_id, message=message))
