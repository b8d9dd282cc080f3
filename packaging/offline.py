#!/usr/bin/env python3
"""Build the offline bundle: an archive that installs edgechat without a network or a compiler.

    offline.py [--with-model PATH]... [--with-wheel PATH]... [--python 3.X]... [DIRECTORY]

It contains wheels for the given Python versions (default: 3.10 to 3.14), each pinned by its hash, pip, the starter
model, the given models, `install.sh` and `uninstall.sh`, a bill of materials and all licences. It is for this
platform, or for the architecture of Linux in EDGECHAT_TARGET. EDGECHAT_CPU_VARIANTS selects the CPU modules (default:
all). The same wheels give the same archive, byte for byte.
"""

from __future__ import annotations

import argparse
import gzip
import platform
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contents
import wheels
from starter_wheel import ROOT, sources, toolchain

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SCRIPTS = ROOT / "packaging" / "bundle"


def main() -> int:
    """Build the archive and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    repeatable: dict[str, Any] = {"action": "append", "default": []}
    add("directory", nargs="?", type=Path, default=ROOT / "dist" / "bundle", help="output directory")
    add("--with-model", type=Path, metavar="PATH", dest="models", help="include a .gguf file", **repeatable)
    add(
        "--with-wheel",
        type=Path,
        metavar="PATH",
        dest="wheels",
        help="include edgechat-cuda12, -cuda13 or -vulkan",
        **repeatable,
    )
    add("--python", choices=PYTHONS, dest="pythons", help="Python version; may be repeated", **repeatable)
    options = parser.parse_args()
    try:
        archive = make(options.directory, options.models, options.pythons or list(PYTHONS), options.wheels)
        wheels.report(archive, "Unpack it on the target machine and run: sh install.sh")
    except toolchain.BuildError as error:
        sys.exit(f"bundle: {error}")
    return 0


def make(directory: Path, models: list[Path], pythons: list[str], more: list[Path]) -> Path:
    """Build the archive, with `more` wheels to install, and return its path. Raises toolchain.BuildError."""
    for model in models:
        if not model.is_file() or model.suffix != ".gguf":
            raise toolchain.BuildError(f"{model} {'is not a .gguf file' if model.exists() else 'does not exist'}.")
    machine = toolchain.target_machine()
    for wheel in more:
        if not re.fullmatch(rf"edgechat_(cuda\d+|vulkan)-.*(any|_{machine})\.whl", wheel.name) or not wheel.is_file():
            raise toolchain.BuildError(f"{wheel} is not a CUDA or Vulkan package of edgechat for {machine}.")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-bundle-", dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        root = scratch / "bundle"
        version = stage(root, scratch, pythons, more)
        (root / "models").mkdir()
        for model in models:
            shutil.copy(model, root / "models")
        write_scripts(root, pythons)
        write_sums(root)
        folder = root.rename(scratch / f"edgechat-{version}-{sys.platform}-{toolchain.target_machine()}")
        return pack(folder, directory / f"{folder.name}.tar.gz")


def stage(root: Path, scratch: Path, pythons: list[str], more: Sequence[Path] = ()) -> str:
    """Write wheels, pins, bill of materials and licences to `root`, and return the version of edgechat."""
    house = scratch / "house"
    wheels.build_own_wheels(house)
    (root / "wheels").mkdir(parents=True)
    for python in pythons:
        collected = sorted([*wheels.wheels_for(python, house, scratch / python), *more], key=lambda wheel: wheel.name)
        (root / f"requirements-{python}.txt").write_text("".join(f"{pin(wheel)}\n" for wheel in collected), "utf-8")
        for wheel in collected:
            shutil.copy(wheel, root / "wheels")
    contents.write(root / "wheels", root / "sbom.cdx.json", root / "THIRD_PARTY_LICENSES.txt")
    return wheels.own_wheel(house).name.split("-")[1]


def pin(wheel: Path) -> str:
    """Return a line for a requirements file that only this wheel satisfies."""
    name, version = wheel.name.split("-")[:2]
    return f"{contents.plain(name)}=={version} --hash=sha256:{toolchain.digest(wheel)}"


def write_scripts(root: Path, pythons: list[str]) -> None:
    """Write the scripts, with the platform and Python versions of this bundle filled in."""
    values = {
        "@SYSTEM@": platform.system(), "@MACHINE@": toolchain.target_machine(),
        "@FIRST@": pythons[0], "@LAST@": pythons[-1],
        "@NAMES@": " ".join(f"python{python}" for python in reversed(pythons)),
        "@GLIBC@": f"2.{wheels.GLIBC_MINORS[-1]}",
    }  # fmt: skip
    for script in sorted(SCRIPTS.iterdir()):
        (root / script.name).write_text(wheels.fill_template(script, values), "utf-8")


def write_sums(root: Path) -> None:
    """Write the hash of each file; the installation verifies all of them first."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    lines = [f"{toolchain.digest(path)}  {path.relative_to(root)}\n" for path in files]
    (root / "SHA256SUMS").write_text("".join(lines), "utf-8")


def pack(root: Path, target: Path, *, is_program: bool = False) -> Path:
    """Pack a folder into a reproducible archive: no owner, fixed times, sorted by name, executable scripts.

    With `is_program`, the archive contains the content of the folder and keeps its execute permissions.
    """

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = sources.EPOCH_S
        runs = entry.mode & 0o100 if is_program else entry.name.endswith(".sh")
        entry.mode = 0o755 if entry.isdir() or runs else 0o644
        return entry

    top, base = ([], root) if is_program else ([root], root.parent)
    unfinished = target.with_suffix(".part")
    # Low compression: wheels and models are compressed already.
    with (
        unfinished.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for path in (*top, *sorted(root.rglob("*"))):
            archive.add(path, str(path.relative_to(base)), recursive=False, filter=anonymous)
    return unfinished.replace(target)


if __name__ == "__main__":
    sys.exit(main())
