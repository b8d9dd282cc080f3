from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgechat.documents.gitignore import IgnoreFile, is_ignored
from edgechat.documents.sources import find_files

PARTS = st.sampled_from(["a", "b", "ab", "a.b", "-", "]", "x y", "!", "#"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
PATTERN_PARTS = st.lists(
    st.sampled_from([
        "a", "b", "ab", ".", "*", "**", "?", "[ab]", "[!a]", "[^b]", "[a-z]", "[]a]", "[a-]", "[[:alpha:]]", "[z-a]",
        "\\a", "\\*", "/", "/", "#", "!", " ", "-", "x", "[", "\\", "/**/", "**/", "[\\]]", "\\#", "\\!", "\\ ",
    ]), min_size=1, max_size=6,
).map("".join)  # fmt: skip
# With empty names between slashes, git compares parts of the pattern only.
LINES = st.builds(
    "{}{}{}".format, st.sampled_from(["", "", "!", "/"]), PATTERN_PARTS, st.sampled_from(["", "", "/"])
).filter(lambda line: "//" not in line)


@pytest.fixture(scope="module")
def repository() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "init", "-q", folder], check=True)
        yield Path(folder)


def ask_git(repository: Path, paths: list[str]) -> set[str]:
    done = subprocess.run(
        ["git", "-C", repository, "-c", "core.excludesFile=/dev/null", "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(paths).encode(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode in {0, 1}, done.stderr
    return set(done.stdout.decode().split("\0")) - {""}


def is_excluded(ignore_files: list[tuple[str, IgnoreFile]], path: str) -> bool:
    parts = path.split("/")
    for n in range(1, len(parts) + 1):
        prefix = "/".join(parts[:n])
        applicable = [item for item in ignore_files if prefix.startswith(item[0])]
        if is_ignored(applicable, prefix, is_folder=n < len(parts)):
            return True
    return False


@example(["*/**/"], [], ["a/a"])
@example(["a/**/b/**/a/b"], [], ["a/b/b/a/b", "a/a/a/b", "a/b/a/a/b"])
@example(["a/**/b/**/b/**"], [], ["a/b/b/b", "a/b/b", "a/a/b/b"])
@example(["a\\/**/a"], [], ["a/a"])
@given(st.lists(LINES, max_size=5), st.lists(LINES, max_size=3), st.lists(PATHS, min_size=1, max_size=8))
def test_patterns_ignore_what_git_ignores(
    repository: Path, outer: list[str], inner: list[str], paths: list[str]
) -> None:
    (repository / ".gitignore").write_text("\n".join(outer))
    (repository / "a").mkdir(exist_ok=True)
    (repository / "a" / ".gitignore").write_text("\n".join(inner))
    paths = [p for p in dict.fromkeys([*paths, *(f"{p}/b" for p in paths)]) if p != "a"]
    ignore_files = [("", IgnoreFile("\n".join(outer))), ("a/", IgnoreFile("\n".join(inner)))]
    assert {p for p in paths if is_excluded(ignore_files, p)} == ask_git(repository, paths)


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 400 + "b", "**/a" * 4 + "b", "?*" * 200 + "b", "[a-z]*" * 100 + "b", "*/" * 400 + "b", "a/**/" * 4 + "b",
        "a/**/" * 150 + "b", "**/" + "a/*/**/" * 100 + "b", "a/**/" + "*/" * 300 + "b/**",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["a" * 255, "/".join("a" * 1000)])
def test_hostile_pattern_is_matched_in_linear_time(pattern: str, path: str) -> None:
    assert not IgnoreFile(pattern).match(path, is_folder=False)  # took hours with some patterns


@pytest.mark.parametrize(
    ("pattern", "path", "is_matched"),
    [
        ("a/**/b/**/c/**/d/**/e/**/f", "a/x/b/b/c/d/y/y/e/f", True),
        ("a/**/b/**/c/**/d/**/e/**/f", "a/x/b/b/d/c/y/y/e/f", False),
        ("**/a/b/**/a/c", "x/a/a/b/a/b/a/c", True),
        ("**/a/b/**/a/c", "x/a/a/b/c/a/b/c", False),
        ("a/**/b/**", "a/b/x", True),
        ("a/**/b/**", "a/x/b", False),
    ],
)
def test_pattern_with_several_double_stars_matches_components_in_order(
    pattern: str, path: str, is_matched: bool
) -> None:
    assert bool(IgnoreFile(pattern).match(path, is_folder=False)) == is_matched


def names(folder: Path) -> list[str]:
    return [f.name for f in find_files(folder) if not f.problem]


def write(folder: Path, *paths: str, content: bytes = b"text") -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_walk_yields_files_in_order_with_size_and_time(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "a/z.md", "a/b/c.py", "c/x")
    assert names(tmp_path) == ["b.txt", "a/z.md", "a/b/c.py", "c/x"]
    found = next(find_files(tmp_path))
    status = (tmp_path / "b.txt").stat()
    assert (found.path, found.size_bytes, found.mtime_ns) == (tmp_path / "b.txt", 4, status.st_mtime_ns)


def test_walk_skips_hidden_ignored_and_binary_files(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".hidden", ".git/config", "build/x.txt", "sub/b.log", "sub/keep.log", "sub/deep/c.tmp")
    write(tmp_path, "image.png", "program", content=b"\x7fELF\0\0\0")
    write(tmp_path, "archive", content=b"PK\x03\x04" + bytes(30))
    (tmp_path / ".gitignore").write_text("build/\n*.log\n")
    (tmp_path / "sub" / ".gitignore").write_text("!keep.log\n*.tmp\n")
    assert names(tmp_path) == ["a.txt", "sub/keep.log"]


def test_walk_of_a_subfolder_uses_rules_of_the_repository(tmp_path: Path) -> None:
    write(tmp_path, ".git/HEAD", "sub/a.txt", "sub/b.log", "sub/gen/c.txt", "other/sub.txt")
    (tmp_path / ".gitignore").write_text("*.log\n/sub/gen/\n")
    assert names(tmp_path / "sub") == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links and pipes")
def test_walk_follows_no_links_and_opens_no_pipes(tmp_path: Path) -> None:
    write(tmp_path, "outside/secret.txt", "folder/a.txt", "folder/sub/b.txt")
    folder = tmp_path / "folder"
    (folder / "loop").symlink_to(folder)
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "secret.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.txt")
    assert [f.name for f in find_files(folder)] == ["a.txt", "sub/b.txt"]
    (tmp_path / "link").symlink_to(folder)
    assert names(tmp_path / "link") == ["a.txt", "sub/b.txt"]
    assert [f.problem for f in find_files(folder / "pipe.txt")] == [
        "It is not a regular file. Copy its content to an ordinary file to add it."
    ]


