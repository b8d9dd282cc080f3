"""Tests of waiting: a failed wait names its condition, and a directory in use is deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.css.query import NoMatches

from tests.waiting import delete_tree, until, until_async


def test_until_returns_once_the_condition_holds() -> None:
    values = iter([0, 0, 1])
    until(lambda: next(values), interval_s=0)
    assert next(values, None) is None


def test_failed_wait_shows_the_source_of_the_lambda() -> None:
    engine_is_idle = False
    with pytest.raises(pytest.fail.Exception, match=r"Not true within 0 s: .*lambda: engine_is_idle"):
        until(lambda: engine_is_idle, 0)


def test_failed_wait_shows_the_name_of_the_function() -> None:
    def engine_is_idle() -> bool:
        return False

    with pytest.raises(pytest.fail.Exception, match=r"engine_is_idle$"):
        until(engine_is_idle, 0)


async def test_failed_async_wait_shows_the_description() -> None:
    with pytest.raises(pytest.fail.Exception, match="the engine is idle"):
        await until_async(lambda: False, 0, "the engine is idle")
    with pytest.raises(pytest.fail.Exception, match="2 requests are running"):
        await until_async(lambda: False, 0, lambda: f"{1 + 1} requests are running")


def test_directory_in_which_files_appear_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "cache"
    (directory / "segments").mkdir(parents=True)
    n_late_files = 3
    remove_directory = os.rmdir

    def add_a_file_first(path: str | Path, *, dir_fd: int | None = None) -> None:
        nonlocal n_late_files
        if str(path) == str(directory) and n_late_files:
            n_late_files -= 1
            (directory / f"late{n_late_files}").touch()
        remove_directory(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", add_a_file_first)
    delete_tree(directory)
    assert (directory.exists(), n_late_files) == (False, 0)


async def test_widget_that_is_not_mounted_yet_counts_as_false() -> None:
    results = iter([NoMatches("no widget"), True])

    def condition() -> object:
        if isinstance(result := next(results), NoMatches):
            raise result
        return result

    await until_async(condition)
    assert next(results, None) is None
