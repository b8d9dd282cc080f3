"""Which backend really works here: each module is tried in a process of its own before it is trusted."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edgechat import process
from edgechat.errors import RuntimeLoadError
from edgechat.hardware.cpu import Cpu, read_cpu
from edgechat.hardware.profile import driver_version
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.backends.selftest import PASSED, REFUSED, WRONG
from edgechat.runtime.backends.verdicts import Verdict

# The slowest step, the tiny decode, took 0.07 s on two server cores with their best module, and 0.5 s with the plainest one
# while a compiler ran beside it: this is room for a board that is ten times slower still.
STALL_S = 5.0
TOTAL_S = 60.0
# Two, because kernels set up per-thread state (AMX tiles): one thread would not show it.
N_THREADS = 2

# Ends that a module's kernels are to blame for. SIGKILL and an exit code are not among them. The hexadecimal ones are
# Windows': fail fast; access violation and illegal instruction.
ABORT_CODES: Final = {-signal.SIGABRT, 0xC0000409}
CRASH_CODES: Final = (
    ABORT_CODES
    | {-getattr(signal, name) for name in ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE") if hasattr(signal, name)}
    | {0xC0000005, 0xC000001D}
)


def choose_module(
    bundle: Bundle, on_progress: Callable[[str], None] = lambda words: None
) -> tuple[BackendModule, Verdict]:
    """The best module that works here, from memory where possible, and what is known of it.

    `tell` gets a line of words before each self test, which takes about a second. Raises RuntimeLoadError
    with every module's reason if none works.
    """
    bundle.check()
    tried = []
    for module, verdict in module_verdicts(bundle, on_progress):
        if verdict.is_usable:
            return module, verdict
        tried.append(f"{module.name}: {verdict.reason}")
    if not tried:
        raise RuntimeLoadError(f"the native bundle in {bundle.directory} has no backend: {INSTALL_HINT}")
    raise RuntimeLoadError("no backend of the native bundle works on this machine:\n  " + "\n  ".join(tried))


def module_verdicts(
    bundle: Bundle, on_progress: Callable[[str], None] = lambda words: None
) -> Iterator[tuple[BackendModule, Verdict]]:
    """Every module with its verdict, best first, tested when it is not yet known; lazy."""
    cpu = read_cpu()
    for module in bundle.modules:
        yield module, _cached_verdict(bundle, module, cpu, on_progress)


def gpu_module_verdicts(
    bundle: Bundle, cpu_module: BackendModule, on_progress: Callable[[str], None] = lambda words: None
) -> list[tuple[BackendModule, Verdict]]:
    """Every module for GPUs with its verdict; `cpu_module` computes beside it. Costs nothing in a bundle without one.

    Of a kind of which one works, no other is tried: it would show the same devices again.
    """
    if not bundle.gpu_modules:
        return []
    cpu, driver = read_cpu(), driver_version()
    found: list[tuple[BackendModule, Verdict]] = []
    for module in bundle.gpu_modules:
        if not any(other.name == module.name and verdict.is_usable for other, verdict in found):
            found.append((module, _cached_verdict(bundle, module, cpu, on_progress, driver, cpu_module)))
    return found


def _cached_verdict(
    bundle: Bundle,
    module: BackendModule,
    cpu: Cpu,
    on_progress: Callable[[str], None],
    driver: str = "",
    beside: BackendModule | None = None,
) -> Verdict:
    if not Path(module.path).is_file():
        return Verdict(module=module.name, status="missing", reason=f"{module.path} is not there: {INSTALL_HINT}")
    name = verdicts.verdict_key(bundle, module, cpu, driver)
    verdict = verdicts.load_verdict(name)
    if verdict is None:
        on_progress(f"testing the backend {module.name}")
        verdict = selftest(module, beside)
        if verdict.status != "untested":
            verdicts.save_verdict(name, verdict)
    return verdict


def selftest(module: BackendModule, beside: BackendModule | None = None) -> Verdict:
    """Try a module in a child process; returns within `TOTAL_S` whatever the module does."""
    started = time.monotonic()
    report = _Report()
    arguments = ["_selftest", module.path, str(N_THREADS), str(int(TOTAL_S)), beside.path if beside else ""]
    # A GPU's module may be a package of its own; the libraries that it needs are where the CPU's is.
    directory = Path((beside or module).path).parent
    stalled, code = run_child(directory, arguments, report.read, deadline=started + TOTAL_S)
    return _verdict(module, report, stalled=stalled, code=code, elapsed_s=time.monotonic() - started)


class _Report:
    """What a self test has said so far."""

    def __init__(self) -> None:
        self.stage = "starting"
        self.failures: list[str] = []
        self.checks = 0
        self.done = False

    def read(self, line: str) -> None:
        kind, _, words = line.rstrip("\n").partition("\t")
        if kind == "stage":
            self.stage = words
            self.checks += 1
        elif kind == "fail":
            self.failures.append(words)
        elif kind == "done":
            self.done = True


def run_child(
    directory: Path, arguments: list[str], read: Callable[[str], None], *, deadline: float
) -> tuple[bool, int]:
    """Run a child that tries a module of the bundle in `directory`, and hand each line that it writes to `read`.

    Returns whether it was ended because lines stopped coming, and its exit code. Raises RuntimeLoadError if the
    program was upgraded meanwhile.
    """  # fmt: skip
    child = subprocess.Popen(
        process.command_line(*arguments),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "EDGECHAT_NATIVE_DIR": str(directory)},
    )  # fmt: skip
    stalled = _follow(child, read, deadline)
    if stalled:
        child.kill()
    code = child.wait()
    if code == process.EXIT_VERSION_CHANGED:
        raise RuntimeLoadError(process.UPGRADED_MESSAGE)
    return stalled, code


def _follow(child: subprocess.Popen[bytes], read: Callable[[str], None], deadline: float) -> bool:
    """Read the child's report to its end; True if it stopped coming."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def pump() -> None:
        if child.stdout is not None:
            with child.stdout as stream:
                for line in stream:
                    lines.put(line.decode("utf-8", "replace"))
        lines.put(None)

    threading.Thread(target=pump, name="selftest-report", daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, min(STALL_S, deadline - time.monotonic())))
        except queue.Empty:
            return True
        if line is None:
            return False
        read(line)


