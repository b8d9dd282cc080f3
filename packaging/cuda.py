#!/usr/bin/env python3
"""Make the package that brings CUDA to an edgechat beside it: edgechat-cuda12 or edgechat-cuda13, after the CUDA that compiles it.

    cuda.py [--architectures LIST] [--toolkit] [DIRECTORY]

The nvcc that is here compiles it: on a Jetson with JetPack 6 that of CUDA 12. With --toolkit NVIDIA's compiler of CUDA 13 is taken from
the package index, which needs nothing of NVIDIA on this machine and can be for another architecture (EDGECHAT_TARGET). Either takes
an hour on two cores. What is made needs CUDA's runtime and cuBLAS where it is installed: a Jetson has them, for others
there is the extra [toolkit].
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
from starter_wheel import ROOT, build

from edgechat import __version__

PROJECT = ROOT / "packaging" / "cuda"
# Orin, the GPU of the Jetsons that JetPack 6 is for; and on PCs those of the last years, Turing and newer.
ARCHITECTURES = {"aarch64": "87-real", "x86_64": "75-virtual;80-virtual;86-real;89-real;90-virtual"}
TOOLKITS = {
    "12": '"nvidia-cublas-cu12>=12,<13", "nvidia-cuda-runtime-cu12>=12,<13"',
    "13": '"nvidia-cublas>=13,<14", "nvidia-cuda-runtime>=13,<14"',
}
# JetPack 6 is Ubuntu 22.04: a minor more than the rest of edgechat asks for, which GCC 12 makes of a condition variable.
GLIBC_MINOR = 35
# Of edgechat, and of CUDA.
FOREIGN = ("libggml-base.so", "libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*")


def main() -> int:
    """Make the wheel and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "cuda")
    parser.add_argument("--architectures", default="", help="as CMake writes them, such as 87-real")
    parser.add_argument("--toolkit", action="store_true", help="take the compiler from the package index")
    options = parser.parse_args()
    try:
        made = make(options.directory, options.architectures, from_index=options.toolkit)
        wheels.tell(made, f"pipx inject edgechat {made}")
    except build.BuildError as error:
        sys.exit(f"cuda: {error}")
    return 0


def make(directory: Path, architectures: str, *, from_index: bool) -> Path:
    """The wheel's path. Raises build.BuildError."""
    architectures = architectures or ARCHITECTURES.get(build.target_machine(), "native")
    if from_index:
        root = toolkit()
        os.environ |= {"CUDACXX": str(root / "bin" / "nvcc"), "CUDAToolkit_ROOT": str(root)}
    release = re.search(r"release (\d+)\.", build.nvcc_identity())
    if release is None or release[1] not in TOOLKITS:
        raise build.BuildError(f"CUDA 12 or 13 is needed, and nvcc says {build.nvcc_identity()!r}")
    try:
        prefix = build.native_prefix(variants="none", cuda=architectures)
    except build.BuildError as error:
        raise build.BuildError(
            f"{error}; where this CUDA lacks something (cuBLAS?), --toolkit takes all of it from the index"
        ) from error
    return pack(prefix, release[1], directory)


def pack(prefix: Path, major: str, directory: Path) -> Path:
    """The wheel of a module that is built. Raises build.BuildError."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-cuda-", dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        stage(scratch / "project", prefix, major)
        project = str(scratch / "project")
        build.pip("wheel", "--no-deps", "--wheel-dir", str(scratch), project, what="the wheel", **wheels.DATE)
        named = wheels.name_its_glibc(wheels.name_its_machine(next(scratch.glob("*.whl"))), FOREIGN, GLIBC_MINOR)
        return named.replace(directory / named.name)


def stage(project: Path, prefix: Path, major: str) -> None:
    """Write the project of the wheel: the module, and from which build it is."""
    package = project / f"edgechat_cuda{major}"
    package.mkdir(parents=True)
    words = {"@MAJOR@": major, "@VERSION@": __version__, "@TOOLKIT@": TOOLKITS[major]}
    (project / "pyproject.toml").write_text(wheels.filled(PROJECT / "pyproject.toml.in", words), "utf-8")
    shutil.copy(PROJECT / "README.md", project)
    shutil.copy(prefix / "LICENSE.llama.cpp", project / "LICENSE")
    (package / "__init__.py").write_text('"""Data of edgechat."""\n', "utf-8")
    shutil.copy(prefix / "libggml-cuda.so", package)
    manifest = json.loads((prefix / "manifest.json").read_text("utf-8")) | {"files": ["libggml-cuda.so"]}
    (package / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def toolkit() -> Path:
    """NVIDIA's compiler for this machine, with headers and libraries for the one that is built for. Raises build.BuildError."""
    parts = ((platform.machine(), PROJECT / "compiler.txt"), (build.target_machine(), PROJECT / "libraries.txt"))
    identity = build.identity({"parts": [(machine, build.digest(pins)) for machine, pins in parts]})
    root: Path = build.cache_dir() / "cuda" / identity
    with build.locked(root.with_suffix(".lock")):
        if not root.exists():
            build.say("getting NVIDIA's compiler (0.6 GB)")
            with tempfile.TemporaryDirectory(dir=root.parent) as scratch_name:
                scratch = Path(scratch_name)
                for machine, pins in parts:
                    build.pip(
                        "download", "--no-deps", "--dest", str(scratch), "--only-binary", ":all:", *wheels.platforms(machine),
                        "--require-hashes", "-r", str(pins), what="the download of NVIDIA's compiler",
                    )  # fmt: skip
                unpack(scratch).rename(root)
    return root


def unpack(scratch: Path) -> Path:
    """One toolkit of several wheels, with what a toolkit has and wheels do not: bits that allow to execute, links."""
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
