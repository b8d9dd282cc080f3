"""The Debian package: installation in a clean root without a network, use, upgrade and removal."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.conftest import copied, debian, inside, lacks, recipe

LACKS = lacks("debootstrap", "dpkg-deb", "unshare", "chroot")
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(LACKS), reason=LACKS)]


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("deb"))


def made(folder: Path) -> Path:
    recipe("deb.py", "--python", "3.11", folder)
    return next(folder.glob("*.deb"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield from copied(debian("amd64"), tmp_path_factory.mktemp("root"))


def test_package_installs_runs_upgrades_and_uninstalls(deb: Path, root: Path) -> None:
    shutil.copy(deb, root / "edgechat.deb")
    done = inside(root, "dpkg", "-i", "/edgechat.deb")
    assert done.returncode == 0, done.stderr
    assert shutil.which("c++", path=str(root / "usr" / "bin")) is None
    answer = inside(root, "edgechat", "ask", "--max-tokens", "8", "--temperature", "0", "What is gravity?", user="1000")
    assert answer.stdout.startswith("Gravity"), answer.stderr
    assert inside(root, "edgechat", "serve", "--help", user="1000").returncode == 0
    again = inside(root, "dpkg", "-i", "/edgechat.deb", PIP_TARGET="/elsewhere", PIP_REQUIRE_VIRTUALENV="1")
    assert again.returncode == 0, again.stderr
    assert not (root / "elsewhere").exists()
    assert "What is gravity?" in inside(root, "edgechat", "history", "list", user="1000").stdout
    listed = subprocess.run(["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True).stdout
    for path in (
        "applications/edgechat.desktop",
        "icons/hicolor/scalable/apps/edgechat.svg",
        "man/man1/edgechat.1.gz",
        "bash-completion/completions/edgechat",
        "zsh/vendor-completions/_edgechat",
        "doc/edgechat/copyright",
    ):
        assert f"./usr/share/{path}\n" in listed
    assert inside(root, "dpkg", "-r", "edgechat").returncode == 0
    assert not (root / "opt" / "edgechat" / "venv").exists()
    assert not (root / "usr" / "bin" / "edgechat").exists()


def test_package_is_reproducible(deb: Path, tmp_path: Path) -> None:
    assert made(tmp_path).read_bytes() == deb.read_bytes()


def test_unsupported_python_is_reported(deb: Path, root: Path) -> None:
    shutil.copy(deb, root / "edgechat.deb")
    python = root / "usr" / "bin" / "python3"
    kept = python.readlink()
    python.unlink()
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)
    try:
        done = inside(root, "dpkg", "-i", "--force-depends", "/edgechat.deb")
    finally:
        python.unlink()
        python.symlink_to(kept)
    assert done.returncode != 0
    assert "supports Python 3.10 to 3.14; this system has 3.9" in done.stderr
    assert inside(root, "dpkg", "--configure", "-a").returncode == 0
    assert inside(root, "edgechat", "--version").returncode == 0


@pytest.mark.skipif(shutil.which("lintian") is None, reason="there is no lintian here")
def test_lintian_finds_no_relevant_error(deb: Path) -> None:
    # /opt is intended, third-party licences are in one file, and the publisher sets the maintainer's address.
    accepted = (
        "dir-or-file-in-opt,embedded-library,copyright-file-contains-full-apache-2-license,"
        "copyright-file-contains-full-gpl-license"
    )
    accepted += ",bogus-mail-host,bogus-mail-host-in-debian-changelog"
    done = subprocess.run(
        ["lintian", "--fail-on", "error", "--suppress-tags", accepted, "--tag-display-limit", "0", deb],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
