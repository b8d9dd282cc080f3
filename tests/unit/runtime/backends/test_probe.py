"""Choice of a CPU module, with crashes of the engine that were recorded for one model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgechat import process
from edgechat.errors import RuntimeLoadError
from edgechat.hardware.contention import AwakeClock, LoadMonitor
from edgechat.hardware.cpu import read_cpu
from edgechat.runtime.backends import probe, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.verdicts import Verdict


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle of three modules, which all pass the self-test."""
    names = ("cpu-fast", "cpu-middle", "cpu-slow")
    for name in ("libggml-base.so", "libggml.so", "libllama.so", "libedgechat.so", *names):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(
        probe, "run_selftest", lambda module, _=None: Verdict(module=module.name, status="passed", reason="passed")
    )
    monkeypatch.setattr(Bundle, "check_libraries", lambda self: None)
    return Bundle(
        directory=str(tmp_path), build_id="1", llama_cpp_python="", llama_cpp_commit="", compiler="",
        modules=tuple(BackendModule(name=name, path=str(tmp_path / name)) for name in names),
    )  # fmt: skip


def crash(bundle: Bundle, name: str, model_path: str, n_times: int = 1) -> None:
    for module in bundle.modules:
        if module.name == name:
            key = verdicts.compute_verdict_key(bundle, module, read_cpu())
            for _ in range(n_times):
                verdicts.record_engine_crash(key, name, "SIGSEGV (signal 11)", model_path)


def chosen(bundle: Bundle, model_path: str = "") -> str:
    return probe.choose_module(bundle, model_path=model_path)[0].name


def test_two_crashes_choose_another_module_for_this_model_only(bundle: Bundle) -> None:
    crash(bundle, "cpu-fast", "/bad.gguf", 2)
    assert chosen(bundle, "/bad.gguf") == "cpu-middle"
    assert chosen(bundle, "/good.gguf") == chosen(bundle) == "cpu-fast"


def test_model_that_crashes_on_every_module_is_to_blame(bundle: Bundle) -> None:
    crash(bundle, "cpu-fast", "/bad.gguf", 2)
    crash(bundle, "cpu-middle", "/bad.gguf")
    assert chosen(bundle, "/bad.gguf") == "cpu-slow"
    crash(bundle, "cpu-slow", "/bad.gguf")
    assert chosen(bundle, "/bad.gguf") == "cpu-fast"
    assert chosen(bundle, "/good.gguf") == "cpu-fast"


