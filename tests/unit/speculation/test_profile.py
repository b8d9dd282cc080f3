"""Speculation profile: round trip, invalid files, invalid numbers."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from edgechat.speculation.drafter import FROM_CORPUS
from edgechat.speculation.profile import LearnedRates, SpeculationProfile, load_profile, save_profile

NEW = SpeculationProfile()


def test_saved_profile_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    profile = load_profile(path)
    for _ in range(50):
        profile.greedy_acceptance.record(FROM_CORPUS, 3, is_accepted=True)
        profile.costs.record(1, 600, 0.01)
        profile.costs.record(4, 600, 0.02)
    save_profile(profile, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    profile.greedy_acceptance.start_reply()
    reloaded = load_profile(path)
    assert reloaded.greedy_acceptance.probabilities == profile.greedy_acceptance.probabilities
    assert reloaded.sampled_acceptance.probabilities == NEW.sampled_acceptance.probabilities
    assert reloaded.costs.ratio(4, 600) == pytest.approx(2.0)
    assert list(path.parent.iterdir()) == [path]
    save_profile(profile, path / "below a file")  # impossible path: ignored


def test_unsaved_replies_share_rates_that_are_not_those_of_the_profile() -> None:
    profile = SpeculationProfile()
    drafter = profile.find_drafter("a model")
    drafter.greedy.positions[0].add(96, is_accepted=True)
    rates = LearnedRates(profile, drafter)
    assert rates.find(is_sampled=False, is_saved=True) == (profile.greedy_acceptance, drafter.greedy)
    assert rates.find(is_sampled=True, is_saved=True) == (profile.sampled_acceptance, drafter.sampled)
    acceptance, counts = rates.find(is_sampled=False, is_saved=False)
    assert counts == drafter.greedy
    acceptance.record(FROM_CORPUS, 3, is_accepted=False)
    counts.positions[0].add(96, is_accepted=False)
    assert drafter.greedy.positions[0].n_rejected == 0
    assert profile.greedy_acceptance.probabilities == NEW.greedy_acceptance.probabilities
    assert rates.find(is_sampled=False, is_saved=False) == (acceptance, counts)
    assert rates.find(is_sampled=True, is_saved=False)[0] is not acceptance


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"version": 1}', "null", "[" * 100_000, "9" * 5000, "\0",
     '{"version": 2, "greedy": [], "drawn": [], "ratios": []}',
     '{"version": 1, "greedy": [], "drawn": [], "ratios": []}'],
)  # fmt: skip
def test_invalid_file_gives_a_new_profile(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    assert load_profile(path).greedy_acceptance.probabilities == NEW.greedy_acceptance.probabilities


@pytest.mark.parametrize(
    ("old", "new"),
    [('"right":0.0', '"right":-1.0'), ('"right":0.0', '"right":1e300'), ('"wrong":0.0', '"wrong":null'),
     ('"value":2.0', '"value":0.0'), ('"value":2.0', '"value":1e9'), ('"count":2', '"count":-2'), ('{"4":', '{"5":')],
)  # fmt: skip
def test_out_of_range_numbers_give_a_new_profile(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "profile.json"
    profile = SpeculationProfile()
    for _ in range(2):
        profile.costs.record(1, 600, 0.01)
        profile.costs.record(4, 600, 0.02)
    save_profile(profile, path)
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    assert load_profile(path).costs.ratio(4, 600) == NEW.costs.ratio(4, 600)


def test_oversized_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    assert load_profile(path).greedy_acceptance.probabilities == NEW.greedy_acceptance.probabilities


def test_costs_of_earlier_versions_are_used_until_the_first_measurement(tmp_path: Path) -> None:
    """Earlier versions saved no times, and measured beside other programs, too."""
    path = tmp_path / "profile.json"
    profile = SpeculationProfile()
    for _ in range(5):
        profile.costs.record(1, 600, 0.01)
        profile.costs.record(2, 600, 0.099)
    save_profile(profile, path)
    assert load_profile(path).costs.is_measured(2, 600)
    path.write_text(re.sub(r',"measured_at":[0-9.e]+', "", path.read_text()))
    costs = load_profile(path).costs
    assert costs.ratio(2, 600) == pytest.approx(9.9)
    assert not costs.is_measured(2, 600)
    costs.record(1, 600, 0.01)
    costs.record(2, 600, 0.0107)
    assert costs.ratio(2, 600) == pytest.approx(1.07)


def test_profiles_of_drafters_and_batches_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = SpeculationProfile()
    drafter = profile.find_drafter("mtp")
    drafter.costs.record(4, 1, 2, 0.04, is_disturbed=False)
    drafter.greedy.buckets[3].add(96, is_accepted=True)
    drafter.schedule.interval = 512
    drafter.costs.record(4, 1, 1, 0.04, is_disturbed=True)
    for _ in range(3):
        profile.find_batch_costs(3).record(1, 600, 0.01)
        profile.find_batch_costs(3).record(4, 600, 0.02)
    save_profile(profile, path)
    saved = load_profile(path)
    assert saved.find_batch_costs(3).ratio(4, 600) == pytest.approx(2.0)
    loaded = saved.find_drafter("mtp")
    assert loaded == drafter
    for number in range(20):
        saved.find_drafter(str(number))
    assert len(saved.drafters) == 8
    save_profile(saved, path)
    assert "19" in load_profile(path).drafters


def test_costs_of_a_drafter_in_an_earlier_process_are_soon_replaced(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = SpeculationProfile()
    for _ in range(9):
        profile.find_drafter("mtp").costs.record(4, 1, 1, 4.0, is_disturbed=False)
    save_profile(profile, path)
    costs = load_profile(path).find_drafter("mtp").costs
    assert costs.step_cost(1, 1.0) == 1.0
    for _ in range(2):
        costs.record(4, 1, 1, 0.4, is_disturbed=False)
    assert costs.step_cost(1, 1.0) == pytest.approx(0.1)


def test_file_of_an_earlier_version_has_no_drafters(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = SpeculationProfile()
    profile.greedy_acceptance.record(FROM_CORPUS, 3, is_accepted=True)
    save_profile(profile, path)
    content = json.loads(path.read_text())
    del content["batch_ratios"], content["drafters"]
    path.write_text(json.dumps(content))
    loaded = load_profile(path)
    assert loaded.greedy_acceptance.counts[FROM_CORPUS][2].n_accepted == 1.0
    assert not loaded.drafters


@pytest.mark.parametrize(
    ("old", "new"),
    [('"interval":64', '"interval":0'), ('"interval":64', '"interval":-5'), ('"n_waited":0', '"n_waited":-1'),
     ('"step_s":{"2":{"undisturbed":[0.01]', '"step_s":{"2":{"undisturbed":[0.0]'), ('"step_s":{"2"', '"step_s":{"0"'),
     ('"undisturbed":[0.01]', '"undisturbed":[0.01,0.01,0.01,0.01,0.01,0.01]'),
     ('"disturbed":[0.01]}', '"disturbed":[0.0]}'), ('"disturbed":[0.01]}', '"disturbed":[0.01,0.01,0.01,0.01]}'),
     ('"positions":[', '"positions":[{"right":1.0,"wrong":0.0},')],
)  # fmt: skip
def test_invalid_profile_of_a_drafter_gives_a_new_profile(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "profile.json"
    profile = SpeculationProfile()
    profile.find_drafter("mtp").costs.record(4, 1, 2, 0.04, is_disturbed=False)
    profile.find_drafter("mtp").costs.record(4, 1, 1, 0.04, is_disturbed=True)
    save_profile(profile, path)
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    assert not load_profile(path).drafters
