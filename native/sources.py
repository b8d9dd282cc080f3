"""The pinned source of llama-cpp-python, which contains llama.cpp, and the wheel of its bindings."""

from __future__ import annotations

import platform
import sys
import tarfile
import tempfile
from pathlib import Path

from toolchain import BuildError, cache_dir, compiler_identity, digest, pip, say

PIN = "0.3.36"
PIN_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_CPP_COMMIT = "0c1e57098"
EPOCH_S = 315532800
"""1980-01-01, the modification time of all files in reproducible builds; earlier dates do not work in ZIP archives."""


def sdist() -> Path:
    """Return the archive of the pinned source, downloaded once and verified against its hash. Raises BuildError."""
    folder = cache_dir() / "source"
    archive = folder / f"llama_cpp_python-{PIN}.tar.gz"
    if not archive.exists():
        say(f"downloading the source of llama-cpp-python {PIN}")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            requirement = Path(scratch) / "requirements.txt"
            requirement.write_text(f"llama-cpp-python=={PIN} --hash=sha256:{PIN_SHA256}\n", encoding="utf-8")
            pip(
                "download",
                "--no-deps",
                "--no-binary",
                "llama-cpp-python",
                "--dest",
                scratch,
                "-r",
                str(requirement),
                what="the download of llama-cpp-python",
                CMAKE_ARGS="-DLLAMA_BUILD=OFF",
            )
            next(Path(scratch).glob("*.tar.gz")).replace(archive)
    actual = digest(archive)
    if actual != PIN_SHA256:
        archive.unlink()
        raise BuildError(
            f"The source of llama-cpp-python {PIN} has SHA-256 {actual}, not {PIN_SHA256}. Run this again."
        )
    return archive


def bindings_wheel() -> Path:
    """Return the wheel of llama-cpp-python without its library, which edgechat replaces. Raises BuildError."""
    folder = cache_dir() / "bindings" / f"{PIN}-{sys.platform}-{platform.machine()}-{EPOCH_S}"
    built = sorted(folder.glob("*.whl"))
    if not built:
        compiler_identity()  # raises a clearer error than CMake if there is no compiler
        say("building the bindings of llama-cpp-python (no library)")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            pip(
                "wheel",
                "--no-deps",
                "--wheel-dir",
                scratch,
                str(sdist()),
                what="the build of the bindings",
                CMAKE_ARGS="-DLLAMA_BUILD=OFF",
                SOURCE_DATE_EPOCH=str(EPOCH_S),
            )
            for wheel in Path(scratch).glob("*.whl"):
                wheel.replace(folder / wheel.name)
        built = sorted(folder.glob("*.whl"))
    return built[0]


def unpack(archive: Path, target: Path) -> None:
    """Unpack the source into `target`, where it appears only when complete."""
    with tempfile.TemporaryDirectory(dir=target, prefix="unpack-") as scratch:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(scratch, filter="data")
            else:
                tar.extractall(scratch)  # `sdist` has verified the hash
        unpacked = next(Path(scratch).iterdir())
        unpacked.rename(target / unpacked.name)
