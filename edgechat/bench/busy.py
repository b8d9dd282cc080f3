"""Benchmark of prefill and decode speed while other processes are busy, in alternating runs with llama-bench."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edgechat import process
from edgechat.bench.speed import SpeedSample, SpeedWorkload, load_engine, measure_engine, measure_peer
from edgechat.engine.client import EngineClient
from edgechat.errors import EngineError
from edgechat.hardware.contention import is_machine_busy
from edgechat.hardware.cpu import count_allowed_cpus
from edgechat.runtime.backends.bundle import find_bundle


class Peer(msgspec.Struct, frozen=True):
    """llama-bench binary and CPU module, for comparison with edgechat."""

    name: str
    binary: Path
    module: str = ""
    """Path of the CPU module; "" for the module that edgechat uses."""


class BusySeries(msgspec.Struct, frozen=True):
    """Results of one program with one number of busy processes, by round."""

    program: str
    n_busy: int
    samples: list[SpeedSample]
    prefill_share: float
    """Prefill speed as a fraction of the program's speed on the idle machine in the same round; median over rounds."""
    decode_share: float


class BusyReport(msgspec.Struct, frozen=True):
    """Results of all programs and numbers of busy processes."""

    workload: SpeedWorkload
    backend: str
    build_id: str
    n_cpus: int
    """Number of logical CPUs on which the programs may run."""
    series: list[BusySeries]
    n_disturbed: int = 0
    """Number of rounds that began while other programs were busy, so that the speeds without load are too low."""


def busy_main(arguments: list[str]) -> int:
    """Compute in one thread until standard input is closed, so that the process ends with its parent."""
    del arguments

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    sys.stdout.write("busy\n")
    sys.stdout.flush()
    while True:
        pass


@contextlib.contextmanager
def run_busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `count` processes that compute continuously, until the `with` block or this process ends."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            command, null = process.make_command_line("_busy"), subprocess.DEVNULL
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=null)
            children.append(child)
        for child in children:
            if child.stdout is None or child.stdout.readline() != b"busy\n":
                raise EngineError(f"A busy process of the benchmark ended at once (exit code {child.wait()}).")
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            with child:  # closes the pipes of the process, and waits until it ends
                pass


def run(
    workload: SpeedWorkload, peers: list[Peer], on_progress: Callable[[str], None] = lambda text: None
) -> BusyReport:
    """Measure a workload on the idle machine, with one busy process, and with one for each core, in alternating runs.

    Raises EdgechatError if edgechat or a peer fails.
    """
    bundle, n_cpus = find_bundle(), count_allowed_cpus()
    busy_counts = sorted({0, 1, n_cpus})
    engine = EngineClient()
    try:
        backend = load_engine(engine, workload, adapts_n_threads=True)
        module = next(m for m in bundle.modules if m.name == backend)
        programs: dict[str, Callable[[], SpeedSample]] = {"edgechat": lambda: measure_engine(engine, workload)}
        for peer in peers:
            programs[peer.name] = lambda p=peer: measure_peer(  # type: ignore[misc]
                p.binary, p.module or module.path, workload
            )
        samples: dict[tuple[str, int], list[SpeedSample]] = {(name, n): [] for name in programs for n in busy_counts}
        n_disturbed = 0
        for round_index in range(workload.rounds):
            n_disturbed += is_machine_busy(workload.n_threads)
            for n_busy in busy_counts:
                # The order alternates, because the later runs start on a warmer machine.
                for name in programs if round_index % 2 == 0 else reversed(programs):
                    on_progress(f"round {round_index + 1} of {workload.rounds}: {name} with {n_busy} busy processes")
                    with run_busy_processes(n_busy):
                        samples[name, n_busy].append(programs[name]())
    finally:
        engine.close()
    return BusyReport(
        workload=workload, backend=backend, build_id=bundle.build_id, n_cpus=n_cpus, n_disturbed=n_disturbed,
        series=[make_series(name, n, samples[name, n], samples[name, 0]) for name in programs for n in busy_counts],
    )  # fmt: skip


def make_series(program: str, n_busy: int, samples: list[SpeedSample], idle_samples: list[SpeedSample]) -> BusySeries:
    """Compute the speed under load as a fraction of the speed on the idle machine, round by round."""
    return BusySeries(
        program, n_busy, samples,
        statistics.median(s.prefill_tps / idle.prefill_tps for s, idle in zip(samples, idle_samples, strict=True)),
        statistics.median(s.decode_tps / idle.decode_tps for s, idle in zip(samples, idle_samples, strict=True)),
    )  # fmt: skip


def format_table(report: BusyReport) -> str:
    """Format the report as a table of speeds on the idle machine, and of fractions of these speeds under load."""
    workload = report.workload
    busy_counts = sorted({s.n_busy for s in report.series})
    programs = list(dict.fromkeys(s.program for s in report.series))
    width = max(12, *(len(name) + 3 for name in programs))
    lines = [
        (
            f"{Path(workload.model).name}, {report.backend}, {workload.n_threads} threads, {report.n_cpus} CPUs, "
            f"{workload.rounds} rounds (medians)"
        ),
        "Speed on the idle machine in tokens/s; with busy processes, as a fraction of it",
        f"{'':<{width}}{'idle':>9}" + "".join(f"{f'{n} busy':>9}" for n in busy_counts if n),
    ]
    for name, size, field in (("prefill", workload.n_prompt, "prefill"), ("decode", workload.n_gen, "decode")):
        lines.append(f"{name} {size}")
        for program in programs:
            by_count = {s.n_busy: s for s in report.series if s.program == program}
            idle_tps = statistics.median(getattr(s, f"{field}_tps") for s in by_count[0].samples)
            shares = "".join(f"{getattr(by_count[n], f'{field}_share'):9.3f}" for n in busy_counts if n)
            lines.append(f"  {program:<{width - 2}}{idle_tps:9.1f}{shares}")
    if report.n_disturbed:
        lines.append(
            f"Other programs were busy before {report.n_disturbed} of {workload.rounds} rounds. Close them and repeat."
        )
    return "\n".join(lines)
