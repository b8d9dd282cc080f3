#!/usr/bin/env python3
"""Build edgechat as a single file that needs no Python: it unpacks itself once and starts from there.

    single.py [DIRECTORY]

PyInstaller freezes an installation from the wheelhouse, and a shell script precedes the archive of the result.
PyInstaller's own one-file mode unpacks at each start, into a different directory each time: see docs/decisions.md. The
file is for Linux, and for the architecture and glibc of this machine. EDGECHAT_CPU_VARIANTS selects the CPU modules
(default: all).
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import contents
import offline
import wheels
from starter_wheel import ROOT, toolchain

SCRIPTS = ROOT / "packaging" / "single"
# Packages with lazy imports or data files, which PyInstaller must collect completely.
COLLECTED = ("edgechat", "textual", "uvicorn", "edgechat_starter")
# llama-cpp-python requires numpy and diskcache for features that edgechat does not use. The readline library is GPL.
EXCLUDED = ("numpy", "diskcache", "tkinter", "pip", "setuptools", "readline")


def main() -> int:
    """Build the file and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "single")
    options = parser.parse_args()
    try:
        file = make(options.directory.resolve())
        wheels.report(file, "Copy it to the target machine and start it; run `chmod +x` if the copy is not executable.")
    except toolchain.BuildError as error:
        sys.exit(f"single: {error}")
    return 0


def make(directory: Path) -> Path:
    """Build the file and return its path. Raises toolchain.BuildError."""
    if sys.platform != "linux" or toolchain.target_machine() != platform.machine():
        raise toolchain.BuildError("A single file can only be built on Linux, for this machine's architecture.")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-single-", dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        frozen = freeze(scratch)
        contents.write(
            scratch / "house", frozen / "sbom.cdx.json", frozen / "THIRD_PARTY_LICENSES.txt", *more_parts(scratch)
        )
        archive = offline.pack(frozen, scratch / "payload", is_program=True)
        target = directory / f"edgechat-{sys.platform}-{platform.machine()}"
        unfinished = target.with_suffix(".part")
        unfinished.write_bytes(start(archive, frozen) + archive.read_bytes())
        unfinished.chmod(0o755)
        return unfinished.replace(target)


def freeze(scratch: Path) -> Path:
    """Freeze a fresh installation from the wheelhouse and return PyInstaller's directory.

    Deletes the wheels of excluded packages from the wheelhouse, so that the bill of materials omits them.
    """
    house, binaries = scratch / "house", scratch / "venv" / "bin"
    wheels.fill(house)
    venv.create(binaries.parent, with_pip=True)
    install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    toolchain.run(
        [*install, "--no-index", "--find-links", str(house), "edgechat[starter,serve,documents]"],
        what="the installation",
    )
    pinned = ["--no-deps", "--require-hashes", "-r", str(SCRIPTS / "requirements.txt")]
    toolchain.run([*install, *pinned], what="the download of PyInstaller")
    toolchain.say("freezing (half a minute or more)")
    where = site(binaries.parent)
    options = [f"--collect-{what}={package}" for package in COLLECTED for what in ("submodules", "data")]
    options += [f"--exclude-module={module}" for module in EXCLUDED]
    options += [
        # Files that edgechat loads by path stay unchanged at their place in the package.
        f"--add-data={where}/edgechat/_native:edgechat/_native",
        f"--add-data={where}/llama_cpp/__init__.py:llama_cpp", "--hidden-import=llama_cpp.llama_cpp",
    ]  # fmt: skip
    toolchain.run(
        # Not `python -m`, which would import edgechat from the current directory.
        [str(binaries / "pyinstaller"), "--onedir", "--name=edgechat", "--log-level=WARN", *options,
         f"--distpath={scratch / 'dist'}", f"--workpath={scratch / 'work'}", f"--specpath={scratch}",
         str(SCRIPTS / "main.py")],
        what="PyInstaller", env=os.environ | wheels.DATE | {"PYTHONHASHSEED": "0", "PYTHONPATH": ""},
    )  # fmt: skip
    for wheel in house.glob("*.whl"):
        if contents.name_of(wheel) in EXCLUDED:
            wheel.unlink()
    frozen = scratch / "dist" / "edgechat"
    for record in frozen.rglob("*.dist-info/RECORD"):  # contains hashes of scripts that name the scratch directory
        record.unlink()
    return frozen