def _verdict(module: BackendModule, report: _Report, *, stalled: bool, code: int, elapsed_s: float) -> Verdict:
    def verdict(status: str, reason: str) -> Verdict:
        return Verdict(
            module=module.name, status=status, reason=reason,  # type: ignore[arg-type]
            checks=report.checks, elapsed_s=round(elapsed_s, 3),
        )  # fmt: skip

    if stalled:
        return verdict("hung", f"made no progress for {STALL_S:g} s in: {report.stage}")
    if code in CRASH_CODES:
        return verdict("crashed", f"died by {describe_exit(code)} in: {report.stage}")
    if code == WRONG and report.failures:
        more = f" (and {len(report.failures) - 1} more)" if len(report.failures) > 1 else ""
        return verdict("wrong", f"computes wrong numbers: {report.failures[0]}{more}")
    if code == REFUSED:
        is_cpu = module.name.startswith("cpu-")
        why = (
            "this CPU lacks instructions that it needs"
            if is_cpu
            else "there is no device, or no driver, that it can use"
        )
        return verdict("refused", f"cannot be loaded here: {why}")
    if code == PASSED and report.done:
        return verdict("passed", f"passed {report.checks} checks in {elapsed_s:.1f} s")
    # An accident that says nothing of the module (no memory, no temporary file): tried again next time.
    return verdict("untested", f"its self test ended by {describe_exit(code)} in: {report.stage}")


def describe_exit(code: int) -> str:
    """How a process ended, in words, from the return code that `subprocess` gives."""
    if code < 0:
        try:
            return f"{signal.Signals(-code).name} (signal {-code})"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
