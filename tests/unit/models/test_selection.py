"""Automatic choice of an installed model, and the suggestion of a download."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import pytest

from edgechat import paths
from edgechat.catalogue import library
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.errors import CatalogueError, PlanError
from edgechat.files import JsonFile
from edgechat.hardware.cpu import candidate_thread_counts, read_cpu
from edgechat.hardware.gpu import Gpu
from edgechat.models import resources, selection
from edgechat.models.selection import choose_installed_model
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.machine import Machine
from edgechat.planner.ranking import Evaluation
from edgechat.planner.throughput import KernelSpeeds, PredictedSpeed
from edgechat.runtime.backends import gpu_probe, observed_speeds, verdicts
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.observed_speeds import Work
from edgechat.tui.screens.first_run import make_offer
from tests.conftest import Cli
from tests.models import write_tiny_llama
from tests.unit.planner.profiles import ZEN4

if TYPE_CHECKING:
    from edgechat.engine.client import EngineClient


@pytest.mark.slow
def test_download_is_suggested_if_no_model_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "scan", list)
    with pytest.raises(PlanError, match=r"No model is installed\. `edgechat plan --all` measures this machine"):
        choose_installed_model(Settings(budget="8GB"))
    monkeypatch.setattr(selection, "load_measured_speeds", lambda: ZEN4)
    with pytest.raises(
        PlanError,
        match=r"No model is installed\. The best catalogue model .* Download it with `edgechat models pull ",
    ):
        choose_installed_model(Settings(budget="8GB"))
    with pytest.raises(PlanError, match="No model of the catalogue fits"):
        choose_installed_model(Settings(budget="1MB"))


def test_best_installed_model_that_fits_is_chosen(starter: Path) -> None:
    name, path = choose_installed_model(Settings())
    assert (name, path) == ("starter", starter)
    paths.models_dir().mkdir(parents=True)
    tiny = write_tiny_llama(paths.models_dir() / "tiny.gguf")
    assert choose_installed_model(Settings())[1] == starter
    assert choose_installed_model(Settings(budget="130MB"))[1] == tiny
    with pytest.raises(PlanError, match=r"None of the 2 installed models fits: the smallest, .*, needs"):
        choose_installed_model(Settings(budget="20MB"))


def test_chat_plan_and_first_run_screen_agree_on_a_model_that_needs_the_reserved_memory(
    monkeypatch: pytest.MonkeyPatch, starter: Path
) -> None:
    paths.models_dir().mkdir(parents=True)
    write_tiny_llama(paths.models_dir() / "tiny.gguf")
    full_machine = Machine(available_bytes=2 << 30, reserved_bytes=(2 << 30) - (8 << 20), n_threads=2)
    for module in (resources, selection):
        monkeypatch.setattr(module, "current_machine", lambda *_arguments: full_machine)
    monkeypatch.setattr(selection, "load_measured_speeds", lambda: None)
    assert choose_installed_model(Settings())[1] == starter
    offer = make_offer(Settings(), with_picks=False)
    assert offer.installed_model is not None
    assert offer.installed_model.candidate.name == "starter"
    evaluations = selection.evaluate_all(selection.list_installed_candidates(), Settings())
    assert {e.candidate.name: e.verdict.partition(";")[0] for e in evaluations}["starter"] == (
        "fits only without the 2.14 GB reserved for other programs"
    )


def test_plan_uses_no_gpu_that_failed_with_the_model(monkeypatch: pytest.MonkeyPatch, starter: Path) -> None:
    """A start of the chat would not, either."""
    gpu = Gpu(name="a GPU", total_bytes=8 << 30, free_bytes=8 << 30, module="/gpu.so", device="Vulkan0")
    machine = Machine(
        available_bytes=8 << 30,
        n_threads=2,
        gpu_name=gpu.name,
        gpu_module=gpu.module,
        gpus=(gpu,),
        gpu_free_bytes=8 << 30,
    )
    candidates = [c for c in selection.list_installed_candidates() if c.name == "starter"]
    failures: dict[tuple[str, str], str] = {}
    monkeypatch.setattr(gpu_probe, "find_distrust", lambda _bundle, path, module: failures.get((path, module), ""))

    def plan() -> LoadPlan:
        (evaluation,) = selection.evaluate_for_machine(candidates, machine, Settings(), None)
        assert evaluation.plan is not None
        return evaluation.plan

    assert plan().options.uses_gpu
    failures[candidates[0].profile.path, "/gpu.so"] = "not used with starter: the engine failed on it"
    assert not plan().options.uses_gpu
    assert plan().reasons["n_gpu_layers"] == "a GPU is not used with starter: the engine failed on it"


def test_starter_is_chosen_if_the_registry_is_damaged(starter: Path) -> None:
    paths.data_dir().mkdir(parents=True)
    (paths.data_dir() / "library.json").write_text("{")
    with pytest.raises(CatalogueError):
        library.scan()
    assert choose_installed_model(Settings()) == ("starter", starter)


BACKEND = find_bundle().modules[0]


def save_replies(path: Path, n_threads: int = 2, **tps: float) -> None:
    """Save four replies with these decode and prefill speeds, in tokens per second."""
    speeds: dict[tuple[Work, int], list[float]] = {
        ("decode", n_threads): [tps["decode"]] * 4, ("prefill", n_threads): [tps["prefill"]] * 4
    }  # fmt: skip
    key = observed_speeds.make_backend_key(find_bundle(), BACKEND.name)
    observed_speeds.record(str(path), key, speeds)


def save_benchmark(n_threads: int = 2, *, slow_down: float = 1.0) -> KernelSpeeds:
    """Save a kernel benchmark of this machine with the rates of a Zen 4, divided by `slow_down`."""
    rates = ZEN4.product_rates | {"Q4_1": ZEN4.product_rates["Q4_0"]}
    speeds = msgspec.structs.replace(
        ZEN4, backend=BACKEND.name, n_threads=n_threads, n_decode_threads=n_threads, n_prefill_threads=n_threads,
        max_n_threads=candidate_thread_counts()[-1], measured_at=time.time(),
        product_rates={name: {n: rate / slow_down for n, rate in row.items()} for name, row in rates.items()},
    )  # fmt: skip
    key = verdicts.compute_verdict_key(find_bundle(), BACKEND, read_cpu())
    JsonFile(paths.kernel_speeds_file(), dict[str, KernelSpeeds], max_bytes=1 << 20).write({key: speeds})
    return speeds


def evaluate_installed(settings: Settings = Settings()) -> Evaluation:  # noqa: B008  (frozen)
    [evaluation] = selection.evaluate_all(selection.list_installed_candidates(), settings)
    assert evaluation.speed is not None
    return evaluation


@pytest.mark.slow
def test_replies_correct_the_speed_of_their_model(starter: Path, cli: Cli) -> None:
    save_benchmark()
    predicted = evaluate_installed()
    assert predicted.speed is not None
    assert predicted.turn is not None
    assert predicted.speed_reasons == {}
    save_replies(starter, decode=predicted.speed.decode_tps / 1.4, prefill=predicted.speed.prefill_tps * 1.4)
    unchanged = evaluate_installed()
    assert (unchanged.speed, unchanged.turn, unchanged.speed_reasons) == (predicted.speed, predicted.turn, {})
    for _ in range(4):
        save_replies(starter, decode=8.0, prefill=20.0)
    corrected = evaluate_installed()
    assert (corrected.speed, corrected.is_fast_enough) == (PredictedSpeed(decode_tps=8.0, prefill_tps=20.0), True)
    assert corrected.turn is not None
    assert corrected.turn.total_s == 600 / 20 + 300 / 8
    assert not evaluate_installed(Settings(min_speed=9.0)).is_fast_enough
    assert evaluate_installed(Settings(n_threads=1)).speed == predicted.speed  # nothing was observed with one thread

    row = json.loads(cli("plan", "--json", "--no-measure").stdout)["models"][0]
    assert (row["decode_tps"], row["prefill_tps"], row["turn_s"]) == (8.0, 20.0, 67.5)
    explanation = " ".join(cli("plan", "--explain", "--no-measure").stdout.split())
    reason = (
        "decoding at 8.0 tokens/s, the median of recent replies, instead of the predicted "
        f"{predicted.speed.decode_tps:.1f} tokens/s"
    )
    assert explanation.count(reason) == 2  # below the pick, and in the explanation
    assert f" decode_tps: {reason} " in explanation
    for _ in range(3):
        save_replies(starter, decode=predicted.speed.decode_tps, prefill=predicted.speed.prefill_tps)
    assert evaluate_installed().speed == predicted.speed


@pytest.mark.slow
def test_replies_do_not_count_for_a_machine_that_is_described(starter: Path, cli: Cli, tmp_path: Path) -> None:
    save_benchmark()
    save_replies(starter, decode=8.0, prefill=20.0)
    profile = tmp_path / "machine.json"
    profile.write_text(cli("doctor", "--json").stdout)
    row = json.loads(cli("plan", "--json", "--machine", str(profile)).stdout)["models"][0]
    assert row["decode_tps"] > 20


class FakeEngine:
    """Engine whose kernel benchmark returns `measured`."""

    def __init__(self, measured: KernelSpeeds) -> None:
        self._measured = measured
        self.n_benchmarks = 0

    def list_devices(self, *, benchmark: bool, remeasure: bool, on_event: object) -> protocol.DevicesListed:
        assert benchmark
        assert remeasure
        self.n_benchmarks += 1
        return protocol.DevicesListed(id=1, backend=BACKEND.name, gpus=[], speeds=self._measured)


def test_benchmark_that_replies_contradict_is_repeated_once_a_day(
    monkeypatch: pytest.MonkeyPatch, starter: Path
) -> None:
    is_busy = False
    monkeypatch.setattr(selection, "is_machine_busy", lambda _n_threads: is_busy)
    good = save_benchmark()
    expected = evaluate_installed().speed
    assert expected is not None
    poisoned = save_benchmark(slow_down=20)
    engine = FakeEngine(good)

    def load_or_measure() -> KernelSpeeds | None:
        return selection.load_or_measure_speeds(cast("EngineClient", engine))

    assert load_or_measure() == poisoned  # no reply contradicts it
    save_replies(starter, n_threads=1, decode=expected.decode_tps, prefill=expected.prefill_tps)
    assert load_or_measure() == poisoned  # with one thread, another speed is expected
    save_replies(starter, decode=expected.decode_tps, prefill=expected.prefill_tps)
    is_busy = True
    assert load_or_measure() == poisoned  # other programs would disturb it again
    is_busy = False
    assert load_or_measure() == good
    assert engine.n_benchmarks == 1
    assert load_or_measure() == poisoned  # the engine of this test has saved nothing
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86401)
    assert load_or_measure() == good
    agreeing = save_benchmark()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86402)
    assert load_or_measure() == agreeing
    assert engine.n_benchmarks == 2
