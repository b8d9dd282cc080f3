#!/usr/bin/env python3
"""Build the add-on package with CUDA kernels, edgechat-cuda12 or edgechat-cuda13, depending on the CUDA version.

    cuda.py [--architectures LIST] [--toolkit] [DIRECTORY]

Uses the installed nvcc (CUDA 12 on a Jetson with JetPack 6). With --toolkit, downloads NVIDIA's compiler of CUDA 13
from the package index, so that this machine needs no software of NVIDIA and can cross-compile (EDGECHAT_TARGET). Both
builds take an hour on two cores. On the target machine, the package needs CUDA's runtime and cuBLAS: a Jetson has them,
other machines get them from the extra [toolkit].
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import wheels
from starter_wheel import ROOT, build, toolchain

from edgechat import __version__

PROJECT = ROOT / "packaging" / "cuda"
# Orin, the GPU of all Jetsons with JetPack 6; on PCs Turing and newer.
ARCHITECTURES = {"aarch64": "87-real", "x86_64": "75-virtual;80-virtual;86-real;89-real;90-virtual"}
TOOLKITS = {
    "12": '"nvidia-cublas-cu12>=12,<13", "nvidia-cuda-runtime-cu12>=12,<13"',
    "13": '"nvidia-cublas>=13,<14", "nvidia-cuda-runtime>=13,<14"',
}
# JetPack 6 is Ubuntu 22.04 with glibc 2.35. GCC 12 needs 2.35 for condition variables; the rest of edgechat needs 2.34.
GLIBC_MINOR = 35
# Libraries of edgechat and of CUDA, which the wheel must not contain.
FOREIGN = ("libggml-base.so", "libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*")


def main() -> int:
    """Build the wheel and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "cuda")
    parser.add_argument("--architectures", default="", help="as CMake writes them, such as 87-real")
    parser.add_argument("--toolkit", action="store_true", help="take the compiler from the package index")
    options = parser.parse_args()
    try:
        wheel = make(options.directory, options.architectures, from_index=options.toolkit)
        wheels.report(wheel, f"pipx inject edgechat {wheel}")
    except toolchain.BuildError as error:
        sys.exit(f"cuda: {error}")
    return 0


def make(directory: Path, architectures: str, *, from_index: bool) -> Path:
    """Compile the module and return the path of its wheel. Raises toolchain.BuildError."""
    architectures = architectures or ARCHITECTURES.get(toolchain.target_machine(), "native")
    if from_index:
        root = toolkit()
        os.environ |= {"CUDACXX": str(root / "bin" / "nvcc"), "CUDAToolkit_ROOT": str(root)}
    release = re.search(r"release (\d+)\.", toolchain.nvcc_identity())
    if release is None or release[1] not in TOOLKITS:
        raise toolchain.BuildError(f"CUDA 12 or 13 is required; nvcc reports {toolchain.nvcc_identity()!r}.")
    try:
        prefix = build.native_prefix(variants="none", cuda=architectures)
    except toolchain.BuildError as error:
        raise toolchain.BuildError(
            f"{error} If this CUDA is incomplete (cuBLAS?), --toolkit downloads a complete one from the index."
        ) from error
    return pack(prefix, release[1], directory)


def pack(prefix: Path, major: str, directory: Path) -> Path:
    """Pack a compiled module into a wheel and return its path. Raises toolchain.BuildError."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-cuda-", dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        stage(scratch / "project", prefix, major)
        project = str(scratch / "project")
        toolchain.pip("wheel", "--no-deps", "--wheel-dir", str(scratch), project, what="the wheel", **wheels.DATE)
        wheel = wheels.set_glibc_tag(wheels.set_machine_tag(next(scratch.glob("*.whl"))), FOREIGN, GLIBC_MINOR)
        return wheel.replace(directory / wheel.name)


def stage(project: Path, prefix: Path, major: str) -> None:
    """Write the project of the wheel: the module and the manifest of its build."""
    package = project / f"edgechat_cuda{major}"
    package.mkdir(parents=True)
    values = {"@MAJOR@": major, "@VERSION@": __version__, "@TOOLKIT@": TOOLKITS[major]}
    (project / "pyproject.toml").write_text(wheels.fill_template(PROJECT / "pyproject.toml.in", values), "utf-8")
    shutil.copy(PROJECT / "README.md", project)
    shutil.copy(prefix / "LICENSE.llama.cpp", project / "LICENSE")
    (package / "__init__.py").write_text('"""Data of edgechat."""\n', "utf-8")
    shutil.copy(prefix / "libggml-cuda.so", package)
    manifest = json.loads((prefix / "manifest.json").read_text("utf-8")) | {"files": ["libggml-cuda.so"]}
    (package / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def toolkit() -> Path:
    """Download NVIDIA's compiler for this machine, and headers and libraries for the target, into the build cache.

    Returns their directory. Raises toolchain.BuildError.
    """
    parts = ((platform.machine(), PROJECT / "compiler.txt"), (toolchain.target_machine(), PROJECT / "libraries.txt"))
    identity = toolchain.identity({"parts": [(machine, toolchain.digest(pins)) for machine, pins in parts]})
    root: Path = toolchain.cache_dir() / "cuda" / identity
    with build.locked(root.with_suffix(".lock")):
        if not root.exists():
            toolchain.say("downloading NVIDIA's compiler (0.6 GB)")
            with tempfile.TemporaryDirectory(dir=root.parent) as scratch_name:
                scratch = Path(scratch_name)
                for machine, pins in parts:
                    toolchain.pip(
                        "download", "--no-deps", "--dest", str(scratch), "--only-binary", ":all:",
                        *wheels.platforms(machine), "--require-hashes", "-r", str(pins),
                        what="the download of NVIDIA's compiler",
                    )  # fmt: skip
                unpack(scratch).rename(root)
    return root


def unpack(scratch: Path) -> Path:
    """Unpack several wheels into one toolkit and add execute permissions and symbolic links, which wheels lack."""
    for wheel in sorted(scratch.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "unpacked")
    root = scratch / "unpacked" / "nvidia" / "cu13"
    for program in (*(root / "bin").iterdir(), *(root / "nvvm" / "bin").iterdir()):
        program.chmod(0o755)
    for library in list((root / "lib").glob("*.so.*")):
        library.with_name(library.name.partition(".so.")[0] + ".so").symlink_to(library.name)
    (root / "lib64").symlink_to("lib")
    return root


if __name__ == "__main__":
    sys.exit(main())
