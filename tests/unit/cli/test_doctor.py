"""`edgechat doctor` and the measured speed of the machine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import msgspec
import pytest

from edgechat.cli.doctor import _make_backend_object, diagnose
from edgechat.cli.doctor_gpus import check_gpus, describe_device, describe_gpu_setup, list_needed_types
from edgechat.cli.progress import StderrStatus
from edgechat.errors import CatalogueError
from edgechat.models import selection
from edgechat.runtime.backends import gpu_type_tests
from edgechat.runtime.backends.bundle import BackendModule, Bundle
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
        return describe_device(found)

    assert describe(device) == (
        "Graphics 0 (integrated); Q4_0, Q4_K weight types tested; the other 25 are tested while edgechat is idle, "
        "before a model needs them, or by another `edgechat doctor`; not used for models with BF16 weights, because "
        "its test crashed with SIGSEGV; its speed with Q4_K could not be measured"
    )
    device = msgspec.structs.replace(device, types=None, failed_types=device.failed_types[:1])
    assert "; all other weight types tested; not used" in describe(device)


TURNED_OFF = "not tested and not used, because the setting `gpu` is false"
MODULE = BackendModule("vulkan", "/v.so")
BUNDLE = Bundle(
    directory="/", build_id="1", llama_cpp_python="", llama_cpp_commit="", compiler="", modules=(),
    gpu_modules=(MODULE,),
)  # fmt: skip


def run_gpu_tests(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Callable[[], bool]], None], max_s: float = 60.0
) -> list[tuple[BackendModule, Verdict]]:
    """Let `run` take the place of the tests of all GPUs; it gets the function that ends them."""

    def run_tests(
        bundle: Bundle, cpu_module: BackendModule, needed: list[int], on_progress: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> list[tuple[BackendModule, Verdict]]:  # fmt: skip
        run(is_cancelled)
        return [(MODULE, Verdict("vulkan", "passed", "passed 4 checks"))]

    monkeypatch.setattr(gpu_type_tests, "test_all_types", run_tests)
    return check_gpus(BUNDLE, MODULE, StderrStatus(), max_s)


def test_interrupt_ends_the_tests_of_gpus_and_keeps_their_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []

    def interrupt(is_cancelled: Callable[[], bool]) -> None:
        assert not is_cancelled()
        os.kill(os.getpid(), signal.SIGINT)
        assert is_cancelled()
        saved.append(1)

    with pytest.raises(KeyboardInterrupt):
        run_gpu_tests(monkeypatch, interrupt)
    assert saved
    assert "interrupted. The results so far are saved." in capsys.readouterr().err


def test_second_interrupt_does_not_wait_for_a_test_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def hang(_is_cancelled: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(1)

    with pytest.raises(KeyboardInterrupt):
        run_gpu_tests(monkeypatch, hang)
    assert not ended


def test_tests_of_gpus_end_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    results = run_gpu_tests(monkeypatch, lambda is_cancelled: seen.append(is_cancelled()), max_s=0.0)
    assert seen == [True]
    assert results[0][1].is_usable


@pytest.mark.parametrize(
    ("cards", "start", "end"),
    [
        ([], "", "one"),
        (["Intel (i915)"], "the kernel lists Intel (i915), but ", "edgechat-vulkan"),
        (
            ["NVIDIA (nvidia)", "AMD (amdgpu)"],
            "the kernel lists NVIDIA (nvidia), AMD (amdgpu), but ",
            "edgechat-cuda or edgechat-vulkan",
        ),
    ],
)
def test_missing_gpu_module_is_reported_with_what_to_do(cards: list[str], start: str, end: str) -> None:
    bundle = msgspec.structs.replace(BUNDLE, gpu_modules=())
    note = describe_gpu_setup(bundle, cards, is_enabled=True)
    advice = f"so edgechat uses the CPU; docs/install.md says how to add {end}."
    assert note == f"{start}no GPU module is installed, {advice}"
    bundle = msgspec.structs.replace(bundle, warnings=("edgechat_vulkan is for llama.cpp 1",))
    note = describe_gpu_setup(bundle, cards, is_enabled=True)
    assert note == f"{start}no matching GPU module is installed, {advice}"
    assert describe_gpu_setup(BUNDLE, cards, is_enabled=True) == ""
    assert describe_gpu_setup(BUNDLE, cards, is_enabled=False) == TURNED_OFF
    assert describe_gpu_setup(None, cards, is_enabled=True) == ""


@pytest.mark.usefixtures("warm")
def test_doctor_shows_that_no_gpu_module_is_installed(cli: Cli) -> None:
    [line] = [line for line in cli("doctor").stdout.splitlines() if line.startswith("GPU ")]
    assert "no GPU module is installed" in line
    assert json.loads(cli("doctor", "--json").stdout)["gpu_note"] == line.partition(" ")[2].strip()


@pytest.mark.usefixtures("warm")
def test_no_driver_is_run_if_gpus_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def check(*_arguments: object) -> list[object]:
        checked.append(1)
        return []

    monkeypatch.setattr("edgechat.cli.doctor.check_gpus", check)
    monkeypatch.setenv("EDGECHAT_GPU", "false")
    diagnosis = diagnose()
    assert (checked, diagnosis["gpu_note"]) == ([], TURNED_OFF)
    monkeypatch.setenv("EDGECHAT_GPU", "true")
    assert diagnose()["gpu_note"] != TURNED_OFF
    assert checked == [1]


def test_wrong_directory_in_the_environment_is_named_with_its_variable(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_NATIVE_DIR", "/none")
    done = cli("doctor")
    assert done.returncode == 4
    assert "in /none, which the environment variable EDGECHAT_NATIVE_DIR names (" in done.stdout


def test_models_that_cannot_be_listed_need_no_weight_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[object]:
        raise CatalogueError("The models folder cannot be read.")

    monkeypatch.setattr(selection, "list_installed_candidates", refuse)
    assert list_needed_types() == []
