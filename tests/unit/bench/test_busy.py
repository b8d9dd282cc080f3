"""Benchmark beside busy processes: shares, table, and the end of the busy processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import msgspec
import psutil
import pytest

from edgechat.bench.busy import BusyReport, format_table, make_series, run_busy_processes
from edgechat.bench.speed import SpeedSample, SpeedWorkload
from tests.waiting import until


def test_shares_are_medians_of_the_rounds() -> None:
    alone = [SpeedSample(100.0, 10.0), SpeedSample(200.0, 20.0), SpeedSample(100.0, 10.0)]
    busy = [SpeedSample(50.0, 4.0), SpeedSample(80.0, 8.0), SpeedSample(90.0, 9.0)]
    series = make_series("edgechat", 2, busy, alone)
    assert (series.prefill_share, series.decode_share) == pytest.approx((0.5, 0.4))
    report = BusyReport(
        workload=SpeedWorkload(model="/m/starter.gguf", n_threads=2, rounds=3), backend="cpu-zen4", build_id="",
        n_cpus=2, series=[make_series("edgechat", 0, alone, alone), series],
    )  # fmt: skip
    lines = format_table(report).splitlines()
    assert "starter.gguf, cpu-zen4, 2 threads, 2 CPUs" in lines[0]
    assert lines[4].split() == ["edgechat", "100.0", "0.500"]
    assert lines[6].split() == ["edgechat", "10.0", "0.400"]
    assert len(lines) == 7
    assert "busy before 2 of 3 rounds" in format_table(msgspec.structs.replace(report, n_disturbed=2))


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_busy_processes_end_with_the_block() -> None:
    pids: list[int] = []

    def fail() -> None:
        with run_busy_processes(2) as children:
            pids.extend(child.pid for child in children)
            assert all(is_alive(pid) for pid in pids)
            raise RuntimeError("a failed measurement")

    with pytest.raises(RuntimeError):
        fail()
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


_PARENT = """
import time
from edgechat.bench.busy import run_busy_processes
with run_busy_processes(1) as children:
    print(children[0].pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_busy_processes_end_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            pid = int(parent.stdout.readline())
            assert is_alive(pid)
        finally:
            os.kill(parent.pid, signal.SIGKILL)
    until(lambda: not is_alive(pid))
