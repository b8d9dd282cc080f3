"""The trial on a machine with a GPU: time limits, summary, exit code, and a whole run with the scripted GPU."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgechat.engine.generation import TokenLogprobs
from edgechat.runtime.backends.bundle import find_bundle
from tests.conftest import ROOT
from tests.faults.test_backends import headers
from tests.faults.test_gpu import build_gpu
from tests.waiting import until

__all__ = ["headers"]  # fixture

pytestmark = [pytest.mark.cold, pytest.mark.skipif(sys.platform == "win32", reason="the script needs process groups")]
SCRIPT = ROOT / "packaging" / "cuda" / "try.sh"
EIGHT_MINUTES_S = 480.0
Outcome = tuple[int | None, dict[str, str]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Return a function that imports a module of packaging/gpu, which is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "packaging" / "gpu"))
    names: list[str] = []

    def load(name: str) -> Any:
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def driver(load: Callable[[str], Any]) -> Any:
    return load("try")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Wheels, output and a model for the command line."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"")
    return [str(tmp_path / "wheels"), str(tmp_path / "out"), str(tmp_path / "m.gguf")]


@pytest.mark.parametrize("n_models", [1, 2, 5])
def test_limits_are_below_eight_minutes_for_any_choice_of_steps(driver: Any, n_models: int) -> None:
    models = [f"/m/{number}.gguf" for number in range(n_models)]
    for chosen in [(), *((name,) for name in driver.LIMITS_S), ("replies", "doctor")]:
        steps = driver.list_steps(models, chosen)
        assert sum(step.limit_s for step in steps) + len(steps) * driver.KILL_S < EIGHT_MINUTES_S
        assert steps[0].name == "install"
    assert len(driver.list_steps(models)) == len(driver.LIMITS_S) + n_models - 1
    with pytest.raises(ValueError, match="unknown steps x; choose from install"):
        driver.list_steps(models, ["x"])


def test_a_stalled_program_and_its_children_are_killed_at_the_deadline(driver: Any, tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 1000 & echo $!; trap '' TERM; wait"]
    started: list[psutil.Process] = []

    class Deadline(float):
        """Deadline that is over when the child of the program runs."""

        def __sub__(self, now: float) -> float:
            until(lambda: (tmp_path / "log").read_text().endswith("\n"), description="the child runs")
            started.append(psutil.Process(int((tmp_path / "log").read_text())))
            return 0.0

    code = driver.run_limited(command, tmp_path / "log", Deadline(), dict(os.environ))
    assert code is None
    until(lambda: not is_running(started[0]), description="the child is killed")


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def run(driver: Any, files: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Return a function that runs the script with steps that end as given, and returns exit code and summary."""

    def run(**outcomes: Outcome) -> tuple[int, list[str]]:
        def run_limited(command: Sequence[str], log: Path, deadline: float, environment: dict[str, str]) -> int | None:
            if command[-1] == "--version":
                return 0
            request = json.loads(command[-1])
            assert 0 < request["left_s"] <= deadline - time.monotonic() + 1
            checks = {"replies": driver.REPLY_CHECKS}.get(request["step"], (request["step"],))
            passed: Outcome = (0, dict.fromkeys(checks, "PASS"))
            outcome: Outcome = outcomes.get(request["step"].replace("-", "_").replace(" ", "_"), passed)
            code, states = outcome
            log.write_text("first\nlast words\n")
            lines = [json.dumps({"check": c, "state": s, "figures": f"{c} is {s}"}) + "\n" for c, s in states.items()]
            Path(request["results"]).write_text("".join(lines) + '{"check": "cut in the mid')
            return code

        monkeypatch.setenv("EDGECHAT_TRY_PYTHON", sys.executable)
        monkeypatch.setattr(driver, "run_limited", run_limited)
        monkeypatch.setattr(sys, "argv", ["try.py", "vulkan", *files])
        code = driver.main()
        return code, (Path(files[1]) / "summary.txt").read_text().splitlines()

    return run


def test_all_passed_is_exit_code_0(run: Callable[..., tuple[int, list[str]]], files: list[str]) -> None:
    code, lines = run(exhausted_memory=(0, {"exhausted memory": "SKIP"}))
    assert code == 0
    assert lines[1] == "PASS  self-test: self-test is PASS"
    assert "SKIP  exhausted memory: exhausted memory is SKIP" in lines
    table = (Path(files[1]) / "platforms.md").read_text()
    assert "| replies of m.gguf, half and half | PASS: half and half is PASS |" in table
    assert "last words" in (Path(files[1]) / "report.md").read_text()


