"""Picks of the catalogue for the described machines in tests/profiles."""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
import pytest

from edgechat.hardware.profile import HardwareProfile
from edgechat.models.selection import list_catalogue_candidates
from edgechat.planner.machine import Machine, machine_from_profile, speeds_from_profile
from edgechat.planner.picks import BALANCED, OBJECTIVES, Objective, choose_picks
from edgechat.planner.ranking import Evaluation, evaluate

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.json"))
FILES = pytest.mark.parametrize("file", PROFILES, ids=[file.stem for file in PROFILES])


@functools.cache
def evaluate_catalogue(file: Path) -> tuple[Machine, list[Evaluation], dict[Objective, Evaluation]]:
    profile = msgspec.json.decode(file.read_bytes(), type=HardwareProfile)
    machine, speeds = machine_from_profile(profile), speeds_from_profile(profile)
    evaluations = [evaluate(c, machine, speeds=speeds, min_tps=5.0) for c in list_catalogue_candidates()]
    picks = choose_picks(evaluations, defaults_only=True)
    return machine, evaluations, {objective: pick.evaluation for pick in picks for objective in pick.objectives}


@FILES
def test_each_machine_has_three_picks_that_fit(file: Path) -> None:
    machine, _, picks = evaluate_catalogue(file)
    assert set(picks) == set(OBJECTIVES)
    for evaluation in picks.values():
        assert evaluation.memory.total <= machine.available_bytes - machine.reserved_bytes
        assert evaluation.candidate.profile.tensor_bytes <= (machine.max_download_bytes or 0)
    times = [picks[objective].ranking_s or 0.0 for objective in OBJECTIVES]
    assert times == sorted(times)


@FILES
def test_balanced_reply_takes_at_most_30_s_where_a_useful_model_manages_it(file: Path) -> None:
    _, evaluations, picks = evaluate_catalogue(file)
    has_useful_model = any(
        e.candidate.is_default and e.points >= 8 and e.ranking_s is not None and e.ranking_s <= 30 for e in evaluations
    )
    turn = picks[BALANCED].turn
    assert turn is not None
    assert not has_useful_model or turn.total_s <= 30


@FILES
def test_no_full_precision_is_picked_where_a_q8_exists(file: Path) -> None:
    _, evaluations, picks = evaluate_catalogue(file)
    with_q8 = {e.model_name for e in evaluations if e.candidate.quant == "Q8_0"}
    for evaluation in picks.values():
        assert evaluation.candidate.quant not in {"F32", "F16", "BF16"} or evaluation.model_name not in with_q8


@FILES
def test_described_machine_names_the_sources_of_its_figures(file: Path) -> None:
    assert msgspec.json.decode(file.read_bytes(), type=HardwareProfile).sources
