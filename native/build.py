#!/usr/bin/env python3
"""Build the native parts of edgechat, or take them from a cache outside the clone.

    build.py prefix     print the directory of the native bundle
    build.py link       the same, and make it the bundle of this working tree (edgechat/_native_link)
    build.py bindings   print the wheel of the pinned llama-cpp-python without its own library
    build.py peers      print the directory of llama.cpp's own tools, built from the same source

EDGECHAT_TARGET names the architecture to build for on Linux, if it is not this machine's: aarch64 or x86_64.
Standard library only: this runs before anything is installed. The cache is $EDGECHAT_BUILD_CACHE, or
edgechat-build in the user's cache directory; an entry's name is a hash of everything that goes into it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
PIN = "0.3.36"
PIN_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
LLAMA_CPP_COMMIT = "0c1e57098"
# Levels that a development machine or a CI runner is likely to have; releases carry all.
DEVELOPMENT_VARIANTS = {
    "x86_64": "x64;haswell;icelake;zen4;sapphirerapids",
    "aarch64": "armv8.0_1;armv8.2_2;armv8.6_1",
}
# The pinned llama.cpp has modules for ARMv9.2 that differ in SME, which only its KleidiAI kernels use; those are not built
# in, and GCC before 14 knows no SME.
ALL_VARIANTS = {"aarch64": "armv8.0_1;armv8.2_1;armv8.2_2;armv8.2_3;armv8.6_1;armv8.6_2"}


EPOCH_S = 315532800
"""1980, the first year that archives of all kinds can hold: the time of every file that we pack, so that the same is the same."""
KEEP_TREES_S = 30 * 24 * 3600


class BuildError(Exception):
    """What went wrong, in one sentence that says what to do."""


def main() -> int:
    """Run one command; results go to stdout, everything else to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prefix", "link", "bindings", "peers"])
    parser.add_argument(
        "--variants",
        default=os.environ.get("EDGECHAT_CPU_VARIANTS", "all"),
        help="CPU modules: all, dev, or a list separated by semicolons",
    )
    parser.add_argument(
        "--cuda", default="", metavar="ARCHITECTURES", help="build the CUDA module too, for example for 87-real"
    )
    parser.add_argument("--metal", action="store_true", help="build the Metal module too")
    options = parser.parse_args()
    if options.command in ("link", "peers"):  # these run here
        os.environ.pop("EDGECHAT_TARGET", None)
    try:
        if options.command == "bindings":
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
    """The CPU modules that `dev` or `all` stands for."""
    named = {"all": ALL_VARIANTS, "dev": DEVELOPMENT_VARIANTS}.get(variants)
    if named is None:
        return variants
    return "all" if sys.platform == "darwin" else named.get(plain_machine(target_machine()), "all")


