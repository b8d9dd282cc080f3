"""Environments of one client each, from the package indexes: virtual environments, and directories of Node.js packages.

They are kept in the build cache. `make test-exhaustive` installs those that the cache lacks, which takes minutes;
otherwise their tests are skipped. They are also skipped if the index cannot be reached.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import ROOT
from tests.fuzzing import IS_EXHAUSTIVE

_INSTALL_TIMEOUT_S = 900
# What pip and npm print if the index cannot be reached.
_UNREACHABLE = re.compile(
    "establish a new connection|Failed to resolve|name resolution|timed out|Network is unreachable|Connection refused|"
    "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH"
)


def python_environment(packages: Sequence[str]) -> Path:
    """Return the interpreter of a virtual environment with `packages`. Skips the test without a connection."""
    directory = _directory("python", packages)
    scripts = directory / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "--disable-pip-version-check"]
    venv = [sys.executable, "-m", "venv", str(directory)]
    _install(directory, [venv, [*pip, "install", "--quiet", "--retries", "1", *packages]])
    return scripts / "python"


def node_environment(packages: Sequence[str]) -> Path:
    """Return the `node_modules` directory with `packages`. Skips the test without Node.js or a connection."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs Node.js and npm")
    directory = _directory("node", packages)
    options = ["--no-audit", "--no-fund", "--fetch-retries", "1", "--prefix", str(directory)]
    _install(directory, [["npm", "install", *options, *packages]])
    return directory / "node_modules"


def _directory(kind: str, packages: Sequence[str]) -> Path:
    sys.path.insert(0, str(ROOT / "native"))
    import toolchain

    version = sys.version_info[:2] if kind == "python" else ()
    key = hashlib.sha256(json.dumps([kind, version, *packages]).encode()).hexdigest()[:12]
    name = re.sub("[^a-z0-9]+", "-", packages[0].lower()).strip("-")
    return toolchain.cache_dir() / "clients" / f"{name}-{key}"


def _install(directory: Path, commands: Sequence[Sequence[str]]) -> None:
    """Run the commands that fill `directory`, once; afterwards it contains the file `complete`."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(directory) + ".lock"):
        if (directory / "complete").exists():
            return
        if not IS_EXHAUSTIVE:
            pytest.skip(f"{directory.name} is not in the build cache: `make test-exhaustive` installs it")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for command in commands:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT_S, env=environment
            )
            output = done.stdout + done.stderr
            if done.returncode and _UNREACHABLE.search(output):
                pytest.skip(f"the package index cannot be reached: {output.strip().splitlines()[-1]}")
            assert done.returncode == 0, output
        (directory / "complete").touch()