def more_parts(scratch: Path) -> Iterator[contents.Part]:
    """Yield the components that are not in a wheel: Python, PyInstaller's bootloader, and system libraries."""
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    licence = Path(sysconfig.get_path("stdlib"), "LICENSE.txt").read_text("utf-8")
    yield part("CPython", platform.python_version(), "PSF-2.0", licence, library, "https://www.python.org/")
    (about,) = importlib.metadata.distributions(name="pyinstaller", path=[site(scratch / "venv")])
    licence, program = about.read_text("licenses/COPYING.txt") or "", scratch / "dist" / "edgechat" / "edgechat"
    terms = "GPL-2.0-or-later WITH Bootloader-exception"
    yield part("PyInstaller", about.version, terms, licence, program, "https://pyinstaller.org/")
    # PyInstaller's list of collected files: (target, source, kind) tuples in an undocumented format.
    (collected,) = (scratch / "work").rglob("COLLECT-00.toc")
    files = [Path(source) for _, source, kind in ast.literal_eval(collected.read_text("utf-8"))[0] if kind == "BINARY"]
    # Not all of the directory where Python is installed: it can be /usr.
    parts_of_python = [library, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    listed = [scratch.resolve(), *(path.resolve() for path in parts_of_python)]
    for file in sorted({file.resolve() for file in files}):
        if not any(file.is_relative_to(path) for path in listed):
            yield system_library(file)


def site(environment: Path) -> str:
    """Return the site-packages directory of a virtual environment."""
    return sysconfig.get_path("purelib", vars={"base": str(environment)})


def part(name: str, version: str, licence: str, text: str, file: Path, url: str) -> contents.Part:
    """Return the component for a single file."""
    return contents.Part(name, version, licence, (text,) if text else (), file.name, "", url)


def system_library(file: Path) -> contents.Part:
    """Return the component of a system library, with version and licence from dpkg if it is available."""
    tool = shutil.which("dpkg-query")

    def query(*arguments: str) -> str:
        return (tool and subprocess.run([tool, *arguments], capture_output=True, text=True, check=False).stdout) or ""

    # Older packages registered their files under /lib, newer ones under /usr/lib.
    package = query("--search", str(file), str(file).removeprefix("/usr")).partition(":")[0]
    if not package:
        return part(file.name, "unknown", "", "", file, "")
    version = query("--show", "--showformat=${source:Upstream-Version}\n", package).partition("\n")[0]
    text = Path("/usr/share/doc", package, "copyright")
    licence = text.read_text("utf-8", "replace") if text.is_file() else ""
    return part(package, version, "see its text", licence, file, f"https://packages.debian.org/{package}")


def start(archive: Path, frozen: Path) -> bytes:
    """Return the script that precedes the archive, with the archive's byte offset in it.

    The offset has as many digits as its placeholder has characters, so that filling it in does not move the archive.
    """
    n_bytes = sum(path.stat().st_size for path in frozen.rglob("*"))
    values = {
        "@SHA256@": toolchain.digest(archive), "@SYSTEM@": platform.system(), "@MACHINE@": platform.machine(),
        "@NEEDED_KB@": str(n_bytes // 1024), "@GLIBC@": platform.libc_ver()[1] or "none",
    }  # fmt: skip
    text, placeholder = wheels.fill_template(SCRIPTS / "start.sh", values), "@OFFSET@"
    return text.replace(placeholder, f"{len(text.encode()) + 1:0{len(placeholder)}d}").encode()


if __name__ == "__main__":
    sys.exit(main())
