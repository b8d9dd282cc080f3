"""`edgechat doctor` and the measured speed of the machine."""

from __future__ import annotations

import json

import msgspec
import pytest

from edgechat.cli.doctor import _describe_device, _make_backend_object
from edgechat.runtime.backends.bundle import BackendModule
from edgechat.runtime.backends.verdicts import DeviceVerdict, FailedType, Verdict
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


def test_device_names_the_types_that_failed_and_those_that_were_not_measured() -> None:
    device = DeviceVerdict(
        name="Vulkan0", description="Graphics 0", kind="integrated", status="passed", reason="passed 4 checks",
        types=(2, 12), failed_types=(FailedType(30, "crashed with SIGSEGV"), FailedType(14, "hung", is_final=False)),
        unmeasured_types=(12,),
    )  # fmt: skip

    def describe(device: DeviceVerdict) -> str:
        verdict = Verdict("vulkan", "passed", "passed 4 checks", devices=(device,))
        [found] = _make_backend_object(BackendModule("vulkan", "/v.so"), verdict)["devices"]
        return _describe_device(found)

    assert describe(device) == (
        "Graphics 0 (integrated); Q4_0, Q4_K weight types tested; not used for models with BF16 weights, because its "
        "test crashed with SIGSEGV; its speed with Q4_K could not be measured"
    )
    assert "; all other weight types tested; not used" in describe(msgspec.structs.replace(device, types=None))
