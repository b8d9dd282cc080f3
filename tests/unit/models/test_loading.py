"""Plans for a model whose engine was killed for its memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.errors import EngineDiedError, EngineError, PlanError
from edgechat.hardware.gpu import Gpu
from edgechat.modelfile.profile import ModelProfile
from edgechat.models import context_limits, gpu_failures, instances, load_records, loading, observed_memory
from edgechat.models.loaded_model import LoadedModel
from edgechat.planner.drafter_choice import DrafterChoice
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.machine import Machine
from edgechat.planner.plan import plan
from edgechat.runtime import drafter_crashes
from edgechat.runtime.backends import gpu_probe
from tests.unit.planner.profiles import GIB, llama, machine, with_heads

MIB = 1 << 20
KILLED = EngineDiedError("The engine process died: SIGKILL (signal 9)", -9)


class DyingEngine:
    """Engine that the system kills at each load that needs more than `real_bytes`, whatever the plan says."""

    def __init__(self, real_bytes: int, unknown_bytes: int) -> None:
        self.pid = None
        self.peak_n_ctx = 0
        self.has_loaded_one_model = True
        self.needs_restart = True
        self.is_shared = False
        self._real_bytes = real_bytes
        self._unknown_bytes = unknown_bytes
        self.plans: list[LoadPlan] = []
        self._was_killed = False

    def start(self) -> None:
        pass

    def next_id(self) -> int:
        return 1

    def probe_memory(self, request: protocol.ProbeMemory) -> protocol.MemoryProbed:
        raise EngineError("formulas are used")

    def load(self, request: protocol.Load, on_event: object) -> Any:
        self.plans.append(request.plan)
        memory = request.plan.estimate
        if memory.engine - memory.observed_excess + self._unknown_bytes > self._real_bytes:
            self._was_killed = True
            raise KILLED
        return SimpleNamespace(drafter_error="")

    def take_memory_kill(self) -> bool:
        was_killed, self._was_killed = self._was_killed, False
        return was_killed

    @property
    def died_on_gpu(self) -> bool:
        return False


@pytest.fixture(autouse=True)
def tight_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 1.5 GiB of free memory, for a model whose largest plan needs more than 1.4 GiB."""
    monkeypatch.setattr(loading, "current_machine", lambda *_: machine(GIB * 3 // 2))


def load(engine: DyingEngine) -> object:
    return loading.load_model(engine, llama(), Settings(), lambda event: None, lambda: None)[1]  # type: ignore[arg-type]


def test_killed_plan_is_not_repeated_until_one_is_small_enough() -> None:
    engine = DyingEngine(real_bytes=GIB * 3 // 2, unknown_bytes=300 * MIB)
    for _ in range(6):
        try:
            if load(engine):
                break
        except (EngineDiedError, PlanError):
            continue
    options = [(plan.options, plan.estimate.observed_excess) for plan in engine.plans]
    assert len(set(map(repr, options))) == len(options)
    memory = engine.plans[-1].estimate
    assert memory.engine - memory.observed_excess + 300 * MIB <= GIB * 3 // 2
    assert len(engine.plans) <= 8


def test_model_that_never_fits_is_refused_with_the_memory_that_it_needs() -> None:
    engine = DyingEngine(real_bytes=0, unknown_bytes=0)
    refusal = ""
    for _ in range(12):
        try:
            load(engine)
        except EngineDiedError:
            continue
        except PlanError as error:
            refusal = str(error)
            break
    assert "are available" in refusal


def test_kill_is_recorded_once_for_each_death() -> None:
    engine = DyingEngine(real_bytes=0, unknown_bytes=0)
    with pytest.raises(EngineDiedError):
        load(engine)
    n_kills = len(engine.plans)  # the first plan, and a smaller one
    extra_bytes = observed_memory.extra_bytes("m.gguf")
    load_records.prepare_unload(engine, engine.plans[-1])  # type: ignore[arg-type]
    assert observed_memory.extra_bytes("m.gguf") == extra_bytes >= n_kills * 32 * MIB


def test_other_deaths_change_no_plan() -> None:
    engine = DyingEngine(real_bytes=0, unknown_bytes=0)
    engine.take_memory_kill = lambda: False  # type: ignore[method-assign]
    with pytest.raises(EngineDiedError):
        load(engine)
    assert observed_memory.extra_bytes("m.gguf") == 0


def test_engine_that_was_killed_during_a_reply_is_restarted_with_a_new_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DyingEngine(real_bytes=2 * GIB, unknown_bytes=0)
    model = LoadedModel()
    profile = llama()
    model.engine, model.plan = engine, plan(profile, machine(GIB * 3 // 2))  # type: ignore[assignment]
    engine._was_killed = True
    monkeypatch.setattr(loading, "read_header", lambda path: None)
    monkeypatch.setattr(ModelProfile, "from_header", lambda header: profile)
    monkeypatch.setattr(LoadedModel, "set_model_properties", lambda self, properties: None)
    engine.restart_if_dead = lambda: model._restart_engine(model.plan)  # type: ignore[attr-defined]
    model.restart_if_dead()
    assert model.plan == engine.plans[-1]
    assert model.plan.estimate.observed_excess >= 32 * MIB
    assert model.plan.estimate.total <= GIB * 3 // 2


def test_model_is_reloaded_on_the_gpus_of_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saved GPUs can be those of another model, whose weights have other types."""
    profile = llama()
    gpus_of_plans: list[object] = []

    def current_machine(settings: object, path: str, pid: object, gpus: object) -> Machine:
        gpus_of_plans.append(gpus)
        return machine(64 * GIB)

    monkeypatch.setattr(loading, "current_machine", current_machine)
    monkeypatch.setattr(loading, "read_header", lambda path: None)
    monkeypatch.setattr(ModelProfile, "from_header", lambda header: profile)
    gpus = (Gpu(name="GPU", total_bytes=64 * GIB, free_bytes=64 * GIB, device="Vulkan1"),)
    gpu_machine = machine(64 * GIB, gpu_name="GPU", gpu_free_bytes=64 * GIB, gpus=gpus)
    for failed_plan in (plan(profile, machine(64 * GIB)), plan(profile, gpu_machine)):
        loading.reload_model(DyingEngine(64 * GIB, 0), failed_plan, Settings())  # type: ignore[arg-type]
    assert gpus_of_plans == [(), gpus]


def test_memory_of_a_plan_is_measured_on_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new engine process has listed no GPUs, and would also place the model on those that were left out."""
    requests: list[protocol.ProbeMemory] = []
    engine: Any = DyingEngine(64 * GIB, 0)

    def probe_memory(request: protocol.ProbeMemory) -> protocol.MemoryProbed:
        requests.append(request)
        raise EngineError("formulas are used")

    monkeypatch.setattr(engine, "probe_memory", probe_memory)
    gpus = (Gpu(name="GPU", total_bytes=GIB, free_bytes=GIB, device="Vulkan1"),)
    needed = plan(llama(), machine(64 * GIB, gpu_name="GPU", gpu_free_bytes=64 * GIB)).estimate.gpu
    full = machine(64 * GIB, gpu_name="GPU", gpu_free_bytes=needed, gpus=gpus)  # exact sizes are worth their time
    monkeypatch.setattr(loading, "current_machine", lambda *_: full)
    load(engine)
    assert {tuple(request.devices) for request in requests} == {("Vulkan1",)}


def test_the_gpu_is_tested_with_the_weights_of_the_drafter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the model is loaded again, without a test."""
    small = llama(GIB // 8, path="small.gguf")
    choice = DrafterChoice(kind="draft-model", name="small", profile=small, reason="chosen by the user")
    problem = "GPU is not used, because it is not tested yet with Q4_1 weights"
    gpus = [Gpu(name="GPU", total_bytes=64 * GIB, free_bytes=64 * GIB, device="Vulkan1", module="/vulkan.so")]
    engine: Any = DyingEngine(64 * GIB, 0)
    asked: list[Any] = []

    def list_devices(**arguments: Any) -> Any:
        asked.append(arguments["drafter_types"])
        return SimpleNamespace(gpus=gpus, problems=[])

    def find_type_problem(_bundle: object, devices: object, types: object) -> str:
        asked.append((devices, types))
        return problem

    engine.list_devices = list_devices
    monkeypatch.setattr(loading, "find_bundle", lambda: SimpleNamespace(gpu_modules=("vulkan",), warnings=[]))
    monkeypatch.setattr(loading, "choose_drafter", lambda *_: choice)
    monkeypatch.setattr(loading, "current_machine", lambda *_: machine(
        64 * GIB, gpu_name="GPU", gpu_free_bytes=64 * GIB, gpus=tuple(gpus)
    ))  # fmt: skip
    monkeypatch.setattr(loading, "load_saved_gpus", lambda: gpus)
    monkeypatch.setattr(gpu_failures, "find_bundle", lambda: None)
    monkeypatch.setattr(gpu_probe, "find_type_problem", find_type_problem)
    monkeypatch.setattr(loading, "read_header", lambda path: None)
    monkeypatch.setattr(loading, "is_gpu_refused", lambda plan: False)
    target = llama()
    monkeypatch.setattr(ModelProfile, "from_header", lambda header: target)
    load_plan, _, _ = loading.load_model(engine, target, Settings(), lambda event: None, lambda: None)
    types = gpu_failures.list_matrix_types(small)
    assert types
    assert asked == [types, ([("/vulkan.so", "Vulkan1")], types)]
    assert load_plan.options.n_gpu_layers
    assert load_plan.drafter is None
    assert problem in load_plan.reasons["drafter"]
    new_plan, _ = loading.reload_model(engine, load_plan, Settings())
    assert (bool(new_plan.options.n_gpu_layers), new_plan.drafter) == (True, None)


def test_increase_after_a_kill_grows_and_ends_after_five_loads() -> None:
    observed_memory.record_kill("m.gguf", 800 * MIB)
    assert observed_memory.extra_bytes("m.gguf") == 100 * MIB
    observed_memory.record_kill("m.gguf", 880 * MIB)
    assert observed_memory.extra_bytes("m.gguf") == 210 * MIB
    for _ in range(5):
        observed_memory.record("m.gguf", 800 * MIB, 790 * MIB)
    assert observed_memory.extra_bytes("m.gguf") == 0
    observed_memory.record("m.gguf", 0, 100 * GIB)
    assert observed_memory.extra_bytes("m.gguf") == 2 * GIB


def test_kill_of_a_grown_context_limits_its_length_and_not_the_plan() -> None:
    profile = llama(n_ctx_train=1 << 17)
    load_plan = plan(profile, machine(64 * GIB))
    assert load_plan.max_n_ctx == 1 << 17
    engine = SimpleNamespace(peak_n_ctx=1 << 16, take_memory_kill=lambda: True)
    assert load_records.record_memory_kill(engine, load_plan)  # type: ignore[arg-type]
    assert observed_memory.extra_bytes(profile.path) == 0
    limit = context_limits.read_limit(profile.path)
    limited_plan = plan(profile, machine(64 * GIB), longest_n_ctx=limit)
    assert (limited_plan.options, limited_plan.max_n_ctx) == (load_plan.options, 1 << 15)
    context_limits.record_success(profile.path, 1 << 14)
    assert context_limits.read_limit(profile.path) == 1 << 15
    context_limits.record_success(profile.path, 1 << 15)
    assert context_limits.read_limit(profile.path) == 1 << 16


def test_kill_at_the_planned_length_raises_the_estimate() -> None:
    load_plan = plan(llama(n_ctx_train=1 << 17), machine(64 * GIB))
    engine = SimpleNamespace(peak_n_ctx=8192, take_memory_kill=lambda: True)
    assert load_records.record_memory_kill(engine, load_plan)  # type: ignore[arg-type]
    assert observed_memory.extra_bytes(load_plan.model_path) > 0
    assert context_limits.read_limit(load_plan.model_path) is None


@pytest.mark.parametrize(("n_ctx", "n_warnings"), [(8192, 0), (16384, 1)])
def test_context_beyond_the_training_length_is_a_warning(n_ctx: int, n_warnings: int) -> None:
    load_plan = plan(llama(n_ctx_train=8192), machine(64 * GIB), n_ctx=n_ctx)
    properties: Any = SimpleNamespace(n_ctx=n_ctx, n_ctx_train=8192, chat_template="template", drafter_error="")
    warnings = load_records.find_load_warnings(Settings(n_ctx=n_ctx), Path("m.gguf"), properties, load_plan)
    assert len(warnings) == n_warnings
    assert all(w.startswith("m.gguf was trained with 8,192 tokens; edgechat extends its context") for w in warnings)


@pytest.mark.parametrize(("name", "is_told"), [("small", True), ("auto", False), ("off", False)])
def test_a_named_draft_model_without_room_is_a_warning(name: str, is_told: bool) -> None:
    choice = DrafterChoice(
        kind="draft-model", name="small", profile=llama(GIB), reason="chosen by the user", is_required=name == "small"
    )
    load_plan = plan(llama(), machine(plan(llama(), machine(64 * GIB)).estimate.total), drafter=choice)
    properties: Any = SimpleNamespace(
        n_ctx=4096, n_ctx_train=4096, chat_template="", is_embedding=False, drafter_error=""
    )
    warnings = load_records.find_load_warnings(Settings(draft_model=name), Path("m.gguf"), properties, load_plan)
    assert any("Decoding without the drafter: small needs" in warning for warning in warnings) == is_told


@pytest.mark.parametrize("name", ["small", "auto"])
def test_a_drafter_that_the_engine_could_not_open_is_a_warning(name: str) -> None:
    properties: Any = SimpleNamespace(
        n_ctx=4096, n_ctx_train=4096, chat_template="", drafter_error="small.gguf is damaged. Download it again."
    )
    load_plan = plan(llama(), machine(64 * GIB))
    warnings = load_records.find_load_warnings(Settings(draft_model=name), Path("m.gguf"), properties, load_plan)
    assert warnings == ["Decoding without the drafter: small.gguf is damaged. Download it again."]


@pytest.mark.parametrize("failure", ["error", "crash"])
@pytest.mark.parametrize("has_heads", [True, False])
def test_own_heads_replace_a_named_drafter_that_the_engine_cannot_open(
    monkeypatch: pytest.MonkeyPatch, failure: str, *, has_heads: bool
) -> None:
    target = with_heads(llama())
    heads = DrafterChoice(kind="mtp", name="the MTP heads", profile=target, reason="in the file of the model")
    choice = DrafterChoice(
        kind="draft-model", name="small", profile=llama(GIB // 8, path="small.gguf"), reason="chosen by the user",
        is_required=True, fallback=heads if has_heads else None,
    )  # fmt: skip
    monkeypatch.setattr(loading, "current_machine", lambda *_: machine(64 * GIB))
    monkeypatch.setattr(loading, "choose_drafter", lambda *_: choice)
    engine = DyingEngine(real_bytes=64 * GIB, unknown_bytes=0)
    load_in_engine = engine.load

    def refuse_draft_models(request: protocol.Load, on_event: object) -> Any:
        loaded = load_in_engine(request, on_event)
        drafter = request.plan.drafter
        if drafter is None or drafter.kind != "draft-model":
            return loaded
        if failure == "crash":
            drafter_crashes.record_crash(request.plan.model_path, drafter, "SIGABRT")
            raise EngineDiedError("The engine process died: SIGABRT (signal 6)", -6)
        return SimpleNamespace(drafter_error="small.gguf is damaged. Download it again.")

    monkeypatch.setattr(engine, "load", refuse_draft_models)
    client: Any = engine
    load_plan, loaded, warnings = loading.load_model(client, target, Settings(), lambda event: None, lambda: None)
    assert warnings == []
    assert engine.plans[0].drafter is not None
    assert engine.plans[0].drafter.kind == "draft-model"
    expected = "the engine died with SIGABRT" if failure == "crash" else "small.gguf is damaged. Download it again"
    if has_heads:
        assert engine.plans[-1].drafter is not None
        assert (len(engine.plans), engine.plans[-1].drafter.kind) == (2, "mtp")
        assert load_plan.reasons["draft_model"].startswith(expected)
        assert load_plan.reasons["drafter"].startswith("the MTP heads, in the file of the model")
    elif failure == "crash":
        assert (len(engine.plans), engine.plans[-1].drafter) == (2, None)
        assert load_plan.reasons["draft_model"].startswith(expected)
    else:  # the loaded model decodes without it
        assert (len(engine.plans), loaded.drafter_error) == (1, f"{expected}.")


@pytest.mark.parametrize(
    ("has_room", "start"),
    [(True, "Drafting with the MTP heads of the model, not with the named drafter: No model"), (False, "Decoding wit")],
)
def test_a_notice_says_what_drafts_in_place_of_a_named_drafter(*, has_room: bool, start: str) -> None:
    target = with_heads(llama())
    choice = DrafterChoice(
        kind="mtp", name="the MTP heads", profile=target, reason="in the file", refusal="No model with the name 'x'"
    )
    n_bytes = 64 * GIB if has_room else plan(target, machine(64 * GIB)).estimate.total
    load_plan = plan(target, machine(n_bytes), drafter=choice)
    properties: Any = SimpleNamespace(
        n_ctx=4096, n_ctx_train=4096, chat_template="", is_embedding=False, drafter_error=""
    )
    [warning] = load_records.find_load_warnings(Settings(draft_model="x"), Path("m.gguf"), properties, load_plan)
    assert warning.startswith(start)
    assert warning.endswith("No model with the name 'x'.")
    assert load_records.find_load_warnings(Settings(), Path("m.gguf"), properties, load_plan) == []


def test_cpu_plan_after_a_gpu_failure_has_the_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = DrafterChoice(
        kind="draft-model", name="small", profile=llama(GIB // 4), reason="chosen by the user", is_required=True
    )
    gpu_machine = machine(64 * GIB, gpu_name="GPU", gpu_free_bytes=64 * GIB)
    monkeypatch.setattr(loading, "current_machine", lambda *_: gpu_machine)
    monkeypatch.setattr(loading, "choose_drafter", lambda *_: choice)
    engine = DyingEngine(real_bytes=64 * GIB, unknown_bytes=0)
    load_in_engine = engine.load

    def load_on_cpu(request: protocol.Load, on_event: object) -> Any:
        result = load_in_engine(request, on_event)
        if request.plan.options.n_gpu_layers:
            raise EngineDiedError("The engine process died: SIGSEGV (signal 11)", -11)
        return result

    monkeypatch.setattr(engine, "load", load_on_cpu)
    load(engine)
    assert [bool(p.options.n_gpu_layers) for p in engine.plans] == [True, True, False]
    assert engine.plans[-1].drafter is not None
    assert engine.plans[-1].reasons["drafter"].startswith("small, chosen by the user")


def test_model_that_would_fit_on_a_gpu_that_failed_names_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    warning = "vulkan: not used with m.gguf: the engine failed on it 1 time, or by `edgechat doctor --retest`"
    monkeypatch.setattr(loading, "_find_gpus", lambda *_: ([], [warning]))
    monkeypatch.setattr(loading, "current_machine", lambda *_: machine(GIB // 8))
    with pytest.raises(PlanError, match=r"doctor --retest`\.$"):
        load(DyingEngine(real_bytes=GIB, unknown_bytes=0))


@pytest.mark.parametrize("kind", ["draft-model", None])
def test_record_of_a_loaded_model_includes_the_mapped_weights_of_its_drafter(kind: Any) -> None:
    choice = DrafterChoice(kind=kind, name="small", profile=llama(GIB // 4), reason="installed")
    load_plan = plan(llama(), machine(64 * GIB), drafter=choice)
    engine: Any = SimpleNamespace(pid=os.getppid())  # a process that runs
    load_records.register_loaded_model(engine, load_plan)
    [instance] = instances.other_instances()
    assert instance.mapped_bytes == load_plan.estimate.weights + (GIB // 4 if kind else 0)
    assert instance.total_bytes == load_plan.estimate.engine
