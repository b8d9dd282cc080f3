"""Debian packages unpacked into the build cache, for tools that this machine lacks. Needs no root.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from build import locked
from toolchain import BuildError, cache_dir, identity, run, say


def unpacked(*packages: str) -> Path:
    """Return a directory with the files of `packages` and of those dependencies that are not installed.

    Downloads them once for each release of the packages; a cached copy is used even if the index of apt is empty.
    Raises BuildError if apt does not know a package.
    """
    folder = cache_dir() / "debian" / identity({"packages": sorted(packages), "system": _system()})
    with locked(folder.parent / f"{folder.name}.lock"):
        if not folder.exists():
            names = _missing_dependencies(packages)
            say(f"unpacking the Debian packages {', '.join(packages)} beside the system")
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch_name:
                scratch = Path(scratch_name)
                scratch.chmod(0o755)  # apt downloads as its own user, and says so if it cannot
                _download(names, scratch)
                for archive in sorted(scratch.glob("*.deb")):
                    run(["dpkg-deb", "-x", str(archive), str(scratch / "root")], what=f"unpacking {archive.name}")
                (scratch / "root").rename(folder)
    return folder


def library_path(root: Path) -> str:
    """Return the directories of shared libraries below `root`, as LD_LIBRARY_PATH lists them."""
    folders = [root / "usr" / "lib", *(root / "usr" / "lib").glob("*-linux-gnu*")]
    return os.pathsep.join(map(str, folders))


def _system() -> str:
    """Return the name and version of this system, so that a cache serves several ones."""
    try:
        lines = Path("/etc/os-release").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return " ".join(sorted(line for line in lines if line.startswith(("ID=", "VERSION_ID="))))


def _missing_dependencies(packages: tuple[str, ...]) -> list[str]:
    """Return `packages` and all packages that they need and that are not installed."""
    if shutil.which("apt-cache") is None or shutil.which("dpkg-deb") is None:
        raise BuildError(f"This system has no apt. Install what {', '.join(packages)} are on Debian.")
    options = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    command = ["apt-cache", "depends", "--recurse", *(f"--no-{option}" for option in options), *packages]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    names = {line.strip() for line in output.splitlines() if line and not line.startswith((" ", "|", "<"))}
    if unknown := set(packages) - names:
        raise BuildError(f"apt does not know {', '.join(sorted(unknown))}. Run `apt-get update`, then this again.")
    return sorted(name for name in names if name in packages or not _is_installed(name))


def _is_installed(name: str) -> bool:
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", name]
    return "installed" in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")


def _download(names: list[str], folder: Path) -> None:
    command = ["apt-get", "--quiet", "download", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BuildError(f"Debian packages cannot be downloaded: {reason}. Run `apt-get update`, then this again.")
