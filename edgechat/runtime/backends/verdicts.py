"""Cache of backend verdicts: the results of self-tests, saved for later starts.

A verdict holds for one build on one machine: its key covers the build, the CPU's model, flags and microcode, the GPU
driver, and the size and modification time of the module file. Errors of the cache never prevent a start: an unreadable
file counts as empty, and a failed write is repeated at the next start.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.cpu import Cpu
from edgechat.runtime.backends.bundle import BackendModule, Bundle

CRASHES_UNTIL_DISTRUST: Final = 2
_MAX_VERDICTS: Final = 100
# Maximum size of the cache file. A hundred verdicts take about 30 kB.
_MAX_BYTES: Final = 1 << 20


class Verdict(msgspec.Struct, frozen=True):
    """Result of the self-test of one backend module on this machine."""

    module: str
    status: Literal["passed", "wrong", "crashed", "hung", "refused", "missing", "distrusted", "untested"]
    """`refused`: the CPU lacks instructions, or there is no device. `distrusted`: the engine crashed on the module.
    `untested`: the self-test failed for a reason outside the module."""
    reason: str
    """Explanation of the status for the user, without the module name."""
    checks: int = 0
    """Number of checks that the self-test ran."""
    elapsed_s: float = 0.0

    @property
    def is_usable(self) -> bool:
        """True if the module passed."""
        return self.status == "passed"


class _VerdictFile(msgspec.Struct):
    verdicts: dict[str, Verdict] = {}
    deaths: dict[str, int] = {}
    """Number of engine crashes by verdict key."""


def verdict_key(bundle: Bundle, module: BackendModule, cpu: Cpu, driver: str = "") -> str:
    """Return the cache key of a verdict; `driver` is the driver version for GPU modules."""
    parts = (
        driver,
        bundle.build_id,
        module.name,
        module.path,
        module.fingerprint(),
        cpu.model,
        cpu.flags,
        cpu.microcode,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def load_verdict(key: str) -> Verdict | None:
    """Return the cached verdict for `key`; None if there is none."""
    return _read().verdicts.get(key)


def save_verdict(key: str, verdict: Verdict) -> None:
    """Save a verdict in the cache, which holds the newest hundred verdicts."""
    content = _read()
    content.verdicts.pop(key, None)
    content.verdicts[key] = verdict
    content.verdicts = dict(list(content.verdicts.items())[-_MAX_VERDICTS:])
    _file().save(content)


def record_engine_crash(key: str, module: str, cause: str) -> None:
    """Count a crash of the engine on `module`; the second one replaces its verdict with `distrusted`.

    `cause` describes the signal or the exit code.
    """
    content = _read()
    n_crashes = content.deaths[key] = content.deaths.get(key, 0) + 1
    if n_crashes >= CRASHES_UNTIL_DISTRUST:
        reason = (
            f"passed its self-test, but the engine crashed on it {n_crashes} times, most recently with {cause}. "
            "Run `edgechat doctor --retest` to test it again."
        )
        content.verdicts[key] = Verdict(module=module, status="distrusted", reason=reason)
    _file().save(content)


def clear_verdicts() -> None:
    """Delete all verdicts and crash counts, so that every module is tested again."""
    _file().save(_VerdictFile())


def _file() -> JsonFile[_VerdictFile]:
    return JsonFile(paths.verdicts_file(), _VerdictFile, max_bytes=_MAX_BYTES)


def _read() -> _VerdictFile:
    return _file().read() or _VerdictFile()