def plain_machine(name: str) -> str:
    """The one name of several that systems have for an architecture."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name.lower())


def target_machine() -> str:
    """The architecture that is built for, as this system calls it. Raises BuildError."""
    named, here = os.environ.get("EDGECHAT_TARGET"), platform.machine()
    if named and plain_machine(named) != plain_machine(here):
        if sys.platform != "linux" or plain_machine(named) not in DEVELOPMENT_VARIANTS:
            known = ", ".join(DEVELOPMENT_VARIANTS)
            raise BuildError(
                f"EDGECHAT_TARGET is {named!r}: it can be one of {known}, and another than {here} on Linux only"
            )
        return plain_machine(named)
    if sys.platform == "linux" and here.endswith("64") and sys.maxsize < 2**32:
        raise BuildError(f"this Python is one of 32 bits on a kernel for {here}: edgechat is built for 64 bits")
    return here


def cross_compilers(machine: str) -> dict[str, str]:
    """CC and others that build for an architecture, if it is not this machine's. Raises BuildError.

    Those of the environment do not count: the build of a wheel sets them to this machine's.
    """
    if machine == platform.machine():
        return {}
    for version in ("", *(f"-{number}" for number in range(16, 11, -1))):
        if shutil.which(f"{machine}-linux-gnu-g++{version}"):
            cxx = f"{machine}-linux-gnu-g++{version}"
            return {"CC": f"{machine}-linux-gnu-gcc{version}", "CXX": cxx, "CUDAHOSTCXX": cxx}
    raise BuildError(
        f"no C++ compiler for {machine}: install one, for example the package g++-12-{machine.replace('_', '-')}-linux-gnu"
    )


def cache_dir() -> Path:
    """Where finished builds are kept, shared by all clones on this machine."""
    named = os.environ.get("EDGECHAT_BUILD_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "edgechat-build"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgechat-build"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgechat-build"


def native_prefix(*, variants: str, cuda: str = "", metal: bool = False, peers: bool = False) -> Path:
    """The installed prefix for these options, built unless the cache has it."""
    inputs: dict[str, object] = {
        "pin": PIN_SHA256,
        "project": {p.name: digest(p) for p in (NATIVE / "CMakeLists.txt", NATIVE / "amx_tileconfig.h")},
        "options": {"variants": variants, "cuda": cuda, "metal": metal, "peers": peers},
        "compiler": compiler_identity(),
        "environment": {k: os.environ.get(k, "") for k in ("CFLAGS", "CXXFLAGS", "LDFLAGS", "CUDAFLAGS")},
        "platform": [sys.platform, target_machine()],
    }
    inputs |= {k: os.environ[k] for k in ("MACOSX_DEPLOYMENT_TARGET",) if os.environ.get(k)}
    if cuda:
        inputs["nvcc"] = nvcc_identity()
    # llama.cpp takes minutes and depends on less than libedgechat does: its build tree is kept.
    tree = cache_dir() / "tree" / identity(inputs)
    inputs["sources"] = {p.name: digest(p) for p in sorted((NATIVE / "src").iterdir())}
    prefix = cache_dir() / ("peers" if peers else "bundle") / identity(inputs)
    if not (prefix / "manifest.json").exists():
        build(prefix, tree, inputs)
    return prefix


def identity(inputs: dict[str, object]) -> str:
    """A short name for exactly these inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    h = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def compiler_identity() -> str:
    """Version of the C++ compiler, or a BuildError that says how to get one."""
    named = cross_compilers(target_machine()).get("CXX") or os.environ.get("CXX")
    names = [named] if named else ["c++", "g++", "clang++", "cl"]
    for name in names:
        if shutil.which(name.split()[0]):
            command = [*name.split()] if name == "cl" else [*name.split(), "--version"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            line = ((result.stdout or result.stderr).splitlines() or [name])[0]
            # `c++` and `g++` name themselves; that the wheel build says one and `make` the other changes nothing.
            return line.removeprefix(Path(name.split()[0]).name).strip()
    raise BuildError(
        f"no C++ compiler found (looked for {', '.join(names)}): install one, for example g++ or clang, "
        "or use a wheel of edgechat, which needs none"
    )


def nvcc_identity() -> str:
    """Version of the CUDA compiler, which CUDACXX may name, or a BuildError that says how to get one."""
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if nvcc is None:
        raise BuildError("no nvcc found: install NVIDIA's CUDA toolkit, or name its nvcc in CUDACXX")
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    return next((line for line in told.splitlines() if "release" in line), told)


def tool(name: str) -> str:
    """Path of cmake or ninja: the system's, this interpreter's, or one installed from the package index."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found:
        return found
    tools = cache_dir() / "tools"
    binary = tools / "bin" / (name + (".exe" if sys.platform == "win32" else ""))
    if not binary.exists():
        pip("install", "--target", str(tools), "--upgrade", name, what=f"getting {name}")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")]))
    return str(binary)


def pip(*arguments: str, what: str, **environment: str) -> None:
    """Run pip quietly; its output is shown only if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    run(command, what=what, env=os.environ | environment)


def run(command: list[str], *, what: str, log: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command, keeping its output in `log`; on failure show the end of it and raise BuildError."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, env=env
    )
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(result.stdout)
    if result.returncode != 0:
        print("\n".join(result.stdout.splitlines()[-25:]), file=sys.stderr)
        where = f"; the whole log is {log}" if log else ""
        raise BuildError(f"{what} failed (exit code {result.returncode}){where}")


def sdist() -> Path:
    """The pinned llama-cpp-python source, downloaded once and checked against its hash every time."""
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
    found = digest(archive)
    if found != PIN_SHA256:
        archive.unlink()
        raise BuildError(f"the source of llama-cpp-python {PIN} has SHA-256 {found}, not {PIN_SHA256}: run this again")
    return archive


def bindings_wheel() -> Path:
    """The llama-cpp-python wheel with bindings only: edgechat brings the library."""
    folder = cache_dir() / "bindings" / f"{PIN}-{sys.platform}-{platform.machine()}-{EPOCH_S}"
    found = sorted(folder.glob("*.whl"))
    if not found:
        compiler_identity()  # its CMake asks for a compiler, and says so less clearly
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
        found = sorted(folder.glob("*.whl"))
    return found[0]


def build(prefix: Path, tree: Path, inputs: dict[str, object]) -> None:
    """Configure, compile in `tree`, and install into `prefix`, which appears only when it is complete."""
    options = inputs["options"]
    if not isinstance(options, dict):
        raise TypeError(options)
    what = "llama.cpp's tools" if options["peers"] else "the native bundle"
    archive = sdist()
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with locked(tree), tempfile.TemporaryDirectory(dir=prefix.parent, prefix="new-") as scratch:
        if (prefix / "manifest.json").exists():  # another clone built it while this one waited
            return
        say(f"building {what} (minutes the first time; kept in {cache_dir()})")
        started = time.monotonic()
        log = tree / "build.log"
        log.unlink(missing_ok=True)
        # CMake ties a build tree to one source directory, but clones come and go: it gets a copy.
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
        shutil.copy(source / "vendor" / "llama.cpp" / "LICENSE", staged / "LICENSE.llama.cpp")
        write_manifest(staged, prefix.name, inputs)
        check_modules(staged, options)
        staged.rename(prefix)
    forget_old_trees()
    say(f"built {what} in {time.monotonic() - started:.0f} s")


def configuration(tree: Path, source: Path, staged: Path, options: dict[str, object], *, is_cross: bool) -> list[str]:
    """What CMake is told of a build in `tree` that is installed into `staged`."""
    defined = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"), "CMAKE_BUILD_TYPE": "Release", "CMAKE_INSTALL_PREFIX": staged,
        "EDGECHAT_LLAMA_DIR": source / "vendor" / "llama.cpp", "LLAMA_BUILD_COMMIT": LLAMA_CPP_COMMIT,
        "EDGECHAT_CPU_VARIANTS": options["variants"], "EDGECHAT_CUDA": options["cuda"],
        "EDGECHAT_METAL": "ON" if options["metal"] else "OFF", "EDGECHAT_PEERS": "ON" if options["peers"] else "OFF",
    }  # fmt: skip
    if is_cross:
        defined |= {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": target_machine()}
    where = ["-S", str(tree / "native"), "-B", str(tree / "build"), "-G", "Ninja"]
    return where + [f"-D{name}={value}" for name, value in defined.items()]


def forget_old_trees() -> None:
    """Remove build trees that no build has used for a month; finished bundles stay."""
    for lock in (cache_dir() / "tree").glob("*/lock"):
        if time.time() - lock.stat().st_mtime > KEEP_TREES_S:
            shutil.rmtree(lock.parent, ignore_errors=True)


def copy_changed(source: Path, target: Path) -> None:
    """Copy the native project; files that did not change keep their times, so that they are not recompiled."""
    wanted = [p for p in source.rglob("*") if p.is_file() and p.suffix in (".txt", ".h", ".cpp")]
    for path in wanted:
        copy = target / path.relative_to(source)
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the source into `target`; it appears only when it is complete."""
    with tempfile.TemporaryDirectory(dir=target, prefix="unpack-") as scratch:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(scratch, filter="data")
            else:
                tar.extractall(scratch)  # its hash was checked
        unpacked = next(Path(scratch).iterdir())
        unpacked.rename(target / unpacked.name)


@contextlib.contextmanager
def locked(tree: Path) -> Iterator[None]:
    """One build at a time in `tree`, which is made; the lock goes with the process."""
    tree.mkdir(parents=True, exist_ok=True)
    with (tree / "lock").open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_modules(prefix: Path, options: dict[str, object]) -> None:
    """Raise BuildError if a CPU module that was asked for is not there, which is how a misspelt name shows."""
    wanted = [] if options["variants"] in ("all", "none") else str(options["variants"]).split(";")
    missing = [name for name in wanted if not list(prefix.glob(f"*ggml-cpu-{name}.*"))]
    if missing:
        raise BuildError(f"there is no CPU module called {', '.join(missing)} for this processor")


def write_manifest(prefix: Path, build_id: str, inputs: dict[str, object]) -> None:
    """Record what is in the bundle, for the runtime and for bug reports."""
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
    """Make `prefix` the bundle of this working tree: a link, or a copy where links are not to be had."""
    target = NATIVE.parent / "edgechat" / "_native_link"
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(prefix, target_is_directory=True)
    except OSError:
        shutil.copytree(prefix, target)


def say(words: str) -> None:
    """One line of progress."""
    print(f"build: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
