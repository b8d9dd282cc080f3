"""What the tests of artefacts need of a machine, and clean systems to install them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "native"))
import build

sys.path.pop(0)
__all__ = ["build"]
SUITE = "bookworm"


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that an installation takes, as `make wheels` makes it but for the number of CPU modules."""
    dist = tmp_path_factory.mktemp("wheels") / "dist"
    recipe("wheels.py", dist)
    return dist


def recipe(name: str, *arguments: str | Path, **environment: str) -> str:
    """What one of packaging/ says; with the modules of a development build where nothing else is named."""
    command = [sys.executable, str(ROOT / "packaging" / name), *map(str, arguments)]
    given = os.environ | {"EDGECHAT_CPU_VARIANTS": "dev"} | environment
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=given).stdout


def bare_path(folder: Path, names: str) -> Path:
    """A directory to be the PATH, with these tools of the system: no compiler, nothing else."""
    folder.mkdir()
    for name in names.split():
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def pretend(tools: Path, name: str, script: str) -> None:
    """Put a script in the place of a tool."""
    (tools / name).unlink(missing_ok=True)
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


def as_newcomer(
    home: Path, tools: Path, *command: str | Path, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with a home of its own; without a network, and with a command before it, where that can be."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [*cut_off(before), *command], capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
        env={"HOME": str(home), "PATH": str(tools), "LANG": "C.UTF-8"} | environment,
    )  # fmt: skip


def can_cut_off() -> bool:
    """True if processes can be started without a network and with mounts of their own."""
    unshare = shutil.which("unshare")
    return (
        unshare is not None
        and subprocess.run([unshare, "-n", "-m", "true"], capture_output=True, check=False).returncode == 0
    )


def cut_off(before: str = "") -> list[str]:
    """What goes in front of a command to run it without a network, after another that may mount; nothing where that cannot be."""
    if not can_cut_off():
        return []
    return [str(shutil.which("unshare")), "-n", "-m", "/bin/sh", "-c", f'{before}exec "$@"', "sh"]


def mounted(place: Path, options: str) -> str:
    """The beginning of a command that has an empty file system with these options there."""
    place.mkdir(exist_ok=True)
    return f"{shutil.which('mount')} -t tmpfs -o {options} none '{place}' && "


def lacks(*programs: str) -> str:
    """What a test of a whole system lacks here, in words; nothing if it can run."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        return f"it takes {', '.join(missing)}"
    return "" if can_cut_off() else "it takes root"


def debian(architecture: str) -> Path:
    """A Debian with nothing but Python, kept beside the native builds. Skips the test where there is no mirror."""
    root: Path = build.cache_dir() / f"root-{SUITE}-{architecture}"
    if not (root / "made").exists():
        shutil.rmtree(root, ignore_errors=True)
        made = subprocess.run(
            ["debootstrap", f"--arch={architecture}", "--variant=minbase", "--include=python3,libstdc++6", SUITE, root], capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            pytest.skip(f"debootstrap found no mirror: {made.stdout.strip().splitlines()[-1:]}")
        (root / "made").write_text("")
    return root


def copied(system: Path, folder: Path) -> Iterator[Path]:
    """A copy of a system to do anything with, gone after the test."""
    subprocess.run(["cp", "-a", system, folder / "root"], check=True)
    yield folder / "root"
    shutil.rmtree(folder / "root")


def inside(
    root: Path, *command: str, user: str = "0", timeout_s: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a system of its own, without a network."""
    given = [f"{name}={value}" for name, value in environment.items()]
    return subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", 'mount -t proc proc "$0/proc" && exec chroot "$@"', root, f"--userspec={user}:{user}", root,
         "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LANG=C.UTF-8", *given, *command],
        capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
