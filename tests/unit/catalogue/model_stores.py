"""Tiny models in the stores of other programs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from edgechat.catalogue.library import InstalledModel, scan
from tests.models import write_tiny_llama


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_model(path: Path, seed: int = 0) -> Path:
    """Write a model with random weights; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiny_llama(path, seed=seed)


def add_to_hub_cache(user: Path, repo: str, name: str, seed: int) -> Path:
    """Write a model as huggingface_hub does, and return the path of the link to its blob."""
    base = user / ".cache/huggingface/hub" / f"models--{repo.replace('/', '--')}"
    (base / "blobs").mkdir(parents=True)
    model = write_model(base / "new.gguf", seed)
    blob = model.rename(base / "blobs" / sha256_of(model))
    link = base / "snapshots" / ("c" * 40) / name
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    (base / "refs").mkdir()
    (base / "refs/main").write_text("c" * 40)
    return link


def add_to_ollama(user: Path, name: str, tag: str, seed: int) -> Path:
    """Write a model as Ollama does, and return the path of its blob."""
    root = user / ".ollama/models"
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    model = write_model(root / "blobs/new.gguf", seed)
    sha256 = sha256_of(model)
    blob = model.rename(root / "blobs" / f"sha256-{sha256}")
    manifest = root / "manifests/registry.ollama.ai/library" / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{sha256}", "size": blob.stat().st_size},
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "1" * 64, "size": 3},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob


def installed() -> list[InstalledModel]:
    """Return all installed models except the starter model."""
    return [model for model in scan() if model.name != "starter"]
