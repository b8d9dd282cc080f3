"""Deaths of the engine process: whose fault they are, and the errors for the user."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import msgspec
import pytest

from edgechat import paths
from edgechat.engine.death import Death
from edgechat.engine.protocol import Load
from edgechat.errors import EngineDiedError, ModelCrashError, PlanError
from edgechat.models.gpu_failures import can_continue_on_cpu, is_gpu_failure
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.planner.load_plan import make_manual_plan
from edgechat.process import EXIT_STALLED
from edgechat.runtime import drafter_crashes
from edgechat.runtime.activity import Activity, ActivityState
from edgechat.runtime.backends import gpu_probe, verdicts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
COMPUTING = ActivityState(frozenset({Activity.COMPUTING}), has_computed=True)
FIRST_BATCH = ActivityState(frozenset({Activity.COMPUTING}))
LOADING = ActivityState(frozenset({Activity.LOADING}))
ASSERTION = "llama-model.cpp:1330: GGML_ASSERT(hparams.n_layer_nextn <= hparams.n_layer_all) failed"


def write_log(*lines: str) -> None:
    paths.log_file().parent.mkdir(parents=True, exist_ok=True)
    paths.log_file().write_text("".join(f"{line}\n" for line in lines))


def make_death(
    signal_name: str, state: ActivityState, *, n_gpu_layers: int = 0, opened_path: str = "/models/bad.gguf",
    drafter: DrafterPlan | None = None,
) -> Death:  # fmt: skip
    plan = make_manual_plan("/models/bad.gguf", n_threads=1, n_ctx=64, n_gpu_layers=n_gpu_layers, drafter=drafter)
    return Death(
        exit_code=-getattr(signal, signal_name), state=state, backend="cpu-x64", load=Load(id=1, plan=plan),
        opened_path=opened_path, log_start=0,
    )  # fmt: skip


@pytest.mark.parametrize("signal_name", ["SIGSEGV", "SIGILL", "SIGFPE"])
def test_crash_in_a_computation_counts_against_the_kernels(signal_name: str) -> None:
    assert make_death(signal_name, COMPUTING).is_kernel_crash
    assert make_death(signal_name, FIRST_BATCH).is_kernel_crash


@pytest.mark.parametrize(
    ("signal_name", "activities"),
    [
        *((name, {a}) for name in ("SIGSEGV", "SIGILL", "SIGFPE") for a in Activity if a != Activity.COMPUTING),
        ("SIGSEGV", set()),
        ("SIGSEGV", {Activity.COMPUTING, Activity.TOKENIZING}),  # either thread may have crashed
        ("SIGBUS", {Activity.COMPUTING}),  # the mapped model file became shorter
        ("SIGABRT", {Activity.COMPUTING}),
        ("SIGKILL", {Activity.COMPUTING}),
        ("SIGTERM", {Activity.COMPUTING}),
    ],
)
def test_other_deaths_do_not_count_against_the_kernels(
    signal_name: str, activities: set[Activity], monkeypatch: pytest.MonkeyPatch
) -> None:
    death = make_death(signal_name, ActivityState(frozenset(activities), has_computed=True))
    monkeypatch.setattr(verdicts, "record_engine_crash", lambda *_, **__: pytest.fail("recorded"))
    assert not death.is_kernel_crash
    death.record_crash()


def test_crash_of_a_model_on_a_gpu_does_not_count_against_the_cpu_module() -> None:
    assert not make_death("SIGSEGV", COMPUTING, n_gpu_layers=9).is_kernel_crash


def test_deaths_in_a_computation_count_against_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    causes: list[str] = []
    monkeypatch.setattr(gpu_probe, "record_failure", lambda _bundle, cause, _path, _module: causes.append(cause))
    for name in ("SIGSEGV", "SIGABRT"):  # an exception about a lost device aborts the process
        make_death(name, COMPUTING, n_gpu_layers=9).record_crash()
    stalled = msgspec.structs.replace(make_death("SIGSEGV", COMPUTING, n_gpu_layers=9), exit_code=EXIT_STALLED)
    stalled.record_crash()
    assert causes == ["SIGSEGV (signal 11)", "SIGABRT (signal 6)", f"exit code {EXIT_STALLED}"]
    make_death("SIGSEGV", COMPUTING).record_crash()
    make_death("SIGKILL", COMPUTING, n_gpu_layers=9).record_crash()
    make_death("SIGABRT", LOADING, n_gpu_layers=9).record_crash()
    assert len(causes) == 3


def test_other_replies_of_a_process_that_is_killed_after_a_gpu_failure_can_continue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_probe, "record_failure", lambda *_: pytest.fail("recorded twice"))
    killed = msgspec.structs.replace(
        make_death("SIGKILL", COMPUTING, n_gpu_layers=9), hang_reason="its GPU failed", is_gpu_failure_known=True
    )
    killed.record_crash()
    assert can_continue_on_cpu(killed.find_request_error())
    assert not can_continue_on_cpu(make_death("SIGKILL", COMPUTING, n_gpu_layers=9).find_request_error())


@pytest.mark.parametrize("n_gpu_layers", [0, 9])
@pytest.mark.parametrize(
    ("activities", "can_continue"),
    [
        ({Activity.COMPUTING, Activity.COMPILING_GRAMMAR}, True),
        ({Activity.DRAFTING_ON_GPU, Activity.COMPILING_GRAMMAR}, True),
        ({Activity.DRAFTING}, False),  # the drafter of a model of which only the prefill is on the GPU
        ({Activity.RESIZING}, True),
        (set(), True),
        ({Activity.COMPILING_GRAMMAR}, False),
    ],
)
def test_reply_can_go_on_after_a_crash_that_is_not_held_against_the_gpu(
    activities: set[Activity], can_continue: bool, n_gpu_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_probe, "record_failure", lambda *_: pytest.fail("recorded"))
    state = ActivityState(frozenset(activities), has_computed=True)
    death = make_death("SIGABRT", state, n_gpu_layers=n_gpu_layers)
    death.record_crash()
    error = death.find_request_error()
    assert isinstance(error, EngineDiedError)
    assert can_continue_on_cpu(error) == (can_continue and n_gpu_layers > 0)
    assert not is_gpu_failure(error)


def test_assertion_while_loading_is_an_error_of_the_model_file() -> None:
    write_log("loading", f"./llama_cpp_python-0.3.36/vendor/llama.cpp/src/{ASSERTION}")
    error = make_death("SIGABRT", LOADING, opened_path="/models/probed.gguf").find_request_error()
    assert isinstance(error, ModelCrashError)
    assert error.exit_code == 3
    assert str(error).startswith(f"/models/probed.gguf cannot be used: llama.cpp stopped with '{ASSERTION}'.")
    assert "\n" not in str(error)


def test_assertion_in_the_first_computation_is_an_error_of_the_model_file() -> None:
    write_log("/src/ops.cpp:4132: GGML_ASSERT(eps >= 0.0f) failed", "more")
    error = make_death("SIGABRT", FIRST_BATCH).find_request_error()
    assert isinstance(error, ModelCrashError)
    assert "ops.cpp:4132: GGML_ASSERT(eps >= 0.0f) failed" in str(error)
    later_error = make_death("SIGABRT", COMPUTING).find_request_error()
    assert isinstance(later_error, EngineDiedError)
    assert "llama.cpp reported: ops.cpp:4132: GGML_ASSERT(eps >= 0.0f) failed" in str(later_error)
    assert isinstance(make_death("SIGABRT", FIRST_BATCH, n_gpu_layers=9).find_request_error(), EngineDiedError)


@pytest.mark.parametrize("activity", [Activity.DRAFTING, Activity.OPENING_DRAFTER])
def test_crash_with_a_drafter_is_recorded_for_it(activity: Activity, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[tuple[object, ...]] = []
    monkeypatch.setattr(drafter_crashes, "record_crash", lambda *record: records.append(record))
    activities = {activity, Activity.LOADING} if activity == Activity.OPENING_DRAFTER else {activity}
    state, drafter = ActivityState(frozenset(activities), has_computed=True), DrafterPlan(kind="mtp")
    death = make_death("SIGSEGV", state, drafter=drafter)
    death.record_crash()
    assert records == [("/models/bad.gguf", drafter, "SIGSEGV (signal 11)")]
    assert isinstance(death.find_request_error(), EngineDiedError)
    assert "does not use this drafter" in str(death.find_request_error())
    make_death("SIGKILL", state, drafter=drafter).record_crash()
    make_death("SIGSEGV", COMPUTING, drafter=drafter)
    write_log("  what():  std::bad_alloc")
    make_death("SIGABRT", state, drafter=drafter).record_crash()
    assert len(records) == 1


@pytest.mark.parametrize(("n_gpu_layers", "is_on_gpu"), [(9, True), (0, False)])
def test_crash_while_a_drafter_computes_on_the_gpu_counts_against_the_gpu_alone(
    n_gpu_layers: int, is_on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With only the prefill on the GPU, the drafter computes on the CPU."""
    blamed: list[str] = []
    monkeypatch.setattr(drafter_crashes, "record_crash", lambda *_: blamed.append("drafter"))
    monkeypatch.setattr(gpu_probe, "record_failure", lambda *_: blamed.append("gpu"))
    activity = Activity.DRAFTING_ON_GPU if is_on_gpu else Activity.DRAFTING
    plan = make_manual_plan(
        "/models/bad.gguf", n_threads=1, n_ctx=64, n_gpu_layers=n_gpu_layers, prefill_on_gpu=not n_gpu_layers,
        drafter=DrafterPlan(kind="draft-model", model_path="/models/small.gguf"),
    )  # fmt: skip
    death = Death(
        exit_code=-signal.SIGSEGV, state=ActivityState(frozenset({activity}), has_computed=True), backend="cpu-x64",
        load=Load(id=1, plan=plan), opened_path="", log_start=0,
    )  # fmt: skip
    death.record_crash()
    error = death.find_request_error()
    assert blamed == ["gpu" if is_on_gpu else "drafter"]
    assert ("does not use this drafter" in str(error)) != is_on_gpu
    assert is_gpu_failure(error) == can_continue_on_cpu(error) == is_on_gpu


