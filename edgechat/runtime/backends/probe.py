"""Choice of a backend: self-test each module in a child process before the engine loads it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from edgechat import process
from edgechat.errors import RuntimeLoadError
from edgechat.hardware.cpu import Cpu, read_cpu
from edgechat.hardware.gpu import driver_version
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.backends.selftest import PASSED, REFUSED, WRONG
from edgechat.runtime.backends.verdicts import Verdict

OnProgress = Callable[[str], None]
"""Receives a status line for the user."""

# Time limit of one self-test step. The slowest step, decoding the tiny model, took 0.07 s on two server cores with the
# fastest module, and 0.5 s with the slowest module during a compilation. The limit allows a machine ten times slower.
STALL_S: Final = 5.0
TOTAL_S: Final = 60.0
# Two threads, because kernels set up state per thread (AMX tiles), and a test with one thread would miss errors there.
N_THREADS: Final = 2

# Exit codes of crashes that the kernels of a module can cause. SIGKILL and ordinary exit codes do not count. The
# hexadecimal codes are from Windows: fail fast, access violation and illegal instruction.
ABORT_CODES: Final = {-signal.SIGABRT, 0xC0000409}
CRASH_CODES: Final = (
    ABORT_CODES
    | {-getattr(signal, name) for name in ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE") if hasattr(signal, name)}
    | {0xC0000005, 0xC000001D}
)


def _ignore_progress(_status: str) -> None:
    pass


def choose_module(bundle: Bundle, on_progress: OnProgress = _ignore_progress) -> tuple[BackendModule, Verdict]:
    """Return the best CPU module that works on this machine, and its verdict; test modules without a cached verdict.

    `on_progress` is called before each self-test, which takes about a second. Raises RuntimeLoadError with the reason
    for every module if none works.
    """
    bundle.check()
    reasons = []
    for module, verdict in module_verdicts(bundle, on_progress):
        if verdict.is_usable:
            return module, verdict
        reasons.append(f"{module.name}: {verdict.reason}")
    if not reasons:
        raise RuntimeLoadError(f"The native bundle in {bundle.directory} has no backend. {INSTALL_HINT}")
    raise RuntimeLoadError("No backend of the native bundle works on this machine:\n  " + "\n  ".join(reasons))


def module_verdicts(
    bundle: Bundle, on_progress: OnProgress = _ignore_progress
) -> Iterator[tuple[BackendModule, Verdict]]:
    """Iterate over the CPU modules, best first, and their verdicts; a module is tested when the iterator reaches it."""
    cpu = read_cpu()
    for module in bundle.modules:
        yield module, _verdict_of(bundle, module, cpu, on_progress)


def gpu_module_verdicts(
    bundle: Bundle, cpu_module: BackendModule, on_progress: OnProgress = _ignore_progress
) -> list[tuple[BackendModule, Verdict]]:
    """Return the GPU modules and their verdicts; `cpu_module` computes the operations that they do not implement.

    Once a module of a kind (such as CUDA) works, others of this kind are skipped: they would list the same devices.
    """
    if not bundle.gpu_modules:
        return []
    cpu, driver = read_cpu(), driver_version()
    results: list[tuple[BackendModule, Verdict]] = []
    for module in bundle.gpu_modules:
        if not any(other.name == module.name and verdict.is_usable for other, verdict in results):
            results.append((module, _verdict_of(bundle, module, cpu, on_progress, driver, cpu_module)))
    return results


def _verdict_of(
    bundle: Bundle,
    module: BackendModule,
    cpu: Cpu,
    on_progress: OnProgress,
    driver: str = "",
    cpu_module: BackendModule | None = None,
) -> Verdict:
    """Return the cached verdict of a module, or test it now."""
    if not Path(module.path).is_file():
        return Verdict(module=module.name, status="missing", reason=f"{module.path} is missing. {INSTALL_HINT}")
    key = verdicts.verdict_key(bundle, module, cpu, driver)
    verdict = verdicts.load_verdict(key)
    if verdict is None:
        on_progress(f"Testing the backend {module.name}")
        verdict = run_selftest(module, cpu_module)
        if verdict.status != "untested":
            verdicts.save_verdict(key, verdict)
    return verdict


def run_selftest(module: BackendModule, cpu_module: BackendModule | None = None) -> Verdict:
    """Self-test a module in a child process, for at most `TOTAL_S`; a GPU module needs a `cpu_module`."""
    started_at = time.monotonic()
    report = _Report()
    cpu_path = cpu_module.path if cpu_module else ""
    arguments = ["_selftest", module.path, str(N_THREADS), str(int(TOTAL_S)), cpu_path]
    # A GPU module may come from another package; its libraries are in the bundle of the CPU module.
    directory = Path((cpu_module or module).path).parent
    is_stalled, code = run_child(directory, arguments, report.read, deadline=started_at + TOTAL_S)
    elapsed_s = time.monotonic() - started_at
    status, reason = _conclude(module, report, is_stalled=is_stalled, code=code, elapsed_s=elapsed_s)
    return Verdict(
        module=module.name, status=status, reason=reason, checks=report.checks, elapsed_s=round(elapsed_s, 3)
    )


class _Report:
    """Progress of a self-test: the current step, failures, and the number of checks."""

    def __init__(self) -> None:
        self.stage = "starting"
        self.failures: list[str] = []
        self.checks = 0
        self.is_done = False

    def read(self, line: str) -> None:
        kind, _, text = line.rstrip("\n").partition("\t")
        if kind == "stage":
            self.stage = text
            self.checks += 1
        elif kind == "fail":
            self.failures.append(text)
        elif kind == "done":
            self.is_done = True


def run_child(
    directory: Path, arguments: list[str], on_line: Callable[[str], None], *, deadline: float
) -> tuple[bool, int]:
    """Run a child process of edgechat with the bundle in `directory`; `on_line` receives each line of its output.

    The child is killed if it writes no line for `STALL_S`, or at `deadline` (monotonic). Returns whether the child was
    killed, and its exit code. Raises RuntimeLoadError if edgechat was upgraded since this process started.
    """
    child = subprocess.Popen(
        process.command_line(*arguments),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "EDGECHAT_NATIVE_DIR": str(directory)},
    )  # fmt: skip
    is_stalled = not _read_lines(child, on_line, deadline)
    if is_stalled:
        child.kill()
    code = child.wait()
    if code == process.EXIT_VERSION_CHANGED:
        raise RuntimeLoadError(process.UPGRADED_MESSAGE)
    return is_stalled, code


def _read_lines(child: subprocess.Popen[bytes], on_line: Callable[[str], None], deadline: float) -> bool:
    """Read the child's output to its end; False if it stalled or the deadline passed."""
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
            return False
        if line is None:
            return True
        on_line(line)


