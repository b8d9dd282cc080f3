"""Models on this machine, wherever they lie, and the names they have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from edgechat import paths
from edgechat.catalogue import library, locations, registry, verify
from edgechat.catalogue.library import InstalledModel, scan
from edgechat.catalogue.resolve import find_installed, find_model
from edgechat.errors import CatalogueError, ModelFileError
from tests.models import split_tiny, write_tiny_llama


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with nothing in it."""
    directory = tmp_path / "user"
    directory.mkdir()
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("USERPROFILE", str(directory))
    return directory


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tiny_llama(path, seed=seed)


def in_hub_cache(user: Path, repo: str, name: str, seed: int) -> Path:
    base = user / ".cache/huggingface/hub" / f"models--{repo.replace('/', '--')}"
    (base / "blobs").mkdir(parents=True)
    made = model(base / "made.gguf", seed)
    blob = made.rename(base / "blobs" / digest(made))
    link = base / "snapshots" / ("c" * 40) / name
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    (base / "refs").mkdir()
    (base / "refs/main").write_text("c" * 40)
    return link


def in_ollama(user: Path, name: str, tag: str, seed: int) -> Path:
    root = user / ".ollama/models"
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    made = model(root / "blobs/made.gguf", seed)
    found = digest(made)
    blob = made.rename(root / "blobs" / f"sha256-{found}")
    manifest = root / "manifests/registry.ollama.ai/library" / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{found}", "size": blob.stat().st_size},
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "1" * 64, "size": 3},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob


def here() -> list[InstalledModel]:
    return [entry for entry in scan() if entry.name != "starter"]


def test_the_stores_of_other_programs_are_found_each_model_once(user: Path) -> None:
    in_hub_cache(user, "owner/one-GGUF", "one-Q4_K_M.gguf", seed=1)
    blob = in_ollama(user, "two", "latest", seed=2)
    model(user / ".lmstudio/models/maker/three-GGUF/three.gguf", seed=3)
    model(user / ".cache/llama.cpp/owner_four.gguf", seed=4)
    model(paths.models_dir() / "owner/five-GGUF/five.gguf", seed=5)
    # What lies in two places is one model: by its file, and by its hash.
    os.link(blob, paths.models_dir() / "linked.gguf")
    shutil.copy(blob, user / "copy.gguf")
    (user / ".cache/huggingface/hub" / "models--x--y/blobs").mkdir(parents=True)
    copied = user / ".cache/huggingface/hub/models--x--y/snapshots" / ("d" * 40) / "two.gguf"
    copied.parent.mkdir(parents=True)
    shutil.copy(blob, copied.parents[2] / "blobs" / digest(blob))
    copied.symlink_to(f"../../blobs/{digest(blob)}")
    found = here()
    assert sorted(entry.name for entry in found) == ["five", "linked", "one-Q4_K_M", "owner_four", "three"]
    linked = next(entry for entry in found if entry.name == "linked")
    assert {linked.source, *(p.name for p in linked.also_at)} == {locations.OWN, blob.name, "two.gguf"}
    assert {entry.source for entry in found} == {
        locations.OWN,
        locations.HUB_CACHE,
        locations.LM_STUDIO,
        locations.LLAMA_CPP,
    }
    assert {entry.repo for entry in found} >= {"owner/one-GGUF", "maker/three-GGUF", "owner/five-GGUF"}
    assert all(entry.is_usable and entry.facts.architecture == "llama" for entry in found)


def test_damaged_stores_are_passed_over(user: Path) -> None:
    in_ollama(user, "good", "latest", seed=1)
    manifests = user / ".ollama/models/manifests/registry.ollama.ai/library/bad"
    manifests.mkdir(parents=True)
    for name, text in {
        "a": "", "b": "{}", "c": '{"layers": 3}', "d": "x" * 2_000_000, "f": '{"layers": [{"mediaType": 1}]}',
        "e": '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
    }.items():  # fmt: skip
        (manifests / name).write_text(text)
    (paths.models_dir() / "deep/er").mkdir(parents=True)
    (paths.models_dir() / "loop").symlink_to(paths.models_dir())
    (paths.models_dir() / "gone.gguf").symlink_to("nowhere.gguf")
    (paths.models_dir() / "dir.gguf").mkdir()
    (paths.models_dir() / "bad.gguf").write_bytes(b"GGUF but not really")
    (paths.models_dir() / "a\x1b[31m.gguf").write_bytes(b"GGUF")
    assert [(entry.name, bool(entry.facts.problem)) for entry in here()] == [("bad", True), ("good:latest", False)]