def test_crash_while_resizing_is_not_an_error_of_the_model_file() -> None:
    write_log("/src/ggml.c:1: GGML_ASSERT(buffer) failed", "more")
    for has_computed in (True, False):
        state = ActivityState(frozenset({Activity.RESIZING}), has_computed=has_computed)
        error = make_death("SIGABRT", state).find_request_error()
        assert isinstance(error, EngineDiedError)
        assert "died while resizing the context" in str(error)


def test_exception_while_loading_is_named() -> None:
    write_log("terminate called after throwing an instance of 'std::out_of_range'", "  what():  unordered_map::at")
    error = make_death("SIGABRT", LOADING).find_request_error()
    assert isinstance(error, ModelCrashError)
    assert "'unordered_map::at'" in str(error)


@pytest.mark.parametrize("exception", ["unordered_map::at", "_Map_base::at", "unordered_map::at: key not found"])
def test_vocabulary_without_a_needed_token_is_an_error_of_the_model_file(exception: str) -> None:
    write_log("terminate called after throwing an instance of 'std::out_of_range'", f"  what():  {exception}")
    state = ActivityState(frozenset({Activity.TOKENIZING}), has_computed=True)
    error = make_death("SIGABRT", state).find_request_error()
    assert isinstance(error, ModelCrashError)
    assert f"The vocabulary of /models/bad.gguf lacks a token for a part of this text ({exception})" in str(error)


