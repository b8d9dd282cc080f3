"""Models in the stores of other programs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgechat import paths
from edgechat.catalogue import locations
from tests.unit.catalogue.model_stores import add_to_hub_cache, add_to_ollama, installed, sha256_of, write_model


def test_models_of_other_programs_are_listed_once(user: Path) -> None:
    add_to_hub_cache(user, "owner/one-GGUF", "one-Q4_K_M.gguf", seed=1)
    blob = add_to_ollama(user, "two", "latest", seed=2)
    write_model(user / ".lmstudio/models/maker/three-GGUF/three.gguf", seed=3)
    write_model(user / ".cache/llama.cpp/owner_four.gguf", seed=4)
    write_model(paths.models_dir() / "owner/five-GGUF/five.gguf", seed=5)
    # The Ollama model again: a hard link, a copy outside of all locations, and a copy in the hub cache.
    os.link(blob, paths.models_dir() / "linked.gguf")
    shutil.copy(blob, user / "copy.gguf")
    (user / ".cache/huggingface/hub" / "models--x--y/blobs").mkdir(parents=True)
    cached = user / ".cache/huggingface/hub/models--x--y/snapshots" / ("d" * 40) / "two.gguf"
    cached.parent.mkdir(parents=True)
    shutil.copy(blob, cached.parents[2] / "blobs" / sha256_of(blob))
    cached.symlink_to(f"../../blobs/{sha256_of(blob)}")
    models = installed()
    assert sorted(model.name for model in models) == ["five", "linked", "one-Q4_K_M", "owner_four", "three"]
    linked = next(model for model in models if model.name == "linked")
    assert {linked.source, *(path.name for path in linked.other_paths)} == {locations.MANAGED, blob.name, "two.gguf"}
    assert {model.source for model in models} == {
        locations.MANAGED,
        locations.HUB_CACHE,
        locations.LM_STUDIO,
        locations.LLAMA_CPP,
    }
    assert {model.repo for model in models} >= {"owner/one-GGUF", "maker/three-GGUF", "owner/five-GGUF"}
    assert all(model.is_usable and model.facts.architecture == "llama" for model in models)


def test_damaged_stores_are_skipped(user: Path) -> None:
    add_to_ollama(user, "good", "latest", seed=1)
    manifests = user / ".ollama/models/manifests/registry.ollama.ai/library/bad"
    manifests.mkdir(parents=True)
    hostile_layer = '{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}'
    for name, text in {
        "a": "", "b": "{}", "c": '{"layers": 3}', "d": "x" * 2_000_000, "f": '{"layers": [{"mediaType": 1}]}',
        "e": f'{{"layers": [{hostile_layer}]}}',
    }.items():  # fmt: skip
        (manifests / name).write_text(text)
    (paths.models_dir() / "deep/er").mkdir(parents=True)
    (paths.models_dir() / "loop").symlink_to(paths.models_dir())
    (paths.models_dir() / "dangling.gguf").symlink_to("nowhere.gguf")
    (paths.models_dir() / "dir.gguf").mkdir()
    (paths.models_dir() / "bad.gguf").write_bytes(b"GGUF but not really")
    (paths.models_dir() / "a\x1b[31m.gguf").write_bytes(b"GGUF")
    assert [(model.name, bool(model.facts.problem)) for model in installed()] == [("bad", True), ("good:latest", False)]
