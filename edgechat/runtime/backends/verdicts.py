"""Cache of backend verdicts: the results of self-tests, and crashes of the engine, saved for later starts.

A verdict is valid for one build on one machine: its key covers the build, the CPU's model, flags and microcode, the GPU
driver, and the size and modification time of the module file. Cache errors never prevent a start: an unreadable cache
is treated as empty, and a verdict that could not be saved is determined again at the next start.

A crash while the engine computes is recorded by module and model. The second crash, or the first failure of a GPU,
makes the module distrusted for this model only. Distrust lasts a day, and longer after further crashes; then the
self-test decides again.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from edgechat import paths
from edgechat.files import FileLock, JsonFile
from edgechat.hardware.cpu import Cpu, count_usable_threads
from edgechat.hardware.gpu import GpuSpeeds
from edgechat.humanize import format_count
from edgechat.modelfile.content_hash import read_stamp
from edgechat.runtime.backends.bundle import BackendModule, Bundle

_CRASHES_UNTIL_DISTRUSTED: Final = 2
# Time until a distrusted module is tested again, in seconds. The time doubles with each further crash.
_DISTRUST_S: Final = 86_400.0
_MAX_DOUBLINGS: Final = 5
_MAX_VERDICTS: Final = 100
_MAX_CRASH_RECORDS: Final = 100
# Maximum size of the cache file. A hundred verdicts take about 30 kB.
_MAX_FILE_BYTES: Final = 1 << 20
# Time to wait for another process that changes the file. A change takes milliseconds.
_LOCK_TIMEOUT_S: Final = 2.0


Status = Literal["passed", "wrong", "crashed", "hung", "refused", "missing", "damaged", "distrusted", "untested"]
"""Outcome of a self-test. `refused`: the CPU lacks instructions, or no device or driver was found. `damaged`: the file
is not a whole library for this system. `distrusted`: the engine failed with this module and one model. `untested`: the
self-test failed for a reason outside the module."""


class FailedType(msgspec.Struct, frozen=True):
    """Weight type with which the test of a device crashed or hung, so that models with it use the CPU."""

    type_id: int
    """Weight type, as ggml's number."""
    reason: str
    """What happened, as a clause without a subject."""
    is_final: bool = True
    """False if a loaded model may be the reason; the type is then tested again before a model needs it."""


class DeviceVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the self-test of one device of a GPU module."""

    name: str
    """Name in llama.cpp, such as `Vulkan0`."""
    description: str
    kind: Literal["discrete", "integrated", "virtual", "cpu", "other"]
    driver: str = ""
    """Identity of the driver and of the device; "" if the module does not report it."""
    status: Status
    reason: str
    types: tuple[int, ...] | None = ()
    """Weight types that were tested and are right, as ggml's numbers, in increasing order; None for all but those in
    `failed_types`."""
    failed_types: tuple[FailedType, ...] = ()
    unsupported_types: tuple[int, ...] = ()
    """Those of `types` that the module cannot multiply, in increasing order; the CPU computes with them."""
    allocated_bytes: int = 0
    """Memory that was allocated on the device, written and read back."""
    asked_bytes: int = 0
    """Memory that the largest tested model wants."""
    speeds: GpuSpeeds = GpuSpeeds()
    unmeasured_types: tuple[int, ...] = ()
    """Weight types whose speed could not be measured, in increasing order."""
    unmeasured_at: float = 0.0
    """Time of the last measurement that failed, in seconds since 1970."""

    @property
    def is_usable(self) -> bool:
        """True if the device passed all tests so far."""
        return self.status == "passed"


class Verdict(msgspec.Struct, frozen=True):
    """Result of the self-test of one backend module on this machine."""

    module: str
    status: Status
    reason: str
    """Explanation of the status for the user, without the module name."""
    checks: int = 0
    """Number of checks that the self-test ran."""
    elapsed_s: float = 0.0
    devices: tuple[DeviceVerdict, ...] = ()
    """Devices of a GPU module that were found; the module is usable if one of them is."""

    @property
    def is_usable(self) -> bool:
        """True if the module passed its self-test."""
        return self.status == "passed"


class CrashRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Crashes of the engine while it computed with one module and one model."""

    module: str
    model: str
    """File name of the model."""
    n_crashes: int
    cause: str
    """Signal or exit code of the most recent crash."""
    crashed_at: float
    """Time of the most recent crash, in seconds since 1970."""
    causes_distrust: bool
    """True if the module must pass its self-test again before it is used for the model, but not before `retest_at`."""
    is_retested: bool = False
    """True if the module has been tested again after the most recent crash."""

    @property
    def retest_at(self) -> float:
        """Time from which the module may be tested again, in seconds since 1970."""
        n_doublings = min(_MAX_DOUBLINGS, max(0, self.n_crashes - _CRASHES_UNTIL_DISTRUSTED))
        return self.crashed_at + _DISTRUST_S * (1 << n_doublings)

    @property
    def is_distrusted(self) -> bool:
        """True if the module must not be used for the model now."""
        # A time in the future was recorded with a wrong clock.
        return self.causes_distrust and self.crashed_at <= time.time() < self.retest_at

    @property
    def needs_retest(self) -> bool:
        """True if the module must be tested again now, before it is used for the model."""
        return self.causes_distrust and not self.is_distrusted and not self.is_retested

    def describe(self) -> str:
        """Return an explanation for the user, without the module name."""
        return (
            f"not used with {self.model or 'this model'}: the engine failed on it "
            f"{format_count(self.n_crashes, 'time')}, most recently with {self.cause} on "
            f"{_format_time(self.crashed_at)}. It is tested again after {_format_time(self.retest_at)}, or by "
            "`edgechat doctor --retest`."
        )


class _VerdictFile(msgspec.Struct):
    verdicts: dict[str, Verdict] = {}
    crashes: dict[str, CrashRecord] = {}
    """Crashes by verdict key and model key."""