def test_out_of_memory_while_loading_is_not_an_error_of_the_model_file() -> None:
    write_log("terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc")
    assert isinstance(make_death("SIGABRT", LOADING).find_request_error(), PlanError)


@pytest.mark.parametrize("signal_name", ["SIGSEGV", "SIGFPE", "SIGILL"])
def test_crash_while_loading_names_the_signal(signal_name: str) -> None:
    error = make_death(signal_name, LOADING).find_request_error()
    assert isinstance(error, ModelCrashError)
    assert signal_name in str(error)


def test_file_that_became_shorter_is_named() -> None:
    error = make_death("SIGBUS", LOADING).find_request_error()
    assert str(error) == "/models/bad.gguf was truncated or became unreadable while it was loaded. Download it again."
    later_error = make_death("SIGBUS", COMPUTING).find_request_error()
    assert isinstance(later_error, EngineDiedError)
    assert "was truncated or became unreadable" in str(later_error)


def test_other_deaths_name_the_activity_and_the_last_log_lines() -> None:
    write_log("first", "last")
    error = make_death("SIGSEGV", ActivityState(frozenset({Activity.TOKENIZING}))).find_request_error()
    assert isinstance(error, EngineDiedError)
    assert error.code == -signal.SIGSEGV
    assert str(error) == (
        "The engine process died while tokenising a text: SIGSEGV (signal 11)\nIts last log lines:\n  first\n  last"
    )
    error = make_death("SIGKILL", ActivityState()).find_request_error()
    assert "The engine process died: SIGKILL (signal 9); the system kills processes when memory" in str(error)


def test_long_assertion_is_cut(tmp_path: Path) -> None:
    write_log("x.cpp:1: " + "y" * 100_000)
    assert len(str(make_death("SIGABRT", LOADING).find_request_error())) < 600
