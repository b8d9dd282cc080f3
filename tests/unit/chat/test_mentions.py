"""File mentions: `@FILE` in a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.chat.mentions import (
    describe_missing_files,
    find_attached_files,
    find_mentions,
    find_missing_files,
    parse_path,
    remove_mentions,
)
from edgechat.errors import UsageError


def test_mentions_are_words_or_quoted_after_an_at_sign() -> None:
    assert find_mentions('see @a.txt and @"b c.txt", not x@y.org; @a.txt') == ["a.txt", "b c.txt"]
    assert find_mentions("@") == []


def test_existing_files_are_attached_and_missing_file_names_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("x")
    text = f"Compare @{file} with @{tmp_path}/other.txt for @alice"
    assert find_attached_files(text) == [file]
    assert find_missing_files(text) == [f"{tmp_path}/other.txt"]
    assert describe_missing_files(text).startswith(f"File not found: {tmp_path}/other.txt. ")
    assert describe_missing_files(" ".join(f"@{n}.txt" for n in range(9))).startswith(
        "File not found: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more. @0.txt is sent as plain text."
    )
    assert describe_missing_files("me@example.org @alice") == ""


def test_folders_are_attached_with_a_slash_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "my notes").mkdir()
    text = f'Compare @{tmp_path}/ and @"{tmp_path}/my notes/" with @{tmp_path}'
    assert find_attached_files(text) == [tmp_path, tmp_path / "my notes"]
    assert find_missing_files(text) == [str(tmp_path)]
    assert find_missing_files(f"@{tmp_path}/nothing/") == [f"{tmp_path}/nothing/"]


def test_mentioned_files_are_not_part_of_a_search(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("x")
    text = f'@{tmp_path}/ and @"{tmp_path}/a b.txt": what does @alice say?'
    assert remove_mentions(text) == " and : what does @alice say?"


def test_only_names_that_look_like_paths_are_missing_files() -> None:
    assert find_missing_files("@everyone @you. a@b.de @x@b.de @you, @") == []
    assert (
        find_missing_files('@app.route("/") @pytest.mark.parametrize(["a"]) @dataclasses.dataclass(slots=True)') == []
    )
    names = ["nosuch.py", "/nosuch/x", "a\\b", "~nosuchuser", "~/nosuch"]
    assert find_missing_files(" ".join(f"@{name}" for name in names)) == names


def test_a_path_of_an_unknown_user_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="is not a valid file name"):
        parse_path("~nosuchuser/x")
