"""Verdict cache: size limits, number of entries, engine crashes by module and model, and files of earlier releases."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from edgechat import paths
from edgechat.runtime.backends import verdicts
from edgechat.runtime.backends.verdicts import Verdict

PASSED = Verdict(module="cpu-x64", status="passed", reason="passed 3 checks")
DAY_S = 86_400


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return str(path)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Current time of the verdict cache, in a list with one element that the test can change."""
    current_time = [time.time()]
    monkeypatch.setattr(time, "time", lambda: current_time[0])
    return current_time


def crash(key: str, model_path: str, n_times: int = 1, cause: str = "SIGSEGV (signal 11)") -> None:
    for _ in range(n_times):
        verdicts.record_engine_crash(key, f"cpu-{key}", cause, model_path)


def status(key: str, model_path: str = "") -> str | None:
    verdict = verdicts.load_verdict(key, model_path)
    return verdict.status if verdict else None


def test_saved_verdict_is_loaded_until_the_cache_is_cleared() -> None:
    verdicts.save_verdict("key", PASSED)
    assert verdicts.load_verdict("key") == PASSED
    verdicts.clear_verdicts()
    assert verdicts.load_verdict("key") is None


def test_changed_verdict_is_not_a_test_after_a_crash(model: str, now: list[float]) -> None:
    verdicts.change_verdict("key", lambda newest: newest)
    assert verdicts.load_verdict("key") is None
    verdicts.save_verdict("key", PASSED)
    crash("key", model, 2)
    now[0] += 3 * DAY_S
    changed = msgspec.structs.replace(PASSED, reason="passed 4 checks")
    verdicts.change_verdict("key", lambda newest: changed)
    assert verdicts.load_verdict("key") == changed
    assert verdicts.load_verdict("key", model) is None  # must be tested again
    verdicts.save_verdict("key", changed, model)
    assert verdicts.load_verdict("key", model) == changed


def test_only_a_test_for_the_model_ends_its_distrust(model: str, tmp_path: Path, now: list[float]) -> None:
    other = str(tmp_path / "other.gguf")
    for path in (model, other):
        crash("key", path, 2)
    now[0] += DAY_S + 1
    verdicts.save_verdict("key", PASSED, model, is_tested=False)  # such as a speed
    assert [status("key", path) for path in (model, other)] == [None, None]
    verdicts.save_verdict("key", PASSED, other)
    assert [status("key", path) for path in (model, other)] == [None, "passed"]
    verdicts.save_verdict("key", PASSED, model)
    assert [status("key", path) for path in (model, other)] == ["passed", "passed"]


def test_changes_of_several_threads_are_all_saved() -> None:
    verdicts.save_verdict("key", PASSED)

    def count(_number: int) -> None:
        verdicts.change_verdict("key", lambda newest: msgspec.structs.replace(newest, checks=newest.checks + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(40)))
    verdict = verdicts.load_verdict("key")
    assert verdict is not None
    assert verdict.checks == PASSED.checks + 40


def test_oversized_file_is_not_read_and_is_replaced() -> None:
    path = paths.verdicts_file()
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 36)
    assert verdicts.load_verdict("key") is None
    verdicts.save_verdict("key", PASSED)
    assert verdicts.load_verdict("key") == PASSED


def test_only_the_newest_hundred_verdicts_and_crash_records_are_kept(tmp_path: Path) -> None:
    for number in range(101):
        verdicts.save_verdict(str(number), PASSED)
        crash("key", str(tmp_path / f"{number}.gguf"), 2)
    assert verdicts.load_verdict("0") is None
    assert verdicts.load_verdict("100") == PASSED
    records = verdicts.list_crash_records()
    assert [records[0].model, records[-1].model, len(records)] == ["1.gguf", "100.gguf", 100]


def test_second_engine_crash_replaces_the_verdict() -> None:
    verdicts.save_verdict("key", PASSED)
    verdicts.record_engine_crash("key", "cpu-x64", "SIGSEGV (signal 11)")
    assert verdicts.load_verdict("key") == PASSED
    verdicts.record_engine_crash("key", "cpu-x64", "SIGSEGV (signal 11)")
    verdict = verdicts.load_verdict("key")
    assert verdict is not None
    assert (verdict.status, verdict.is_usable) == ("distrusted", False)
    assert "2 times, most recently with SIGSEGV (signal 11)" in verdict.reason


