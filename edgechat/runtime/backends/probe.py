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
from typing import Final

import msgspec

from edgechat import process
from edgechat.errors import RuntimeLoadError
from edgechat.hardware.contention import MAX_EXCESS_LOAD, AwakeClock, LoadMonitor
from edgechat.hardware.cpu import Cpu, count_usable_threads, read_cpu
from edgechat.hardware.memory import is_process_stopped, read_own_cpu_time_s
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.bundle import INSTALL_HINT, BackendModule, Bundle
from edgechat.runtime.backends.module_file import find_module_damage
from edgechat.runtime.backends.selftest import EXIT_PASSED, EXIT_REFUSED, EXIT_WRONG
from edgechat.runtime.backends.verdicts import Verdict

OnProgress = Callable[[str], None]
"""Callback that receives a status line for the user."""

# Time limit of one self-test step. The slowest step, decoding the tiny model, took 0.07 s on two server cores with the
# fastest module, and 0.5 s with the slowest module during a compilation. The limit allows for a machine that is ten
# times slower.
STALL_TIMEOUT_S: Final = 5.0
TOTAL_TIMEOUT_S: Final = 60.0
# Factor by which the limits are longer while other programs compute, and interval at which their load is measured.
BUSY_FACTOR: Final = 6
_CHECK_INTERVAL_S: Final = 0.25
# A silent child that uses less than this fraction of a core is blocked rather than starved by other programs.
_BLOCKED_CPU_FRACTION: Final = 0.02
# The self-test uses two threads if the machine has them, because some kernels set up state per thread (AMX tiles), and
# a test with one thread would miss errors in that state. On one core, two threads wait for each other at every
# operation: the decode of the tiny model then takes longer than STALL_TIMEOUT_S.
MAX_SELFTEST_THREADS: Final = 2

