"""Fixtures and helpers for package tests: builds, restricted environments and clean Debian systems."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT
from tests.waiting import delete_tree

sys.path.insert(0, str(ROOT / "native"))
import toolchain

sys.path.pop(0)
__all__ = ["toolchain"]
SUITE = "bookworm"
# No engine stays after a program: it would write files that a test deletes, and take memory from later tests.
NO_ENGINES = {"EDGECHAT_KEEP_ALIVE": "0"}
# Runs a script of packaging/ (the second argument) with wheels from the wheelhouse (the first argument): they are
# copied instead of built and downloaded again.
_WITH_WHEELHOUSE = """
import runpy, shutil, sys
from pathlib import Path

house = Path(sys.argv.pop(1))
sys.argv.pop(0)
sys.path.insert(0, str(Path(sys.argv[0]).parent))
import wheels

OWN = ("edgechat-", "edgechat_starter-", "llama_cpp_python-")


def copy(folder, is_wanted):
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in house.glob("*.whl"):
        if is_wanted(wheel):
            shutil.copy(wheel, folder)


def collect(python, own, folder):
    copy(folder, lambda wheel: True)
    return sorted(folder.glob("*.whl"))


wheels.build_own_wheels = lambda folder: copy(folder, lambda wheel: wheel.name.startswith(OWN))
wheels.wheels_for = collect
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse as built by `make wheels`, with fewer CPU modules; the processes of a test run share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheelhouse"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "complete").exists():
            recipe("wheels.py", folder / "dist")
            (folder / "complete").touch()
    return folder / "dist"


def recipe(name: str, *arguments: str | Path, **environment: str) -> str:
    """Run a script in packaging/ with the CPU modules of a development build, and return its output."""
    return _run_python(ROOT / "packaging" / name, *arguments, **environment)


def recipe_with(wheelhouse: Path, name: str, *arguments: str | Path) -> str:
    """Run a script in packaging/ that copies the wheels of a wheelhouse for this Python instead of building them."""
    return _run_python("-c", _WITH_WHEELHOUSE, wheelhouse, ROOT / "packaging" / name, *arguments)


def _run_python(*arguments: str | Path, **environment: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    merged = os.environ | {"EDGECHAT_CPU_VARIANTS": "dev"} | environment
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=merged).stdout


def bare_path(folder: Path, names: str) -> Path:
    """Create a directory for PATH with links to the named system tools only."""
    folder.mkdir()
    for name in names.split():
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def pretend(tools: Path, name: str, script: str) -> None:
    """Replace a tool by a shell script."""
    (tools / name).unlink(missing_ok=True)
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


def as_newcomer(
    home: Path, tools: Path, *command: str | Path, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with its own home directory; where possible without a network, after the command `before`."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [*cut_off(before), *command],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        stdin=subprocess.DEVNULL,
        env={"HOME": str(home), "PATH": str(tools), "LANG": "C.UTF-8"} | NO_ENGINES | environment,
    )


def can_cut_off() -> bool:
    """Return True if processes can run in their own network and mount namespaces."""
    unshare = shutil.which("unshare")
    return (
        unshare is not None
        and subprocess.run([unshare, "-n", "-m", "true"], capture_output=True, check=False).returncode == 0
    )


def cut_off(before: str = "") -> list[str]:
    """Return the command prefix that runs a command without a network after `before`; empty without namespaces."""
    if not can_cut_off():
        return []
    return [str(shutil.which("unshare")), "-n", "-m", "/bin/sh", "-c", f'{before}exec "$@"', "sh"]


def mounted(place: Path, options: str) -> str:
    """Return a shell command prefix that mounts an empty file system with these options."""
    place.mkdir(exist_ok=True)
    return f"{shutil.which('mount')} -t tmpfs -o {options} none '{place}' && "


def lacks(*programs: str) -> str:
    """Return the reason why a test with a whole system cannot run here, or ""."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        return f"requires {', '.join(missing)}"
    return "" if can_cut_off() else "requires root"


def debian(architecture: str) -> Path:
    """Return a minimal Debian system with Python, cached beside the native builds. Skips the test without a mirror."""
    root: Path = toolchain.cache_dir() / f"root-{SUITE}-{architecture}"
    if not (root / "made").exists():
        shutil.rmtree(root, ignore_errors=True)
        options = [f"--arch={architecture}", "--variant=minbase", "--include=python3,libstdc++6"]
        completed = subprocess.run(["debootstrap", *options, SUITE, root], capture_output=True, text=True, check=False)
        if completed.returncode != 0:
            pytest.skip(f"debootstrap found no mirror: {completed.stdout.strip().splitlines()[-1:]}")
        (root / "made").write_text("")
    return root


def copied(system: Path, folder: Path) -> Iterator[Path]:
    """Yield a scratch copy of a system and delete it afterwards."""
    subprocess.run(["cp", "-a", system, folder / "root"], check=True)
    yield folder / "root"
    delete_tree(folder / "root")


def inside(
    root: Path, *command: str, user: str = "0", timeout_s: float = 900, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a chroot without a network."""
    variables = [f"{name}={value}" for name, value in (NO_ENGINES | environment).items()]
    return subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", 'mount -t proc proc "$0/proc" && exec chroot "$@"', root,
         f"--userspec={user}:{user}", root, "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp",
         "LANG=C.UTF-8", *variables, *command],
        capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
