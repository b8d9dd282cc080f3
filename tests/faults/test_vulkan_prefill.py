"""Prefill on the real Vulkan module on lavapipe, while the CPU decodes; and memory that a GPU shares with the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest  # noqa: TC002

from edgechat.config import Settings
from edgechat.errors import EngineError
from edgechat.hardware.gpu import Gpu, GpuSpeeds, TypeRates
from edgechat.models import resources
from edgechat.planner.machine import choose_gpu
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

__all__ = ["bundle", "driver", "machine", "native", "open_session", "saved_verdicts"]  # fixtures

pytestmark = test_vulkan.pytestmark
MIB = 1 << 20
SETTINGS = Settings(n_ctx=1024, temperature=0.0, max_tokens=12)
# A prompt of more than 32 tokens, the smallest batch that llama.cpp computes on the GPU.
LONG_PROMPT = f"Continue: {', '.join(map(str, range(1, 60)))}"


def set_speeds(monkeypatch: pytest.MonkeyPatch, *, decode: float, prefill: float) -> None:
    """Let lavapipe decode and prefill so many times as fast as the CPU, according to the measurement."""
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
