"""What an engine can be asked before it has a model: how large one would be, what there is to compute with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgechat.engine import protocol
from edgechat.runtime import bindings, quantize
from edgechat.runtime.backends import kernel_benchmark, probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.memory_report import MemoryEstimator, devices

Question = protocol.ProbeMemory | protocol.ListDevices | protocol.ListQuantTypes


class ModelInspector:
    """Owns the backend's module once it is loaded. All methods are for the thread that works."""

    def __init__(self, send: Callable[[protocol.Event], None]) -> None:
        self.backend = ""
        """The module that computes; "" before the first request that needs one."""
        self._send = send
        self._sizes = MemoryEstimator()
        self._native: bindings.Bindings | None = None

    def load_backend(self, request_id: int) -> bindings.Bindings:
        """The backend that works here, loaded; says on the way what is being tried. Raises RuntimeLoadError."""
        if self._native is not None:
            return self._native
        bundle = find_bundle()
        tell = self._tell(request_id)
        module, _ = probe.choose_module(bundle, tell)
        gpus = [gpu for gpu, verdict in probe.gpu_module_verdicts(bundle, module, tell) if verdict.is_usable]
        self.backend = module.name
        self._send(protocol.BackendChosen(id=request_id, backend=module.name))
        self._native = bindings.load(bundle, module, gpus)
        return self._native

    def answer(self, question: Question) -> protocol.Event:
        """Raises EdgechatError."""
        if isinstance(question, protocol.ListDevices):
            return self._devices(question)
        native = self.load_backend(question.id)
        if isinstance(question, protocol.ListQuantTypes):
            found = quantize.quantized_types(native.edgechat, question.model, question.preset)
            return protocol.QuantTypesListed(id=question.id, types=found)
        sizes = self._sizes.estimate(native, Path(question.model_path), question.options)
        return protocol.MemoryProbed(id=question.id, backend=self.backend, memory=sizes)

    def close_model(self) -> None:
        """Let go of the model that sizes were asked of."""
        self._sizes.close()

    def _devices(self, question: protocol.ListDevices) -> protocol.DevicesListed:
        bundle = find_bundle()
        tell = self._tell(question.id)
        module, _ = probe.choose_module(bundle, tell)
        found = kernel_benchmark.load_speeds(bundle, module)
        if question.benchmark and (found is None or question.remeasure):  # in a process of its own
            found = kernel_benchmark.measure_speeds(bundle, module, tell)
        judged = probe.gpu_module_verdicts(bundle, module, tell)
        # A build for many machines has modules for devices that most of them lack.
        problems = [
            f"{gpu.name}: {verdict.reason}"
            for gpu, verdict in judged
            if not verdict.is_usable and verdict.status not in {"refused", "missing"}
        ]
        gpus = devices(self.load_backend(question.id)) if any(verdict.is_usable for _, verdict in judged) else []
        return protocol.DevicesListed(id=question.id, backend=module.name, gpus=gpus, speeds=found, problems=problems)

    def _tell(self, request_id: int) -> Callable[[str], None]:
        return lambda words: self._send(protocol.BackendTesting(id=request_id, message=words))
