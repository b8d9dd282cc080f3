"""Replies of a loaded model whose GPU fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgechat.engine import protocol
from edgechat.errors import ComputeError
from edgechat.models.events import CpuFallback
from edgechat.models.loaded_model import LoadedModel
from edgechat.planner.load_plan import make_manual_plan

GPU_PLAN, CPU_PLAN = (make_manual_plan("/models/m.gguf", n_threads=1, n_ctx=64, n_gpu_layers=n) for n in (9, 0))


def test_reply_continues_if_another_thread_has_loaded_the_model_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = LoadedModel()
    requests: list[protocol.Generate] = []

    class Engine:
        needs_restart = False

        def generate(self, request: protocol.Generate) -> Iterator[protocol.TokensGenerated]:
            requests.append(request)
            if len(requests) == 1:
                model.plan = CPU_PLAN
                raise ComputeError("The GPU was lost.")
            yield from ()

    monkeypatch.setattr(LoadedModel, "fall_back_to_cpu", lambda self, error: pytest.fail("a second load"))
    model.engine, model.plan = Engine(), GPU_PLAN
    events = list(model.generate(protocol.Generate(id=1, tokens=[1, 2], max_tokens=8)))
    assert [type(event) for event in events] == [CpuFallback]
    assert [request.tokens for request in requests] == [[1, 2], [1, 2]]
