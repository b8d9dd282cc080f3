#!/usr/bin/env python3
"""Build the add-on package with Vulkan kernels, edgechat-vulkan.

    vulkan.py [DIRECTORY]

Uses the installed glslc and the headers of Vulkan and SPIR-V; on Debian and Ubuntu, missing ones are unpacked from
their packages into the build cache. EDGECHAT_TARGET=aarch64 cross-compiles. Takes seven minutes on two cores the first
time. The target machine needs a Vulkan loader (libvulkan.so.1) and the driver of its GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import wheels
from starter_wheel import ROOT, toolchain, vulkan_module

from edgechat import __version__

PROJECT = ROOT / "packaging" / "vulkan"
MODULE = "libggml-vulkan.so"
# GCC 12 needs 2.35 for condition variables; the rest of edgechat needs 2.34.
GLIBC_MINOR = 35
# Libraries of edgechat and of the system, which the wheel must not contain.
FOREIGN = ("libggml-base.so", "libvulkan.so.*")


def main() -> int:
    """Build the wheel and print its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "dist" / "vulkan")
    try:
        wheel = pack(vulkan_module.module_prefix(), parser.parse_args().directory)
        wheels.report(wheel, f"pipx inject edgechat {wheel}")
    except toolchain.BuildError as error:
        sys.exit(f"vulkan: {error}")
    return 0


def pack(prefix: Path, directory: Path) -> Path:
    """Pack a compiled module into a wheel and return its path. Raises toolchain.BuildError."""
    if not (prefix / MODULE).is_file():
        raise toolchain.BuildError(f"The wheel is for Linux; the module is in {prefix}. See docs/install.md.")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-vulkan-", dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        stage(scratch / "project", prefix)
        project = str(scratch / "project")
        toolchain.pip("wheel", "--no-deps", "--wheel-dir", str(scratch), project, what="the wheel", **wheels.DATE)
        wheel = wheels.set_glibc_tag(wheels.set_machine_tag(next(scratch.glob("*.whl"))), FOREIGN, GLIBC_MINOR)
        return wheel.replace(directory / wheel.name)


def stage(project: Path, prefix: Path) -> None:
    """Write the project of the wheel: the module and the manifest of its build."""
    package = project / "edgechat_vulkan"
    package.mkdir(parents=True)
    text = wheels.fill_template(PROJECT / "pyproject.toml.in", {"@VERSION@": __version__})
    (project / "pyproject.toml").write_text(text, "utf-8")
    shutil.copy(PROJECT / "README.md", project)
    shutil.copy(prefix / "LICENSE.llama.cpp", project / "LICENSE")
    (package / "__init__.py").write_text('"""Data of edgechat."""\n', "utf-8")
    shutil.copy(prefix / MODULE, package)
    manifest = json.loads((prefix / "manifest.json").read_text("utf-8")) | {"files": [MODULE]}
    (package / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