def test_error_without_working_module_names_every_reason(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Verdict(module="x", status="wrong", reason="computes wrong numbers")
    monkeypatch.setattr(probe, "run_selftest", lambda module, _=None: failed)
    crash(bundle, "cpu-fast", "/bad.gguf", 2)
    with pytest.raises(RuntimeLoadError, match=r"cpu-fast: computes wrong numbers\n  cpu-middle: computes"):
        probe.choose_module(bundle, model_path="/bad.gguf")


def wait_for_child(
    monkeypatch: pytest.MonkeyPatch,
    *,
    excess_load: float,
    cpu_share: float,
    is_stopped: bool = False,
    jump_s: float = 0,
    max_compile_s: float = 0,
) -> tuple[float, bool]:
    """Wait for a silent child on a simulated machine; return the time until it is killed, and `was_disturbed`."""
    now = 0.0
    monkeypatch.setattr(probe, "AwakeClock", lambda: AwakeClock(lambda: now))
    monkeypatch.setattr(probe, "read_own_cpu_time_s", lambda pid: cpu_share * min(now, 1e6))
    monkeypatch.setattr(probe, "is_process_stopped", lambda pid: is_stopped)
    monkeypatch.setattr(LoadMonitor, "excess_load", lambda self, n_threads: excess_load)
    deadline = probe._ProgressDeadline(1, 2, 60.0, max_compile_s=max_compile_s)
    while not deadline.is_over():
        now += 0.25 + (jump_s if now == 1.0 else 0)
    return now - jump_s, deadline.was_disturbed


def test_silent_child_on_an_idle_machine_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu_share in (0.0, 2.0):
        assert wait_for_child(monkeypatch, excess_load=0.0, cpu_share=cpu_share) == (
            probe.STALL_TIMEOUT_S,
            False,
        )


def test_blocked_or_spinning_child_hangs_beside_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_for_child(monkeypatch, excess_load=2.0, cpu_share=0.0) == (probe.STALL_TIMEOUT_S, False)
    assert wait_for_child(monkeypatch, excess_load=2.0, cpu_share=1.0) == (2 * probe.STALL_TIMEOUT_S, False)


def test_starved_or_stopped_child_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_for_child(monkeypatch, excess_load=2.0, cpu_share=0.1) == (6 * probe.STALL_TIMEOUT_S, True)
    assert wait_for_child(monkeypatch, excess_load=0.0, cpu_share=0.0, is_stopped=True) == (30.0, True)


@pytest.mark.parametrize("excess_load", [0.0, 2.0])
def test_driver_that_compiles_makes_progress(excess_load: float, monkeypatch: pytest.MonkeyPatch) -> None:
    waited_s, _ = wait_for_child(monkeypatch, excess_load=excess_load, cpu_share=1.0, max_compile_s=20.0)
    assert waited_s >= 20.0 + probe.STALL_TIMEOUT_S
    blocked_s, _ = wait_for_child(monkeypatch, excess_load=excess_load, cpu_share=0.0, max_compile_s=20.0)
    assert blocked_s == probe.STALL_TIMEOUT_S


def test_pause_of_the_parent_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waited_s, _ = wait_for_child(monkeypatch, excess_load=0.0, cpu_share=0.0, jump_s=3600.0)
    assert waited_s == pytest.approx(probe.STALL_TIMEOUT_S, abs=1.0)


def test_child_is_checked_four_times_a_second_however_many_lines_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    n_reads = {"CPU time": 0, "status": 0}

    def read_cpu_time_s(pid: int) -> float:
        n_reads["CPU time"] += 1
        return now

    def is_stopped(pid: int) -> bool:
        n_reads["status"] += 1
        return False

    monkeypatch.setattr(probe, "AwakeClock", lambda: AwakeClock(lambda: now))
    monkeypatch.setattr(probe, "read_own_cpu_time_s", read_cpu_time_s)
    monkeypatch.setattr(probe, "is_process_stopped", is_stopped)
    deadline = probe._ProgressDeadline(1, 2, 60.0)
    for _ in range(1024):
        now += 1 / 512
        deadline.record_line()
        assert not deadline.is_over()
    assert n_reads["CPU time"] == 8
    assert n_reads["status"] <= 8


def test_silence_is_measured_from_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(probe, "AwakeClock", lambda: AwakeClock(lambda: now))
    monkeypatch.setattr(probe, "read_own_cpu_time_s", lambda pid: now)
    monkeypatch.setattr(probe, "is_process_stopped", lambda pid: False)
    monkeypatch.setattr(LoadMonitor, "excess_load", lambda self, n_threads: 0.0)
    deadline = probe._ProgressDeadline(1, 2, 60.0)
    while not deadline.is_over():
        now += 0.25
        if now <= 20.0:
            deadline.record_line()
    assert now == 20.0 + probe.STALL_TIMEOUT_S


@pytest.mark.parametrize("n_threads", [2, 16])
def test_load_of_other_programs_is_compared_with_the_threads_of_the_child(
    monkeypatch: pytest.MonkeyPatch, n_threads: int
) -> None:
    thread_counts = set()

    def read_excess_load(self: LoadMonitor, n_threads: int) -> float:
        thread_counts.add(n_threads)
        return 0.0

    monkeypatch.setattr(process, "make_command_line", lambda *arguments: [sys.executable, "-c", "print('a line')"])
    monkeypatch.setattr(probe, "_CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(LoadMonitor, "excess_load", read_excess_load)
    probe.run_child(Path(), ["_speeds"], lambda line: None, n_threads=n_threads, timeout_s=60.0)
    assert thread_counts == {n_threads}
