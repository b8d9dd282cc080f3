#!/usr/bin/env python3
"""Build the native parts of edgechat, or reuse a finished build from a cache outside the clone.

    build.py prefix     print the directory of the native bundle
    build.py link       also link it into this working tree (edgechat/_native_link)
    build.py source     print the archive of the pinned llama-cpp-python with llama.cpp
    build.py bindings   print the wheel of the pinned llama-cpp-python without its library
    build.py peers      print the directory of llama.cpp's own tools, built from the same source

EDGECHAT_TARGET names another target architecture for Linux: aarch64 or x86_64. Standard library only: this runs
before anything is installed. The cache is $EDGECHAT_BUILD_CACHE, or edgechat-build in the user's cache directory; the
name of an entry is a hash of all its inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from progress import wait_with_progress
from sources import LLAMA_CPP_COMMIT, PIN, PIN_SHA256, bindings_wheel, sdist, unpack
from toolchain import (
    DEVELOPMENT_VARIANTS,
    BuildError,
    cache_dir,
    compiler_identity,
    cross_compilers,
    digest,
    host_variants,
    identity,
    nvcc_identity,
    plain_machine,
    run,
    say,
    target_machine,
    tool,
)  # fmt: skip

NATIVE = Path(__file__).resolve().parent
# Without llama.cpp's modules for ARMv9.2: they only add SME, which only the KleidiAI kernels use, and those are not
# built. GCC before 14 does not support SME.
ALL_VARIANTS = {"aarch64": "armv8.0_1;armv8.2_1;armv8.2_2;armv8.2_3;armv8.6_1;armv8.6_2"}
KEEP_TREES_S = 30 * 24 * 3600


def main() -> int:
    """Run one command. The result goes to standard output, everything else to standard error."""
    # Shells start background programs with SIGINT ignored, and the compilers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prefix", "link", "source", "bindings", "peers"])
    parser.add_argument(
        "--variants",
        default=os.environ.get("EDGECHAT_CPU_VARIANTS", "all"),
        help="CPU modules: all, dev, host (two for this machine), or a list separated by semicolons",
    )
    parser.add_argument(
        "--cuda", default="", metavar="ARCHITECTURES", help="build the CUDA module too, for example for 87-real"
    )
    parser.add_argument("--metal", action="store_true", help="build the Metal module too")
    options = parser.parse_args()
    if options.command in ("link", "peers"):  # always for this machine
        os.environ.pop("EDGECHAT_TARGET", None)
    try:
        if options.command == "source":
            print(sdist())
        elif options.command == "bindings":
            print(bindings_wheel())
        elif options.command == "peers":
            print(native_prefix(variants="none", peers=True))
        else:
            prefix = native_prefix(variants=expand(options.variants), cuda=options.cuda, metal=options.metal)
            if options.command == "link":
                link(prefix)
            print(prefix)
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


def expand(variants: str) -> str:
    """Return the list of CPU modules for `host`, `dev` or `all`; other values are returned unchanged.

    For `host`, an existing bundle with more modules is preferred to a new build.
    """
    if variants == "host":
        return next((v for v in map(expand, ("dev", "all")) if locate(variants=v)[0].exists()), host_variants())
    listed = {"all": ALL_VARIANTS, "dev": DEVELOPMENT_VARIANTS}.get(variants)
    if listed is None:
        return variants
    return "all" if sys.platform == "darwin" else listed.get(plain_machine(target_machine()), "all")


def native_prefix(*, variants: str, cuda: str = "", metal: bool = False, peers: bool = False) -> Path:
    """Return the installed prefix for these options, building it unless the cache has it. Raises BuildError."""
    prefix, tree, inputs = locate(variants=variants, cuda=cuda, metal=metal, peers=peers)
    if not prefix.exists():
        build(prefix, tree, inputs)
    return prefix


def locate(
    *, variants: str, cuda: str = "", metal: bool = False, peers: bool = False
) -> tuple[Path, Path, dict[str, object]]:
    """Return the installation prefix (which exists only when complete), the build tree, and all inputs of the build.

    Raises BuildError.
    """
    inputs: dict[str, object] = {
        "pin": PIN_SHA256,
        "project": {p.name: digest(p) for p in (NATIVE / "CMakeLists.txt", NATIVE / "amx_tileconfig.h")},
        "options": {"cuda": cuda, "metal": metal, "peers": peers},
        "compiler": compiler_identity(),
        "environment": {k: os.environ.get(k, "") for k in ("CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS")},
        "platform": [sys.platform, target_machine()],
    }
    inputs |= {k: os.environ[k] for k in ("MACOSX_DEPLOYMENT_TARGET",) if os.environ.get(k)}
    if cuda:
        inputs["nvcc"] = nvcc_identity()
    # llama.cpp takes minutes to compile. It depends neither on libedgechat's sources nor on the list of CPU modules, so
    # its build tree is reused.
    tree = cache_dir() / "tree" / identity(inputs)
    inputs["options"] = {"variants": variants, "cuda": cuda, "metal": metal, "peers": peers}
    if peers:  # llama.cpp's own tools contain nothing of libedgechat
        inputs["peers"] = digest(NATIVE / "peers.cmake")
    else:
        inputs["sources"] = {
            p.relative_to(NATIVE).as_posix(): digest(p) for p in sorted((NATIVE / "src").rglob("*")) if p.is_file()
        }
    return cache_dir() / ("peers" if peers else "bundle") / identity(inputs), tree, inputs


def build(prefix: Path, tree: Path, inputs: dict[str, object]) -> None:
    """Configure and compile in `tree`, then install into `prefix`, which appears only when complete."""
    options = inputs["options"]
    if not isinstance(options, dict):
        raise TypeError(options)
    what = "llama.cpp's tools" if options["peers"] else "the native bundle"
    archive = sdist()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with locked(tree), tempfile.TemporaryDirectory(dir=prefix.parent, prefix="new-") as scratch:
        if (prefix / "manifest.json").exists():  # another clone built it while this one waited
            return
        say(f"building {what} (minutes the first time; cached in {cache_dir()})")
        started = time.monotonic()
        log = tree / "build.log"
        log.unlink(missing_ok=True)
        # CMake binds a build tree to one source directory. A copy there serves all clones.
        copy_changed(NATIVE, tree / "native")
        source = tree / f"llama_cpp_python-{PIN}"
        if not source.exists():
            unpack(archive, tree)
        staged = Path(scratch) / "prefix"
        cmake, cross = tool("cmake"), cross_compilers(target_machine())
        run(
            [cmake, *configuration(tree, source, staged, options, is_cross=bool(cross))],
            what=f"configuring {what}", log=log, env=os.environ | cross,
        )  # fmt: skip
        target = "peers" if options["peers"] else "bundle"
        run(
            [cmake, "--build", str(tree / "build"), "--target", target, "--parallel", str(os.cpu_count() or 1)],
            what=f"compiling {what}", log=log,
        )  # fmt: skip
        run([cmake, "--install", str(tree / "build"), "--strip"], what=f"installing {what}", log=log)
        llama_cpp = source / "vendor" / "llama.cpp"
        shutil.copy(llama_cpp / "LICENSE", staged / "LICENSE.llama.cpp")
        shutil.copy(llama_cpp / "licenses" / "LICENSE-jsonhpp", staged / "LICENSE.nlohmann-json")
        write_manifest(staged, prefix.name, inputs)
        check_modules(staged, options)
        staged.rename(prefix)
    remove_old_trees()
    say(f"built {what} in {time.monotonic() - started:.0f} s")


def configuration(tree: Path, source: Path, staged: Path, options: dict[str, object], *, is_cross: bool) -> list[str]:
    """Return CMake's arguments for a build in `tree` that is installed into `staged`."""
    defined = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"), "CMAKE_BUILD_TYPE": "Release", "CMAKE_INSTALL_PREFIX": staged,
        "EDGECHAT_LLAMA_DIR": source / "vendor" / "llama.cpp", "LLAMA_BUILD_COMMIT": LLAMA_CPP_COMMIT,
        "EDGECHAT_CPU_VARIANTS": options["variants"], "EDGECHAT_CUDA": options["cuda"],
        "EDGECHAT_METAL": "ON" if options["metal"] else "OFF", "EDGECHAT_PEERS": "ON" if options["peers"] else "OFF",
    }  # fmt: skip
    if options["peers"]:
        defined["CMAKE_PROJECT_edgechat_native_INCLUDE"] = tree / "native" / "peers.cmake"
    if is_cross:
        defined |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": target_machine()}
    where = ["-S", str(tree / "native"), "-B", str(tree / "build"), "-G", "Ninja"]
    return where + [f"-D{name}={value}" for name, value in defined.items()]