_Status = Literal["passed", "wrong", "crashed", "hung", "refused", "untested"]


def _conclude(
    module: BackendModule, report: _Report, *, is_stalled: bool, code: int, elapsed_s: float
) -> tuple[_Status, str]:
    """Return status and reason of a verdict from the report and the exit code of a self-test."""
    if is_stalled:
        return "hung", f"made no progress for {STALL_S:g} s at step: {report.stage}"
    if code in CRASH_CODES:
        return "crashed", f"crashed with {describe_exit(code)} at step: {report.stage}"
    if code == WRONG and report.failures:
        more = f" (and {len(report.failures) - 1} more)" if len(report.failures) > 1 else ""
        return "wrong", f"computes wrong numbers: {report.failures[0]}{more}"
    if code == REFUSED:
        is_cpu = module.name.startswith("cpu-")
        cause = "this CPU lacks required instructions" if is_cpu else "no supported device or no driver was found"
        return "refused", f"cannot be loaded: {cause}"
    if code == PASSED and report.is_done:
        return "passed", f"passed {report.checks} checks in {elapsed_s:.1f} s"
    # A failure outside the module (no memory, no temporary file): the module is tested again at the next start.
    return "untested", f"its self-test ended with {describe_exit(code)} at step: {report.stage}"


def describe_exit(code: int) -> str:
    """Describe a return code of `subprocess`: the signal's name and number, or the exit code."""
    if code < 0:
        try:
            return f"{signal.Signals(-code).name} (signal {-code})"
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
