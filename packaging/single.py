#!/usr/bin/env python3
"""Make edgechat a single file that needs no Python: it unpacks itself once, and starts from there.

    single.py [DIRECTORY]

PyInstaller freezes the program with all of the wheelhouse; a script of the shell is put before the archive of that. PyInstaller's own
single file unpacks itself at each start, and somewhere else each time: see docs/decisions.md. It is for Linux, the architecture and
the glibc of what makes it. EDGECHAT_CPU_VARIANTS chooses the CPU modules (all by default).
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
from starter_wheel import ROOT, build

SCRIPTS = ROOT / "packaging" / "single"
# Also packages that are imported by name or as they are needed, and files beside modules.
WHOLE = ("edgechat", "textual", "uvicorn", "edgechat_starter")
# llama-cpp-python names the first two for what edgechat does not use. The library of readline is under the GPL.
LEFT_OUT = ("numpy", "diskcache", "tkinter", "pip", "setuptools", "readline")


def main() -> int:
    """Make the file and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "single")
    options = parser.parse_args()
    try:
        made = make(options.directory.resolve())
        wheels.tell(made, "Copy it there, and start it; `chmod +x` if the bit was lost on the way")
    except build.BuildError as error:
        sys.exit(f"single: {error}")
    return 0


def make(directory: Path) -> Path:
    """The file's path. Raises build.BuildError."""
    if sys.platform != "linux" or build.target_machine() != platform.machine():
        raise build.BuildError("a single file is for Linux, and made on the architecture that it is for")
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
    """The directory that PyInstaller makes of a fresh installation from the wheelhouse, in which wheels stay that are inside."""
    house, binaries = scratch / "house", scratch / "venv" / "bin"
    wheels.fill(house)
    venv.create(binaries.parent, with_pip=True)
    install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    build.run([*install, "--no-index", "--find-links", str(house), "edgechat[starter,serve]"], what="the installation")
    pinned = ["--no-deps", "--require-hashes", "-r", str(SCRIPTS / "requirements.txt")]
    build.run([*install, *pinned], what="getting PyInstaller")
    build.say("freezing (half a minute or more)")
    where = site(binaries.parent)
    options = [f"--collect-{what}={package}" for package in WHOLE for what in ("submodules", "data")]
    options += [f"--exclude-module={module}" for module in LEFT_OUT]
    options += [
        # Loaded by their paths: they stay as they are, where the package has them.
        f"--add-data={where}/edgechat/_native:edgechat/_native",
        f"--add-data={where}/llama_cpp/__init__.py:llama_cpp", "--hidden-import=llama_cpp.llama_cpp",
    ]  # fmt: skip
    build.run(
        # Not `python -m`: that would take the edgechat of the directory where it is called.
        [str(binaries / "pyinstaller"), "--onedir", "--name=edgechat", "--log-level=WARN", *options,
         f"--distpath={scratch / 'dist'}", f"--workpath={scratch / 'work'}", f"--specpath={scratch}", str(SCRIPTS / "main.py")],
        what="PyInstaller", env=os.environ | wheels.DATE | {"PYTHONHASHSEED": "0", "PYTHONPATH": ""},
    )  # fmt: skip
    for wheel in house.glob("*.whl"):
        if contents.name_of(wheel) in LEFT_OUT:
            wheel.unlink()
    frozen = scratch / "dist" / "edgechat"
    for record in frozen.rglob("*.dist-info/RECORD"):  # has hashes of scripts that name the scratch directory
        record.unlink()
    return frozen


def more_parts(scratch: Path) -> Iterator[contents.Part]:
    """What is inside and comes from no wheel of the house: Python, PyInstaller's start program, and libraries of the system."""
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    licence = Path(sysconfig.get_path("stdlib"), "LICENSE.txt").read_text("utf-8")
    yield part("CPython", platform.python_version(), "PSF-2.0", licence, library, "https://www.python.org/")
    (about,) = importlib.metadata.distributions(name="pyinstaller", path=[site(scratch / "venv")])
    licence, program = about.read_text("licenses/COPYING.txt") or "", scratch / "dist" / "edgechat" / "edgechat"
    terms = "GPL-2.0-or-later WITH Bootloader-exception"
    yield part("PyInstaller", about.version, terms, licence, program, "https://pyinstaller.org/")
    # Tuples of where a file goes, where it comes from, and what it is; how it is written is PyInstaller's own affair.
    (collected,) = (scratch / "work").rglob("COLLECT-00.toc")
    files = [Path(source) for _, source, kind in ast.literal_eval(collected.read_text("utf-8"))[0] if kind == "BINARY"]
    ours = (scratch.resolve(), Path(sys.base_prefix).resolve())
    for file in sorted({file.resolve() for file in files}):
        if not file.is_relative_to(ours[0]) and not file.is_relative_to(ours[1]):
            yield of_the_system(file)


def site(environment: Path) -> str:
    """Where the packages of a virtual environment are."""
    return sysconfig.get_path("purelib", vars={"base": str(environment)})


def part(name: str, version: str, licence: str, text: str, file: Path, url: str) -> contents.Part:
    """Something that is inside as a file."""
    return contents.Part(name, version, licence, (text,) if text else (), file.name, "", url)


def of_the_system(file: Path) -> contents.Part:
    """A library of the system, with what the package manager of Debian and its kin knows of it, if that is here."""
    tool = shutil.which("dpkg-query")

    def asked(*arguments: str) -> str:
        return (tool and subprocess.run([tool, *arguments], capture_output=True, text=True, check=False).stdout) or ""

    # Which of its two names is known depends on the age of the package.
    package = asked("--search", str(file), str(file).removeprefix("/usr")).partition(":")[0]
    if not package:
        return part(file.name, "unknown", "", "", file, "")
    version = asked("--show", "--showformat=${source:Upstream-Version}\n", package).partition("\n")[0]
    text = Path("/usr/share/doc", package, "copyright")
    words = text.read_text("utf-8", "replace") if text.is_file() else ""
    return part(package, version, "see its text", words, file, f"https://packages.debian.org/{package}")


def start(archive: Path, frozen: Path) -> bytes:
    """The script that comes before the archive; where that begins is written in it, in as many digits as the mark has letters."""
    n_bytes = sum(path.stat().st_size for path in frozen.rglob("*"))
    words = {
        "@SHA256@": build.digest(archive), "@SYSTEM@": platform.system(), "@MACHINE@": platform.machine(),
        "@NEEDED_KB@": str(n_bytes // 1024), "@GLIBC@": platform.libc_ver()[1] or "none",
    }  # fmt: skip
    text, mark = wheels.filled(SCRIPTS / "start.sh", words), "@OFFSET@"
    return text.replace(mark, f"{len(text.encode()) + 1:0{len(mark)}d}").encode()


if __name__ == "__main__":
    sys.exit(main())