def remove_old_trees() -> None:
    """Delete build trees unused for a month; finished bundles stay."""
    for lock in (cache_dir() / "tree").glob("*/lock"):
        if time.time() - lock.stat().st_mtime > KEEP_TREES_S:
            shutil.rmtree(lock.parent, ignore_errors=True)


def copy_changed(source: Path, target: Path) -> None:
    """Copy the native project. Unchanged files keep their modification times and are not recompiled."""
    paths = [p for p in source.rglob("*") if p.is_file() and p.suffix in (".txt", ".cmake", ".h", ".c", ".cpp")]
    for path in paths:
        copy = target / path.relative_to(source)
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


@contextlib.contextmanager
def locked(tree: Path) -> Iterator[None]:
    """Create `tree` and hold its lock, so that only one build at a time runs there; the lock ends with the process.

    While another program holds the lock, the progress of its build is shown.
    """
    tree.mkdir(parents=True, exist_ok=True)
    with (tree / "lock").open("w") as file:

        def lock() -> bool:
            try:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):  # another program holds it
                    return False
                raise BuildError(f"Cannot lock {file.name}: {error.strerror}. Set EDGECHAT_BUILD_CACHE.") from error
            return True

        wait_with_progress(lock, "build: compiling the native bundle", tree / "build.log")
        yield


def check_modules(prefix: Path, options: dict[str, object]) -> None:
    """Raise BuildError if a requested CPU module is missing, for example because of a misspelt name."""
    requested = [] if options["variants"] in ("all", "none") else str(options["variants"]).split(";")
    missing = [name for name in requested if not list(prefix.glob(f"*ggml-cpu-{name}.*"))]
    if missing:
        raise BuildError(f"This processor has no CPU module named {', '.join(missing)}.")


def write_manifest(prefix: Path, build_id: str, inputs: dict[str, object]) -> None:
    """Write the bundle's manifest, for the runtime and for bug reports."""
    manifest = {
        "build_id": build_id,
        "llama_cpp_python": PIN,
        "llama_cpp_commit": LLAMA_CPP_COMMIT,
        "compiler": inputs["compiler"],
        "options": inputs["options"],
        "files": sorted(p.name for p in prefix.iterdir() if p.is_file()),
    }
    (prefix / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def link(prefix: Path) -> None:
    """Link `prefix` into this working tree as its bundle, or copy it where symbolic links are not available."""
    target = NATIVE.parent / "edgechat" / "_native_link"
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(prefix, target_is_directory=True)
    except OSError:
        shutil.copytree(prefix, target)


if __name__ == "__main__":
    sys.exit(main())
