"""Installation with pipx from a wheelhouse: upgrade (also during a running chat), two versions, removal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from edgechat import __version__
from tests.conftest import edgechat_command
from tests.packaging.conftest import NO_ENGINES
from tests.terminal import terminal

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform == "win32", reason="it takes a pseudo-terminal")]
NEWER = f"{__version__}.1"
PACKAGE = "edgechat[starter,serve,documents]"


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
        **NO_ENGINES,
    }


def run(user: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    program = str(shutil.which(command[0], path=user["PATH"]))
    return subprocess.run(
        [program, *command[1:]],
        env=dict(user),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=user["HOME"],
    )


def run_here(user: Mapping[str, str], *arguments: str) -> str:
    """Return the output of this checkout's edgechat with the data of the user."""
    command = edgechat_command(*arguments)
    return subprocess.run(command, env=dict(user), capture_output=True, text=True, check=True).stdout


def pipx(user: Mapping[str, str], dist: Path, *command: str) -> None:
    """Install with the command from the README, without building or downloading anything, and without bytecode."""
    done = run(user, "pipx", *command, f"--pip-args=--no-index --no-compile --find-links {dist}")
    assert done.returncode == 0, done.stderr


def test_pipx_installs_runs_upgrades_and_uninstalls(wheelhouse: Path, newer: Path, user: Mapping[str, str]) -> None:
    pipx(user, wheelhouse, "install", PACKAGE)
    question = ("ask", "-m", "starter", "--max-tokens", "8", "--temperature", "0", "What is gravity?")
    answer = run(user, "edgechat", *question)
    assert answer.stdout.startswith("Gravity"), answer.stderr
    # The program uses the model, the catalogue and the libraries of its own environment.
    environment = str(Path(user["PIPX_HOME"]) / "venvs" / "edgechat")
    listed = json.loads(run(user, "edgechat", "models", "list", "--catalogue", "--json").stdout)
    assert len(listed) >= 25
    assert environment in json.loads(run(user, "edgechat", "doctor", "--json").stdout)["bundle"]["directory"]
    # Two versions share conversations.
    pipx(user, newer, "install", "--suffix=-next", PACKAGE)
    said = run(user, "edgechat-next", *question[:-1], "--json", "What is light?")
    assert f"{environment}-next" in json.loads(said.stdout)["model"], said.stderr
    for command in ("edgechat", "edgechat-next"):
        history = run(user, command, "history", "list").stdout
        assert "What is gravity?" in history
        assert "What is light?" in history
    pipx(user, newer, "upgrade", "edgechat")
    assert run(user, "edgechat", "--version").stdout.strip().endswith(NEWER)
    assert run(user, "edgechat", *question).stdout.startswith("Gravity")
    assert run(user, "edgechat", "history", "list").stdout.count("What is gravity?") == 2
    assert "pipx uninstall edgechat" in run(user, "edgechat", "uninstall").stdout
    assert run(user, "edgechat", "uninstall", "--purge", "--yes").returncode == 0
    assert not list(Path(user["EDGECHAT_HOME"]).rglob("history.db"))
    assert run(user, "pipx", "uninstall", "edgechat").returncode == 0
    assert not (Path(user["HOME"]) / "bin" / "edgechat").exists()


def test_upgrade_and_removal_during_a_chat_lose_nothing(wheelhouse: Path, newer: Path, user: Mapping[str, str]) -> None:
    pipx(user, wheelhouse, "install", PACKAGE)
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
        (engine,) = (c for c in psutil.Process(t.child.pid).children() if "_engine" in c.cmdline())
        engine.kill()
        t.type("And what is sound?\r")
        # The chat may send the message to the killed engine before it notices its end; the next message starts another.
        t.until(lambda: "was upgraded while it was running" in t.text() or "engine process died" in t.text())
        if "engine process died" in t.text():
            t.until_stable("Ready")
            t.type("And what is sound?\r")
        t.until("was upgraded while it was running")
        assert run(user, "pipx", "uninstall", "edgechat").returncode == 0
        t.type("And what is heat?\r")
        t.until("does not exist")  # the model was part of the removed environment
        t.type("\x11")
        assert t.wait(120) == 0
    (kept,) = json.loads(run_here(user, "history", "list", "--json"))
    shown = run_here(user, "history", "show", kept["conversation"]["id"])
    for words in ("What is gravity?", "And what is light?", "And what is sound?"):
        assert words in shown