def test_facts_are_read_once(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(paths.models_dir() / "one.gguf")
    first = here()
    read: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(registry, "read_header", read.append)
        assert here() == first
    assert read == []
    write_tiny_llama(path, seed=1, architecture="qwen2")
    os.utime(path, ns=(1, 1))
    assert [entry.facts.architecture for entry in here()] == ["qwen2"]
    cache = paths.cache_dir() / "models.json"
    for damage in (b"", b"{", b"[]", b'{"version": 99, "facts": {}}', os.urandom(100)):
        cache.write_bytes(damage)
        assert [entry.facts.architecture for entry in here()] == ["qwen2"]


def test_names(user: Path, starter: Path) -> None:
    quants = {
        name: model(paths.models_dir() / f"unsloth/Qwen3.5-4B-GGUF/Qwen3.5-4B-{name}.gguf", seed=i)
        for i, name in enumerate(("Q4_K_M", "Q8_0"))
    }
    other = model(user / "folder/Qwen3.5-4B-Q8_0.gguf", seed=9)
    library.add_folder(user / "folder")
    assert find_model("starter") == starter
    for name, quant in (
        ("qwen3.5-4b:q8_0", "Q8_0"),
        ("unsloth/Qwen3.5-4B-GGUF:Q4_K_M", "Q4_K_M"),
        ("Qwen3.5-4B-Q4_K_M", "Q4_K_M"),
    ):
        assert find_model(name) == quants[quant]
    assert find_model("qwen3.5-4b") == quants["Q4_K_M"]
    assert find_model("smollm2-135m") == starter
    assert find_model("qwen3.5-4b-q8_0@folder") == other
    with pytest.raises(ModelFileError, match=r"models pull qwen3\.5-9b"):
        find_model("qwen3.5-9b")
    with pytest.raises(ModelFileError, match="models pull some/thing:Q4_0"):
        find_model("some/thing:Q4_0")
    with pytest.raises(ModelFileError, match=r"did you mean qwen3\.5-4b"):
        find_model("qwen35-4b")
    library.add_alias("mine", other)
    assert find_model("mine") == other
    assert find_installed("mine", scan()).path == other
    library.remove_alias("mine")
    with pytest.raises(ModelFileError):
        find_model("mine")
    for name in ("starter", "a/b", "", "x.gguf", ".x", "a:b", "a\x1b"):
        with pytest.raises(CatalogueError):
            library.add_alias(name, other)
    with pytest.raises(CatalogueError):
        library.remove_alias("mine")


def test_removing_frees_only_what_is_ours(user: Path) -> None:
    path = model(paths.models_dir() / "owner/repo/m-Q8_0.gguf")
    theirs = model(user / ".lmstudio/models/maker/repo/t.gguf", seed=1)
    library.add_alias("mine", path)
    size = path.stat().st_size
    entries = {entry.name: entry for entry in here()}
    with pytest.raises(CatalogueError, match="lm studio"):
        library.delete_model(entries["t"])
    assert theirs.exists()
    assert library.delete_model(entries["m-Q8_0"]) == size
    assert not (paths.models_dir() / "owner").exists()
    assert paths.models_dir().exists()
    assert registry.read_records().aliases == {}


def test_hashes_are_remembered_until_the_file_changes(user: Path) -> None:
    path = model(paths.models_dir() / "one.gguf")
    [entry] = here()
    [first] = verify.verify_files(entry)
    assert (first.is_good, first.sha256) == (None, digest(path))
    [entry] = here()
    assert entry.state == "unchanged"
    [second] = verify.verify_files(entry)
    assert second.is_good is True
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    [entry] = here()
    assert entry.state == ""
    [third] = verify.verify_files(entry)
    assert third.is_good is False
    assert "DIFFERS" in third.description
    blob = in_ollama(user, "two", "latest", seed=2)
    with blob.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    broken = next(entry for entry in here() if entry.source == locations.OLLAMA)
    assert [result.is_good for result in verify.verify_files(broken)] == [False]


def test_damaged_records_are_not_thrown_away(user: Path) -> None:
    library.add_folder(user)
    file = paths.data_dir() / "library.json"
    file.write_text("{")
    for work in (here, lambda: library.add_folder(user), lambda: find_model("x")):
        with pytest.raises(CatalogueError, match=r"library\.json"):
            work()
    registry.record_use(user)  # a note that cannot be made is not made
    assert file.read_text() == "{"


def test_a_single_file_is_known_like_any_other(user: Path) -> None:
    path = model(user / "somewhere/own.gguf")
    library.add_file(path)
    [entry] = here()
    assert (entry.name, entry.source, find_model("own")) == ("own", locations.FILE, path)
    assert library.remove_file(path)
    assert not library.remove_file(path)
    assert here() == []
    assert path.exists()


def test_a_set_that_loses_a_part_is_no_longer_whole(user: Path) -> None:
    paths.models_dir().mkdir(parents=True)
    parts = split_tiny(paths.models_dir())
    (paths.models_dir() / "whole.gguf").unlink()
    assert [entry.is_usable for entry in here()] == [True]
    parts[1].unlink()
    [entry] = here()
    assert "missing beside it" in entry.facts.problem
    assert [result.is_good for result in verify.verify_files(entry)] == [None, False, None]
