"""The single file: unpacking once without Python, use, and error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.packaging.conftest import as_newcomer, bare_path, can_cut_off, mounted, pretend, recipe_with
from tests.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="it is made for Linux")]
TOOLS = "sh uname ldd getconf grep df awk cut find mkdir mktemp rm mv tail touch gzip tar sha256sum"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, wheelhouse: Path) -> Path:
    return made(tmp_path_factory.mktemp("single file"), wheelhouse)


def made(folder: Path, wheelhouse: Path) -> Path:
    output = recipe_with(wheelhouse, "single.py", folder)
    (single,) = folder.glob("edgechat-*")
    assert str(single) in output
    return single


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory into which the file is unpacked once for several tests."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with basic system tools but no Python and no compiler."""
    return bare_path(tmp_path / "tools", TOOLS)


def run(
    single: Path, tools: Path, *arguments: str, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Start the file as a user with an umlaut in the home directory."""
    return as_newcomer(tools.parent / "Jörg Müller", tools, single, *arguments, before=before, **environment)


def test_file_unpacks_once_and_generates_a_reply(single: Path, tools: Path) -> None:
    first = run(single, tools, "--version")
    assert "unpacking into" in first.stderr
    question = ("ask", "-m", "starter", "--max-tokens", "8", "--temperature", "0", "What is gravity?")
    answer = run(single, tools, *question)
    assert answer.stdout.startswith("Gravity"), answer.stderr
    assert "unpacking" not in answer.stderr
    link = tools / "edgechat"
    link.symlink_to(single)
    assert "What is gravity?" in run(link, tools, "history", "list").stdout
    assert run(single, tools, "serve", "--help").returncode == 0
    assert "delete the file that you started and the folder" in run(single, tools, "uninstall").stdout


def test_child_programs_use_system_libraries(single: Path, tools: Path, place: Path, tmp_path: Path) -> None:
    editor, seen = tmp_path / "editor", tmp_path / "seen"
    editor.write_text(f'#!/bin/sh\necho "[$LD_LIBRARY_PATH]" >> {seen}\n')
    editor.chmod(0o755)
    for environment in ({}, {"LD_LIBRARY_PATH": "/nowhere"}):
        done = run(
            single, tools, "config", "edit", EDITOR=str(editor), EDGECHAT_SINGLE_DIR=str(place), **environment
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert seen.read_text().split() == ["[]", "[/nowhere]"]


def test_contents_are_listed_without_the_working_tree(single: Path, tools: Path, place: Path) -> None:
    listed = run(single, tools, "models", "list", "--catalogue", "--json", EDGECHAT_SINGLE_DIR=str(place))
    assert len(json.loads(listed.stdout)) >= 25, listed.stderr
    (sbom,) = place.glob("edgechat-single/*/sbom.cdx.json")
    names = {component["name"] for component in json.loads(sbom.read_text())["components"]}
    assert {"CPython", "PyInstaller", "edgechat", "llama.cpp", "SmolLM2-135M-Instruct", "textual"} <= names
    assert not {"numpy", "pip"} & names
    files = {path.name for path in sbom.parent.rglob("*")}
    assert "_native" in files
    assert not {"_native_link", "numpy", "libreadline.so.8"} & files
    listed_files = {p["value"] for c in json.loads(sbom.read_text())["components"] for p in c["properties"]}
    system = {name for name in files if name.startswith(("libssl", "libsqlite3", "libz.so", "libstdc++"))}
    assert system
    assert {name.partition(".so")[0] for name in system} <= {name.partition(".so")[0] for name in listed_files}


@pytest.mark.exhaustive
def test_file_is_reproducible(single: Path, wheelhouse: Path, tmp_path: Path) -> None:
    assert made(tmp_path, wheelhouse).read_bytes() == single.read_bytes()


def test_killed_unpacking_is_repeated(single: Path, tools: Path) -> None:
    home = tools.parent / "home"
    home.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [single, "--version"],
        env={"HOME": str(home), "PATH": str(tools)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: sum(len(files) for _, _, files in os.walk(home)) > 20)
    os.killpg(child.pid, 9)
    child.wait()
    assert run(single, tools, "--version", HOME=str(home)).returncode == 0


def test_concurrent_starts_and_old_versions(single: Path, tools: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    home = place / "edgechat-single"
    long_ago, recent, foreign = home / ("0" * 64), home / ("1" * 64), place / "of the user"
    for folder in (long_ago, recent, foreign):
        folder.mkdir(parents=True)
        if folder != recent:
            os.utime(folder, (0, 0))
    environment = {"HOME": str(tmp_path), "PATH": str(tools), "EDGECHAT_SINGLE_DIR": str(place)}
    children = [subprocess.Popen([single, "--version"], env=environment) for _ in range(2)]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    assert foreign.exists()
    assert recent.exists()
    assert not long_ago.exists()
    (unpacked,) = (folder for folder in home.iterdir() if folder != recent)
    assert time.time() - unpacked.stat().st_mtime < 3600
    assert not list(home.rglob("new-*"))


def test_changed_or_missing_byte_is_found(single: Path, tools: Path, tmp_path: Path) -> None:
    data = bytearray(single.read_bytes())
    data[len(data) // 2] ^= 1
    for name, damaged in (("flipped", bytes(data)), ("short", bytes(data[:-5]))):
        broken = tmp_path / name
        broken.write_bytes(damaged)
        broken.chmod(0o755)
        done = run(broken, tools, "--version")
        assert done.returncode == 1
        assert "This file is damaged" in done.stderr


@pytest.mark.parametrize(
    ("name", "script", "message"),
    [
        ("ldd", "echo musl libc", "musl"),
        ("uname", "case $1 in -s) echo Linux;; *) echo riscv64;; esac", "on riscv64"),
        ("df", "echo; echo x 0 0 1000 0", "MB needed"),
        ("getconf", "echo 32", "64-bit"),
    ],
)
def test_unsuitable_machine_is_reported(single: Path, tools: Path, name: str, script: str, message: str) -> None:
    pretend(tools, name, script)
    done = run(single, tools, "--version")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_noexec_and_unwritable_directories(single: Path, tools: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("")  # a file, because root may write to any directory
    done = run(single, tools, "--version", EDGECHAT_SINGLE_DIR=str(place))
    assert done.returncode == 1
    assert "EDGECHAT_SINGLE_DIR" in done.stderr
    if can_cut_off():
        place.unlink()
        done = run(single, tools, "--version", before=mounted(place, "noexec"), EDGECHAT_SINGLE_DIR=str(place))
        assert done.returncode == 1
        assert "noexec" in done.stderr
