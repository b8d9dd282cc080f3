"""What the self tests found, remembered across starts.

A verdict holds for one build on one machine: the key covers the build, the CPU's model, flags and
microcode, and the module file's size and time. Nothing here can fail a start: an unreadable or damaged
file is an empty one, and one that cannot be written is tried again next time.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.cpu import Cpu
from edgechat.runtime.backends.bundle import BackendModule, Bundle

CRASHES_UNTIL_DISTRUST = 2
# A hundred verdicts take about 30 kB.
_MAX_BYTES: Final = 1 << 20


class Verdict(msgspec.Struct, frozen=True):
    """What is known of one module on this machine."""

    module: str
    status: Literal["passed", "wrong", "crashed", "hung", "refused", "missing", "distrusted", "untested"]
    """`refused`: it needs instructions that this CPU lacks. `distrusted`: it died in real use.
    `untested`: its self test met an accident."""
    reason: str
    """For a person, in words."""
    checks: int = 0
    elapsed_s: float = 0.0

    @property
    def is_usable(self) -> bool:
        """True if the module may be used."""
        return self.status == "passed"


class _VerdictFile(msgspec.Struct):
    verdicts: dict[str, Verdict] = {}
    deaths: dict[str, int] = {}


def verdict_key(bundle: Bundle, module: BackendModule, cpu: Cpu, driver: str = "") -> str:
    """The name under which a verdict is kept; of a GPU's module also the driver's version counts."""
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


def load_verdict(name: str) -> Verdict | None:
    """The verdict kept under `name`, if any."""
    return _read().verdicts.get(name)


def save_verdict(name: str, verdict: Verdict) -> None:
    """Keep a verdict; the newest hundred stay."""
    file = _read()
    file.verdicts.pop(name, None)
    file.verdicts[name] = verdict
    file.verdicts = dict(list(file.verdicts.items())[-100:])
    _file().save(file)


def record_engine_crash(name: str, module: str, how: str) -> None:
    """Count a death of the engine on this module; after the second one its verdict is withdrawn."""
    file = _read()
    file.deaths[name] = file.deaths.get(name, 0) + 1
    if file.deaths[name] >= CRASHES_UNTIL_DISTRUST:
        reason = f"passed its self test, but the engine died on it {file.deaths[name]} times, last by {how}; `edgechat doctor --retest` tries it anew"
        file.verdicts[name] = Verdict(module=module, status="distrusted", reason=reason)
    _file().save(file)


def clear_verdicts() -> None:
    """Forget everything: every module is tested anew."""
    _file().save(_VerdictFile())


def _file() -> JsonFile[_VerdictFile]:
    return JsonFile(paths.verdicts_file(), _VerdictFile, max_bytes=_MAX_BYTES)


def _read() -> _VerdictFile:
    return _file().read() or _VerdictFile()
