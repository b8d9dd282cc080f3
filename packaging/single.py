#!/usr/bin/env python3
"""Make edgechat a single file that needs no Python: it unpacks itself once, and starts from there.

    single.py [DIRECTORY]

PyInstaller freezes the program with all of the wheelhouse; a script of the shell is put before the archive of that. PyInstaller's own
single file unpacks itself at each start, and somewhere else each time: see docs/decisions.md. It is for the platform and for the
glibc of what makes it. EDGECHAT_CPU_VARIANTS chooses the CPU modules (all by default).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contents
import offline
import wheels
from starter_wheel import ROOT, build

SCRIPTS = ROOT / "packaging" / "single"
# Also packages that are imported by name or as they are needed, and files beside modules.
WHOLE = ("edgechat", "textual", "uvicorn", "edgechat_starter")
# llama-cpp-python names them for what edgechat does not use.
LEFT_OUT = ("numpy", "diskcache", "tkinter", "pip", "setuptools")


def main() -> int:
    """Make the file and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "single")
    options = parser.parse_args()
    try:
        print(make(options.directory))
    except build.BuildError as error:
        sys.exit(f"single: {error}")
    return 0


def make(directory: Path) -> Path:
    """The file's path. Raises build.BuildError."""
    if sys.platform == "win32" or build.target_machine() != platform.machine():
        raise build.BuildError("a single file is made on the kind of system that it is for, Linux or macOS")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-single-", dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        frozen = freeze(scratch)
        tell_contents(scratch / "house", frozen)
        archive = offline.pack(frozen, scratch / "payload", inside="")
        target = directory / f"edgechat-{sys.platform}-{platform.machine()}"
        unfinished = target.with_suffix(".part")
        unfinished.write_bytes(start(archive, frozen) + archive.read_bytes())
        unfinished.chmod(0o755)
        return unfinished.replace(target)


def freeze(scratch: Path) -> Path:
    """The directory that PyInstaller makes of a fresh installation from the wheelhouse."""
    house, python = scratch / "house", scratch / "venv" / "bin" / "python"
    wheels.fill(house)
    venv.create(python.parent.parent, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    build.run([*install, "--no-index", "--find-links", str(house), "edgechat[starter,serve]"], what="the installation")
    build.run([*install, "pyinstaller>=6.10"], what="getting PyInstaller")
    build.say("freezing")
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    options = [f"--collect-{what}={package}" for package in WHOLE for what in ("submodules", "data")]
    options += [f"--exclude-module={module}" for module in LEFT_OUT]
    options += [
        # Loaded by their paths: they stay as they are, where the package has them.
        f"--add-data={site / 'edgechat' / '_native'}:edgechat/_native",
        f"--add-data={site / 'llama_cpp' / '__init__.py'}:llama_cpp", "--hidden-import=llama_cpp.llama_cpp",
    ]  # fmt: skip
    build.run(
        [str(python), "-m", "PyInstaller", "--onedir", "--name=edgechat", "--log-level=WARN", *options,
         f"--distpath={scratch / 'dist'}", f"--workpath={scratch / 'work'}", f"--specpath={scratch}", str(SCRIPTS / "main.py")],
        what="PyInstaller", env=os.environ | wheels.DATE | {"PYTHONHASHSEED": "0"},
    )  # fmt: skip
    frozen = scratch / "dist" / "edgechat"
    for record in frozen.rglob("*.dist-info/RECORD"):  # has hashes of scripts that name the scratch directory
        record.unlink()
    return frozen


def tell_contents(house: Path, frozen: Path) -> None:
    """Write what is inside and its licences beside it: the wheels that were not left out, and Python itself."""
    for wheel in house.glob("*.whl"):
        if offline.name_of(wheel) in LEFT_OUT:
            wheel.unlink()
    licence = Path(sysconfig.get_path("stdlib"), "LICENSE.txt").read_text("utf-8")
    library = max(frozen.rglob("libpython3*"), key=lambda path: path.stat().st_size)
    python = contents.Part(
        "CPython", platform.python_version(), "PSF-2.0", (licence,), library.name, build.digest(library), "https://www.python.org/",
    )  # fmt: skip
    contents.write(house, frozen / "sbom.cdx.json", frozen / "THIRD_PARTY_LICENSES.txt", python)


def start(archive: Path, frozen: Path) -> bytes:
    """The script that comes before the archive; where that begins is written in it, in as many digits as the mark has letters."""
    n_bytes = sum(path.stat().st_size for path in frozen.rglob("*"))
    words = {
        "@SHA256@": build.digest(archive), "@SYSTEM@": platform.system(), "@MACHINE@": platform.machine(),
        "@NEEDED_KB@": str(n_bytes // 1024), "@GLIBC@": platform.libc_ver()[1] or "none",
    }  # fmt: skip
    text = (SCRIPTS / "start.sh").read_text("utf-8")
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    mark = "@OFFSET@"
    return text.replace(mark, f"{len(text.encode()) + 1:0{len(mark)}d}").encode()


if __name__ == "__main__":
    sys.exit(main())
