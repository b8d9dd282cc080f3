"""The recent choices of the command palette."""

from __future__ import annotations

import pytest

from edgechat import paths
from edgechat.tui.recent_choices import MAX_RECENT, RecentChoices


def test_choices_are_saved_newest_first() -> None:
    choices = RecentChoices()
    for choice in ("a", "b", "a"):
        choices.record(choice, save_file=True)
    assert list(RecentChoices().read()) == ["a", "b"]
    for n in range(50):
        choices.record(str(n), save_file=True)
    assert len(RecentChoices().read()) == MAX_RECENT


def test_ephemeral_choices_are_not_written() -> None:
    choices = RecentChoices()
    choices.record("conversation:secret", save_file=False)
    assert list(choices.read()) == ["conversation:secret"]
    assert not paths.recent_choices_file().exists()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b'"text"', b"null", b'["' + b"x" * 70_000 + b'"]']
)
def test_damaged_file_is_an_empty_list(data: bytes) -> None:
    paths.recent_choices_file().parent.mkdir(parents=True, exist_ok=True)
    paths.recent_choices_file().write_bytes(data)
    choices = RecentChoices()
    assert list(choices.read()) == []
    choices.record("a", save_file=True)
    assert list(RecentChoices().read()) == ["a"]


def test_folder_in_place_of_the_file_is_ignored() -> None:
    paths.recent_choices_file().mkdir(parents=True)
    choices = RecentChoices()
    choices.record("a", save_file=True)
    assert list(choices.read()) == ["a"]
