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
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contents
import wheels
from starter_wheel import ROOT, build

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
WANTED = "edgechat[starter,serve]"
SCRIPTS = ROOT / "packaging" / "bundle"


def main() -> int:
    """Make the archive and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "bundle")
    parser.add_argument("--with-model", action="append", type=Path, default=[], metavar="PATH", dest="models")
    parser.add_argument(
        "--with-wheel",
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        dest="wheels",
        help="edgechat-cuda12 or -cuda13",
    )
    parser.add_argument("--python", action="append", choices=PYTHONS, default=[], dest="pythons")
    options = parser.parse_args()
    try:
        print(make(options.directory, options.models, options.pythons or list(PYTHONS), options.wheels))
    except build.BuildError as error:
        sys.exit(f"bundle: {error}")
    return 0


def make(directory: Path, models: list[Path], pythons: list[str], more: list[Path]) -> Path:
    """The archive's path; `more` wheels are installed too. Raises build.BuildError."""
    for path, suffix in (*((model, ".gguf") for model in models), *((wheel, ".whl") for wheel in more)):
        if not path.is_file() or path.suffix != suffix:
            raise build.BuildError(f"{path} is no {suffix} file")
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
        found = sorted([*wheels_for(python, house, scratch / python), *more], key=lambda wheel: wheel.name)
        (root / f"requirements-{python}.txt").write_text("".join(f"{pin(wheel)}\n" for wheel in found), "utf-8")
        for wheel in found:
            shutil.copy(wheel, root / "wheels")
    contents.write(root / "wheels", root / "sbom.cdx.json", root / "THIRD_PARTY_LICENSES.txt")
    return next(house.glob("edgechat-0*.whl")).name.split("-")[1]


def wheels_for(python: str, house: Path, folder: Path) -> list[Path]:
    """Every wheel that an installation on this Python takes, in the order of their names."""
    build.say(f"collecting wheels for Python {python}")
    ours = next(house.glob("edgechat-0*.whl"))
    wheels.download(python, house, folder, f"{ours}[starter,serve]", "pip")
    # pip looks at conditions such as `python_version < "3.11"` with the Python that runs it, not the one it is told.
    while missing := sorted(missing_from(folder, python)):
        wheels.download(python, house, folder, *missing)
    return sorted(folder.glob("*.whl"))


def missing_from(folder: Path, python: str) -> Iterator[str]:
    """Requirements that hold on this Python and that no wheel in `folder` is for."""
    here = {name_of(wheel) for wheel in folder.glob("*.whl")}
    for wheel in folder.glob("*.whl"):
        extras = ("starter", "serve") if name_of(wheel) == "edgechat" else ("",)
        for line in contents.metadata(wheel).get_all("Requires-Dist") or ():
            requirement = Requirement(line)
            environment = {
                "python_version": python,
                "python_full_version": f"{python}.0",
                "platform_machine": build.target_machine(),
            }
            marker = requirement.marker
            holds = marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in extras)
            if holds and contents.plain(requirement.name) not in here:
                yield f"{requirement.name}{requirement.specifier}"


def name_of(wheel: Path) -> str:
    """A wheel's project, as indexes compare names."""
    return contents.plain(wheel.name.split("-")[0])


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
        text = script.read_text("utf-8")
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        (root / script.name).write_text(text, "utf-8")


def write_sums(root: Path) -> None:
    """The hash of each file, which the installation checks before it does anything."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    lines = [f"{build.digest(path)}  {path.relative_to(root)}\n" for path in files]
    (root / "SHA256SUMS").write_text("".join(lines), "utf-8")


def pack(root: Path, target: Path, inside: str | None = None) -> Path:
    """The archive of a folder under its name, or another: no owner, no times, in the order of the names."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = build.EPOCH_S
        entry.mode = 0o755 if entry.isdir() or entry.name.endswith(".sh") or entry.mode & 0o100 else 0o644
        return entry

    within = Path(root.name if inside is None else inside)
    unfinished = target.with_suffix(".part")
    # Wheels and models are compressed already.
    with (
        unfinished.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for path in (root, *sorted(root.rglob("*"))):
            archive.add(path, str(within / path.relative_to(root)), recursive=False, filter=anonymous)
    return unfinished.replace(target)


if __name__ == "__main__":
    sys.exit(main())