def test_cut_step_is_named_and_the_next_one_runs(run: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = run(replies=(None, {"CPU": "PASS", "GPU": "PASS"}))
    assert code == 1
    start = next(number for number, line in enumerate(lines) if "replies" in line)
    assert [line.split(":")[0].split("  ")[0] for line in lines[start : start + 7]] == ["PASS"] * 2 + ["CUT"] * 5
    assert "when the time of the step was over" in lines[start + 2]
    assert lines[start + 3].endswith(": not reached")
    assert "PASS  doctor: doctor is PASS" in lines
    assert "5 CUT, 0 SKIP" in lines[-1]


def test_failures_have_the_last_line_of_the_step(run: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = run(self_test=(-signal.SIGSEGV, {}), doctor=(0, {"doctor": "FAIL"}))
    assert code == 1
    assert lines[1] == "FAIL  self-test: ended with code -11: last words"
    assert "FAIL  doctor: doctor is FAIL" in lines


def test_missing_package_fails_and_nothing_hangs(
    driver: Any, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGECHAT_TRY_PYTHON", raising=False)
    monkeypatch.setattr(sys, "argv", ["try.py", "vulkan", *files])
    assert driver.main() == 1
    lines = (Path(files[1]) / "summary.txt").read_text().splitlines()
    assert lines[0].startswith("FAIL  install: ended with code 1")
    assert lines[0].endswith("has no package edgechat_vulkan")
    assert {line.partition(" ")[0] for line in lines[1:-2]} == {"FAIL"}


def test_wrong_arguments_are_exit_code_2(files: list[str]) -> None:
    done = subprocess.run(["sh", SCRIPT, *files[:2]], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sh try.sh cuda|vulkan WHEELS OUTPUT MODEL.gguf... [-- LLAMA_BENCH]" in done.stdout
    done = subprocess.run(["sh", SCRIPT, *files, "--", "/none"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "try: /none does not exist\n")


def make_reply(steps: Any, *tops: list[tuple[bytes, float]]) -> Any:
    tokens = [TokenLogprobs(top[0][0], top[0][1], top) for top in tops]
    return steps.Reply(
        text="", ids=[], tokens=tokens, n_layers=0, prefills=False, gpu_planned=0, gpu_used=0, figures="", warnings=[]
    )  # fmt: skip


def test_replies_are_equal_up_to_near_ties(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = load("steps")
    monkeypatch.setenv(steps.TOKENS_VARIABLE, "2")
    close, clear = [(b"1", -0.6), (b"2", -0.8)], [(b"3", -0.1), (b"4", -3.0)]
    reference = make_reply(steps, close, clear)
    assert steps.compare(reference, reference)[0]
    is_equal, words = steps.compare(make_reply(steps, [(b"2", -0.7)], [(b"3", -0.2)]), reference)
    assert (is_equal, words[:32]) == (True, "2 tokens equal up to 1 near ties")
    is_equal, words = steps.compare(make_reply(steps, [(b"2", -0.7)], [(b"4", -0.2)]), reference)
    assert (is_equal, words) == (False, "token 2 is b'4' instead of b'3', whose logprob is 2.90 more")
    assert "inf more" in steps.compare(make_reply(steps, [(b"9", -0.7)], clear), reference)[1]
    assert steps.compare(make_reply(steps, close), reference) == (False, "1 tokens instead of 2")
    assert not steps.compare(make_reply(steps), make_reply(steps))[0]


def test_untested_types_are_cut_and_wrong_ones_fail(load: Callable[[str], Any]) -> None:
    steps = load("steps")
    device: dict[str, Any] = {
        "name": "V0", "description": "d", "kind": "discrete", "driver": "", "status": "passed", "types": None,
        "untested_types": [],
    }  # fmt: skip
    backend = {"module": "vulkan", "status": "passed", "reason": "r", "devices": [device]}

    def describe(*devices: dict[str, Any], status: str = "passed") -> tuple[str, str]:
        found: tuple[str, str] = steps.describe_devices(
            {"backends": [backend | {"devices": devices, "status": status}]}
        )
        return found

    assert describe(device) == ("PASS", "V0, d, discrete, driver ?: all types right")
    assert describe(device | {"types": [2], "untested_types": ["Q8_0"]})[0] == "CUT"
    assert describe(device, device | {"status": "wrong"})[0] == "FAIL"
    failed = {"failed_types": [{"type_id": 2, "reason": "r"}]}
    assert describe(device | failed) == ("FAIL", "V0, d, discrete, driver ?: all types right, not Q4_0")
    assert describe(status="refused") == ("FAIL", "vulkan refused, r")
    assert steps.describe_devices({"backends": []}) == ("FAIL", "no GPU module is installed")


def test_starts_are_compared_in_alternating_pairs(load: Callable[[str], Any]) -> None:
    startup = load("startup")
    calls: list[str] = []

    def measure(command: Sequence[str], environment: Any) -> float:
        calls.append(command[0])
        return 1.0 + 0.002 * (command[0] == "with")

    differences = startup.compare([["without"], ["with"]], [{}, {}], 3, measure)
    assert differences == pytest.approx([0.002] * 3)
    assert calls == ["without", "with", "without", "with", "with", "without", "without", "with"]
    assert startup.measure_cpu_s([sys.executable, "-c", "sum(range(10**6))"], os.environ) > 0
    with pytest.raises(RuntimeError, match="failed: why"):
        startup.measure_cpu_s(["sh", "-c", "echo why; exit 3"], os.environ)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the scripted GPU is built for Linux")
def test_whole_script_with_the_scripted_gpu(wheelhouse: Path, headers: Path, tmp_path: Path, starter: Path) -> None:
    wheels = tmp_path / "wheels"
    shutil.copytree(wheelhouse, wheels)
    prefix, bundle = tmp_path / "prefix", Path(find_bundle().directory)
    prefix.mkdir()
    for name in ("manifest.json", "LICENSE.llama.cpp"):
        shutil.copy(bundle / name, prefix)
    build_gpu(headers, bundle, prefix / "libggml-cuda.so")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "packaging"))
        importlib.import_module("cuda").pack(prefix, "13", wheels)
    environment = os.environ | {"EDGECHAT_TRY_MEMORY_VARIABLE": "GPU_BYTES", "EDGECHAT_PYTHON": sys.executable}
    command = ["sh", str(SCRIPT), str(wheels), str(tmp_path / "out"), str(starter)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [line for line in lines[:-2] if not line.startswith("PASS")] == [], done.stderr
    assert done.returncode == 0
    assert len(lines) == 2 + 6 + 7
    assert "every layer on a scripted GPU" in (tmp_path / "out" / "platforms.md").read_text()
