"""Deaths of the engine process: the errors for its requests, and records of crashes on the CPU and on a GPU.

The last activities of the engine decide. A crash in a computation is recorded for the module and the model, and a crash
with a model drafter for the drafter and the model. A crash while loading is attributed to the model file, and so is an
assertion that fails before the first batch is computed.
"""

from __future__ import annotations

import contextlib
import re
import signal
from typing import Final

import msgspec

from edgechat import paths
from edgechat.engine.protocol import Load
from edgechat.errors import EdgechatError, EngineDiedError, ModelCrashError, PlanError
from edgechat.hardware.cpu import read_cpu
from edgechat.process import EXIT_GPU_FAILED, EXIT_STALLED, EXIT_VERSION_CHANGED, KILL_SIGNAL, UPGRADED_MESSAGE
from edgechat.runtime import drafter_crashes, logs
from edgechat.runtime.activity import Activity, ActivityState
from edgechat.runtime.backends import gpu_probe, verdicts
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.backends.probe import ABORT_CODES, CRASH_CODES, describe_exit

_BUS_ERROR_CODE: Final = -getattr(signal, "SIGBUS", 7)
# Exit codes that indicate a fault of the backend. Aborts are excluded, because llama.cpp also aborts when it rejects a
# model, and bus errors, because they mean that the mapped model file was truncated or became unreadable.
_KERNEL_CRASH_CODES: Final = CRASH_CODES - ABORT_CODES - {_BUS_ERROR_CODE}
# Line that ggml_abort writes: the file and line number of an assertion, and its text.
_ASSERTION: Final = re.compile(r"(?:.*[/\\])?([\w.+-]+\.(?:c|cc|cpp|cu|h|hpp|m|mm):\d+: .+)")
# Line of the C++ library about an exception that was not caught.
_EXCEPTION: Final = re.compile(r"\s*what\(\):\s*(.+)")
# Exceptions of the C++ library about a text without a token in the vocabulary.
_MISSING_TOKEN: Final = re.compile(r"(?i).*map(_base)?::at\b.*")
_OUT_OF_MEMORY: Final = re.compile(
    r"bad_alloc|failed to allocate|unable to allocate|Cannot allocate|out of memory", re.IGNORECASE
)
_MAX_ASSERTION_CHARS: Final = 300
# Messages about processes that ended by themselves, by exit code.
_END_MESSAGES: Final = {
    EXIT_VERSION_CHANGED: UPGRADED_MESSAGE,
    0: "The engine process ended, because it was idle or was stopped. Send the request again.",
    EXIT_GPU_FAILED: "The engine process ended, because its GPU failed. Send the request again.",
    EXIT_STALLED: "The engine process ended, because a step of its work took too long. Send the request again.",
}
_N_SEARCHED_LINES: Final = 40
# Computations on the GPU of a model with layers there.
_GPU_COMPUTATIONS: Final = frozenset({Activity.COMPUTING, Activity.DRAFTING_ON_GPU})
_GPU_ACTIVITIES: Final = _GPU_COMPUTATIONS | {Activity.RESIZING}


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the death of an engine process."""

    exit_code: int
    """Exit code, or a negative signal number."""
    state: ActivityState
    """Last activities of the process."""
    backend: str
    """CPU module that the process had loaded; "" if none."""
    load: Load | None
    """Last Load request that was sent to the process."""
    opened_path: str
    """Model file of the last request that loads or probes a model; "" if none."""
    log_start: int
    """Size of the engine log, in bytes, before the events that led to the death."""
    hang_reason: str = ""
    """Reason why the client killed the process, which was hanging; "" if the client did not kill it."""
    is_gpu_failure_known: bool = False
    """True if the client killed the process because a request had failed on the GPU."""

    def find_request_error(self) -> EdgechatError:
        """Return the error for the requests in progress: a model that cannot be used, too little memory, or a crash."""
        if self.exit_code not in CRASH_CODES or self.is_drafter_crash:
            return self.find_error()
        assertion = self._find_assertion()
        is_loading = bool(self.state.activities & {Activity.LOADING, Activity.OPENING_DRAFTER})
        if is_loading and _OUT_OF_MEMORY.search(assertion):
            return PlanError(f"Memory ran out while the model was loaded ({assertion})")
        if Activity.TOKENIZING in self.state.activities and _MISSING_TOKEN.fullmatch(assertion):
            return ModelCrashError(
                f"The vocabulary of {self.opened_path} lacks a token for a part of this text ({assertion}). The file "
                "is damaged or was converted incorrectly. Choose another model."
            )
        # Before the first batch is computed, an assertion means that the file has values which llama.cpp cannot use.
        may_reject = bool(self.state.activities - {Activity.RESIZING})
        is_rejected = may_reject and not self.state.has_computed and not self._is_on_gpu
        if not is_loading and not (is_rejected and _ASSERTION.fullmatch(assertion)):
            return self.find_error()
        path = self.opened_path if is_loading or self.load is None else self.load.plan.model_path
        if self.exit_code == _BUS_ERROR_CODE:
            return ModelCrashError(f"{path} was truncated or became unreadable while it was loaded. Download it again.")
        cause = assertion or describe_exit(self.exit_code)
        return ModelCrashError(
            f"{path} cannot be used: llama.cpp stopped with {cause!r}. The file is damaged, or of a kind that this "
            "version of llama.cpp does not support. Download it again, or choose another model."
        )

    def find_error(self) -> EngineDiedError:
        """Return the error for later requests, with the cause of the death and the last lines of the engine log."""
        code = None if self.hang_reason else self.exit_code
        return EngineDiedError(self._describe(), code, is_gpu_failure=self.is_gpu_failure, died_on_gpu=self.died_on_gpu)

    def _describe(self) -> str:
        if self.hang_reason:
            return f"The engine process was killed, because {self.hang_reason}. Send the request again."
        if self.exit_code in _END_MESSAGES:
            return _END_MESSAGES[self.exit_code]
        activity = f" while {self.state.description}" if self.state.activities else ""
        message = f"The engine process died{activity}: {describe_exit(self.exit_code)}"
        if self.exit_code == -KILL_SIGNAL:
            message += "; the system kills processes when memory runs out"
        elif self.exit_code == _BUS_ERROR_CODE:
            message += "; a model file was truncated or became unreadable. Run `edgechat models verify`."
        elif self.is_kernel_crash:
            message += ". Try again; after repeated crashes, edgechat uses another backend for this model."
        elif self.is_drafter_crash:
            message += ". Send the request again; edgechat does not use this drafter with this model any more."
        if assertion := self._find_assertion():
            return f"{message}\nllama.cpp reported: {assertion}"
        # The log says nothing about a process that was killed.
        is_killed = self.exit_code == -KILL_SIGNAL
        log_lines = [] if is_killed else logs.read_last_lines(paths.log_file(), self.log_start)
        return message + ("\nIts last log lines:\n  " + "\n  ".join(log_lines) if log_lines else "")

    def _find_assertion(self) -> str:
        """Return the assertion or the C++ exception that aborted the process, without its directory; "" if none."""
        if self.exit_code not in ABORT_CODES:
            return ""
        for line in reversed(logs.read_last_lines(paths.log_file(), self.log_start, _N_SEARCHED_LINES)):
            match = _ASSERTION.fullmatch(line) or _EXCEPTION.fullmatch(line)
            if match is not None:
                return match[1].strip()[:_MAX_ASSERTION_CHARS]
        return ""

    @property
    def is_kernel_crash(self) -> bool:
        """True if the kernels of the CPU module may have caused the crash."""
        return (
            self.exit_code in _KERNEL_CRASH_CODES
            and self.state.activities == {Activity.COMPUTING}
            and bool(self.backend)
            and not self._is_on_gpu
        )

    @property
    def is_drafter_crash(self) -> bool:
        """True if the process crashed while it opened a model drafter or drafted on the CPU, with sufficient memory."""
        return (
            self.exit_code in CRASH_CODES
            and bool(self.state.activities & {Activity.OPENING_DRAFTER, Activity.DRAFTING})
            and self.load is not None
            and self.load.plan.drafter is not None
            and not _OUT_OF_MEMORY.search(self._find_assertion())
        )

    @property
    def is_gpu_failure(self) -> bool:
        """True if the kernels or the driver of the GPU may have caused the death.

        A lost device aborts the process, a driver may never return, and a resident engine ends after a failure.
        """
        is_computing = len(self.state.activities) == 1 and self.state.activities <= _GPU_COMPUTATIONS
        is_failure = self.exit_code == EXIT_GPU_FAILED or is_computing
        return self.died_on_gpu and is_failure and not self.is_gpu_failure_known  # which was recorded already

    @property
    def died_on_gpu(self) -> bool:
        """True if the process crashed or stalled while a GPU worked for it or between two steps, or was killed then.

        A thread of the driver can crash between two steps. Another activity at the same time can be the cause, such as
        a grammar that another thread compiled. Replies can continue on the CPU in all these cases.
        """
        is_crash = self.exit_code in CRASH_CODES or self.exit_code == EXIT_STALLED
        uses_gpu = not self.state.activities or bool(self.state.activities & _GPU_ACTIVITIES)
        is_known = self.exit_code == EXIT_GPU_FAILED or self.is_gpu_failure_known
        return self._is_on_gpu and ((is_crash and uses_gpu) or is_known)

    @property
    def _is_on_gpu(self) -> bool:
        return self.load is not None and self.load.plan.options.uses_gpu

    def record_crash(self) -> None:
        """Record a crash of kernels, of a GPU's driver or of a drafter for the module or drafter and the model.

        Other deaths are not recorded.
        """
        if self.is_drafter_crash and self.load is not None and self.load.plan.drafter is not None:
            plan = self.load.plan
            drafter_crashes.record_crash(plan.model_path, self.load.plan.drafter, describe_exit(self.exit_code))
        if self.is_gpu_failure and self.load is not None:
            plan = self.load.plan
            with contextlib.suppress(EdgechatError):
                gpu_probe.record_failure(
                    find_bundle(), describe_exit(self.exit_code), plan.model_path, plan.gpu_module
                )  # fmt: skip
        if not self.is_kernel_crash:
            return
        with contextlib.suppress(EdgechatError):  # the bundle may have been removed
            bundle, cpu = find_bundle(), read_cpu()
            for module in bundle.modules:
                if module.name == self.backend:
                    key = verdicts.compute_verdict_key(bundle, module, cpu)
                    model_path = self.load.plan.model_path if self.load is not None else ""
                    verdicts.record_engine_crash(key, self.backend, describe_exit(self.exit_code), model_path)
