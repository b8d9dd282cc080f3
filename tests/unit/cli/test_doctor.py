"""`edgechat doctor` and the measured speed of the machine."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Cli


@pytest.mark.long
@pytest.mark.exhaustive
def test_speed_is_measured_again_on_request(cli: Cli) -> None:
    assert json.loads(cli("doctor", "--json").stdout)["speed"] is None
    assert "speed          not measured yet; measure it with --measure" in cli("doctor").stdout
    first = json.loads(cli("doctor", "--measure", "--json").stdout)["speed"]
    assert first["read_bytes_per_s"] > 0
    done = cli("doctor", "--measure", "--json")
    is_kept = json.loads(done.stdout)["speed"]["measured_at"] == first["measured_at"]
    assert is_kept == ("the saved measurement is better" in done.stderr)
    assert " of weights per second with " in cli("doctor").stdout
