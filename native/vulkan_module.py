"""Build of llama.cpp's Vulkan module, in the cache of the native builds.

    vulkan_module.py    print the directory of the module

The build takes the tools of this machine: glslc, Vulkan's headers and those of SPIR-V. If they are missing on Debian or
Ubuntu, their packages are unpacked into the cache, which needs no root. Standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import build
import debian_packages
from sources import LLAMA_CPP_COMMIT, PIN, PIN_SHA256, sdist, unpack
from toolchain import (
    BuildError,
    cache_dir,
    compiler_identity,
    cross_compilers,
    digest,
    identity,
    run,
    say,
    target_machine,
    tool,
)  # fmt: skip

PROJECT = build.NATIVE / "vulkan"
PACKAGES = ("glslc", "libvulkan-dev", "spirv-headers")
_SYSTEM = Path("/usr")


class ShaderTools(NamedTuple):
    """Programs and headers that the module is built with."""

    glslc: Path
    include_dir: Path
    """Directory of `vulkan/` and `spirv/`."""
    spirv_cmake_dir: Path
    """Directory of SPIRV-HeadersConfig.cmake."""

    def identity(self) -> str:
        """Return the versions of the compiler and of the headers, which determine the module."""
        version = subprocess.run([self.glslc, "--version"], capture_output=True, text=True, check=False).stdout
        header = (self.include_dir / "vulkan" / "vulkan_core.h").read_text("utf-8", "replace")
        match = re.search(r"#define VK_HEADER_VERSION (\d+)", header)
        return f"{' '.join(version.split())}; headers {match[1] if match else '?'}"


def main() -> int:
    """Build the module and print its directory."""
    try:
        print(module_prefix())
    except BuildError as error:
        print(f"vulkan: {error}", file=sys.stderr)
        return 1
    return 0


def shader_tools() -> ShaderTools:
    """Return the installed tools, or those of Debian's packages, unpacked into the cache. Raises BuildError."""
    glslc = shutil.which("glslc")
    sdk = Path(os.environ["VULKAN_SDK"]) if os.environ.get("VULKAN_SDK") else _SYSTEM
    installed = _tools_in(sdk, Path(glslc)) if glslc else None
    if installed is not None:
        return installed
    try:
        root = debian_packages.unpacked(*PACKAGES)
    except BuildError as error:
        raise BuildError(
            "Building the Vulkan module needs glslc and the headers of Vulkan and SPIR-V: on Debian and Ubuntu "
            f"`apt-get install {' '.join(PACKAGES)}`, elsewhere the Vulkan SDK (set VULKAN_SDK). {error}"
        ) from error
    wrapper = root / "glslc"  # the compiler finds its library beside itself only with this variable
    if not wrapper.exists():
        new = root / f"glslc.{os.getpid()}"
        new.write_text(
            "#!/bin/sh\n"
            f"LD_LIBRARY_PATH='{debian_packages.library_path(root)}' exec '{root}/usr/bin/glslc' \"$@\"\n", "utf-8",
        )  # fmt: skip
        new.chmod(0o755)
        new.replace(wrapper)
    tools = _tools_in(root / "usr", wrapper)
    if tools is None:
        raise BuildError(f"The packages {', '.join(PACKAGES)} lack a header. Delete {root} and run this again.")
    return tools


def _tools_in(prefix: Path, glslc: Path) -> ShaderTools | None:
    """Return the tools if `prefix` has all headers."""
    include = next((p for p in (prefix / "include", prefix / "Include") if p.is_dir()), prefix / "include")
    found = [*prefix.glob("share/cmake/SPIRV-Headers"), *prefix.glob("lib*/**/cmake/SPIRV-Headers")]
    has_headers = (include / "vulkan" / "vulkan.hpp").is_file() and (include / "spirv" / "unified1").is_dir()
    return ShaderTools(glslc, include, found[0]) if found and has_headers else None


def module_prefix() -> Path:
    """Return the directory of the built module with its manifest, building it unless the cache has it.

    Raises BuildError.
    """
    tools = shader_tools()
    prefix, tree, inputs = locate(tools)
    if not prefix.exists():
        _build(prefix, tree, inputs, tools)
    return prefix


def locate(tools: ShaderTools) -> tuple[Path, Path, dict[str, object]]:
    """Return the directory of the module, which exists only when complete, the build tree, and all inputs."""
    inputs: dict[str, object] = {
        "pin": PIN_SHA256,
        "options": {"vulkan": True},
        "shaders": tools.identity(),
        "compiler": compiler_identity(),
        "environment": {k: os.environ.get(k, "") for k in ("CFLAGS", "CXXFLAGS", "LDFLAGS")},
        "platform": [sys.platform, target_machine()],
    }
    tree = (cache_dir() / "tree" / f"vulkan-{identity(inputs)}").resolve()
    inputs["project"] = {p.name: digest(p) for p in sorted(PROJECT.iterdir()) if p.is_file()}
    return cache_dir() / "vulkan" / identity(inputs), tree, inputs


def _build(prefix: Path, tree: Path, inputs: dict[str, object], tools: ShaderTools) -> None:
    """Compile the module in a build tree and install it into `prefix`, which appears only when complete."""
    archive = sdist()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with build.locked(tree), tempfile.TemporaryDirectory(dir=prefix.parent, prefix="new-") as scratch:
        if prefix.exists():  # another clone built it while this one waited
            return
        say("building the Vulkan module (minutes; the shaders take most of them)")
        log = tree / "build.log"
        log.unlink(missing_ok=True)
        build.copy_changed(build.NATIVE, tree / "native")
        source = tree / f"llama_cpp_python-{PIN}"
        if not source.exists():
            unpack(archive, tree)
        llama_cpp = source / "vendor" / "llama.cpp"
        cmake, cross = tool("cmake"), cross_compilers(target_machine())
        staged = Path(scratch) / "prefix"
        defined = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"), "CMAKE_BUILD_TYPE": "Release", "CMAKE_INSTALL_PREFIX": staged,
            "EDGECHAT_LLAMA_DIR": llama_cpp, "GGML_BUILD_COMMIT": LLAMA_CPP_COMMIT,
            "Vulkan_GLSLC_EXECUTABLE": tools.glslc, "Vulkan_INCLUDE_DIR": tools.include_dir,
            "SPIRV-Headers_DIR": tools.spirv_cmake_dir,
        }  # fmt: skip
        if cross:
            defined |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": target_machine()}
        where = ["-S", str(tree / "native" / "vulkan"), "-B", str(tree / "build"), "-G", "Ninja"]
        run(
            [cmake, *where, *(f"-D{name}={value}" for name, value in defined.items())],
            what="configuring the Vulkan module", log=log, env=os.environ | cross,
        )  # fmt: skip
        run(
            [cmake, "--build", str(tree / "build"), "--target", "module", "--parallel", str(_count_processors())],
            what="compiling the Vulkan module", log=log,
        )  # fmt: skip
        run(
            [cmake, "--install", str(tree / "build"), "--component", "edgechat", "--strip"],
            what="installing the Vulkan module", log=log,
        )  # fmt: skip
        shutil.copy(llama_cpp / "LICENSE", staged / "LICENSE.llama.cpp")
        build.write_manifest(staged, prefix.name, inputs)
        staged.rename(prefix)


def _count_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
