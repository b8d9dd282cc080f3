"""Automatic choice of an installed model, and the suggestion of a download."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import library
from edgechat.config import Settings
from edgechat.errors import CatalogueError, PlanError
from edgechat.models import resources, selection
from edgechat.models.selection import choose_installed_model
from edgechat.planner.machine import Machine
from edgechat.tui.screens.first_run import make_offer
from tests.models import write_tiny_llama
from tests.unit.planner.profiles import ZEN4


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


def test_starter_is_chosen_if_the_registry_is_damaged(starter: Path) -> None:
    paths.data_dir().mkdir(parents=True)
    (paths.data_dir() / "library.json").write_text("{")
    with pytest.raises(CatalogueError):
        library.scan()
    assert choose_installed_model(Settings()) == ("starter", starter)
