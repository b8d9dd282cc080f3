"""Replies of a loaded model whose GPU fails."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.engine import protocol
from edgechat.engine.generation import DrafterState
from edgechat.errors import ComputeError, EngineDiedError, PlanError
from edgechat.models import gpu_failures, loaded_model, loading
from edgechat.models.events import CpuFallback
from edgechat.models.loaded_model import LoadedModel
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.planner.load_plan import LoadPlan, make_manual_plan
from edgechat.runtime import drafter_crashes

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

    monkeypatch.setattr(LoadedModel, "fall_back_to_cpu", lambda self, *_: pytest.fail("a second load"))
    model.engine, model.plan = Engine(), GPU_PLAN
    events = list(model.generate(protocol.Generate(id=1, tokens=[1, 2], max_tokens=8)))
    assert [type(event) for event in events] == [CpuFallback]
    assert [request.tokens for request in requests] == [[1, 2], [1, 2]]


class RestartedEngine:
    """Private engine that has died; it loads the model of the last plan again, unless that fails with `error`."""

    is_shared = False
    model_properties = None

    def __init__(self, error: Exception | None = None, *, died_on_gpu: bool = False) -> None:
        self.error, self.died_on_gpu = error, died_on_gpu
        self.calls: list[object] = []

    def load_again(self) -> None:
        self.calls.append("load again")
        if self.error is not None:
            raise self.error

    def end_process(self) -> None:
        self.calls.append("end")

    def check_not_closed(self) -> None:
        pass

    def end_failed_process(self, number: int, timeout_s: float) -> None:
        self.calls.append(("end", number))

    def take_memory_kill(self) -> bool:
        return False


@pytest.fixture
def make_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Create a model whose engine has died, and which would be loaded with the CPU by a new plan."""
    monkeypatch.setattr(loaded_model, "register_loaded_model", lambda *_: None)
    monkeypatch.setattr(LoadedModel, "set_model_properties", lambda self, properties: None)
    monkeypatch.setattr(gpu_failures, "is_gpu_refused", lambda plan: False)
    monkeypatch.setattr(gpu_failures, "record_gpu_failure", lambda *record: model.engine.calls.append("record"))

    def reload_model(engine: RestartedEngine, plan: LoadPlan, settings: object, gpus: object) -> Any:
        engine.calls.append(gpus)
        return CPU_PLAN if gpus == () else plan, None

    monkeypatch.setattr(loading, "reload_model", reload_model)
    model: Any = LoadedModel()

    def make(engine: RestartedEngine, plan: LoadPlan = GPU_PLAN) -> Any:
        model.engine, model.plan = engine, plan
        return model

    return make


def test_engine_that_died_for_another_reason_loads_the_same_plan(make_model: Any) -> None:
    model = make_model(RestartedEngine())
    model._restart_engine(GPU_PLAN)
    assert (model.engine.calls, model.plan, model.take_cpu_notice()) == (["load again"], GPU_PLAN, "")


def test_engine_that_died_on_the_gpu_is_replaced_by_one_with_the_cpu(make_model: Any) -> None:
    """Whatever the request is that notices it, such as a tokenisation, and also if the failure was not recorded."""
    model = make_model(RestartedEngine(died_on_gpu=True))
    model._restart_engine(GPU_PLAN)
    assert (model.engine.calls, model.plan) == ([()], CPU_PLAN)
    assert model.take_cpu_notice() == "The GPU failed. The model uses the CPU from now on."
    model._restart_engine(CPU_PLAN)
    assert (model.engine.calls, model.take_cpu_notice()) == ([(), "load again"], "")


def test_restart_asks_the_verdicts_about_the_gpu(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(RestartedEngine())
    monkeypatch.setattr(gpu_failures, "is_gpu_refused", lambda plan: True)
    monkeypatch.setattr(loading, "reload_model", lambda *_: (CPU_PLAN, None))
    model._restart_engine(GPU_PLAN)
    assert (model.engine.calls, model.plan) == ([], CPU_PLAN)
    assert model.take_cpu_notice() == "The GPU failed. The model uses the CPU from now on."


@pytest.mark.parametrize(
    ("error", "is_recorded"), [(EngineDiedError("died", -6), True), (PlanError("The GPU is missing. Look."), False)]
)
def test_model_that_cannot_be_loaded_on_the_gpu_again_uses_the_cpu(
    make_model: Any, error: Exception, *, is_recorded: bool
) -> None:
    model = make_model(RestartedEngine(error))
    model._restart_engine(GPU_PLAN)
    assert model.engine.calls == ["load again", "end", (), *(["record"] if is_recorded else [])]
    cause = str(error).partition(".")[0]
    assert model.take_cpu_notice() == f"The model could not be loaded on the GPU again ({cause}). It uses the CPU."
    with pytest.raises(type(error)):
        model._restart_engine(CPU_PLAN)


def test_drafter_with_which_the_engine_died_is_not_loaded_again(
    make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafter_crashes, "find_crash", lambda *_: "SIGSEGV (signal 11)")
    plan = make_manual_plan("/models/m.gguf", n_threads=1, n_ctx=64, drafter=DrafterPlan(kind="mtp"))
    model = make_model(RestartedEngine(), plan)
    model._restart_engine(plan)
    assert model.engine.calls == [None]


def test_fallback_names_the_process_that_failed(make_model: Any) -> None:
    model = make_model(RestartedEngine())
    model.engine.restart_if_dead = lambda: model._restart_engine(GPU_PLAN)
    error = ComputeError("The GPU was lost.")
    error.process_number = 7
    model.plan = CPU_PLAN  # another thread was faster
    assert not model.fall_back_to_cpu(error)
    model.plan = GPU_PLAN
    assert model.fall_back_to_cpu(error, GPU_PLAN)
    assert model.engine.calls == ["record", ("end", 7), ()]
    assert (model.plan, model.take_cpu_notice()) == (CPU_PLAN, "")


def test_drafter_that_cannot_be_opened_after_a_restart_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warnings of a start report it only then."""
    monkeypatch.setattr(loaded_model, "PromptBuilder", lambda *_: None)
    model, state = LoadedModel(), DrafterState(is_open=False, error="small.gguf is damaged.")
    properties: Any = SimpleNamespace(drafter_error=state.error, is_embedding=True)
    model.set_model_properties(properties)
    assert model.find_drafter_failure(state) == state.error
    assert model.find_drafter_failure(state) == ""
    model.close()
