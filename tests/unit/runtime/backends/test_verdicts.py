"""Verdict cache: size limits, number of entries, engine crashes."""

from __future__ import annotations

from edgechat import paths
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.verdicts import Verdict

PASSED = Verdict(module="cpu-x64", status="passed", reason="passed 3 checks")


def test_saved_verdict_is_loaded_until_the_cache_is_cleared() -> None:
    verdicts.save_verdict("key", PASSED)
    assert verdicts.load_verdict("key") == PASSED
    verdicts.clear_verdicts()
    assert verdicts.load_verdict("key") is None


def test_oversized_file_is_not_read_and_is_replaced() -> None:
    path = paths.verdicts_file()
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 36)
    assert verdicts.load_verdict("key") is None
    verdicts.save_verdict("key", PASSED)
    assert verdicts.load_verdict("key") == PASSED


def test_only_the_newest_hundred_verdicts_are_kept() -> None:
    for number in range(101):
        verdicts.save_verdict(str(number), PASSED)
    assert verdicts.load_verdict("0") is None
    assert verdicts.load_verdict("100") == PASSED


def test_second_engine_crash_replaces_the_verdict() -> None:
    verdicts.save_verdict("key", PASSED)
    verdicts.record_engine_crash("key", "cpu-x64", "SIGSEGV (signal 11)")
    assert verdicts.load_verdict("key") == PASSED
    verdicts.record_engine_crash("key", "cpu-x64", "SIGSEGV (signal 11)")
    verdict = verdicts.load_verdict("key")
    assert verdict is not None
    assert (verdict.status, verdict.is_usable) == ("distrusted", False)
    assert "2 times, most recently with SIGSEGV (signal 11)" in verdict.reason
