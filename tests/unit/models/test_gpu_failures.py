"""Which errors of a request and of a load are failures of the GPU."""

from __future__ import annotations

import signal
import sys

import pytest

from edgechat.engine.death import Death
from edgechat.engine.protocol import Load
from edgechat.errors import ComputeError, EngineDiedError, EngineError, ModelCrashError, PlanError
from edgechat.models import gpu_failures
from edgechat.models.gpu_failures import is_gpu_failure, may_be_gpu_failure, record_gpu_failure
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.planner.load_plan import make_manual_plan
from edgechat.process import EXIT_STALLED
from edgechat.runtime import drafter_crashes
from edgechat.runtime.activity import Activity, ActivityState
from edgechat.runtime.backends import gpu_probe

ABORTED = -getattr(signal, "SIGABRT", 6)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
@pytest.mark.parametrize("n_gpu_layers", [0, 9])
@pytest.mark.parametrize("exit_code", [ABORTED, -signal.SIGSEGV, -9, EXIT_STALLED, 0, 1])
def test_a_death_is_a_failure_of_the_gpu_exactly_if_it_is_recorded_as_one(
    exit_code: int, n_gpu_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[object] = []
    monkeypatch.setattr(gpu_probe, "record_failure", lambda *record: recorded.append(record))
    plan = make_manual_plan("/models/m.gguf", n_threads=1, n_ctx=64, n_gpu_layers=n_gpu_layers)
    n_failures = 0
    for activities in ((), *((a,) for a in Activity), *((Activity.COMPUTING, a) for a in Activity)):
        death = Death(
            exit_code=exit_code, state=ActivityState(frozenset(activities), has_computed=True), backend="cpu-x64",
            load=Load(id=1, plan=plan), opened_path="", log_start=0,
        )  # fmt: skip
        recorded.clear()
        death.record_crash()
        assert is_gpu_failure(death.find_error()) == bool(recorded), activities
        n_failures += bool(recorded)
    assert bool(n_failures) == (n_gpu_layers > 0 and exit_code in {ABORTED, -signal.SIGSEGV, EXIT_STALLED})


@pytest.mark.parametrize("is_gpu_failure", [True, False])
def test_an_earlier_crash_of_the_drafter_hides_no_failure_of_the_gpu(
    is_gpu_failure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[object] = []
    monkeypatch.setattr(gpu_probe, "record_failure", lambda *record: recorded.append(record))
    monkeypatch.setattr(gpu_failures, "find_bundle", lambda: None)
    monkeypatch.setattr(drafter_crashes, "find_crash", lambda *_: "SIGSEGV (signal 11)")
    drafter = DrafterPlan(kind="draft-model", model_path="/models/small.gguf")
    plan = make_manual_plan("/models/m.gguf", n_threads=1, n_ctx=64, n_gpu_layers=9, drafter=drafter)
    record_gpu_failure(EngineDiedError("died", ABORTED, is_gpu_failure=is_gpu_failure), plan)
    assert bool(recorded) == is_gpu_failure


def test_errors_of_computations_and_crashes_of_loads() -> None:
    assert is_gpu_failure(ComputeError("lost"))
    assert not is_gpu_failure(EngineError("The prompt is empty."))
    assert not is_gpu_failure(EngineDiedError("died while compiling a grammar", ABORTED))
    assert may_be_gpu_failure(EngineDiedError("died", ABORTED))
    assert may_be_gpu_failure(ModelCrashError("crashed"))
    assert not may_be_gpu_failure(EngineDiedError("killed", -9))
    assert not may_be_gpu_failure(PlanError("too little memory"))