@pytest.mark.skipif(sys.platform in {"win32", "darwin"}, reason="needs names that are not Unicode")
def test_walk_reports_odd_names_as_problems(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "new\nline.txt", "nbsp\u202fname.txt", "日本.txt")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_bytes(b"text")
    found = list(find_files(tmp_path))
    assert [f.name for f in found if not f.problem] == ["a.txt", "nbsp\u202fname.txt", "日本.txt"]
    problems = {f.name: f.problem for f in found if f.problem}
    assert sorted(problems) == ["caf\\udce9.txt", "new\\nline.txt"]
    assert all("Rename it." in problem for problem in problems.values())


def test_missing_source_is_a_problem(tmp_path: Path) -> None:
    (found,) = find_files(tmp_path / "missing")
    assert found.problem == "It cannot be read: No such file or directory."
    (found,) = find_files(Path("nul\0byte"))
    assert found.problem


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads all folders")
def test_unreadable_folder_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "a").chmod(0)
    try:
        found = list(find_files(tmp_path))
    finally:
        (tmp_path / "a").chmod(0o700)
    assert [(f.name, bool(f.problem)) for f in found] == [("a/", True), ("b/y.txt", False)]


def test_single_file_is_yielded_whatever_it_is(tmp_path: Path) -> None:
    write(tmp_path, ".hidden.png", content=b"\x89PNG")
    assert names(tmp_path / ".hidden.png") == [".hidden.png"]


def test_walk_continues_after_folders_and_files_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a/x.txt", "b/y.txt", "c/z.txt", "unknown")
    scandir, stat = os.scandir, os.stat

    def deny_folder(path: str) -> object:
        if path.endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    def deny_file(path: str, **options: bool) -> os.stat_result:
        if str(path).endswith("y.txt"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", deny_folder)
    monkeypatch.setattr(os, "stat", deny_file)
    found = list(find_files(tmp_path))
    assert {f.name: f.problem for f in found} == {
        "unknown": "", "a/": "The folder cannot be read: Permission denied.",
        "b/y.txt": "It cannot be read: No such file or directory.", "c/z.txt": "",
    }  # fmt: skip