# Exit codes of crashes that the kernels of a module can cause, unlike SIGKILL and ordinary exit codes. The hexadecimal
# codes are those of Windows: fail fast, access violation and illegal instruction.
ABORT_CODES: Final = {-signal.SIGABRT, 0xC0000409}
CRASH_CODES: Final = (
    ABORT_CODES
    | {-getattr(signal, name) for name in ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE") if hasattr(signal, name)}
    | {0xC0000005, 0xC000001D}
)
# End of the description of a product for whose weights there was no memory (native/src/selftest.cpp).
_NO_MEMORY: Final = ": its buffer can't be allocated"


def _ignore_progress(_status: str) -> None:
    pass


def choose_module(
    bundle: Bundle, on_progress: OnProgress = _ignore_progress, model_path: str = ""
) -> tuple[BackendModule, Verdict]:
    """Return the fastest CPU module that works on this machine with the model at `model_path`, and its verdict.

    Modules without a cached verdict are tested, which takes about a second for each; `on_progress` is called before
    each test. If the engine has crashed on every module with this model, the model is assumed to be the cause, and the
    result is the fastest module that passes its self-test. Raises RuntimeLoadError, with the reason for each module, if
    no module works.
    """
    bundle.check_libraries()
    reasons, is_distrusted = [], False
    for module, verdict in check_cpu_modules(bundle, on_progress, model_path):
        if verdict.is_usable:
            return module, verdict
        reasons.append(f"{module.name}: {verdict.reason}")
        is_distrusted |= verdict.status == "distrusted"
    if model_path and is_distrusted:
        return choose_module(bundle, on_progress)
    if not reasons:
        raise RuntimeLoadError(f"The native bundle in {bundle.directory} has no backend. {INSTALL_HINT}")
    raise RuntimeLoadError("No backend of the native bundle works on this machine:\n  " + "\n  ".join(reasons))


def check_cpu_modules(
    bundle: Bundle, on_progress: OnProgress = _ignore_progress, model_path: str = ""
) -> Iterator[tuple[BackendModule, Verdict]]:
    """Yield each CPU module and its verdict for the model at `model_path`, fastest module first.

    A module without a cached verdict is tested.
    """
    cpu = read_cpu()
    for module in bundle.modules:
        yield module, _load_or_test(bundle, module, cpu, on_progress, model_path)


def _load_or_test(
    bundle: Bundle,
    module: BackendModule,
    cpu: Cpu,
    on_progress: OnProgress,
    model_path: str = "",
) -> Verdict:
    """Return the cached verdict of a module; test the module if no verdict is cached."""
    if not Path(module.path).is_file():
        return Verdict(module=module.name, status="missing", reason=f"{module.path} is missing. {INSTALL_HINT}")
    key = verdicts.compute_verdict_key(bundle, module, cpu)
    verdict = verdicts.load_verdict(key, model_path)
    if verdict is None:
        on_progress(f"Testing the backend {module.name}")
        verdict = run_selftest(module)
        if verdict.status != "untested":
            verdicts.save_verdict(key, verdict, model_path)
    return verdict


def run_selftest(module: BackendModule) -> Verdict:
    """Self-test a CPU module in a child process, for at most `TOTAL_TIMEOUT_S`, and return the verdict."""
    clock = AwakeClock()
    report = SelftestReport()
    n_threads = min(MAX_SELFTEST_THREADS, count_usable_threads())
    arguments = ["_selftest", module.path, str(n_threads), str(int(BUSY_FACTOR * TOTAL_TIMEOUT_S)), ""]
    directory = Path(module.path).parent
    result = run_child(directory, arguments, report.read_line, n_threads=n_threads, timeout_s=TOTAL_TIMEOUT_S)
    elapsed_s = clock.read()
    status, reason = interpret_report(module, report, result, elapsed_s)
    return Verdict(
        module=module.name, status=status, reason=reason, checks=report.n_checks, elapsed_s=round(elapsed_s, 3)
    )


class SelftestReport:
    """Progress of a self-test: the current step, the failures, and the number of checks."""

    def __init__(self) -> None:
        self.stage = "starting"
        self.failures: list[str] = []
        self.n_checks = 0
        self.is_done = False
        self.types: list[int] = []
        """Weight types whose products were all tested."""
        self.unsupported_types: list[int] = []
        """Those of `types` of which the module computes no product, so that nothing could be tested."""
        self._has_product = False
        self.device: tuple[str, ...] = ()
        """Number of devices of the module, then name, description and kind of the tested one; empty at first."""
        self.physical_devices: list[tuple[str, ...]] = []
        """Kind, driver and name of each device that the driver lists."""
        self.allocated_bytes = 0
        self.refusal = ""
        """Why a GPU module cannot be loaded; "" if no driver or device was found."""

    @property
    def is_loading(self) -> bool:
        """True until the module is loaded."""
        return not self.device and self.stage in {"starting", "loading the module"}

    def read_line(self, line: str) -> None:
        kind, _, text = line.rstrip("\n").partition("\t")
        if kind == "stage":
            self.stage = text
            self.n_checks += 1
            self._has_product |= "product of" in text
        elif kind == "fail":
            self.failures.append(text)
        elif kind == "type":
            self.types.append(int(text))
            self.unsupported_types += [] if self._has_product else [int(text)]
            self._has_product = False
        elif kind == "device":
            self.device = tuple(text.split("\t"))
        elif kind == "physical":
            self.physical_devices.append(tuple(text.split("\t", 2)))
        elif kind == "refused":
            self.refusal = text
        elif kind == "memory":
            self.allocated_bytes = int(text)
        elif kind == "done":
            self.is_done = True


class ChildResult(msgspec.Struct, frozen=True):
    """Result of running a child process."""

    was_killed: bool
    exit_code: int
    was_disturbed: bool = False
    """True if the child was killed although other programs, or a stop signal, may have delayed it."""
    was_stalled: bool = False
    """True if the child was killed because it made no progress, not because its total time was over."""
    was_cancelled: bool = False
    """True if the child was killed because its caller no longer needed it."""


def run_child(
    directory: Path, arguments: list[str], on_line: Callable[[str], None], *, n_threads: int, timeout_s: float,
    stall_timeout_s: float = STALL_TIMEOUT_S, max_compile_s: float = 0.0,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> ChildResult:  # fmt: skip
    """Run a child process of edgechat with the bundle in `directory`, and pass each line of its output to `on_line`.

    The child computes with `n_threads` threads. It is killed if it makes no progress for `stall_timeout_s` without
    being paused or starved, after `timeout_s`, and as soon as `is_cancelled` returns True. Up to `max_compile_s` of CPU
    time between two lines count as progress, because drivers of GPUs compile kernels. Raises RuntimeLoadError if
    edgechat was upgraded since this process started.
    """
    child = subprocess.Popen(
        process.make_command_line(*arguments),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "EDGECHAT_NATIVE_DIR": str(directory)},
    )  # fmt: skip
    assert child.stdin is not None  # noqa: S101  (it is a pipe)
    with child.stdin:  # the child ends when it is closed
        deadline = _ProgressDeadline(child.pid, n_threads, timeout_s, stall_timeout_s, max_compile_s)
        was_cancelled = False

        def is_over() -> bool:
            nonlocal was_cancelled
            was_cancelled = is_cancelled()
            return was_cancelled or deadline.is_over()

        was_killed = not _read_lines(child, on_line, is_over, deadline.record_line)
        if was_killed:
            child.kill()
        exit_code = child.wait()
    if exit_code == process.EXIT_VERSION_CHANGED:
        raise RuntimeLoadError(process.UPGRADED_MESSAGE)
    return ChildResult(
        was_killed, exit_code, was_disturbed=was_killed and deadline.was_disturbed,
        was_stalled=was_killed and deadline.was_stalled, was_cancelled=was_killed and was_cancelled,
    )  # fmt: skip


class _ProgressDeadline:
    """Deadlines for the next output line of a child process, and for its end.

    The time for the next line does not include pauses of this process or of the machine. While other programs compute,
    only CPU time of the child counts, unless the child is blocked and needs no CPU time. A child that is starved by
    other programs, or stopped by a signal, has six times as long.
    """

    def __init__(
        self, pid: int, n_threads: int, timeout_s: float, stall_timeout_s: float = STALL_TIMEOUT_S,
        max_compile_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.was_stalled = False
        """True if the deadline passed because the child made no progress."""
        self._stall_timeout_s, self._max_compile_s = stall_timeout_s, max_compile_s
        self.was_disturbed = False
        """True if the deadline may have passed only because the child was starved or stopped."""
        self._pid, self._n_threads, self._timeout_s = pid, n_threads, timeout_s
        self._clock = AwakeClock()
        self._monitor = LoadMonitor(lambda: time.process_time() + self._cpu_s)
        self._checked_s = self._cpu_s = 0.0
        """Time of the last check, and CPU time of the child until then."""
        self._line_s = self._line_cpu_s = self._stopped_s = 0.0
        """Time of the first check after the last line, CPU time of the child until then, and stopped time since."""
        self._has_new_line = False
        self._is_busy_since_line = self._is_ever_busy = False

    def record_line(self) -> None:
        """Record that the child has written a line."""
        self._has_new_line = True

    def is_over(self) -> bool:
        """Return whether the child stalled or reached its total time; call this at least every second.

        Checks the child every `_CHECK_INTERVAL_S`, because a check reads files in /proc, and returns False in between.
        """
        now = self._clock.read()
        if now - self._checked_s < _CHECK_INTERVAL_S:
            return False
        elapsed_s, self._checked_s = now - self._checked_s, now
        self._cpu_s = max(self._cpu_s, read_own_cpu_time_s(self._pid))
        if self._has_new_line:
            self._line_s, self._line_cpu_s, self._stopped_s = now, self._cpu_s, 0.0
            self._has_new_line = self._is_busy_since_line = False
        elif is_process_stopped(self._pid):
            self._stopped_s += elapsed_s
            self._is_ever_busy = True
        if self._monitor.excess_load(self._n_threads) > MAX_EXCESS_LOAD:
            self._is_busy_since_line = self._is_ever_busy = True
        progress_s, starved_s = self._measure_silence(now)
        timeout_s = self._timeout_s * (BUSY_FACTOR if self._is_ever_busy else 1)
        self.was_disturbed = progress_s < self._stall_timeout_s and self._is_ever_busy
        self.was_stalled = max(progress_s, starved_s / BUSY_FACTOR) >= self._stall_timeout_s
        return self.was_stalled or now >= timeout_s

    def _measure_silence(self, now: float) -> tuple[float, float]:
        """Return how long the child could have made progress since its last line, and how long it was silent."""
        cpu_s = self._cpu_s - self._line_cpu_s
        compile_s = min(cpu_s, self._max_compile_s)
        silent_s = max(0.0, now - self._line_s - compile_s)
        active_s = max(0.0, silent_s - self._stopped_s)
        cpu_s -= compile_s
        is_starved = self._is_busy_since_line and cpu_s + compile_s >= _BLOCKED_CPU_FRACTION * active_s
        return min(active_s, cpu_s / self._n_threads) if is_starved else active_s, silent_s


def _read_lines(
    child: subprocess.Popen[bytes], on_line: Callable[[str], None], is_over: Callable[[], bool],
    record_line: Callable[[], None],
) -> bool:  # fmt: skip
    """Pass each line of the child's output to `on_line`; return False as soon as `is_over` returns True."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read_output() -> None:
        if child.stdout is not None:
            with child.stdout as stream:
                for line in stream:
                    lines.put(line.decode("utf-8", "replace"))
        lines.put(None)

    threading.Thread(target=read_output, name="selftest-report", daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_CHECK_INTERVAL_S)
        except queue.Empty:
            pass
        else:
            if line is None:
                return True
            record_line()
            on_line(line)
        if is_over():
            return False


def interpret_report(
    module: BackendModule, report: SelftestReport, result: ChildResult, elapsed_s: float,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> tuple[verdicts.Status, str]:  # fmt: skip
    """Return the status and the reason of a verdict, from the report and the exit code of a self-test."""
    status, reason = _interpret_exit(module, report, result, elapsed_s, stall_timeout_s)
    if status in {"crashed", "refused", "untested"} and report.is_loading and not result.was_killed:
        damage = find_module_damage(Path(module.path))
        if damage:
            return "damaged", f"{damage}. Install the module again: {module.path}"
    return status, reason


def _interpret_exit(
    module: BackendModule, report: SelftestReport, result: ChildResult, elapsed_s: float, stall_timeout_s: float
) -> tuple[verdicts.Status, str]:
    exit_code = result.exit_code
    if result.was_killed:
        return _interpret_timeout(report, stall_timeout_s, result)
    if exit_code in CRASH_CODES:
        return "crashed", f"crashed with {describe_exit(exit_code)} at step: {report.stage}"
    if exit_code == EXIT_WRONG and report.failures:
        return _interpret_failures(report.failures)
    if exit_code == EXIT_REFUSED:
        return "refused", f"cannot be loaded: {_find_refusal(module, report)}"
    if exit_code == EXIT_PASSED and report.is_done:
        return "passed", f"passed {report.n_checks} checks in {elapsed_s:.1f} s"
    # The cause is outside the module (no memory, no temporary file), so the module is tested again at the next start.
    return "untested", f"its self-test ended with {describe_exit(exit_code)} at step: {report.stage}"


def _find_refusal(module: BackendModule, report: SelftestReport) -> str:
    """Return why a module without a fault cannot be used on this machine."""
    if module.name.startswith("cpu-"):
        return "this CPU lacks required instructions"
    if report.refusal:
        return report.refusal
    names = [device[2] for device in report.physical_devices if len(device) == 3]  # noqa: PLR2004
    if names and all(device[0] == "cpu" for device in report.physical_devices):
        return f"no GPU was found: the only driver, {names[0]}, computes on the CPU"
    return "no driver or no supported device was found"


def _interpret_failures(failures: list[str]) -> tuple[verdicts.Status, str]:
    if all(failure.endswith(_NO_MEMORY) for failure in failures):
        return "untested", f"had no memory for its self-test: {failures[0]}"
    other_failures = f" (and {len(failures) - 1} more failures)" if len(failures) > 1 else ""
    return "wrong", f"computes wrong numbers: {failures[0]}{other_failures}"


def _interpret_timeout(
    report: SelftestReport, stall_timeout_s: float, result: ChildResult
) -> tuple[verdicts.Status, str]:
    if result.was_cancelled:
        return "untested", f"its self-test was ended at step: {report.stage}"
    # A time limit that was reached while other programs were busy says nothing about the module, so the module is
    # tested again at the next start.
    if result.was_disturbed:
        return "untested", f"its self-test was too slow while other programs were busy, at step: {report.stage}"
    return "hung", f"made no progress for {stall_timeout_s:g} s at step: {report.stage}"


def describe_exit(exit_code: int) -> str:
    """Describe a return code of `subprocess`: the signal's name and number, or the exit code."""
    if exit_code < 0:
        try:
            return f"{signal.Signals(-exit_code).name} (signal {-exit_code})"
        except ValueError:
            return f"signal {-exit_code}"
    return f"exit code {exit_code}"
