"""GPU of a benchmark: every layer of the model is put on it, whatever a plan would choose."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgechat.engine.client import EngineClient
from edgechat.errors import UsageError
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models.loading import count_weights
from edgechat.runtime.backends import gpu_probe, probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.gpu_device_test import Demand


class BenchGpu(msgspec.Struct, frozen=True):
    """GPUs on which the engine loads a model, and what a benchmark needs for the same in another program."""

    name: str
    """Names of the GPUs among which llama.cpp divides the layers."""
    module: str
    """Path of the module with their kernels."""
    n_layers: int
    """All layers of the model and the output layer."""


def find_gpu(engine: EngineClient, model: Path) -> BenchGpu:
    """Return the GPUs that passed the self-test for a model, even if they are slower than the CPU.

    Tests them if no test is saved. Raises UsageError without such a GPU, and EdgechatError.
    """
    profile = ModelProfile.from_header(read_header(model))
    devices = engine.list_devices(
        benchmark=False, n_weights=count_weights(profile), n_bytes=profile.tensor_bytes, model_path=profile.path
    )
    if not devices.gpus:
        reasons = "; ".join(devices.problems) or "none was found"
        raise UsageError(f"No GPU can be measured: {reasons}. `edgechat doctor` shows the tests.")
    bundle = find_bundle()
    cpu_module, _ = probe.choose_module(bundle)
    verdicts = gpu_probe.check_gpu_modules(bundle, cpu_module, demand=Demand(), model_path=profile.path)
    return BenchGpu(
        name=" and ".join(gpu.name for gpu in devices.gpus),
        module=next(module.path for module, verdict in verdicts if verdict.is_usable),
        n_layers=profile.n_layers + 1,
    )
