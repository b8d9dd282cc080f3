#!/usr/bin/env python3
"""Build the package for Debian, Ubuntu and Raspberry Pi OS, which installs without a network.

    deb.py [--python 3.X]... [DIRECTORY]

The package is for this machine's architecture, or for the one in EDGECHAT_TARGET. It contains wheels for the given
Python versions in /opt/edgechat. Its postinst script installs the wheels for the system's Python into a virtual
environment, and does so again after an upgrade of that Python.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import offline
import wheels
from starter_wheel import ROOT, toolchain

DEBIAN = ROOT / "packaging" / "debian"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
DESKTOP = ROOT / "packaging" / "desktop"
MAINTAINER = os.environ.get("EDGECHAT_MAINTAINER", "The edgechat authors <edgechat@localhost>")
CHANGES = """edgechat ({version}) unstable; urgency=medium

  * See NEWS.gz for the changes.

 -- {maintainer}  Tue, 01 Jan 1980 00:00:00 +0000
"""
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/edgechat", "zsh": "usr/share/zsh/vendor-completions/_edgechat",
    "fish": "usr/share/fish/vendor_completions.d/edgechat.fish",
}  # fmt: skip


def main() -> int:
    """Build the package and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "deb")
    parser.add_argument("--python", action="append", choices=offline.PYTHONS, default=[], dest="pythons")
    options = parser.parse_args()
    try:
        package = make(options.directory, options.pythons or list(offline.PYTHONS))
        wheels.report(package, f"sudo apt install {package}")
    except toolchain.BuildError as error:
        sys.exit(f"deb: {error}")
    return 0


def make(directory: Path, pythons: list[str]) -> Path:
    """Build the package and return its path. Raises toolchain.BuildError."""
    if toolchain.target_machine() not in ARCHITECTURES:
        raise toolchain.BuildError(
            f"No package for {toolchain.target_machine()}; supported are {', '.join(ARCHITECTURES)}."
        )
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-deb-", dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        root, home = scratch / "root", scratch / "root" / "opt" / "edgechat"
        version = offline.stage(home, scratch, pythons)
        put(root, "usr/bin/edgechat", (DEBIAN / "edgechat").read_bytes(), mode=0o755)
        put(root, "usr/share/applications/edgechat.desktop", (DESKTOP / "edgechat.desktop").read_bytes())
        put(root, "usr/share/icons/hicolor/scalable/apps/edgechat.svg", (DESKTOP / "edgechat.svg").read_bytes())
        put(root, "usr/share/man/man1/edgechat.1.gz", compressed(output(ROOT / "packaging" / "manpage.py")))
        for shell, path in COMPLETIONS.items():
            put(root, path, output("-m", "edgechat", "completion", shell))
        documents(root, home, version)
        control(root, version)
        target = directory / f"edgechat_{version}_{ARCHITECTURES[toolchain.target_machine()]}.deb"
        toolchain.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(root), str(target)], what="the package",
            env=os.environ | wheels.DATE,
        )  # fmt: skip
    return target


def put(root: Path, name: str, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to the file `name` of the package, below `root`."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def output(*arguments: str | Path) -> bytes:
    """Run a Python script and return its standard output."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT).stdout


def compressed(data: bytes) -> bytes:
    """Compress a document reproducibly, as Debian requires for documentation."""
    return gzip.compress(data, compresslevel=9, mtime=0)


def documents(root: Path, home: Path, version: str) -> None:
    """Write licences and changes to the paths that Debian requires."""
    folder = "usr/share/doc/edgechat"
    licences = (home / "THIRD_PARTY_LICENSES.txt").read_text("utf-8")
    own = (ROOT / "LICENSE").read_text("utf-8")
    put(
        root,
        f"{folder}/copyright",
        f"{own}\n\nThird-party components, each under its own licence:\n\n{licences}".encode(),
    )
    put(root, f"{folder}/changelog.gz", compressed(CHANGES.format(version=version, maintainer=MAINTAINER).encode()))
    put(root, f"{folder}/NEWS.gz", compressed((ROOT / "CHANGELOG.md").read_bytes()))
    (home / "THIRD_PARTY_LICENSES.txt").unlink()
    (home / "sbom.cdx.json").rename(root / folder / "sbom.cdx.json")


def control(root: Path, version: str) -> None:
    """Write the control files and set permissions."""
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in (*files, *(p for p in root.rglob("*") if p.is_dir())):
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    values = {
        "@VERSION@": version, "@MAINTAINER@": MAINTAINER, "@ARCHITECTURE@": ARCHITECTURES[toolchain.target_machine()],
        "@SIZE@": str(sum(path.stat().st_size for path in files) // 1024), "@GLIBC@": f"2.{wheels.GLIBC_MINORS[-1]}",
    }  # fmt: skip
    put(root, "DEBIAN/control", wheels.fill_template(DEBIAN / "control", values).encode())
    put(root, "DEBIAN/triggers", (DEBIAN / "triggers").read_bytes())
    for script in ("postinst", "prerm"):
        put(root, f"DEBIAN/{script}", (DEBIAN / script).read_bytes(), mode=0o755)


if __name__ == "__main__":
    sys.exit(main())