def test_crashes_with_one_model_do_not_change_the_verdict_for_others(model: str, tmp_path: Path) -> None:
    verdicts.save_verdict("key", PASSED)
    crash("key", model, 5)
    assert status("key", model) == "distrusted"
    assert status("key", str(tmp_path / "other.gguf")) == "passed"
    assert status("key") == "passed"


def test_distrust_does_not_apply_to_a_new_version_of_the_model_file(model: str) -> None:
    verdicts.save_verdict("key", PASSED)
    crash("key", model, 2)
    Path(model).write_bytes(b"repaired weights")
    assert status("key", model) == "passed"


def test_model_that_crashed_twice_needs_one_crash_on_each_further_module(model: str) -> None:
    for key in ("a", "b", "c"):
        verdicts.save_verdict(key, PASSED)
    crash("a", model)
    crash("b", model)
    assert [status(key, model) for key in "abc"] == ["passed", "passed", "passed"]
    crash("a", model)
    crash("c", model)
    assert [status(key, model) for key in "abc"] == ["distrusted", "passed", "distrusted"]
    assert verdicts.list_distrusted_modules(model) == ["cpu-a", "cpu-c"]


def test_distrusted_module_is_tested_again_after_a_day(model: str, now: list[float]) -> None:
    verdicts.save_verdict("key", PASSED)
    crash("key", model, 2)
    now[0] += DAY_S - 1
    assert status("key", model) == "distrusted"
    now[0] += 2
    assert status("key", model) is None  # the self-test decides
    verdicts.save_verdict("key", PASSED, model)
    assert status("key", model) == "passed"
    assert verdicts.list_crash_records() == []


def test_failed_retest_leaves_the_module_unused(model: str, now: list[float]) -> None:
    crash("key", model, 2)
    now[0] += DAY_S + 1
    verdicts.save_verdict("key", msgspec.structs.replace(PASSED, status="crashed"), model)
    assert status("key", model) == "crashed"


def test_time_until_the_next_retest_doubles_up_to_a_month(model: str, now: list[float]) -> None:
    verdicts.save_verdict("key", PASSED)
    crash("key", model, 2)
    for days in (1, 2, 4, 8, 16, 32, 32, 32):
        now[0] += days * DAY_S - 1
        assert status("key", model) == "distrusted"
        now[0] += 2
        assert status("key", model) is None
        verdicts.save_verdict("key", PASSED, model)
        crash("key", model)


def test_crash_at_a_time_in_the_future_causes_no_distrust(model: str, now: list[float]) -> None:
    now[0] += 400 * DAY_S  # the clock is wrong
    crash("key", model, 2)
    now[0] -= 400 * DAY_S
    assert status("key", model) is None


def test_reason_names_model_signal_and_times(model: str, now: list[float]) -> None:
    now[0] = time.mktime((2026, 11, 28, 20, 15, 0, 0, 0, -1))
    crash("key", model, 2, "SIGILL (signal 4)")
    verdict = verdicts.load_verdict("key", model)
    assert verdict is not None
    assert verdict.reason == (
        "not used with model.gguf: the engine failed on it 2 times, most recently with SIGILL (signal 4) on "
        "2026-11-28 20:15. It is tested again after 2026-11-29 20:15, or by `edgechat doctor --retest`."
    )


def test_files_of_earlier_releases_are_read_without_their_distrust() -> None:
    path = paths.verdicts_file()
    path.parent.mkdir(parents=True)
    path.write_text(
        '{"verdicts":{"good":{"module":"cpu-x64","status":"passed","reason":"passed 3 checks","checks":3,'
        '"elapsed_s":0.5},"lost":{"module":"cpu-zen4","status":"distrusted","reason":"passed its self-test, but the '
        'engine failed on it 2 times","checks":0,"elapsed_s":0.0}},"deaths":{"lost":2}}'
    )
    assert status("good") == "passed"
    assert status("lost") is None


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode on Windows")
def test_model_path_that_is_not_utf8_is_recorded() -> None:
    model_path = os.fsdecode(b"/caf\xe9.gguf")
    verdicts.save_verdict("key", PASSED)
    crash("key", model_path, 2)
    assert status("key", model_path) == "distrusted"
