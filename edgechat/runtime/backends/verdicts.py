"""Cache of backend verdicts: the results of self-tests, saved for later starts.

A verdict is valid for one build on one machine: its key covers the build, the CPU's model, flags and microcode, the GPU
driver, and the size and modification time of the module file. Cache errors never prevent a start: an unreadable cache
is treated as empty, and a verdict that could not be saved is determined again at the next start.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.cpu import Cpu, count_usable_threads
from edgechat.runtime.backends.bundle import BackendModule, Bundle

_CRASHES_UNTIL_DISTRUSTED: Final = 2
_MAX_VERDICTS: Final = 100
# Maximum size of the cache file. A hundred verdicts take about 30 kB.
_MAX_FILE_BYTES: Final = 1 << 20


class Verdict(msgspec.Struct, frozen=True):
    """Result of the self-test of one backend module on this machine."""

    module: str
    status: Literal["passed", "wrong", "crashed", "hung", "refused", "missing", "distrusted", "untested"]
    """Outcome of the self-test. `refused`: the CPU lacks instructions, or no device or driver was found. `distrusted`:
    the engine crashed with this module. `untested`: the self-test failed for a reason outside the module."""
    reason: str
    """Explanation of the status for the user, without the module name."""
    checks: int = 0
    """Number of checks that the self-test ran."""
    elapsed_s: float = 0.0

    @property
    def is_usable(self) -> bool:
        """True if the module passed its self-test."""
        return self.status == "passed"


class _VerdictFile(msgspec.Struct):
    verdicts: dict[str, Verdict] = {}
    crash_counts: dict[str, int] = msgspec.field(default_factory=dict, name="deaths")
    """Number of engine crashes by verdict key."""


def compute_verdict_key(bundle: Bundle, module: BackendModule, cpu: Cpu, driver: str = "") -> str:
    """Return the cache key of a verdict; `driver` is the GPU driver's version, or "" for a CPU module.

    A test with one thread says less than one with two, so its verdict has another key.
    """
    parts = (
        *(("1 thread",) if count_usable_threads() == 1 else ()),
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
    """Return the verdict for `key`; None if the cache has no such verdict."""
    return _read_cache().verdicts.get(key)


def save_verdict(key: str, verdict: Verdict) -> None:
    """Save a verdict in the cache, which holds the newest hundred verdicts."""
    content = _read_cache()
    content.verdicts.pop(key, None)
    content.verdicts[key] = verdict
    content.verdicts = dict(list(content.verdicts.items())[-_MAX_VERDICTS:])
    _open_cache_file().save(content)


def record_engine_crash(key: str, module: str, cause: str) -> None:
    """Count an engine crash that happened with `module` loaded; the second crash makes the verdict `distrusted`.

    `cause` describes the signal or the exit code.
    """
    content = _read_cache()
    n_crashes = content.crash_counts[key] = content.crash_counts.get(key, 0) + 1
    if n_crashes >= _CRASHES_UNTIL_DISTRUSTED:
        reason = (
            f"passed its self-test, but the engine crashed on it {n_crashes} times, most recently with {cause}. "
            "Run `edgechat doctor --retest` to test it again."
        )
        content.verdicts[key] = Verdict(module=module, status="distrusted", reason=reason)
    _open_cache_file().save(content)


def clear_verdicts() -> None:
    """Delete all verdicts and crash counts, so that every module is tested again."""
    _open_cache_file().save(_VerdictFile())


def _open_cache_file() -> JsonFile[_VerdictFile]:
    return JsonFile(paths.verdicts_file(), _VerdictFile, max_bytes=_MAX_FILE_BYTES)


def _read_cache() -> _VerdictFile:
    return _open_cache_file().read() or _VerdictFile()
