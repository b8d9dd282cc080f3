#!/usr/bin/env python3
"""Make the offline bundle: one archive that installs edgechat with all that it needs, without a network or a compiler.

    offline.py [--with-model PATH]... [--with-wheel PATH]... [--python 3.X]... [DIRECTORY]

In it: wheels for each of the named versions of Python (3.10 to 3.14 if none is named), each pinned by its hash, pip itself,
the starter model, models that were named, `install.sh` and `uninstall.sh`, a bill of materials and all licences. It is for the
platform that makes it, or for the architecture of Linux that EDGECHAT_TARGET names.
EDGECHAT_CPU_VARIANTS chooses the CPU modules (all by default). The same wheels make the same archive, to the byte.
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
from starter_wheel import ROOT, build

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SCRIPTS = ROOT / "packaging" / "bundle"


def main() -> int:
    """Make the archive and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    several: dict[str, Any] = {"action": "append", "default": []}
    add("directory", nargs="?", type=Path, default=ROOT / "dist" / "bundle", help="instead of dist/bundle")
    add("--with-model", type=Path, metavar="PATH", dest="models", help="a .gguf file to put in", **several)
    add("--with-wheel", type=Path, metavar="PATH", dest="wheels", help="edgechat-cuda12 or -cuda13", **several)
    add("--python", choices=PYTHONS, dest="pythons", help="for this version; once for each", **several)
    options = parser.parse_args()
    try:
        made = make(options.directory, options.models, options.pythons or list(PYTHONS), options.wheels)
        wheels.tell(made, "Unpack it there, and in it: sh install.sh")
    except build.BuildError as error:
        sys.exit(f"bundle: {error}")
    return 0


def make(directory: Path, models: list[Path], pythons: list[str], more: list[Path]) -> Path:
    """The archive's path; `more` wheels are installed too. Raises build.BuildError."""
    for model in models:
        if not model.is_file() or model.suffix != ".gguf":
            raise build.BuildError(f"{model} is {'no .gguf file' if model.exists() else 'not there'}")
    machine = build.target_machine()
    for wheel in more:
        if not re.fullmatch(rf"edgechat_cuda\d+-.*(any|_{machine})\.whl", wheel.name) or not wheel.is_file():
            raise build.BuildError(f"{wheel} is no package of edgechat for GPUs of machines with {machine}")
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
        named = root.rename(scratch / f"edgechat-{version}-{sys.platform}-{build.target_machine()}")
        return pack(named, directory / f"{named.name}.tar.gz")


def stage(root: Path, scratch: Path, pythons: list[str], more: Sequence[Path] = ()) -> str:
    """Wheels, their pins, the bill of materials and the licences, in `root`; returns the version of edgechat."""
    house = scratch / "house"
    wheels.fill_ours(house)
    (root / "wheels").mkdir(parents=True)
    for python in pythons:
        found = sorted([*wheels.wheels_for(python, house, scratch / python), *more], key=lambda wheel: wheel.name)
        (root / f"requirements-{python}.txt").write_text("".join(f"{pin(wheel)}\n" for wheel in found), "utf-8")
        for wheel in found:
            shutil.copy(wheel, root / "wheels")
    contents.write(root / "wheels", root / "sbom.cdx.json", root / "THIRD_PARTY_LICENSES.txt")
    return wheels.ours(house).name.split("-")[1]


def pin(wheel: Path) -> str:
    """A line of a requirements file that only this wheel fulfils."""
    name, version = wheel.name.split("-")[:2]
    return f"{contents.plain(name)}=={version} --hash=sha256:{build.digest(wheel)}"


def write_scripts(root: Path, pythons: list[str]) -> None:
    """The scripts, with what this bundle is for."""
    words = {
        "@SYSTEM@": platform.system(), "@MACHINE@": build.target_machine(), "@FIRST@": pythons[0], "@LAST@": pythons[-1],
        "@NAMES@": " ".join(f"python{python}" for python in reversed(pythons)), "@GLIBC@": f"2.{wheels.GLIBC_MINORS[-1]}",
    }  # fmt: skip
    for script in sorted(SCRIPTS.iterdir()):
        (root / script.name).write_text(wheels.filled(script, words), "utf-8")


def write_sums(root: Path) -> None:
    """The hash of each file, which the installation checks before it does anything."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    lines = [f"{build.digest(path)}  {path.relative_to(root)}\n" for path in files]
    (root / "SHA256SUMS").write_text("".join(lines), "utf-8")


def pack(root: Path, target: Path, *, is_program: bool = False) -> Path:
    """The archive of a folder: no owner, no times, in the order of the names. Scripts may be executed.

    Of a program, the archive has what is in the folder, and what may be executed is what may be here.
    """

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = build.EPOCH_S
        runs = entry.mode & 0o100 if is_program else entry.name.endswith(".sh")
        entry.mode = 0o755 if entry.isdir() or runs else 0o644
        return entry

    top, base = ([], root) if is_program else ([root], root.parent)
    unfinished = target.with_suffix(".part")
    # Wheels and models are compressed already.
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
