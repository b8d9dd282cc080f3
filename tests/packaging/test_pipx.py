"""Installation with pipx from a wheelhouse: upgrade (also during a running chat), two versions, removal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from edgechat import __version__
from tests.terminal import terminal

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform == "win32", reason="it takes a pseudo-terminal")]
NEWER = f"{__version__}.1"


@pytest.fixture(scope="module")
def newer(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse with the next version of edgechat."""
    folder = tmp_path_factory.mktemp("newer")
    dist = folder / "dist"
    shutil.copytree(wheelhouse, dist)
    (wheel,) = dist.glob("edgechat-[0-9]*.whl")
    root = folder / "edgechat"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root)
    wheel.unlink()
    info = root / f"edgechat-{NEWER}.dist-info"
    next(root.glob("*.dist-info")).rename(info)
    for path, old in (
        (info / "METADATA", f"Version: {__version__}\n"),
        (root / "edgechat" / "__init__.py", f'"{__version__}"'),
    ):
        text = path.read_text("utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, old.replace(__version__, NEWER)), "utf-8")
    subprocess.run([sys.executable, "-m", "wheel", "pack", "--dest-dir", dist, root], check=True, capture_output=True)
    return dist


@pytest.fixture
def user(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a user with pipx, no compiler, and a home directory with a space in its name."""
    home, tools = tmp_path / "Jörg Müller", tmp_path / "tools"
    home.mkdir()
    tools.mkdir()
    (tools / "pipx").symlink_to(Path(sys.executable).parent / "pipx")
    return {
        "HOME": str(home),
        "PIPX_HOME": str(home / "pipx"),
        "PIPX_BIN_DIR": str(home / "bin"),
        "LANG": "C.UTF-8",
        "PATH": f"{home / 'bin'}{os.pathsep}{tools}",
        "EDGECHAT_HOME": str(home / "kept"),
        "PIPX_DEFAULT_PYTHON": sys.executable,
    }


def run(user: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    program = str(shutil.which(command[0], path=user["PATH"]))
    return subprocess.run(
        [program, *command[1:]],
        env=dict(user),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=user["HOME"],
    )


def pipx(user: Mapping[str, str], dist: Path, *command: str) -> None:
    """Install with the command from the README, without building or downloading anything."""
    done = run(user, "pipx", *command, f"--pip-args=--no-index --find-links {dist}")
    assert done.returncode == 0, done.stderr


def test_pipx_installs_runs_upgrades_and_uninstalls(wheelhouse: Path, newer: Path, user: Mapping[str, str]) -> None:
    pipx(user, wheelhouse, "install", "edgechat[starter,serve,documents]")
    question = ("ask", "-m", "starter", "--max-tokens", "8", "--temperature", "0", "What is gravity?")
    answer = run(user, "edgechat", *question)
    assert answer.stdout.startswith("Gravity"), answer.stderr
    pipx(user, newer, "upgrade", "edgechat")
    assert run(user, "edgechat", "--version").stdout.strip().endswith(NEWER)
    assert run(user, "edgechat", *question).stdout == answer.stdout
    assert run(user, "edgechat", "history", "list").stdout.count("What is gravity?") == 2
    assert "pipx uninstall edgechat" in run(user, "edgechat", "uninstall").stdout
    assert run(user, "edgechat", "uninstall", "--purge", "--yes").returncode == 0
    assert not list(Path(user["EDGECHAT_HOME"]).rglob("history.db"))
    assert run(user, "pipx", "uninstall", "edgechat").returncode == 0
    assert not (Path(user["HOME"]) / "bin" / "edgechat").exists()


def test_two_versions_share_conversations(wheelhouse: Path, newer: Path, user: Mapping[str, str]) -> None:
    pipx(user, wheelhouse, "install", "edgechat[starter,serve,documents]")
    pipx(user, newer, "install", "--suffix=-next", "edgechat[starter,serve,documents]")
    for command, words in (("edgechat", "What is gravity?"), ("edgechat-next", "What is light?")):
        assert run(user, command, "ask", "-m", "starter", "--max-tokens", "4", words).returncode == 0
    for command in ("edgechat", "edgechat-next"):
        listed = run(user, command, "history", "list").stdout
        assert "What is gravity?" in listed
        assert "What is light?" in listed


def test_upgrade_and_removal_during_a_chat_lose_nothing(wheelhouse: Path, newer: Path, user: Mapping[str, str]) -> None:
    pipx(user, wheelhouse, "install", "edgechat[starter,serve,documents]")
    program = str(shutil.which("edgechat", path=user["PATH"]))
    with terminal(program, "-m", "starter", "--max-tokens", "12", "--temperature", "0", env=dict(user)) as t:
        t.until_stable("Ready")
        t.type("What is gravity?\r")
        t.until(lambda: "tokens/s" in t.text() and "Ready" in t.text())
        pipx(user, newer, "upgrade", "edgechat")
        # The loaded engine keeps working.
        t.type("And what is light?\r")
        t.until(lambda: t.text().count("reached its length limit") == 2 and "Ready" in t.text())
        # A new engine would have another version.
        for child in psutil.Process(t.child.pid).children():
            if "_engine" in child.cmdline():
                child.kill()
        time.sleep(0.5)
        t.type("And what is sound?\r")
        t.until("was upgraded while it was running")
        assert run(user, "pipx", "uninstall", "edgechat").returncode == 0
        t.type("And what is heat?\r")
        t.until("does not exist")  # the model was part of the removed environment
        t.type("\x11")
        assert t.child.wait(timeout=20) == 0
    pipx(user, newer, "install", "edgechat[starter,serve,documents]")
    (kept,) = json.loads(run(user, "edgechat", "history", "list", "--json").stdout)
    shown = run(user, "edgechat", "history", "show", kept["conversation"]["id"]).stdout
    for words in ("What is gravity?", "And what is light?", "And what is sound?"):
        assert words in shown
