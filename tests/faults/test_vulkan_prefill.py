"""Prefill on the real Vulkan module on lavapipe, while the CPU decodes; and memory that a GPU shares with the CPU."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest  # noqa: TC002  (fixtures are annotated with it)

from edgechat.config import Settings
from edgechat.errors import EngineError
from edgechat.hardware.gpu import Gpu, GpuSpeeds, TypeRates
from edgechat.models import resources
from edgechat.planner.machine import choose_gpu
from edgechat.planner.memory import LoadOptions
from edgechat.runtime import bindings
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.memory_report import read_memory_breakdown
from edgechat.runtime.model import Model
from tests.conftest import ROOT
from tests.faults import test_vulkan
from tests.faults.test_gpu import n_gpu_layers, reply
from tests.faults.test_vulkan import (
    Q4_1,
    Q8_0,
    OpenSession,
    bundle,
    driver,
    machine,
    native,
    open_session,
    saved_verdicts,
)
from tests.layered_models import write_tiny_gemma4
from tests.models import Kind, open_context, write_tiny

__all__ = ["bundle", "driver", "machine", "native", "open_session", "saved_verdicts"]  # fixtures

pytestmark = test_vulkan.pytestmark
MIB = 1 << 20
SETTINGS = Settings(n_ctx=1024, temperature=0.0, max_tokens=12)
# A prompt of more than 32 tokens, the smallest batch that llama.cpp computes on the GPU.
LONG_PROMPT = f"Continue: {', '.join(map(str, range(1, 60)))}"


def set_speeds(monkeypatch: pytest.MonkeyPatch, *, decode: float, prefill: float) -> None:
    """Report that lavapipe decodes and prefills `decode` and `prefill` times as fast as the CPU."""
    rates = tuple(
        TypeRates(type_id=n, decode=decode * 1e9, prefill=prefill * 1e8, cpu_decode=1e9, cpu_prefill=1e8)
        for n in (Q4_1, Q8_0)
    )

    def choose(gpus: Sequence[Gpu]) -> Gpu | None:
        gpu = choose_gpu(gpus)
        speeds = GpuSpeeds(rates=rates, copied_bytes_per_s=1e10)
        return msgspec.structs.replace(gpu, speeds=speeds) if gpu is not None else None

    monkeypatch.setattr(resources, "choose_gpu", choose)


def test_prefill_on_the_gpu_has_the_reply_of_the_cpu(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, decode=0.5, prefill=10.0)
    session = open_session(SETTINGS)
    assert session.model.plan is not None
    assert session.model.plan.options.prefill_on_gpu
    assert (n_gpu_layers(session), session.warnings) == (0, [])
    memory = session.model.engine.stats().memory["Vulkan0"]
    assert memory["model_bytes"] == memory["context_bytes"] == 0
    assert 0 < memory["compute_bytes"] <= session.model.plan.estimate.gpu < 4 * memory["compute_bytes"]
    on_cpu = open_session(msgspec.structs.replace(SETTINGS, gpu=False))
    assert reply(session, LONG_PROMPT) == reply(on_cpu, LONG_PROMPT)


def test_only_the_prefill_needs_the_gpu(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_speeds(monkeypatch, decode=0.5, prefill=10.0)
    session = open_session(SETTINGS, VULKAN_LOST_IF=tmp_path / "lost")
    assert reply(session, LONG_PROMPT)
    pid = session.model.engine.pid
    (tmp_path / "lost").touch()
    assert reply(session, "Go on.")  # the rest of the prompt is in the KV cache
    assert session.model.engine.pid == pid
    with contextlib.suppress(EngineError):
        reply(session, LONG_PROMPT)
    assert session.model.plan is not None
    assert not session.model.plan.options.uses_gpu


def test_gpu_that_decodes_more_slowly_gets_no_layers_even_if_memory_is_short(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_compute_gpu_budget_bytes", lambda gpu: 80 * MIB)
    set_speeds(monkeypatch, decode=0.5, prefill=10.0)
    assert n_gpu_layers(open_session(SETTINGS)) == 0
    set_speeds(monkeypatch, decode=2.0, prefill=10.0)
    assert 0 < n_gpu_layers(open_session(SETTINGS)) < 31


def test_memory_of_an_integrated_gpu_is_that_of_the_machine(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(SETTINGS, VULKAN_KIND=1)
    [gpu] = resources.load_saved_gpus()
    assert gpu.is_unified
    resources_now = resources.current_machine(SETTINGS)
    assert resources_now.available_bytes == resources.current_machine(Settings(gpu=False)).available_bytes
    assert session.model.plan is not None
    estimate = session.model.plan.estimate
    assert (n_gpu_layers(session), session.model.plan.options.use_mmap) == (31, False)
    assert estimate.is_unified
    assert estimate.gpu + estimate.process < estimate.total <= resources_now.available_bytes
    assert reply(session)


def compare_with_the_cpu(*paths: str) -> None:
    """Write the largest difference of the logits after a long batch and after one more token, for each model file.

    The difference is relative to the standard deviation of the logits. Runs in a process of its own, because a GPU
    module cannot be unloaded.
    """
    backends = find_bundle()
    loaded_bindings = bindings.load(backends, probe.choose_module(backends)[0], list(backends.gpu_modules))
    for path in map(Path, paths):
        logits: list[Any] = []
        for on_gpu in (False, True):
            options = LoadOptions(n_ctx=256, n_seqs=1, use_extra_bufts=False, prefill_on_gpu=on_gpu)
            model = Model(loaded_bindings, path, options)
            context = open_context(model, n_threads=2, n_ctx=256, use_extra_bufts=False, prefill_on_gpu=on_gpu)
            context.decode([1, *range(100, 190)])
            first = context.logits().copy()
            context.decode([5])
            logits.append(np.concatenate([first, context.logits()]))
            n_bytes = read_memory_breakdown(context).get("Vulkan0", {}).get("compute_bytes", 0)
            context.close()
            model.close()
        difference = float(np.abs(logits[0] - logits[1]).max() / logits[0].std())
        sys.stdout.write(f"{json.dumps([path.name, n_bytes, difference])}\n")


def test_architectures_compute_the_same_with_prefill_on_the_gpu(machine: None, tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("moe", "hybrid sliding")
    paths = [write_tiny(tmp_path / f"{kind}.gguf", kind) for kind in kinds]
    paths.append(write_tiny_gemma4(tmp_path / "gemma4.gguf"))  # reads embeddings by row
    program = f"from {__name__} import compare_with_the_cpu as f; f(*{list(map(str, paths))!r})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    results = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    assert [name for name, *_ in results] == [path.name for path in paths]
    assert all(n_bytes > 0 for _, n_bytes, _ in results)
    assert all(0 < difference < 0.05 for *_, difference in results), results
