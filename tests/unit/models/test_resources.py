"""Resources of the machine that plans may use: memory of GPUs."""

from __future__ import annotations

import msgspec
import pytest  # noqa: TC002  (fixtures are annotated with it)

from edgechat.config import Settings
from edgechat.hardware.gpu import Gpu
from edgechat.hardware.memory import read_memory
from edgechat.models import resources

GIB = 1 << 30


def test_memory_of_an_integrated_gpu_is_part_of_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = read_memory()
    monkeypatch.setattr(resources, "read_memory", lambda: memory)
    gpu = Gpu(name="a GPU", total_bytes=8 * GIB, free_bytes=6 * GIB, is_unified=True)
    with_gpu, without_gpu = (resources.current_machine(Settings(), gpus=gpus) for gpus in ([gpu], []))
    assert with_gpu.available_bytes == without_gpu.available_bytes
    assert (with_gpu.gpu_free_bytes, with_gpu.gpu_is_unified) == (6 * GIB, True)
    discrete = msgspec.structs.replace(gpu, is_unified=False)
    assert resources.current_machine(Settings(), gpus=[discrete]).gpu_free_bytes == 5 * GIB  # leaves a reserve
