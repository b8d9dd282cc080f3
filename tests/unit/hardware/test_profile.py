"""Hardware profiles: warnings about conditions of a machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgechat.hardware.profile import HardwareProfile

PROFILES = sorted((Path(__file__).parents[2] / "profiles").glob("*.json"))


@pytest.mark.parametrize("file", PROFILES, ids=[file.stem for file in PROFILES])
def test_recorded_profiles_have_no_warnings(file: Path) -> None:
    assert msgspec.json.decode(file.read_bytes(), type=HardwareProfile).warnings() == []


def test_conditions_that_slow_the_machine_down_are_reported() -> None:
    profile = msgspec.json.decode(PROFILES[0].read_bytes(), type=HardwareProfile)
    slow = msgspec.structs.replace(profile, is_on_battery=True, hottest_celsius=91.0, gpu_problem="no driver")
    assert [message.split()[0] for message in slow.warnings()] == ["no", "This", "The"]
