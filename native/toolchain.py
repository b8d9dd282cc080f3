"""Environment of the native build: target architecture, compilers, tools from the package index, build cache.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from progress import run_with_progress

# CPU modules for common development machines and CI runners; releases contain all modules.
DEVELOPMENT_VARIANTS = {
    "x86_64": "x64;haswell;icelake;zen4;sapphirerapids",
    "aarch64": "armv8.0_1;armv8.2_2;armv8.6_1",
}
# Features in /proc/cpuinfo that these modules need. The other modules need none.
_NEEDED_FEATURES = {
    "haswell": "avx2 bmi2 f16c fma",
    "icelake": "avx2 bmi2 f16c fma avx512f avx512cd avx512vl avx512dq avx512bw avx512vbmi avx512_vnni",
    "zen4": "avx2 bmi2 f16c fma avx512f avx512cd avx512vl avx512dq avx512bw avx512vbmi avx512_vnni avx512_bf16",
    "sapphirerapids": "avx512f avx512vbmi avx512_vnni avx512_bf16 amx_tile amx_int8",
    "armv8.2_2": "asimddp asimdhp",
    "armv8.6_1": "asimddp asimdhp sve i8mm",
}


class BuildError(Exception):
    """Error of the native build; the message tells the user what to do."""


def plain_machine(name: str) -> str:
    """Normalise the name of an architecture: amd64 to x86_64, arm64 to aarch64."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name.lower(), name.lower())


def host_variants(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the two development modules for this machine: the baseline, and the newest one that it can run.

    Returns all development modules if the features of the processor are unknown.
    """
    listed = DEVELOPMENT_VARIANTS.get(plain_machine(target_machine()))
    if listed is None or sys.platform == "darwin":
        return "all"
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return listed
    words = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
    baseline, *others = listed.split(";")
    usable = [name for name in others if set(_NEEDED_FEATURES[name].split()) <= words]
    return ";".join([baseline, *usable[-1:]])


def target_machine() -> str:
    """Return the target architecture. Raises BuildError if this machine cannot build for it."""
    named, host = os.environ.get("EDGECHAT_TARGET"), platform.machine()
    if named and plain_machine(named) != plain_machine(host):
        if sys.platform != "linux" or plain_machine(named) not in DEVELOPMENT_VARIANTS:
            known = ", ".join(DEVELOPMENT_VARIANTS)
            raise BuildError(f"EDGECHAT_TARGET is {named!r}. It can be {known}, and differ from {host} on Linux only.")
        return plain_machine(named)
    if sys.platform == "linux" and host.endswith("64") and sys.maxsize < 2**32:
        raise BuildError(f"This is a 32-bit Python on a {host} kernel. edgechat needs a 64-bit Python.")
    return host


def cross_compilers(machine: str) -> dict[str, str]:
    """Return the environment variables (CC, CXX) of a cross compiler, empty for this machine's architecture.

    Ignores CC and CXX of the environment, because a wheel build sets them to this machine's compilers. Raises
    BuildError if no compiler is found.
    """
    if machine == platform.machine():
        return {}
    for version in ("", *(f"-{number}" for number in range(16, 11, -1))):
        if shutil.which(f"{machine}-linux-gnu-g++{version}"):
            cxx = f"{machine}-linux-gnu-g++{version}"
            return {"CC": f"{machine}-linux-gnu-gcc{version}", "CXX": cxx, "CUDAHOSTCXX": cxx}
    raise BuildError(
        f"No C++ compiler for {machine}. Install one, for example g++-12-{machine.replace('_', '-')}-linux-gnu."
    )


def cache_dir() -> Path:
    """Return the directory of the build cache, shared by all clones on this machine."""
    named = os.environ.get("EDGECHAT_BUILD_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "edgechat-build"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgechat-build"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgechat-build"


def identity(inputs: dict[str, object]) -> str:
    """Return a hash of the inputs as a short name."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    h = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            h.update(block)
    return h.hexdigest()


def compiler_identity() -> str:
    """Return the version line of the C++ compiler. Raises BuildError if there is none."""
    named = cross_compilers(target_machine()).get("CXX") or os.environ.get("CXX")
    names = [named] if named else ["c++", "g++", "clang++", "cl"]
    for name in names:
        if shutil.which(name.split()[0]):
            command = [*name.split()] if name == "cl" else [*name.split(), "--version"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            line = ((result.stdout or result.stderr).splitlines() or [name])[0]
            # The line begins with the command's name. Removing it makes `c++` and `g++` the same compiler.
            return line.removeprefix(Path(name.split()[0]).name).strip()
    raise BuildError(
        f"No C++ compiler found (tried {', '.join(names)}). Install one, for example g++ or clang, "
        "or use a wheel of edgechat, which needs none."
    )


def nvcc_identity() -> str:
    """Return the version line of the CUDA compiler (CUDACXX or nvcc). Raises BuildError if there is none."""
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc")
    if nvcc is None:
        raise BuildError("No nvcc found. Install NVIDIA's CUDA toolkit, or set CUDACXX to its nvcc.")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    return next((line for line in version.splitlines() if "release" in line), version)


def tool(name: str) -> str:
    """Return the path of cmake or ninja: from PATH, from this environment, or installed from the package index."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path:
        return path
    tools = cache_dir() / "tools"
    binary = tools / "bin" / (name + (".exe" if sys.platform == "win32" else ""))
    if not binary.exists():
        pip("install", "--target", str(tools), "--upgrade", name, what=f"getting {name}")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tools), os.environ.get("PYTHONPATH")]))
    return str(binary)


def pip(*arguments: str, what: str, **environment: str) -> None:
    """Run pip and show its output only if it fails. Raises BuildError."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    run(command, what=what, env=os.environ | environment)


def run(command: list[str], *, what: str, log: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command, show its progress, and append its output to `log`.

    On failure, print the end of the output and raise BuildError.
    """
    exit_code, output = run_with_progress(command, f"build: {what}", env, log)
    if exit_code != 0:
        print("\n".join(output.splitlines()[-25:]), file=sys.stderr)
        where = f" The whole log is {log}." if log else ""
        raise BuildError(f"{what[:1].upper()}{what[1:]} failed (exit code {exit_code}).{where}")


def say(text: str) -> None:
    """Print a line of progress to standard error."""
    print(f"build: {text}", file=sys.stderr, flush=True)