def compute_verdict_key(bundle: Bundle, module: BackendModule, cpu: Cpu, driver: str = "") -> str:
    """Return the cache key of a verdict; `driver` is the GPU driver's version, or "" for a CPU module.

    Verdicts of tests with one thread and with two threads have different keys, because one thread finds fewer errors.
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


def load_verdict(key: str, model_path: str = "") -> Verdict | None:
    """Return the verdict for `key` and the model at `model_path`; None if the module must be tested.

    The verdict is `distrusted` if the engine has crashed repeatedly with this module and model.
    """
    content = _read_cache()
    record = content.crashes.get(_make_crash_key(key, model_path))
    if record is not None and record.is_distrusted:
        return Verdict(module=record.module, status="distrusted", reason=record.describe())
    return None if record is not None and record.needs_retest else content.verdicts.get(key)


def load_saved_verdict(key: str) -> Verdict | None:
    """Return the verdict that was saved for `key`, whatever crashed since; None without one."""
    return _read_cache().verdicts.get(key)


def save_verdict(
    key: str, verdict: Verdict, model_path: str = "", *, is_tested: bool = True,
    merge: Callable[[Verdict, Verdict], Verdict] = lambda newest, new: new,
) -> Verdict:  # fmt: skip
    """Save a verdict in the cache, which holds the newest hundred verdicts; return what is saved.

    That is the result of `merge`, which gets the saved verdict, perhaps one of another process, and `verdict`.
    If `is_tested`, this ends the distrust of the module for the model at `model_path` after a crash; the module must be
    tested again for other models with which the engine crashed.
    """
    with _locked():
        content = _read_cache()
        newest = content.verdicts.pop(key, None)
        verdict = merge(newest, verdict) if newest is not None else verdict
        content.verdicts[key] = verdict
        content.verdicts = dict(list(content.verdicts.items())[-_MAX_VERDICTS:])
        crash_key = _make_crash_key(key, model_path)
        record = content.crashes.get(crash_key)
        if is_tested and record is not None and record.needs_retest:
            content.crashes[crash_key] = msgspec.structs.replace(record, is_retested=True)
        _open_cache_file().save(content)
    return verdict


def change_verdict(key: str, change: Callable[[Verdict], Verdict]) -> None:
    """Replace the saved verdict for `key` by the result of `change`, which gets the newest one; do nothing without one.

    Unlike `save_verdict`, this does not count as a test after a crash.
    """
    with _locked():
        content = _read_cache()
        verdict = content.verdicts.get(key)
        new = verdict and change(verdict)
        if new is not None and new != verdict:
            content.verdicts[key] = new
            _open_cache_file().save(content)


def record_engine_crash(
    key: str, module: str, cause: str, model_path: str = "", *, causes_distrust: bool = False
) -> None:
    """Record a crash of the engine while it computed with `module` and with the model at `model_path`.

    `cause` describes the signal or the exit code. A model that has repeatedly crashed on one module needs only one
    crash on each further module, so that edgechat soon finds a module that works, or tries all modules. With
    `causes_distrust`, the first crash is enough.
    """
    with _locked():
        content = _read_cache()
        crash_key = _make_crash_key(key, model_path)
        previous_record = content.crashes.pop(crash_key, None)
        n_crashes = 1 + (previous_record.n_crashes if previous_record else 0)
        content.crashes[crash_key] = CrashRecord(
            module=module, model=_make_printable(Path(model_path).name), n_crashes=n_crashes, cause=cause,
            crashed_at=time.time(),
            causes_distrust=causes_distrust or n_crashes >= _CRASHES_UNTIL_DISTRUSTED
            or bool(_list_distrusted(content, model_path)),
        )  # fmt: skip
        content.crashes = dict(list(content.crashes.items())[-_MAX_CRASH_RECORDS:])
        _open_cache_file().save(content)


def has_crash_records() -> bool:
    """Return whether any crash has been recorded, so that two models may need different modules."""
    return bool(_read_cache().crashes)


def list_distrusted_modules(model_path: str) -> list[str]:
    """Return the modules that are distrusted for the model at `model_path`."""
    return _list_distrusted(_read_cache(), model_path)


def list_crash_records() -> list[CrashRecord]:
    """Return all records of modules that are distrusted for a model, newest last."""
    return [record for record in _read_cache().crashes.values() if record.is_distrusted]


def _list_distrusted(content: _VerdictFile, model_path: str) -> list[str]:
    suffix = _make_crash_key("", model_path)
    return [r.module for crash_key, r in content.crashes.items() if crash_key.endswith(suffix) and r.is_distrusted]


def clear_verdicts() -> None:
    """Delete all verdicts and crash records, so that every module is tested again."""
    with _locked():
        _open_cache_file().save(_VerdictFile())


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep other processes from changing the cache file meanwhile, where the file system has locks."""
    path, lock = paths.verdicts_file(), None
    with contextlib.suppress(OSError, UnicodeError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(path.with_name(path.name + ".lock"))
        lock.acquire(_LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _open_cache_file() -> JsonFile[_VerdictFile]:
    return JsonFile(paths.verdicts_file(), _VerdictFile, max_bytes=_MAX_FILE_BYTES)


def _read_cache() -> _VerdictFile:
    content = _open_cache_file().read() or _VerdictFile()
    # Earlier releases saved distrust of a module for all models, without an end, after any crash of the engine.
    content.verdicts = {key: v for key, v in content.verdicts.items() if v.status != "distrusted"}
    return content


def _make_crash_key(key: str, model_path: str) -> str:
    """Return the key of a crash record: the verdict key, and a hash of the model's file name and current version."""
    version = f"{Path(model_path).name}\0{read_stamp(Path(model_path)) if model_path else ''}"
    return f"{key}/{hashlib.sha256(version.encode('utf-8', 'replace')).hexdigest()[:24]}"


def _make_printable(name: str) -> str:
    """Return a file name with `?` in place of bytes that are not UTF-8, which JSON cannot contain."""
    return name.encode("utf-8", "replace").decode()


def _format_time(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))
